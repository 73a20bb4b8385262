"""The wire: bytes of producers become columns, or dead letters that say why; fastavro is the oracle."""

from __future__ import annotations

import datetime
import io
import math
import struct
from dataclasses import dataclass, field, replace
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.core.records import Batch, DeadLetter, Kind, Output, Partition, Span
from tidemill.core.spec import AppSpec, LabelSpec, TopicSpec
from tidemill.errors import ConfigError, InvariantError, RecordError, StateLostError
from tidemill.io import dead_letters
from tidemill.io.dead_letters import SENTENCES, Code
from tidemill.io.framing import header_of, parsed
from tidemill.io.judge import Judge
from tidemill.io.resolution import ReaderSchema, Resolution
from tidemill.io.slices import pack_slice, unpack_slice
from tidemill.io.source import SourceRecord
from tidemill.io.wire import Command, Encoder, InputDecoder, dead_letter_output, decode, decode_examples, decode_rows

TREE = {
    "type": "record",
    "name": "Tree",
    "fields": [{"name": "value", "type": "int"}, {"name": "next", "type": ["null", "Tree"], "default": None}],
}
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
CONTEXT = {
    "type": "record",
    "name": "Place",
    "fields": [{"name": "place", "type": "string"}, {"name": "tree", "type": TREE}],
}
NULLS = {
    "type": "record",
    "name": "Nulls",
    "fields": [{"name": "id", "type": "string"}, {"name": "nothings", "type": {"type": "array", "items": "null"}}],
}
SPANS = {Partition("events", 0): Span(0, 100, 100, False)}


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

GOOD = framed(EVENT, an_event())
HEADER = GOOD[:10]
PUNCTUATION = [("tidemill.punctuation", b"1234")]
POISON = [
    (Code.NO_VALUE, FakeMessage(None)),
    (Code.NO_KEY, FakeMessage(GOOD, None)),
    (Code.TOO_LARGE, FakeMessage(HEADER + b"\x02" * 5_000_000)),
    (Code.NOT_FRAMED, FakeMessage(b"hello, world")),
    (Code.NOT_FRAMED, FakeMessage(b"")),
    (Code.NOT_FRAMED, FakeMessage(HEADER[:9])),
    (Code.CONFLUENT_FRAMED, FakeMessage(b"\x00\x00\x00\x00\x07" + GOOD[10:])),
    (Code.UNKNOWN_SCHEMA, FakeMessage(b"\xc3\x01" + b"\x07" * 8 + GOOD[10:])),
    (Code.NOT_FINITE, FakeMessage(framed(EVENT, an_event(amount=math.nan)))),
    (Code.NOT_FINITE, FakeMessage(framed(EVENT, an_event(ratio=-math.inf)))),
    (Code.CUT_OFF, FakeMessage(GOOD[:-2])),
    (Code.CUT_OFF, FakeMessage(HEADER)),
    (Code.BYTES_LEFT, FakeMessage(GOOD + b"\x00")),
    (Code.NOT_UTF8, FakeMessage(HEADER + b"\x04\xff\xfe" + GOOD[12:])),
    (Code.OUT_OF_TYPE, FakeMessage(HEADER + body_of(EVENT, an_event()).replace(varint(7), varint(1 << 40), 1))),
    (Code.CUT_OFF, FakeMessage(HEADER + varint(1 << 60) + b"e")),
    (Code.OUT_OF_TYPE, FakeMessage(HEADER + varint(-5) + b"e")),
    (Code.NO_ID, FakeMessage(framed(EVENT, an_event(id="")))),
    (Code.BAD_PUNCTUATION, FakeMessage(None, None, [("tidemill.punctuation", b"soon")])),
    (Code.BAD_PUNCTUATION, FakeMessage(None, b"k", PUNCTUATION)),
]


def test_each_poison_is_a_dead_letter_with_its_code_and_the_good_records_are_all_there():
    records = Records()
    expected: list[tuple[int, Code]] = []
    good: list[int] = []
    for code, poison in POISON:
        good.append(len(records.all))
        records.add(FakeMessage(framed(EVENT, an_event(id=f"e{len(good)}"))))
        expected.append((len(records.all), code))
        records.add(poison)
    batch = InputDecoder(an_app(event_topic())).decode(records.all, SPANS)

    assert [(at, letter.code) for at, letter in batch.dead_letters] == expected
    assert batch.records["events"].row_index.tolist() == good
    assert batch.records["events"].columns.column("id").to_pylist() == [f"e{at + 1}" for at in range(len(good))]
    assert [Kind(kind) for kind in batch.kind] == [Kind.EVENT, Kind.DEAD_LETTER] * len(POISON)
    assert batch.offset.tolist() == list(range(len(batch))) and batch.time.tolist() == [
        1_000 + at for at in batch.offset
    ]
    assert batch.spans == SPANS


@pytest.mark.parametrize(("code", "poison"), POISON, ids=[f"{code.name}-{at}" for at, (code, _) in enumerate(POISON)])
def test_a_poison_alone_is_a_dead_letter_with_its_original(code, poison):
    records = Records()
    records.add(poison)
    batch = InputDecoder(an_app(event_topic())).decode(records.all, {})

    (at, letter), *rest = batch.dead_letters
    assert (at, letter.code, rest, dict(batch.records)) == (0, code, [], {})
    assert (letter.key, letter.value, letter.headers) == (poison.key_, poison.value_, tuple(poison.headers_ or ()))
    assert (letter.partition, letter.offset, letter.timestamp, letter.stage) == (("events", 0), 0, 1_000, "decode")
    assert letter.message.startswith("events[0]@0: ")


def test_the_message_of_a_fault_names_the_field_and_the_value():
    batch = decode_values(event_topic(), framed(EVENT, an_event(amount=math.inf)))

    assert batch.dead_letters[0][1].message == (
        "events[0]@0: field amount is not a finite number (inf); send null for a missing one"
    )


def test_an_unknown_schema_is_named_with_those_that_are_known():
    batch = decode_values(event_topic(), b"\xc3\x01\x01\x02\x03\x04\x05\x06\x07\x08")

    known = HEADER[:1:-1].hex()
    assert batch.dead_letters[0][1].message.endswith(f"schema 0807060504030201; known here: {known}")


def test_every_code_has_a_sentence():
    assert set(SENTENCES) == set(Code)


def test_punctuation_has_no_row_and_no_letter():
    records = Records()
    records.add(FakeMessage(GOOD))
    records.add(FakeMessage(None, None, PUNCTUATION))
    batch = InputDecoder(an_app(event_topic())).decode(records.all, {})

    assert batch.kind.tolist() == [Kind.EVENT, Kind.PUNCTUATION]
    assert batch.records["events"].row_index.tolist() == [0] and batch.dead_letters == ()


def test_an_empty_batch_has_no_records():
    batch = InputDecoder(an_app(event_topic())).decode([], {})

    assert len(batch) == 0 and batch.records == {} and batch.time.dtype == np.int64


def test_columns_are_those_of_the_reader_with_times_in_milliseconds():
    before_1970 = framed(EVENT, an_event(seen=-1, ratio=0.5))
    topic = event_topic()
    columns = decode_values(topic, GOOD, before_1970).records["events"].columns

    assert columns.schema.equals(InputDecoder(an_app(topic)).input_schema("events"))
    assert columns.schema.field("seen").type == pa.int64() and columns.schema.field("count").type == pa.int32()
    assert columns.to_pylist() == [an_event(seen=5), an_event(seen=-1, ratio=0.5)]


def test_records_of_all_topics_keep_their_positions():
    spec = an_app(event_topic(), TopicSpec(name="places", role="context", schema=CONTEXT))
    place = framed(CONTEXT, {"place": "p", "tree": {"value": 1, "next": {"value": 2, "next": None}}})
    records = Records()
    for topic_index in (1, 0, 1):
        records.add(FakeMessage((GOOD, place)[topic_index]), topic_index=topic_index)
    batch = InputDecoder(spec).decode(records.all, {})

    assert batch.records["places"].row_index.tolist() == [0, 2] and batch.records["events"].row_index.tolist() == [1]
    assert batch.kind.tolist() == [Kind.CONTEXT, Kind.EVENT, Kind.CONTEXT]
    assert batch.records["places"].columns.to_pylist() == [{"place": "p"}] * 2  # recursive fields have no column


def test_a_value_nested_too_deep_is_a_dead_letter():
    topic = TopicSpec(name="places", role="context", schema=CONTEXT)
    deep = header_of(CONTEXT) + b"\x02p" + b"\x02\x02" * 400_000 + b"\x02\x00"
    flat = framed(CONTEXT, {"place": "p", "tree": {"value": 1, "next": None}})
    batch = decode_values(topic, flat, deep, flat)

    assert [(at, letter.code) for at, letter in batch.dead_letters] == [(1, Code.TOO_DEEP)]
    assert batch.records["places"].row_index.tolist() == [0, 2]


@pytest.mark.parametrize("count", [1 << 60, -(1 << 62)])
def test_a_claim_of_countless_items_of_no_bytes_does_not_hang(count):
    endless = header_of(NULLS) + b"\x02e" + varint(count) + (varint(0) if count < 0 else b"") + varint(0)
    batch = decode_values(event_topic(NULLS), endless, framed(NULLS, {"id": "f", "nothings": [None] * 3}))

    assert batch.dead_letters[0][1].code == Code.TOO_DEEP
    assert batch.records["events"].columns.to_pylist() == [{"id": "f"}]


def test_many_small_blocks_of_nothing_do_not_hang():
    schema = {"type": "record", "name": "R", "fields": [{"name": "a", "type": {"type": "array", "items": "null"}}]}

    assert fault_of(schema, varint(1_000) * 300_000 + varint(0)) == Code.TOO_DEEP


def test_blocks_with_their_size_in_bytes_are_read():
    schema = {"type": "record", "name": "R", "fields": EVENT["fields"][:1] + EVENT["fields"][-1:]}
    in_blocks = b"\x02e" + varint(-1) + varint(2) + b"\x02a" + varint(1) + b"\x02b" + varint(0)
    topic = event_topic(schema)
    batch = decode_values(topic, header_of(schema) + in_blocks, framed(schema, {"id": "f", "tags": []}))

    assert batch.records["events"].columns.to_pylist() == [{"id": "e", "tags": ["a", "b"]}, {"id": "f", "tags": []}]


def test_many_records_side_by_side_are_not_deep():
    inner = {"type": "record", "name": "Inner", "fields": [{"name": "x", "type": "int"}]}
    schema = {"type": "record", "name": "R", "fields": [{"name": "a", "type": {"type": "array", "items": inner}}]}

    assert fault_of(schema, body_of(schema, {"a": [{"x": 1}] * 1_000})) is None


def test_a_whole_batch_of_poison_is_judged_record_by_record():
    batch = decode_values(event_topic(), *[GOOD[:-1], GOOD + b"x"] * 50)

    assert [letter.code for _, letter in batch.dead_letters] == [Code.CUT_OFF, Code.BYTES_LEFT] * 50


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


def test_a_record_without_a_kafka_timestamp_is_a_dead_letter():
    records = Records()
    records.add(FakeMessage(GOOD, timestamp_=-1), time=-1)
    batch = InputDecoder(an_app(event_topic())).decode(records.all, {})

    letter = batch.dead_letters[0][1]
    assert letter.code == Code.NO_TIME and dead_letter_output(letter, "shop").timestamp is None


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
reals = st.floats(allow_nan=False, allow_infinity=False)
events = st.fixed_dictionaries(
    {
        "id": texts.filter(bool),
        "amount": reals,
        "ratio": st.none() | st.floats(width=32, allow_nan=False, allow_infinity=False),
        "count": st.integers(-(2**31), 2**31 - 1),
        "paid": st.booleans(),
        "colour": st.sampled_from(["red", "green"]),
        "seen": st.integers(-(2**63), 2**63 - 1),
        "tags": st.lists(texts, max_size=4),
    }
)


@lawful
@given(st.lists(events, min_size=1, max_size=8))
def test_decoding_gives_what_fastavro_wrote(rows):
    batch = decode_values(event_topic(), *(framed(EVENT, row) for row in rows))

    assert batch.dead_letters == ()
    assert batch.records["events"].columns.to_pylist() == [row | {"seen": row["seen"] // 1_000} for row in rows]


@settings(lawful, max_examples=300)
@given(events, st.data())
def test_a_damaged_body_is_a_row_exactly_when_fastavro_reads_all_of_it(row, data):
    body = bytearray(body_of(EVENT, row))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(body) - 1))
        body[at : at + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
        if not body:
            break
    batch = decode_values(event_topic(), HEADER + bytes(body))

    stream = io.BytesIO(bytes(body))
    schema = {**EVENT, "fields": [*EVENT["fields"][:6], {"name": "seen", "type": "long"}, EVENT["fields"][7]]}
    try:
        read = fastavro.schemaless_reader(stream, fastavro.parse_schema(schema))
        assert isinstance(read, dict)
        is_sound = not stream.read() and math.isfinite(read["amount"]) and math.isfinite(read["ratio"] or 0.0)
        is_sound = is_sound and -(2**31) <= read["count"] < 2**31 and read["id"] != ""
    except (EOFError, ValueError, LookupError, struct.error, StopIteration, MemoryError, OverflowError):
        is_sound = False
    if is_sound:
        # fastavro takes any byte but 0 for true, counts indexes from the end, reads numbers of any length.
        strict = fault_of(EVENT, bytes(body))
        assert strict in (None, Code.OUT_OF_TYPE, Code.CUT_OFF)
        is_sound = strict is None
    assert (not batch.dead_letters) == is_sound
    if is_sound:
        found = batch.records["events"].columns.to_pylist()[0]
        assert found == read | {"seen": read["seen"] // 1_000}


@lawful
@given(st.lists(st.tuples(events, st.integers(0, 3)), min_size=1, max_size=6))
def test_the_bulk_path_and_the_single_path_agree(rows):
    bodies = [body_of(EVENT, row)[: -cut or None] for row, cut in rows]
    resolution = Resolution(ReaderSchema("events", EVENT), EVENT)
    in_bulk = resolution.read(bodies)
    resolution.is_bulk = False
    columns, kept, faults = resolution.read(bodies)

    assert in_bulk[0].equals(columns) and in_bulk[1] == kept and in_bulk[2] == faults


def a_letter(value: bytes | None, **changes: Any) -> DeadLetter:
    letter = DeadLetter(
        Partition("events", 3), 918, b"k", value, (("h", None),), 77, "TM-2007", "events[3]@918: é", "decode"
    )
    return letter._replace(**changes)


def test_a_dead_letter_keeps_its_original_and_says_why():
    output = dead_letter_output(a_letter(b"\x00\xff"), "shop")

    assert (output.topic, output.key, output.value, output.timestamp) == ("events.dlq", b"k", b"\x00\xff", 77)
    assert output.headers[0] == ("h", None)
    assert dict(output.headers[1:]) == {
        "__streams.errors.exception": b"tidemill.errors.RecordError",
        "__streams.errors.message": "events[3]@918: é".encode(),
        "__streams.errors.stacktrace": "tidemill.errors.RecordError: TM-2007 events[3]@918: é".encode(),
        "__streams.errors.topic": b"events",
        "__streams.errors.partition": b"3",
        "__streams.errors.offset": b"918",
        "tidemill.dlq.app": b"shop",
        "tidemill.dlq.code": b"TM-2007",
        "tidemill.dlq.stage": b"decode",
    }


def test_a_dead_letter_of_five_megabytes_is_whole_and_one_beyond_the_limit_is_cut():
    whole, cut = (dead_letter_output(a_letter(bytes(size)), "shop") for size in (5_000_000, 17_000_000))

    assert whole.value == bytes(5_000_000) and "tidemill.dlq.truncated" not in dict(whole.headers)
    assert cut.value is not None and len(cut.value) < dead_letters.OUTPUT_BYTES_MAX
    assert dict(cut.headers)["tidemill.dlq.truncated"] == f"{len(cut.value)} of 17000000 bytes".encode()


def examples(count: int, **changes: Any) -> dict[str, Any]:
    columns = {
        "kind": ["example"] * count,
        "id": [f"e{at}" for at in range(count)],
        "label": [at % 2 for at in range(count)],
        "event_time": range(count),
        "label_time": range(count),
        "is_learned": [True] * count,
        "blend": [0.5] * count,
        "learner": [None] * count,
        "booster": [None] * count,
        "base_rate": [0.5] * count,
        "n": [0] * count,
        "model_version": ["m"] * count,
        "other": [0.5] * count,
        "other_version": ["m2"] * count,
        "feature_digest": ["d"] * count,
        "numeric": np.arange(2 * count, dtype=np.float32).reshape(count, 2),
        "categories": [("a", f"b{at}") for at in range(count)],
        "flags": [()] * count,
    }
    return columns | changes


def test_the_fold_gets_examples_amendments_and_commands_with_their_offsets():
    learned = Encoder("example.v1").encode(examples(3))
    amended = Encoder("example.v1").encode(examples(1, is_learned=[False], numeric=[[]], categories=[[]]))
    command = {"id": "c", "kind": "promote", "expects": "m", "model_version": "m2", "cause": "x", "time": 5}
    commands = Encoder("command.v1").encode({name: [value] for name, value in command.items()})
    found, orders = decode_examples([learned[0], *commands, learned[1], *amended, learned[2]], [4, 6, 7, 8, 10])

    assert orders == [Command(6, **command)]
    assert found.offset.tolist() == [4, 7, 8, 10]
    np.testing.assert_array_equal(found.features.numeric, np.float32([[0, 1], [2, 3], [np.nan, np.nan], [4, 5]]))
    assert found.features.categories == (("a", "a", "", "a"), ("b0", "b1", "", "b2"))
    assert found.label.tolist() == [0, 1, 0, 0] and found.is_learned.tolist() == [True, True, False, True]
    assert found.features.numeric.dtype == np.float32 and found.label.dtype == np.float32


def test_no_examples_are_an_empty_fold():
    found, orders = decode_examples([], [])

    assert len(found) == 0 and len(found.features) == 0 and orders == []


def test_examples_without_categories_have_no_category_columns():
    found, _ = decode_examples(Encoder("example.v1").encode(examples(2, categories=[[], []])), [0, 1])

    assert found.features.categories == () and found.features.numeric.shape == (2, 2)


def test_examples_with_other_features_stop_the_fold():
    values = Encoder("example.v1").encode(examples(2, numeric=[[1.0], [1.0, 2.0]]))
    with pytest.raises(StateLostError, match="TM-4110"):
        decode_examples(values, [0, 1])


def test_foreign_bytes_in_our_own_topics_are_refused():
    value = Encoder("example.v1").encode(examples(1))[0]
    not_text = value.replace(b"\x04e0", b"\x04\xff\xfe")
    for foreign in (b"hello", b"\xc3\x01" + bytes(8), value[:-1], not_text):
        with pytest.raises(RecordError):
            decode("example.v1", [value, foreign])


def test_a_null_where_the_schema_has_none_is_our_bug():
    with pytest.raises(InvariantError, match=r"TM-9011 example\.v1\.id"):
        Encoder("example.v1").encode(examples(1, id=[None]))
    with pytest.raises(InvariantError, match="TM-9010"):
        Encoder("example.v1").encode({"id": ["a"]})


def test_nothing_encodes_to_nothing():
    assert Encoder("row.v1").encode(decode_rows([])) == [] and decode_rows([]).num_rows == 0


headers = st.lists(st.tuples(texts, st.none() | st.binary(max_size=5)), max_size=3).map(tuple)
outputs = st.builds(
    Output,
    st.sampled_from(["app.predictions.v1", "é"]),
    st.none() | st.binary(max_size=5),
    st.none() | st.binary(max_size=300),
    headers,
    st.none() | st.integers(0, 2**53),
)


@lawful
@given(st.lists(outputs, max_size=6))
def test_a_slice_gives_its_outputs_back(written):
    assert unpack_slice(pack_slice(written)) == tuple(written)


@lawful
@given(st.lists(outputs, min_size=1, max_size=4), st.data())
def test_a_cut_or_lengthened_slice_is_refused(written, data):
    packed = pack_slice(written)
    for broken in (packed[: data.draw(st.integers(0, len(packed) - 1))], packed + b"\0", b"\x02" + packed[1:]):
        with pytest.raises(InvariantError):
            unpack_slice(broken)


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
