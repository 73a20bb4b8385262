"""Stores of one app for the contract: on dictionaries, or on a Valkey of the module's own.

In: nothing. Out: `Workers`, and what their commits are made of. Invariant: an app's keys are
its own, so tests may share a server.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import redis

from tidemill.core.records import Partition, Span
from tidemill.core.rows import Row, RowState, pack_row
from tidemill.io.embedded import Servers, start_servers
from tidemill.io.memory import MemoryBackend, MemoryStore
from tidemill.io.redis_store import RedisStore

A = Partition("events", 0)
B = Partition("events", 1)
C = Partition("labels", 0)

Store = MemoryStore | RedisStore
_numbers = itertools.count()


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Our own server: tests here change its settings and empty it."""
    with start_servers(tmp_path_factory.mktemp("store"), kafka=False) as servers:
        yield servers


@dataclass
class Workers:
    """Stores of one app."""

    open: Callable[..., Store]
    lose: Callable[[], None]

    def claimed(self, *partitions: Partition, start: int = 0, slot: str = "0") -> Store:
        store = self.open(slot)
        view = store.claim(partitions, may_create=True)
        for partition in partitions:
            if view.partitions[partition].applied is None:
                store.set_start(partition, start)
        return store


def memory_workers() -> Workers:
    backend = MemoryBackend()

    def open_store(slot: str = "0", digest: str = "same", random_hex: Any = None) -> Store:
        return MemoryStore(backend, "app", owner_slot=slot, config_digest=digest, random_hex=random_hex or a_random_hex)

    return Workers(open_store, MemoryStore(backend).wipe)


def redis_workers(url: str) -> Workers:
    app = f"app{next(_numbers)}"

    def open_store(slot: str = "0", digest: str = "same", random_hex: Any = None) -> Store:
        return RedisStore(url, app, owner_slot=slot, config_digest=digest, random_hex=random_hex or a_random_hex)

    def lose() -> None:
        with redis.Redis.from_url(url) as client:
            client.flushall()

    return Workers(open_store, lose)


def a_random_hex(size: int) -> str:
    return f"{next(_numbers):0{2 * size}x}"


@pytest.fixture(params=["memory", "valkey"])
def workers(request: pytest.FixtureRequest) -> Workers:
    if request.param == "memory":
        return memory_workers()
    return redis_workers(request.getfixturevalue("valkey").redis_url)


def a_row(revision: int, state: RowState = RowState.PENDING, tail: bytes = b"") -> bytes:
    return pack_row(Row(revision, state, 5, -1, -1, 0, 0, 0, tail))


def a_span(start: int, next_: int, watermark: int = 100, is_lagging: bool = False) -> Span:
    return Span(start, next_, watermark, is_lagging)


def an_entry(time: int, offset: int, *values: int) -> bytes:
    return struct.pack(f">{4 + len(values)}q", time, 0, 0, offset, *values)


def slices_of(workers: Workers, partition: Partition) -> tuple[tuple[int, int, bytes], ...]:
    return workers.open("reader").claim([partition], may_create=False).partitions[partition].slices
