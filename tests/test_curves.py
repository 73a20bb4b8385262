"""Curves from a sketch: the same as counting the examples one by one, whatever the examples."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.core.curves import brier, calibration, calibration_error, decide, thresholds
from tidemill.core.metrics import BINS, RunningMetrics
from tidemill.core.spec import CostSpec
from tidemill.errors import InvariantError

COSTS = CostSpec(false_alarm=9, miss=1)
examples = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=60)
costs = st.builds(CostSpec, false_alarm=st.floats(0.1, 20), miss=st.floats(0.1, 20))


def sketch(*pairs: tuple[float, bool]) -> RunningMetrics:
    return RunningMetrics.of([said for said, _ in pairs], [int(came) for _, came in pairs])


def nothing() -> RunningMetrics:
    return RunningMetrics.empty()


@given(examples, costs)
def test_thresholds_count_what_counting_one_by_one_counts(pairs: list[tuple[float, bool]], costs: CostSpec) -> None:
    found = sketch(*pairs)
    for point in thresholds(found.positives, found.negatives, costs):
        edge = np.ceil(point.threshold * BINS - 1e-9) / BINS
        alarms = [came for said, came in pairs if min(said, 1 - 1 / BINS) >= edge]
        came_all = sum(came for _, came in pairs)
        misses = came_all - sum(alarms)
        false_alarms = len(alarms) - sum(alarms)

        assert point.precision == (sum(alarms) / len(alarms) if alarms else None)
        assert point.recall == (sum(alarms) / came_all if came_all else None)
        assert point.alarm_rate == len(alarms) / len(pairs)
        assert point.accuracy == pytest.approx(1 - (misses + false_alarms) / len(pairs))
        assert point.cost == pytest.approx((costs.false_alarm * false_alarms + costs.miss * misses) / len(pairs))


@given(examples, costs)
def test_thresholds_rise_while_recall_falls_and_one_is_the_decision(
    pairs: list[tuple[float, bool]], costs: CostSpec
) -> None:
    found = sketch(*pairs)
    points = thresholds(found.positives, found.negatives, costs)

    assert [one.threshold for one in points] == sorted({one.threshold for one in points})
    assert len(points) <= 102
    assert (points[0].threshold, points[0].alarm_rate) == (0, 1)
    assert (points[-1].threshold, points[-1].alarm_rate) == (1, 0)
    rates = [one.alarm_rate for one in points]
    assert rates == sorted(rates, reverse=True)
    assert [one for one in points if one.is_decision] == [decide(found.positives, found.negatives, costs)]
    assert decide(found.positives, found.negatives, costs).threshold == costs.threshold


@given(examples)
def test_calibration_keeps_every_example_and_its_sums(pairs: list[tuple[float, bool]]) -> None:
    found = sketch(*pairs)
    bins = calibration(found.positives, found.negatives)

    assert len(bins) <= 20
    assert sum(one.n for one in bins) == len(pairs)
    assert sum(one.share * one.n for one in bins) == pytest.approx(sum(came for _, came in pairs))
    assert sum(one.probability * one.n for one in bins) == pytest.approx(
        sum(said for said, _ in pairs), abs=len(pairs) / BINS / 2 + 1e-9
    )


@given(examples)
def test_brier_of_a_sketch_is_within_a_bin_of_the_exact_one(pairs: list[tuple[float, bool]]) -> None:
    found = sketch(*pairs)
    exact = sum((said - came) ** 2 for said, came in pairs) / len(pairs)
    assert brier(found.positives, found.negatives) == pytest.approx(exact, abs=1 / BINS)


@given(examples, examples)
def test_curves_of_merged_sketches_are_those_of_all_examples(
    first: list[tuple[float, bool]], second: list[tuple[float, bool]]
) -> None:
    merged, together = sketch(*first) + sketch(*second), sketch(*first, *second)
    assert thresholds(merged.positives, merged.negatives, COSTS) == thresholds(
        together.positives, together.negatives, COSTS
    )


def test_error_of_calibration_is_the_mean_distance() -> None:
    found = sketch((0.2, False), (0.2, False), (0.2, False), (0.9, True))
    error = calibration_error(calibration(found.positives, found.negatives))
    assert error == pytest.approx((3 * 0.2 + 0.1) / 4, abs=1e-3)


def test_rare_positives_get_a_smooth_curve() -> None:
    found = sketch(*((one / 20_000, one % 50 == 0) for one in range(400)))  # all below .02
    points = thresholds(found.positives, found.negatives, COSTS)
    assert sum(0 < one.alarm_rate < 1 for one in points) > 30


def test_without_examples_there_are_no_figures() -> None:
    none = nothing()
    assert calibration(none.positives, none.negatives) == ()
    assert calibration_error(()) is None
    assert brier(none.positives, none.negatives) is None
    assert thresholds(none.positives, none.negatives, COSTS) == ()
    with pytest.raises(InvariantError, match="TM-9604"):
        decide(none.positives, none.negatives, COSTS)


def test_bins_of_other_lengths_are_a_bug() -> None:
    found = nothing()
    with pytest.raises(InvariantError, match="TM-9603"):
        calibration(found.positives, found.negatives[1:])
