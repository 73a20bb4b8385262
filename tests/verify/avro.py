"""Avro single-object encoding, decided record by record.

In: the bytes of a value. Out: its fields, or `BadRecordError` with the reason. Invariant: a record is good only if
every byte of it was used, its schema is known, its texts are UTF-8, its numbers are finite and its ints have 32 bits.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import fastavro
from fastavro.schema import to_parsing_canonical_form

MAGIC = b"\xc3\x01"
VALUE_BYTES_MAX = 1 << 20
_EMPTY = 0xC15D213AA4D7A795


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (_EMPTY if byte & 1 else 0)
        table.append(byte)
    return table


_TABLE = _crc_table()


class BadRecordError(Exception):
    """The record cannot be used: it must be dead-lettered."""


def fingerprint(schema: Any) -> bytes:
    """CRC-64-AVRO of the schema's parsing canonical form, little endian."""
    crc = _EMPTY
    for byte in to_parsing_canonical_form(schema).encode("utf-8"):
        crc = (crc >> 8) ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc.to_bytes(8, "little")


def without_logical_types(schema: Any) -> Any:
    """The schema with bare longs for times: comparing integers needs no datetime."""
    if isinstance(schema, dict):
        return {name: without_logical_types(part) for name, part in schema.items() if name != "logicalType"}
    if isinstance(schema, list):
        return [without_logical_types(part) for part in schema]
    return schema


def encode(schema: Any, fields: Mapping[str, Any]) -> bytes:
    body = io.BytesIO()
    fastavro.schemaless_writer(body, fastavro.parse_schema(without_logical_types(schema)), dict(fields))
    return MAGIC + fingerprint(schema) + body.getvalue()


class Decoder:
    """Decodes values written with any of `schemas` into the fields of the first one."""

    def __init__(self, schemas: Iterable[Any], *, is_finite_only: bool = True) -> None:
        parsed = [(fingerprint(schema), fastavro.parse_schema(without_logical_types(schema))) for schema in schemas]
        reader = parsed[0][1]
        self._pairs: dict[bytes, tuple[Any, Any]] = {}
        for index, (mark, writer) in enumerate(parsed):
            self._pairs.setdefault(MAGIC + mark, (writer, reader if index else None))
        fields = reader["fields"] if isinstance(reader, dict) and "fields" in reader else ()
        self._int_fields = [f["name"] for f in fields if f["type"] == "int" or "int" in f["type"]]
        self._float_fields = [f["name"] for f in fields if is_finite_only and _may_hold_float(f["type"])]

    def knows(self, value: bytes) -> bool:
        return value[:10] in self._pairs

    def decode(self, value: bytes) -> dict[str, Any]:
        """Raises: BadRecordError."""
        pair = self._pairs.get(value[:10])
        if pair is None:
            raise BadRecordError("unknown schema fingerprint")
        if len(value) > VALUE_BYTES_MAX:
            raise BadRecordError("larger than 1 MiB")
        body = io.BytesIO(value)
        body.seek(10)
        try:
            fields: Any = fastavro.schemaless_reader(body, *pair)
        except Exception as error:  # fastavro raises whatever the broken bytes lead to
            raise BadRecordError(f"does not decode: {error!r}") from error
        if body.tell() != len(value):
            raise BadRecordError("bytes are left over")
        for name in self._float_fields:
            number = fields[name]
            if number is not None and not _is_finite(number):
                raise BadRecordError(f"{name} is not finite")
        for name in self._int_fields:
            number = fields[name]
            if number is not None and number.__class__ is int and not -(1 << 31) <= number < 1 << 31:
                raise BadRecordError(f"{name} is no int of 32 bits")
        return fields  # type: ignore[no-any-return]


def read_schema(name: str) -> Any:
    """A published schema of `schemas/tidemill`."""
    folder = Path(__file__).resolve().parents[2] / "schemas" / "tidemill"
    return json.loads((folder / f"{name}.v1.avsc").read_text(encoding="utf-8"))


def _may_hold_float(schema: Any) -> bool:
    if isinstance(schema, list):
        return any(_may_hold_float(part) for part in schema)
    if isinstance(schema, dict):
        inner = [schema.get("type"), schema.get("items"), schema.get("values")]
        inner += [field["type"] for field in schema.get("fields", ())]
        return any(_may_hold_float(part) for part in inner if part is not None)
    return schema in ("float", "double")


def _is_finite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(_is_finite(part) for part in value.values())
    if isinstance(value, list):
        return all(_is_finite(part) for part in value)
    return True
