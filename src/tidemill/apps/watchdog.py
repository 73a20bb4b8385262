"""Notices that a worker lives but does not move.

In: committed offsets, lags and what the worker waits for, once a second. Out: a StateLost-like message when there was
lag and no progress for too long. Invariant: a partition without lag never trips it, however long it is idle.
"""

from __future__ import annotations

from collections.abc import Mapping

from tidemill.core.records import Partition


class Watchdog:
    """Fed with facts; knows no clock."""

    def __init__(self, stall_after_s: float) -> None:
        self._stall_after_s = stall_after_s
        self._since: dict[Partition, tuple[int, float]] = {}  # committed offset, first seen at
        self.is_stalled = False

    def see(
        self, committed: Mapping[Partition, int], ends: Mapping[Partition, int], *, now_s: float, cause: str
    ) -> str | None:
        """The message of a stall, or None.

        Args:
            committed: next offset of each partition owned.
            ends: the end of each partition as last known.
            now_s: a clock that never goes back.
            cause: what the worker is doing or waiting for, in words.
        """
        worst: tuple[float, Partition, int] | None = None
        moved = False
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
        self.is_stalled = worst is not None and worst[0] >= self._stall_after_s
        if not self.is_stalled or worst is None:
            return None
        seconds, partition, offset = worst
        return (
            f"no progress: {partition}@{offset} has waited {seconds:.0f} s although {ends[partition] - offset} more "
            f"records are there; likely cause: {cause}"
        )
