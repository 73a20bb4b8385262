"""The latest values of a topic as of each event, and the entries that records leave.

In: stored entries of entities, queries, updates with their values. Out: values per query; entries to insert.
Invariant: an event reads the newest entries by (time, partition, offset) that are not after its time, of the state as
read and of the updates before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tidemill.core.asking import Bools, Ordered, Queries, Updates, in_order, seen_stragglers
from tidemill.core.feature_plan import LatestSeries
from tidemill.core.records import Float32s, Float64s, Int64s, LatestDelta
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

    def at(self, queries: Queries, back: Int64s) -> tuple[Int64s, Bools]:
        """For each query the entry `back` places after its newest one (queries, words), and whether there is one."""
        is_visible = self.words[:, :, 0][queries.code] <= queries.time[:, None]
        place = is_visible.argmax(axis=1) + back  # what follows a visible entry is older, or an empty place
        last = self.words.shape[1] - 1
        entries: Int64s = self.words[queries.code, np.minimum(place, last)]
        return entries, is_visible.any(axis=1) & (place <= last) & (entries[:, 0] != _NEVER)


def fill_latest(
    series: LatestSeries,
    stored: StoredEntries,
    queries: Queries,
    updates: Updates,
    values: Float64s,
    numeric: Float32s,
) -> None:
    """Fill the columns of the series: fields of entries, NaN = none, and ages in seconds. `values`: a row per update.

    State and batch are two lists from new to old; the newer head of both is taken as often as the deepest column needs.
    """
    heads = _UpdateHeads.of(queries, updates) if len(updates) else None
    taken = np.zeros(len(queries.code), dtype=np.int64)  # stored entries that were passed
    for back in range(max(read.back for read in series.reads) + 1):
        entries, is_found = stored.at(queries, taken)
        is_newer = np.zeros(len(is_found), dtype=np.bool_)
        newest = np.full((len(is_found), values.shape[1]), np.nan)
        newest[is_found] = np.ascontiguousarray(entries[is_found, ENTRY_HEAD:]).view(np.float64)
        time = np.where(is_found, entries[:, 0], -1)
        if heads is not None:
            head = heads.take()
            is_newer = (head >= 0) & (~is_found | _is_after(updates, head, entries))
            newest[is_newer] = values[head[is_newer]]
            time[is_newer] = updates.time[head[is_newer]]
            heads.put_back(~is_newer)
        for read in series.reads:
            if read.back == back and read.place is not None:
                numeric[:, read.column] = newest[:, read.place]
            elif read.back == back:
                numeric[:, read.column] = np.where(time >= 0, (queries.time - time) / 1_000, np.nan)
        taken += is_found & ~is_newer


def _is_after(updates: Updates, place: Int64s, entries: Int64s) -> Bools:
    """Is the update at `place` newer than the entry, by (time, partition, offset)?"""
    is_after: Bools = updates.time[place] > entries[:, 0]
    tied = updates.time[place] == entries[:, 0]
    partition, offset = updates.partition[place], updates.offset[place]
    is_after |= tied & ((partition > entries[:, 2]) | ((partition == entries[:, 2]) & (offset > entries[:, 3])))
    return is_after


@dataclass(slots=True)
class _UpdateHeads:
    """For each query the updates that it sees, from new to old, one at a time.

    first, last: what is left of those in the order of time, as places in `ordered_rank`. below: ranks left of the
    others. head: rank of the update that was taken.
    """

    queries: Queries
    place_of: Int64s  # of a rank; that of rank -1 is -1
    ordered_rank: Int64s
    stragglers: Updates
    straggler_rank: Int64s
    first: Int64s
    last: Int64s
    below: Int64s
    head: Int64s
    is_ordered: Bools

    @staticmethod
    def of(queries: Queries, updates: Updates) -> _UpdateHeads:
        rank = updates.rank()
        fits = in_order(updates.code, rank)
        places, late = np.flatnonzero(fits), np.flatnonzero(~fits)
        ordered = Ordered.of(queries, updates if len(places) == len(fits) else updates.take(places))
        place_of = np.empty(len(rank) + 1, dtype=np.int64)
        place_of[rank] = np.arange(len(rank))
        place_of[-1] = -1
        count = len(queries.code)
        return _UpdateHeads(
            queries,
            place_of,
            rank[places],
            updates.take(late),
            rank[late],
            first=ordered.before(np.full_like(queries.time, ordered.time_start)),
            last=ordered.end_before(queries.time + 1) - 1,
            below=np.full(count, len(rank), dtype=np.int64),
            head=np.full(count, -1, dtype=np.int64),
            is_ordered=np.zeros(count, dtype=np.bool_),
        )

    def take(self) -> Int64s:
        """The place of the newest update that is left of each query, -1 = none; it is left no longer."""
        if len(self.ordered_rank):
            self.head = np.where(self.last >= self.first, self.ordered_rank[self.last], -1)
        else:
            self.head = np.full(len(self.first), -1, dtype=np.int64)
        self.is_ordered = self.head >= 0
        if len(self.stragglers):
            newest = np.full(len(self.head), -1, dtype=np.int64)
            for part, is_before in seen_stragglers(self.queries, self.stragglers):
                rank = self.straggler_rank[None, part]
                is_seen = is_before & (self.stragglers.time[None, part] <= self.queries.time[:, None])
                newest = np.maximum(newest, np.where(is_seen & (rank < self.below[:, None]), rank, -1).max(axis=1))
            self.is_ordered = self.head > newest
            self.head = np.maximum(self.head, newest)
        self.last = self.last - self.is_ordered
        return self.place_of[self.head]

    def put_back(self, is_back: Bools) -> None:
        """Leave the taken updates of these queries for the next time."""
        self.last = self.last + (self.is_ordered & is_back)
        is_gone = (self.head >= 0) & ~self.is_ordered & ~is_back
        self.below = np.where(is_gone, self.head, self.below)


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
