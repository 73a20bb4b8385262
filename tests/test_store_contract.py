"""What every store must make of a commit: one suite, on dictionaries and on a real Valkey, and both agree."""

from __future__ import annotations

import itertools
import struct
from typing import Any

import pytest
from contract_stores import (
    A,
    B,
    C,
    Store,
    Workers,
    a_row,
    a_span,
    an_entry,
    memory_workers,
    redis_workers,
    slices_of,
    valkey,
    workers,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tidemill.core.ports import Applied, Conflict
from tidemill.core.records import Commit, Due, LatestDelta, Mark, PaneDelta, Partition, Reads, Span
from tidemill.core.rows import RowState
from tidemill.core.state import merge_latest, merge_pane
from tidemill.errors import InvariantError, TidemillError
from tidemill.io.embedded import Servers

__all__ = ["valkey", "workers"]


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
