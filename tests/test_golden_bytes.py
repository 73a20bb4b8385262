"""The bytes of Tidemill's own records, as any other Avro library reads and writes them.

`tests/golden/<schema>.json` holds values and their bytes as hex.
They never change: a changed byte is a new schema version.
"""

from __future__ import annotations

import io
import json
import pathlib

import fastavro
import pyarrow as pa
import pytest

from tidemill.io.wire import Encoder, decode
from tidemill.resources import schema_text

SCHEMAS = (
    *("prediction.v1", "example.v1", "command.v1", "commit.v1", "metrics.v1", "row.v1"),
    *("alert.v1", "tick.v1", "model_event.v1"),
)
GOLDEN = pathlib.Path(__file__).parent / "golden"


def golden(name: str) -> tuple[list[dict], list[bytes]]:
    records = json.loads((GOLDEN / f"{name}.json").read_text())
    return [each["value"] for each in records], [bytes.fromhex(each["hex"].replace(" ", "")) for each in records]


def crc_64_avro(text: bytes) -> int:
    """The fingerprint as the Avro specification defines it, bit by bit."""
    empty = 0xC15D213AA4D7A795
    value = empty
    for byte in text:
        value ^= byte
        for _ in range(8):
            value = (value >> 1) ^ (empty & -(value & 1))
    return value


def canonical(node: object) -> str:
    """The parsing canonical form of the plain schemas under schemas/tidemill."""
    if isinstance(node, list):
        return "[" + ",".join(map(canonical, node)) + "]"
    if isinstance(node, str):
        return json.dumps(node)
    assert isinstance(node, dict)
    parts = [f'"name":"io.tidemill.v1.{node["name"]}"'] if "name" in node else []
    parts.append(f'"type":"{node["type"]}"')
    if "fields" in node:
        fields = (f'{{"name":"{field["name"]}","type":{canonical(field["type"])}}}' for field in node["fields"])
        parts.append(f'"fields":[{",".join(fields)}]')
    if "symbols" in node:
        parts.append(f'"symbols":{json.dumps(node["symbols"], separators=(",", ":"))}')
    parts += [f'"{key}":{canonical(node[key])}' for key in ("items", "values") if key in node]
    return "{" + ",".join(parts) + "}"


def text_of(value: object) -> str:
    return json.dumps(value, sort_keys=True)  # NaN is equal to NaN here


def rows_of(columns: pa.RecordBatch) -> list[dict]:
    return columns.to_pylist(maps_as_pydicts="strict")


@pytest.mark.parametrize("name", SCHEMAS)
def test_fastavro_reads_the_golden_bytes_as_the_golden_values(name):
    values, encoded = golden(name)
    schema = fastavro.parse_schema(json.loads(schema_text(name)))
    for value, one in zip(values, encoded, strict=True):
        body = io.BytesIO(one[1 if name == "row.v1" else 10 :])
        assert text_of(fastavro.schemaless_reader(body, schema)) == text_of(value)
        assert not body.read()


@pytest.mark.parametrize("name", SCHEMAS)
def test_golden_values_are_written_as_the_golden_bytes(name):
    values, encoded = golden(name)
    assert Encoder(name).encode({key: [value[key] for value in values] for key in values[0]}) == encoded


@pytest.mark.parametrize("name", SCHEMAS)
def test_golden_bytes_are_read_as_the_golden_values(name):
    values, encoded = golden(name)
    assert text_of(rows_of(decode(name, encoded))) == text_of(values)


@pytest.mark.parametrize("name", [name for name in SCHEMAS if name != "row.v1"])
def test_the_header_is_the_fingerprint_of_the_avro_specification(name):
    fingerprint = crc_64_avro(canonical(json.loads(schema_text(name))).encode())
    for encoded in golden(name)[1]:
        assert encoded[:10] == b"\xc3\x01" + fingerprint.to_bytes(8, "little")


def test_stored_rows_begin_with_their_version():
    assert all(encoded[0] == 1 for encoded in golden("row.v1")[1])


def test_the_fingerprint_of_the_tests_is_that_of_the_specification():
    assert crc_64_avro(b'"int"') == 0x7275D51A3F395C8F
