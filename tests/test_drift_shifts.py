"""Shifts are counted order-free, judged as scipy would, found when they are there, and rarely when they are not."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from test_drift_reference import PLACES, a_reference, made_rows

from tidemill.core.drift.laws import Law
from tidemill.core.drift.reference import Reference
from tidemill.core.drift.shifts import EVENTS_MIN, LABEL_EFFECT, ShiftJudge, benjamini_hochberg, p_values
from tidemill.core.loop_spec import MonitorSpec
from tidemill.core.records import FeatureBatch
from tidemill.core.ticks import Shift

SPEC = MonitorSpec()
WINDOW = 7
NAMES = (("x", "few"), ("place",))
SUBJECTS = ("x", "few", "place", "prediction", "label")
STICKY = a_reference(60, 300, day_effect=0.3)

Rows = tuple[FeatureBatch, np.ndarray, np.ndarray]
Change = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], None]


def days_of(count: int, rows: int = 300, *, seed: int, change: Change | None = None) -> list[Rows]:
    """As the reference was made, unless `change` writes into numbers, codes, labels and probabilities."""
    numeric, codes, label, probability, _ = made_rows(count, rows, 0.3, seed)
    if change is not None:
        change(numeric, codes, label, probability)
    texts = np.array(PLACES)[codes[:, 0]]
    return [
        (FeatureBatch(numeric[part], (tuple(texts[part].tolist()),)), label[part], probability[part])
        for part in (slice(at * rows, (at + 1) * rows) for at in range(count))
    ]


def a_judge(reference: Reference = STICKY, spec: MonitorSpec = SPEC) -> ShiftJudge:
    return ShiftJudge(reference, spec, *NAMES)


def told(judge: ShiftJudge, days: list[Rows], *, first: int = 0) -> list[tuple[Shift, ...]]:
    found = []
    for tick, (features, label, probability) in enumerate(days, start=first):
        judge.add(tick, features, probability)
        judge.add_labels(tick, label)
        found.append(judge.judge(tick))
    return found


def drifts(shifts: tuple[Shift, ...]) -> set[str]:
    return {shift.subject for shift in shifts if shift.is_drift}


# Counting --------------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 5))
def test_order_and_portions_of_a_day_change_nothing(seed: int, portions: int) -> None:
    source = np.random.Generator(np.random.PCG64(seed))
    days = days_of(WINDOW, 40, seed=5)
    whole, parts = a_judge(), a_judge()
    for tick, (features, label, probability) in enumerate(days):
        whole.add(tick, features, probability)
        whole.add_labels(tick, label)
        for rows in np.array_split(source.permutation(len(label)), portions):
            places = tuple(features.categories[0][row] for row in rows.tolist())
            parts.add(tick, FeatureBatch(features.numeric[rows], (places,)), probability[rows])
            parts.add_labels(tick, label[rows])
    shifts = whole.judge(WINDOW - 1)
    assert [shift.subject for shift in shifts] == list(SUBJECTS) and shifts == parts.judge(WINDOW - 1)


def test_window_is_the_last_ticks_and_silent_until_it_is_full() -> None:
    days = days_of(20, seed=6)
    found = told(a_judge(), days, first=100)
    assert [bool(shifts) for shifts in found] == [False] * (WINDOW - 1) + [True] * 14
    fresh = a_judge()
    assert told(fresh, days[-WINDOW:], first=113)[-1] == found[-1]


def test_tick_that_has_left_the_window_takes_no_more_rows() -> None:
    judge = a_judge()
    before = told(judge, days_of(10, seed=7))[-1]
    (features, label, probability), *_ = days_of(1, seed=8)
    judge.add(1, features, probability)
    judge.add_labels(1, label)
    assert judge.judge(9) == before


def test_days_without_events_leave_the_window_thinner() -> None:
    judge = a_judge()
    assert told(judge, days_of(10, seed=9))[-1]
    assert judge.judge(13) and not judge.judge(40)


def test_thin_window_says_nothing() -> None:
    days = [(FeatureBatch(f.numeric[:7], (f.categories[0][:7],)), y[:7], p[:7]) for f, y, p in days_of(7, seed=10)]
    assert EVENTS_MIN > 7 * 7 and told(a_judge(), days)[-1] == ()


def test_columns_without_a_reference_are_not_judged() -> None:
    reference = replace(STICKY, numeric={"x": STICKY.numeric["x"]}, categories={}, score=None)
    shifts = told(a_judge(reference), days_of(7, seed=11))[-1]
    assert [shift.subject for shift in shifts] == ["x", "label"]
    nothing = replace(reference, numeric={})
    assert [shift.subject for shift in told(a_judge(nothing), days_of(7, seed=11))[-1]] == ["label"]


# Judging ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 1), max_size=30), st.floats(0.001, 0.2))
def test_discoveries_are_those_of_the_procedure_as_written(values: list[float], level: float) -> None:
    """Benjamini and Hochberg 1995: the largest k with p(k) <= k q / m; reject the hypotheses up to it."""
    count = len(values)
    passing = [k for k in range(1, count + 1) if sorted(values)[k - 1] <= level * k / count]
    limit = sorted(values)[max(passing) - 1] if passing else -1.0
    assert benjamini_hochberg(np.array(values), level).tolist() == [value <= limit for value in values]


@given(st.floats(0, 0.5), st.integers(2, 12), st.integers(60, 100_000), st.integers(100, 1_000_000))
def test_unmeasured_law_is_chi_square(statistic: float, cells: int, events: int, reference: int) -> None:
    law = Law(0.0, 0.0, 0.0, 0.0, reference)
    found = p_values(np.array([statistic]), [law], np.array([cells]), np.array([float(events)]))[0]
    expected = stats.chi2.sf(statistic / (1 / events + 1 / reference), cells - 1)
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-300)


@given(st.floats(0.02, 0.5), st.floats(0.2, 2), st.floats(4, 60), st.floats(0, 3))
def test_measured_law_is_f(mean: float, spread: float, windows: float, statistic: float) -> None:
    law = Law(mean, spread * mean, 1e6, windows, 10_000_000)
    found = p_values(np.array([statistic]), [law], np.array([3]), np.array([1e6]))[0]
    shape = 1 / spread**2
    assert found == pytest.approx(stats.f.sf(statistic / mean, 2 * shape, 2 * shape * windows), rel=1e-6, abs=1e-290)


def test_thinner_window_than_the_measured_ones_is_given_more_room() -> None:
    law = Law(0.05, 0.05, 7_000.0, 12.0, 90_000)
    cells = np.array([11])
    ample, thin = (p_values(np.array([0.3]), [law], cells, np.array([events]))[0] for events in (7_000.0, 100.0))
    assert thin > 10 * ample


def test_label_is_judged_by_student() -> None:
    label = replace(STICKY.label, share=0.5, law=Law(0.0, 0.04, 2_100.0, 8.0, 18_000))
    days = days_of(7, seed=12)
    found = told(a_judge(replace(STICKY, label=label)), days)[-1][-1]
    assert found.effect == pytest.approx(np.concatenate([y for _, y, _ in days]).mean() - 0.5)
    assert found.p_value == pytest.approx(2 * stats.t.sf(abs(found.effect) / 0.04, 8), rel=1e-6)


# Finding ---------------------------------------------------------------------------------------------------------


def shift_x(numeric: np.ndarray, *_: np.ndarray) -> None:
    numeric[:, 0] += 3


def lose_few(numeric: np.ndarray, *_: np.ndarray) -> None:
    numeric[::2, 1] = np.nan


def rename_place(_: np.ndarray, codes: np.ndarray, *__: np.ndarray) -> None:
    codes[codes == 2] = len(PLACES) - 1
    codes[codes == 1] = len(PLACES) - 1


def halve_labels(_: np.ndarray, __: np.ndarray, label: np.ndarray, ___: np.ndarray) -> None:
    label[::2] = 0


def flatten_prediction(*given: np.ndarray) -> None:
    given[3][:] = 0.5


CHANGES = {
    "x": shift_x,
    "few": lose_few,
    "place": rename_place,
    "label": halve_labels,
    "prediction": flatten_prediction,
}


@pytest.mark.parametrize("subject", CHANGES)
def test_what_has_changed_is_named_and_nothing_else(subject: str) -> None:
    before, after = days_of(7, seed=13), days_of(7, seed=14, change=CHANGES[subject])
    found = told(a_judge(), before + after)
    assert drifts(found[6]) == set()
    assert drifts(found[-1]) == {subject}


def test_certain_but_small_shift_is_no_drift() -> None:
    def move_little(numeric: np.ndarray, *_: np.ndarray) -> None:
        numeric[::20, 1] = np.nan

    def move_labels_little(_: np.ndarray, __: np.ndarray, label: np.ndarray, ___: np.ndarray) -> None:
        label[::25] = 0

    law = Law(0.0, 0.0, 0.0, 0.0, 18_000)
    few = {**STICKY.numeric, "few": replace(STICKY.numeric["few"], law=law)}
    certain = replace(STICKY, numeric=few, label=replace(STICKY.label, law=law))
    for change, at in ((move_little, 1), (move_labels_little, 4)):
        found = told(a_judge(certain), days_of(14, 3_000, seed=15, change=change))[-1][at]
        assert found.p_value < 1 / SPEC.average_run_length / len(SUBJECTS) and not found.is_drift
        assert abs(found.effect) < (LABEL_EFFECT if at == 4 else SPEC.psi)


def test_weeks_that_stray_as_training_weeks_did_are_no_drift() -> None:
    """The textbook's law would call three of four: that is why it is measured."""
    alerts = naive = judged = 0
    for seed in range(4):
        reference = a_reference(90, 100, day_effect=1.0, seed=20 + seed)
        numeric, codes, label, probability, _ = made_rows(120, 100, 1.0, 40 + seed)
        judge = a_judge(reference)
        places = np.array(PLACES)[codes[:, 0]]
        for tick in range(120):
            rows = slice(tick * 100, (tick + 1) * 100)
            judge.add(tick, FeatureBatch(numeric[rows], (tuple(places[rows].tolist()),)), probability[rows])
            judge.add_labels(tick, label[rows])
            if shifts := judge.judge(tick):
                judged += 1
                alerts += any(shift.is_drift for shift in shifts)
                naive += stats.chi2.sf(shifts[0].effect / (1 / 700 + 1 / 9_000), 9) < 1e-4
    assert judged == 4 * 114 and alerts <= judged / SPEC.average_run_length
    assert naive > 0.7 * judged


def test_a_day_of_many_columns_is_counted_in_milliseconds() -> None:
    rows = made_rows(10, 100, 0.0, 1)
    numeric = np.tile(rows[0], (1, 15))
    column = tuple(np.array(PLACES)[rows[1][:, 0]].tolist())
    names = tuple(f"n{at}" for at in range(30)), tuple(f"c{at}" for at in range(10))
    reference = replace(
        STICKY,
        numeric=dict.fromkeys(names[0], STICKY.numeric["x"]),
        categories=dict.fromkeys(names[1], STICKY.categories["place"]),
    )
    judge, features = ShiftJudge(reference, SPEC, *names), FeatureBatch(numeric, (column,) * 10)
    spent = []
    for tick in range(15):
        started = time.perf_counter()
        judge.add(tick, features, rows[3])
        spent.append(time.perf_counter() - started)
    assert min(spent) < 0.005
