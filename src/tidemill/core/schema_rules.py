"""What changed between two schemas, and what to do about a change that a reader cannot follow.

In: schemas as JSON; incompatibilities as `io.schema_compatibility` finds them. Out: changes by field, findings with
advice in words. Invariant: a change that alters no byte and no meaning (documentation, order of attributes) is none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Problem = Literal[
    "no_default",  # the reader has a field that the writer has not, and no default for it
    "type",  # no promotion leads from the writer's type to the reader's
    "symbols",  # an enum's writer has symbols that its reader has not
    "branch",  # the writer may leave something, mostly null, that the reader has no place for
    "size",  # of a fixed type
    "name",  # of a nested named type
]
_PROMOTED: Mapping[str, Sequence[str]] = {
    "int": ("long", "float", "double"),
    "long": ("float", "double"),
    "float": ("double",),
    "string": ("bytes",),
    "bytes": ("string",),
}
ROOT = "(record)"


@dataclass(frozen=True, slots=True)
class Incompatibility:
    """What a reader cannot read. `path`: of the reader's field, as `card.limits[].amount`; types as people write them.

    rename_of: a field of the writer that the reader does not read and that has the type of the one it misses.
    symbols: those that the reader lacks.
    """

    path: str
    problem: Problem
    reader_type: str
    writer_type: str
    rename_of: str | None = None
    symbols: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Finding:
    """An incompatibility in words."""

    path: str
    what: str
    advice: str


@dataclass(frozen=True, slots=True)
class Change:
    """One difference. `kind`: added, removed, renamed, retyped, default, alias."""

    path: str
    kind: Literal["added", "removed", "renamed", "retyped", "default", "alias"]
    before: str
    after: str


def explained(found: Incompatibility) -> Finding:
    """The incompatibility as a sentence, and what mends it."""
    reader, writer, path = found.reader_type, found.writer_type, found.path
    match found.problem:
        case "no_default":
            what = "the writer does not have the field, and the reader has no default for it"
            advice = f'add a default, such as {_default_for(reader)}, to field "{path}" of the reader'
            if found.rename_of is not None:
                advice = f'if it was renamed, add an alias: "aliases": ["{found.rename_of}"]; else {advice}'
        case "type":
            what = f"written as {writer}, read as {reader}"
            advice = f"keep the type {writer}, or add a field of another name with a default and write both for a while"
            if reader in _PROMOTED and writer in _PROMOTED.get(reader, ()):
                advice = f"read it as {writer}: that also reads what was written as {reader}"
        case "symbols":
            what = f"the writer's enum has symbols that the reader's has not: {', '.join(found.symbols)}"
            advice = "add them to the reader's enum, or give the enum a default symbol"
        case "branch":
            what = f"written as {writer}, which holds more than {reader}"
            advice = f"read it as {writer}; until then such records are dead letters"
            if "null" in writer and "null" not in reader:
                advice = f'allow null in the reader: ["null", {json.dumps(reader)}]; until then such records are '
                advice += "dead letters"
        case "size":
            what = f"written as {writer}, read as {reader}"
            advice = "keep the size, or add a field of another name with a default"
        case "name":
            what = f"the type is named {writer} by the writer and {reader} by the reader"
            advice = f'add an alias to the type of the reader: "aliases": ["{writer}"]'
    return Finding(path, what, advice)


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Change]:
    """The differences of two record schemas, in the order of the new one's fields, removed fields last."""
    return list(_changes(old, new, ""))


def _changes(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str) -> Iterator[Change]:
    before = {field["name"]: field for field in old["fields"]}
    left = dict(before)
    for field in new["fields"]:
        path = prefix + field["name"]
        found = left.pop(field["name"], None)
        if found is None:
            alias = next((name for name in field.get("aliases", ()) if name in left), None)
            if alias is None:
                yield Change(path, "added", "", _with_default(field))
                continue
            found = left.pop(alias)
            yield Change(path, "renamed", prefix + alias, path)
        yield from _changes_of_field(found, field, path)
    for name, field in left.items():
        yield Change(prefix + name, "removed", _with_default(field), "")


def _changes_of_field(old: Mapping[str, Any], new: Mapping[str, Any], path: str) -> Iterator[Change]:
    inner_old, inner_new = _record_in(old["type"]), _record_in(new["type"])
    if inner_old is not None and inner_new is not None and _around(old["type"]) == _around(new["type"]):
        yield from _changes(inner_old, inner_new, f"{path}.")
    elif _meaning(old["type"]) != _meaning(new["type"]):
        yield Change(path, "retyped", type_text(old["type"]), type_text(new["type"]))
    if _default_text(old) != _default_text(new):
        yield Change(path, "default", _default_text(old), _default_text(new))
    aliases = [", ".join(one.get("aliases", ())) for one in (old, new)]
    if aliases[0] != aliases[1]:
        yield Change(path, "alias", *aliases)


def type_text(node: Any) -> str:
    """A type as people write it: `long`, `timestamp-millis`, `null or string`, `list of double`."""
    if isinstance(node, str):
        return node
    if isinstance(node, list):
        return " or ".join(type_text(branch) for branch in node)
    kind = node["type"]
    if not isinstance(kind, str):
        return type_text(kind)
    if "logicalType" in node:
        return f"{kind} ({node['logicalType']})"
    if kind == "array":
        return f"list of {type_text(node['items'])}"
    if kind == "map":
        return f"map of {type_text(node['values'])}"
    if kind == "enum":
        return f"enum {node['name']} ({', '.join(node['symbols'])})"
    if kind == "fixed":
        return f"fixed {node['name']} ({node['size']} bytes)"
    return f"record {node['name']}" if kind == "record" else kind


def _record_in(node: Any) -> Mapping[str, Any] | None:
    """The record of a type that is one, or null or one, or a list or map of one."""
    if isinstance(node, list):
        records = [found for found in map(_record_in, node) if found is not None]
        return records[0] if len(records) == 1 else None
    if not isinstance(node, dict):
        return None
    if node["type"] in ("array", "map"):
        return _record_in(node["items" if node["type"] == "array" else "values"])
    return node if node["type"] == "record" else None


def _around(node: Any) -> Any:
    """What stands around the record of a type, without the record."""
    if isinstance(node, list):
        return [_around(branch) for branch in node]
    if not isinstance(node, dict):
        return node
    if node["type"] in ("array", "map"):
        return [node["type"], _around(node["items" if node["type"] == "array" else "values"])]
    return "record" if node["type"] == "record" else _meaning(node)


def _meaning(node: Any) -> Any:
    """The type without what changes nothing."""
    if isinstance(node, list):
        return [_meaning(branch) for branch in node]
    if not isinstance(node, dict):
        return node
    rest = {key: _meaning(value) if key in ("type", "items", "values") else value for key, value in node.items()}
    if "fields" in rest:
        rest["fields"] = [{**_meaning(field), "type": _meaning(field["type"])} for field in rest["fields"]]
    rest.pop("doc", None)
    return rest["type"] if set(rest) == {"type"} else rest


def _default_text(field: Mapping[str, Any]) -> str:
    return json.dumps(field["default"]) if "default" in field else ""


def _with_default(field: Mapping[str, Any]) -> str:
    default = _default_text(field)
    return type_text(field["type"]) + (f", default {default}" if default else "")


def _default_for(kind: str) -> str:
    """A default of a type, in JSON."""
    if kind.startswith("null"):
        return "null"
    if kind in ("string", "bytes"):
        return '""'
    if kind == "boolean":
        return "false"
    if kind.split(" ")[0] in ("int", "long", "float", "double"):
        return "0"
    return "[]" if kind.startswith("list") else "{}" if kind.startswith("map") else "one of its values"
