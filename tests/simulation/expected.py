"""What records must come to, worked out record by record in plain Python.

In: batches in the order in which the store applied them. Out: for each batch the outcomes, predictions and examples
that it must publish, and the features that its events must see. Invariant: nothing here is taken from the product.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tests.simulation.stream import (
    DEDUP_MS,
    LATENESS_MS,
    PANE_MS,
    SKEW_MS,
    UNIT,
    WAIT_MS,
    Sent,
)
from tidemill.core.records import Partition

PANES = 12
SLOTS = PANES + SKEW_MS // PANE_MS + 1
CAPACITY = 8
TOPIC_INDEX = {"readings": 0, "outcomes": 1, "events": 2}
_COUNTED, _LABELS, _AMOUNTS = "readings", "outcomes", "events"
_DEAD = {"readings": "context_dead_letter", "outcomes": "label_dead_letter", "events": "event_dead_letter"}

Source = tuple[Partition, int]


@dataclass
class Row:
    """What is known of an id. state: pending, waiting, joined, expired; made_by: the record that holds the row."""

    state: str
    made_by: Source
    event_time: int = -1
    label_time: int = -1
    label: int = -1
    label_source: Source | None = None
    shop: str = ""
    served: dict[str, Any] = field(default_factory=dict)

    def due(self) -> int:
        if self.state == "pending":
            return self.event_time + WAIT_MS + LATENESS_MS
        if self.state == "waiting":
            return self.label_time + WAIT_MS + LATENESS_MS
        return self.event_time + max(DEDUP_MS, WAIT_MS + LATENESS_MS)


class Fed(NamedTuple):
    """A record that feeds the features of a shop, from `place` of the batch `serial` on."""

    serial: int
    place: int
    topic: str
    shop: str
    time: int
    source: Source
    value: float


@dataclass
class Played:
    """What one batch must publish, by input partition; `examples`: (id, kind, label, event time, label time)."""

    outcomes: dict[Partition, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    predictions: dict[Partition, list[tuple[str, int, int, bool, int]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    examples: dict[Partition, list[tuple[str, str, int, int, int]]] = field(default_factory=lambda: defaultdict(list))
    served: dict[Partition, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))  # of each example
    letters: dict[Partition, list[int]] = field(default_factory=lambda: defaultdict(list))
    met: dict[Partition, list[int]] = field(default_factory=lambda: defaultdict(list))  # offsets of labels
    waiting: dict[Partition, list[int]] = field(default_factory=lambda: defaultdict(list))  # offsets of labels
    settled: dict[Partition, list[int]] = field(default_factory=lambda: defaultdict(list))  # offsets that made rows
    joined: list[tuple[str, Source]] = field(default_factory=list)  # rows of earlier batches that labels met
    ids: set[str] = field(default_factory=set)


class Rules:
    """Rows and histories as they must be after the batches played so far."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.fed: list[Fed] = []
        self.rings: dict[tuple[str, str], dict[int, list[int]]] = {}

    def play(
        self,
        serial: int,
        order: Sequence[tuple[Source, Sent]],
        watermark: int,
        owned: frozenset[Partition],
        served: Mapping[Source, dict[str, Any]],
        ids: Set[str] | None = None,
    ) -> Played:
        """`ids`: only their rows may end; None = all."""
        played = Played()
        for id_, row in list(self.rows.items()):
            if row.made_by[0] in owned and row.due() < watermark and (ids is None or id_ in ids):
                self._settle(id_, row, played)
        new: set[str] = set()
        for place, (source, sent) in enumerate(order):
            count = played.outcomes[source[0]]
            if sent.kind == "end":
                count["punctuation"] += 1
            elif sent.kind == "poison":
                count[_DEAD[sent.topic]] += 1
                played.letters[source[0]].append(source[1])
            elif sent.topic == "readings":
                count["state"] += 1
                self._feed(Fed(serial, place, _COUNTED, sent.fields["shop"], sent.time, source, sent.fields["reading"]))
            elif sent.topic == "events":
                self._take_event(serial, place, source, sent, played, served)
                new.add(sent.fields["id"])
            else:
                self._take_label(serial, place, source, sent, played, new)
        return played

    def features(self, serial: int, place: int, seen: int, sent: Sent) -> list[float | None]:
        """The numeric features of an event; None = the store may have let go of records that it needs.

        seen: the last batch whose effects its worker had read.
        """
        shop, time = sent.fields["shop"], sent.time
        told = [
            f for f in self.fed if f.shop == shop and (f.serial <= seen or (f.serial == serial and f.place < place))
        ]
        newest = time // PANE_MS

        def window(topic: str) -> list[float] | None:
            mine = [fed for fed in told if fed.topic == topic]
            ahead = max((fed.time // PANE_MS for fed in mine if fed.serial <= seen), default=0)
            if ahead >= newest - PANES + 1 + SLOTS:
                return None
            return [fed.value for fed in mine if newest - PANES < fed.time // PANE_MS <= newest]

        counted, labels, amounts = (window(topic) for topic in (_COUNTED, _LABELS, _AMOUNTS))
        readings = [fed for fed in told if fed.topic == _COUNTED]
        past = [fed for fed in readings if fed.time <= time]
        newer = len(readings) - len(past)
        latest = max(past, key=lambda fed: (fed.time, fed.source[0].number, fed.source[1]), default=None)
        return [
            sent.fields["amount"],
            None if counted is None else float(len(counted)),
            None if labels is None else (sum(labels) + 0.5) / (len(labels) + 1.0),
            None if amounts is None else _mean(amounts),
            None if newer >= CAPACITY else math.nan if latest is None else latest.value,
        ]

    def _settle(self, id_: str, row: Row, played: Played) -> None:
        played.ids.add(id_)
        if row.state in ("pending", "waiting"):
            played.settled[row.made_by[0]].append(row.made_by[1])
        if row.state == "pending":
            played.outcomes[row.made_by[0]]["expired"] += 1
            row.state = "expired"
            return
        if row.state == "waiting":
            played.outcomes[row.made_by[0]]["waiting_orphaned"] += 1
        del self.rows[id_]

    def _take_event(
        self,
        serial: int,
        place: int,
        source: Source,
        sent: Sent,
        played: Played,
        served: Mapping[Source, dict[str, Any]],
    ) -> None:
        id_, shop = sent.fields["id"], sent.fields["shop"]
        played.ids.add(id_)
        row = self.rows.get(id_)
        count = played.outcomes[source[0]]
        if row is not None and row.state != "waiting":
            count["event_duplicate"] += 1
            return
        count["prediction"] += 1
        played.predictions[source[0]].append((id_, source[1], sent.time, row is not None, place))
        self._feed(Fed(serial, place, _AMOUNTS, shop, sent.time, source, sent.fields["amount"]))
        made = self.rows[id_] = Row("pending", source, sent.time, shop=shop, served=served.get(source, {}))
        if row is not None:
            count["waiting_joined"] += 1
            made.state, made.label, made.label_time = "joined", row.label, row.label_time
            assert row.label_source is not None
            self._feed(Fed(serial, place, _LABELS, shop, row.label_time, row.label_source, float(row.label)))
            played.examples[source[0]].append((id_, "example", row.label, sent.time, row.label_time))
            played.served[source[0]].append(made.served)

    def _take_label(self, serial: int, place: int, source: Source, sent: Sent, played: Played, new: set[str]) -> None:
        id_, label = sent.fields["id"], int(sent.fields["outcome"] > 0)
        played.ids.add(id_)
        count, row = played.outcomes[source[0]], self.rows.get(id_)
        if row is None:
            count["waiting"] += 1
            played.waiting[source[0]].append(source[1])
            self.rows[id_] = Row("waiting", source, label_time=sent.time, label=label, label_source=source)
        elif row.state == "expired" or (row.state == "pending" and sent.time > row.event_time + WAIT_MS):
            count["orphan"] += 1
        elif row.state == "pending":
            count["example"] += 1
            played.met[source[0]].append(source[1])
            if id_ not in new:
                played.joined.append((id_, row.made_by))
            row.state, row.label, row.label_time = "joined", label, sent.time
            self._feed(Fed(serial, place, _LABELS, row.shop, sent.time, source, float(label)))
            played.examples[source[0]].append((id_, "example", label, row.event_time, sent.time))
            played.served[source[0]].append(row.served)
        elif row.label == label:
            count["label_duplicate"] += 1
        else:
            count["amendment"] += 1
            played.examples[source[0]].append((id_, "amendment", label, row.event_time, sent.time))
            played.served[source[0]].append({})

    def _feed(self, fed: Fed) -> None:
        self.fed.append(fed)
        pane = fed.time // PANE_MS
        cells = [1] if fed.topic == _COUNTED else [1, round(fed.value / (UNIT if fed.topic == _AMOUNTS else 1.0))]
        ring = self.rings.setdefault((fed.shop, fed.topic), {})
        slot = ring.setdefault(pane % SLOTS, [0, *[0] * len(cells)])
        if pane + 1 > slot[0]:
            slot[:] = [pane + 1, *cells]
        elif pane + 1 == slot[0]:
            slot[1:] = [a + b for a, b in zip(slot[1:], cells, strict=True)]

    def state(self) -> dict[str, bytes]:
        """The feature state as the store must hold it, padded with zeros to its whole length."""
        found: dict[str, bytes] = {}
        widths = {_COUNTED: 2, _LABELS: 3, _AMOUNTS: 3}
        for shop in {fed.shop for fed in self.fed}:
            words: list[int] = []
            for topic, width in widths.items():
                ring = self.rings.get((shop, topic), {})
                for slot in range(SLOTS):
                    words += ring.get(slot, [0] * width)
            found[f"by_shop:v1:{shop}"] = b"".join(word.to_bytes(8, "big", signed=True) for word in words)
        return found


def _mean(amounts: Sequence[float]) -> float:
    return sum(round(value / UNIT) for value in amounts) * UNIT / len(amounts) if amounts else math.nan
