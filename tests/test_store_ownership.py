"""Whose commits a store takes, and what it keeps for the next owner, on dictionaries and on a real Valkey."""

from __future__ import annotations

import pytest
from contract_stores import A, B, Workers, a_row, a_span, slices_of, valkey, workers

from tidemill.core.ports import Applied
from tidemill.core.records import Commit, Mark, PaneDelta
from tidemill.errors import ConfigError, FencedError, StateLostError
from tidemill.io.redis_store import ClaimedPartition
from tidemill.io.slices import mark_of

__all__ = ["valkey", "workers"]


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
