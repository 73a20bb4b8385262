"""Counts and sums in which a record of one half-life ago counts for half, read from twelve panes of half a half-life.

In: panes as stored and those of the batch. Out: decayed cells per query, as float64.
Invariant: weights are whole numbers of 2^-20 and sums are exact; the result is the exact sum, rounded once.
"""

from __future__ import annotations

from math import isqrt

import numpy as np

from tidemill.core.asking import Queries
from tidemill.core.feature_plan import PaneSeries
from tidemill.core.pane_ranges import PaneRanges
from tidemill.core.panes import stored_ring
from tidemill.core.records import Float64s, Int64s
from tidemill.core.state import PANES

WEIGHT_BITS = 20  # a weight is right to 1e-6; 2^53, the largest sum, times 12 of them is split in two int64
# round(2^-(age / 2) * 2^20) by age in panes, without a power of floats: 2^(20 - age / 2) is the root of 2^(40 - age).
WEIGHTS = np.array([(isqrt(2 ** (2 * WEIGHT_BITS + 2 - age)) + 1) // 2 for age in range(PANES)], dtype=np.int64)
_LOW_BITS = 24


def decayed_cells(series: PaneSeries, words: Int64s, queries: Queries, ranges: PaneRanges, cells: Int64s) -> Float64s:
    """Weighted sums of the cells in state and batch, shape (queries, cells).

    words: (entities + 1, words of the group); the last row is of an event without entity.
    """
    slots = stored_ring(series, words, queries)
    age = (queries.time // series.pane_ms)[:, None] + 1 - slots[:, :, 0]
    is_seen = (age >= 0) & (age < PANES)
    weights = np.where(is_seen, WEIGHTS[np.where(is_seen, age, 0)], 0)
    of_batch = ranges.totals(cells)
    high, low = (
        np.einsum("qs,qsc->qc", weights, part(slots[:, :, 1:])) + np.einsum("s,qsc->qc", WEIGHTS, part(of_batch))
        for part in (_high, _low)
    )
    # Each half is below 2^53, so that only their sum rounds; the scale is a power of two.
    total: Float64s = (high * 2.0**_LOW_BITS + low) * 2.0**-WEIGHT_BITS
    return total


def _high(cells: Int64s) -> Int64s:
    return cells >> _LOW_BITS


def _low(cells: Int64s) -> Int64s:
    return cells & ((1 << _LOW_BITS) - 1)
