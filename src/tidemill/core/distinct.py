"""Roughly how many different values a field had in a window: linear counting (Whang et al. 1990).

In: for each of 256 buckets the newest time at which a value that falls in it was seen. Out: estimates; deltas.
Invariant: a bucket keeps the largest time, so that order does not matter and any window can be read from it.
"""

from __future__ import annotations

from decimal import Decimal
from functools import lru_cache
from hashlib import blake2b

import numpy as np
import pyarrow as pa

from tidemill.core.asking import Bools, Queries, Updates
from tidemill.core.feature_plan import DistinctSeries
from tidemill.core.panes import MergedDeltas, combined
from tidemill.core.records import Float64s, Int64s
from tidemill.core.state import BUCKETS

# -m ln(unseen / m) by the number of unseen buckets; none unseen reads as one. Decimal gives the same bits everywhere.
ESTIMATES = np.array([float(BUCKETS * (BUCKETS / Decimal(max(1, unseen))).ln()) for unseen in range(BUCKETS + 1)])


@lru_cache(maxsize=65_536)  # 10 MB at most
def bucket_of(text: str) -> int:
    """The bucket of a value, the same on every platform and forever."""
    return blake2b(text.encode(), digest_size=1).digest()[0]


def buckets_of(texts: pa.Array) -> Int64s:
    """The bucket of each text, -1 where it is null."""
    encoded = texts.dictionary_encode()
    by_index = np.array([*map(bucket_of, encoded.dictionary.to_pylist()), -1], dtype=np.int64)
    buckets: Int64s = by_index[encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)]
    return buckets


def read_distinct(
    series: DistinctSeries, words: Int64s, queries: Queries, updates: Updates, buckets: Int64s
) -> Float64s:
    """Estimates per query and feature of the series, shape (queries, features); `buckets` has one entry per update.

    A bucket counts when its newest time is in (t - window, t + max_skew]: a worker that is ahead may have seen it
    again, and what it saw before is not kept.
    """
    stored = words[:, series.word : series.word + BUCKETS] - 1  # tag = time + 1
    query, bucket, time = _newest_in_batch(queries, updates, buckets)
    columns = []
    for window_ms in series.windows_ms:
        after, until = queries.time - window_ms, queries.time + series.max_skew_ms
        of_query = stored[queries.code]
        is_seen: Bools = (of_query > after[:, None]) & (of_query <= until[:, None]) & (of_query >= 0)
        newest = np.maximum(of_query[query, bucket], time)
        is_seen[query, bucket] = (newest > after[query]) & (newest <= until[query])
        columns.append(ESTIMATES[BUCKETS - is_seen.sum(axis=1)])
    return np.stack(columns, axis=1)


def _newest_in_batch(queries: Queries, updates: Updates, buckets: Int64s) -> tuple[Int64s, Int64s, Int64s]:
    """(query, bucket, newest time) wherever an update before the query fell in a bucket of its entity."""
    read = int(np.searchsorted(updates.code, queries.entity_count))
    if read == 0:
        nothing = np.zeros(0, dtype=np.int64)
        return nothing, nothing, nothing
    place = updates.code[:read] * BUCKETS + buckets[:read]
    order = np.lexsort((updates.position[:read], place))
    place, position, time = place[order], updates.position[order], updates.time[order]
    first = np.flatnonzero(np.concatenate(([True], place[1:] != place[:-1])))
    run = np.repeat(np.arange(len(first)), np.diff(first, append=read))
    base = run * (int(time.max()) + 1)
    newest = np.maximum.accumulate(time + base) - base  # starts again in each run

    # Each query meets each bucket that its entity has in the batch.
    code_start = np.searchsorted(place[first], queries.code * BUCKETS)
    met = np.searchsorted(place[first], (queries.code + 1) * BUCKETS) - code_start
    query = np.repeat(np.arange(len(queries.code)), met)
    within = np.arange(len(query)) - np.repeat(np.cumsum(met) - met, met)
    run_met = code_start[query] + within
    positions = int(max(position.max(), queries.position.max(initial=0))) + 1
    end = np.searchsorted(run * positions + position, run_met * positions + queries.position[query])
    is_before = end > first[run_met]
    query, run_met = query[is_before], run_met[is_before]
    return query, place[first][run_met] % BUCKETS, newest[end[is_before] - 1]


def distinct_deltas(series: DistinctSeries, updates: Updates, buckets: Int64s) -> MergedDeltas:
    """The newest time of each bucket that the updates touch, as the tag of a slot without cells."""
    code, bucket, newest = combined(updates.code, buckets, updates.time[:, None], np.maximum)
    return MergedDeltas(code, series.word + bucket, newest[:, 0] + 1, np.zeros((len(code), 0), dtype=np.int64))
