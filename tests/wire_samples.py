"""Messages of producers and what decodes them: an event with a field of most kinds, framed as its schema says.

In: rows. Out: bytes, source records, a decoded batch. Invariant: bodies are fastavro's: the product does not read
what it wrote itself.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from typing import Any

import fastavro
from hypothesis import settings
from hypothesis import strategies as st

from tidemill.core.records import Batch
from tidemill.core.spec import AppSpec, LabelSpec, TopicSpec
from tidemill.io.dead_letters import Code
from tidemill.io.framing import header_of, parsed
from tidemill.io.judge import Judge
from tidemill.io.source import SourceRecord
from tidemill.io.wire import InputDecoder

EVENT = {
    "type": "record",
    "name": "Event",
    "namespace": "test",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "amount", "type": "double"},
        {"name": "ratio", "type": ["null", "float"], "default": None},
        {"name": "count", "type": "int"},
        {"name": "paid", "type": "boolean"},
        {"name": "colour", "type": {"type": "enum", "name": "Colour", "symbols": ["red", "green"]}},
        {"name": "seen", "type": {"type": "long", "logicalType": "timestamp-micros"}},
        {"name": "tags", "type": {"type": "array", "items": "string"}},
    ],
}


@dataclass
class FakeMessage:
    """A message as confluent_kafka gives it."""

    value_: bytes | None
    key_: bytes | None = b"k"
    headers_: list[tuple[str, bytes | None]] | None = None
    timestamp_: int = 1_000

    def value(self) -> bytes | None:
        return self.value_

    def key(self) -> bytes | None:
        return self.key_

    def headers(self) -> list[tuple[str, bytes | None]] | None:
        return self.headers_

    def timestamp(self) -> tuple[int, int]:
        return (1, self.timestamp_)


@dataclass
class Records:
    """Source records in merged order, one millisecond apart."""

    all: list[SourceRecord] = field(default_factory=list)

    def add(self, message: FakeMessage, *, topic_index: int = 0, time: int | None = None) -> None:
        at = len(self.all)
        self.all.append(SourceRecord(1_000 + at if time is None else time, topic_index, 0, at, message))


def an_app(*topics: TopicSpec) -> AppSpec:
    return AppSpec(name="app", topics=topics, label=LabelSpec(positive_if_any=(), wait_ms=1), groups=())


def event_topic(schema: dict[str, Any] = EVENT, **others: Any) -> TopicSpec:
    return TopicSpec(name="events", role="event", schema=schema, id_field="id", **others)


def body_of(schema: dict[str, Any], row: dict[str, Any]) -> bytes:
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, fastavro.parse_schema(parsed(schema)), row)
    return stream.getvalue()


def framed(schema: dict[str, Any], row: dict[str, Any]) -> bytes:
    return header_of(schema) + body_of(schema, row)


def an_event(**changes: Any) -> dict[str, Any]:
    event = {"id": "e", "amount": 1.5, "ratio": None, "count": 7, "paid": True, "colour": "green", "seen": 5_000}
    return {**event, "tags": ["a", ""], **changes}


def varint(number: int) -> bytes:
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, "long", number)
    return stream.getvalue()


def decode_values(topic: TopicSpec, *values: bytes) -> Batch:
    records = Records()
    for value in values:
        records.add(FakeMessage(value))
    return InputDecoder(an_app(topic)).decode(records.all, {})


def fault_of(schema: dict[str, Any], body: bytes) -> Code | None:
    fault = Judge(parsed(schema)).find_fault(body)
    return None if fault is None else fault.code


lawful = settings(deadline=None)  # two cores, shared
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
GOOD = framed(EVENT, an_event())
HEADER = GOOD[:10]
