"""What an event sees: against brute force over all earlier records, however the stream is cut into batches."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.builders import (
    Record,
    a_batch,
    a_category,
    a_count,
    a_field,
    a_group,
    a_latest,
    a_mean,
    a_spec,
)
from tests.feature_replay import Replay, brute_force, numeric_of
from tidemill.core.entities import MISSING_ENTITY
from tidemill.core.features import EventRows, FeaturePlan
from tidemill.core.records import Float32s
from tidemill.core.state import digest
from tidemill.errors import ConfigError, InvariantError

PANE_FEATURES = (
    a_group(
        "overall",
        [],
        a_mean("late", "outcomes", "label", 12, prior=0.2, prior_weight=1),
        a_count("asked", "events", 24),
    ),
    a_group(
        "by_shop",
        ["shop"],
        a_mean("shop_late", "outcomes", "label", 48, prior=0.1, prior_weight=0.5),
        a_mean("shop_outcome", "outcomes", "outcome", 120),
        a_mean("shop_reading", "readings", "reading", 36, unit=0.25, prior=1.5, prior_weight=2),
        a_mean("shop_reading_plain", "readings", "reading", 36, unit=0.25),
        a_count("shop_readings", "readings", 36),
    ),
    a_group("by_pair", ["shop", "user"], a_count("pair_asked", "events", 60), a_count("pair_late", "outcomes", 60)),
)
LATEST_FEATURES = (
    a_group(
        "now",
        ["shop"],
        a_latest("last_amount", "events", "amount"),
        a_latest("last_outcome", "outcomes", "outcome"),
        a_latest("reading", "readings", "reading"),
    ),
    a_group("plain", [], a_field("amount", "amount"), a_category("user_code", "user"), a_category("shop_code", "shop")),
)
SPEC = a_spec(*PANE_FEATURES, *LATEST_FEATURES)
SKEW_MS = 40
SKEWED = a_spec(*PANE_FEATURES, max_skew_ms=SKEW_MS)


def assert_same_bits(actual: Float32s, expected: Float32s) -> None:
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    np.testing.assert_array_equal(np.isnan(actual), np.isnan(expected))
    is_number = ~np.isnan(actual)
    np.testing.assert_array_equal(actual.view(np.int32)[is_number], expected.view(np.int32)[is_number])


shops = st.sampled_from(["a", "b", None])
steps = st.sampled_from([0, 0, 1, 1, 2, 3, 7, 40])
readings = st.none() | st.integers(-40, 40).map(lambda eighths: eighths / 8)
kinds = st.sampled_from(["readings", "outcomes", "events", "events"])


@st.composite
def streams(draw: st.DrawFn, most: int = 30) -> list[Record]:
    """A stream in the order of time; labels judge events before or after them, each event once at most."""
    time, records, event_count, judged = draw(st.integers(0, 300)), [], 0, set()
    for kind in draw(st.lists(kinds, max_size=most)):
        time += draw(steps)
        if kind == "events":
            amount = draw(st.none() | st.floats(-5, 5, width=32))
            fields = {"id": str(event_count), "shop": draw(shops), "user": draw(st.integers(1, 2)), "amount": amount}
            event_count += 1
        elif kind == "readings":
            fields = {"shop": draw(shops), "reading": draw(readings)}
        else:
            id_ = str(draw(st.integers(max(0, event_count - 4), event_count + 2)))
            if id_ in judged:
                continue
            judged.add(id_)
            fields = {"id": id_, "outcome": draw(st.none() | st.integers(-3, 3))}
        records.append((kind, time, fields))
    return records


def cuts(data: st.DataObject, records: Sequence[Record]) -> list[Sequence[Record]]:
    places = sorted(data.draw(st.sets(st.integers(1, max(1, len(records) - 1)), max_size=6)))
    return [records[a:b] for a, b in zip([0, *places], [*places, len(records)], strict=True)]


@settings(max_examples=150, deadline=None)
@given(streams(), st.data())
def test_features_equal_brute_force_however_the_stream_is_cut(records, data):
    replay, whole = Replay(SPEC), Replay(SPEC)
    for part in cuts(data, records):
        replay.batch(part)
    whole.batch(records)

    assert_same_bits(replay.matrix, brute_force(SPEC, records))
    assert_same_bits(whole.matrix, replay.matrix)
    assert whole.categories == replay.categories
    assert digest(whole.state.items()) == digest(replay.state.items())


@settings(max_examples=60, deadline=None)
@given(streams(), st.data())
def test_disorder_within_the_skew_changes_nothing_but_what_was_seen(records, data):
    records = [(kind, time + data.draw(st.integers(0, SKEW_MS)), fields) for kind, time, fields in records]
    replay = Replay(SKEWED)
    for part in cuts(data, records):
        replay.batch(part)
    assert_same_bits(replay.matrix, brute_force(SKEWED, records))


@settings(max_examples=60, deadline=None)
@given(streams(), st.data())
def test_disorder_of_any_size_within_a_batch_equals_brute_force(records, data):
    shuffled = [(kind, data.draw(st.integers(0, 500)), fields) for kind, _, fields in records]
    replay = Replay(SPEC)
    replay.batch(shuffled)
    assert_same_bits(replay.matrix, brute_force(SPEC, shuffled))


def test_event_does_not_count_itself_nor_what_follows():
    spec = a_spec(a_group("g", ["shop"], a_count("asked", "events", 12_000)))
    replay = Replay(spec)
    replay.batch([("events", 5, {"id": "1", "shop": "a"}), ("events", 5, {"id": "2", "shop": "a"})])
    replay.batch([("events", 5, {"id": "3", "shop": "a"})])
    assert replay.matrix[:, 0].tolist() == [0, 1, 2]


def test_window_is_the_pane_of_the_event_and_the_eleven_before():
    spec = a_spec(a_group("g", [], a_count("n", "readings", 120)))
    replay = Replay(spec)
    replay.batch([("readings", 9, {}), ("readings", 10, {}), *(("events", t, {"id": str(t)}) for t in (119, 120, 130))])
    assert replay.matrix[:, 0].tolist() == [2, 1, 0]


def test_pane_after_the_event_is_not_seen_in_batch_or_state():
    replay = Replay(a_spec(a_group("g", [], a_count("n", "readings", 120)), max_skew_ms=50))
    replay.batch([("readings", 30, {})])
    replay.batch([("readings", 40, {}), ("events", 29, {"id": "1"}), ("events", 30, {"id": "2"})])
    assert replay.matrix[:, 0].tolist() == [0, 1]


def test_latest_value_is_the_one_of_the_events_time_among_records_out_of_order():
    spec = a_spec(a_group("g", ["shop"], a_latest("l", "readings", "reading")))
    feed = [("readings", time, {"shop": "a", "reading": float(time)}) for time in (50, 10, 30)]
    asked = [("events", time, {"id": str(time), "shop": "a"}) for time in (5, 20, 30, 40, 50, 60)]
    expected = [math.nan, 10, 30, 30, 50, 50]
    for parts in ([feed + asked], [feed, asked], [feed[:2], feed[2:] + asked]):
        replay = Replay(spec)
        for part in parts:
            replay.batch(part)
        np.testing.assert_array_equal(replay.matrix[:, 0], expected)


def test_label_waiting_for_its_event_is_not_seen_by_it_but_by_the_next():
    spec = a_spec(a_group("g", ["shop"], a_mean("late", "outcomes", "label", 1200, prior=0.5, prior_weight=1)))
    replay = Replay(spec)
    replay.batch([("outcomes", 1, {"id": "x", "outcome": 1}), ("events", 2, {"id": "x", "shop": "a"})])
    replay.batch([("events", 3, {"id": "y", "shop": "a"}), ("events", 3, {"id": "z", "shop": "b"})])
    assert replay.matrix[:, 0].tolist() == [0.5, 0.75, 0.5]


def test_null_value_counts_for_nothing_in_a_mean_and_is_the_latest_value():
    spec = a_spec(a_group("g", ["shop"], a_mean("m", "readings", "reading", 12), a_latest("l", "readings", "reading")))
    replay = Replay(spec)
    for value in (3.0, None, math.nan, math.inf):
        replay.batch([("readings", 1, {"shop": "a", "reading": value}), ("events", 1, {"id": "1", "shop": "a"})])
    assert replay.matrix[:, 0].tolist() == [3, 3, 3, 3]
    np.testing.assert_array_equal(replay.matrix[:, 1], [3, math.nan, math.nan, math.inf])


def test_null_in_the_entity_feeds_nothing_and_reads_as_empty():
    groups = (a_group("g", ["shop", "user"], a_count("n", "events", 12), a_latest("l", "events", "amount")),)
    replay = Replay(
        a_spec(*groups, a_group("h", ["shop"], a_mean("m", "outcomes", "label", 12, prior=7, prior_weight=1)))
    )
    _, panes, latest = replay.batch(
        [
            ("events", 1, {"id": "1", "shop": None, "user": 1, "amount": 1.0}),
            ("outcomes", 1, {"id": "1", "outcome": 1}),
            ("events", 1, {"id": "2", "shop": None, "user": 1, "amount": 1.0}),
        ]
    )
    assert panes == () and latest == ()
    np.testing.assert_array_equal(replay.matrix, [[0, math.nan, 7]] * 2)
    batch = a_batch(replay.spec, [("events", 1, {"id": "1", "shop": None}), ("events", 1, {"id": "2", "shop": "s"})])
    found = batch.records["events"]
    rows = EventRows(found.row_index, batch.time, found.columns)
    assert replay.plan.entities(rows) == [(MISSING_ENTITY,), ("s",)]
    assert replay.plan.state_keys(batch) == ("h:v1:s",)


def test_event_without_entity_sees_no_record_out_of_order_of_an_entity_nobody_asks_for():
    groups = (a_group("g", ["shop"], a_count("n", "readings", 12), a_latest("l", "readings", "reading")),)
    replay = Replay(a_spec(*groups))
    feed = [("readings", time, {"shop": "a", "reading": 1.0}) for time in (1, 0)]
    replay.batch([*feed, ("events", 1, {"id": "1", "shop": None})])
    np.testing.assert_array_equal(replay.matrix, [[0, math.nan]])


def test_mean_of_nothing_without_a_prior_is_missing():
    replay = Replay(a_spec(a_group("g", [], a_mean("m", "readings", "reading", 12))))
    replay.batch([("events", 1, {"id": "1"})])
    assert math.isnan(replay.matrix[0, 0])


def test_deltas_are_merged_per_slot_and_sorted():
    replay = Replay(SPEC)
    feed = [("readings", time, {"shop": shop, "reading": 0.5}) for time in (0, 1, 2, 30, 31) for shop in "ba"]
    _, panes, latest = replay.batch(feed)
    # Times 0 to 2 are one pane of 3 ms: of each shop 3 readings of 2 quarters.
    assert [delta.key for delta in panes if delta.cells == (3, 6)] == ["by_shop:v1:a", "by_shop:v1:b"]
    assert [delta.key for delta in latest] == ["now.latest.0:v1:a"] * 5 + ["now.latest.0:v1:b"] * 5
    assert struct.unpack_from(">4qd", latest[0].entry) == (0, 0, 0, 1, 0.5)


def test_only_as_many_latest_entries_leave_a_batch_as_the_store_keeps():
    replay = Replay(a_spec(a_group("g", ["shop"], a_latest("l", "readings", "reading"))))
    _, _, latest = replay.batch([("readings", time, {"shop": "a", "reading": 1.0}) for time in range(50)])
    assert [struct.unpack_from(">q", delta.entry)[0] for delta in latest] == list(range(42, 50))


def test_time_before_1970_or_after_9999_feeds_nothing():
    replay = Replay(a_spec(a_group("g", [], a_count("n", "readings", 12), a_latest("l", "readings", "reading"))))
    _, panes, latest = replay.batch([("readings", -1, {"reading": 1.0}), ("readings", 2**62, {"reading": 1.0})])
    assert panes == () and latest == ()
    replay.batch([("events", time, {"id": str(time)}) for time in (-(2**63), 5, 2**63 - 1)])
    assert replay.matrix[:, 0].tolist() == [0, 0, 0]


def test_values_too_large_for_exact_sums_are_left_out():
    replay = Replay(a_spec(a_group("g", [], a_mean("m", "readings", "reading", 12))))
    replay.batch([("readings", 1, {"reading": 1e300}), ("readings", 1, {"reading": 2.0}), ("events", 1, {"id": "1"})])
    assert replay.matrix[0, 0] == 2


def test_features_with_one_topic_window_and_value_share_their_panes():
    shared = [a_mean(f"m{prior}", "readings", "reading", 12, prior=prior, prior_weight=1) for prior in (0, 4)]
    replay = Replay(a_spec(a_group("g", [], *shared)))
    _, panes, _ = replay.batch([("readings", 1, {"reading": 2.0})])
    assert len(panes) == 1
    replay.batch([("events", 1, {"id": "1"})])
    assert replay.matrix.tolist() == [[1, 3]]


@pytest.mark.parametrize("window_ms", [0, 13, -12])
def test_window_that_cannot_be_cut_is_refused(window_ms):
    with pytest.raises(ConfigError, match="TM-1052"):
        FeaturePlan(a_spec(a_group("g", [], a_count("n", "readings", window_ms))))


def test_state_longer_than_declared_is_refused():
    plan = FeaturePlan(a_spec(a_group("g", [], a_count("n", "readings", 12))))
    with pytest.raises(ConfigError, match="TM-1054"):
        plan_one_event(plan, [b"\0" * 8 * 27])


def test_state_that_was_not_read_is_a_bug():
    plan = FeaturePlan(a_spec(a_group("g", [], a_count("n", "readings", 12))))
    with pytest.raises(InvariantError, match="g:v1:"):
        plan_one_event(plan, [])


def plan_one_event(plan: FeaturePlan, state: list[bytes]) -> None:
    replay = Replay(SPEC)
    batch = a_batch(SPEC, [("events", 1, {"id": "1"})])
    rows = EventRows(np.array([0]), batch.time, batch.records["events"].columns)
    plan.compute(batch=batch, events=rows, joined=replay.join([], {}), keys=("g:v1:",)[: len(state)], state=state)


def test_digest_changes_with_names_order_version_and_definition():
    one, two = a_count("n", "readings", 12), a_field("f", "amount")
    variants = [
        a_group("g", [], one, two),
        a_group("g", [], two, one),
        a_group("g", [], one, two, version=2),
        a_group("g", [], replace(one, name="m"), two),
        a_group("g", [], replace(one, window_ms=24), two),
        a_group("g", ["shop"], one, two),
    ]
    digests = [FeaturePlan(a_spec(group)).digest for group in variants]
    assert len(set(digests)) == len(variants)
    assert digests[0] == FeaturePlan(a_spec(variants[0])).digest


def test_names_and_columns_follow_the_declaration():
    plan = FeaturePlan(SPEC)
    assert plan.numeric_names == tuple(one.name for _, one in numeric_of(SPEC))
    assert plan.category_names == ("user_code", "shop_code")
    assert [group.name for group in plan.label_groups] == ["overall", "by_shop", "by_pair", "now"]
    replay = Replay(SPEC)
    replay.batch([("events", 1, {"id": "1", "shop": None, "user": 7}), ("events", 1, {"id": "2", "shop": "s"})])
    assert replay.categories == [("7", ""), ("", "s")]
