"""What was lost over the last ticks: by series, by value of a category, and by the learner against its rivals.

In: measured examples, tick by tick. Out: mean losses of a window of ticks. Invariant: sums are integers, so neither the
order of a tick's examples nor how they were cut changes a figure; memory does not grow with their number.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tidemill.core.metrics import LOSS_UNIT, PROBABILITY_MIN, loss_units, squared_units
from tidemill.core.records import ExampleColumns, Float64s, Int64s

SERIES = ("blend", "learner", "booster", "base_rate")
VALUES_MAX = 256  # of a category that are counted apart, in the order in which they come; the others are one rest
EXAMPLES_MIN = 500  # of a window before its losses are compared: then .02 nats are more than chance as a rule
LEARNER_MARGIN = 0.02  # nats; a learner mostly loses a little more than the booster whose leaves it sees


def expected_loss_units(probability: Float64s) -> Int64s:
    """The log loss that each probability expects if it is right (its entropy), rounded to LOSS_UNIT."""
    clipped = np.clip(probability, PROBABILITY_MIN, 1 - PROBABILITY_MIN)
    expected = -(clipped * np.log(clipped) + (1 - clipped) * np.log1p(-clipped))
    return np.rint(expected / LOSS_UNIT).astype(np.int64)


class TickLosses(NamedTuple):
    """Of the measured examples of a tick. log_loss: the blend's mean, None without examples. excess_sum: over what the
    blend itself expects, nats; squared_error: of the blend, summed."""

    examples: int
    log_loss: float | None
    excess_sum: float
    squared_error: float

    @property
    def excess(self) -> float | None:
        """The mean; None without examples."""
        return self.excess_sum / self.examples if self.examples else None


class _Cells:
    """The sums of one tick, or of a whole window. Rows of `by_series`: examples, losses, the blend's losses on them."""

    def __init__(self, columns: int) -> None:
        self.excess = self.squared = 0
        self.by_series = np.zeros((3, len(SERIES)), dtype=np.int64)
        self.by_value = np.zeros((2, columns, VALUES_MAX + 1), dtype=np.int64)  # examples, excess

    def add(self, other: _Cells) -> None:
        self.excess += other.excess
        self.squared += other.squared
        self.by_series += other.by_series
        self.by_value += other.by_value

    @property
    def examples(self) -> int:
        return int(self.by_series[0, 0])

    @property
    def log_loss(self) -> float | None:
        return int(self.by_series[1, 0]) * LOSS_UNIT / self.examples if self.examples else None

    @property
    def mean_excess(self) -> float | None:
        return self.excess * LOSS_UNIT / self.examples if self.examples else None


class LossWindow:
    """Losses of the open tick and of the last `ticks` ones."""

    def __init__(self, category_names: Sequence[str], ticks: int) -> None:
        self._names = tuple(category_names)
        self._values: tuple[dict[str, int], ...] = tuple({} for _ in category_names)
        self._open = _Cells(len(self._names))
        self._closed: deque[_Cells] = deque(maxlen=ticks)
        self._window = _Cells(len(self._names))

    def add(self, measured: ExampleColumns) -> None:
        """Examples of the open tick, each with a blend."""
        is_positive = measured.label == 1
        blend_units = loss_units(measured.blend, is_positive)
        excess = blend_units - expected_loss_units(measured.blend)
        cells = self._open
        cells.excess += int(excess.sum())
        cells.squared += int(squared_units(measured.blend, is_positive).sum())
        for index, name in enumerate(SERIES):
            said = getattr(measured, name)
            known = ~np.isnan(said)
            cells.by_series[0, index] += int(known.sum())
            cells.by_series[1, index] += int(loss_units(said[known], is_positive[known]).sum())
            cells.by_series[2, index] += int(blend_units[known].sum())
        for column, values in enumerate(measured.features.categories[: len(self._names)]):
            codes = self._codes(column, values)
            np.add.at(cells.by_value[0, column], codes, 1)
            np.add.at(cells.by_value[1, column], codes, excess)

    def close_tick(self) -> TickLosses:
        """The open tick is over; another one begins."""
        tick, self._open = self._open, _Cells(len(self._names))
        self._closed.append(tick)
        self._window = _Cells(len(self._names))
        for cells in self._closed:
            self._window.add(cells)
        return TickLosses(tick.examples, tick.log_loss, tick.excess * LOSS_UNIT, tick.squared * LOSS_UNIT)

    @property
    def is_judged(self) -> bool:
        """Whether the window is full and has examples enough to compare its losses."""
        return len(self._closed) == self._closed.maxlen and self.examples >= EXAMPLES_MIN

    @property
    def examples(self) -> int:
        return self._window.examples

    @property
    def mean_excess(self) -> float | None:
        return self._window.mean_excess

    @property
    def losses(self) -> dict[str, float]:
        """Mean log loss of the window by series, each over the examples on which it said something."""
        counts, units, _ = self._window.by_series.tolist()
        return {name: units[at] * LOSS_UNIT / counts[at] for at, name in enumerate(SERIES) if counts[at]}

    @property
    def gaps(self) -> dict[str, float]:
        """The blend's log loss less that of each expert on the same examples; experts with EXAMPLES_MIN, if judged."""
        counts, units, blend_units = self._window.by_series.tolist()
        return {
            name: (blend_units[at] - units[at]) * LOSS_UNIT / counts[at]
            for at, name in enumerate(SERIES)
            if name != "blend" and self.is_judged and counts[at] >= EXAMPLES_MIN
        }

    def worst_slices(self, *, count: int, rows_min: int) -> tuple[tuple[str, float], ...]:
        """("feature=value", mean excess in the window), worst first, of values with so many rows and an excess."""
        found = []
        for column, values in enumerate(self._values):
            for value, code in values.items():
                rows, units = self._window.by_value[:, column, code].tolist()
                if rows >= rows_min and units > 0:
                    found.append((f"{self._names[column]}={value}", units * LOSS_UNIT / rows))
        return tuple(sorted(found, key=lambda one: (-one[1], one[0]))[:count])

    def _codes(self, column: int, values: Sequence[str]) -> npt.NDArray[np.int64]:
        known = self._values[column]
        if len(known) < VALUES_MAX:
            for value in dict.fromkeys(values):
                if len(known) < VALUES_MAX:
                    known.setdefault(value, len(known))
        return np.fromiter((known.get(value, VALUES_MAX) for value in values), dtype=np.int64, count=len(values))


class GuardVerdict(NamedTuple):
    """is_bad: the learner was worse than booster and base rate. since: the first example's offset, -1 if not bad."""

    is_bad: bool
    since: int


class LearnerGuard:
    """Compares the champion's learner with its booster and base rate over the last `ticks` ticks since a change."""

    def __init__(self, ticks: int) -> None:
        self._closed: deque[tuple[Int64s, int]] = deque(maxlen=ticks)  # sums of a tick, its first offset or -1
        self._sums: Int64s = np.zeros(4, dtype=np.int64)  # examples; losses of learner, booster, base rate
        self._first_offset = -1

    def begin(self) -> None:
        """Another learner: what was counted is not its own, the window fills anew from here."""
        self._closed.clear()
        self._open_tick()

    def add(self, measured: ExampleColumns) -> None:
        """Examples of the champion, in log order; those on which one of the three said nothing are left out."""
        rivals = [measured.learner, measured.booster, measured.base_rate]
        known = ~np.isnan(rivals).any(axis=0)
        if not known.any():
            return
        is_positive = measured.label[known] == 1
        self._sums[0] += int(known.sum())
        self._sums[1:] += [int(loss_units(said[known], is_positive).sum()) for said in rivals]
        if self._first_offset < 0:
            self._first_offset = int(measured.offset[known][0])

    def close_tick(self) -> GuardVerdict:
        """The verdict over the window; not bad while it is not full or holds fewer than EXAMPLES_MIN examples."""
        self._closed.append((self._sums, self._first_offset))
        self._open_tick()
        examples, learner, booster, base_rate = np.sum([sums for sums, _ in self._closed], axis=0).tolist()
        if len(self._closed) < (self._closed.maxlen or 0) or examples < EXAMPLES_MIN:
            return GuardVerdict(False, -1)
        if (learner - max(booster, base_rate)) * LOSS_UNIT / examples <= LEARNER_MARGIN:
            return GuardVerdict(False, -1)
        return GuardVerdict(True, next(first for _, first in self._closed if first >= 0))

    def _open_tick(self) -> None:
        self._sums = np.zeros(4, dtype=np.int64)
        self._first_offset = -1
