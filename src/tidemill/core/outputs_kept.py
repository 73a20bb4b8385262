"""Whether the outputs of ranges that are applied again are all still in their topics.

In: the commit records of the ranges, and what was found of their predictions. Out: how many are gone. Invariant: only
what a commit of the ranges wrote is missed; that older outputs were deleted is nobody's concern.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence

from tidemill.core.records import Partition
from tidemill.core.settlements import Decided

Records = Mapping[Partition, Sequence[Decided]]  # the commit records of the ranges, in the order of the log
Ranges = Mapping[Partition, tuple[int, int]]  # [start, end)


def offsets_without_record(records: Records, ranges: Ranges) -> int:
    """How many offsets of the ranges no commit record covers; those of a partition tile it."""
    gone = 0
    for partition, (start, end) in ranges.items():
        reached = start
        for commit in records.get(partition, ()):
            gone += max(0, min(commit.start, end) - reached)
            reached = max(reached, commit.next)
        gone += max(0, end - reached)
    return gone


def predictions_gone(records: Records, ranges: Ranges, published: Iterable[tuple[Partition, int]]) -> int:
    """How many predictions of the commits are not among the published ones.

    A commit that began before its range is passed over: it does not tell which of its predictions belong to the range.

    Args:
        published: the records whose predictions were found.
    """
    offsets: dict[Partition, list[int]] = {}
    for partition, offset in published:
        offsets.setdefault(partition, []).append(offset)
    gone = 0
    for partition, (start, end) in ranges.items():
        found = sorted(offsets.get(partition, ()))
        for commit in records.get(partition, ()):
            if start <= commit.start and commit.next <= end:
                # By commit, not in sum: after `tidemill reset --to earliest` the log holds two passes.
                kept = bisect_left(found, commit.next) - bisect_left(found, commit.start)
                gone += max(0, commit.predictions - kept)
    return gone
