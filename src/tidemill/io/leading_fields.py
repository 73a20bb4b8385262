"""What can still be read of a broken Avro value, for people.

In: the schema that wrote it, and its body. Out: the fields before the first broken one, decoded. Invariant: only bytes
that the judge found sound reach a decoder.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import fastavro

from tidemill.io.avro_types import plain
from tidemill.io.dead_letters import Code
from tidemill.io.framing import parsed
from tidemill.io.judge import Fault, Judge


def leading_fields(schema: Mapping[str, Any], body: bytes) -> tuple[dict[str, Any], Fault | None]:
    """The fields that can be read, in their order, and what is wrong with the first that cannot (None = nothing)."""
    whole = parsed(schema)
    fault = Judge(whole).find_fault(body)
    for count in range(len(whole["fields"]), 0, -1):
        head = {**whole, "fields": whole["fields"][:count]}
        try:
            found = Judge(head).find_fault(body)
        except KeyError:
            continue  # a type of this head is defined in a field behind it
        if found is None or found.code is Code.BYTES_LEFT:
            value = fastavro.schemaless_reader(io.BytesIO(body), fastavro.parse_schema(plain(head)), None)
            assert isinstance(value, dict)
            return value, fault
    return {}, fault
