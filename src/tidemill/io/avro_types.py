"""What the wire asks of an Avro schema: the shape of its fields, and their Arrow types.

In: a schema as `framing.parsed` gives it. Out: descriptions and rewritten schemas. Invariant: the rewritten schemas
describe the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

_PRIMITIVES = {
    "boolean": pa.bool_(),
    "int": pa.int32(),
    "long": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "bytes": pa.binary(),
    "string": pa.string(),
}
_TIMES = {f"{local}timestamp-{unit}" for local in ("", "local-") for unit in ("millis", "micros", "nanos")} | {
    "date",
    "time-millis",
    "time-micros",
}
_NESTED = {"array", "map", "record"}


@dataclass(frozen=True, slots=True)
class FieldType:
    """One top-level field. `kind`: the Avro type behind a union with null; "other" = null or a union of many.
    `node`: that type as it stands in the schema; `logical`: its logical type, "" = none."""

    name: str
    aliases: tuple[str, ...]
    kind: str
    node: Any
    is_nullable: bool
    logical: str
    has_default: bool
    default: Any
    symbols: tuple[str, ...]
    symbol_default: str | None

    @property
    def is_nested(self) -> bool:
        return self.kind in _NESTED

    @property
    def is_time(self) -> bool:
        return self.logical in _TIMES


def field_types(schema: Mapping[str, Any]) -> list[FieldType]:
    """The top-level fields, in order; named types are followed to where they are defined."""
    named = dict(_named_types(schema))
    return [_field_type(field, named) for field in schema["fields"]]


def arrow_type(field: FieldType, schema: Mapping[str, Any]) -> pa.DataType | None:
    """The Arrow type without logical types; None for what Arrow or pyruhvro cannot hold."""
    return None if field.kind == "other" else _arrow_type(field.node, dict(_named_types(schema)), frozenset())


def is_fit_for_bulk(schema: Mapping[str, Any]) -> bool:
    """Whether pyruhvro decodes every type of the schema, in bounded time.

    It panics on bytes and fixed, Arrow has no recursion, and an array whose items have no bytes would hang it: there a
    claimed count costs the producer nothing.
    """
    named = dict(_named_types(schema))
    for node in _nodes(dict(schema)):
        kind = _kind(node)
        if kind in ("bytes", "fixed", "null") or (kind == "array" and _is_empty(node["items"], named, frozenset())):
            return False
    return all(_arrow_type(field["type"], named, frozenset()) is not None for field in schema["fields"])


def plain(node: Any) -> Any:
    """The same schema without logical types and documentation."""
    if isinstance(node, list):
        return [plain(branch) for branch in node]
    if not isinstance(node, dict):
        return node
    rest = {key: value for key, value in node.items() if key not in ("logicalType", "doc", "precision", "scale")}
    for key in ("type", "items", "values"):
        if key in rest:
            rest[key] = plain(rest[key])
    if "fields" in rest:
        rest["fields"] = [plain(field) for field in rest["fields"]]
    return rest["type"] if set(rest) == {"type"} and isinstance(rest["type"], str) else rest


def with_wide_ints(node: Any) -> Any:
    """The same schema with every int as long: both are the same bytes, and an overflow stays visible."""
    if isinstance(node, list):
        return [with_wide_ints(branch) for branch in node]
    if not isinstance(node, dict):
        return "long" if node == "int" else node
    rest = {key: value for key, value in node.items() if key not in ("default", "aliases")}
    for key in ("type", "items", "values"):
        if key in rest:
            rest[key] = with_wide_ints(rest[key])
    if "fields" in rest:
        rest["fields"] = [with_wide_ints(field) for field in rest["fields"]]
    return rest


def _field_type(field: Mapping[str, Any], named: Mapping[str, Any]) -> FieldType:
    node, is_nullable = _without_null(field["type"])
    if isinstance(node, str) and node in named:
        node = named[node]
    kind = "other" if isinstance(node, list) or node == "null" else _kind(node)
    details = node if isinstance(node, dict) else {}
    return FieldType(
        name=field["name"],
        aliases=tuple(field.get("aliases", ())),
        kind=kind,
        node=node,
        is_nullable=is_nullable,
        logical=str(details.get("logicalType", "")),
        has_default="default" in field,
        default=field.get("default"),
        symbols=tuple(details.get("symbols", ())),
        symbol_default=details.get("default") if kind == "enum" else None,
    )


def _without_null(node: Any) -> tuple[Any, bool]:
    if isinstance(node, list) and len(node) == 2 and "null" in node:
        return next(branch for branch in node if branch != "null"), True
    return node, False


def _kind(node: Any) -> str:
    return node if isinstance(node, str) else str(node["type"])


def _nodes(node: Any) -> Iterator[Any]:
    """The type and every type inside it, outermost first; the null of an optional type is not one."""
    node, _ = _without_null(node)
    if isinstance(node, list):
        for branch in node:
            yield from _nodes(branch)
        return
    yield node
    if isinstance(node, dict):
        inner = [field["type"] for field in node.get("fields", ())]
        inner += [node[key] for key in ("items", "values") if key in node]
        for each in inner:
            yield from _nodes(each)


def _named_types(schema: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    return ((node["name"], node) for node in _nodes(dict(schema)) if _is_named(node))


def _is_named(node: Any) -> bool:
    return isinstance(node, dict) and "name" in node


def _arrow_type(node: Any, named: Mapping[str, Any], inside: frozenset[str]) -> pa.DataType | None:
    node, _ = _without_null(node)
    if isinstance(node, list) or node == "null":
        return None
    if isinstance(node, str) and node in named:
        node = named[node]
    kind = _kind(node)
    if kind in _PRIMITIVES:
        return _PRIMITIVES[kind]
    if kind == "enum":
        return pa.string()
    if kind == "fixed":
        return pa.binary(node["size"])
    if kind in ("array", "map"):
        item = _arrow_type(node["items" if kind == "array" else "values"], named, inside)
        if item is None:
            return None
        return pa.list_(item) if kind == "array" else pa.map_(pa.string(), item)
    if node["name"] in inside:
        return None
    types = {field["name"]: _arrow_type(field["type"], named, inside | {node["name"]}) for field in node["fields"]}
    if None in types.values():
        return None
    # Fields inside a record may always be null: in the rows where the record is.
    return pa.struct(list(types.items()))


def _is_empty(node: Any, named: Mapping[str, Any], inside: frozenset[str]) -> bool:
    if isinstance(node, str):
        node = named.get(node, node)
    if isinstance(node, list):
        return False
    if node == "null":
        return True
    if isinstance(node, str):
        return False
    if node["type"] == "fixed":
        return bool(node["size"] == 0)
    if node["type"] == "record" and node["name"] not in inside:
        return all(_is_empty(field["type"], named, inside | {node["name"]}) for field in node["fields"])
    return False
