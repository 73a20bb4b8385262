"""Versions of one small schema as a registry holds them, and the fixture `registry`.

In: nothing. Out: Avro schemas, a server. Invariant: each version differs from `READER` in the one way that it is
named after.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from registry_server import RegistryServer

READER = {"type": "record", "name": "E", "fields": [{"name": "id", "type": "string"}, {"name": "n", "type": "long"}]}
ADDED = {**READER, "fields": [*READER["fields"], {"name": "note", "type": ["null", "string"], "default": None}]}
RETYPED = {**READER, "fields": [READER["fields"][0], {"name": "n", "type": "int"}]}
REMOVED = {**READER, "fields": READER["fields"][:1]}
RENAMED = {**READER, "fields": [READER["fields"][0], {"name": "m", "type": "long"}]}


@pytest.fixture
def registry() -> Iterator[RegistryServer]:
    with RegistryServer() as server:
        yield server
