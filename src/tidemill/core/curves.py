"""What a sketch of probabilities tells about decisions: calibration, and precision, recall and cost by threshold.

In: positives and negatives by bin of the probability, integers of equal length, bins of equal width (`core.metrics`).
Out: short tuples of figures, however many examples were counted. Invariant: only the counts are used, so that curves of
merged sketches are the curves of all examples together; a figure that divides by nothing is None, never zero.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tidemill.core.records import Int64s
from tidemill.core.spec import CostSpec
from tidemill.errors import InvariantError

CALIBRATION_BINS = 20
THRESHOLDS = 100  # half of them evenly spaced, half where the examples are: a curve of rare positives stays smooth


@dataclass(frozen=True, slots=True)
class CalibrationBin:
    """Examples whose probabilities are close: what was said on average, and what came."""

    probability: float  # the mean, to half a bin of the sketch
    share: float  # of positives
    n: int


@dataclass(frozen=True, slots=True)
class ThresholdPoint:
    """What deciding at one threshold would have meant: an alarm where probability >= threshold."""

    threshold: float
    precision: float | None  # None without an alarm
    recall: float | None  # None without a positive
    accuracy: float
    alarm_rate: float
    cost: float  # of an event on average, in the units of CostSpec
    is_decision: bool = False  # the threshold that the costs ask for


def calibration(positives: Int64s, negatives: Int64s, count: int = CALIBRATION_BINS) -> tuple[CalibrationBin, ...]:
    """At most `count` bins of equal width by ascending probability; a bin without examples is left out."""
    bins = _checked(positives, negatives)
    group = np.arange(bins) * count // bins
    total = positives + negatives
    # Sums of integers below 2^53 in float64 are exact.
    n = np.bincount(group, weights=total, minlength=count).astype(np.int64)
    came = np.bincount(group, weights=positives, minlength=count).astype(np.int64)
    said = np.bincount(group, weights=total * (2 * np.arange(bins) + 1), minlength=count) / (2 * bins)
    return tuple(
        CalibrationBin(float(said[one] / n[one]), float(came[one] / n[one]), int(n[one])) for one in np.flatnonzero(n)
    )


def calibration_error(bins: tuple[CalibrationBin, ...]) -> float | None:
    """The mean over examples of |said - came| by bin (expected calibration error); None without examples."""
    n = sum(one.n for one in bins)
    return sum(abs(one.probability - one.share) * one.n for one in bins) / n if n else None


def brier(positives: Int64s, negatives: Int64s) -> float | None:
    """The mean squared error of the probability, off by at most one bin's width; None without examples."""
    bins = _checked(positives, negatives)
    n = int(positives.sum() + negatives.sum())
    said = (np.arange(bins) + 0.5) / bins
    return float((positives * (1 - said) ** 2 + negatives * said**2).sum() / n) if n else None


def thresholds(
    positives: Int64s, negatives: Int64s, costs: CostSpec, count: int = THRESHOLDS
) -> tuple[ThresholdPoint, ...]:
    """At most `count` + 2 points by ascending threshold, exact at edges of bins; empty without examples.

    The decision's own threshold is always among them. Where it lies within a bin, its examples are counted from the
    bin's upper edge on; a probability that equals an edge counts as an alarm, in `decision` it does not.
    """
    bins = _checked(positives, negatives)
    if not int(positives.sum() + negatives.sum()):
        return ()
    even = np.linspace(0, bins, count - count // 2 + 1).astype(np.int64)
    cumulated = np.cumsum(positives + negatives)
    where_examples_are = np.searchsorted(cumulated, np.linspace(0, cumulated[-1], count // 2 + 2)[1:-1])
    decision = _edge(costs.threshold, bins)
    edges = np.unique(np.concatenate((even, where_examples_are)))
    points = [_point(positives, negatives, int(edge), edge / bins, costs) for edge in edges if edge != decision]
    points.append(decide(positives, negatives, costs))
    return tuple(sorted(points, key=lambda point: point.threshold))


def decide(positives: Int64s, negatives: Int64s, costs: CostSpec) -> ThresholdPoint:
    """The point of the decision's own threshold.

    Raises:
        InvariantError: TM-9604, there are no examples.
    """
    edge = _edge(costs.threshold, _checked(positives, negatives))
    return _point(positives, negatives, edge, costs.threshold, costs, is_decision=True)


def _edge(threshold: float, bins: int) -> int:
    """The first edge at or above `threshold`; what is below a billionth of a bin is an error of the division."""
    return int(np.ceil(threshold * bins - 1e-9))


def _point(
    positives: Int64s, negatives: Int64s, edge: int, threshold: float, costs: CostSpec, *, is_decision: bool = False
) -> ThresholdPoint:
    came = int(positives.sum())
    n = came + int(negatives.sum())
    if not n:
        raise InvariantError("TM-9604", "curves: a decision over no examples; this is a bug")
    hits, false_alarms = int(positives[edge:].sum()), int(negatives[edge:].sum())
    misses = came - hits
    return ThresholdPoint(
        threshold=float(threshold),
        precision=hits / (hits + false_alarms) if hits + false_alarms else None,
        recall=hits / came if came else None,
        accuracy=(n - misses - false_alarms) / n,
        alarm_rate=(hits + false_alarms) / n,
        cost=(costs.false_alarm * false_alarms + costs.miss * misses) / n,
        is_decision=is_decision,
    )


def _checked(positives: Int64s, negatives: Int64s) -> int:
    if positives.ndim != 1 or positives.shape != negatives.shape or not len(positives):
        raise InvariantError(
            "TM-9603", f"curves: bins of shapes {positives.shape} and {negatives.shape} do not fit; this is a bug"
        )
    return len(positives)
