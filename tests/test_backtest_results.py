"""Results of a backtest as a value and as JSON: the same, and closed."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
from backtest_samples import COSTS, START_MS, some_results, some_series

from tidemill.apps.backtest_results import Results, figures_of, series_of, with_kappa
from tidemill.core.metrics import RunningMetrics
from tidemill.errors import ConfigError


def as_text(results: Results) -> str:
    return json.dumps(results.to_json(), allow_nan=False)


def test_json_gives_the_same_value_back() -> None:
    results = some_results()
    assert results.to_json()["schema_version"] == 1
    assert Results.from_json(json.loads(as_text(results))) == results


def test_what_was_not_measured_is_null() -> None:
    results = dataclasses.replace(some_results(), label_delay_ms_p50=math.nan)
    assert json.loads(as_text(results))["label_delay_ms_p50"] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "schema_version is 2"),
        ({"seconds": "many"}, "seconds"),
        ({"seconds": "3"}, "unknown or of another type"),
        ({"colour": "blue"}, "unknown or of another type"),
        ({"sources": [{"name": "a", "records": 1, "size": 9}]}, "unknown or of another type"),
        ({"counts": {}}, r"counts\.records"),
    ],
)
def test_json_of_another_shape_is_refused(change: dict[str, object], message: str) -> None:
    found = {**some_results(windows=2).to_json(), **change}
    with pytest.raises(ConfigError, match=f"TM-1801.*{message}"):
        Results.from_json(json.loads(json.dumps(found)))


def test_series_of_sketches_has_every_figure() -> None:
    first = RunningMetrics.of([0.95, 0.95, 0.2, 0.1], [1, 0, 1, 0])
    second = RunningMetrics.of([0.5], [1])
    series = series_of("one", "blend", first + second, {START_MS + 1: second, START_MS: first}, COSTS)

    assert (series.figures.n, series.figures.positives) == (5, 3)
    assert series.figures.precision == 1 / 2
    assert series.figures.recall == 1 / 3
    assert series.figures.alarm_rate == 2 / 5
    assert series.figures.cost == (9 + 2) / 5
    assert [one.start_ms for one in series.windows] == [START_MS, START_MS + 1]
    assert [one.n for one in series.windows] == [4, 1]
    assert series.windows[1].auc is None  # one class only
    assert sum(one.is_decision for one in series.thresholds) == 1


def test_series_without_examples_has_no_figures() -> None:
    figures = figures_of(RunningMetrics.empty(), COSTS)
    assert figures.n == 0
    assert {figures.log_loss, figures.auc, figures.accuracy, figures.cost, figures.calibration_error} == {None}


def test_kappa_is_the_share_of_the_errors_of_no_change_that_are_gone() -> None:
    blend, other = some_series("a", "blend", windows=2, seed=1), some_series("b", "no_change", windows=2, seed=2)
    measured = with_kappa([blend, other])

    assert blend.figures.accuracy is not None and other.figures.accuracy is not None
    assert measured[0].figures.kappa == pytest.approx(
        (blend.figures.accuracy - other.figures.accuracy) / (1 - other.figures.accuracy)
    )
    assert measured[1].figures.kappa == 0
    assert with_kappa([blend]) == (blend,)


def test_the_blend_is_what_serves() -> None:
    results = some_results(windows=2)
    assert results.served is results.series[0]
    turned = dataclasses.replace(results, series=results.series[::-1])
    assert turned.served is not None and turned.served.kind == "blend"
    assert dataclasses.replace(results, series=()).served is None
    assert results.threshold == pytest.approx(0.9)
