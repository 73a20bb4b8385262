"""How far a window strays from a training set by itself.

In: counts by tick and cell. Out: distances, and their laws without drift. Invariant: a function of the counts: windows
are drawn by a hash, not by chance.

Rows of one tick are not independent: one holiday or one sale moves all of a day. By the textbook's law a week would so
differ from its own quarter with certainty. The law of a column is therefore measured: windows of the training set are
compared with the whole of it, windows of scattered ticks (draws without replacement) as well as of neighbouring ones
(what lasts longer than a tick), and of both the larger mean and spread are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tidemill.core.records import Float64s, Int64s

DRAWS = 200  # windows of scattered ticks
WINDOWS_MIN = 4.0  # as which a short history counts: with the 2 that it may hold, nothing would ever be significant
TICKS_MIN = 8  # with fewer the spread between ticks cannot be told, and the multinomial law is all there is
TICK_EVENTS_MIN = 30  # with fewer a tick's share says nothing
HIGH = 0.95
SD_MARGIN = 1.1  # the law's shape is estimated, too: without it correlated days alarm three times as often
DIGITS = 6  # of shares and laws
EXPECTED_MIN = 5.0  # Cochran's rule: no cell of a chi-square counts as expecting less

ONE = np.zeros(1, dtype=np.intp)  # `starts` of a single subject


class Law(NamedTuple):
    """What a statistic of a window is without drift.

    mean, sd: of windows with `window_events` events each, as `windows` separate ones told; all 0 = not measured, so
    multinomial. events: of the reference. The label's mean is 0, its sd that of the difference of shares.
    """

    mean: float
    sd: float
    window_events: float
    windows: float
    events: int


class Ticks:
    """Which tick (0, 1, ...) each row belongs to, and the windows that laws are measured on."""

    def __init__(self, tick: Int64s, window: int) -> None:
        self.tick = tick
        self.window = window
        self.count = int(tick.max()) + 1 if len(tick) else 0
        self.is_measurable = self.count >= TICKS_MIN
        if not self.is_measurable:
            return
        size = min(window, self.count // 2)
        self._scattered = scattered(self.count, size)
        self._neighbours = neighbours(self.count, size)
        self._size = size

    def of(self, is_chosen: npt.NDArray[np.bool_]) -> Ticks:
        """Of some of the rows."""
        return Ticks(np.unique(self.tick[is_chosen], return_inverse=True)[1], self.window)

    def counts(self, cell: npt.NDArray[np.integer[Any]], cells: int) -> Int64s:
        """Rows by tick and cell, shape (ticks, cells)."""
        return np.bincount(self.tick * cells + cell, minlength=self.count * cells).reshape(self.count, cells)

    def high(self, by_tick: Int64s, cell: int) -> float:
        """The share of a cell on a bad tick: no more on HIGH of the ticks; of all rows where there are few ticks."""
        events = by_tick.sum(axis=1)
        is_told = events >= TICK_EVENTS_MIN
        overall = float(by_tick[:, cell].sum() / max(1, events.sum()))
        if np.count_nonzero(is_told) < TICKS_MIN:
            return rounded(overall)
        return rounded(float(np.quantile(by_tick[is_told, cell] / events[is_told], HIGH, method="higher")))

    def law(self, by_tick: Int64s, statistic: Callable[[Float64s], Float64s], reference: Ticks | None = None) -> Law:
        """Of a statistic that grows with the variance of a window's shares; `reference`: other ticks, if it is."""
        reference = reference or self
        events = len(reference.tick)
        if not self.is_measurable:
            return Law(0.0, 0.0, 0.0, 0.0, events)
        found = [statistic(windows @ by_tick) for windows in (self._scattered, self._neighbours)]
        # A window drawn of n ticks strays from their mean by 1/size - 1/n, a later one from a reference by a sum.
        growth = (1 / self.window + 1 / reference.count) / (1 / self._size - 1 / self.count)
        mean, sd = (growth * max(float(of(values)) for values in found) for of in (np.mean, np.std))
        sd *= SD_MARGIN
        window_events = len(self.tick) * self.window / self.count
        separate = max(WINDOWS_MIN, self.count / self._size)
        return Law(rounded(mean), rounded(sd), rounded(window_events), rounded(separate), events)


def scattered(count: int, size: int) -> Float64s:
    """DRAWS windows of `size` different ticks of `count`, shape (DRAWS, count) of 0 and 1.

    Drawn by SplitMix64 of the draw and the tick: no source of random numbers, the same windows everywhere.
    """
    mixed = np.arange(1, DRAWS * count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    order = (mixed ^ (mixed >> np.uint64(31))).reshape(DRAWS, count).argsort(axis=1)
    windows = np.zeros((DRAWS, count))
    np.put_along_axis(windows, order[:, :size], 1.0, axis=1)
    return windows


def neighbours(count: int, size: int) -> Float64s:
    """All windows of `size` successive ticks, shape (count - size + 1, count) of 0 and 1."""
    start, tick = np.arange(count - size + 1)[:, None], np.arange(count)
    return ((tick >= start) & (tick < start + size)).astype(np.float64)


def psi(counts: Float64s, shares: Float64s, starts: npt.NDArray[np.intp]) -> Float64s:
    """The population stability index of each subject, 0 where counts are in proportion to shares.

    A subject's cells begin at its entry of `starts`. Shares are above 0; they count as one more event per cell, so
    that an empty cell costs a finite amount.

    Args:
        counts: (..., cells). shares: (cells,).
    Returns:
        (..., subjects).
    """
    sizes = np.diff(starts, append=counts.shape[-1])
    events = np.add.reduceat(counts, starts, axis=-1)
    found = (counts + np.repeat(sizes, sizes) * shares) / np.repeat(events + sizes, sizes, axis=-1)
    return np.asarray(np.add.reduceat((found - shares) * np.log(found / shares), starts, axis=-1), dtype=np.float64)


def chi2(counts: Float64s, shares: Float64s, starts: npt.NDArray[np.intp]) -> Float64s:
    """Pearson's chi-square by event (phi squared) of each subject; arguments as of `psi`, NaN without events."""
    sizes = np.diff(starts, append=counts.shape[-1])
    with np.errstate(invalid="ignore", divide="ignore"):
        events = np.repeat(np.add.reduceat(counts, starts, axis=-1), sizes, axis=-1)
        terms = (counts / events - shares) ** 2 / np.maximum(shares, EXPECTED_MIN / events)
    return np.asarray(np.add.reduceat(terms, starts, axis=-1), dtype=np.float64)


def rounded(value: float) -> float:
    """To DIGITS."""
    return float(f"{value:.{DIGITS}g}")
