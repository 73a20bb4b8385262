"""Who asks and who feeds: events and updates of one group within a batch, matched by entity and position.

In: entity codes, positions, times. Out: for each event, the range of the updates before it.
Invariant: an event at position i is matched with updates at positions < i only.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tidemill.core.records import Int64s

TIME_LIMIT = 253_402_300_800_000  # year 10000 in ms; records outside 1970..9999 feed nothing
_PAIRS = 4_000_000  # events x stragglers that are compared at a time: 4 MB of masks

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Queries:
    """Events that ask, in merged order. Codes of the entities that are asked for are 0 .. entity_count - 1;
    `code` == entity_count is an event without entity."""

    code: Int64s
    position: Int64s
    time: Int64s
    entity_count: int

    @staticmethod
    def of(code: Int64s, position: Int64s, time: Int64s) -> Queries:
        """Codes are given by first appearance, -1 = without entity."""
        entity_count = int(code.max(initial=-1)) + 1
        limited = np.clip(time, -TIME_LIMIT, TIME_LIMIT)
        return Queries(np.where(code < 0, entity_count, code), position, limited, entity_count)


@dataclass(frozen=True, slots=True)
class Updates:
    """Records of one topic that feed one group, by entity code and position; `row` picks their values."""

    code: Int64s
    position: Int64s
    time: Int64s
    partition: Int64s
    offset: Int64s
    row: Int64s

    @staticmethod
    def of(
        *, code: Int64s, position: Int64s, time: Int64s, partition: npt.NDArray[np.int32], offset: Int64s
    ) -> Updates:
        """Records without entity (code -1), or of an impossible time, feed nothing."""
        feeding = (code >= 0) & (time >= 0) & (time < TIME_LIMIT)
        row = np.flatnonzero(feeding)
        row = row[np.lexsort((position[row], code[row]))]
        return Updates(code[row], position[row], time[row], partition[row].astype(np.int64), offset[row], row)

    def __len__(self) -> int:
        return len(self.code)

    def take(self, places: Int64s | Bools | slice) -> Updates:
        return Updates(
            self.code[places], self.position[places], self.time[places], self.partition[places], self.offset[places],
            self.row[places],
        )  # fmt: skip

    def rank(self) -> Int64s:
        """Place of each update in the order (time, partition, offset)."""
        rank = np.empty(len(self), dtype=np.int64)
        rank[np.lexsort((self.offset, self.partition, self.time))] = np.arange(len(self))
        return rank


def in_order(code: Int64s, value: Int64s) -> Bools:
    """True where no earlier entry of the same entity has a larger value; `code` ascends, values are >= 0."""
    combined = code * (int(value.max(initial=0)) + 1) + value
    claim: Bools = combined >= np.maximum.accumulate(combined)
    return claim


@dataclass(frozen=True, slots=True)
class Ordered:
    """Updates whose times never fall within an entity, and for each query how many updates are before it.

    end: one past the last update that has the query's entity and a smaller position. is_past: none of the updates that
    a query finds before it is later than its time, as always when the batch is in the order of time.
    """

    queries: Queries
    code_and_time: Int64s
    time_start: int
    time_span: int
    end: Int64s
    is_past: bool

    @staticmethod
    def of(queries: Queries, updates: Updates) -> Ordered:
        read = int(np.searchsorted(updates.code, queries.entity_count))  # the rest is of entities nobody asks for
        code, position, time = updates.code[:read], updates.position[:read], updates.time[:read]
        time_start = int(time.min(initial=TIME_LIMIT))
        time_span = int(time.max(initial=0)) - time_start + 1 if read else 1
        positions = int(max(position.max(initial=0), queries.position.max(initial=0))) + 1
        end = np.searchsorted(code * positions + position, queries.code * positions + queries.position)
        is_past = True
        if read:
            last = np.maximum(end - 1, 0)  # where it is of another entity, the query finds nothing
            is_past = not ((code[last] == queries.code) & (time[last] > queries.time) & (end > 0)).any()
        # One more than the span, so that "after the last time" of an entity is not the next entity's first.
        return Ordered(queries, code * (time_span + 1) + (time - time_start), time_start, time_span, end, is_past)

    def end_before(self, time: Int64s) -> Int64s:
        """`end`, less the updates that are not before `time`, which must be after the query's own time."""
        return self.end if self.is_past else np.minimum(self.before(time), self.end)

    def before(self, time: Int64s) -> Int64s:
        """For each query, the number of updates of smaller entities, or of its own with a time before `time`."""
        relative = np.clip(time - self.time_start, 0, self.time_span)
        return np.searchsorted(self.code_and_time, self.queries.code * (self.time_span + 1) + relative)


def seen_stragglers(queries: Queries, stragglers: Updates) -> Iterator[tuple[slice, Bools]]:
    """Compare each query with each straggler: (part of the stragglers, mask (queries, part) of those before it)."""
    step = max(1, _PAIRS // max(1, len(queries.code)))
    # The code of an event without entity may be that of an entity that feeds and that nobody asks for.
    asked = np.where(queries.code < queries.entity_count, queries.code, -1)
    for first in range(0, len(stragglers), step):
        part = slice(first, first + step)
        is_same = asked[:, None] == stragglers.code[None, part]
        yield part, is_same & (stragglers.position[None, part] < queries.position[:, None])
