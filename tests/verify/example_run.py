"""A small right run, made record by record in plain Python: what the verifier must accept.

In: a seed. Out: the topics of a run with every outcome in it. Invariant: no array, no search, no code shared with the
verifier but the Avro encoding: one loop over the records in their order, state in lists.
"""

from __future__ import annotations

import math
import random
import struct
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

from tests.verify.avro import encode, read_schema
from tests.verify.declared import Declared, Feature, Topic
from tests.verify.log import Log, Record, TopicLog

APP = "shop"
MINUTE = 60_000
HOUR = 60 * MINUTE
START = 1_357_000_000_000


def _schema(name: str, **fields: Any) -> dict[str, Any]:
    listed = [{"name": field_name, "type": kind} for field_name, kind in fields.items()]
    return {"type": "record", "name": name, "namespace": "shop.v1", "fields": listed}


ORDER = _schema("Order", id="string", shop=["null", "string"], price=["null", "double"], hour="int")
RETURNED = _schema("Returned", id="string", days=["null", "int"], state="string")
RAIN = _schema("Rain", shop="string", mm=["null", "double"])

DECLARED = Declared(
    topics=(
        Topic("rain.v1", "context", (RAIN,)),
        Topic("returned.v1", "label", (RETURNED,), "id"),
        Topic("orders.v1", "event", (ORDER,), "id"),
    ),
    conditions=({"field": "days", "above": 3}, {"field": "state", "one_of": ["lost"]}),
    wait_ms=6 * HOUR,
    allowed_lateness_ms=10 * MINUTE,
    dedup_window_ms=48 * HOUR,
    features=(
        Feature("shop", "category", (), field="shop"),
        Feature("price", "field", (), field="price"),
        Feature("orders_2h", "count", ("shop",), of="orders.v1", window_ms=2 * HOUR),
        Feature("returned_12h", "count", (), of="returned.v1", window_ms=12 * HOUR),
        Feature("bad_12h", "mean", ("shop",), "returned.v1", None, "label", 1.0, 12 * HOUR, 0.2, 1.0),
        Feature("days_6h", "mean", ("shop",), "returned.v1", None, "days", 0.5, 6 * HOUR),
        Feature("rain_3h", "mean", ("shop",), "rain.v1", None, "mm", 0.1, 3 * HOUR, 1.0, 0.5),
        Feature("rain", "latest", ("shop",), "rain.v1", "mm"),
        Feature("last_days", "latest", ("shop",), "returned.v1", "days"),
        Feature("hour", "category", ("shop",), field="hour"),
    ),
)
BATCH = 7
_RANK = {"rain.v1": 0, "returned.v1": 1, "orders.v1": 2}


@dataclass
class Run:
    """Topics as lists that a test may spoil; `raw_labels` as they would stand in the raw data."""

    topics: dict[str, list[Record]] = field(default_factory=dict)
    raw_labels: dict[str, int] = field(default_factory=dict)

    def log(self) -> Log:
        content = {}
        for name, records in self.topics.items():
            end = dict.fromkeys((0, 1), 0)
            for record in records:
                end[record.partition] = max(end.get(record.partition, 0), record.offset + 2)  # a marker ends a topic
            content[name] = TopicLog(records, dict.fromkeys(end, 0), end)
        return Log(content)


def right_run(seed: int) -> Run:
    run = Run()
    _make_inputs(run, random.Random(seed))
    _System(run).process()
    return run


def _make_inputs(run: Run, dice: random.Random) -> None:
    waiting: list[tuple[int, str, int, bytes | None, bytes | None, tuple[tuple[str, bytes | None], ...]]] = []

    def add(topic: str, time: int, partition: int, key: bytes | None, value: bytes | None, *headers: Any) -> None:
        waiting.append((time, topic, partition, key, value, headers))

    def label(id_: str, time: int, partition: int, *, is_bad: bool) -> None:
        days = dice.choice([5, 9]) if is_bad else dice.choice([0, 1, 3])
        state = "lost" if is_bad and dice.random() < 0.3 else "kept"
        fields = {"id": id_, "days": None if state == "lost" else days, "state": state}
        add("returned.v1", time, partition, id_.encode(), encode(RETURNED, fields))

    for number in range(70):
        id_ = f"o{number}"
        time = START + number * 11 * MINUTE + dice.randrange(3) * MINUTE
        partition, shop = number % 2, dice.choice(["north", "south", None])
        price = dice.choice([None, round(dice.random() * 90, 2)])
        order = encode(ORDER, {"id": id_, "shop": shop, "price": price, "hour": 1 + number % 23})
        add("orders.v1", time, partition, id_.encode(), order)
        is_bad = dice.random() < 0.4
        run.raw_labels[id_] = int(is_bad)
        known = time + dice.randrange(1, 300) * MINUTE
        if number % 10 == 1:  # the event is sent again
            add("orders.v1", time + MINUTE, partition, id_.encode(), order)
        if number % 10 == 2:  # no label ever
            continue
        if number % 10 == 3:  # too late
            known = time + 7 * HOUR
        if number % 10 == 4:  # before its event
            known = time - 30 * MINUTE
        label(id_, known, partition, is_bad=is_bad)
        if number % 10 in (5, 6):  # again, equal and different
            label(id_, known + 20 * MINUTE, partition, is_bad=is_bad if number % 10 == 5 else not is_bad)
    for number in range(4):
        label(f"unknown{number}", START + number * HOUR, number % 2, is_bad=True)
    for number in range(60):
        mm = dice.choice([None, 0.0, round(dice.random() * 9, 1)])
        rain = encode(RAIN, {"shop": dice.choice(["north", "south"]), "mm": mm})
        add("rain.v1", START + number * 13 * MINUTE, number % 2, b"rain", rain)
    _add_poison(add)
    end = START + 40 * HOUR
    for round_ in range(3):
        for topic in _RANK:
            for partition in (0, 1):
                time = end + round_ * MINUTE
                add(topic, time, partition, None, None, ("tidemill.punctuation", str(time).encode()))
    _write_inputs(run, waiting)


def _add_poison(add: Any) -> None:
    good = encode(ORDER, {"id": "p", "shop": "north", "price": 1.0, "hour": 1})
    no_id = encode(ORDER, {"id": "", "shop": "north", "price": 1.0, "hour": 1})
    not_utf8 = good[:11] + b"\xff" + good[12:]
    not_a_number = encode(RAIN, {"shop": "north", "mm": math.nan})
    mark = ("flights.poison", b"1")
    for topic, time, key, value in (
        ("orders.v1", START + 50 * MINUTE, b"p", good + b"x"),
        ("orders.v1", START + 51 * MINUTE, b"p", not_utf8),
        ("orders.v1", START + 52 * MINUTE, None, good),
        ("orders.v1", START + 53 * MINUTE, b"p", None),
        ("returned.v1", START + 54 * MINUTE, b"p", b"\xc3\x01" + bytes(8) + b"zz"),
        ("returned.v1", START + 55 * MINUTE, b"p", good),
        ("rain.v1", START + 56 * MINUTE, b"p", not_a_number),
        ("rain.v1", START + 57 * MINUTE, b"p", good[:10] + b"[" * (1 << 20)),
        ("orders.v1", START + 58 * MINUTE, b"", no_id),
    ):
        add(topic, time, 1, key, value, mark)
    add("rain.v1", START + 59 * MINUTE, 1, None, None, mark, ("tidemill.punctuation", b"soon"))
    add("rain.v1", START + 60 * MINUTE, 1, b"p", None, mark, ("tidemill.punctuation", b"1357003600000"))


def _write_inputs(run: Run, waiting: list[Any]) -> None:
    offsets: Counter[tuple[str, int]] = Counter()
    for name in _RANK:
        run.topics[name] = []
    for time, topic, partition, key, value, headers in sorted(waiting, key=lambda one: (one[0], _RANK[one[1]])):
        offset = offsets[topic, partition]
        offsets[topic, partition] += 2 if offset % 9 == 5 else 1  # the holes that transactions leave
        run.topics[topic].append(Record(partition, offset, time, key, value, headers))


@dataclass
class _Row:
    state: str
    time: int  # of the event; while waiting of the label
    place: tuple[str, int]
    offset: int
    label: int = -1
    event: dict[str, Any] = field(default_factory=dict)
    label_fields: dict[str, Any] = field(default_factory=dict)
    served: dict[str, Any] = field(default_factory=dict)


@dataclass
class _Fed:
    """One record that feeds features: its time, the fields of its entity, its own fields."""

    topic: str
    time: int
    entity: dict[str, Any]
    fields: dict[str, Any]
    tie: tuple[int, int]


class _System:
    """The simplest system that is right."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.rows: dict[str, _Row] = {}
        self.fed: list[_Fed] = []
        self.n = 0
        self.next: Counter[tuple[str, int]] = Counter()
        self.watermark: dict[tuple[str, int], int] = {(name, p): -1 for name in _RANK for p in (0, 1)}
        for kind in ("predictions", "examples", "commits"):
            run.topics[f"{APP}.{kind}.v1"] = []
        for name in _RANK:
            run.topics[f"{name}.dlq"] = []

    def process(self) -> None:
        records = [(name, one) for name in _RANK for one in self.run.topics[name]]
        records.sort(key=lambda pair: (pair[1].timestamp, _RANK[pair[0]], pair[1].partition, pair[1].offset))
        for first in range(0, len(records), BATCH):
            self._batch(first // BATCH, records[first : first + BATCH])

    def _batch(self, number: int, records: list[tuple[str, Record]]) -> None:
        self.counts: dict[tuple[str, int], Counter[str]] = {}
        self.joined: dict[tuple[str, int], list[int]] = {}
        self.waiting: dict[tuple[str, int], list[int]] = {}
        self.settled: dict[tuple[str, int], list[int]] = {}
        group_watermark = min(self.watermark.values())
        n = self.n
        for id_, row in list(self.rows.items()):
            self._settle(id_, row, group_watermark)
        reached = dict(self.next)
        for name, record in records:
            place = (name, record.partition)
            outcome = self._record(name, record, n)
            self._count(place, outcome)
            reached[place] = record.offset + 1
            self.watermark[place] = max(self.watermark[place], record.timestamp)
        for place in sorted({*self.counts}):
            fields: dict[str, Any] = {
                "topic": place[0],
                "partition": place[1],
                "start": self.next[place],
                "next": reached.get(place, self.next[place]),
                "worker": "w",
                "batch": number,
                "n": n,
                "watermark": self.watermark[place],
                "group_watermark": group_watermark,
                "merge_rank": -1,
                "outcomes": dict(self.counts[place]),
                "joined": self.joined.get(place, []),
                "waiting": self.waiting.get(place, []),
                "settled": self.settled.get(place, []),
            }
            self.next[place] = reached.get(place, self.next[place])
            self._publish("commits", str(place).encode(), fields)
        if self.n > n:
            self.n += 1  # the marker of the transaction

    def _count(self, place: tuple[str, int], outcome: str) -> None:
        self.counts.setdefault(place, Counter())[outcome] += 1

    def _settle(self, id_: str, row: _Row, group_watermark: int) -> None:
        settle = DECLARED.wait_ms + DECLARED.allowed_lateness_ms
        if row.state == "pending" and row.time + settle < group_watermark:
            self._count(row.place, "expired")
            self.settled.setdefault(row.place, []).append(row.offset)
            row.state = "expired"
        elif row.state == "waiting" and row.time + settle < group_watermark:
            self._count(row.place, "waiting_orphaned")
            self.settled.setdefault(row.place, []).append(row.offset)
            del self.rows[id_]

    def _record(self, name: str, record: Record, n: int) -> str:
        if record.value is None and record.key is None and record.headers[0][0] == "tidemill.punctuation":
            return "punctuation"
        role = {"rain.v1": "context", "returned.v1": "label", "orders.v1": "event"}[name]
        if ("flights.poison", b"1") in record.headers:
            origin = (("topic", name), ("partition", record.partition), ("offset", record.offset))
            headers = tuple((f"__streams.errors.{what}", str(value).encode()) for what, value in origin)
            letters = self.run.topics[f"{name}.dlq"]
            letters.append(record._replace(partition=0, offset=len(letters), headers=record.headers + headers))
            return f"{role}_dead_letter"
        fields = _decode(name, record.value or b"")
        tie = (record.partition, record.offset)
        if role == "context":
            self.fed.append(_Fed(name, record.timestamp, fields, fields, tie))
            return "state"
        if role == "event":
            return self._event(name, record, fields, n)
        return self._label(name, record, fields)

    def _event(self, name: str, record: Record, fields: dict[str, Any], n: int) -> str:
        id_, time = fields["id"], record.timestamp
        row = self.rows.get(id_)
        if row is not None and row.state != "waiting":
            return "event_duplicate"
        served = {
            "blend": 0.25 + n / 1000,
            "learner": 0.1,
            "booster": None,
            "base_rate": 0.3,
            "n": n,
            "model_version": "m1",
            "feature_digest": "d1",
            "numeric": [self._feature(one, fields, time) for one in DECLARED.numeric],
            "categories": [str(fields[one.field or ""] or "") for one in DECLARED.categories],
            "flags": [] if row is None else ["label_first"],
        }
        source = {"topic": name, "partition": record.partition, "offset": record.offset}
        more = {"id": id_, "event_time": time, "decision": False, "entities": []}
        self._publish("predictions", id_.encode(), {**served, **source, **more})
        self.fed.append(_Fed(name, time, fields, fields, (record.partition, record.offset)))
        place = (name, record.partition)
        if row is None:
            self.rows[id_] = _Row("pending", time, place, record.offset, event=fields, served=served)
        else:
            self._count(place, "waiting_joined")
            waited = row.time
            row.state, row.time, row.served = "joined", time, served
            self._example("example", id_, row, row.label, waited, is_learned=False)
            self.fed.append(_Fed("returned.v1", waited, fields, row.label_fields, row.label_fields["tie"]))
        return "prediction"

    def _label(self, name: str, record: Record, fields: dict[str, Any]) -> str:
        id_, time = fields["id"], record.timestamp
        label = int((fields["days"] or 0) > 3 or fields["state"] == "lost")
        fields = {**fields, "label": label, "tie": (record.partition, record.offset)}
        row = self.rows.get(id_)
        if row is None:
            place = (name, record.partition)
            self.rows[id_] = _Row("waiting", time, place, record.offset, label, label_fields=fields)
            self.waiting.setdefault(place, []).append(record.offset)
            return "waiting"
        if row.state == "expired" or (row.state == "pending" and time > row.time + DECLARED.wait_ms):
            return "orphan"
        if row.state == "pending":
            row.state, row.label = "joined", label
            self._example("example", id_, row, label, time, is_learned=True)
            self.joined.setdefault((name, record.partition), []).append(record.offset)
            self.fed.append(_Fed(name, time, row.event, fields, fields["tie"]))
            return "example"
        if row.label == label:
            return "label_duplicate"
        empty: dict[str, Any] = {"numeric": [], "categories": [], "flags": []}
        amended = replace(row, served={**row.served, **empty})
        self._example("amendment", id_, amended, label, time, is_learned=False)
        return "amendment"

    def _example(self, kind: str, id_: str, row: _Row, label: int, label_time: int, *, is_learned: bool) -> None:
        times = {"event_time": row.time, "label_time": label_time}
        fields = {"kind": kind, "id": id_, "label": label, "is_learned": is_learned, **times, **row.served}
        self._publish("examples", id_.encode(), fields)

    def _publish(self, kind: str, key: bytes, fields: dict[str, Any]) -> None:
        records = self.run.topics[f"{APP}.{kind}.v1"]
        offset = len(records)
        if kind == "examples":
            offset, self.n = self.n, self.n + 1
        records.append(Record(0, offset, 0, key, encode(read_schema(kind[:-1]), fields)))

    def _feature(self, feature: Feature, event: dict[str, Any], time: int) -> float:
        if feature.kind == "field":
            return _or_nan(event[feature.field or ""])
        mine = [one for one in self.fed if one.topic == feature.of]
        mine = [one for one in mine if all(one.entity[name] == event[name] for name in feature.entity)]
        if any(event[name] is None for name in feature.entity):
            mine = []
        if feature.kind == "latest":
            seen = [one for one in mine if one.time <= time]
            newest = max(seen, key=lambda one: (one.time, one.tie), default=None)
            return math.nan if newest is None else _or_nan(newest.fields[feature.field or ""])
        pane = feature.window_ms // 12
        inside = [one for one in mine if 0 <= time // pane - one.time // pane < 12]
        if feature.kind == "count":
            return float(len(inside))
        values = [one.fields[feature.value or ""] for one in inside]
        words = [round(value / feature.unit) for value in values if value is not None]
        weight = len(words) + feature.prior_weight
        total = sum(words) * feature.unit + feature.prior * feature.prior_weight
        return math.nan if weight == 0 else total / weight


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _decode(name: str, value: bytes) -> dict[str, Any]:
    import io

    import fastavro

    schema = {"rain.v1": RAIN, "returned.v1": RETURNED, "orders.v1": ORDER}[name]
    fields: dict[str, Any] = fastavro.schemaless_reader(io.BytesIO(value[10:]), fastavro.parse_schema(schema))  # type: ignore[assignment]
    return fields


def next_float(value: float) -> float:
    """The float32 whose last bit differs."""
    (bits,) = struct.unpack("<I", struct.pack("<f", value))
    return float(struct.unpack("<f", struct.pack("<I", bits ^ 1))[0])
