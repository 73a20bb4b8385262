"""Counts of many windows and slices at once: what the figures of progressive validation are made of.

In: scored rows, each with the group (window and slice) it belongs to. Out: a `Tally` for a series in a group.
Invariant: everything is an integer, so adding rows in any order and pieces gives the same cells, and tallies add up.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from tidemill.core.metrics import BINS, LOSS_UNIT, RunningMetrics, bin_of, loss_units, squared_units
from tidemill.core.records import Float64s, Int64s

DELAY_STEPS = 64  # of each doubling: a delay is rounded down by at most 1/64
DELAY_BUCKETS = 36 * DELAY_STEPS  # up to 2^41 ms, 69 years
# What is summed for each series in each group.
SUMS = (
    "loss",
    "squared",
    "said",
    "hits",
    "false_alarms",
    "constant_loss",
    "constant_right",
    "no_change_loss",
    "no_change_right",
)


def delay_bucket(delay_ms: Int64s) -> Int64s:
    """The bucket of each delay: exact below 128 ms, then DELAY_STEPS equal ones for each doubling."""
    delay = np.clip(delay_ms, 0, 2**41 - 1)
    shift = np.maximum(np.frexp(delay.astype(np.float64))[1].astype(np.int64) - 7, 0)
    return np.asarray(shift * DELAY_STEPS + (delay >> shift), dtype=np.int64)


def delay_of(bucket: int) -> int:
    """The shortest delay of a bucket, in ms."""
    shift = max(bucket // DELAY_STEPS - 1, 0)
    return (bucket - shift * DELAY_STEPS) << shift


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tally:
    """One series in one group, as integers; tallies of disjoint examples add up to that of all.

    sums: in the order of SUMS; losses, squares and probabilities in LOSS_UNIT, the others are counts. delays: of all
    measured examples of the group, by bucket, also where this series said nothing. offset_first, offset_last: of them.
    """

    running: RunningMetrics
    sums: Int64s
    delays: Int64s
    offset_first: int
    offset_last: int

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            running=self.running + other.running,
            sums=self.sums + other.sums,
            delays=self.delays + other.delays,
            offset_first=min(self.offset_first, other.offset_first),
            offset_last=max(self.offset_last, other.offset_last),
        )

    def sum_of(self, name: str) -> int:
        return int(self.sums[SUMS.index(name)])

    def delay_ms(self, percent: int) -> int | None:
        """The delay that at least `percent` of the examples do not exceed, rounded down by at most 1/64."""
        count = int(self.delays.sum())
        if not count:
            return None
        rank = -(-count * percent // 100)
        return delay_of(int(np.searchsorted(np.cumsum(self.delays), rank)))


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredRows:
    """Measured examples as integers, ready to be added to any grouping; series run along the last axis but one.

    bins: (rows, series), -1 = the series said nothing. sums: (rows, series, SUMS), zero there.
    """

    bins: Int64s
    sums: Int64s
    is_positive: npt.NDArray[np.bool_]
    delay: Int64s  # buckets
    offset: Int64s

    @classmethod
    def of(
        cls,
        *,
        series: Sequence[Float64s],
        constant: Float64s,
        no_change: Float64s,
        is_positive: npt.NDArray[np.bool_],
        delay_ms: Int64s,
        offset: Int64s,
        threshold: float,
    ) -> Self:
        """`series` and baselines: probabilities of the rows, NaN where a series said nothing."""
        bins = np.full((len(offset), len(series)), -1, dtype=np.int64)
        sums = np.zeros((len(offset), len(series), len(SUMS)), dtype=np.int64)
        of_baselines = [
            counted
            for said in (constant, no_change)
            for counted in (loss_units(said, is_positive), (said > threshold) == is_positive)
        ]
        for index, said in enumerate(series):
            at = np.flatnonzero(~np.isnan(said))
            probability, came = said[at], is_positive[at]
            bins[at, index] = bin_of(probability)
            is_alarm = probability > threshold
            columns = (
                loss_units(probability, came),
                squared_units(probability, came),
                np.rint(probability / LOSS_UNIT),
                is_alarm & came,
                is_alarm & ~came,
                *(counted[at] for counted in of_baselines),
            )
            sums[at, index] = np.stack(columns, axis=1)
        return cls(bins=bins, sums=sums, is_positive=is_positive, delay=delay_bucket(delay_ms), offset=offset)

    def where(self, at: npt.NDArray[np.bool_]) -> ScoredRows:
        """The rows where `at` holds."""
        return ScoredRows(
            bins=self.bins[at],
            sums=self.sums[at],
            is_positive=self.is_positive[at],
            delay=self.delay[at],
            offset=self.offset[at],
        )


class Cells:
    """Counts by group and series. Groups are numbered as they come; memory grows with them.

    bins: of the probability, a divisor of BINS.
    """

    def __init__(self, *, series: int, bins: int) -> None:
        self._series, self._bins = series, bins
        self._numbers: dict[Hashable, int] = {}
        self._counts = np.zeros((0, series, bins, 2), dtype=np.int32)  # 2^31 examples a bin
        self._sums = np.zeros((0, series, len(SUMS)), dtype=np.int64)
        self._delays = np.zeros((0, DELAY_BUCKETS), dtype=np.int32)
        self._first = np.zeros(0, dtype=np.int64)
        self._last = np.zeros(0, dtype=np.int64)

    def __contains__(self, group: Hashable) -> bool:
        return group in self._numbers

    def size(self, group: Hashable) -> int:
        """The rows that were added to a group; 0 when there is none."""
        return int(self._delays[self._numbers[group]].sum()) if group in self._numbers else 0

    def add(self, scored: ScoredRows, groups: Sequence[Hashable], group_of_row: npt.NDArray[np.intp]) -> None:
        """Add each row to the group `groups[group_of_row]`; every group listed has a row."""
        numbers = np.array([self._numbers.setdefault(group, len(self._numbers)) for group in groups], dtype=np.int64)
        self._make_room(len(self._numbers))
        order = np.argsort(group_of_row, kind="stable")
        starts = np.searchsorted(group_of_row[order], np.arange(len(groups)))
        self._sums[numbers] += np.add.reduceat(scored.sums[order], starts, axis=0)
        offsets = scored.offset[order]
        self._first[numbers] = np.minimum(self._first[numbers], np.minimum.reduceat(offsets, starts))
        self._last[numbers] = np.maximum(self._last[numbers], np.maximum.reduceat(offsets, starts))

        number = numbers[group_of_row]
        np.add.at(self._delays.reshape(-1), number * DELAY_BUCKETS + scored.delay, 1)
        row, series = np.nonzero(scored.bins >= 0)
        cell = (number[row] * self._series + series) * self._bins + scored.bins[row, series] * self._bins // BINS
        np.add.at(self._counts.reshape(-1), cell * 2 + scored.is_positive[row], 1)

    def tally(self, group: Hashable, series: int) -> Tally:
        """Raises KeyError where no row was added."""
        number = self._numbers[group]
        counts = self._counts[number, series].astype(np.int64)
        sums = self._sums[number, series].copy()
        return Tally(
            running=RunningMetrics(
                positives=counts[:, 1],
                negatives=counts[:, 0],
                loss_units=int(sums[SUMS.index("loss")]),
                squared_units=int(sums[SUMS.index("squared")]),
            ),
            sums=sums,
            delays=self._delays[number].astype(np.int64),
            offset_first=int(self._first[number]),
            offset_last=int(self._last[number]),
        )

    def _make_room(self, groups: int) -> None:
        have = len(self._first)
        if groups <= have:
            return
        size = max(groups, 2 * have)
        self._counts, self._sums = _grown(self._counts, size), _grown(self._sums, size)
        self._delays, self._last = _grown(self._delays, size), _grown(self._last, size)
        first = np.full(size, np.iinfo(np.int64).max)
        first[:have] = self._first
        self._first = first


def _grown(rows: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    grown = np.zeros((size, *rows.shape[1:]), dtype=rows.dtype)
    grown[: len(rows)] = rows
    return grown
