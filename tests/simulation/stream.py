"""The inputs of one seed: what producers send, and when it arrives.

In: a seed. Out: records in the order of their arrival, each with its topic, partition, time and fields. Invariant: a
record that is left out leaves all others as they were, so that a failing seed can be made smaller.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Any

from tests.builders import a_category, a_count, a_field, a_group, a_latest, a_mean, a_spec
from tests.verify.avro import encode
from tidemill.core.spec import AppSpec

PARTITIONS = 2
PANE_MS = 1_000
WINDOW_MS = 12 * PANE_MS
WAIT_MS = 6_000
LATENESS_MS = 500
DEDUP_MS = 14_000
SKEW_MS = 3_000
FIRST_MS, LAST_MS = 1_000, 32_000
END_MS = 90_000  # of the punctuation that ends every partition: all rows are due by then
UNIT = 0.5
ROLE_OF = {"readings": "context", "outcomes": "label", "events": "event"}


@dataclass(frozen=True)
class Sent:
    """One record. arrives: its place in the order of arrivals, a real number; hole: offsets without records before it.

    kind: good, poison or end (a punctuation that ends the partition).
    """

    number: int
    topic: str
    partition: int
    time: int
    arrives: float
    kind: str = "good"
    fields: dict[str, Any] = field(default_factory=dict)
    hole: int = 0


def an_app() -> AppSpec:
    """One feature of each way in which state is kept, and short windows, so that panes are taken over and rows end."""
    by_shop = (
        a_count("readings_12s", "readings", WINDOW_MS),
        a_mean("late_12s", "outcomes", "label", WINDOW_MS, prior=0.5, prior_weight=1.0),
        a_mean("amount_12s", "events", "amount", WINDOW_MS, unit=UNIT),
        a_latest("reading", "readings", "reading"),
    )
    spec = a_spec(
        a_group("event", [], a_field("amount", "amount"), a_category("shop", "shop")),
        a_group("by_shop", ["shop"], *by_shop),
        max_skew_ms=SKEW_MS,
    )
    label = replace(spec.label, wait_ms=WAIT_MS, allowed_lateness_ms=LATENESS_MS, dedup_window_ms=DEDUP_MS)
    return replace(spec, label=label, batch_records=8)


def a_stream(seed: int) -> list[Sent]:
    """What comes, in the order in which it arrives."""
    chance = random.Random(f"stream {seed}")
    sent: list[Sent] = []
    count = chance.randint(10, 26)
    ids = chance.choice([count, count, 4])  # few ids: workers meet on them, again and again
    is_prompt = chance.random() < 0.5  # of an event its labels come at once
    idle = chance.choice([None, None, ("readings", 1), ("events", 1), ("outcomes", 0)])
    delays = {(topic, number): chance.choice([0, 0, 0, 4, 15]) for topic in ROLE_OF for number in range(PARTITIONS)}

    def send(topic: str, time: int, kind: str = "good", **fields: Any) -> None:
        partition = chance.randrange(PARTITIONS)
        if (topic, partition) == idle:
            partition = 1 - partition
        arrives = 60.0 * (time - FIRST_MS) / (LAST_MS - FIRST_MS) + delays[topic, partition] * chance.random()
        hole = chance.choice([0] * 9 + [1, 2])
        sent.append(Sent(len(sent), topic, partition, time, arrives, kind, fields, hole))
        if chance.random() < 0.06:  # a producer sends it again, into the same partition or the other one
            other = partition if chance.random() < 0.5 else 1 - partition
            sent.append(replace(sent[-1], number=len(sent), partition=other, arrives=arrives + 3 * chance.random()))

    for number in range(count):
        time = chance.randrange(FIRST_MS, LAST_MS)
        if chance.random() < 0.25:
            send("readings", time, shop=chance.choice("st"), reading=float(chance.randrange(100)))
            continue
        id_, shop = f"e{number % ids}", chance.choice("st")
        if chance.random() < 0.9:
            send("events", time, id=id_, shop=shop, user=1, amount=float(chance.randrange(1 << 30)) * UNIT)
        for _ in range(chance.choice([0, 1, 1, 1, 2])):
            after = chance.choice(
                [-60, 0, 20] if is_prompt else [-800, 0, 300, 1_500, 4_000, WAIT_MS, WAIT_MS + 1, 9_000]
            )
            send("outcomes", max(FIRST_MS, time + after), id=id_, outcome=chance.randrange(2))
        if sent and chance.random() < 0.08:  # late: its time has passed when it comes
            sent[-1] = replace(sent[-1], arrives=sent[-1].arrives + 25 * chance.random())
        if chance.random() < 0.08:
            send(chance.choice(list(ROLE_OF)), time, "poison")
    last = max(one.arrives for one in sent) + 1
    for topic in ROLE_OF:
        for partition in range(PARTITIONS):
            sent.append(Sent(len(sent), topic, partition, END_MS, last + chance.random(), "end"))
    # Within a partition what comes later mostly has a later time, unless it was sent late on purpose.
    return sorted(sent, key=lambda one: (one.arrives, one.number))


class Bodies:
    """Values of records; the same fields are encoded once."""

    def __init__(self, spec: AppSpec) -> None:
        self._schemas = {topic.name: topic.schema for topic in spec.topics}
        self._known: dict[tuple[str, str], bytes] = {}

    def of(self, topic: str, fields: dict[str, Any]) -> bytes:
        key = (topic, repr(fields))
        if key not in self._known:
            names = [one["name"] for one in self._schemas[topic]["fields"]]
            self._known[key] = encode(self._schemas[topic], {name: fields.get(name) for name in names})
        return self._known[key]
