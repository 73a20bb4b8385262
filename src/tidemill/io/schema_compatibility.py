"""Whether a reader's schema reads what a writer's wrote, by Avro's own rules (the Apache library's).

In: two schemas as JSON. Out: what cannot be read, by field of the reader. Invariant: nothing is found exactly where the
library calls the two compatible, but for the name of the outermost record: the topic says what its records are.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import avro.errors
import avro.schema
from avro.compatibility import (
    ReaderWriterCompatibilityChecker,
    SchemaCompatibilityType,
    SchemaIncompatibilityType,
    lookup_writer_field,
    schema_name_equals,
)

from tidemill.core.schema_rules import ROOT, Incompatibility, Problem, type_text

_PROBLEMS: Mapping[SchemaIncompatibilityType, Problem] = {
    SchemaIncompatibilityType.name_mismatch: "name",
    SchemaIncompatibilityType.fixed_size_mismatch: "size",
    SchemaIncompatibilityType.missing_enum_symbols: "symbols",
    SchemaIncompatibilityType.reader_field_missing_default_value: "no_default",
    SchemaIncompatibilityType.type_mismatch: "type",
    SchemaIncompatibilityType.missing_union_branch: "branch",
}


def find_incompatibilities(reader: Mapping[str, Any], writer: Mapping[str, Any]) -> list[Incompatibility]:
    """What the reader's schema cannot read, in the order of its fields.

    Raises:
        ValueError: one of the two is no Avro schema; in words.
    """
    return list(_walk(_parsed(reader), _parsed(writer), "", frozenset()))


def _parsed(schema: Mapping[str, Any]) -> Any:
    try:
        return avro.schema.parse(json.dumps(schema))
    except (avro.errors.AvroException, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{schema.get('name', 'the schema')} is no Avro schema: {error}") from error


def _walk(reader: Any, writer: Any, path: str, inside: frozenset[tuple[int, int]]) -> Iterator[Incompatibility]:
    """Down to where two types do not fit."""
    result = ReaderWriterCompatibilityChecker().get_compatibility(reader, writer)
    pair = (id(reader), id(writer))
    if result.compatibility is SchemaCompatibilityType.compatible or pair in inside:
        return
    inside |= {pair}
    kinds = (reader.type, writer.type)
    if kinds == ("record", "record"):
        if path and not schema_name_equals(reader, writer):
            yield Incompatibility(path, "name", reader.fullname, writer.fullname)
        yield from _walk_fields(reader, writer, f"{path}." if path else "", inside)
    elif kinds == ("array", "array"):
        yield from _walk(reader.items, writer.items, f"{path}[]", inside)
    elif kinds == ("map", "map"):
        yield from _walk(reader.values, writer.values, f"{path}{{}}", inside)
    elif kinds == ("union", "union") and (inner := _optional(reader, writer)) is not None:
        yield from _walk(*inner, path, inside)
    else:
        lacking = {*getattr(writer, "symbols", ())} - {*getattr(reader, "symbols", ())}
        problem = _PROBLEMS[result.incompatibilities[0]]
        if "union" in kinds:
            problem = "branch"
        yield Incompatibility(
            path or ROOT,
            problem,
            reader.fullname if problem == "name" else _text(reader),
            writer.fullname if problem == "name" else _text(writer),
            symbols=tuple(sorted(lacking)) if problem == "symbols" else (),
        )


def _walk_fields(
    reader: Any, writer: Any, prefix: str, inside: frozenset[tuple[int, int]]
) -> Iterator[Incompatibility]:
    pairs = [(field, lookup_writer_field(writer, field)) for field in reader.fields]
    read = {found.name for _, found in pairs if found is not None}
    for field, found in pairs:
        path = prefix + field.name
        if found is not None:
            yield from _walk(field.type, found.type, path, inside)
        elif not field.has_default:
            alike = [one.name for one in writer.fields if one.name not in read and _text(one.type) == _text(field.type)]
            yield Incompatibility(
                path, "no_default", _text(field.type), "", rename_of=alike[0] if len(alike) == 1 else None
            )


def _optional(reader: Any, writer: Any) -> tuple[Any, Any] | None:
    """What stands beside null in both; None where one of them is another union."""
    rests = [[branch for branch in union.schemas if branch.type != "null"] for union in (reader, writer)]
    if [len(union.schemas) for union in (reader, writer)] != [2, 2] or [len(rest) for rest in rests] != [1, 1]:
        return None
    return rests[0][0], rests[1][0]


def _text(schema: Any) -> str:
    return type_text(schema.to_json(avro.schema.Names()))
