"""The rules of evolution: what the check allows is read, as fastavro reads it; what it finds comes with advice."""

from __future__ import annotations

import io
import json
import math
import random
from pathlib import Path
from typing import Any

import fastavro
import pyarrow as pa
import pytest
from fastavro.utils import generate_many
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.apps.cli import run
from tidemill.apps.schemas import compare, find_misfits
from tidemill.core.schema_rules import Change, changes, explained, type_text
from tidemill.errors import ConfigError
from tidemill.io.dead_letters import Code
from tidemill.io.resolution import ReaderSchema, Resolution
from tidemill.io.schema_compatibility import find_incompatibilities

ROOT = Path(__file__).parents[1]
COLOURS = {"type": "enum", "name": "Colour", "symbols": ["red", "green"]}
FEWER = {"type": "enum", "name": "Colour", "symbols": ["red"]}
WITH_DEFAULT = {"type": "enum", "name": "Colour", "symbols": ["red"], "default": "red"}
CARD = {"type": "record", "name": "Card", "fields": [{"name": "no", "type": "int"}]}
CARD_2 = {
    "type": "record",
    "name": "Card",
    "fields": [{"name": "no", "type": "long"}, {"name": "limit", "type": ["null", "double"], "default": None}],
}
TYPES: list[tuple[Any, Any]] = [  # a type and a default of it
    ("int", 3),
    ("long", 4),
    ("float", 0.5),
    ("double", 0.25),
    ("string", "s"),
    ("bytes", "b"),
    ("boolean", True),
    (["null", "int"], None),
    (["null", "long"], None),
    (["null", "string"], None),
    (COLOURS, "red"),
    (FEWER, "red"),
    (WITH_DEFAULT, "red"),
    (CARD, {"no": 1}),
    (CARD_2, {"no": 1, "limit": None}),
    ({"type": "array", "items": "int"}, []),
    ({"type": "array", "items": "long"}, [1]),
    ({"type": "array", "items": CARD}, []),
    ({"type": "map", "values": "float"}, {}),
    ({"type": "map", "values": "double"}, {}),
]


def a_record(*fields: dict[str, Any], name: str = "E") -> dict[str, Any]:
    return {"type": "record", "name": name, "fields": [{"name": "id", "type": "string"}, *fields]}


@st.composite
def a_pair(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any]]:
    """A reader and a writer with fields in common; a named type stands once in each."""
    schemas: list[list[dict[str, Any]]] = [[], []]
    kinds = draw(st.lists(st.integers(0, len(TYPES) - 1), min_size=1, max_size=3, unique_by=_family))
    for at, kind in enumerate(kinds):
        relatives = [one for one in range(len(TYPES)) if _family(one) == _family(kind)]
        written = draw(st.sampled_from([kind, kind, *relatives, None]))
        read = draw(st.sampled_from([kind, *relatives, None]))
        if written is not None:
            schemas[1].append({"name": f"f{at}", "type": TYPES[written][0]})
        if read is not None:
            field = {"name": f"f{at}", "type": TYPES[read][0]}
            if draw(st.booleans()):
                field["default"] = TYPES[read][1]
            if draw(st.integers(0, 3)) == 0:
                field.update(name=f"new{at}", aliases=[f"f{at}"])
            schemas[0].append(field)
    return a_record(*schemas[0], name=draw(st.sampled_from(["E", "F"]))), a_record(*schemas[1])


def _family(kind: int) -> str:
    """Numbers and texts are relatives of all numbers and texts; the others of their own kind."""
    node = TYPES[kind][0]
    text = json.dumps(node)
    return next((word for word in ("enum", "record", "array", "map") if word in text), "plain")


@settings(max_examples=150, deadline=None)
@given(a_pair(), st.integers(0, 1_000))
def test_what_the_check_allows_is_read_as_fastavro_reads_it(pair, seed) -> None:
    reader, writer = pair
    if find_misfits("t", reader, writer):
        return
    random.seed(seed)
    rows = list(generate_many(fastavro.parse_schema(_copy(writer)), 5))
    # Bytes may be read as texts, and then they have to be some.
    texts = [{name: b"text" if isinstance(one, bytes) else one for name, one in row.items()} for row in rows]
    bodies = [_body(writer, row) for row in texts]
    columns, kept, faults = Resolution(ReaderSchema("t", reader), writer).read(bodies)

    assert not faults and kept == list(range(5))
    same_name = {**reader, "name": writer["name"]}
    expected = [
        fastavro.schemaless_reader(io.BytesIO(body), fastavro.parse_schema(_copy(writer)), _copy(same_name))
        for body in bodies
    ]
    # A default of bytes that fastavro finds by an alias stays the text that JSON has for it.
    of_bytes = [field["name"] for field in reader["fields"] if field["type"] == "bytes"]
    for row in expected:
        row.update({name: row[name].encode("latin-1") for name in of_bytes if isinstance(row[name], str)})
    found = pa.Table.from_batches([columns]).to_pylist()
    assert [_plain(row) for row in found] == [_plain(row) for row in expected]


@settings(max_examples=150, deadline=None)
@given(a_pair())
def test_what_no_record_could_be_read_with_is_refused_at_the_start(pair) -> None:
    reader, writer = pair
    found = find_incompatibilities(reader, writer)
    assert all(explained(one).advice and one.path for one in found)
    if any(one.problem in ("no_default", "type") and one.path.isalnum() for one in found):
        with pytest.raises(ConfigError, match="TM-1310"):
            Resolution(ReaderSchema("t", reader), writer)


def _body(schema: dict[str, Any], row: Any) -> bytes:
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, fastavro.parse_schema(_copy(schema)), row)
    return stream.getvalue()


def _copy(schema: Any) -> Any:
    return json.loads(json.dumps(schema))


def _plain(value: Any) -> Any:
    """Arrow's maps are lists of pairs, and a float is shorter than Python's."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list):
        if value and all(isinstance(one, tuple) for one in value):
            return {key: _plain(one) for key, one in value}
        return [_plain(one) for one in value] or {}
    if isinstance(value, float):
        return float(pa.scalar(value, pa.float32()).as_py()) if math.isfinite(value) else str(value)
    return value


@pytest.mark.parametrize(
    ("reader", "writer", "path", "advice"),
    [
        (a_record({"name": "a", "type": "long"}), a_record(), "a", "add a default, such as 0,"),
        (
            a_record({"name": "b", "type": "long"}),
            a_record({"name": "a", "type": "long"}),
            "b",
            'add an alias: "aliases": ["a"]',
        ),
        (
            a_record({"name": "a", "type": "int"}),
            a_record({"name": "a", "type": "long"}),
            "a",
            "read it as long: that also reads what was written as int",
        ),
        (
            a_record({"name": "a", "type": "long"}),
            a_record({"name": "a", "type": "string"}),
            "a",
            "keep the type string",
        ),
        (
            a_record({"name": "a", "type": FEWER}),
            a_record({"name": "a", "type": COLOURS}),
            "a",
            "give the enum a default",
        ),
        (
            a_record({"name": "a", "type": "long"}),
            a_record({"name": "a", "type": ["null", "long"]}),
            "a",
            'allow null in the reader: ["null", "long"]',
        ),
        (
            a_record({"name": "a", "type": {"type": "array", "items": CARD_2}}),
            a_record({"name": "a", "type": {"type": "array", "items": {**CARD, "name": "Card2"}}}),
            "a[]",
            'add an alias to the type of the reader: "aliases": ["Card2"]',
        ),
        (
            a_record({"name": "card", "type": {**CARD, "fields": [{"name": "pin", "type": "string"}]}}),
            a_record({"name": "card", "type": CARD}),
            "card.pin",
            'add a default, such as ""',
        ),
    ],
)
def test_advice_names_the_field_and_what_to_do(reader, writer, path, advice) -> None:
    found = [explained(one) for one in find_incompatibilities(reader, writer)]
    assert [one.path for one in found] == [path]
    assert advice in found[0].advice


@pytest.mark.parametrize(
    ("reader", "writer"),
    [
        (a_record({"name": "b", "type": "long", "aliases": ["a"]}), a_record({"name": "a", "type": "int"})),
        (a_record({"name": "a", "type": WITH_DEFAULT}), a_record({"name": "a", "type": COLOURS})),
        (a_record(name="Other"), a_record()),
        (a_record(), a_record({"name": "gone", "type": "bytes"})),
    ],
)
def test_following_the_advice_mends_it(reader, writer) -> None:
    assert find_misfits("t", reader, writer) == []


def test_changes_are_those_that_change_bytes_or_meaning() -> None:
    old = a_record(
        {"name": "a", "type": "int", "doc": "x"}, {"name": "b", "type": "long"}, {"name": "card", "type": CARD}
    )
    new = a_record(
        {"name": "a", "type": {"type": "int"}},
        {"name": "c", "type": "double", "aliases": ["b"]},
        {"name": "card", "type": CARD_2},
        {"name": "d", "type": ["null", "string"], "default": None},
    )
    assert changes(old, old) == []
    assert changes(old, new) == [
        Change("c", "renamed", "b", "c"),
        Change("c", "retyped", "long", "double"),
        Change("c", "alias", "", "b"),
        Change("card.no", "retyped", "int", "long"),
        Change("card.limit", "added", "", "null or double, default null"),
        Change("d", "added", "", "null or string, default null"),
    ]
    assert [one.kind for one in changes(new, old)][-1] == "removed"
    assert type_text({"type": "long", "logicalType": "timestamp-millis"}) == "long (timestamp-millis)"


def test_a_removed_field_is_a_matter_of_old_readers_only() -> None:
    rows = compare(a_record({"name": "a", "type": "long"}), a_record())
    assert [(row.field, row.change, row.new_reads_old, row.old_reads_new) for row in rows] == [
        ("a", "removed", True, False)
    ]
    assert "change all of them first" in rows[0].advice


def test_check_is_transitive_over_all_versions(tmp_path, capsys) -> None:
    """The third version reads the second, and the second the first; the third does not read the first."""
    field = {"name": "a", "type": "long", "default": 0}
    versions = [a_record(), a_record(field), a_record({"name": "a", "type": "long"})]
    paths = [tmp_path / f"v{number}.avsc" for number in (1, 2, 3)]
    for path, version in zip(paths, versions, strict=True):
        path.write_text(json.dumps(version))
    assert run(["schema", "check", *map(str, paths[:2])]) == 0
    assert run(["schema", "check", *map(str, paths[1:])]) == 0
    capsys.readouterr()
    assert run(["schema", "check", "-o", "json", *map(str, paths)]) == 1
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(Path(row["reader"]).name, Path(row["writer"]).name, row["field"]) for row in rows] == [
        ("v3.avsc", "v1.avsc", "a")
    ]
    assert "add a default" in rows[0]["advice"]


def test_diff_says_who_changes_first(tmp_path, capsys) -> None:
    old, new = tmp_path / "old.avsc", tmp_path / "new.avsc"
    old.write_text(json.dumps(a_record({"name": "a", "type": "int"})))
    new.write_text(json.dumps(a_record({"name": "a", "type": "long"})))
    assert run(["schema", "diff", str(old), str(new)]) == 0
    assert "change the readers first" in capsys.readouterr().err
    assert run(["schema", "diff", str(new), str(old), "-o", "json"]) == 1
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert (rows[0]["new_reads_old"], rows[0]["old_reads_new"]) == (False, True)


def test_a_file_that_is_no_schema_is_named(tmp_path, capsys) -> None:
    bad = tmp_path / "bad.avsc"
    bad.write_text('{"type": "record"}')
    assert run(["schema", "diff", str(bad), str(bad)]) == 3
    assert "TM-1004" in (said := capsys.readouterr().err) and "bad.avsc" in said
    assert run(["schema", "check", str(bad)]) == 2


@pytest.mark.parametrize("config", ["config/flights.yaml"])
def test_the_shipped_apps_read_what_they_declare(config) -> None:
    assert run(["schema", "check", str(ROOT / config)]) == 0


def test_every_version_of_a_published_schema_reads_the_earlier_ones() -> None:
    """schemas/tidemill holds every version ever written: a change is a new file, name.v2.avsc beside name.v1.avsc."""
    families: dict[str, list[Path]] = {}
    for path in sorted((ROOT / "schemas" / "tidemill").glob("*.avsc")):
        families.setdefault(path.name.split(".v")[0], []).append(path)
    assert families
    for paths in families.values():
        if len(paths) > 1:
            assert run(["schema", "check", *map(str, paths)]) == 0


def test_times_of_two_units_under_one_fingerprint_are_told() -> None:
    schemas = [
        a_record({"name": "at", "type": {"type": "long", "logicalType": f"timestamp-{unit}"}})
        for unit in ("millis", "micros")
    ]
    reader = ReaderSchema("t", schemas[0])
    first, second = (Resolution(reader, one) for one in schemas)
    assert first.header == second.header
    with pytest.raises(ConfigError, match="TM-1317 topic t: field at"):
        second.check_is_told_from(first)
    first.check_is_told_from(first)


def test_a_time_is_read_in_the_unit_of_its_writer() -> None:
    reader = a_record({"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}})
    for kind, logical, written in (("long", "timestamp-micros", 5_000_999), ("int", "date", 2), ("long", None, 77)):
        writer = a_record({"name": "at", "type": {"type": kind, "logicalType": logical} if logical else kind})
        raw = {**writer, "fields": [writer["fields"][0], {"name": "at", "type": kind}]}
        columns, _, faults = Resolution(ReaderSchema("t", reader), writer).read(
            [_body(raw, {"id": "x", "at": written})]
        )
        assert not faults
        expected = {"timestamp-micros": 5_000, "date": 2 * 86_400_000, None: 77}[logical]
        assert columns.column("at").to_pylist() == [expected]


def test_bytes_that_are_no_text_become_dead_letters_of_a_reader_of_texts() -> None:
    reader, writer = a_record({"name": "a", "type": "string"}), a_record({"name": "a", "type": "bytes"})
    bodies = [_body(writer, {"id": "x", "a": content}) for content in (b"ok", b"\xff")]
    columns, kept, faults = Resolution(ReaderSchema("t", reader), writer).read(bodies)
    assert kept == [0] and columns.column("a").to_pylist() == ["ok"]
    assert faults[1].code is Code.NOT_RESOLVED
