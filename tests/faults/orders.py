"""A made-up shop in event time: orders, returns and prices that a row of the matrix may spoil before they are sent.

In: a seed. Out: records in a list, then topics under a name of their own and an app that reads them. Invariant: the
same seed gives the same bytes at the same offsets, so two runs of one list can be compared bit by bit.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from tests.verify.avro import encode
from tidemill.apps.topics import ensure_app_topics
from tidemill.config import Settings, config_digest, load_settings
from tidemill.core.records import Mark, Partition
from tidemill.core.rows import RowState
from tidemill.io import kafka
from tidemill.io.embedded import Servers
from tidemill.io.kafka_producer import EventProducer
from tidemill.io.redis_store import RedisStore

Headers = tuple[tuple[str, bytes], ...]

SECOND_MS, MINUTE_MS, HOUR_MS = 1_000, 60_000, 3_600_000
FIRST_MS = 1_700_000_000_000  # event time of the first record; any fixed time will do
SPAN_MS = 12 * HOUR_MS
WAIT_MS = 2 * HOUR_MS
LATENESS_MS = 10 * MINUTE_MS
DEDUP_MS = 24 * HOUR_MS
PARTITIONS: Mapping[str, int] = {"orders": 4, "returns": 2, "prices": 1}
SETTLE_DEADLINE_S = 90.0


def _schema(name: str, *fields: dict[str, Any]) -> dict[str, Any]:
    return {"type": "record", "name": name, "namespace": "faults", "fields": list(fields)}


ORDER = _schema(
    "Order",
    {"name": "id", "type": "string"},
    {"name": "product", "type": "string"},
    {"name": "customer", "type": ["null", "string"], "default": None},
    {"name": "amount", "type": "double"},
)
RETURN = _schema("Return", {"name": "id", "type": "string"}, {"name": "returned", "type": "boolean"})
PRICE = _schema(
    "Price", {"name": "product", "type": "string"}, {"name": "price", "type": ["null", "double"], "default": None}
)
SCHEMAS = {"orders": ORDER, "returns": RETURN, "prices": PRICE}


@dataclass(frozen=True, slots=True)
class Sent:
    """One record to send. `topic`: orders, returns or prices."""

    time: int  # milliseconds since the epoch
    topic: str
    partition: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()


def order(number: int, time_ms: int, *, product: str, customer: str | None, amount: float) -> Sent:
    id_ = f"o{number:06d}"
    value = encode(ORDER, {"id": id_, "product": product, "customer": customer, "amount": amount})
    return Sent(time_ms, "orders", number % PARTITIONS["orders"], id_.encode(), value)


def returned(number: int, time_ms: int, *, is_returned: bool) -> Sent:
    id_ = f"o{number:06d}"
    value = encode(RETURN, {"id": id_, "returned": is_returned})
    return Sent(time_ms, "returns", number % PARTITIONS["returns"], id_.encode(), value)


def price(product: str, time_ms: int, amount: float) -> Sent:
    return Sent(time_ms, "prices", 0, product.encode(), encode(PRICE, {"product": product, "price": amount}))


def made_stream(seed: int, *, count: int = 2_000, hot_share: float = 0.0, labelled: float = 0.8) -> list[Sent]:
    """Twelve hours in order of time: `count` orders, the returns of most of them within the wait, prices.

    Args:
        hot_share: of the orders that are of one product and one customer.
        labelled: share of orders whose label ever comes.
    """
    draw = random.Random(seed)
    records = [price(f"p{product}", FIRST_MS + product, 5.0 + product) for product in range(12)]
    for number in range(count):
        at = FIRST_MS + SECOND_MS + number * SPAN_MS // count + draw.randrange(500)
        is_hot = draw.random() < hot_share
        product = "p0" if is_hot else f"p{draw.randrange(12)}"
        customer = "hot" if is_hot else None if draw.random() < 0.05 else f"c{draw.randrange(200)}"
        amount = round(draw.expovariate(1 / 40), 2)
        records.append(order(number, at, product=product, customer=customer, amount=amount))
        if draw.random() < labelled:
            delay = draw.randrange(MINUTE_MS, WAIT_MS - MINUTE_MS)
            records.append(returned(number, at + delay, is_returned=draw.random() < min(0.9, amount / 100)))
        if draw.random() < 0.05:
            records.append(price(product, at + draw.randrange(MINUTE_MS), round(draw.uniform(2, 30), 2)))
    return sorted(records, key=lambda one: one.time)


class Orders:
    """The records in topics that begin with `name`, and the app that reads them; fits `campaign.processes.Site`."""

    def __init__(
        self,
        servers: Servers,
        name: str,
        folder: Path,
        records: Sequence[Sent],
        *,
        batch_records: int = 200,
        schemas: Mapping[str, Sequence[dict[str, Any]]] | None = None,
        more: Mapping[str, Any] | None = None,
        partitions: Mapping[str, int] = PARTITIONS,
        is_bounded: bool = True,
    ) -> None:
        """Writes YAML and schemas into `folder`, which is new; creates the topics and sends the records.

        Args:
            schemas: by topic, the reader's schema and then older ones; default is one each.
            more: stands in the YAML besides.
            is_bounded: end each partition, so that a replay may close.
        """
        folder.mkdir(parents=True)
        self.servers, self.name, self.folder, self.partition_counts = servers, name, folder, dict(partitions)
        self.config = folder / "orders.yaml"
        files = {topic: self._write_schemas(topic, (schemas or {}).get(topic, [SCHEMAS[topic]])) for topic in SCHEMAS}
        declared = {**declaration(name, files, partitions), "batch_records": batch_records, **(more or {})}
        self.config.write_text(yaml.safe_dump(declared, sort_keys=False))
        self.settings: Settings = load_settings(
            self.config,
            bootstrap_servers=servers.bootstrap_servers,
            redis_url=servers.redis_url,
            data_folder=folder,
            is_bounded=is_bounded,
        )
        app = self.settings.app
        self.clients = kafka.client_settings(servers.bootstrap_servers)
        ensure_app_topics(self.settings)
        self._sender = EventProducer(servers.bootstrap_servers, {})
        self.send(records)
        if is_bounded:
            self.end_partitions(max(one.time for one in records) + max(DEDUP_MS, WAIT_MS + LATENESS_MS) + 1)
        self.store = RedisStore(servers.redis_url, name, owner_slot="faults", config_digest=config_digest(app))

    def send(self, records: Sequence[Sent]) -> None:
        """In the order of the list, acknowledged when it returns."""
        for number, one in enumerate(records):
            topic = f"{self.name}.{one.topic}"
            self._sender.send(topic, one.partition, one.key, one.value, one.time, list(one.headers))
            if number % 1_000 == 999:
                self._sender.serve_callbacks()
        self._sender.flush()
        self.look_at_ends()

    def renew_producer(self) -> None:
        """One that knows partitions that were added."""
        self._sender = EventProducer(self.servers.bootstrap_servers, {})

    def end_partitions(self, time_ms: int) -> None:
        """Nothing follows in any partition."""
        partitions = {f"{self.name}.{t}": n for t, n in self.partition_counts.items()}
        self._sender.punctuate(partitions, time_ms, stamp=time_ms, is_end=True)
        self._sender.flush()
        self.look_at_ends()

    def look_at_ends(self) -> None:
        counts = kafka.partition_counts(self.clients, [topic.name for topic in self.settings.app.topics])
        self.partitions = [Partition(topic, number) for topic, count in counts.items() for number in range(count)]
        bounds = kafka.log_bounds(self.clients, self.partitions)
        self.ends = {partition: end for partition, (_, end) in bounds.items()}
        self.total = sum(self.ends.values())

    def marks(self) -> Mapping[Partition, Mark]:
        return self.store.marks()

    def is_drained(self) -> bool:
        marks = self.marks()
        return all(partition in marks and marks[partition].committed >= end for partition, end in self.ends.items())

    def wait_until_settled(self) -> None:
        """Until no prediction and no label waits: the stream ends behind the last wait."""
        deadline = time.monotonic() + SETTLE_DEADLINE_S
        while True:
            counts = self.store.row_counts()
            open_rows = counts.get(RowState.PENDING, 0) + counts.get(RowState.WAITING, 0)
            if open_rows == 0:
                return
            assert time.monotonic() < deadline, f"{open_rows} rows still wait after {SETTLE_DEADLINE_S:.0f} s"
            time.sleep(0.1)

    def _write_schemas(self, topic: str, schemas: Sequence[dict[str, Any]]) -> list[str]:
        folder = self.folder / "schemas"
        folder.mkdir(exist_ok=True)
        names = [f"{topic}.avsc" if number == 0 else f"{topic}.{number}.avsc" for number in range(len(schemas))]
        for name, schema in zip(names, schemas, strict=True):
            (folder / name).write_text(json.dumps(schema))
        return [f"schemas/{name}" for name in names]


def declaration(name: str, schemas: Mapping[str, Sequence[str]], partitions: Mapping[str, int]) -> dict[str, Any]:
    """The app's YAML. `schemas`: files by topic, the reader's first."""
    orders, returns, prices = (f"{name}.{topic}" for topic in ("orders", "returns", "prices"))

    def topic(kind: str, role: str, **more: Any) -> dict[str, Any]:
        declared = {"role": role, "schema": schemas[kind][0], "partitions": partitions[kind], **more}
        return {**declared, "writers": schemas[kind][1:]} if schemas[kind][1:] else declared

    mean = {"kind": "mean", "of": returns, "value": "label", "prior": 0.4, "prior_weight": 2}
    return {
        "name": name,
        "topics": {
            prices: topic("prices", "context"),
            returns: topic("returns", "label", id="id"),
            orders: topic("orders", "event", id="id"),
        },
        "label": {
            "positive_if_any": [{"field": "returned", "equals": True}],
            "wait": "2h",
            "allowed_lateness": "10m",
            "dedup_window": "24h",
        },
        "max_skew": "1h",
        "learner": {"snapshot_every": 500},
        "groups": {
            "order": {
                "entity": [],
                "features": {
                    "amount": {"kind": "field", "field": "amount"},
                    "product": {"kind": "category", "field": "product"},
                },
            },
            "by_product": {
                "entity": ["product"],
                "features": {
                    "orders_1h": {"kind": "count", "of": orders, "window": "1h"},
                    "amount_3h": {"kind": "sum", "of": orders, "value": "amount", "window": "3h"},
                    "returned_3h": mean | {"window": "3h"},
                    "price": {"kind": "latest", "of": prices, "field": "price"},
                },
            },
            "by_customer": {
                "entity": ["customer"],
                "features": {
                    "customer_orders_6h": {"kind": "count", "of": orders, "window": "6h"},
                    "customer_returned_6h": mean | {"window": "6h"},
                },
            },
        },
    }


def moved(one: Sent, milliseconds: int) -> Sent:
    return replace(one, time=one.time + milliseconds)
