"""The latest values of a topic as of each event, and the entries that records leave.

In: stored entries of entities, queries, updates with their values. Out: values per query; entries to insert.
Invariant: an event reads the newest entry by (time, partition, offset) that is not after its time, of the state as read
and of the updates before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tidemill.core.asking import Ordered, Queries, Updates, in_order, seen_stragglers
from tidemill.core.feature_plan import LatestSeries
from tidemill.core.records import Float64s, Int64s, LatestDelta
from tidemill.core.state import ENTRY_HEAD, WORD_BYTES

_NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True, slots=True)
class StoredEntries:
    """Entries of the entities that are asked for, newest first, shape (entities + 1, capacity, words); the time of an
    empty place is after all others. The last row is of an event without entity."""

    words: Int64s

    @staticmethod
    def of(series: LatestSeries, stored: Sequence[bytes]) -> StoredEntries:
        width = ENTRY_HEAD + len(series.fields)
        size = series.capacity * width * WORD_BYTES
        padded = b"".join([content.ljust(size, b"\0") for content in (*stored, b"")])
        words = np.frombuffer(padded, dtype=">i8").astype(np.int64).reshape(len(stored) + 1, series.capacity, width)
        counts = np.array([len(content) for content in (*stored, b"")]) // (width * WORD_BYTES)
        words[:, :, 0][np.arange(series.capacity)[None, :] >= counts[:, None]] = _NEVER
        return StoredEntries(words)

    def newest(self, queries: Queries) -> tuple[Int64s, Int64s]:
        """For each query its entry (queries, words), and the places (queries,) where there is one."""
        is_visible = self.words[:, :, 0][queries.code] <= queries.time[:, None]
        entries: Int64s = self.words[queries.code, is_visible.argmax(axis=1)]
        return entries, np.flatnonzero(is_visible.any(axis=1))


def read_latest(stored: StoredEntries, queries: Queries, updates: Updates, values: Float64s) -> Float64s:
    """The values that each query sees, shape (queries, fields), NaN = none. `values` has a row per update."""
    entries, found = stored.newest(queries)
    result = np.full((len(queries.code), values.shape[1]), np.nan)
    result[found] = np.ascontiguousarray(entries[found, ENTRY_HEAD:]).view(np.float64)
    if not len(updates):
        return result
    update = _newest_update(queries, updates)
    fed = np.flatnonzero(update >= 0)
    update = update[fed]
    known = np.full((len(queries.code), ENTRY_HEAD), -1, dtype=np.int64)  # older than any entry
    known[found] = entries[found, :ENTRY_HEAD]
    known = known[fed]
    is_newer = updates.time[update] > known[:, 0]
    tied = updates.time[update] == known[:, 0]
    partition, offset = updates.partition[update], updates.offset[update]
    is_newer |= tied & ((partition > known[:, 2]) | ((partition == known[:, 2]) & (offset > known[:, 3])))
    result[fed[is_newer]] = values[update[is_newer]]
    return result


def _newest_update(queries: Queries, updates: Updates) -> Int64s:
    """The place of the newest update that each query sees, -1 = none."""
    rank = updates.rank()
    fits = in_order(updates.code, rank)
    places = np.flatnonzero(fits)
    ordered = Ordered.of(queries, updates if len(places) == len(fits) else updates.take(places))
    last = ordered.end_before(queries.time + 1) - 1
    is_found = last >= ordered.before(np.full_like(queries.time, ordered.time_start))
    best = np.where(is_found, rank[places[last]], -1)
    if len(places) < len(fits):
        late = np.flatnonzero(~fits)
        stragglers, late_rank = updates.take(late), rank[late]
        for part, is_before in seen_stragglers(queries, stragglers):
            is_seen = is_before & (stragglers.time[None, part] <= queries.time[:, None])
            best = np.maximum(best, np.where(is_seen, late_rank[None, part], -1).max(axis=1))
    place_of = np.empty(len(rank) + 1, dtype=np.int64)
    place_of[rank] = np.arange(len(rank))
    place_of[-1] = -1
    return place_of[best]


def latest_deltas(
    series: LatestSeries, updates: Updates, values: Float64s, keys: Sequence[str], key_rank: Int64s
) -> list[LatestDelta]:
    """Entries by key and age; of one entity only as many as it can hold.

    keys: the entity texts by code, key_rank: their order.
    """
    count = len(updates)
    by_key = np.lexsort((updates.rank(), key_rank[updates.code])) if count else np.zeros(0, dtype=np.int64)
    code = updates.code[by_key]
    newer = np.searchsorted(key_rank[code], key_rank[code], side="right") - 1 - np.arange(count)
    kept = by_key[newer < series.capacity]
    words = np.empty((len(kept), ENTRY_HEAD + values.shape[1]), dtype=">i8")
    words[:, 0] = updates.time[kept]
    words[:, 1] = series.topic_index
    words[:, 2] = updates.partition[kept]
    words[:, 3] = updates.offset[kept]
    words[:, ENTRY_HEAD:] = np.ascontiguousarray(values[kept]).view(np.int64)
    packed, size = words.tobytes(), words.shape[1] * WORD_BYTES
    return [
        LatestDelta(series.key_prefix + keys[code], series.capacity, packed[at : at + size])
        for at, code in zip(range(0, len(packed), size), updates.code[kept].tolist(), strict=True)
    ]
