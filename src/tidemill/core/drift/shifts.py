"""Do features, predictions and labels of the last days look as in training?

In: what was served and labelled, tick by tick. Out: one Shift per column of the reference, the prediction and the
label. Invariant: counts are integers by tick; the order of the rows of a tick changes nothing.

How a p-value is made: without drift the statistic (PSI; chi-square by event for categories) is about a gamma law with
the mean and variance that windows of the training set had (core/drift/laws.py), never less than the multinomial
ones. The scale of that law was itself estimated, on no more windows than the training set holds side by side, so it is
the F law with as many times the degrees of freedom below the line; the label's difference is likewise Student's. All
subjects of a tick share one false-discovery level.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.special import fdtrc, gammaincc, stdtr  # type: ignore[import-untyped, unused-ignore]

from tidemill.core.drift.laws import Law, chi2, psi
from tidemill.core.drift.reference import NumericReference, Reference, cells_of
from tidemill.core.loop_spec import MonitorSpec
from tidemill.core.records import FeatureBatch, Float32s, Float64s, Int64s
from tidemill.core.ticks import Shift

PREDICTION, LABEL = "prediction", "label"
LABEL_EFFECT = 0.05  # a smaller change of the share of positives is no alert, as `psi` is for the others
EVENTS_MIN = 50  # of a window: below it nothing is said about a subject


class ShiftJudge:
    """Counts the window's ticks in a ring and compares their sum with the reference."""

    def __init__(
        self, reference: Reference, spec: MonitorSpec, numeric_names: Sequence[str], category_names: Sequence[str]
    ) -> None:
        """Columns that the reference does not know are not judged."""
        self._spec = spec
        self._label = reference.label
        self._numeric = [
            (at, reference.numeric[name]) for at, name in enumerate(numeric_names) if name in reference.numeric
        ]
        known = [
            (at, reference.categories[name]) for at, name in enumerate(category_names) if name in reference.categories
        ]
        self._categories = [(at, {value: cell for cell, value in enumerate(column.values)}) for at, column in known]
        self._score = reference.score
        numeric = [numeric_names[at] for at, _ in self._numeric]
        self._subjects = (*numeric, *(category_names[at] for at, _ in known), *([PREDICTION] if self._score else []))
        columns = [column for _, column in self._numeric] + [column for _, column in known]
        columns += [self._score] if self._score else []
        self._is_chi2 = np.array([not isinstance(column, NumericReference) for column in columns], dtype=np.bool_)
        self._sizes = np.array([len(column.shares) for column in columns], dtype=np.intp)
        self._starts = np.cumsum(self._sizes) - self._sizes
        self._shares = np.array([share for column in columns for share in column.shares])
        self._laws = [column.law for column in columns]
        window = spec.window_ms // spec.every_ms
        self._counts = _Ring(window, int(self._sizes.sum()))
        self._labels = _Ring(window, 2)
        self._first: int | None = None

    def add(self, tick: int, features: FeatureBatch, probability: Float64s) -> None:
        """Predictions of a tick, in any order and in any number of calls; NaN in `probability` is left out."""
        self._begin(tick)
        counts = self._counts.at(tick)
        if counts is None:
            return
        starts = iter(self._starts.tolist())
        numeric = np.ascontiguousarray(features.numeric.T)  # a column at a time is read twice as fast
        for at, column in self._numeric:
            _count(counts, next(starts), numeric[at], column)
        for at, cells in self._categories:
            start, other = next(starts), len(cells)
            for value, count in Counter(features.categories[at]).items():
                counts[start + (cells.get(value, other) if value else other + 1)] += count
        if self._score is not None:
            _count(counts, next(starts), probability[~np.isnan(probability)], self._score)

    def add_labels(self, tick: int, label: Float32s) -> None:
        """Labels that came in a tick, 0 or 1."""
        self._begin(tick)
        counts = self._labels.at(tick)
        if counts is not None:
            counts += np.bincount((label > 0.5).astype(np.intp), minlength=2)

    def judge(self, tick: int) -> tuple[Shift, ...]:
        """The window that ends with `tick`; nothing until it has been watched for as long, or where it is too thin."""
        window = self._spec.window_ms // self._spec.every_ms
        if self._first is None or tick - self._first + 1 < window:
            return ()
        found = [*self._columns(tick), *self._labels_shift(tick)]
        is_rare = benjamini_hochberg(
            np.array([shift.p_value for shift in found]), 1 / self._spec.average_run_length
        ).tolist()
        return tuple(
            shift._replace(is_drift=shift.is_drift and rare) for shift, rare in zip(found, is_rare, strict=True)
        )

    def _begin(self, tick: int) -> None:
        self._first = tick if self._first is None else min(self._first, tick)

    def _columns(self, tick: int) -> list[Shift]:
        """`is_drift` says here whether the effect is large enough."""
        if not self._subjects:
            return []
        counts = self._counts.sum(tick).astype(np.float64)
        events = np.add.reduceat(counts, self._starts)
        effect = psi(counts, self._shares, self._starts)
        statistic = np.where(self._is_chi2, chi2(counts, self._shares, self._starts), effect)
        p_value = p_values(statistic, self._laws, self._sizes, events)
        return [
            Shift(
                subject,
                "chi2" if self._is_chi2[at] else "psi",
                float(effect[at]),
                float(p_value[at]),
                bool(effect[at] >= self._spec.psi),
            )
            for at, subject in enumerate(self._subjects)
            if events[at] >= EVENTS_MIN
        ]

    def _labels_shift(self, tick: int) -> list[Shift]:
        negatives, positives = self._labels.sum(tick).tolist()
        events, law = negatives + positives, self._label.law
        if events < EVENTS_MIN or not law.events:
            return []
        share = self._label.share
        difference = positives / events - share
        binomial = share * (1 - share)
        variance = max(law.sd**2 + binomial * _thinner(law, events), binomial * (1 / events + 1 / law.events))
        freedom = law.windows or np.inf
        p_value = 2 * float(stdtr(freedom, -abs(difference) / max(variance, 1e-12) ** 0.5))
        return [Shift(LABEL, "psi", difference, p_value, abs(difference) >= LABEL_EFFECT)]


def p_values(statistic: Float64s, laws: Sequence[Law], cells: npt.NDArray[np.intp], events: Float64s) -> Float64s:
    """How often a window of `events` without drift has a statistic as large, or larger; each shape (subjects,)."""
    found = np.array([law[:4] for law in laws], dtype=np.float64)
    mean, sd, _, windows = found.T
    freedom = cells - 1
    thinner = np.array([_thinner(law, count) for law, count in zip(laws, events.tolist(), strict=True)])
    noise = 1 / np.maximum(1.0, events) + 1 / np.array([max(1, law.events) for law in laws])
    mean = np.maximum(mean + freedom * thinner, freedom * noise)
    sd = np.maximum(sd + np.sqrt(2 * freedom) * thinner, np.sqrt(2 * freedom) * noise)
    shape = (mean / sd) ** 2
    is_measured = windows > 0
    ratio = np.maximum(0.0, np.nan_to_num(statistic)) / mean
    of_measured = fdtrc(2 * shape, 2 * shape * np.maximum(1, windows), ratio)
    return np.asarray(np.where(is_measured, of_measured, gammaincc(shape, shape * ratio)), dtype=np.float64)


def benjamini_hochberg(p_values: Float64s, level: float) -> npt.NDArray[np.bool_]:
    """Which hypotheses go, so that of those that go at most the share `level` is expected to be true."""
    order = np.argsort(p_values, kind="stable")
    is_below = p_values[order] <= level * np.arange(1, len(order) + 1) / max(1, len(order))
    count = int(np.flatnonzero(is_below)[-1]) + 1 if is_below.any() else 0
    is_rejected = np.zeros(len(order), dtype=np.bool_)
    is_rejected[order[:count]] = True
    return is_rejected


class _Ring:
    """Counts of the last `window` ticks."""

    def __init__(self, window: int, cells: int) -> None:
        self._counts = np.zeros((window, cells), dtype=np.int64)
        self._tick = np.full(window, -1, dtype=np.int64)

    def at(self, tick: int) -> Int64s | None:
        """The counts of a tick, to add to; None where a later one has taken its place."""
        place = tick % len(self._tick)
        if tick < self._tick[place]:
            return None
        if tick > self._tick[place]:
            self._tick[place] = tick
            self._counts[place] = 0
        return np.asarray(self._counts[place])  # a view

    def sum(self, tick: int) -> Int64s:
        """Of the window that ends with `tick`."""
        is_inside = (self._tick <= tick) & (self._tick > tick - len(self._tick))
        return np.asarray(self._counts[is_inside].sum(axis=0), dtype=np.int64)


def _count(counts: Int64s, start: int, values: Float32s | Float64s, column: NumericReference) -> None:
    cells = len(column.shares)
    counts[start : start + cells] += np.bincount(cells_of(values, column.edges), minlength=cells)


def _thinner(law: Law, events: float) -> float:
    """What a window with fewer events than the measured ones adds to the variance of a share, in units of p (1 - p)."""
    return max(0.0, 1 / max(1.0, events) - 1 / law.window_events) if law.window_events else 0.0
