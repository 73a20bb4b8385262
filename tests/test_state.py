"""The bytes of an entity: merging is order-free, late panes are dropped, the digest sees content only."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.core.records import LatestDelta, PaneDelta
from tidemill.core.state import PANES, digest, merge_latest, merge_pane, slot_count

SLOTS, CELLS = 3, 2
WORDS = 1 + CELLS

pane_deltas = st.builds(
    lambda pane, count, total: PaneDelta("k", (pane % SLOTS) * WORDS, pane + 1, (count, total)),
    st.integers(0, 11),
    st.integers(1, 3),
    st.integers(-(2**40), 2**40),
)
maxima = st.builds(
    lambda pane, largest: PaneDelta("k", (pane % SLOTS) * 2, pane + 1, (largest,), True),
    st.integers(0, 11),
    st.integers(-(2**36), 2**36),
)
newest = st.builds(lambda word, tag: PaneDelta("k", word, tag, ()), st.integers(0, 3), st.integers(1, 2**48))
latest_deltas = st.builds(
    lambda time, partition, offset: LatestDelta("k", 3, struct.pack(">4qd", time, 1, partition, offset, time / 2)),
    st.integers(0, 5),
    st.integers(0, 1),
    st.integers(0, 2),
)


def merged(deltas: Sequence[PaneDelta], state: bytes = b"") -> bytes:
    for delta in deltas:
        state = merge_pane(state, delta)
    return state


def inserted(deltas: Sequence[LatestDelta]) -> bytes:
    state = b""
    for delta in deltas:
        state = merge_latest(state, delta)
    return state


def slots_of(state: bytes) -> dict[int, tuple[int, ...]]:
    words = struct.unpack(f">{len(state) // 8}q", state)
    return {at: words[at : at + WORDS] for at in range(0, len(words), WORDS) if words[at]}


@given(st.one_of(*(st.lists(one, max_size=20) for one in (pane_deltas, maxima, newest))), st.randoms())
def test_pane_deltas_merge_to_the_same_bytes_in_any_order(deltas, random):
    shuffled = list(deltas)
    random.shuffle(shuffled)
    assert merged(shuffled) == merged(deltas)


@given(st.lists(pane_deltas, max_size=20))
def test_slot_holds_the_sum_of_its_newest_pane_alone(deltas):
    expected = {}
    for word in {delta.word for delta in deltas}:
        tag = max(delta.tag for delta in deltas if delta.word == word)
        kept = [delta.cells for delta in deltas if (delta.word, delta.tag) == (word, tag)]
        expected[word] = (tag, *map(sum, zip(*kept, strict=True)))
    assert slots_of(merged(deltas)) == expected


@given(st.lists(maxima, min_size=1, max_size=20))
def test_slot_holds_the_maximum_of_its_newest_pane_and_takes_it_twice_without_harm(deltas):
    expected = {}
    for word in {delta.word for delta in deltas}:
        tag = max(delta.tag for delta in deltas if delta.word == word)
        expected[word] = (tag, max(delta.cells[0] for delta in deltas if (delta.word, delta.tag) == (word, tag)))
    for state in (merged(deltas), merged(deltas, merged(deltas))):
        words = struct.unpack(f">{len(state) // 8}q", state)
        assert {at: words[at : at + 2] for at in range(0, len(words), 2) if words[at]} == expected


@given(st.lists(pane_deltas, max_size=10), st.lists(pane_deltas, max_size=10))
def test_deltas_of_one_slot_may_be_added_up_before_they_are_merged(first, second):
    totals: dict[tuple[int, int], tuple[int, ...]] = {}
    for delta in second:
        known = totals.get((delta.word, delta.tag), (0, 0))
        totals[delta.word, delta.tag] = (known[0] + delta.cells[0], known[1] + delta.cells[1])
    together = [PaneDelta("k", word, tag, cells) for (word, tag), cells in totals.items()]
    assert merged(together, merged(first)) == merged(second, merged(first))


def test_late_pane_is_dropped_before_and_after_the_one_that_replaced_it():
    old, new = PaneDelta("k", 0, 1, (1, 5)), PaneDelta("k", 0, 1 + SLOTS, (2, 7))
    assert merged([old, new]) == merged([new, old]) == struct.pack(">3q", 1 + SLOTS, 2, 7)


def test_bytes_beyond_the_end_read_as_zeros():
    delta = PaneDelta("k", 3, 1, (1, 5))
    assert merge_pane(b"", delta) == struct.pack(">6q", 0, 0, 0, 1, 1, 5)
    short = struct.pack(">5q", 0, 0, 0, 1, 2)
    assert merge_pane(short, delta) == struct.pack(">6q", 0, 0, 0, 1, 3, 5)


@given(st.lists(latest_deltas, max_size=12), st.randoms(use_true_random=False))
def test_latest_entries_are_the_newest_whatever_the_order(deltas, random):
    shuffled = list(deltas)
    random.shuffle(shuffled)
    newest = sorted({delta.entry for delta in deltas}, key=lambda entry: struct.unpack_from(">4q", entry), reverse=True)
    assert inserted(shuffled) == inserted(deltas) == b"".join(newest[:3])


@pytest.mark.parametrize(("max_skew_ms", "slots"), [(0, 13), (1, 14), (10, 14), (11, 15)])
def test_ring_outlasts_a_worker_that_is_ahead_by_the_skew(max_skew_ms, slots):
    assert slot_count(10, max_skew_ms) == slots
    oldest_read = 100 - PANES + 1
    pane_ahead = (100 * 10 + 9 + max_skew_ms) // 10  # of a worker ahead by the skew, at the end of pane 100
    assert pane_ahead - oldest_read < slots


def test_digest_ignores_order_and_padding_and_empty_entities():
    plain = digest([("a", b"\1" * 8), ("b", b"\2" * 8)])
    assert digest([("b", b"\2" * 8 + b"\0" * 24), ("c", b"\0" * 8), ("a", b"\1" * 8)]) == plain
    assert len(bytes.fromhex(plain)) == 16


def test_digest_tells_where_keys_and_values_end():
    word = b"\1" * 8
    contents = [
        [("a", word)],
        [("b", word)],
        [("a", b"\0" * 8 + word)],
        [("a", word), ("b", word)],
        [("a" * 9, word)],
        [],
    ]
    assert len({digest(content) for content in contents}) == len(contents)
    assert digest([("a", b"\1" + b"\0" * 7)]) != digest([("a", b"\1" + b"\0" * 6 + b"\1")])
