"""The commits of an audit: which input records they speak for, and whether their ranges tile the inputs.

In: commits in log order, bounds of the input partitions. Out: ranges by partition, findings. Invariant: ranges of a
partition follow each other, in the order in which they were written, without gap and without overlap.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tidemill.apps.audit_report import AuditReport
from tidemill.core.records import Int64s, Partition
from tidemill.io.wire import decode


@dataclass(slots=True)
class Ranges:
    """The commits of one input partition, in the order they were written, those without records left out.

    is_tiled: they follow each other. outcomes: counts by name, for each.
    """

    start: list[int] = field(default_factory=list)
    next: list[int] = field(default_factory=list)
    outcomes: list[Mapping[str, int]] = field(default_factory=list)
    is_tiled: bool = True

    @property
    def span(self) -> tuple[int, int]:
        """[first, behind the last)."""
        return (min(self.start), max(self.next)) if self.start else (0, 0)

    def commit_of(self, offsets: Int64s) -> Int64s:
        """The position of the commit that speaks for each offset, -1 = none; the first where ranges overlap."""
        order = np.argsort(np.array(self.start, dtype=np.int64), kind="stable")
        starts, nexts = np.array(self.start, dtype=np.int64)[order], np.array(self.next, dtype=np.int64)[order]
        at = np.searchsorted(starts, offsets, side="right") - 1
        inside = (at >= 0) & (offsets < nexts[np.maximum(at, 0)]) if len(starts) else np.zeros(len(offsets), np.bool_)
        found = np.full(len(offsets), -1, dtype=np.int64)
        found[inside] = order[at[inside]]
        return found


@dataclass(slots=True)
class Committed:
    """What the commits of an audit say. miscounted: commits that name other outcomes than they count."""

    ranges: dict[Partition, Ranges]
    totals: dict[str, int] = field(default_factory=dict)
    count: int = 0
    strangers: list[str] = field(default_factory=list)
    miscounted: list[str] = field(default_factory=list)


def read_commits(values: Iterable[Sequence[bytes]], inputs: Sequence[Partition]) -> Committed:
    """Commits in log order, by input partition."""
    committed = Committed({partition: Ranges() for partition in inputs})
    for batch in values:
        for row in decode("commit.v1", batch).to_pylist():
            committed.count += 1
            partition = Partition(row["topic"], row["partition"])
            outcomes = dict(row["outcomes"])
            for name, count in outcomes.items():
                committed.totals[name] = committed.totals.get(name, 0) + count
            place = f"{partition} [{row['start']}, {row['next']})"
            ended = outcomes.get("expired", 0) + outcomes.get("waiting_orphaned", 0)
            counts = {"joined": outcomes.get("example", 0), "waiting": outcomes.get("waiting", 0), "settled": ended}
            for what, count in counts.items():
                if len(row[what]) != count:
                    committed.miscounted.append(f"{place}: {len(row[what]):,} {what} are named, {count:,} counted")
            ranges = committed.ranges.get(partition)
            if ranges is None:
                committed.strangers.append(f"a commit of {place}, which is no input")
            elif row["next"] != row["start"]:
                ranges.start.append(row["start"])
                ranges.next.append(row["next"])
                ranges.outcomes.append(outcomes)
    return committed


def check_ranges(
    committed: Committed, bounds: Mapping[Partition, tuple[int, int]], report: AuditReport, *, is_from_start: bool
) -> None:
    """Whether the ranges tile.

    Args:
        bounds: of the input partitions, as the broker has them.
        is_from_start: the audit begins at the first commit, which begins at the partition's first record.
    """
    check = report.checks["ranges"]
    for stranger in committed.strangers:
        check.add(stranger)
    for text in committed.miscounted:
        report.checks["counts"].add(text)
    for partition, ranges in committed.ranges.items():
        begin, end = bounds[partition]
        reached = None if not ranges.start else ranges.start[0]
        if reached is None:
            report.unprocessed += end - begin if is_from_start else 0
            continue
        if is_from_start and reached > begin:
            check.add(f"{partition}: the first commit begins at {reached}, the partition at {begin}")
        for start, behind in zip(ranges.start, ranges.next, strict=True):
            if start != reached or behind < start:
                what = "gap" if start > reached else "overlap"
                check.add(f"{partition}: {what}, a commit of [{start}, {behind}) follows one that ended at {reached}")
                ranges.is_tiled = False
            reached = max(reached, behind)
        if reached > end:
            check.add(f"{partition}: commits reach {reached}, the partition ends at {end}")
        report.unprocessed += max(0, end - reached)
