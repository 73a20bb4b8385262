"""What comes in broken is found on its first day, and what is only unusual is not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_drift_reference import a_reference

from tidemill.core.drift.quality import FRESH_TICKS, RUN_CHANCE, SHORT_WEEKS_MAX, Finding, QualityJudge
from tidemill.core.drift.reference import Reference
from tidemill.core.loop_spec import DAY_MS, MonitorSpec
from tidemill.core.records import FeatureBatch

SPEC = MonitorSpec()
ROWS = 200
REFERENCE = a_reference(20, ROWS)


def a_judge(reference: Reference | None = REFERENCE, spec: MonitorSpec = SPEC) -> QualityJudge:
    judge = QualityJudge(spec, ("x", "few"), ("place",), ("sales", "context"))
    judge.set_reference(reference)
    return judge


def a_batch(rows: int = ROWS, *, x: float | None = None, place: str | None = None, share: float = 1.0) -> FeatureBatch:
    """`share` of the rows has the given values; the others are as in the reference."""
    numeric = np.zeros((rows, 2), dtype=np.float32)
    changed = round(rows * share)
    if x is not None:
        numeric[:changed, 0] = x
    places = [place if place is not None and row < changed else f"p{row % 5}" for row in range(rows)]
    return FeatureBatch(numeric, (tuple(places),))


def subjects(findings: tuple[Finding, ...]) -> list[str]:
    return [finding.subject for finding in findings]


def judged(judge: QualityJudge, tick: int, features: FeatureBatch) -> list[str]:
    judge.add(tick, features)
    return subjects(judge.judge(tick))


# Columns ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "subject"),
    [
        ({"x": np.nan}, "missing/x"),
        ({"x": 1e6}, "range/x"),
        ({"x": -1e6}, "range/x"),
        ({"x": np.inf}, "range/x"),
        ({"place": ""}, "missing/place"),
        ({"place": "elsewhere"}, "unseen/place"),
    ],
)
def test_broken_column_is_found_on_its_first_day_and_a_few_rows_are_not(change: dict, subject: str) -> None:
    judge = a_judge()
    assert judged(judge, 0, a_batch(**change, share=0.05)) == []
    assert judged(judge, 1, a_batch(**change, share=0.4)) == [subject]
    assert judged(judge, 2, a_batch()) == []


def test_finding_says_how_much_is_usual() -> None:
    judge = a_judge()
    judge.add(3, a_batch(x=np.nan, share=0.5))
    (finding,) = judge.judge(3)
    assert finding.value == 0.5 and SPEC.missing <= finding.limit < 0.2
    assert finding.text == "50% of x is missing, usual is at most 0%"


def test_values_a_little_beyond_those_of_training_are_in_range() -> None:
    low, high = REFERENCE.numeric["x"].span
    assert judged(a_judge(), 0, a_batch(x=high + 0.4 * (high - low))) == []
    assert judged(a_judge(), 0, a_batch(x=high + 0.6 * (high - low))) == ["range/x"]


def test_column_that_was_missing_on_many_days_of_training_may_be_missing() -> None:
    column = replace(REFERENCE.numeric["x"], missing_high=0.9)
    reference = replace(REFERENCE, numeric={**REFERENCE.numeric, "x": column})
    assert judged(a_judge(reference), 0, a_batch(x=np.nan, share=0.95)) == []


def test_few_rows_say_nothing() -> None:
    assert judged(a_judge(), 0, a_batch(29, x=np.nan)) == []
    assert judged(a_judge(), 0, a_batch(30, x=np.nan)) == ["missing/x"]


def test_share_of_few_rows_strays_by_chance() -> None:
    column = replace(REFERENCE.numeric["x"], missing_high=0.3)
    reference = replace(REFERENCE, numeric={**REFERENCE.numeric, "x": column})
    assert judged(a_judge(reference), 0, a_batch(40, x=np.nan, share=0.5)) == []
    assert judged(a_judge(reference), 0, a_batch(4_000, x=np.nan, share=0.5)) == ["missing/x"]


def test_without_a_reference_a_column_is_compared_with_its_own_past() -> None:
    judge = a_judge(None)
    ticks = MonitorSpec().reference_ticks
    for tick in range(ticks):  # too few to know what is usual
        assert judged(judge, tick, a_batch(x=np.nan, share=0.5)) == []
    assert judged(judge, ticks, a_batch(x=np.nan, share=0.55)) == []
    assert judged(judge, ticks + 1, a_batch(x=np.nan, share=0.8)) == ["missing/x"]
    assert judged(judge, ticks + 2, a_batch(x=np.nan, share=0.8)) == ["missing/x"], "what is wrong is not usual"
    assert judged(judge, 5, a_batch(x=1e9)) == []  # nobody knows the range
    assert judged(judge, 6, a_batch(place="elsewhere", share=0.3)) == ["unseen/place"]
    assert judged(judge, 7, a_batch(place="elsewhere", share=0.3)) == []  # by now it is known


def test_new_reference_changes_what_is_usual() -> None:
    judge = a_judge(None)
    assert judged(judge, 0, a_batch(place="elsewhere")) == []
    judge.set_reference(REFERENCE)
    assert judged(judge, 1, a_batch(place="elsewhere")) == ["unseen/place"]
    judge.set_reference(None)
    assert judged(judge, 2, a_batch(place="elsewhere")) == []


# Labels ----------------------------------------------------------------------------------------------------------


def longest(labels: list[int]) -> int:
    best = run = 0
    last = None
    for label in labels:
        run = run + 1 if label == last else 1
        last, best = label, max(best, run)
    return best


@given(st.lists(st.lists(st.integers(0, 1), max_size=12), min_size=1, max_size=6), st.integers(1, 9))
def test_longest_run_is_counted_over_all_portions_of_the_log(portions: list[list[int]], limit: int) -> None:
    judge = a_judge(None, replace(SPEC, run_of_one_class=limit))
    for portion in portions:
        judge.add_labels(0, np.array(portion, dtype=np.float32))
    found = [finding for finding in judge.judge(0) if finding.subject == "run_of_one_class"]
    length = longest([label for portion in portions for label in portion])
    assert [finding.value for finding in found] == ([length] if length >= limit else [])


def test_run_goes_on_over_ticks_and_is_told_while_it_lasts() -> None:
    judge, found = a_judge(None), []
    for tick, ones in enumerate([300, 300, 300, 0]):
        judge.add_labels(tick, np.array([1] * ones + [0] * (1 if not ones else 0), dtype=np.float32))
        found.append(subjects(judge.judge(tick)))
    assert found == [[], ["run_of_one_class"], ["run_of_one_class"], []]


def test_long_run_of_the_common_class_is_luck() -> None:
    rare = replace(REFERENCE, label=replace(REFERENCE.label, share=0.01))
    limit = round(np.log(RUN_CHANCE) / np.log(0.99))
    for length, one_class, expected in (
        (limit - 1, 0, []),
        (limit, 0, ["run_of_one_class"]),
        (500, 1, ["run_of_one_class"]),
    ):
        judge = a_judge(rare)
        judge.add_labels(0, np.full(length, one_class, dtype=np.float32))
        assert subjects(judge.judge(0)) == expected


# Volume and freshness --------------------------------------------------------------------------------------------


def days_with(counts: list[int], judge: QualityJudge, add: Callable[[int, int], None]) -> list[list[str]]:
    found = []
    for tick, count in enumerate(counts):
        add(tick, count)
        found.append(subjects(judge.judge(tick)))
    return found


def test_volume_is_compared_with_the_same_weekday() -> None:
    judge = a_judge()
    weeks = [400, 400, 400, 400, 400, 100, 100] * 5
    found = days_with([*weeks, 390, 150], judge, lambda tick, count: judge.add(tick, a_batch(count)))
    assert found[:-1] == [[]] * 36 and found[-1] == ["volume"]


def test_day_without_any_event_is_a_small_volume() -> None:
    judge = a_judge()
    for tick in range(14):
        judge.add(tick, a_batch())
        judge.judge(tick)
    assert judge.judge(14) == (Finding("volume", 0.0, 100.0, "0 events came, 200 are usual for this day of the week"),)


def test_one_week_of_history_is_too_short_for_the_volume() -> None:
    judge = a_judge()
    assert days_with([400] * 7 + [0] * 7, judge, lambda tick, count: judge.add(tick, a_batch(count))) == [[]] * 14


def test_ticks_of_hours_are_compared_with_the_same_hour_of_the_week() -> None:
    judge = a_judge(spec=replace(SPEC, every_ms=DAY_MS // 24))
    day = [0] * 12 + [100] * 12
    found = days_with([*(day * 14), *day[:12], 20], judge, lambda tick, count: judge.add(tick, a_batch(count)))
    assert found[-1] == ["volume"] and not any(found[:-1])


@pytest.mark.parametrize("weeks_out", [1, 6])
def test_outage_is_told_in_each_of_its_weeks_and_is_over_with_it(weeks_out: int) -> None:
    judge = a_judge()
    weeks = [*[200] * 28, *[10] * 7 * weeks_out, *[200] * 14]
    found = days_with(weeks, judge, lambda tick, count: judge.add(tick, a_batch(count)))
    assert found == [[]] * 28 + [["volume"]] * 7 * weeks_out + [[]] * 14


def test_volume_that_stays_small_for_a_quarter_is_usual() -> None:
    judge = a_judge()
    weeks = [*[200] * 28, *[80] * 7 * 26, *[30] * 7]
    found = days_with(weeks, judge, lambda tick, count: judge.add(tick, a_batch(count)))
    told = [tick for tick, subjects_told in enumerate(found) if subjects_told]
    since = range(28 + 7 * 26, len(weeks))
    assert told == [*range(28, 28 + 7 * (SHORT_WEEKS_MAX - 1)), *since]


def test_one_swollen_day_at_the_start_makes_no_outage_of_the_usual_ones() -> None:
    judge = a_judge()
    weeks = [5_000, *[200] * 62]
    assert days_with(weeks, judge, lambda tick, count: judge.add(tick, a_batch(count))) == [[]] * 63


def freshness(ticks: Sequence[Sequence[str]]) -> list[list[str]]:
    """What is found where records of these topics come in each tick."""
    judge, found = a_judge(), []
    for tick, topics in enumerate(ticks):
        for topic in topics:
            judge.add_records(tick, topic, 5)
        found.append(subjects(judge.judge(tick)))
    return found


def test_topic_that_falls_silent_is_told_until_it_speaks_and_one_that_was_never_regular_is_not() -> None:
    both = [["sales", "context"] if tick % 2 else ["sales"] for tick in range(FRESH_TICKS)]
    silent = [["context"] if tick % 2 else [] for tick in range(30)]
    found = freshness([*both, *silent, ["sales"], [], ["sales"]])
    assert found == [[]] * FRESH_TICKS + [["fresh/sales"]] * 30 + [[], ["fresh/sales"], []]


def test_topic_that_is_silent_from_the_start_is_expected_once_it_has_spoken_for_a_while() -> None:
    spoke = [["context"]] * FRESH_TICKS
    assert freshness([*[[]] * 20, *spoke[1:], [], *spoke, []]) == [[]] * (20 + 2 * FRESH_TICKS) + [["fresh/context"]]
