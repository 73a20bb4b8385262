"""The features of one group that are read from rings of panes and from buckets, and the deltas that its records leave.

In: the state of the group's entities as words, queries, what feeds them. Out: columns of the matrix; deltas in order.
Invariant: state is integers; the float operations are those of the last step, written in `_read`, decay and extremes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from tidemill.core.asking import TIME_LIMIT, Queries, Updates
from tidemill.core.decay import decayed_cells
from tidemill.core.distinct import buckets_of, distinct_deltas, read_distinct
from tidemill.core.entities import Coded
from tidemill.core.extremes import extreme_deltas, read_extremes
from tidemill.core.feature_plan import DueRule, GroupPlan, PaneFeature
from tidemill.core.pane_ranges import PaneRanges
from tidemill.core.panes import MergedDeltas, PaneReader, merged_deltas, pane_deltas, stored_cells, stored_totals
from tidemill.core.records import Float32s, Float64s, Int64s, PaneDelta
from tidemill.core.sources import Source

_HOUR_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class GroupInputs:
    """What the features of one group are computed from, and the matrix whose columns they fill.

    words: the stored state, one row an entity that is asked for. updates, sources: by topic that feeds the group.
    """

    group: GroupPlan
    queries: Queries
    words: Int64s
    updates: Mapping[str, Updates]
    sources: Mapping[str, Source]
    numeric: Float32s


def fill_pane_features(given: GroupInputs, coded: Coded) -> list[PaneDelta]:
    """Fill the columns of the group's rings and buckets; returns the deltas of the group in order."""
    group = given.group
    merged = [*_sums(given), *_extremes(given), *_distinct(given)]
    return pane_deltas(merged, [group.key_prefix + text for text in coded.texts], coded.rank, group.words)


def _sums(given: GroupInputs) -> list[MergedDeltas]:
    queries, words, updates, sources = given.queries, given.words, given.updates, given.sources
    readers = {topic: PaneReader.of(queries, fed) for topic, fed in updates.items()}
    merged: list[MergedDeltas] = []
    counted: list[Int64s] = []
    for series in given.group.panes:
        source, fed = sources[series.topic], updates[series.topic]
        if series.due is not None:
            fed = _at_due_time(fed, source, series.due)
        values = None if series.value is None else source.numbers(series.value)[fed.row]
        cells = stored_cells(values, series.unit, len(fed))
        if series.due is None:
            totals = stored_totals(series, words, queries) + readers[series.topic].totals(series, cells)
        else:  # due times are in no order
            of_batch = PaneRanges.of(queries, fed, series.pane_ms).totals(cells)
            totals = stored_totals(series, words, queries) + of_batch.sum(axis=1)
        counted.append(totals[:, 0])
        for feature in series.features:
            given.numeric[:, feature.column] = _read(totals, feature, series.unit)
        if series.decayed:
            weighted = decayed_cells(series, words, queries, PaneRanges.of(queries, fed, series.pane_ms), cells)
            for feature in series.decayed:
                given.numeric[:, feature.column] = _read(weighted, feature, series.unit)
        merged.append(merged_deltas(series, fed, cells))
    for one in given.group.open:
        given.numeric[:, one.column] = np.maximum(counted[one.opened] - counted[one.closed], 0)
    return merged


def _at_due_time(fed: Updates, source: Source, rule: DueRule) -> Updates:
    """The updates that have a due time they may count at, with that time."""
    due = source.instants(rule.field)[fed.row]
    is_counted = (due >= 0) & (due < TIME_LIMIT) & (due <= fed.time + rule.ahead_ms)
    kept = fed.take(is_counted)
    return replace(kept, time=np.maximum(due[is_counted], kept.time) if rule.is_closing else due[is_counted])


def _read(totals: npt.NDArray[Any], feature: PaneFeature, unit: float) -> Float64s:
    """The only float operations on counts and sums."""
    n = totals[:, 0]
    found: Float64s
    if feature.kind in ("count", "decayed_count"):
        found = n.astype(np.float64)
    elif feature.kind == "rate":
        found = n * _HOUR_MS / feature.window_ms
    elif feature.kind == "sum":
        found = totals[:, 1] * unit
    else:
        weight = n + feature.prior_weight
        mean = (totals[:, 1] * unit + feature.prior * feature.prior_weight) / weight
        found = np.where(weight == 0, np.nan, mean)
    return found


def _extremes(given: GroupInputs) -> list[MergedDeltas]:
    queries, words, updates, sources = given.queries, given.words, given.updates, given.sources
    merged: list[MergedDeltas] = []
    for series in given.group.extremes:
        fed = updates[series.topic]
        cells = stored_cells(sources[series.topic].numbers(series.value)[fed.row], series.unit, len(fed))
        is_valid = cells[:, 0] == 1
        fed, values = fed.take(is_valid), cells[is_valid, 1] * series.sign
        found = read_extremes(series, words, queries, PaneRanges.of(queries, fed, series.pane_ms), values)
        given.numeric[:, series.columns] = found[:, None]
        merged.append(extreme_deltas(series, fed, values))
    return merged


def _distinct(given: GroupInputs) -> list[MergedDeltas]:
    queries, words, updates, sources = given.queries, given.words, given.updates, given.sources
    merged: list[MergedDeltas] = []
    for series in given.group.distinct:
        fed = updates[series.topic]
        buckets = buckets_of(sources[series.topic].texts(series.field))[fed.row]
        is_valid = buckets >= 0
        fed, buckets = fed.take(is_valid), buckets[is_valid]
        given.numeric[:, series.columns] = read_distinct(series, words, queries, fed, buckets)
        merged.append(distinct_deltas(series, fed, buckets))
    return merged
