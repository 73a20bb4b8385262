"""Partitions merge by event time, the same however their records arrive."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tidemill.core.merge import Offered, TimeOrderedMerge

ROLES = ("context", "event")
END = 10_000


def drain(merge, size, lagging=frozenset(), limit=None):
    cuts = []
    while (cut := merge.take(size, limit=limit, lagging=set(lagging))) is not None:
        cuts.append(cut)
    return cuts


def a_merge(*, is_bounded=True, partitions=((0, 0), (1, 0), (1, 1)), barrier_ms=None, span_ms=None):
    merge = TimeOrderedMerge(ROLES, is_bounded=is_bounded, barrier_ms=barrier_ms, span_ms=span_ms)
    for place in partitions:
        merge.add_partition(*place, 0)
    return merge


def stamps(cuts):
    return [(e.stamp, e.topic_index, e.partition, e.offset) for cut in cuts for e in cut.entries]


@st.composite
def logs(draw):
    """Three partitions with rising times, punctuated, ended."""
    result = {}
    for place in ((0, 0), (1, 0), (1, 1)):
        times = sorted(draw(st.lists(st.integers(0, 300), max_size=12)))
        records = [Offered(time, 2 * at, None) for at, time in enumerate(times)]  # every other offset is a hole
        result[place] = [*records, Offered(END, 2 * len(times), None, True, True)]
    return result


@given(logs(), st.data())
def test_bounded_cuts_do_not_depend_on_arrival(log, data):
    whole = a_merge()
    for place, records in log.items():
        whole.offer(*place, records)
    expected = drain(whole, 4)

    merge, cuts = a_merge(), []
    rest = {place: list(records) for place, records in log.items()}
    while any(rest.values()):
        place = data.draw(st.sampled_from([place for place, records in rest.items() if records]))
        count = data.draw(st.integers(1, len(rest[place])))
        merge.offer(*place, rest[place][:count])
        rest[place] = rest[place][count:]
        cuts += drain(merge, 4)

    assert [cut.entries for cut in cuts] == [cut.entries for cut in expected]
    everything = sorted(stamps(cuts))
    assert stamps(cuts) == everything and len(everything) == sum(map(len, log.values()))
    assert all(len(cut.entries) == 4 for cut in cuts[:-1])
    assert merge.out_of_order == 0
    for place in log:
        spans = [cut.spans[place] for cut in cuts if place in cut.spans]
        assert [span.start for span in spans] == [0, *[span.next for span in spans]][: len(spans)]


def test_a_record_waits_for_every_partition_of_a_bounded_replay():
    merge = a_merge()
    merge.offer(1, 0, [Offered(5, 0, "a")] * 1)
    merge.offer(0, 0, [Offered(9, 0, "b")])
    assert merge.take(1, limit=None, lagging=set()) is None
    assert merge.blocking(set()) == (1, 1)
    merge.offer(1, 1, [Offered(5, 0, "p", True)])
    assert merge.take(1, limit=None, lagging=set()) is None  # [1,0] may still bring another record of time 5
    merge.offer(1, 0, [Offered(6, 1, "p", True)])
    cut = merge.take(1, limit=None, lagging=set())
    assert cut is not None and cut.entries[0].payload == "a"


def test_context_comes_before_an_event_of_the_same_time_and_punctuation_last():
    merge = a_merge()
    merge.offer(1, 0, [Offered(5, 0, "event"), Offered(5, 1, "punctuation", True, True)])
    merge.offer(0, 0, [Offered(5, 0, "context"), Offered(5, 1, "punctuation", True, True)])
    merge.offer(1, 1, [Offered(5, 0, "punctuation", True, True)])
    [cut] = drain(merge, 10)
    assert [e.payload for e in cut.entries] == ["context", "event", *["punctuation"] * 3]


def test_live_waits_only_for_partitions_that_lag():
    merge = a_merge(is_bounded=False)
    merge.offer(1, 0, [Offered(5, 0, None)])
    assert merge.take(10, limit=None, lagging={(0, 0)}) is None
    cut = merge.take(10, limit=None, lagging=set())
    assert cut is not None and cut.spans == {(1, 0): (0, 1, 5, False)}


def test_records_behind_the_limit_of_the_group_stay():
    merge = a_merge(is_bounded=False)
    merge.offer(1, 0, [Offered(time, time, None) for time in (5, 6, 7)])
    assert [e.stamp for e in merge.take(10, limit=6, lagging=set()).entries] == [5, 6]
    assert merge.take(10, limit=6, lagging=set()) is None and merge.next_time() == 7


def test_late_record_keeps_its_place_in_the_partition_and_is_counted():
    merge = a_merge(is_bounded=False)
    merge.offer(1, 0, [Offered(5, 0, None, True), Offered(3, 1, None), Offered(9, 2, None)])
    cut = merge.take(10, limit=None, lagging=set())
    assert [e.offset for e in cut.entries] == [0, 1, 2] and merge.out_of_order == 1
    assert cut.spans[1, 0].watermark == 9


def test_record_behind_what_another_partition_released_is_counted():
    merge = a_merge(is_bounded=False)
    merge.offer(1, 0, [Offered(9, 0, None)])
    merge.take(10, limit=None, lagging=set())
    merge.offer(1, 1, [Offered(4, 0, None)])
    merge.take(10, limit=None, lagging=set())
    assert merge.out_of_order == 1


def test_partition_that_wakes_up_is_merged_with_what_was_not_cut_yet():
    merge = a_merge(is_bounded=False)
    merge.offer(1, 0, [Offered(time, time, None) for time in range(10)])
    assert stamps([merge.take(2, limit=None, lagging=set())])[-1][0] == 1
    merge.offer(1, 1, [Offered(4, 0, None)])
    assert [stamp for stamp, *_ in stamps(drain(merge, 20))] == [2, 3, 4, 4, 5, 6, 7, 8, 9]
    assert merge.out_of_order == 0


def test_partition_with_records_that_wait_for_others_is_said_to_be_waiting():
    merge = a_merge(is_bounded=False)
    merge.offer(1, 0, [Offered(5, 0, None)])
    merge.take(1, limit=None, lagging={(0, 0)})
    assert merge.is_waiting((1, 0)) and not merge.is_waiting((0, 0))


TICK = 50


@st.composite
def held_logs(draw):
    """Three partitions by slice (T - TICK, T], each punctuated at T, and after it only the next slice; then ended."""
    slices, last_offset = [], dict.fromkeys(((0, 0), (1, 0), (1, 1)), -1)
    for end in range(TICK, 4 * TICK, TICK):
        one = {}
        for place in last_offset:
            times = sorted(draw(st.lists(st.integers(end - TICK + 1, end), max_size=9)))
            first = last_offset[place] + 1
            one[place] = [Offered(time, first + at, None) for at, time in enumerate(times)]
            one[place].append(Offered(end, first + len(times), None, True, end == 3 * TICK))
            last_offset[place] = first + len(times)
        slices.append(one)
    return slices


@given(held_logs(), st.sampled_from([None, 7, 60]), st.data())
def test_slices_leave_whole_while_the_producer_holds_and_are_cut_as_if_it_never_did(slices, span_ms, data):
    free, expected = a_merge(barrier_ms=TICK, span_ms=span_ms), []
    for place in slices[0]:
        free.offer(*place, [record for one in slices for record in one[place]])
    expected = drain(free, 4)

    held, cuts = a_merge(barrier_ms=TICK, span_ms=span_ms), []
    for number, one in enumerate(slices, 1):
        rest = {place: list(records) for place, records in one.items()}
        while any(rest.values()):
            place = data.draw(st.sampled_from([place for place, records in rest.items() if records]))
            count = data.draw(st.integers(1, len(rest[place])))
            held.offer(*place, rest[place][:count])
            rest[place] = rest[place][count:]
            cuts += drain(held, 4)
        assert held.buffered_total() == 0  # everything up to the barrier has left: its answer can come
        assert {-(-entry.time // TICK) for entry in cuts[-1].entries} == {number}

    assert [cut.entries for cut in cuts] == [cut.entries for cut in expected]
    assert all(len({-(-entry.time // TICK) for entry in cut.entries}) == 1 for cut in cuts)


def test_record_at_the_barrier_belongs_to_the_slice_that_ends_there():
    merge = a_merge(partitions=((1, 0),), barrier_ms=TICK)
    merge.offer(1, 0, [Offered(TICK - 1, 0, "a"), Offered(TICK, 1, "b"), Offered(TICK + 1, 2, "c")])
    [cut] = drain(merge, 10)
    assert [entry.payload for entry in cut.entries] == ["a", "b"]
