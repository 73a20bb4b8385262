"""Which updates of a batch lie in each single pane that an event sees, whatever the order of their times.

In: queries, updates, the length of a pane. Out: for each query and pane, a range of updates and what is in it.
Invariant: an event at position i finds updates at positions < i only, in panes (q - 12, q] of its own pane q.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tidemill.core.asking import Queries, Updates
from tidemill.core.records import Int64s
from tidemill.core.state import PANES

ABSENT = int(np.iinfo(np.int64).min)  # less than any stored value


@dataclass(frozen=True, slots=True)
class PaneRanges:
    """order: places of the updates by entity, pane and position. start, end: shape (queries, 12), newest pane first;
    query i sees in pane k those at order[start[i, k]:end[i, k]]. run: number of each update's entity and pane."""

    order: Int64s
    run: Int64s
    start: Int64s
    end: Int64s

    @staticmethod
    def of(queries: Queries, updates: Updates, pane_ms: int) -> PaneRanges:
        empty = np.zeros((len(queries.code), PANES), dtype=np.int64)
        read = int(np.searchsorted(updates.code, queries.entity_count))  # the rest is of entities nobody asks for
        if read == 0:
            return PaneRanges(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), empty, empty)
        code, position, pane = updates.code[:read], updates.position[:read], updates.time[:read] // pane_ms
        oldest = int(pane.min())
        span = int(pane.max()) - oldest + 1
        order = np.lexsort((position, pane, code))
        key = (code * span + (pane - oldest))[order]
        first = np.flatnonzero(np.concatenate(([True], key[1:] != key[:-1])))
        run = np.repeat(np.arange(len(first)), np.diff(first, append=read))

        wanted = (queries.time // pane_ms - oldest)[:, None] - np.arange(PANES)
        wanted_key = queries.code[:, None] * span + wanted
        found = np.minimum(np.searchsorted(key[first], wanted_key), len(first) - 1)
        is_there = (wanted >= 0) & (wanted < span) & (key[first][found] == wanted_key)
        positions = int(max(position.max(), queries.position.max(initial=0))) + 1
        ends = np.searchsorted(run * positions + position[order], found * positions + queries.position[:, None])
        return PaneRanges(order, run, np.where(is_there, first[found], 0), np.where(is_there, ends, 0))

    def totals(self, cells: Int64s) -> Int64s:
        """Sums by pane, shape (queries, 12, cells); `cells` has a row per update."""
        sums = np.zeros((len(self.order) + 1, cells.shape[1]), dtype=np.int64)
        np.cumsum(cells[self.order], axis=0, out=sums[1:])
        totals: Int64s = sums[self.end] - sums[self.start]
        return totals

    def maxima(self, values: Int64s) -> Int64s:
        """The largest value in all panes of each query, shape (queries,), ABSENT = none; |value| < 2^36."""
        if not len(self.order):
            return np.full(len(self.start), ABSENT, dtype=np.int64)
        ordered = values[self.order]
        least = int(ordered.min())
        base = self.run * (int(ordered.max()) - least + 1) - least
        running = np.maximum.accumulate(ordered + base) - base  # starts again in each run
        by_pane = np.where(self.end > self.start, running[self.end - 1], ABSENT)
        maxima: Int64s = by_pane.max(axis=1)
        return maxima
