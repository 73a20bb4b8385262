"""Notices that a worker lives but does not move.

In: committed offsets and ends of the partitions owned, once a second. Out: a stall when there was lag and no progress
for too long. Invariant: a partition without lag never trips it, however long it is idle.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from tidemill.core.records import Partition


class Stall(NamedTuple):
    """The partition that has waited longest: since when, at which offset, with how many records behind it."""

    partition: Partition
    offset: int
    lag: int
    seconds: float

    def text(self, cause: str) -> str:
        """What a person reads."""
        return (
            f"no progress: {self.partition}@{self.offset} has waited {self.seconds:.0f} s although {self.lag} more "
            f"records are there; likely cause: {cause}"
        )


class Watchdog:
    """Fed with facts; knows no clock.

    still_s: for how long no partition has moved, with lag or without.
    """

    def __init__(self, stall_after_s: float) -> None:
        self._stall_after_s = stall_after_s
        self._since: dict[Partition, tuple[int, float]] = {}  # committed offset, first seen at
        self._moved_at: float | None = None
        self.still_s = 0.0
        self.is_stalled = False

    def see(self, committed: Mapping[Partition, int], ends: Mapping[Partition, int], *, now_s: float) -> Stall | None:
        """The stall, or None.

        Args:
            committed: next offset of each partition owned.
            ends: the end of each partition as last known.
            now_s: a clock that never goes back.
        """
        worst: tuple[float, Partition, int] | None = None
        moved = False
        is_other = set(self._since) != set(committed)
        for partition, offset in committed.items():
            last, since = self._since.get(partition, (-1, now_s))
            has_lag = ends.get(partition, offset) > offset
            if last != offset or not has_lag:
                moved = moved or (last != offset and last >= 0)
                self._since[partition] = (offset, now_s)
            elif worst is None or now_s - since > worst[0]:
                worst = (now_s - since, partition, offset)
        for partition in set(self._since) - set(committed):
            del self._since[partition]
        if moved:  # one partition may rightly wait for another: only a worker that does not move at all is stalled
            self._since = {p: (offset, now_s) for p, (offset, _) in self._since.items()}
            worst = None
        if moved or is_other or self._moved_at is None:
            self._moved_at = now_s
        self.still_s = now_s - self._moved_at
        self.is_stalled = worst is not None and worst[0] >= self._stall_after_s
        if not self.is_stalled or worst is None:
            return None
        seconds, partition, offset = worst
        return Stall(partition, offset, ends[partition] - offset, seconds)
