"""The commits against the inputs: ranges without gap or overlap, and the count of each outcome in each range.

In: inputs, commits. Out: findings, and per row what its commit states. Invariant (I1): ranges of a partition, in the
order they were written, tile it from its first record to its last.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from tests.verify.declared import Declared
from tests.verify.inputs import Inputs, Int64s
from tests.verify.outcomes import LATER_OUTCOMES, RECORD_OUTCOMES, Expected
from tests.verify.outputs import Commit
from tests.verify.report import Report

Place = tuple[int, int]  # topic index, partition


def by_partition(declared: Declared, commits: Sequence[Commit], report: Report) -> dict[Place, list[int]]:
    """Indexes of the commits of each input partition, in the order they were written."""
    topics = {topic.name: index for index, topic in enumerate(declared.topics)}
    places: dict[Place, list[int]] = defaultdict(list)
    strangers = report.check("commits of no input")
    for index, commit in enumerate(commits):
        if commit.topic in topics:
            places[topics[commit.topic], commit.partition].append(index)
        else:
            strangers.add(f"{commit.topic}[{commit.partition}] [{commit.start}, {commit.next})")
    return places


def check_tiles(
    declared: Declared, inputs: Inputs, commits: Sequence[Commit], places: dict[Place, list[int]], report: Report
) -> None:
    gaps, overlaps, ends = (report.check(f"I1 {name}") for name in ("gaps", "overlaps", "ends"))
    for (topic, partition), (begin, end) in sorted(inputs.ranges.items()):
        name = f"{declared.topics[topic].name}[{partition}]"
        offsets = np.sort(inputs.offset[(inputs.topic == topic) & (inputs.partition == partition)])
        listed = [commits[index] for index in places.get((topic, partition), ())]
        if not listed:
            if len(offsets):
                ends.add(f"{name}: no commit, {len(offsets)} records")
            continue
        first = int(offsets[0]) if len(offsets) else end
        reached = listed[0].start
        if reached > first:
            gaps.add(f"{name}: starts at {reached}, first record at {first}")
        if reached < min(begin, first):
            overlaps.add(f"{name}: starts at {reached}, before the first offset {begin}")
        for commit in listed:
            if commit.start > reached:
                gaps.add(f"{name}: [{reached}, {commit.start}) is in no commit")
            if commit.start < reached or commit.next < commit.start:
                overlaps.add(f"{name}: [{commit.start}, {commit.next}) after {reached}")
            reached = max(reached, commit.next)
        if len(offsets) and reached <= offsets[-1]:
            missing = int((offsets >= reached).sum())
            ends.add(f"{name}: ends at {reached}, {missing} records up to {offsets[-1]} have no commit")
        if reached > max(end, first):
            ends.add(f"{name}: ends at {reached}, beyond the partition's end {end}")


def commit_of_rows(inputs: Inputs, commits: Sequence[Commit], places: dict[Place, list[int]]) -> Int64s:
    """Per row the index of the commit whose range holds it, -1 = none; the first where ranges overlap."""
    found = np.full(len(inputs.order), -1, dtype=np.int64)
    for (topic, partition), listed in places.items():
        rows = np.flatnonzero((inputs.topic == topic) & (inputs.partition == partition))
        used = [index for index in listed if commits[index].next > commits[index].start]
        if not used or not len(rows):
            continue
        used.sort(key=lambda index: commits[index].start)
        starts = np.array([commits[index].start for index in used])
        nexts = np.array([commits[index].next for index in used])
        at = np.searchsorted(starts, inputs.offset[rows], side="right") - 1
        inside = (at >= 0) & (inputs.offset[rows] < nexts[np.maximum(at, 0)])
        found[rows[inside]] = np.array(used)[at[inside]]
    return found


def settled_least(inputs: Inputs, commits: Sequence[Commit], places: dict[Place, list[int]]) -> Int64s:
    """Per row the largest group watermark that its partition has committed, -1 = none."""
    least = np.full(len(inputs.order), -1, dtype=np.int64)
    for (topic, partition), listed in places.items():
        mine = (inputs.topic == topic) & (inputs.partition == partition)
        least[mine] = max(commits[index].group_watermark for index in listed)
    return least


def check_counts(
    inputs: Inputs,
    expected: Expected,
    commits: Sequence[Commit],
    commit_of: Int64s,
    report: Report,
    *,
    is_total_order: bool,
) -> dict[str, int]:
    """Counts of each range against those computed for its records; returns the sums over all commits."""
    counted = np.zeros((len(commits), len(RECORD_OUTCOMES)), dtype=np.int64)
    sums = dict.fromkeys([*RECORD_OUTCOMES, *LATER_OUTCOMES], 0)
    finding = report.check("outcome counts")
    for index, commit in enumerate(commits):
        for name, count in commit.outcomes.items():
            if name not in sums:
                finding.add(f"{_range(commit)}: unknown outcome {name}")
                continue
            sums[name] += count
            if name in RECORD_OUTCOMES:
                counted[index, RECORD_OUTCOMES.index(name)] += count
    _check_names(commits, report)
    computed = np.zeros_like(counted)
    inside = commit_of >= 0
    np.add.at(computed, (commit_of[inside], expected.outcome[inside]), 1)
    if not is_total_order:
        _merge_waiting(counted)
        _merge_waiting(computed)
    for index, code in zip(*np.nonzero(counted != computed), strict=True):
        wrong = f"{RECORD_OUTCOMES[code]} counted {counted[index, code]}, computed {computed[index, code]}"
        finding.add(f"{_range(commits[index])}: {wrong}")
    _check_later(expected, sums, report, is_total_order=is_total_order)
    return sums


def _check_names(commits: Sequence[Commit], report: Report) -> None:
    """The offsets that a commit names are as many as it counts, and no record ends or waits twice."""
    finding = report.check("named outcomes")
    seen: set[tuple[str, str, int, int]] = set()
    for commit in commits:
        ended = sum(commit.outcomes.get(name, 0) for name in ("expired", "waiting_orphaned"))
        for what, offsets, count in (
            ("joined", commit.joined, commit.outcomes.get("example", 0)),
            ("waiting", commit.waiting, commit.outcomes.get("waiting", 0)),
            ("settled", commit.settled, ended),
        ):
            if len(offsets) != count:
                finding.add(f"{_range(commit)}: {len(offsets)} {what} are named, {count} counted")
            named = {(what, commit.topic, commit.partition, offset) for offset in offsets}
            if len(named) != len(offsets) or named & seen:
                finding.add(
                    f"{_range(commit)}: {what} are named twice: {sorted(offset for *_, offset in named & seen)}"
                )
            seen |= named
        if any(not commit.start <= offset < commit.next for offset in (*commit.joined, *commit.waiting)):
            finding.add(f"{_range(commit)}: labels are named of other ranges")


def _range(commit: Commit) -> str:
    return f"{commit.topic}[{commit.partition}] [{commit.start}, {commit.next})"


def _merge_waiting(counts: npt.NDArray[np.int64]) -> None:
    """With several workers a label may meet its event or wait for it: both are right."""
    example, waiting = RECORD_OUTCOMES.index("example"), RECORD_OUTCOMES.index("waiting")
    counts[:, waiting] += counts[:, example]
    counts[:, example] = 0


def _check_later(expected: Expected, sums: dict[str, int], report: Report, *, is_total_order: bool) -> None:
    finding = report.check("later outcome counts")
    joined = sum(one.kind == "example" for one in expected.examples)
    limits = {"expired": expected.expired}
    if is_total_order:
        limits["waiting_joined"] = (expected.waiting_joined, expected.waiting_joined)
        limits["waiting_orphaned"] = expected.waiting_orphaned
    elif sums["example"] + sums["waiting_joined"] != joined:
        both = sums["example"] + sums["waiting_joined"]
        finding.add(f"example + waiting_joined counted {both}, computed {joined}")
    for name, (least, most) in limits.items():
        if not least <= sums[name] <= most:
            finding.add(f"{name} counted {sums[name]}, computed {least}" + (f" to {most}" if most > least else ""))
