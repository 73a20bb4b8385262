"""The wire: bytes of producers become columns, or dead letters that say why; fastavro is the oracle."""

from __future__ import annotations

import io
import math
import struct

import fastavro
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_samples import (
    EVENT,
    GOOD,
    HEADER,
    FakeMessage,
    Records,
    an_app,
    an_event,
    body_of,
    decode_values,
    event_topic,
    fault_of,
    framed,
    lawful,
    texts,
    varint,
)

from tidemill.core.records import Kind, Partition, Span
from tidemill.core.spec import TopicSpec
from tidemill.io.dead_letters import SENTENCES, Code
from tidemill.io.framing import header_of
from tidemill.io.resolution import ReaderSchema, Resolution
from tidemill.io.wire import InputDecoder, dead_letter_output

TREE = {
    "type": "record",
    "name": "Tree",
    "fields": [{"name": "value", "type": "int"}, {"name": "next", "type": ["null", "Tree"], "default": None}],
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


def test_a_record_without_a_kafka_timestamp_is_a_dead_letter():
    records = Records()
    records.add(FakeMessage(GOOD, timestamp_=-1), time=-1)
    batch = InputDecoder(an_app(event_topic())).decode(records.all, {})

    letter = batch.dead_letters[0][1]
    assert letter.code == Code.NO_TIME and dead_letter_output(letter, "shop").timestamp is None


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
