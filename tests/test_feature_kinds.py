"""Every kind of feature against brute force in pandas, however the stream is cut, shuffled or merged."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.builders import Record, a_group, a_spec
from tests.feature_kinds import expected_matrix
from tests.feature_replay import Replay
from tidemill.core.calendar import is_known_zone
from tidemill.core.decay import WEIGHTS
from tidemill.core.distinct import ESTIMATES, bucket_of
from tidemill.core.feature_plan import plan_groups
from tidemill.core.records import Float32s
from tidemill.core.spec import AppSpec, FeatureSpec
from tidemill.core.state import digest, merge_pane
from tidemill.errors import ConfigError

CONTEXT = {"shop": "string", "reading": "double", "due": "long", "name": "string"}
LABEL = {"id": "string", "outcome": "int", "due": "long"}
EVENT = {"id": "string", "shop": "string", "user": "long", "amount": "double", "due": "long"}
SKEW_MS, AHEAD_MS = 40, 60


def a_feature(name: str, kind: str, **more: object) -> FeatureSpec:
    return FeatureSpec(name=name, kind=kind, **more)  # type: ignore[arg-type]


KINDS: dict[str, tuple[FeatureSpec, ...]] = {
    "sum": (
        a_feature("s", "sum", of="readings", value="reading", unit=0.25, window_ms=48),
        a_feature("s_mean", "mean", of="readings", value="reading", unit=0.25, window_ms=48),
        a_feature("s_label", "sum", of="outcomes", value="label", window_ms=120),
    ),
    "rate": (
        a_feature("r", "rate", of="readings", window_ms=36),
        a_feature("r_event", "rate", of="events", window_ms=120),
        a_feature("r_count", "count", of="events", window_ms=120),
    ),
    "decayed_count": (
        a_feature("dc", "decayed_count", of="readings", half_life_ms=10),
        a_feature("dc_event", "decayed_count", of="events", half_life_ms=2),
        a_feature("dc_shared", "count", of="readings", window_ms=60),
    ),
    "decayed_mean": (
        a_feature("dm", "decayed_mean", of="readings", value="reading", unit=2.0**-30, half_life_ms=20),
        a_feature(
            "dm_label", "decayed_mean", of="outcomes", value="label", half_life_ms=30, prior=0.25, prior_weight=2.0
        ),
    ),
    "min": (
        a_feature("lo", "min", of="readings", value="reading", unit=0.5, window_ms=48),
        a_feature("lo_event", "min", of="events", value="amount", unit=0.125, window_ms=24),
    ),
    "max": (
        a_feature("hi", "max", of="readings", value="reading", unit=0.5, window_ms=48),
        a_feature("hi_again", "max", of="readings", value="reading", unit=0.5, window_ms=48),
        a_feature("hi_outcome", "max", of="outcomes", value="outcome", window_ms=240),
    ),
    "distinct": (
        a_feature("names", "distinct", of="readings", field="name", window_ms=24),
        a_feature("names_long", "distinct", of="readings", field="name", window_ms=240),
        a_feature("users", "distinct", of="events", field="user", window_ms=60),
        a_feature("outcomes", "distinct", of="outcomes", field="outcome", window_ms=60),
    ),
    "latest": (
        a_feature("l0", "latest", of="readings", field="reading"),
        a_feature("l1", "latest", of="readings", field="reading", back=1),
        a_feature("l7", "latest", of="readings", field="reading", back=7),
        a_feature("l2_due", "latest", of="readings", field="due", back=2),
        a_feature("l1_outcome", "latest", of="outcomes", field="outcome", back=1),
    ),
    "time_since_last": (
        a_feature("t", "time_since_last", of="readings"),
        a_feature("t_event", "time_since_last", of="events"),
        a_feature("t_beside", "latest", of="events", field="amount", back=1),
    ),
    "open": (
        a_feature("o", "open", of="events", closed_by="outcomes", window_ms=120),
        a_feature("o_due", "open", of="events", closed_by="outcomes", due="due", window_ms=120, ahead_ms=AHEAD_MS),
        a_feature(
            "o_both",
            "open",
            of="readings",
            closed_by="outcomes",
            due="due",
            closed_due="due",
            window_ms=60,
            ahead_ms=AHEAD_MS,
        ),
        a_feature("o_count", "count", of="outcomes", window_ms=120),
    ),
}


OF_PANES = [kind for kind in KINDS if kind not in ("latest", "time_since_last")]  # and of buckets


def a_kind(kind: str, max_skew_ms: int = 0) -> AppSpec:
    """The features of one kind in a group of all, of a shop and of a shop's user; names end with the group."""
    groups = [
        a_group(
            name,
            entity,
            *(
                FeatureSpec(**{at: getattr(one, at) for at in one.__slots__} | {"name": f"{one.name}_{name}"})
                for one in KINDS[kind]
                if "user" not in entity or {one.of, one.closed_by} <= {"events", "outcomes", None}
            ),
        )
        for name, entity in (("all", []), ("shop", ["shop"]), ("pair", ["shop", "user"]))
    ]
    used = [group for group in groups if group.features]
    return a_spec(*used, context=CONTEXT, label=LABEL, event=EVENT, max_skew_ms=max_skew_ms)


def assert_same(actual: Float32s, expected: Float32s) -> None:
    assert actual.shape == expected.shape
    np.testing.assert_array_equal(
        actual.view(np.int32) * ~np.isnan(actual), expected.view(np.int32) * ~np.isnan(expected)
    )
    np.testing.assert_array_equal(np.isnan(actual), np.isnan(expected))


shops = st.sampled_from(["a", "a", "b", None])
readings = st.none() | st.sampled_from([1e300, math.nan]) | st.integers(-40, 40).map(lambda eighths: eighths / 8)
outcomes = st.none() | st.integers(-3, 3)


@st.composite
def streams(draw: st.DrawFn, most: int = 30) -> list[Record]:
    """In the order of time; labels judge events before or after them, once at most; due times lie on all sides."""
    time, records, event_count, judged = draw(st.integers(0, 300)), [], 0, set()
    for kind in draw(st.lists(st.sampled_from(["readings", "outcomes", "events", "events"]), max_size=most)):
        time += draw(st.sampled_from([0, 0, 1, 1, 2, 3, 7, 40]))
        fields: dict[str, object] = {
            "due": draw(st.none() | st.integers(-30, AHEAD_MS + 20).map(lambda d, t=time: t + d))
        }
        if kind == "events":
            fields |= {"id": str(event_count), "shop": draw(shops), "user": draw(st.integers(1, 2))}
            fields["amount"] = draw(st.none() | st.floats(-5, 5, width=32))
            event_count += 1
        elif kind == "readings":
            fields |= {
                "shop": draw(shops),
                "reading": draw(readings),
                "name": draw(st.none() | st.text("xyzü", max_size=2)),
            }
        else:
            id_ = str(draw(st.integers(max(0, event_count - 4), event_count + 2)))
            if id_ in judged:
                continue
            judged.add(id_)
            fields |= {"id": id_, "outcome": draw(outcomes)}
        records.append((kind, time, fields))
    return records


def cuts(data: st.DataObject, records: Sequence[Record]) -> list[Sequence[Record]]:
    places = sorted(data.draw(st.sets(st.integers(1, max(1, len(records) - 1)), max_size=5)))
    return [records[a:b] for a, b in zip([0, *places], [*places, len(records)], strict=True)]


def replayed(spec: AppSpec, parts: Sequence[Sequence[Record]]) -> Replay:
    replay = Replay(spec)
    for part in parts:
        replay.batch(part)
    return replay


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20, deadline=None)
@given(streams(), st.data())
def test_kind_equals_brute_force_however_the_stream_is_cut(kind, records, data):
    spec = a_kind(kind)
    cut, whole = replayed(spec, cuts(data, records)), replayed(spec, [records])
    assert_same(cut.matrix, expected_matrix(spec, records))
    assert_same(whole.matrix, cut.matrix)
    assert digest(whole.state.items()) == digest(cut.state.items())


@pytest.mark.parametrize("kind", OF_PANES)
@settings(max_examples=12, deadline=None)
@given(streams(), st.data())
def test_late_and_future_records_within_the_skew_change_only_what_was_seen(kind, records, data):
    spec = a_kind(kind, SKEW_MS)
    records = [(topic, time + data.draw(st.integers(0, SKEW_MS)), fields) for topic, time, fields in records]
    assert_same(replayed(spec, cuts(data, records)).matrix, expected_matrix(spec, records))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12, deadline=None)
@given(streams(), st.data())
def test_any_disorder_within_a_batch_equals_brute_force(kind, records, data):
    spec = a_kind(kind, 1_000)
    shuffled = [(topic, data.draw(st.integers(0, 500)), fields) for topic, _, fields in records]
    assert_same(replayed(spec, [shuffled]).matrix, expected_matrix(spec, shuffled))


@pytest.mark.parametrize("kind", OF_PANES)
@settings(max_examples=12, deadline=None)
@given(streams(), st.data(), st.randoms(use_true_random=False))
def test_state_is_the_same_in_any_order_and_grouping_of_the_deltas(kind, records, data, random):
    spec = a_kind(kind)
    replay, deltas = Replay(spec), []
    for part in cuts(data, records):
        deltas += replay.batch(part)[1]
    random.shuffle(deltas)
    state: dict[str, bytes] = {}
    for delta in deltas:
        state[delta.key] = merge_pane(state.get(delta.key, b""), delta)
    assert digest(state.items()) == digest(replay.state.items())


@pytest.mark.parametrize("kind", KINDS)
def test_event_sees_what_came_before_it_in_its_batch_and_not_what_came_after(kind):
    spec = a_kind(kind)
    fields = {"shop": "a", "user": 1, "reading": 3.0, "name": "x", "amount": 1.0, "due": 100}
    feed = [
        *(("events", 100, {**fields, "id": id_}) for id_ in ("p", "q")),
        *(("readings", 100, {**fields, "reading": value, "name": str(value)}) for value in (1.5, 2.5) * 4),
        *(("outcomes", 100, {"id": id_, "outcome": 1, "due": 100}) for id_ in ("p", "q")),
    ]
    first, last = ("events", 100, {**fields, "id": "1"}), ("events", 100, {**fields, "id": "2"})
    before = replayed(spec, [[first]]).matrix
    around = replayed(spec, [[first, *feed, last]]).matrix
    np.testing.assert_array_equal(around[0], before[0])
    assert_same(around, expected_matrix(spec, [first, *feed, last]))
    if kind != "open":  # what has opened is closed again
        assert not np.array_equal(around[-1], before[0], equal_nan=True)


def test_open_counts_from_the_due_time_until_closed_and_never_below_zero():
    one = a_feature("o", "open", of="events", closed_by="outcomes", due="due", window_ms=120, ahead_ms=AHEAD_MS)
    spec = a_spec(a_group("g", [], one), context=CONTEXT, label=LABEL, event=EVENT)
    records = [
        ("events", 0, {"id": "a", "due": 30}),
        ("events", 29, {"id": "b", "due": 30 + AHEAD_MS}),  # further ahead than declared: never counts
        ("events", 30, {"id": "c", "due": 30}),
        ("outcomes", 40, {"id": "a", "outcome": 0}),
        ("events", 45, {"id": "d", "due": None}),
        ("outcomes", 45, {"id": "b", "outcome": 0}),
        ("outcomes", 45, {"id": "c", "outcome": 0}),
        ("events", 50, {"id": "e", "due": 50}),
        ("events", 89, {"id": "f", "due": 89}),
    ]
    assert replayed(spec, [records]).matrix[:, 0].tolist() == [0, 0, 1, 1, 0, 0]


def test_what_is_closed_after_it_was_due_closes_at_its_own_time():
    one = a_feature("o", "open", of="events", closed_by="outcomes", due="due", closed_due="due", window_ms=120)
    spec = a_spec(a_group("g", [], one), context=CONTEXT, label=LABEL, event=EVENT)
    records = [
        *(("events", 0, {"id": id_, "due": due}) for id_, due in (("a", 5), ("b", 15), ("c", 25))),
        ("outcomes", 40, {"id": "a", "outcome": 0, "due": 5}),
        ("events", 120, {"id": "d", "due": None}),  # pane 0 with its due time has left the window, pane 4 has not
    ]
    assert replayed(spec, [records]).matrix[-1, 0] == 1
    assert replayed(spec, [records[:4], records[4:]]).matrix[-1, 0] == 1


def test_due_time_ahead_leaves_the_whole_window_in_the_store():
    one = a_feature("o", "open", of="readings", closed_by="outcomes", due="due", window_ms=120, ahead_ms=AHEAD_MS)
    spec = a_spec(a_group("g", [], one), context=CONTEXT, label=LABEL, event=EVENT)
    feed = [("readings", 0, {"due": 0}), *(("readings", 110, {"due": due}) for due in range(120, 111 + AHEAD_MS, 10))]
    assert replayed(spec, [feed, [("events", 115, {"id": "1"})]]).matrix.tolist() == [[1]]


def test_weights_halve_every_two_panes_and_need_no_float():
    assert WEIGHTS.tolist() == [round(2 ** (-age / 2) * 2**20) for age in range(12)]


def test_sums_that_leave_float64_behind_decay_exactly():
    one = a_feature("d", "decayed_mean", of="readings", value="reading", half_life_ms=20)
    spec = a_spec(a_group("g", [], one), context=CONTEXT, event=EVENT)
    values = [float(2**36 - 1 - k) * (-1) ** (k // 5) for k in range(60)]
    records = [*(("readings", 1_000 + 2 * k, {"reading": value}) for k, value in enumerate(values))]
    records += [("events", 1_120, {"id": "1"})]
    assert_same(replayed(spec, [records]).matrix, expected_matrix(spec, records))
    assert_same(replayed(spec, [records[:30], records[30:]]).matrix, expected_matrix(spec, records))


def test_extreme_of_nothing_is_missing_even_at_the_beginning_of_time():
    spec = a_spec(a_group("g", [], a_feature("m", "max", of="readings", value="reading", window_ms=12)))
    replay = replayed(spec, [[("events", 0, {"id": "1"})], [("readings", 0, {"reading": -4.0})]])
    replay.batch([("events", 0, {"id": "2"})])
    np.testing.assert_array_equal(replay.matrix[:, 0], [math.nan, -4])


def test_bucket_keeps_its_newest_time_and_one_beyond_the_skew_is_not_seen():
    one = a_feature("d", "distinct", of="readings", field="name", window_ms=12)
    spec = a_spec(a_group("g", [], one), context=CONTEXT, max_skew_ms=SKEW_MS)
    feed = [("readings", time, {"name": "x"}) for time in (50, 10, 30)]
    asked = [("events", time, {"id": str(time)}) for time in (9, 10, 40, 61, 62)]
    for parts in ([feed + asked], [feed, asked], [feed[:1], feed[1:] + asked], [feed[1:], feed[:1] + asked]):
        found = replayed(spec, parts).matrix[:, 0].tolist()
        assert [round(value) for value in found] == [0, 1, 1, 1, 0]


@pytest.mark.parametrize("count", [1, 20, 100, 256, 600])
def test_distinct_is_near_the_truth(count):
    spec = a_spec(
        a_group("g", [], a_feature("d", "distinct", of="readings", field="name", window_ms=1_200)), context=CONTEXT
    )
    feed = [("readings", 5, {"name": f"value {k % count}"}) for k in range(2 * count)]
    found = replayed(spec, [feed, [("events", 5, {"id": "1"})]]).matrix[0, 0]
    load = count / 256  # standard error of linear counting (Whang et al. 1990): sqrt(m (e^load - load - 1))
    assert abs(found - count) <= 1 + 4 * math.sqrt(256 * (math.exp(load) - load - 1))


def test_buckets_and_estimates_never_change():
    assert [bucket_of(text) for text in ("", "a", "ü", "12")] == [46, 222, 52, 18]
    assert ESTIMATES[256] == 0
    assert ESTIMATES[128] == pytest.approx(256 * math.log(2), rel=1e-15)
    assert ESTIMATES[0] == ESTIMATES[1] == pytest.approx(256 * math.log(256), rel=1e-15)


PARTS = ("hour", "weekday", "day", "month", "minute_of_day")
ZONES = ("UTC", "Europe/Vienna", "Asia/Kolkata", "America/St_Johns")


@given(st.lists(st.integers(-(2**62), 2**62) | st.integers(0, 4_000_000_000_000), max_size=8))
@settings(max_examples=60, deadline=None)
def test_calendar_equals_that_of_the_standard_library(times):
    features = [a_feature(f"{part}{at}", "calendar", part=part, zone=z) for part in PARTS for at, z in enumerate(ZONES)]
    texts = [a_feature(f"{part}_text", "category", part=part, zone=ZONES[1]) for part in PARTS]
    spec = a_spec(a_group("g", [], *features, *texts))
    records = [("events", time, {"id": str(at)}) for at, time in enumerate(times)]
    replay = replayed(spec, [records])
    assert_same(replay.matrix, expected_matrix(spec, records))
    numbers = replay.matrix[:, [at for at, one in enumerate(features) if one.zone == ZONES[1]]]
    assert replay.categories == [tuple("" if math.isnan(n) else str(int(n)) for n in row) for row in numbers]
    assert not is_known_zone("Europe/Atlantis")


def test_entities_with_the_separator_in_a_value_do_not_collide():
    spec = a_spec(
        a_group("g", ["shop", "kind"], a_feature("n", "count", of="events", window_ms=12)),
        event={**EVENT, "kind": "string"},
    )
    pairs = [
        ("a\x1fb", "c"),
        ("a", "b\x1fc"),
        ("a\x1fb\x1f3", "1"),
        ("a", "b\x1fc\x1f1\x1f3"),
        ("a", "b"),
        ("a\x1f1\x1f3", ""),
    ]
    events = [("events", 1, {"id": str(at), "shop": shop, "kind": kind}) for at, (shop, kind) in enumerate(pairs)]
    replay = replayed(spec, [events])
    assert replay.matrix[:, 0].tolist() == [0] * len(pairs)
    assert "g:v1:a\x1fb" in replay.state and len(replay.state) == len(pairs)


def test_features_that_read_the_same_records_share_what_is_stored():
    spec = a_spec(
        a_group(
            "g",
            [],
            a_feature("sum", "sum", of="readings", value="reading", window_ms=60),
            a_feature("mean", "mean", of="readings", value="reading", window_ms=60),
            a_feature("decayed", "decayed_mean", of="readings", value="reading", half_life_ms=10),
            a_feature("count", "count", of="readings", window_ms=60),
            a_feature("rate", "rate", of="readings", window_ms=60),
            a_feature("open", "open", of="readings", closed_by="outcomes", window_ms=60),
            a_feature("short", "distinct", of="events", field="user", window_ms=12),
            a_feature("long", "distinct", of="events", field="user", window_ms=24),
        )
    )
    (group,) = plan_groups(spec)
    assert [(one.topic, one.value) for one in group.panes] == [
        ("readings", "reading"),
        ("readings", None),
        ("outcomes", None),
    ]
    assert group.words == 13 * (3 + 2 + 2) + 256


@pytest.mark.parametrize("half_life_ms", [None, 0, 3])
def test_half_life_that_cannot_be_halved_is_refused(half_life_ms):
    with pytest.raises(ConfigError, match="TM-1052"):
        plan_groups(a_spec(a_group("g", [], a_feature("d", "decayed_count", of="events", half_life_ms=half_life_ms))))
