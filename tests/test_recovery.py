"""The recovery table, cell by cell, and its laws."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.core.recovery import Action, Continue, Rebuild, RollForward, SendSlices, StartNew, Stop, decide


def decided(
    applied: int | None,
    committed: int | None,
    *slices: tuple[int, int],
    store: str | None = "one",
    metadata: str | None = "one",
    lineage: tuple[str, ...] = (),
    log_start: int = 0,
) -> Action:
    return decide(
        applied=applied,
        committed=committed,
        slices=slices,
        store_incarnation=store,
        committed_incarnation=None if committed is None else metadata,
        lineage=frozenset(lineage),
        log_start=log_start,
    )


def code(action: Action) -> str:
    assert isinstance(action, Stop), action
    assert action.message
    return action.code


def test_partition_that_nobody_processed_is_new() -> None:
    assert decided(None, None) == StartNew()
    assert decided(None, None, log_start=40) == StartNew()
    assert decided(None, None, store=None) == StartNew()


def test_equal_positions_continue() -> None:
    assert decided(10, 10) == Continue(10)
    assert decided(0, 0) == Continue(0)


def test_slices_that_were_published_but_not_dropped_do_not_matter() -> None:
    assert decided(10, 10, (5, 10)) == Continue(10)
    assert decided(12, 10, (5, 10), (10, 12)) == SendSlices(((10, 12),))


def test_slices_that_cover_the_gap_are_sent_in_order() -> None:
    assert decided(20, 10, (10, 14), (14, 20)) == SendSlices(((10, 14), (14, 20)))


def test_commit_without_records_that_was_not_published_is_sent() -> None:
    assert decided(10, 10, (10, 10), (10, 10)) == SendSlices(((10, 10), (10, 10)))
    assert decided(10, 5, (5, 10), (10, 10)) == SendSlices(((5, 10), (10, 10)))


def test_first_batch_of_a_new_partition_is_sent_although_nothing_is_committed() -> None:
    assert decided(7, None, (0, 7)) == SendSlices(((0, 7),))
    assert decided(7, None, (3, 7), log_start=4) == SendSlices(((3, 7),))


@pytest.mark.parametrize(
    "slices",
    [
        (),
        ((10, 14),),  # the end is missing
        ((14, 20),),  # the beginning is missing
        ((10, 14), (15, 20)),  # a hole
        ((10, 16), (14, 20)),  # an overlap
        ((8, 20),),  # the committed offset lies inside a slice
        ((10, 20), (20, 25)),  # more than was applied
        ((14, 20), (10, 14)),  # out of order
    ],
)
def test_gap_that_the_outbox_does_not_cover_stops(slices: tuple[tuple[int, int], ...]) -> None:
    assert code(decided(20, 10, *slices)) == "TM-4202"


def test_expired_offsets_stop() -> None:
    assert code(decided(20, None)) == "TM-4202"
    assert code(decided(20, None, (15, 20))) == "TM-4202"


def test_store_behind_rolls_forward() -> None:
    assert decided(10, 20) == RollForward(10, 20)
    assert decided(10, 20, (5, 10)) == RollForward(10, 20)
    assert decided(10, 20, log_start=10) == RollForward(10, 20)


def test_store_behind_whose_records_are_gone_stops() -> None:
    assert code(decided(10, 20, log_start=11)) == "TM-4203"


def test_rebuild_that_was_interrupted_rolls_forward() -> None:
    assert decided(10, 20, store="two", lineage=("one",)) == RollForward(10, 20)


def test_lost_store_is_rebuilt_from_the_beginning_of_the_log() -> None:
    assert decided(None, 20, store=None) == Rebuild(0, 20)
    assert decided(None, 20, store="two", lineage=("one",)) == Rebuild(0, 20)
    assert decided(None, 20) == Rebuild(0, 20)


def test_lost_store_whose_log_was_cut_stops() -> None:
    assert code(decided(None, 20, store=None, log_start=1)) == "TM-4203"


def test_another_store_stops_whatever_the_positions() -> None:
    for applied in (None, 5, 10, 15):
        assert code(decided(applied, 10, (10, 15), store="two")) == "TM-4201"


def test_descendant_of_the_committed_store_is_the_same_store() -> None:
    assert decided(10, 10, store="three", lineage=("one", "two")) == Continue(10)
    assert decided(12, 10, (10, 12), store="three", lineage=("one", "two")) == SendSlices(((10, 12),))


def test_offsets_without_metadata_that_differ_stop() -> None:
    assert code(decided(10, 20, metadata=None)) == "TM-4204"
    assert code(decided(20, 10, (10, 20), metadata=None)) == "TM-4204"
    assert code(decided(None, 10, store=None, metadata=None)) == "TM-4204"  # an emptied store beside it
    assert code(decided(None, 10, metadata=None)) == "TM-4204"
    assert decided(10, 10, metadata=None) == Continue(10)


def test_positions_without_incarnation_stop() -> None:
    assert code(decided(10, 10, store=None)) == "TM-4205"


def test_records_deleted_before_they_were_processed_stop() -> None:
    assert code(decided(10, 10, log_start=11)) == "TM-4206"
    assert decided(10, 10, log_start=10) == Continue(10)


POSITIONS = (None, 0, 5, 10)
OUTBOXES = ((), ((0, 5),), ((5, 10),), ((0, 5), (5, 10)), ((0, 10),), ((5, 5),), ((5, 10), (10, 10)))


def check_laws(
    applied: int | None,
    committed: int | None,
    slices: tuple[tuple[int, int], ...],
    store: str | None,
    metadata: str | None,
    lineage: tuple[str, ...],
    log_start: int,
) -> None:
    action = decided(
        applied, committed, *slices, store=store, metadata=metadata, lineage=lineage, log_start=log_start
    )  # fmt: skip
    metadata = None if committed is None else metadata
    match action:
        case StartNew():
            assert applied is None and committed is None
        case Continue(offset=offset):
            assert applied == committed == offset >= log_start and store is not None
            assert (offset, offset) not in slices
        case SendSlices(spans=spans):
            assert applied is not None and store is not None
            assert set(spans) <= set(slices) and spans[-1][1] == applied
            if committed is None:
                assert spans[0][0] <= log_start
            else:
                assert spans[0][0] == committed
            assert all(one[1] == two[0] for one, two in itertools.pairwise(spans))
        case RollForward(start=start, end=end):
            assert (start, end) == (applied, committed) and log_start <= start < end
            assert metadata in {store, *lineage} and metadata is not None
        case Rebuild(start=start, end=end):
            assert applied is None and start == log_start == 0 and end == committed
        case Stop(code=stop, message=message):
            assert stop.startswith("TM-42") and len(message) > 40
    if None not in (store, metadata) and metadata not in {store, *lineage}:
        assert isinstance(action, Stop)


def test_every_cell_of_the_table_obeys_the_laws() -> None:
    cells = itertools.product(
        POSITIONS, POSITIONS, OUTBOXES, (None, "one", "two"), (None, "one", "two"), ((), ("one",)), (0, 5, 7)
    )  # fmt: skip
    seen = set()
    for cell in cells:
        check_laws(*cell)
        applied, committed, slices, store, metadata, lineage, log_start = cell
        action = decided(
            applied, committed, *slices, store=store, metadata=metadata, lineage=lineage, log_start=log_start
        )  # fmt: skip
        seen.add(type(action))
    assert seen == {StartNew, Continue, SendSlices, RollForward, Rebuild, Stop}


offsets = st.none() | st.integers(0, 6)
spans = st.tuples(st.integers(0, 6), st.integers(0, 6))
stores = st.sampled_from((None, "one", "two", "three"))


@given(
    applied=offsets,
    committed=offsets,
    slices=st.lists(spans, max_size=4).map(tuple),
    store=stores,
    metadata=stores,
    lineage=st.lists(st.sampled_from(("one", "two")), max_size=2).map(tuple),
    log_start=st.integers(0, 6),
)
def test_decide_is_total_and_obeys_the_laws(
    applied: int | None,
    committed: int | None,
    slices: tuple[tuple[int, int], ...],
    store: str | None,
    metadata: str | None,
    lineage: tuple[str, ...],
    log_start: int,
) -> None:
    check_laws(applied, committed, slices, store, metadata, lineage, log_start)
