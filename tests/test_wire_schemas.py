"""What a schema declares, read from the wire: nested fields, older writers, times and dates."""

from __future__ import annotations

import datetime
import math
from dataclasses import replace
from typing import Any

import pytest
from wire_samples import EVENT, FakeMessage, Records, an_app, body_of, decode_values, event_topic, framed, varint

from tidemill.core.records import Kind
from tidemill.core.spec import TopicSpec
from tidemill.errors import ConfigError
from tidemill.io.dead_letters import Code
from tidemill.io.framing import header_of
from tidemill.io.resolution import ReaderSchema, Resolution
from tidemill.io.wire import InputDecoder

NESTED = {
    "type": "record",
    "name": "Nested",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "numbers", "type": {"type": "array", "items": ["null", "double"]}},
        {"name": "counts", "type": {"type": "map", "values": "int"}},
        {
            "name": "inner",
            "type": {"type": "record", "name": "Inner", "fields": [{"name": "x", "type": ["null", "int"]}]},
        },
        {"name": "raw", "type": "bytes"},
        {"name": "hash", "type": {"type": "fixed", "name": "Hash", "size": 2}},
    ],
}


def a_nested(**changes: Any) -> dict[str, Any]:
    row = {"id": "n", "numbers": [1.0, None], "counts": {"a": 1}, "inner": {"x": None}, "raw": b"\xff", "hash": b"ab"}
    return {**row, **changes}


@pytest.mark.parametrize("field_count", [4, 6], ids=["in bulk", "singly, because of bytes and fixed"])
def test_nested_fields_are_columns_and_their_faults_are_found(field_count):
    schema = {**NESTED, "fields": NESTED["fields"][:field_count]}
    changes = ({}, {"numbers": [math.nan]}, {"inner": {"x": 3}, "counts": {}}, {"numbers": []})
    values = [dict(list(a_nested(**change).items())[:field_count]) for change in changes]
    too_wide = body_of(schema, a_nested(counts={"a": 99})).replace(varint(99), varint(1 << 33), 1)
    batch = decode_values(
        event_topic(schema), *(framed(schema, value) for value in values), header_of(schema) + too_wide
    )

    assert Resolution(ReaderSchema("events", schema), schema).is_bulk == (field_count == 4)
    assert [(at, letter.code) for at, letter in batch.dead_letters] == [(1, Code.NOT_FINITE), (4, Code.OUT_OF_TYPE)]
    found = batch.records["events"].columns.to_pylist(maps_as_pydicts="strict")
    assert found == [values[0], values[2], values[3]]


OLD = {
    "type": "record",
    "name": "Event",
    "namespace": "test",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "sum", "type": "int"},
        {"name": "colour", "type": {"type": "enum", "name": "Colour", "symbols": ["blue", "red"]}},
        {"name": "gone", "type": "long"},
        {"name": "maybe", "type": ["null", "int"]},
    ],
}
NEW = {
    "type": "record",
    "name": "Event",
    "namespace": "test",
    "fields": [
        {"name": "id", "type": "string"},
        {"name": "amount", "type": "double", "aliases": ["sum"]},
        {"name": "colour", "type": {"type": "enum", "name": "Colour", "symbols": ["red", "green"], "default": "green"}},
        {"name": "note", "type": ["null", "string"], "default": None},
        {"name": "weights", "type": {"type": "array", "items": "float"}, "default": [1.0]},
        {"name": "maybe", "type": "long"},
    ],
}


def test_older_writers_are_read_with_promotion_alias_and_defaults():
    old = [{"id": f"o{at}", "sum": at, "colour": "blue", "gone": 1, "maybe": 5} for at in range(2)]
    new = {"id": "n", "amount": 0.5, "colour": "red", "note": "x", "weights": [], "maybe": 6}
    records = Records()
    for value in (framed(OLD, old[0]), framed(NEW, new), framed(OLD, old[1]), framed(OLD, old[0] | {"maybe": None})):
        records.add(FakeMessage(value))
    decoder = InputDecoder(an_app(event_topic(NEW)), {"events": [OLD]})
    batch = decoder.decode(records.all, {})

    read_old = {"colour": "green", "note": None, "weights": [1.0], "maybe": 5}
    assert batch.records["events"].columns.to_pylist() == [
        {"id": "o0", "amount": 0.0, **read_old},
        new,
        {"id": "o1", "amount": 1.0, **read_old},
    ]
    assert [(at, letter.code) for at, letter in batch.dead_letters] == [(3, Code.NOT_RESOLVED)]


def test_a_symbol_that_the_reader_does_not_know_and_has_no_default_for_is_a_dead_letter():
    reader = {**NEW, "fields": [NEW["fields"][0], OLD["fields"][2] | {"type": EVENT["fields"][5]["type"]}]}
    records = Records()
    for colour in ("red", "blue"):
        records.add(FakeMessage(framed(OLD, {"id": "o", "sum": 1, "colour": colour, "gone": 1, "maybe": 5})))
    batch = InputDecoder(an_app(event_topic(reader)), {"events": [OLD]}).decode(records.all, {})

    assert [(at, letter.code) for at, letter in batch.dead_letters] == [(1, Code.NOT_RESOLVED)]


def test_a_writer_that_the_reader_cannot_read_is_refused_at_the_start():
    strings = {**OLD, "fields": [OLD["fields"][0], {"name": "amount", "type": "string"}]}
    for writer in (strings, {**OLD, "fields": OLD["fields"][:1]}):
        with pytest.raises(ConfigError, match=r"TM-1310 topic events: field amount"):
            InputDecoder(an_app(event_topic(NEW)), {"events": [writer]})


def test_a_time_field_sorts_the_batch_again():
    schema = {"type": "record", "name": "T", "fields": [EVENT["fields"][0], {**EVENT["fields"][6], "name": "at"}]}
    label = TopicSpec(name="labels", role="label", schema=schema, id_field="id", time_field="at")
    spec = an_app(event_topic(schema, time_field="at"), label)
    records = Records()
    records.add(FakeMessage(None, None, [("tidemill.punctuation", b"3000")]), time=2_000)
    for topic_index, id_, at in ((0, "late", 3_000), (0, "", 9_999), (0, "early", 1_000), (1, "label", 3_000)):
        records.add(FakeMessage(framed(schema, {"id": id_, "at": at * 1_000})), topic_index=topic_index, time=2_000)
    records.add(FakeMessage(framed(schema, {"id": "none", "at": -1})), time=2_000)
    batch = InputDecoder(spec).decode(records.all, {})

    assert batch.time.tolist() == [1_000, 2_000, 2_000, 3_000, 3_000, 3_000]
    assert batch.offset.tolist() == [3, 2, 5, 4, 1, 0]
    assert [Kind(kind).name for kind in batch.kind] == [
        "EVENT",
        "DEAD_LETTER",
        "DEAD_LETTER",
        "LABEL",
        "EVENT",
        "PUNCTUATION",
    ]
    assert batch.records["events"].row_index.tolist() == [0, 4]
    assert batch.records["events"].columns.column("id").to_pylist() == ["early", "late"]
    assert batch.records["labels"].row_index.tolist() == [3]
    assert [(at, letter.code) for at, letter in batch.dead_letters] == [(1, Code.NO_ID), (2, Code.NO_TIME)]


def test_a_time_field_is_not_believed_beyond_max_skew_after_the_record_was_sent():
    schema = {"type": "record", "name": "T", "fields": [EVENT["fields"][0], {**EVENT["fields"][6], "name": "at"}]}
    spec = replace(an_app(event_topic(schema, time_field="at")), max_skew_ms=500)
    records = Records()
    for id_, at in (("past", 7), ("skewed", 2_500), ("years ahead", 9_000_000)):
        records.add(FakeMessage(framed(schema, {"id": id_, "at": at * 1_000})), time=2_000)
    batch = InputDecoder(spec).decode(records.all, {})
    assert batch.time.tolist() == [7, 2_500, 2_500] and not batch.dead_letters


def test_dates_are_milliseconds_at_midnight():
    days = (datetime.date(2013, 1, 1) - datetime.date(1970, 1, 1)).days
    schema = {
        "type": "record",
        "name": "D",
        "fields": [
            {"name": "id", "type": "string"},
            {"name": "day", "type": {"type": "int", "logicalType": "date"}},
            {"name": "nanos", "type": ["null", {"type": "long", "logicalType": "local-timestamp-nanos"}]},
        ],
    }
    plain = {**schema, "fields": [schema["fields"][0], {"name": "day", "type": "int"}, schema["fields"][2]]}
    value = header_of(schema) + body_of(plain, {"id": "a", "day": days, "nanos": 1_999_999})
    columns = decode_values(event_topic(schema), value).records["events"].columns

    assert columns.to_pylist() == [{"id": "a", "day": 1_356_998_400_000, "nanos": 1}]
