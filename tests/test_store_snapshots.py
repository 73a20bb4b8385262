"""Snapshots of the store: what a cut holds while workers commit on, how it is kept, and that it comes back whole."""

from __future__ import annotations

import itertools
import random
import re
import struct
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from tidemill.core.records import Commit, Due, LatestDelta, PaneDelta, Partition, Span
from tidemill.core.rows import Row, RowState, pack_row
from tidemill.errors import FencedError, StateLostError, UnavailableError
from tidemill.io import cut_store, redis_store
from tidemill.io.cut_store import CutHead, CutStore
from tidemill.io.embedded import Servers, start_servers
from tidemill.io.fill_store import FillStore
from tidemill.io.redis_store import RedisStore

A = Partition("events", 0)
B = Partition("labels", 0)
SLICE = b"outputs"
_numbers = itertools.count()


@pytest.fixture(scope="module")
def valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with start_servers(tmp_path_factory.mktemp("store"), kafka=False) as servers:
        yield servers


class App:
    """A store with a worker that commits numbered batches, and a client that sees the bytes."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.name = f"cut{next(_numbers)}"
        self.client = redis.Redis.from_url(url)
        self.store = self.worker()
        self.at = 0
        self.store.claim([A, B], may_create=True)
        for partition in (A, B):
            self.store.set_start(partition, 0)

    def worker(self, slot: str = "0") -> RedisStore:
        return RedisStore(self.url, self.name, owner_slot=slot, config_digest="same", features="groups")

    def cut(self, **options: Any) -> CutStore:
        return CutStore(self.url, self.name, **options)

    def commit(self, chance: random.Random, *, slice_: bytes = SLICE) -> None:
        """Writes, deletes and merges some keys of each kind."""
        ids = [f"id{chance.randrange(60)}" for _ in range(6)]
        rows: dict[str, bytes | None] = {
            id_: None if chance.random() < 0.3 else a_row(self.at + 1, self.at * 10) for id_ in ids
        }
        due = tuple(Due(A, id_, self.at * 10 + 5) for id_, row in rows.items() if row is not None)
        gone = tuple(Due(A, id_, 0) for id_, row in rows.items() if row is None)
        panes = tuple(PaneDelta(f"g:v1:e{chance.randrange(40)}", 3, 1, (1, self.at)) for _ in range(3))
        entry = struct.pack(">5q", self.at, 0, 0, self.at, 7)
        self.store.commit(
            Commit(
                spans={A: Span(self.at, self.at + 1, self.at, False)},
                rows=rows,
                due_add=due,
                due_remove=gone,
                pane_deltas=tuple({delta.key: delta for delta in panes}.values()),
                latest_deltas=(LatestDelta(f"w:v1:e{chance.randrange(9)}", 2, entry),),
                slices={A: slice_},
            )
        )
        self.at += 1

    def keys(self) -> dict[bytes, bytes]:
        """Every key of state and rows, without the prefix."""
        start = f"tm:{{{self.name}}}:".encode()
        names = [name for name in self.client.scan_iter(start + b"*") if name[len(start) :][:2] in (b"s:", b"r:")]
        return {name[len(start) :]: self.client.get(name) for name in names}

    def due(self) -> dict[str, float]:
        return {
            id_.decode(): at
            for id_, at in self.client.zrange(f"tm:{{{self.name}}}:due:events:0", 0, -1, withscores=True)
        }


@pytest.fixture
def app(valkey: Servers) -> App:
    return App(valkey.redis_url)


def a_row(revision: int, time_: int, state: RowState = RowState.PENDING) -> bytes:
    return pack_row(Row(revision, state, time_, -1, -1, 0, 0, 0, b"tail" * 9))


# --- the cut


@pytest.mark.parametrize("seed", range(6))
def test_a_cut_is_of_one_moment_though_commits_go_on_between_its_pages(
    app: App, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(cut_store, "PAGE_KEYS", 7)  # many pages, so that keys change before and after they are read
    chance = random.Random(seed)
    for _ in range(30):
        app.commit(chance)
    cut = app.cut()
    head = cut.begin()
    before = app.keys()
    found: dict[bytes, bytes] = {}
    for page in cut.pages():
        assert not found.keys() & dict(page).keys(), "a key came twice"
        found.update(page)
        app.commit(chance)
    assert app.keys() != before, "the test changed nothing while the cut was read"
    cut.end()
    assert found == before
    assert head.partitions[A].applied == 30 and head.partitions[A].record["committed"] == "0"
    assert set(head.partitions[A].slices) == {str(at) for at in range(1, 31)}
    assert head.partitions[B].applied is None  # a start that was recorded and never used is no progress


def test_without_the_former_bytes_the_cut_is_torn(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof that commit.lua must keep what it changes."""
    intact = redis_store.load_script
    torn = intact("commit").replace("local kept = call('GET', prefix .. 'cut') and", "local kept = false and")
    monkeypatch.setattr(redis_store, "load_script", lambda name: torn if name == "commit" else intact(name))
    app.store = app.worker()
    app.store.claim([A, B], may_create=False)
    with pytest.raises(AssertionError):
        test_a_cut_is_of_one_moment_though_commits_go_on_between_its_pages(app, monkeypatch, 0)


def test_a_cut_leaves_nothing_behind(app: App) -> None:
    chance = random.Random(1)
    for _ in range(5):
        app.commit(chance)
    cut = app.cut()
    cut.begin()
    app.commit(chance)
    list(cut.pages())
    cut.end()
    app.commit(chance)
    assert not list(app.client.scan_iter(f"tm:{{{app.name}}}:cut*"))


def test_a_second_cut_waits_for_the_first_one_and_a_dead_one_is_no_obstacle_for_long(app: App) -> None:
    app.commit(random.Random(1))
    dead = app.cut(lifetime_ms=150)
    dead.begin()
    with pytest.raises(UnavailableError, match="TM-4109"):
        app.cut().begin()
    time.sleep(0.2)
    app.cut().begin()
    with pytest.raises(FencedError, match="TM-4113"):
        list(dead.pages())


def test_a_cut_that_was_silent_for_too_long_is_refused_at_its_end(app: App) -> None:
    app.commit(random.Random(1))
    cut = app.cut(lifetime_ms=100)
    cut.begin()
    list(cut.pages())
    time.sleep(0.15)
    with pytest.raises(FencedError, match="TM-4113"):
        cut.end()


def test_a_fill_of_features_ends_the_cut(app: App) -> None:
    app.commit(random.Random(1))
    cut = app.cut()
    cut.begin()
    FillStore(app.url, app.name).begin()
    with pytest.raises(FencedError, match="TM-4113"):
        list(cut.pages())
    with pytest.raises(UnavailableError, match="TM-4109"):
        app.cut().begin()


def test_an_empty_store_has_no_cut(valkey: Servers) -> None:
    with pytest.raises(StateLostError, match="TM-4302"):
        CutStore(valkey.redis_url, "nobody").begin()


# --- the way back


def put_back(app: App, head: CutHead, pages: list[list[tuple[bytes, bytes]]], incarnation: str = "new") -> None:
    cut = app.cut()
    cut.begin_restore()
    for page in pages:
        cut.put(page, [Due(A, key[2:].decode(), 5) for key, _ in page if key.startswith(b"r:")])
    cut.finish(head, incarnation=incarnation, earlier=frozenset({"last"}), restored={"log_ends": {"log": [3]}})


def a_cut_of(app: App) -> tuple[CutHead, list[list[tuple[bytes, bytes]]]]:
    cut = app.cut()
    head = cut.begin()
    pages = list(cut.pages())
    cut.end()
    return head, pages


def test_a_restored_store_is_the_one_that_was_cut_under_a_new_incarnation(app: App) -> None:
    chance = random.Random(3)
    for _ in range(20):
        app.commit(chance)
    incarnation, keys, marks = app.store.incarnation, app.keys(), app.store.marks()
    head, pages = a_cut_of(app)
    app.store.wipe()
    put_back(app, head, pages)

    assert app.keys() == keys
    assert {id_ for id_ in app.due()} == {key[2:].decode() for key in keys if key.startswith(b"r:")}
    assert {p: mark._replace(owner="") for p, mark in marks.items()} == dict(app.store.marks())
    with pytest.raises(FencedError, match="TM-4103"):
        app.commit(chance)  # what the worker sent to the store that was lost does not count
    view = app.store.claim([A, B], may_create=False)
    assert view.incarnation == "new" and view.lineage == {incarnation, "last"}
    assert view.partitions[A].applied == 20 and view.partitions[B].applied is None
    assert len(view.partitions[A].slices) == 20 and view.partitions[A].slices[-1] == (19, 20, SLICE)
    assert app.store.restored() == {"log_ends": {"log": [3]}}
    assert not app.client.exists(*(f"tm:{{{app.name}}}:{name}" for name in ("restoring", "unfinished")))
    app.commit(chance)


def test_a_store_that_holds_anything_is_not_restored(app: App) -> None:
    app.commit(random.Random(1))
    with pytest.raises(StateLostError, match="TM-4114"):
        app.cut().begin_restore()
    app.client.delete(f"tm:{{{app.name}}}:incarnation")
    with pytest.raises(StateLostError, match="TM-4105"):
        app.cut().begin_restore()


@pytest.mark.parametrize("is_new", [True, False])
def test_nobody_builds_on_what_a_stop_on_the_way_left(app: App, is_new: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Emptying was stopped: state without positions would be counted twice by whoever applies the log again."""
    chance = random.Random(3)
    for _ in range(5):
        app.commit(chance)
    monkeypatch.setattr(redis_store, "LIFETIME_MS", 150)
    app.store._empty("begin", "stopped")
    app.store._empty("delete", "stopped", *app.client.scan_iter(f"tm:{{{app.name}}}:p:*"))
    assert app.store.row_counts()
    with pytest.raises(UnavailableError, match="TM-4108"):
        app.worker("1").claim([A], may_create=is_new)
    time.sleep(0.2)
    worker = app.worker("1")
    if not is_new:
        assert worker.claim([A], may_create=False).incarnation is None
        worker.open_rebuild("other")
    assert worker.claim([A], may_create=is_new).partitions[A].applied is None
    assert worker.row_counts() == {} and not list(app.client.scan_iter(f"tm:{{{app.name}}}:[su]*"))


def test_a_claim_does_not_take_a_store_that_somebody_begins_to_empty_again(
    app: App, monkeypatch: pytest.MonkeyPatch
) -> None:
    app.store._empty("begin", "another")
    worker = app.worker("1")
    monkeypatch.setattr(worker, "wipe", lambda: None)  # it had ended when the other one began
    for ask in (lambda: worker.claim([A], may_create=True), lambda: worker.open_rebuild("new")):
        with pytest.raises(UnavailableError, match="TM-4108"):
            ask()


def test_nobody_claims_a_store_that_is_half_restored(app: App) -> None:
    chance = random.Random(3)
    app.commit(chance)
    head, pages = a_cut_of(app)
    app.store.wipe()
    cut = app.cut(lifetime_ms=150)
    cut.begin_restore()
    cut.put(pages[0], [])
    with pytest.raises(UnavailableError, match="TM-4108"):
        app.worker("1").claim([A], may_create=False)
    with pytest.raises(UnavailableError, match="TM-4108"):
        app.worker("1").open_rebuild("other")
    with pytest.raises(UnavailableError, match="TM-4108"):
        app.cut().begin_restore()

    time.sleep(0.2)  # whoever restored is dead: the next one begins anew, and what was written is gone
    assert app.worker("1").claim([A], may_create=False).incarnation is None
    app.client.set(f"tm:{{{app.name}}}:s:left", "over")
    put_back(app, head, pages)
    left = app.keys()
    assert b"s:left" not in left
    with pytest.raises(FencedError, match="TM-4113"):
        cut.put(pages[0], [])


@pytest.mark.parametrize("script", ["claim", "rebuild", "cut", "restore"])
def test_guards_of_the_restore_are_needed(app: App, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Each of the tests above turns red without the guard in the script."""
    intact = redis_store.load_script
    name = {"cut": "cut", "restore": "restoring"}.get(script, "unfinished")
    source, cuts = re.subn(rf"-- guard: {name}\n.*?-- end guard\n", "", intact(script), flags=re.DOTALL)
    assert cuts == 1
    for module in (redis_store, cut_store):
        monkeypatch.setattr(module, "load_script", lambda name: source if name == script else intact(name))
    app.store = app.worker()
    test = {
        "cut": test_a_cut_that_was_silent_for_too_long_is_refused_at_its_end,
    }.get(script, test_nobody_claims_a_store_that_is_half_restored)
    app.store.claim([A, B], may_create=False)
    with pytest.raises((pytest.fail.Exception, AssertionError)):
        test(app)
