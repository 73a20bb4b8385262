"""How good probabilities were: log loss, AUC, and what knowing nothing would have scored at the same delay.

In: columns of probabilities, labels (0 or 1) and times of equal length. Out: numbers and columns. Invariant: counts are
integers, so that merging is exact and order-free; a comparator sees a label only once its time has come.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from tidemill.core.records import Float64s, Int64s
from tidemill.errors import InvariantError

PROBABILITY_MIN = 1e-15  # clips 0 and 1 for the log: one wrong certainty costs 34.5, not infinity
BINS = 4_096  # of the probability, equal widths; 64 kB a sketch
LOSS_UNIT = 2.0**-32  # what is summed is an integer: 1.2e-10 each at most; 2^25 of the largest loss fit int64
NO_CHANGE_CERTAINTY = 0.99  # a repeated label is not certain; at 1 a single change would cost 34.5

Values = npt.ArrayLike


def log_loss(probability: Values, label: Values) -> float:
    """Mean of -log(probability of what came), natural logarithm; NaN without examples."""
    probabilities, is_positive = _checked(probability, label)
    return float(_losses(probabilities, is_positive).mean()) if len(probabilities) else float("nan")


def auc(probability: Values, label: Values) -> float:
    """The share of pairs (positive, negative) in which the positive has the higher probability, a tie counting half.

    Exact: pairs are counted in integers. NaN without positives or without negatives.
    """
    probabilities, is_positive = _checked(probability, label)
    _, group = np.unique(probabilities, return_inverse=True)
    groups = int(group.max()) + 1 if len(group) else 0
    return _auc_of_counts(
        np.bincount(group[is_positive], minlength=groups), np.bincount(group[~is_positive], minlength=groups)
    )


def no_change_at_delay(event_time: Int64s, label_time: Int64s, label: Values) -> Float64s:
    """The probability that each event repeats the latest label known at its time, shape (events,).

    Known are labels with label_time <= event_time; of the same time the later in the column counts. Before the first
    one .5, then NO_CHANGE_CERTAINTY or 1 - that. Columns need no order; labels that came before their own event must
    be left out by the caller.
    """
    order, known = _known_at(event_time, label_time)
    is_positive = _binary(label, len(label_time))[order]
    column = np.full(len(event_time), 0.5)
    has_any = known > 0
    latest = is_positive[known[has_any] - 1]
    column[has_any] = np.where(latest, NO_CHANGE_CERTAINTY, 1 - NO_CHANGE_CERTAINTY)
    return column


def constant_at_delay(event_time: Int64s, label_time: Int64s, label: Values) -> Float64s:
    """The share of positives among the n labels known at each event's time, (positives + 1) / (n + 2); same shape."""
    order, known = _known_at(event_time, label_time)
    positives = np.concatenate(([0], np.cumsum(_binary(label, len(label_time))[order], dtype=np.int64)))
    return np.asarray((positives[known] + 1) / (known + 2), dtype=np.float64)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RunningMetrics:
    """Log loss, AUC and Brier score of examples that come in pieces; pieces merge in any order to the same integers.

    positives, negatives: examples by bin of the probability, bins of equal width. loss_units, squared_units: sums of
    the losses and of the squared errors, each rounded to LOSS_UNIT.
    """

    positives: Int64s
    negatives: Int64s
    loss_units: int
    squared_units: int

    @classmethod
    def empty(cls) -> Self:
        zeros = np.zeros(BINS, dtype=np.int64)
        return cls(positives=zeros, negatives=zeros, loss_units=0, squared_units=0)

    @classmethod
    def of(cls, probability: Values, label: Values) -> Self:
        probabilities, is_positive = _checked(probability, label)
        bins = bin_of(probabilities)
        return cls(
            positives=np.bincount(bins[is_positive], minlength=BINS),
            negatives=np.bincount(bins[~is_positive], minlength=BINS),
            loss_units=int(loss_units(probabilities, is_positive).sum()),
            squared_units=int(squared_units(probabilities, is_positive).sum()),
        )

    def __add__(self, other: RunningMetrics) -> RunningMetrics:
        return RunningMetrics(
            positives=self.positives + other.positives,
            negatives=self.negatives + other.negatives,
            loss_units=self.loss_units + other.loss_units,
            squared_units=self.squared_units + other.squared_units,
        )

    @property
    def count(self) -> int:
        return int(self.positives.sum() + self.negatives.sum())

    @property
    def base_rate(self) -> float:
        """The share of positives; NaN without examples."""
        return int(self.positives.sum()) / self.count if self.count else float("nan")

    @property
    def log_loss(self) -> float:
        """NaN without examples."""
        return self.loss_units * LOSS_UNIT / self.count if self.count else float("nan")

    @property
    def brier(self) -> float:
        """The mean squared error of the probability; NaN without examples."""
        return self.squared_units * LOSS_UNIT / self.count if self.count else float("nan")

    @property
    def auc(self) -> float:
        """Pairs within a bin count half, so it is off by at most `auc_error_max`."""
        return _auc_of_counts(self.positives, self.negatives)

    @property
    def auc_error_max(self) -> float:
        """Half the share of pairs that fall into one bin; NaN where the AUC is."""
        pairs = int(self.positives.sum()) * int(self.negatives.sum())
        return int((self.positives * self.negatives).sum()) / 2 / pairs if pairs else float("nan")


def bin_of(probability: Float64s) -> Int64s:
    """The bin of each probability, 0 to BINS - 1."""
    return np.minimum((probability * BINS).astype(np.int64), BINS - 1)


def loss_units(probability: Float64s, is_positive: npt.NDArray[np.bool_]) -> Int64s:
    """The loss of each example, rounded to LOSS_UNIT."""
    return np.rint(_losses(probability, is_positive) / LOSS_UNIT).astype(np.int64)


def squared_units(probability: Float64s, is_positive: npt.NDArray[np.bool_]) -> Int64s:
    """The squared error of each probability, rounded to LOSS_UNIT."""
    return np.rint((probability - is_positive) ** 2 / LOSS_UNIT).astype(np.int64)


def _auc_of_counts(positives: Int64s, negatives: Int64s) -> float:
    """`positives` and `negatives` by ascending probability."""
    pairs = int(positives.sum()) * int(negatives.sum())
    if not pairs:
        return float("nan")
    negatives_below = np.cumsum(negatives) - negatives
    half_wins = int((positives * (2 * negatives_below + negatives)).sum())
    return half_wins / (2 * pairs)


def _losses(probabilities: Float64s, is_positive: npt.NDArray[np.bool_]) -> Float64s:
    of_what_came = np.where(is_positive, probabilities, 1 - probabilities)
    return np.asarray(-np.log(np.clip(of_what_came, PROBABILITY_MIN, 1 - PROBABILITY_MIN)), dtype=np.float64)


def _known_at(event_time: Int64s, label_time: Int64s) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """The order of labels by (time, position), and for each event how many of them are known."""
    order = np.argsort(label_time, kind="stable")
    return order, np.searchsorted(label_time[order], event_time, side="right")


def _binary(label: Values, count: int) -> npt.NDArray[np.bool_]:
    labels = np.asarray(label)
    if labels.shape != (count,) or not np.isin(labels, (0, 1)).all():
        raise InvariantError(
            "TM-9601", f"metrics: {labels.shape} labels for {count} rows, or one that is neither 0 nor 1; this is a bug"
        )
    return np.asarray(labels == 1, dtype=np.bool_)


def _checked(probability: Values, label: Values) -> tuple[Float64s, npt.NDArray[np.bool_]]:
    probabilities = np.asarray(probability, dtype=np.float64)
    if probabilities.ndim != 1 or not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise InvariantError("TM-9602", "metrics: a probability is not within 0 and 1; this is a bug")
    return probabilities, _binary(label, len(probabilities))
