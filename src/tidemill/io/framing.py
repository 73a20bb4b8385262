"""Avro single-object encoding: which schema wrote a value is said by its first ten bytes.

In: a schema, or a value. Out: the header, or the words for what is wrong with one. Invariant: the fingerprint is that
of the parsing canonical form, so documentation, defaults and aliases of a schema do not change it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fastavro.schema import fingerprint, parse_schema, to_parsing_canonical_form

MAGIC = b"\xc3\x01"
HEADER_BYTES = 10  # magic, then CRC-64-AVRO, little-endian
CONFLUENT_MAGIC = b"\x00"
CONFLUENT_HEADER_BYTES = 5  # magic, then the id that a schema registry gave, big-endian


def header_of(schema: Mapping[str, Any]) -> bytes:
    """The ten bytes in front of every value that this schema wrote."""
    # fastavro gives the fingerprint as hex of its little-endian bytes, the order of the wire.
    return MAGIC + bytes.fromhex(fingerprint(to_parsing_canonical_form(dict(schema)), "CRC-64-AVRO"))


def fingerprint_text(header: bytes) -> str:
    """How people write the fingerprint of a header: sixteen hex digits, as in the Avro specification."""
    return header[: len(MAGIC) - 1 : -1].hex()


def parsed(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema with full names everywhere and every name defined once."""
    full = parse_schema(json.loads(json.dumps(schema)))
    assert isinstance(full, dict)
    return {key: value for key, value in full.items() if not key.startswith("__")}
