"""Files become the records that a producer would have sent: no row lost, none changed, every error with its place."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from tidemill.apps.input_files import file_lanes, files_by_topic, require_all_topics
from tidemill.core.records import Partition
from tidemill.core.spec import AppSpec, LabelSpec, TopicSpec
from tidemill.errors import ConfigError, RecordError
from tidemill.io.files import CHUNK_ROWS, FileChunk, read_records
from tidemill.io.partitioner import partitions_of
from tidemill.io.source import SourceRecord
from tidemill.io.wire import InputDecoder

NOON = 1_700_000_000_000
SCHEMA: dict[str, Any] = {
    "type": "record",
    "name": "Reading",
    "namespace": "meter",
    "fields": [
        {"name": "no", "type": "long"},
        {"name": "place", "type": "string"},
        {"name": "mode", "type": {"type": "enum", "name": "Mode", "symbols": ["day", "night"]}},
        {"name": "is_open", "type": ["null", "boolean"], "default": None},
        {"name": "watts", "type": ["null", "double"], "default": None},
        {"name": "small", "type": "int", "default": 7},
        {"name": "since", "type": ["null", {"type": "long", "logicalType": "timestamp-micros"}], "default": None},
        {"name": "day", "type": ["null", {"type": "int", "logicalType": "date"}], "default": None},
        {"name": "text", "type": ["null", "string"], "default": None},
    ],
}
FULL = {
    "no": 2**62 + 1,
    "place": 'Süd, Tor\n"7"',
    "mode": "night",
    "is_open": True,
    "watts": 0.1,
    "small": -(2**31),
    "since": NOON + 5,
    "day": NOON - NOON % 86_400_000,
    "text": "x",
}
BARE = {**dict.fromkeys(FULL), "no": 1, "place": "", "mode": "day", "small": 7}


def a_topic(schema: dict[str, Any] = SCHEMA, **attributes: Any) -> TopicSpec:
    return TopicSpec(**{"name": "readings", "role": "event", "schema": schema, "id_field": "no", **attributes})


def write(folder: Path, text: str, name: str = "readings.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8", newline="")
    return path


def all_of(topic: TopicSpec, *paths: Path) -> FileChunk:
    chunks = list(read_records(topic, paths))
    time = np.concatenate([chunk.time for chunk in chunks]) if chunks else np.zeros(0, np.int64)
    return FileChunk(time, [k for c in chunks for k in c.keys], [v for c in chunks for v in c.values])


def decoded(topic: TopicSpec, chunk: FileChunk) -> list[dict[str, Any]]:
    """As a worker reads the records; none may be a dead letter."""
    app = AppSpec(name="app", topics=(topic,), label=LabelSpec(positive_if_any=(), wait_ms=1), groups=())
    lanes = [
        SourceRecord(time, 0, 0, at, _Message(time, key, value))
        for at, (time, key, value) in enumerate(zip(chunk.time.tolist(), chunk.keys, chunk.values, strict=True))
    ]
    batch = InputDecoder(app).decode(lanes, {})
    assert not batch.dead_letters
    return batch.records[topic.name].columns.to_pylist() if lanes else []


class _Message:
    def __init__(self, time: int, key: bytes, value: bytes) -> None:
        self.parts = time, key, value

    def key(self) -> bytes:
        return self.parts[1]

    def value(self) -> bytes:
        return self.parts[2]

    def headers(self) -> None:
        return None

    def timestamp(self) -> tuple[int, int]:
        return 1, self.parts[0]


# --- every format holds the same records


def as_csv(folder: Path) -> Path:
    iso = datetime.fromtimestamp(FULL["since"] / 1000, UTC).isoformat()
    day = datetime.fromtimestamp(FULL["day"] / 1000, UTC).date()
    return write(
        folder,
        "_time,ignored,no,place,mode,is_open,watts,small,since,day,text\n"
        f'{NOON},1,{FULL["no"]},"Süd, Tor\n""7""",night,True,0.1,{-(2**31)},{iso},{day},x\n'
        f"{NOON + 1},2,1,,day,,,7,,,\n",
    )


def as_parquet(folder: Path) -> Path:
    rows = [FULL, BARE]
    columns: dict[str, Any] = {name: [row[name] for row in rows] for name in FULL}
    table = pa.table(
        {
            **columns,
            "since": pa.array(columns["since"], pa.timestamp("ms")).cast(pa.timestamp("ns", "UTC")),
            "day": pa.array([FULL["day"] // 86_400_000, None], pa.int32()).cast(pa.date32()),
            "watts": pa.array([0.1, float("nan")]),  # how pandas writes a missing number
            "mode": pa.array(columns["mode"]).dictionary_encode(),
            "_time": pa.array([NOON, NOON + 1]),
            "ignored": [[1], []],
        }
    )
    parquet.write_table(table, folder / "readings.parquet")
    return folder / "readings.parquet"


def as_avro(folder: Path) -> Path:
    """Written by an older schema: another order, a narrower type, milliseconds instead of microseconds, no `small`."""
    fields = [one for one in SCHEMA["fields"] if one["name"] not in ("since", "small", "day")]
    millis = {"type": "long", "logicalType": "timestamp-millis"}
    fields += [
        {"name": "since", "type": ["null", millis]},
        {"name": "_time", "type": millis},
        {"name": "ignored", "type": "string"},
        {"name": "day", "type": ["null", {"type": "int", "logicalType": "date"}]},
    ]
    rows = [
        {
            **row,
            "_time": NOON + at,
            "ignored": "",
            "day": None if row["day"] is None else row["day"] // 86_400_000,
        }
        for at, row in enumerate([FULL, BARE])
    ]
    with (folder / "readings.avro").open("wb") as file:
        fastavro.writer(file, {"type": "record", "name": "meter.Reading", "fields": fields}, rows, codec="deflate")
    return folder / "readings.avro"


@pytest.mark.parametrize("make", [as_csv, as_parquet, as_avro])
def test_every_format_gives_the_records_that_a_worker_reads(make, tmp_path: Path):
    chunk = all_of(a_topic(), make(tmp_path))
    full = {**FULL, "small": 7} if make is as_avro else FULL

    assert decoded(a_topic(), chunk) == [full, BARE]
    assert chunk.time.tolist() == [NOON, NOON + 1]
    assert chunk.keys == [str(FULL["no"]).encode(), b"1"]


def test_types_that_only_rows_can_encode_are_written_too(tmp_path: Path):
    schema = {
        "type": "record",
        "name": "Blob",
        "fields": [
            {"name": "no", "type": "long"},
            {"name": "body", "type": "bytes"},
            {"name": "tags", "type": {"type": "map", "values": "string"}},
            {"name": "more", "type": "bytes", "default": "\u00ff"},
        ],
    }
    table = pa.table(
        {
            "_time": [NOON],
            "no": [1],
            "body": [b"\0\xff"],
            "tags": pa.array([[("a", "b")]], pa.map_(pa.string(), pa.string())),
        }
    )
    parquet.write_table(table, tmp_path / "blobs.parquet")
    topic = a_topic(schema)

    value = all_of(topic, tmp_path / "blobs.parquet").values[0]

    read = fastavro.schemaless_reader(io.BytesIO(value[10:]), fastavro.parse_schema(schema), None)
    assert read == {"no": 1, "body": b"\0\xff", "tags": {"a": "b"}, "more": b"\xff"}


texts = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\0\r"), max_size=8)
readings = st.fixed_dictionaries(
    {
        "no": st.integers(-(2**63), 2**63 - 1),
        "place": texts,
        "mode": st.sampled_from(["day", "night"]),
        "is_open": st.none() | st.booleans(),
        "watts": st.none() | st.floats(allow_nan=False, allow_infinity=False),
        "small": st.integers(-(2**31), 2**31 - 1),
        "since": st.none() | st.integers(-(10**12), 10**13),
        "day": st.none(),
        "text": st.none() | texts.filter(bool),
    }
)


@given(st.lists(readings, max_size=5))
def test_what_is_written_as_csv_is_read_again(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]):
    import csv

    path = tmp_path_factory.getbasetemp() / "round.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["_time", *FULL], lineterminator="\n")
        writer.writeheader()
        writer.writerows({**row, "_time": NOON} for row in rows)

    assert decoded(a_topic(), all_of(a_topic(), path)) == rows


# --- what cannot be read says where


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        (f"{NOON},1.5,a,day,,,1", "TM-2010", "field no is '1.5', not a whole number"),
        (f"{NOON},{2**63},a,day,,,1", "TM-2010", "field no"),
        (f"{NOON},,a,day,,,1", "TM-2001", "field no has no value"),
        (f"{NOON},1,a,noon,,,1", "TM-2010", "which is none of day, night"),
        (f"{NOON},1,a,day,yes,,1", "TM-2010", "field is_open is 'yes', not true or false"),
        (f'{NOON},1,a,day,,"0,5",1', "TM-2010", "field watts is '0,5', not a double"),
        (f"{NOON},1,a,day,,nan,1", None, ""),
        (f"{NOON},1,a,day,,inf,1", "TM-2006", "field watts is inf"),
        (f"{NOON},1,a,day,,,{2**31}", "TM-2010", "field small"),
        ("soon,1,a,day,,,1", "TM-2010", "_time is 'soon', not a time"),
        (",1,a,day,,,1", "TM-2013", "_time is empty"),
        ("1969-12-31T23:59:59Z,1,a,day,,,1", "TM-2013", "before 1970"),
        (f"{NOON}000,1,a,day,,,1", "TM-2010", "are these microseconds?"),
        (f"{NOON - 1},1,a,day,,,1", "TM-2051", "sort them"),
        (f"{NOON},1,a,day,,1", "TM-2052", "6 cells under 7 names"),
    ],
)
def test_row_that_is_no_record_is_named_with_its_line(line: str, code: str | None, words: str, tmp_path: Path):
    head = "_time,no,place,mode,is_open,watts,small\n"
    good = f'{NOON},1,"a\nb",day,,,1\n\n'  # takes three lines
    path = write(tmp_path, head + good + line + "\n")
    if code is None:  # NaN as text is how Python writes a missing number
        assert decoded(a_topic(), all_of(a_topic(), path))[1]["watts"] is None
        return

    with pytest.raises(RecordError) as raised:
        all_of(a_topic(), path)

    assert raised.value.code == code
    assert f"{path}:5: " in raised.value.message
    assert words in raised.value.message


def test_record_of_an_avro_file_that_does_not_fit_is_named(tmp_path: Path):
    schema = json.loads(json.dumps(SCHEMA).replace('"night"', '"dusk"'))
    with (tmp_path / "old.avro").open("wb") as file:
        fields = {"type": "record", "name": "meter.Reading", "fields": schema["fields"]}
        rows = [{**BARE, "mode": mode} for mode in ("day", "dusk")]
        fastavro.writer(file, fields, rows)
    topic = a_topic(time_field=None)

    with pytest.raises(RecordError, match=r"old\.avro, record 2: .*dusk"):
        all_of(topic, tmp_path / "old.avro")


@pytest.mark.parametrize(
    ("name", "content", "code", "words"),
    [
        ("a.csv", "_time,no,place\n1,1,a\n", "TM-1062", "no column mode"),
        ("a.csv", "no,place,mode\n1,a,day\n", "TM-1062", "add a column _time"),
        ("a.csv", "_time,no,no,place,mode\n1,1,1,a,day\n", "TM-1061", "stands twice"),
        ("a.txt", "", "TM-1061", "files end in .avro, .csv, .parquet"),
        ("a.avro", "no avro", "TM-1061", "is no Avro file"),
        ("a.parquet", "no parquet", "TM-1061", "cannot be read"),
        ("a.csv", '_time,no,place,mode\n1,1,"a', "TM-1061", "cannot be read"),
    ],
)
def test_file_that_cannot_be_used_is_refused_with_what_to_do(name: str, content: str, code: str, words: str, tmp_path):
    with pytest.raises(ConfigError) as raised:
        all_of(a_topic(), write(tmp_path, content, name))

    assert raised.value.code == code and name in raised.value.message and words in raised.value.message


def test_bytes_that_are_not_utf8_are_refused(tmp_path: Path):
    (tmp_path / "a.csv").write_bytes(b"_time,no,place,mode\n1,1,\xff,day\n")
    with pytest.raises(ConfigError, match="TM-1061"):
        all_of(a_topic(), tmp_path / "a.csv")


# --- times, keys, order


@pytest.mark.parametrize(
    ("text", "time"),
    [
        ("1700000000000", 1_700_000_000_000),
        ("2023-11-14T22:13:20Z", 1_700_000_000_000),
        ("2023-11-14 23:13:20.123456+01:00", 1_700_000_000_123),
        ("2023-11-14", 1_699_920_000_000),
        ("20231114", 1_699_920_000_000),
    ],
)
def test_time_is_iso_or_milliseconds(text: str, time: int, tmp_path: Path):
    # The second row keeps the column from being numbers only.
    path = write(tmp_path, f"_time,no,place,mode\n{text},1,a,day\n2033-01-01T00:00:00Z,1,a,day\n")
    assert all_of(a_topic(), path).time[0] == time


def test_declared_time_field_is_the_time(tmp_path: Path):
    path = write(tmp_path, f"no,place,mode,since\n1,a,day,{NOON}\n")
    assert all_of(a_topic(time_field="since"), path).time.tolist() == [NOON]


def test_key_is_the_column_or_the_id_or_the_first_field(tmp_path: Path):
    plain = write(tmp_path, "_time,no,place,mode\n1,5,a,day\n")
    keyed = write(tmp_path, "_time,_key,no,place,mode\n1,k,5,a,day\n", "keyed.csv")

    assert all_of(a_topic(id_field="place"), plain).keys == [b"a"]
    assert all_of(a_topic(id_field=None, role="context"), plain).keys == [b"5"]
    assert all_of(a_topic(), keyed).keys == [b"k"]


def test_several_files_of_a_topic_are_one_stream_and_must_be_in_order(tmp_path: Path):
    first = write(tmp_path, "_time,no,place,mode\n1,1,a,day\n", "first.csv")
    second = write(tmp_path, "_time,no,place,mode\n2,2,a,day\n", "second.csv")

    assert all_of(a_topic(), first, second).time.tolist() == [1, 2]
    with pytest.raises(RecordError, match=r"first\.csv:2: its time 1 is before 2"):
        all_of(a_topic(), second, first)


def test_long_file_comes_in_chunks(tmp_path: Path):
    count = 2 * CHUNK_ROWS + 1
    lines = "".join(f"{at},{at},a,day\n" for at in range(count))
    chunks = list(read_records(a_topic(), [write(tmp_path, "_time,no,place,mode\n" + lines)]))

    assert [len(chunk) for chunk in chunks] == [CHUNK_ROWS, CHUNK_ROWS, 1]
    assert decoded(a_topic(), chunks[2])[0]["no"] == count - 1


# --- partitions


@pytest.mark.parametrize(
    ("key", "hash_"),  # of Kafka's own test of murmur2
    [(b"21", -973932308), (b"foobar", -790332482), (b"a-little-bit-long-string", -985981536)],
)
def test_partition_is_that_of_javas_producer(key: bytes, hash_: int):
    assert partitions_of([b"zz", key, key], 1_000_003)[1:].tolist() == [(hash_ & 0x7FFFFFFF) % 1_000_003] * 2


def test_lanes_hold_every_record_once_where_a_producer_would_put_it(tmp_path: Path):
    lines = "".join(f"{at // 3},{at},a,day\n" for at in range(500))
    topic = a_topic(partitions=3)
    app = AppSpec(name="app", topics=(topic,), label=LabelSpec(positive_if_any=(), wait_ms=1), groups=())
    path = write(tmp_path, "_time,no,place,mode\n" + lines)

    lanes = file_lanes(app, files_by_topic(app, [f"readings={path}"]))

    found = {partition: [one for chunk in lane for one in chunk] for partition, lane in lanes.items()}
    assert set(found) == {Partition("readings", number) for number in range(3)}
    for partition, lane in found.items():
        assert [one.offset for one in lane] == list(range(len(lane)))
        keys = [one.payload.key() for one in lane]
        assert partitions_of(keys, 3).tolist() == [partition.number] * len(keys)
        assert [one.time for one in lane] == [int(key) // 3 for key in keys]
    assert sum(map(len, found.values())) == 500


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("readings", "write TOPIC=PATH"),
        ("reading=a.csv", "has no topic 'reading'; it has readings"),
        ("readings=no-such.csv", "no-such.csv is no file"),
    ],
)
def test_file_option_that_names_nothing_is_refused(text: str, words: str):
    app = AppSpec(name="app", topics=(a_topic(),), label=LabelSpec(positive_if_any=(), wait_ms=1), groups=())
    with pytest.raises(ConfigError, match="TM-1060") as raised:
        files_by_topic(app, [text])
    assert words in raised.value.message


def test_replay_wants_a_file_of_every_topic():
    app = AppSpec(name="app", topics=(a_topic(),), label=LabelSpec(positive_if_any=(), wait_ms=1), groups=())
    with pytest.raises(ConfigError, match="no file for readings"):
        require_all_topics(app, {})
