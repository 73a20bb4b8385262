"""The Avro schemas that an app's YAML names.

In: a folder, paths and patterns relative to it. Out: record schemas as JSON. Invariant: what comes out is a record
schema that fastavro accepts; everything else is a ValueError in words, which `config.py` gives file and line.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fastavro


def read_schema(folder: Path, name: str) -> dict[str, Any]:
    """The record schema in a file. Raises ValueError."""
    try:
        schema = json.loads((folder / name).read_text(encoding="utf-8"))
        fastavro.parse_schema(schema)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, fastavro.schema.SchemaParseException) as error:
        raise ValueError(f"{name} is no Avro schema: {error}") from error
    if not isinstance(schema, dict) or schema.get("type") != "record":
        raise ValueError(f"{name}: the schema must be a record")
    return schema


def read_schemas(folder: Path, pattern: str) -> list[dict[str, Any]]:
    """The schemas of all files that a path or pattern names, at least one, in the order of their names.

    Raises:
        ValueError.
    """
    try:
        found = sorted(folder.glob(pattern))
    except (ValueError, NotImplementedError) as error:
        raise ValueError(f"{pattern!r} is no path relative to this file: {error}") from error
    if not found:
        raise ValueError(f"{pattern} names no file; paths are relative to this file")
    return [read_schema(path.parent, path.name) for path in found]
