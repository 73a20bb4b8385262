"""What every store must do: one suite, on dictionaries and on a real Valkey, and proof that the guards are needed."""

from __future__ import annotations

import itertools
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tidemill.core.ports import Applied, Conflict
from tidemill.core.records import Commit, Due, LatestDelta, Mark, PaneDelta, Partition, Reads, Span
from tidemill.core.rows import Row, RowState, pack_row
from tidemill.core.state import merge_latest, merge_pane
from tidemill.errors import ConfigError, FencedError, InvariantError, StateLostError, TidemillError, UnavailableError
from tidemill.io import redis_connection, redis_store
from tidemill.io.embedded import Servers, start_servers
from tidemill.io.memory import MemoryBackend, MemoryStore
from tidemill.io.redis_store import ClaimedPartition, RedisStore
from tidemill.io.slices import mark_of

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


# --- the commit


def test_commit_applies_all_of_its_effects(workers: Workers) -> None:
    store = workers.claimed(A, B)
    delta = PaneDelta("g:v1:x", 3, 7, (1, -5))
    latest = LatestDelta("w:v1:x", 2, an_entry(10, 1, 99))
    result = store.commit(
        Commit(
            spans={A: a_span(0, 4, 70, True)},
            read_set={"one": 0, "two": 0},
            rows={"one": a_row(1, tail=b"\x00\xff"), "two": a_row(1)},
            due_add=(Due(A, "one", 50), Due(B, "two", 40)),
            pane_deltas=(delta,),
            latest_deltas=(latest,),
            slices={A: b"out\x00put"},
        )
    )

    assert isinstance(result, Applied)
    mark = result.marks[A]
    assert (mark.applied, mark.committed, mark.watermark, mark.is_lagging) == (4, 0, 70, True)
    assert result.marks == store.marks()
    view = store.read(Reads(("g:v1:x", "w:v1:x", "none"), ("two", "one", "zero"), (A, B), 51))
    assert view.state == (merge_pane(b"", delta), merge_latest(b"", latest), None)
    assert view.rows == (a_row(1), a_row(1, tail=b"\x00\xff"), None)
    assert view.due == ((Due(B, "two", 40), a_row(1)), (Due(A, "one", 50), a_row(1, tail=b"\x00\xff")))
    assert view.marks == store.marks()
    assert slices_of(workers, A) == ((0, 4, b"out\x00put"),)


def test_rows_and_due_entries_are_replaced_and_deleted(workers: Workers) -> None:
    store = workers.claimed(A)
    rows = {"one": a_row(1), "two": a_row(1)}
    store.commit(Commit({A: a_span(0, 1)}, rows=rows, due_add=(Due(A, "one", 5), Due(A, "two", 6))))
    store.commit(
        Commit(
            {A: a_span(1, 2)},
            read_set={"one": 1, "two": 1},
            rows={"one": None, "two": a_row(2, RowState.JOINED)},
            due_remove=(Due(A, "one", 5), Due(A, "two", 6)),
            due_add=(Due(A, "two", 60),),
        )
    )

    view = store.read(Reads((), ("one", "two"), (A,), 1000))
    assert view.rows == (None, a_row(2, RowState.JOINED))
    assert view.due == ((Due(A, "two", 60), a_row(2, RowState.JOINED)),)
    assert store.row_counts() == {RowState.JOINED: 1}


def test_due_rows_come_oldest_first_before_the_time_and_up_to_the_limit(workers: Workers) -> None:
    store = workers.claimed(A, B)
    due = tuple(Due(p, f"{p.number}{at}", at) for p in (A, B) for at in (30, 10, 20, 40))
    store.commit(Commit({A: a_span(0, 1)}, due_add=due))

    def listed(before: int, limit: int, *partitions: Partition) -> list[str]:
        return [entry.id for entry, _ in store.read(Reads((), (), partitions, before, limit)).due]

    assert listed(30, 100, A, B) == ["010", "110", "020", "120"]
    assert listed(31, 3, A, B) == ["010", "110", "020"]
    assert listed(100, 100, B) == ["110", "120", "130", "140"]
    assert listed(10, 100, A, B) == []


def test_due_row_that_is_gone_is_shown_as_absent(workers: Workers) -> None:
    store = workers.claimed(A)
    store.commit(Commit({A: a_span(0, 1)}, due_add=(Due(A, "ghost", 5),)))
    assert store.read(Reads((), (), (A,), 10)).due == ((Due(A, "ghost", 5), None),)


def test_row_that_changed_since_it_was_read_is_a_conflict_and_nothing_changes(workers: Workers) -> None:
    one, other = workers.claimed(A), workers.claimed(C, slot="1")
    one.commit(Commit({A: a_span(0, 1)}, rows={"x": a_row(1), "y": a_row(1)}))
    other.commit(Commit({C: a_span(0, 1)}, read_set={"x": 1}, rows={"x": a_row(2, RowState.JOINED)}))
    before = (one.feature_digest(), one.marks(), one.row_counts())

    result = one.commit(
        Commit(
            {A: a_span(1, 2)},
            read_set={"new": 0, "x": 1, "y": 0},
            rows={"x": a_row(2), "y": None},
            pane_deltas=(PaneDelta("g", 0, 1, (1,)),),
            slices={A: b"never"},
        )
    )

    assert result == Conflict(("x", "y"))
    assert (one.feature_digest(), one.marks(), one.row_counts()) == before


def test_read_set_of_many_rows_names_the_contested_ones(workers: Workers) -> None:
    store = workers.claimed(A)
    rows = {f"id{i}": a_row(1) for i in range(4_500)}
    assert isinstance(store.commit(Commit({A: a_span(0, 1)}, dict.fromkeys(rows, 0), rows)), Applied)
    expected = dict.fromkeys(rows, 1) | {"id0": 2, "id1999": 0, "id2000": 5, "id4499": 0}
    assert store.commit(Commit({A: a_span(1, 2)}, expected)) == Conflict(("id0", "id1999", "id2000", "id4499"))
    assert store.row_counts() == {RowState.PENDING: 4_500}
    deleted: dict[str, bytes | None] = dict.fromkeys(rows)
    assert isinstance(store.commit(Commit({A: a_span(1, 2)}, rows=deleted)), Applied)
    assert store.row_counts() == {}


def test_commit_that_no_pipeline_makes_is_refused(workers: Workers) -> None:
    store = workers.claimed(A)
    for commit in (
        Commit({A: a_span(0, 1)}, slices={B: b"stray"}),
        Commit({A: a_span(1, 0)}),
        Commit({A: a_span(0, 1)}, rows={"x": b"short"}),
    ):
        with pytest.raises(InvariantError, match="TM-9101"):
            store.commit(commit)


# --- feature state


def test_pane_slots_are_replaced_added_or_dropped_by_their_tag(workers: Workers) -> None:
    store = workers.claimed(A)
    deltas = [
        PaneDelta("g", 6, 2, (1, 10)),
        PaneDelta("g", 0, 5, (1, 10)),
        PaneDelta("g", 0, 5, (2, -30)),
        PaneDelta("g", 0, 4, (9, 9)),  # older: dropped
        PaneDelta("g", 6, 3, (4, 2**52)),  # newer: replaces
        PaneDelta("one", 3, 1, (7,)),
        PaneDelta("three", 0, 1, (1, 2, 3)),
        PaneDelta("three", 0, 1, (1, -2, 3)),
    ]
    store.commit(Commit({A: a_span(0, 1)}, pane_deltas=tuple(deltas)))
    store.commit(Commit({A: a_span(1, 2)}, pane_deltas=(PaneDelta("g", 6, 3, (1, 1)), PaneDelta("one", 3, 1, (-9,)))))

    g, one, three = store.read(Reads(("g", "one", "three"), ())).state
    assert struct.unpack(">9q", g or b"") == (5, 3, -20, 0, 0, 0, 3, 5, 2**52 + 1)
    assert struct.unpack(">5q", one or b"") == (0, 0, 0, 1, -2)
    assert struct.unpack(">4q", three or b"") == (1, 2, 0, 6)


def test_cells_that_take_the_maximum_and_slots_without_cells_keep_the_largest(workers: Workers) -> None:
    store = workers.claimed(A)
    deltas = [
        PaneDelta("g", 0, 5, (-7,), True),
        PaneDelta("g", 0, 5, (-9,), True),  # less: stays
        PaneDelta("g", 0, 4, (99,), True),  # older: dropped
        PaneDelta("g", 2, 5, (2**36,), True),
        PaneDelta("g", 2, 6, (-(2**36),), True),  # newer: replaces
        PaneDelta("g", 4, 1, (3,)),  # beside them one that adds
        PaneDelta("g", 4, 1, (4,)),
        PaneDelta("pair", 0, 1, (1, -2), True),
        PaneDelta("pair", 0, 1, (-1, 2), True),
        PaneDelta("times", 7, 1_400_000_000_001, ()),
        PaneDelta("times", 7, 1_300_000_000_001, ()),
    ]
    store.commit(Commit({A: a_span(0, 1)}, pane_deltas=tuple(deltas)))
    later = (
        PaneDelta("g", 0, 5, (-3,), True),
        PaneDelta("times", 7, 1_350_000_000_001, ()),
        PaneDelta("times", 0, 9, ()),
    )
    store.commit(Commit({A: a_span(1, 2)}, pane_deltas=later))

    g, pair, times = store.read(Reads(("g", "pair", "times"), ())).state
    assert struct.unpack(">6q", g or b"") == (5, -3, 6, -(2**36), 1, 7)
    assert struct.unpack(">3q", pair or b"") == (1, 1, 2)
    assert struct.unpack(">8q", times or b"") == (9, 0, 0, 0, 0, 0, 0, 1_400_000_000_001)


def test_latest_entries_stay_newest_first_without_doubles(workers: Workers) -> None:
    store = workers.claimed(A)
    entries = [an_entry(20, 1, 7), an_entry(30, 2, 8), an_entry(10, 3, 9), an_entry(30, 2, 8), an_entry(30, 1, 6)]
    store.commit(Commit({A: a_span(0, 1)}, latest_deltas=tuple(LatestDelta("w", 3, e) for e in entries)))
    assert store.read(Reads(("w",), ())).state == (b"".join([entries[1], entries[4], entries[0]]),)


deltas_of_keys = st.lists(
    st.builds(
        PaneDelta,
        st.sampled_from(["g:a", "g:b"]),
        st.sampled_from([0, 3, 6, 30]),
        st.integers(1, 3),
        st.tuples(st.integers(-5, 5), st.integers(-(2**40), 2**40)),
        st.just(False),
    )
    | st.builds(
        PaneDelta,
        st.sampled_from(["g:a", "g:b"]),
        st.sampled_from([9, 11, 21, 41]),
        st.integers(1, 3),
        st.tuples(st.integers(-(2**36), 2**36)),
        st.just(True),
    )
    | st.builds(
        PaneDelta,
        st.sampled_from(["g:a", "g:b"]),
        st.integers(50, 60),
        st.integers(1, 2**48),
        st.just(()),
        st.just(False),
    ),
    max_size=20,
)
latest_of_keys = st.lists(
    st.builds(
        LatestDelta, st.just("w:a"), st.just(3), st.builds(an_entry, st.integers(0, 4), st.integers(0, 3), st.just(1))
    ),
    max_size=8,
)


@given(pane=deltas_of_keys, latest=latest_of_keys, cuts=st.integers(1, 4))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_script_merges_as_the_core_does_in_any_grouping(
    valkey: Servers, pane: list[PaneDelta], latest: list[LatestDelta], cuts: int
) -> None:
    expected: dict[str, bytes] = {}
    for delta in pane:
        expected[delta.key] = merge_pane(expected.get(delta.key, b""), delta)
    for entry in latest:
        expected[entry.key] = merge_latest(expected.get(entry.key, b""), entry)
    store = redis_workers(valkey.redis_url).claimed(A)
    for cut in range(cuts):
        store.commit(
            Commit(
                {A: a_span(cut, cut + 1)},
                pane_deltas=tuple(pane[cut::cuts][::-1]),
                latest_deltas=tuple(latest[cut::cuts]),
            )
        )
    found = store.read(Reads(("g:a", "g:b", "w:a"), ())).state
    assert found == tuple(expected.get(key) for key in ("g:a", "g:b", "w:a"))


# --- the fence


def test_commit_of_a_replaced_owner_is_fenced(workers: Workers) -> None:
    old = workers.claimed(A, B)
    new = workers.claimed(B, slot="1")
    with pytest.raises(FencedError, match=r"TM-4101.*events\[1\].*1:.*expected 0:"):
        old.commit(Commit({A: a_span(0, 1), B: a_span(0, 1)}, rows={"x": a_row(1)}))
    assert old.row_counts() == {} and old.marks()[A].applied == 0
    assert isinstance(old.commit(Commit({A: a_span(0, 1)})), Applied)
    assert isinstance(new.commit(Commit({B: a_span(0, 1)})), Applied)


def test_claim_voids_the_earlier_scripts_of_the_same_worker(workers: Workers) -> None:
    store = workers.claimed(A)
    tokens = [store.marks()[A].owner]
    store.claim([A], may_create=False)
    tokens.append(store.marks()[A].owner)
    assert len(set(tokens)) == 2 and all(token.startswith("0:") for token in tokens)


@pytest.mark.parametrize("start", [0, 2, 9])
def test_commit_from_another_position_is_fenced(workers: Workers, start: int) -> None:
    store = workers.claimed(A)
    store.commit(Commit({A: a_span(0, 5)}))
    with pytest.raises(FencedError, match=rf"TM-4102.*events\[0\].*5, expected {start}"):
        store.commit(Commit({A: a_span(start, 10)}))
    assert store.marks()[A].applied == 5


def test_commit_without_a_recorded_start_is_fenced(workers: Workers) -> None:
    store = workers.open()
    store.claim([A], may_create=True)
    with pytest.raises(FencedError, match=r"TM-4102.*none"):
        store.commit(Commit({A: a_span(0, 5)}))


def test_commit_without_claim_is_fenced(workers: Workers) -> None:
    with pytest.raises(FencedError):
        workers.open().commit(Commit({A: a_span(0, 5)}))
    with pytest.raises(FencedError):
        workers.open().commit(Commit({}))


def test_commit_to_an_emptied_store_is_fenced(workers: Workers) -> None:
    store = workers.claimed(A)
    workers.lose()
    with pytest.raises(FencedError, match="TM-4103"):
        store.commit(Commit({A: a_span(0, 5)}, rows={"x": a_row(1)}))
    assert store.row_counts() == {} and store.marks() == {}


def test_commit_to_a_rebuilt_store_is_fenced(workers: Workers) -> None:
    store = workers.claimed(A)
    workers.lose()
    workers.open("1").open_rebuild("second", "first")
    with pytest.raises(FencedError, match=r"TM-4103.*second"):
        store.commit(Commit({A: a_span(0, 5)}))


# --- the outbox


def test_published_slices_are_dropped_and_committed_only_rises(workers: Workers) -> None:
    store = workers.claimed(A)
    for start in range(3):
        store.commit(Commit({A: a_span(start, start + 1)}, slices={A: b"%d" % start}))
    marks = store.mark_published({A: 2})
    assert marks[A].committed == 2
    assert store.mark_published({A: 1})[A].committed == 2
    assert slices_of(workers, A) == ((2, 3, b"2"),)


def test_slices_keep_their_order_beyond_ten(workers: Workers) -> None:
    store = workers.claimed(A)
    for start in range(12):
        store.commit(Commit({A: a_span(start, start + 1)}, slices={A: b"x"}))
    assert [start for start, _, _ in slices_of(workers, A)] == list(range(12))


def test_span_without_outputs_stays_covered(workers: Workers) -> None:
    store = workers.claimed(A)
    store.commit(Commit({A: a_span(0, 3)}))
    assert slices_of(workers, A) == ((0, 3, b""),)


def test_commits_without_records_keep_their_outputs_apart(workers: Workers) -> None:
    store = workers.claimed(A)
    store.commit(Commit({A: a_span(0, 3)}, slices={A: b"records"}))
    store.commit(Commit({A: a_span(3, 3)}, slices={A: b"expired"}))
    store.commit(Commit({A: a_span(3, 3)}, slices={A: b"more"}))
    store.commit(Commit({A: a_span(3, 3)}))
    expected = ((0, 3, b"records"), (3, 3, b"expired"), (3, 3, b"more"))
    assert slices_of(workers, A) == expected
    store = workers.claimed(A)
    store.mark_published({A: 3})
    assert slices_of(workers, A) == ()


def test_claim_tells_the_last_commit_that_moved_no_offset_although_it_is_published(workers: Workers) -> None:
    def sequel() -> str:
        return workers.open().claim([A], may_create=True).partitions[A].sequel

    store = workers.claimed(A)
    store.commit(Commit({A: a_span(0, 3)}, slices={A: b"records"}))
    assert sequel() == ""
    for outputs in (b"expired", b"more"):
        store = workers.claimed(A)
        store.commit(Commit({A: a_span(3, 3)}, slices={A: outputs}))
        store.mark_published({A: 3})
        assert sequel() == mark_of(outputs)
    store = workers.claimed(A)
    store.commit(Commit({A: a_span(3, 4)}, slices={A: b"records"}))
    assert sequel() == mark_of(b"more"), "an offset that moved shows itself"


def test_later_commit_does_not_drop_outputs_that_the_offset_cannot_show(workers: Workers) -> None:
    store = workers.claimed(A)
    store.commit(Commit({A: a_span(0, 3)}, slices={A: b"records"}))
    store.mark_published({A: 3})
    store.commit(Commit({A: a_span(3, 3)}, slices={A: b"expired"}))
    store.commit(Commit({A: a_span(3, 5)}, slices={A: b"next"}))
    assert slices_of(workers, A) == ((3, 3, b"expired"), (3, 5, b"next"))


def test_partition_of_another_owner_is_not_marked_as_published(workers: Workers) -> None:
    old = workers.claimed(A, B)
    old.commit(Commit({A: a_span(0, 3), B: a_span(0, 3)}))
    workers.claimed(B, slot="1")
    marks = old.mark_published({A: 3, B: 3})
    assert (marks[A].committed, marks[B].committed) == (3, 0)


# --- marks


def test_span_without_offsets_and_watermark_teaches_nothing(workers: Workers) -> None:
    store = workers.claimed(A)
    store.commit(Commit({A: a_span(0, 3, 70, True)}))
    store.commit(Commit({A: a_span(3, 3, -1, False)}))
    assert store.marks()[A][1:] == (3, 0, 70, True)


def test_watermark_only_rises(workers: Workers) -> None:
    store = workers.claimed(A)
    store.commit(Commit({A: a_span(0, 3, 70)}))
    store.commit(Commit({A: a_span(3, 4, 60, True)}))
    assert store.marks()[A][3:] == (70, True)
    store.touch({A: Mark("", -1, -1, 65, False)})
    assert store.marks()[A][3:] == (70, False)
    store.touch({A: Mark("", -1, -1, 80, True)})
    assert store.marks()[A][1:] == (4, 0, 80, True)


def test_touch_of_another_owners_partition_is_fenced_and_changes_nothing(workers: Workers) -> None:
    old = workers.claimed(A, B)
    workers.claimed(B, slot="1")
    with pytest.raises(FencedError, match="TM-4101"):
        old.touch({A: Mark("", -1, -1, 5, True), B: Mark("", -1, -1, 5, True)})
    assert old.marks()[A].watermark == -1


# --- claims


def test_first_claim_creates_the_incarnation_and_later_ones_find_it(workers: Workers) -> None:
    one, two = workers.open("0"), workers.open("1")
    first = one.claim([A], may_create=True)
    second = two.claim([B], may_create=True)
    assert first.incarnation == second.incarnation == one.incarnation is not None
    assert first.partitions == {A: ClaimedPartition(None, None)}


def test_claim_of_a_lost_store_claims_nothing(workers: Workers) -> None:
    store = workers.open()
    view = store.claim([A], may_create=False)
    assert view.incarnation is None and store.incarnation is None and store.marks() == {}
    assert view.partitions == {A: ClaimedPartition(None, None)}


def test_start_is_no_progress_until_something_was_applied(workers: Workers) -> None:
    store = workers.claimed(A, start=40)
    assert store.marks()[A][1:3] == (40, 40)
    assert workers.open().claim([A], may_create=False).partitions[A].applied is None
    store = workers.claimed(A, start=50)
    store.commit(Commit({A: a_span(50, 50)}))
    assert workers.open().claim([A], may_create=False).partitions[A].applied is None
    store = workers.claimed(A, start=50)
    store.commit(Commit({A: a_span(50, 51)}, slices={A: b"x"}))
    assert workers.open().claim([A], may_create=False).partitions[A] == ClaimedPartition(51, 50, ((50, 51, b"x"),))


def test_start_of_a_partition_with_progress_or_another_owner_is_fenced(workers: Workers) -> None:
    store = workers.claimed(A, B)
    store.commit(Commit({A: a_span(0, 5)}))
    with pytest.raises(FencedError, match="TM-4102"):
        store.set_start(A, 0)
    workers.claimed(B, slot="1")
    with pytest.raises(FencedError, match="TM-4101"):
        store.set_start(B, 0)


def test_worker_of_another_configuration_is_refused(workers: Workers) -> None:
    owner = workers.claimed(A)
    other = workers.open("1", "different")
    with pytest.raises(ConfigError, match=r"TM-4104.*different.*same.*reset --config"):
        other.claim([A], may_create=True)
    assert isinstance(owner.commit(Commit({A: a_span(0, 1)})), Applied)
    other.set_config()
    other.claim([A], may_create=False)
    with pytest.raises(ConfigError):
        owner.claim([A], may_create=False)


def test_first_rebuild_holds_and_descends_from_the_lost_store(workers: Workers) -> None:
    one, two = workers.open("0"), workers.open("1")
    one.claim([A], may_create=False)
    assert one.open_rebuild("second", "first", "") == "second"
    assert two.open_rebuild("third", "first") == "second"
    view = two.claim([A], may_create=False)
    assert (view.incarnation, view.lineage) == ("second", frozenset({"first"}))


def test_rebuild_of_a_store_that_still_holds_positions_is_refused(workers: Workers) -> None:
    store = workers.open()
    store.set_positions({A: 5})
    with pytest.raises(StateLostError, match=r"TM-4105.*events\[0\]"):
        store.open_rebuild("second", "first")


def test_claims_at_the_same_position_are_counted_until_it_moves_or_is_given_back(workers: Workers) -> None:
    def attempts(slot: str = "0") -> int:
        return workers.open(slot).claim([A], may_create=True).partitions[A].attempts

    store = workers.claimed(A, start=3)
    assert attempts() == 2  # the start of a new partition is no progress
    assert attempts("1") == 3
    store = workers.open("1")
    store.claim([A], may_create=False)
    store.set_start(A, 3)
    store.commit(Commit({A: a_span(3, 5)}))
    assert attempts("1") == 1  # it moved, and the same slot may have been killed for reasons of its own
    assert attempts("1") == 2
    store = workers.open("1")
    store.claim([A], may_create=False)
    store.commit(Commit({A: a_span(5, 6)}))
    assert attempts("2") == 2  # another slot: an owner that lived would have given it back
    store = workers.open("2")
    store.claim([A], may_create=False)
    store.release([A])
    assert attempts("3") == 1


def test_release_gives_back_only_what_is_ours(workers: Workers) -> None:
    old = workers.claimed(A, B)
    new = workers.claimed(B, slot="1")
    old.release([A, B])
    marks = new.marks()
    assert marks[A].owner == "" and marks[B].owner.startswith("1:")
    with pytest.raises(FencedError, match="TM-4101"):
        old.commit(Commit({A: a_span(0, 1)}))


def test_reset_moves_positions_and_voids_owners(workers: Workers) -> None:
    store = workers.claimed(A)
    store.commit(Commit({A: a_span(0, 5)}, slices={A: b"unsent"}))
    workers.open("operator").set_positions({A: 90})
    with pytest.raises(FencedError, match="TM-4101"):
        store.commit(Commit({A: a_span(90, 91)}))
    assert workers.open().claim([A], may_create=False).partitions[A] == ClaimedPartition(90, 90)


def test_wipe_leaves_nothing_of_the_app(workers: Workers) -> None:
    store = workers.claimed(A)
    store.commit(Commit({A: a_span(0, 1)}, rows={"x": a_row(1)}, pane_deltas=(PaneDelta("g", 0, 1, (1,)),)))
    full = store.feature_digest()
    store.wipe()
    assert store.marks() == {} and store.row_counts() == {} and store.feature_digest() != full
    assert store.claim([A], may_create=False).incarnation is None


# --- memory and Valkey side by side

commits = st.tuples(
    st.sampled_from(["commit", "publish", "claim", "touch", "release", "read"]),
    st.integers(0, 1),  # worker
    st.sampled_from([(A,), (B,), (A, B)]),
    st.integers(0, 2),  # span length
    st.integers(-1, 1),  # how far the start is off, mostly refused
    st.lists(st.sampled_from(["x", "y", "z"]), max_size=2, unique=True),
    st.integers(0, 1),  # revision off
    deltas_of_keys,
    latest_of_keys,
    st.booleans(),
)


@given(steps=st.lists(commits, min_size=1, max_size=25))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_memory_and_valkey_give_the_same_answers(valkey: Servers, steps: list[Any]) -> None:
    transcripts = []
    for app in (memory_workers(), redis_workers(valkey.redis_url)):
        numbers = itertools.count()
        stores = [app.open(str(slot), "same", lambda _size, n=numbers: f"r{next(n)}") for slot in (0, 1)]
        stores[0].claim([A, B], may_create=True)
        for partition in (A, B):
            stores[0].set_start(partition, 0)
        revisions: dict[str, int] = {}
        transcripts.append([_answer(stores[step[1]], step, revisions) for step in steps])
        transcripts[-1].append((stores[0].feature_digest(), stores[0].row_counts()))
    assert transcripts[0] == transcripts[1]


def _answer(store: Store, step: Any, revisions: dict[str, int]) -> object:
    kind, _, partitions, length, off, ids, stale, panes, latest, flag = step
    marks = store.marks()
    try:
        if kind == "publish":
            return store.mark_published({p: max(marks[p].applied - (off > 0), 0) for p in partitions})
        if kind == "claim":
            return store.claim(partitions, may_create=flag)
        if kind == "touch":
            return store.touch({p: Mark("", -1, -1, length * 10, flag) for p in partitions})
        if kind == "release":
            return store.release(partitions)
        if kind == "read":
            return store.read(Reads(("g:a", "g:b", "w:a"), tuple(ids), partitions, 40, 3))
        expected = {id_: revisions.get(id_, 0) + (stale and off > 0) for id_ in ids}
        result = store.commit(
            Commit(
                spans={
                    p: Span(at, at + length, -1 if flag else at + 10, flag)
                    for p in partitions
                    for at in [max(marks[p].applied + (off if stale else 0), 0)]
                },
                read_set=expected,
                rows={id_: None if flag and id_ == "z" else a_row(revisions.get(id_, 0) + 1) for id_ in ids},
                due_add=tuple(Due(partitions[0], id_, 30 + length) for id_ in ids),
                due_remove=tuple(Due(partitions[-1], id_, 0) for id_ in ids[:1]),
                pane_deltas=tuple(panes),
                latest_deltas=tuple(latest),
                slices={p: b"s" for p in partitions[:1]} if flag else {},
            )
        )
    except TidemillError as error:
        return str(error)
    if isinstance(result, Applied):
        revisions |= {id_: revisions.get(id_, 0) + 1 for id_ in ids}
        if flag and "z" in ids:
            revisions["z"] = 0
    return result


# --- the server


def test_full_server_refuses_a_commit_as_a_whole_and_lets_the_outbox_be_freed(valkey: Servers) -> None:
    workers = redis_workers(valkey.redis_url)
    store = workers.claimed(A)
    store.commit(Commit({A: a_span(0, 1)}, rows={"x": a_row(1)}, due_add=(Due(A, "x", 5),), slices={A: b"sent"}))
    late = Commit(
        {A: a_span(1, 2)},
        read_set={"x": 1},
        rows={"x": None},  # a deletion alone would be let through by a full server
        due_remove=(Due(A, "x", 5),),
        pane_deltas=(PaneDelta("g", 0, 1, (1,)),),
        slices={A: b"s" * 100_000},
    )
    with redis.Redis.from_url(valkey.redis_url) as client:
        try:
            client.config_set("maxmemory", "1")
            before = (store.marks(), store.feature_digest(), store.row_counts())
            with pytest.raises(UnavailableError, match=r"TM-3102.*maxmemory"):
                store.commit(late)
            assert (store.marks(), store.feature_digest(), store.row_counts()) == before
            assert len(store.read(Reads((), ("x",), (A,), 10)).due) == 1
            view = store.claim([A], may_create=False)
            assert view.partitions[A].slices == ((0, 1, b"sent"),)
            assert store.mark_published({A: 1})[A].committed == 1
            # A script that begins below the limit is let through though its own writes cross it: a far word pads 8 MB.
            client.config_set("maxmemory", client.info("memory")["used_memory"] + 4_000_000)
            far = PaneDelta("far", 1_000_000, 1, (1,))
            crossing = Commit({A: a_span(1, 2)}, {"x": 1}, {"x": None}, pane_deltas=(far,), slices={A: b"after"})
            assert isinstance(store.commit(crossing), Applied)
            assert client.info("memory")["used_memory"] > int(client.config_get("maxmemory")["maxmemory"])
            assert store.marks()[A].applied == 2 and store.row_counts() == {}
            with pytest.raises(UnavailableError, match="TM-3102"):
                store.commit(Commit({A: a_span(2, 3)}))
        finally:
            client.config_set("maxmemory", "0")
    assert isinstance(store.commit(Commit({A: a_span(2, 3)})), Applied)


def test_server_that_evicts_is_refused(valkey: Servers) -> None:
    store = redis_workers(valkey.redis_url).open()
    with redis.Redis.from_url(valkey.redis_url) as client:
        try:
            client.config_set("maxmemory-policy", "allkeys-lru")
            with pytest.raises(ConfigError, match=r"TM-4106.*allkeys-lru"):
                store.check_server()
        finally:
            client.config_set("maxmemory-policy", "noeviction")
    store.check_server()


def test_server_that_evicted_keys_between_two_checks_is_refused(valkey: Servers) -> None:
    store = redis_workers(valkey.redis_url).open()
    store.check_server()
    with redis.Redis.from_url(valkey.redis_url) as client:
        try:
            client.set("a key of somebody", b"0" * 4_000_000)
            client.config_set("maxmemory-policy", "volatile-lru")
            client.expire("a key of somebody", 1_000)
            client.config_set("maxmemory", client.info("memory")["used_memory"] - 1_000_000)
            client.set("a key of somebody else", b"0")
        finally:
            client.config_set("maxmemory", "0")
            client.config_set("maxmemory-policy", "noeviction")
            client.delete("a key of somebody", "a key of somebody else")
    with pytest.raises(StateLostError, match=r"TM-4140.*evicted 1 keys"):
        store.check_server()
    store.check_server()  # the next start is judged by what it meets itself


def test_server_that_forgot_the_scripts_gets_them_again(valkey: Servers) -> None:
    store = redis_workers(valkey.redis_url).claimed(A)
    with redis.Redis.from_url(valkey.redis_url) as client:
        client.script_flush()
    result = store.commit(Commit({A: a_span(0, 1)}))
    assert isinstance(result, Applied) and result.marks[A].applied == 1


def test_answer_that_does_not_come_is_unavailable_and_a_claim_finds_the_result(
    valkey: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_connection, "ANSWER_DEADLINE_S", 0.1)
    workers = redis_workers(valkey.redis_url)
    store = workers.claimed(A)
    with redis.Redis.from_url(valkey.redis_url) as client:
        client.execute_command("CLIENT PAUSE", 250, "ALL")
        with pytest.raises(UnavailableError, match="TM-3101"):
            store.commit(Commit({A: a_span(0, 1)}))
    monkeypatch.setattr(redis_connection, "ANSWER_DEADLINE_S", 5.0)
    later = workers.open()
    applied = later.claim([A], may_create=False).partitions[A].applied
    assert applied in (None, 1)  # sent before the claim: it took effect, or its token is void
    with pytest.raises(FencedError, match="TM-410"):
        store.commit(Commit({A: a_span(0, 1)}))


def test_server_that_is_not_there_is_unavailable() -> None:
    with pytest.raises(UnavailableError, match=r"TM-3101.*127\.0\.0\.1:1"):
        RedisStore("redis://user:secret@127.0.0.1:1/0", "app", owner_slot="0", config_digest="d").marks()


# --- the guards: each violation is refused by the script, and gets through when its guard is cut out


def cut_guard(monkeypatch: pytest.MonkeyPatch, script: str, guard: str) -> None:
    """Stores opened from now on run `script` without the block between `-- guard: <guard>` and `-- end guard`."""
    intact = redis_store.load_script

    def load_script(name: str) -> str:
        source = intact(name)
        if name != script:
            return source
        cut, cuts = re.subn(rf"-- guard: {guard}\n.*?-- end guard\n", "", source, flags=re.DOTALL)
        assert cuts == 1
        return cut

    monkeypatch.setattr(redis_store, "load_script", load_script)


def violate_owner(workers: Workers) -> bool:
    old = workers.claimed(A)
    workers.claimed(A, slot="1")
    return _gets_through(lambda: old.commit(Commit({A: a_span(0, 1)})))


def violate_position(workers: Workers) -> bool:
    store = workers.claimed(A)
    store.commit(Commit({A: a_span(0, 5)}))
    return _gets_through(lambda: store.commit(Commit({A: a_span(0, 5)}, pane_deltas=(PaneDelta("g", 0, 1, (1,)),))))


def violate_incarnation(workers: Workers) -> bool:
    store = workers.claimed(A)
    store._connection._client.set(f"tm:{{{store._app}}}:incarnation", "another")  # type: ignore[union-attr]
    return _gets_through(lambda: store.commit(Commit({A: a_span(0, 1)})))


def violate_read_set(workers: Workers) -> bool:
    store = workers.claimed(A)
    store.commit(Commit({A: a_span(0, 1)}, rows={"x": a_row(3)}))
    return _gets_through(lambda: store.commit(Commit({A: a_span(1, 2)}, {"x": 2}, {"x": a_row(3)})))


def violate_published_owner(workers: Workers) -> bool:
    old = workers.claimed(A)
    old.commit(Commit({A: a_span(0, 5)}, slices={A: b"unsent"}))
    workers.claimed(A, slot="1")
    old.mark_published({A: 5})
    return old.marks()[A].committed == 5


def violate_configuration(workers: Workers) -> bool:
    workers.claimed(A)
    return _gets_through(lambda: workers.open("1", "different").claim([A], may_create=False))


def violate_start_owner(workers: Workers) -> bool:
    old = workers.claimed(A)
    workers.claimed(A, slot="1")
    return _gets_through(lambda: old.set_start(A, 7))


def violate_start_position(workers: Workers) -> bool:
    store = workers.claimed(A)
    store.commit(Commit({A: a_span(0, 5)}))
    return _gets_through(lambda: store.set_start(A, 0))


def violate_touch_owner(workers: Workers) -> bool:
    old = workers.claimed(A)
    workers.claimed(A, slot="1")
    return _gets_through(lambda: old.touch({A: Mark("", -1, -1, 9, True)}))


def _gets_through(action: Callable[[], object]) -> bool:
    try:
        return not isinstance(action(), Conflict)
    except (FencedError, ConfigError):
        return False


GUARDS = [
    ("commit", "owner", violate_owner),
    ("commit", "position", violate_position),
    ("commit", "incarnation", violate_incarnation),
    ("commit", "read set", violate_read_set),
    ("published", "owner", violate_published_owner),
    ("claim", "configuration", violate_configuration),
    ("start", "owner", violate_start_owner),
    ("start", "position", violate_start_position),
    ("touch", "owner", violate_touch_owner),
]


@pytest.mark.parametrize(
    ("script", "guard", "violate"), GUARDS, ids=[f"{script}-{guard}" for script, guard, _ in GUARDS]
)
def test_every_guard_is_needed(
    valkey: Servers,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    guard: str,
    violate: Callable[[Workers], bool],
) -> None:
    assert not violate(redis_workers(valkey.redis_url))
    cut_guard(monkeypatch, script, guard)
    assert violate(redis_workers(valkey.redis_url))
