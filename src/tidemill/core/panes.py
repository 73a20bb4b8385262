"""Counts and sums over the last twelve panes, read for many events at once, and the deltas that records leave.

In: the state of entities as words, queries, updates with their cells. Out: totals per query; merged deltas.
Invariant: an event of pane q sees panes (q - 12, q] of the state as read and of the updates before it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, repeat

import numpy as np

from tidemill.core.asking import Bools, Ordered, Queries, Updates, in_order, seen_stragglers
from tidemill.core.feature_plan import ExtremeSeries, PaneSeries
from tidemill.core.records import Float64s, Int64s, PaneDelta
from tidemill.core.state import PANES

# 12 panes of 8,192 such values still have a sum below 2^53, where Lua's numbers stop being exact.
STORED_LIMIT = 2.0**36


def stored_cells(values: Float64s | None, unit: float, count: int) -> Int64s:
    """What each record adds: shape (count, 1) for counts, (count, 2) with the value in units for means.

    Missing values, and those of 2^36 units or more, add nothing.
    """
    if values is None:
        return np.ones((count, 1), dtype=np.int64)
    scaled = np.rint(values / unit)
    with np.errstate(invalid="ignore"):
        is_valid = np.abs(scaled) < STORED_LIMIT
    cells = np.empty((count, 2), dtype=np.int64)
    cells[:, 0] = is_valid
    cells[:, 1] = np.where(is_valid, scaled, 0.0)
    return cells


@dataclass(frozen=True, slots=True)
class PaneReader:
    """The updates of one topic in one group, ready to be read in windows of any length."""

    queries: Queries
    ordered: Ordered
    is_ordered: Bools | None  # None = all
    stragglers: Updates

    @staticmethod
    def of(queries: Queries, updates: Updates) -> PaneReader:
        fits = in_order(updates.code, updates.time)
        if fits.all():
            return PaneReader(queries, Ordered.of(queries, updates), None, updates.take(slice(0, 0)))
        return PaneReader(queries, Ordered.of(queries, updates.take(fits)), fits, updates.take(~fits))

    def totals(self, series: PaneSeries, cells: Int64s) -> Int64s:
        """Sum of the cells of the updates that each query sees; shape (queries, cells)."""
        newest = self.queries.time // series.pane_ms
        of_ordered = cells if self.is_ordered is None else cells[self.is_ordered]
        sums = np.zeros((len(of_ordered) + 1, series.cells), dtype=np.int64)
        np.cumsum(of_ordered, axis=0, out=sums[1:])
        first = self.ordered.before((newest - PANES + 1) * series.pane_ms)
        last = self.ordered.end_before((newest + 1) * series.pane_ms)
        totals: Int64s = sums[np.maximum(last, first)] - sums[first]
        if self.is_ordered is not None:
            late_cells = cells[~self.is_ordered]
            panes = self.stragglers.time // series.pane_ms
            for part, is_before in seen_stragglers(self.queries, self.stragglers):
                in_window = (panes[None, part] > newest[:, None] - PANES) & (panes[None, part] <= newest[:, None])
                totals = totals + (is_before & in_window).astype(np.int64) @ late_cells[part]
        return totals


def stored_ring(series: PaneSeries | ExtremeSeries, words: Int64s, queries: Queries) -> Int64s:
    """The slots of each query's entity as read, shape (queries, slots, 1 + cells)."""
    ring = words[:, series.word : series.word + series.slots * series.slot_words].take(queries.code, axis=0)
    return ring.reshape(len(ring), series.slots, series.slot_words)


def stored_totals(series: PaneSeries, words: Int64s, queries: Queries) -> Int64s:
    """Sum of the cells in the window of each query, of the state as read; shape (queries, cells).

    words: (entities + 1, words of the group); the last row is of an event without entity.
    """
    slots = stored_ring(series, words, queries)
    newest_tag = (queries.time // series.pane_ms)[:, None] + 1
    tags = slots[:, :, 0]
    in_window = (tags > newest_tag - PANES) & (tags <= newest_tag)
    totals: Int64s = np.einsum("qs,qsc->qc", in_window.astype(np.int64), slots[:, :, 1:])
    return totals


@dataclass(frozen=True, slots=True)
class MergedDeltas:
    """What a batch leaves in one series: one row per entity, slot and tag; total has shape (rows, cells)."""

    code: Int64s
    word: Int64s
    tag: Int64s
    total: Int64s
    takes_max: bool = False

    def cells(self) -> Iterator[tuple[int, ...]]:
        if self.total.shape[1] == 0:
            return repeat((), len(self.total))
        return zip(*self.total.T.tolist(), strict=True)


def merged_deltas(series: PaneSeries, updates: Updates, cells: Int64s) -> MergedDeltas:
    """What the updates add to the store, one delta per entity and pane; records that count for nothing leave none."""
    kept = np.flatnonzero(cells[:, 0])
    code, pane, added = combined(updates.code[kept], updates.time[kept] // series.pane_ms, cells[kept], np.add)
    word = series.word + (pane % series.slots) * series.slot_words
    return MergedDeltas(code, word, pane + 1, added)


def combined(code: Int64s, place: Int64s, cells: Int64s, combine: np.ufunc) -> tuple[Int64s, Int64s, Int64s]:
    """One row (code, place, cells) per code and place, in their order; `code` ascends."""
    if not in_order(code, place).all():
        by_place = np.lexsort((place, code))
        code, place, cells = code[by_place], place[by_place], cells[by_place]
    if not len(code):
        return code, place, cells
    first = np.flatnonzero(np.concatenate(([True], (code[1:] != code[:-1]) | (place[1:] != place[:-1]))))
    return code[first], place[first], combine.reduceat(cells, first, axis=0)


def pane_deltas(merged: Sequence[MergedDeltas], keys: Sequence[str], rank: Int64s, word_count: int) -> list[PaneDelta]:
    """The deltas of all series of a group by key, word and tag. keys: by entity code, rank: their order."""
    code, word, tag = (np.concatenate([getattr(one, name) for one in merged]) for name in ("code", "word", "tag"))
    cells = [each for one in merged for each in one.cells()]
    takes_max = chain.from_iterable(repeat(one.takes_max, len(one.code)) for one in merged)
    fields = zip(map(keys.__getitem__, code.tolist()), word.tolist(), tag.tolist(), cells, takes_max, strict=True)
    deltas = list(map(PaneDelta._make, fields))
    # Tags of one slot ascend already, and a stable sort by one number costs a third of one by three.
    return [deltas[at] for at in np.argsort(rank[code] * word_count + word, kind="stable").tolist()]
