"""Metrics against brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.core.metrics import (
    NO_CHANGE_CERTAINTY,
    RunningMetrics,
    auc,
    constant_at_delay,
    log_loss,
    no_change_at_delay,
)
from tidemill.errors import InvariantError

# Few distinct values, so that ties are common, beside any others; 0 and 1 included.
PROBABILITIES = st.sampled_from([0.0, 0.25, 0.5, 1.0]) | st.floats(0, 1)
SCORED = st.lists(st.tuples(PROBABILITIES, st.integers(0, 1)), max_size=40)
TIMED = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12), st.integers(0, 1)), max_size=25)


def columns(rows: list[tuple[float, ...]], width: int) -> list[np.ndarray]:
    return [np.array([row[at] for row in rows]) for at in range(width)]


def naive_auc(rows: list[tuple[float, int]]) -> float:
    pairs = [(p, q) for p, positive in rows for q, other in rows if positive and not other]
    if not pairs:
        return math.nan
    return sum(2 * (p > q) + (p == q) for p, q in pairs) / (2 * len(pairs))


@given(SCORED)
def test_auc_is_the_share_of_pairs_in_order(rows: list[tuple[float, int]]) -> None:
    assert auc(*columns(rows, 2)) == pytest.approx(naive_auc(rows), abs=0, nan_ok=True)


def test_auc_counts_a_tie_half() -> None:
    assert auc([0.5, 0.5], [0, 1]) == 0.5
    assert auc([0.1, 0.5, 0.5], [0, 0, 1]) == 0.75
    assert auc([0.1, 0.9], [1, 0]) == 0.0


@given(SCORED)
def test_log_loss_is_the_mean_over_examples(rows: list[tuple[float, int]]) -> None:
    losses = [-math.log(min(max(p if y else 1 - p, 1e-15), 1 - 1e-15)) for p, y in rows]
    expected = sum(losses) / len(losses) if losses else math.nan
    assert log_loss(*columns(rows, 2)) == pytest.approx(expected, rel=1e-12, nan_ok=True)


def test_wrong_certainty_is_dear_but_finite() -> None:
    assert log_loss([0.0], [1]) == pytest.approx(34.54, abs=0.01)
    assert log_loss([1.0], [0]) == pytest.approx(34.54, abs=0.01)


@given(SCORED, st.data())
def test_pieces_merge_in_any_order_to_the_same_integers(rows: list[tuple[float, int]], data: st.DataObject) -> None:
    whole = RunningMetrics.of(*columns(rows, 2))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=3)))
    bounds = zip([0, *cuts], [*cuts, len(rows)], strict=True)
    pieces = data.draw(st.permutations([RunningMetrics.of(*columns(rows[a:b], 2)) for a, b in bounds]))
    merged = sum(pieces, start=RunningMetrics.empty())

    assert merged.loss_units == whole.loss_units
    assert merged.squared_units == whole.squared_units
    assert merged.positives.tolist() == whole.positives.tolist()
    assert merged.negatives.tolist() == whole.negatives.tolist()
    assert merged.count == len(rows)


@given(SCORED)
def test_running_metrics_are_as_near_as_they_say(rows: list[tuple[float, int]]) -> None:
    running, scored = RunningMetrics.of(*columns(rows, 2)), columns(rows, 2)
    assert running.log_loss == pytest.approx(log_loss(*scored), abs=1e-9, nan_ok=True)
    squares = [(p - y) ** 2 for p, y in rows]
    assert running.brier == pytest.approx(sum(squares) / len(rows) if rows else math.nan, abs=1e-9, nan_ok=True)
    if not math.isnan(naive_auc(rows)):
        assert abs(running.auc - naive_auc(rows)) <= running.auc_error_max + 1e-12
    else:
        assert math.isnan(running.auc) and math.isnan(running.auc_error_max)


def test_bins_cost_little_on_ordinary_scores() -> None:
    random = np.random.default_rng(5)
    label = random.random(20_000) < 0.25
    probability = 1 / (1 + np.exp(1.5 - label - random.normal(size=20_000)))
    running = RunningMetrics.of(probability, label)

    assert abs(running.auc - auc(probability, label)) < 1e-5
    assert running.auc_error_max < 5e-4
    assert running.base_rate == label.mean()


@given(TIMED)
def test_comparators_know_a_label_from_its_time_on(rows: list[tuple[int, int, int]]) -> None:
    event_time, label_time, label = (column.astype(np.int64) for column in columns(rows, 3))
    repeated, constant = [], []
    for event, _, _ in rows:
        known = [(time, at, y) for at, (_, time, y) in enumerate(rows) if time <= event]
        latest = max(known)[2] if known else None
        repeated.append({None: 0.5, 0: 1 - NO_CHANGE_CERTAINTY, 1: NO_CHANGE_CERTAINTY}[latest])
        constant.append((sum(y for _, _, y in known) + 1) / (len(known) + 2))

    assert no_change_at_delay(event_time, label_time, label).tolist() == repeated
    assert constant_at_delay(event_time, label_time, label).tolist() == constant


def test_label_one_millisecond_later_is_unknown() -> None:
    event_time, label = np.array([10]), np.array([1])
    assert no_change_at_delay(event_time, np.array([10]), label).tolist() == [0.99]
    assert no_change_at_delay(event_time, np.array([11]), label).tolist() == [0.5]
    assert constant_at_delay(event_time, np.array([10]), label).tolist() == [2 / 3]
    assert constant_at_delay(event_time, np.array([11]), label).tolist() == [0.5]


@pytest.mark.parametrize(
    ("probability", "label"), [([math.nan], [1]), ([1.1], [1]), ([-0.1], [0]), ([0.5], [2]), ([0.5], [0, 1])]
)
def test_what_is_no_score_or_label_is_refused(probability: list[float], label: list[int]) -> None:
    for measure in (auc, log_loss, RunningMetrics.of):
        with pytest.raises(InvariantError, match="TM-960"):
            measure(probability, label)
