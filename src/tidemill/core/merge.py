"""Many partitions become one stream in the order of event time, cut into batches.

In: records of each partition in offset order, with their times. Out: cuts: the next records of the merged order and
the span of each partition. Invariant: a record is never released while an earlier one may still come, unless the caller
says that its partition is not worth waiting for; spans of a partition tile it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tidemill.core.records import Span

RANKS = {"context": 0, "label": 1, "event": 2}  # of equal times: what is known first, then what is asked
PUNCTUATION_RANK = 3

Place = tuple[int, int]  # (topic index, partition)


class Offered(NamedTuple):
    """One record of a partition. is_punctuation: no record at or before `time` follows in the partition. is_end: no
    record follows at all."""

    time: int
    offset: int
    payload: Any
    is_punctuation: bool = False
    is_end: bool = False


class Entry(NamedTuple):
    """A buffered record; sorts by merged order. `time` and `rank` never fall within a partition, so that offsets stay
    in order; `stamp` is the record's own time."""

    time: int
    rank: int
    topic_index: int
    partition: int
    offset: int
    stamp: int
    payload: Any


@dataclass(slots=True)
class _Lane:
    """One partition. bound: no record before this time will come."""

    next_offset: int  # where the last cut ended
    waiting: deque[Entry] = field(default_factory=deque)
    last: tuple[int, int] = (-1, -1)  # (time, rank) of the last record offered
    bound: int = -1
    is_ended: bool = False
    count: int = 0  # records offered and not cut yet
    watermark: int = -1


@dataclass(frozen=True, slots=True)
class Cut:
    """The next records of the merged order, and what they do to their partitions."""

    entries: list[Entry]
    spans: dict[Place, Span]


class TimeOrderedMerge:
    """Buffers partitions and cuts batches; see the module's docstring.

    out_of_order: records that came after a later one had been offered by their partition or cut from another.
    """

    def __init__(
        self, roles: Sequence[str], *, is_bounded: bool, span_ms: int | None = None, barrier_ms: int | None = None
    ) -> None:
        """`span_ms`: the event time that one cut may cover, None = any.

        barrier_ms: no cut goes across a multiple of it: the records up to T, T included, are in other cuts than those
        after it. So a bounded replay whose producer holds at T gets everything up to T without what comes next.
        """
        self._span_ms = span_ms
        self._barrier_ms = barrier_ms
        self._ranks = [RANKS[role] for role in roles]
        self._is_bounded = is_bounded
        self._lanes: dict[Place, _Lane] = {}
        self._released: deque[Entry] = deque()  # in merged order, ready to be cut
        self._last_cut: tuple[int, int] = (-1, -1)
        self.out_of_order = 0

    def add_partition(self, topic_index: int, partition: int, next_offset: int, *, is_ended: bool = False) -> None:
        """`is_ended`: the last record before `next_offset` said that it was the last one."""
        self._lanes[topic_index, partition] = _Lane(next_offset, is_ended=is_ended)

    def end_partition(self, topic_index: int, partition: int) -> None:
        """No record follows in the partition."""
        self._lanes[topic_index, partition].is_ended = True

    def clear(self) -> None:
        """Forget all partitions and what is buffered of them."""
        self._lanes.clear()
        self._released.clear()
        self._last_cut = (-1, -1)

    def buffered(self, place: Place) -> int:
        """Records of the partition that are offered and not cut yet."""
        return self._lanes[place].count

    def is_waiting(self, place: Place) -> bool:
        """Whether records of the partition wait for other partitions."""
        return bool(self._lanes[place].waiting)

    def buffered_total(self) -> int:
        return sum(lane.count for lane in self._lanes.values())

    def offer(self, topic_index: int, partition: int, records: Iterable[Offered]) -> None:
        """Append records of one partition, in offset order."""
        lane = self._lanes[topic_index, partition]
        rank = self._ranks[topic_index]
        for time, offset, payload, is_punctuation, is_end in records:
            key = (time, PUNCTUATION_RANK if is_punctuation else rank)
            if key < lane.last:
                if time < lane.last[0]:
                    self.out_of_order += 1
                key = lane.last
            lane.last = key
            lane.waiting.append(Entry(*key, topic_index, partition, offset, time, payload))
            lane.count += 1
            lane.bound = max(lane.bound, time + 1 if is_punctuation else time)
            lane.is_ended = is_end

    def blocking(self, lagging: set[Place]) -> Place | None:
        """The partition that holds back the merge most, of those that are waited for."""
        waited = self._waited(lagging)
        return min(waited, key=lambda place: self._lanes[place].bound, default=None)

    def next_time(self) -> int | None:
        """The time of the next record of the merged order, None while none is certain."""
        return self._released[0].time if self._released else None

    def take(self, records_max: int, *, limit: int | None, lagging: set[Place]) -> Cut | None:
        """The next batch, or None while there is none.

        In a bounded replay a batch is the next `records_max` of the merged order, whenever the records arrived; it is
        shorter only at the end of all partitions, at a barrier and where `limit` cuts it. Live, it is what is there.

        Args:
            limit: no record later than this time, for the sake of slower workers; None = no limit.
            lagging: live only: the partitions that hold more records and are still waited for.
        """
        self._release(lagging)
        available = len(self._released)
        is_limited = False
        barrier = None if not available else self._barrier_at(self._released[0].time)
        if available:
            ends = (limit, barrier, self._span_end(self._released[0].time))
            limit = min((end for end in ends if end is not None), default=None)
        if limit is not None and available and self._released[min(available, records_max) - 1].time > limit:
            available = next(at for at, entry in enumerate(self._released) if entry.time > limit)
            is_limited = True
        is_whole = is_limited or self._has_ended() or self._has_reached(barrier, lagging)
        if self._is_bounded and available < records_max and not is_whole:
            return None
        if not available:
            return None
        return self._cut(min(available, records_max), lagging)

    def _waited(self, lagging: set[Place]) -> list[Place]:
        if self._is_bounded:
            return [place for place, lane in self._lanes.items() if not lane.is_ended]
        return [place for place in self._lanes if place in lagging]

    def _span_end(self, first_time: int) -> int | None:
        return None if self._span_ms is None else first_time + self._span_ms - 1

    def _barrier_at(self, time: int) -> int | None:
        """The first barrier at or after a time."""
        return None if self._barrier_ms is None else -(-time // self._barrier_ms) * self._barrier_ms

    def _has_reached(self, barrier: int | None, lagging: set[Place]) -> bool:
        """Whether no record at or before the barrier is to come."""
        return barrier is not None and all(self._lanes[place].bound > barrier for place in self._waited(lagging))

    def _release(self, lagging: set[Place]) -> None:
        """Move what no record to come can precede into the merged order."""
        horizon = min((self._lanes[place].bound for place in self._waited(lagging)), default=None)
        chunk: list[Entry] = []
        for lane in self._lanes.values():
            waiting = lane.waiting
            if horizon is None:
                chunk.extend(waiting)
                waiting.clear()
            else:
                while waiting and waiting[0].time < horizon:
                    chunk.append(waiting.popleft())
        if not chunk:
            return
        chunk.sort()
        if self._released and chunk[0] < self._released[-1]:  # live: a partition that was not waited for has woken up
            chunk = sorted([*self._released, *chunk])
            self._released.clear()
        self._released.extend(chunk)

    def _has_ended(self) -> bool:
        return bool(self._lanes) and all(lane.is_ended for lane in self._lanes.values())

    def _cut(self, count: int, lagging: set[Place]) -> Cut:
        entries = [self._released.popleft() for _ in range(count)]
        if entries[0][:2] < self._last_cut:
            self.out_of_order += sum(entry[:2] < self._last_cut for entry in entries)
        self._last_cut = max(self._last_cut, entries[-1][:2])
        starts: dict[Place, int] = {}
        for entry in entries:
            place = (entry.topic_index, entry.partition)
            lane = self._lanes[place]
            starts.setdefault(place, lane.next_offset)
            lane.next_offset = entry.offset + 1
            lane.count -= 1
            if entry.stamp > lane.watermark:
                lane.watermark = entry.stamp
        spans = {}
        for place, start in starts.items():
            lane = self._lanes[place]
            spans[place] = Span(start, lane.next_offset, lane.watermark, lane.count > 0 or place in lagging)
        return Cut(entries, spans)
