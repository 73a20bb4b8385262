"""The largest and the smallest value over the last twelve panes, and the deltas that records leave.

In: panes as stored and those of the batch. Out: values per query, NaN = none; merged deltas that take the maximum.
Invariant: a smallest value is the largest of the negated ones, so that the store knows one rule.
"""

from __future__ import annotations

import numpy as np

from tidemill.core.asking import Queries, Updates
from tidemill.core.feature_plan import ExtremeSeries
from tidemill.core.pane_ranges import ABSENT, PaneRanges
from tidemill.core.panes import MergedDeltas, combined, stored_ring
from tidemill.core.records import Float64s, Int64s
from tidemill.core.state import PANES


def read_extremes(
    series: ExtremeSeries, words: Int64s, queries: Queries, ranges: PaneRanges, values: Int64s
) -> Float64s:
    """The extreme of state and batch that each query sees, in the unit of the field.

    values: signed units, one per update.
    """
    slots = stored_ring(series, words, queries)
    tags = slots[:, :, 0]
    age = (queries.time // series.pane_ms)[:, None] + 1 - tags
    stored = np.where((tags > 0) & (age >= 0) & (age < PANES), slots[:, :, 1], ABSENT).max(axis=1)
    found = np.maximum(stored, ranges.maxima(values))
    is_found = found != ABSENT
    signed = np.where(is_found, found, 0) * series.sign
    return np.where(is_found, signed * series.unit, np.nan)


def extreme_deltas(series: ExtremeSeries, updates: Updates, values: Int64s) -> MergedDeltas:
    """What the updates leave in the store, one delta per entity and pane."""
    code, pane, largest = combined(updates.code, updates.time // series.pane_ms, values[:, None], np.maximum)
    word = series.word + (pane % series.slots) * series.slot_words
    return MergedDeltas(code, word, pane + 1, largest, takes_max=True)
