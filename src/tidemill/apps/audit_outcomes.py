"""Inputs against outcomes: every record of the audited ranges has exactly one, and every outcome has its record.

In: input records, commits, predictions, examples, origins of dead letters. Out: findings that name the record.
Invariant: what a commit counts is held against what is found in the topics; nothing is believed because it was counted.

Which label is a duplicate, an orphan or waits is told by its commit alone: it leaves no record. It is held to the
number of labels that are left over once examples, dead letters and punctuations are taken away.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tidemill.apps.audit_inputs import InputColumns
from tidemill.apps.audit_outputs import Predictions
from tidemill.apps.audit_ranges import Committed, Ranges
from tidemill.apps.audit_report import AuditReport
from tidemill.core.records import Int64s, Kind, Outcome, Partition
from tidemill.core.spec import AppSpec

_OF_NO_RECORD = {Outcome.EXPIRED, Outcome.WAITING_JOINED, Outcome.WAITING_ORPHANED}
_OF_RECORDS = frozenset(outcome.name.lower() for outcome in Outcome if outcome not in _OF_NO_RECORD)
LABEL_FIRST = "label_first"
# What only the whole log can answer, and only while nothing is written to it.
_OF_WHOLE_LOG = (
    "examples whose label is no record",
    "labels in time without example",
    "amendments without prediction",
    "totals of amendments and of labels that waited",
    "outputs behind all commits, or of partitions without any",
)
_OF_STANDING_LOG = "examples without prediction"


@dataclass(frozen=True, slots=True)
class Example:
    """One record of the examples log. row: of its prediction, -1 = there is none."""

    offset: int
    kind: str
    id: str
    event_time: int
    label_time: int
    label: int
    is_label_first: bool
    row: int


@dataclass
class Outcomes:
    """Everything that was published, ready to be held against the inputs.

    letters: offsets of dead letters by input partition. is_newer: outputs behind the commits are of batches that were
    committed while the audit was reading.
    """

    spec: AppSpec
    committed: Committed
    predictions: Predictions
    examples: Sequence[Example]
    letters: Mapping[Partition, Sequence[int]]
    is_whole: bool
    is_newer: bool
    _rows: dict[Partition, tuple[Int64s, Int64s]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._rows = rows_by_source(self.predictions)
        self._predicted = set(self.predictions.ids)

    def check(self, inputs: Mapping[Partition, InputColumns], report: AuditReport) -> None:
        """Everything, partition after partition."""
        roles = {topic.name: topic.role for topic in self.spec.topics}
        labels = _LabelRecords()
        self._tell_what_is_left_out(report)
        self._check_ids(report)
        self._check_strangers(roles, report)
        for partition, columns in inputs.items():
            report.records += len(columns)
            letters = np.array(sorted(self.letters.get(partition, ())), dtype=np.int64)
            self._check_letters(partition, columns, letters, report)
            if roles[partition.topic] == "event":
                self._check_events(partition, columns, letters, report)
            elif roles[partition.topic] == "label":
                labels.add(partition, columns)
        self._check_examples(inputs, labels, report)
        for partition, columns in inputs.items():
            role = roles[partition.topic]
            letters = np.array(sorted(set(self.letters.get(partition, ()))), dtype=np.int64)
            self._check_counts(partition, role, columns, letters, labels, report)

    def _tell_what_is_left_out(self, report: AuditReport) -> None:
        """An audit that finds nothing must not pass for one that has looked everywhere."""
        reasons = []
        if self.is_newer:
            reasons.append("the app went on meanwhile: stop its workers, then audit again")
        if not self.is_whole:
            reasons.append("a part of the log was audited: audit without --from and --to")
        if reasons:
            report.not_checked = (_OF_STANDING_LOG, *_OF_WHOLE_LOG) if self.is_newer else _OF_WHOLE_LOG
            report.not_checked_because = "; ".join(reasons)

    def _check_strangers(self, roles: Mapping[str, str], report: AuditReport) -> None:
        """Outputs of partitions that no commit speaks of, or that are no inputs: their records are not read."""
        if not self.is_whole:
            return
        predicted = {partition: offsets.tolist() for partition, (offsets, _) in self._rows.items()}
        for what, found in (("predictions", predicted), ("dead letters", self.letters)):
            for partition, offsets in found.items():
                ranges = self.committed.ranges.get(partition)
                if what == "predictions" and roles.get(partition.topic) != "event":
                    why = f"{partition.topic} is no topic of events"
                elif self.is_newer or (ranges is not None and ranges.start):
                    continue  # looked at with its records; or its first commit came meanwhile
                else:
                    why = "there is no such partition" if ranges is None else "no commit speaks of that partition"
                text = f"{what} of {partition}, the first for offset {min(offsets)}: {why}"
                report.checks["extra"].add(text, len(offsets))

    def _check_ids(self, report: AuditReport) -> None:
        """An id is a new event only after `dedup_window`."""
        seen: dict[str, int] = {}
        window = self.spec.label.dedup_window_ms
        columns = (
            self.predictions.ids,
            *(self.predictions.numbers(name).tolist() for name in ("event_time", "offset")),
        )
        for id_, time, offset in zip(*columns, strict=True):
            before = seen.get(id_)
            if before is not None and abs(time - before) < window:
                report.checks["duplicate"].add(f"two predictions of {id_}, one of them for the record at {offset}")
            seen[id_] = time

    # Events ------------------------------------------------------------------------------------------------------

    def _check_events(self, partition: Partition, columns: InputColumns, letters: Int64s, report: AuditReport) -> None:
        offsets, rows = self._rows.get(partition, _NO_ROWS)
        ids = self.predictions.ids
        for at in np.flatnonzero(offsets[1:] == offsets[:-1]).tolist():
            report.checks["duplicate"].add(f"{partition}@{offsets[at]} has two predictions: {ids[rows[at]]}")
        start, behind = self.committed.ranges[partition].span
        inside = (offsets >= start) & (offsets < behind)
        place = np.searchsorted(columns.offset, offsets)
        exists = (place < len(columns)) & (_at(columns.offset, place) == offsets)
        for at in np.flatnonzero(inside & ~exists).tolist():
            report.checks["extra"].add(f"prediction {ids[rows[at]]} of {partition}@{offsets[at]}, which is no record")
        if not self.is_newer and self.is_whole:
            for at in np.flatnonzero(offsets >= behind).tolist():
                report.checks["extra"].add(
                    f"prediction {ids[rows[at]]} of {partition}@{offsets[at]}: behind all commits"
                )
        self._check_times(partition, columns, offsets, rows, place, inside & exists, report)
        for at in np.flatnonzero(inside & exists).tolist():
            if columns.id[place[at]] != ids[rows[at]]:
                report.checks["extra"].add(
                    f"prediction {ids[rows[at]]} of {partition}@{offsets[at]}, whose id is {columns.id[place[at]]!r}"
                )
        is_open = (columns.kind != Kind.PUNCTUATION) & ~np.isin(columns.offset, letters)
        for at in np.flatnonzero(is_open & ~np.isin(columns.offset, offsets)).tolist():
            if columns.id[at] not in self._predicted:
                report.checks["missing"].add(
                    f"{partition}@{columns.offset[at]}: no outcome of event {columns.id[at]!r}"
                )
        for at in np.flatnonzero(np.isin(letters, offsets)).tolist():
            report.checks["duplicate"].add(f"{partition}@{letters[at]} has a prediction and a dead letter")

    def _check_times(
        self,
        partition: Partition,
        columns: InputColumns,
        offsets: Int64s,
        rows: Int64s,
        place: Int64s,
        exists: npt.NDArray[np.bool_],
        report: AuditReport,
    ) -> None:
        """The event time of each prediction is its record's."""
        published = self.predictions.numbers("event_time")[rows]
        recorded = _at(columns.time, place)
        for at in np.flatnonzero(exists & (published != recorded)).tolist():
            text = f"{partition}@{offsets[at]}: event time {recorded[at]}, in its prediction {published[at]}"
            report.checks["inputs"].add(text)

    def _check_letters(self, partition: Partition, columns: InputColumns, letters: Int64s, report: AuditReport) -> None:
        start, behind = self.committed.ranges[partition].span
        for at in np.flatnonzero(letters[1:] == letters[:-1]).tolist():
            report.checks["duplicate"].add(f"{partition}@{letters[at]} has two dead letters")
        if self.is_whole and not self.is_newer:
            for offset in letters[letters >= behind].tolist():
                report.checks["extra"].add(f"dead letter of {partition}@{offset}: behind all commits")
        for offset in letters[(letters >= start) & (letters < behind) & ~np.isin(letters, columns.offset)].tolist():
            report.checks["extra"].add(f"dead letter of {partition}@{offset}, which is no record")
        unread = (columns.kind == Kind.DEAD_LETTER) & ~np.isin(columns.offset, letters)
        for offset in columns.offset[unread].tolist():
            report.checks["missing"].add(f"{partition}@{offset} cannot be read and is no dead letter")

    # Examples ----------------------------------------------------------------------------------------------------

    def _check_examples(
        self, inputs: Mapping[Partition, InputColumns], labels: _LabelRecords, report: AuditReport
    ) -> None:
        """Each example against its label's record; those of ranges that are not audited are passed over."""
        joined: set[tuple[str, int]] = set()
        for example in self.examples:
            name = f"{example.kind} {example.id} at offset {example.offset} of the examples log"
            if example.kind == "example":
                if (example.id, example.event_time) in joined:
                    report.checks["duplicate"].add(f"{name}: its prediction has an example before it")
                joined.add((example.id, example.event_time))
            # The amendment of a label that still waits knows no event, that of another may be far behind its event.
            has_event = example.kind == "example" or (self.is_whole and example.event_time != -1)
            if has_event and example.row < 0 and not self.is_newer:
                report.checks["extra"].add(f"{name}: no prediction of that id and event time")
            found = labels.find(example)
            if found is None:
                if self.is_whole and not self.is_newer:
                    told = labels.told(example.id)
                    check = "inputs" if told else "extra"
                    report.checks[check].add(f"{name}: label {example.label} of {example.label_time}, records: {told}")
                continue
            report.examples += 1
            if example.kind == "example" and not example.is_label_first:
                labels.joined[found] = labels.joined.get(found, 0) + 1
        if self.is_whole and not self.is_newer:
            self._check_labels_in_time(inputs, labels, joined, report)
            for name, count in (
                ("waiting_joined", sum(each.is_label_first for each in self.examples if each.kind == "example")),
                ("amendment", sum(each.kind == "amendment" for each in self.examples)),
            ):
                counted = self.committed.totals.get(name, 0)
                if counted != count:
                    report.checks["counts"].add(f"{name}: commits count {counted:,}, the examples log holds {count:,}")

    def _check_labels_in_time(
        self,
        inputs: Mapping[Partition, InputColumns],
        labels: _LabelRecords,
        joined: set[tuple[str, int]],
        report: AuditReport,
    ) -> None:
        """A prediction whose label is in time and that has no example.

        A label that came so far out of order that its row had expired is an orphan although its time is in time: as
        many are let pass as the commits count beyond the labels that are late by their time.
        """
        label = self.spec.label
        wait, kept = label.wait_ms, max(label.wait_ms, label.dedup_window_ms)
        orphans = self.committed.totals.get("orphan", 0)
        left = []
        times = self.predictions.numbers("event_time").tolist()
        for id_, time in zip(self.predictions.ids, times, strict=True):
            if (id_, time) in joined:
                continue
            came = [at for _, at, _, _ in labels.by_id.get(id_, ())]
            orphans -= sum(time + wait < at <= time + kept for at in came)
            if came and min(came) <= time + wait:
                left.append(id_)
        for id_ in left[max(0, orphans) :]:
            report.checks["missing"].add(f"prediction {id_} has a label in time and no example")

    # Counts ------------------------------------------------------------------------------------------------------

    def _check_counts(
        self,
        partition: Partition,
        role: str,
        columns: InputColumns,
        letters: Int64s,
        labels: _LabelRecords,
        report: AuditReport,
    ) -> None:
        """What each commit counts against what is found for the records of its range."""
        ranges = self.committed.ranges[partition]
        if not ranges.is_tiled or not ranges.start:
            return  # whose record it is cannot be told; the ranges have their finding
        traces = self._found(partition, role, columns, letters, labels)
        found = {name: _per_commit(ranges, offsets) for name, offsets in traces}
        records = _per_commit(ranges, columns.offset)
        for at, outcomes in enumerate(ranges.outcomes):
            place = f"{partition} [{ranges.start[at]}, {ranges.next[at]})"
            stated = sum(count for name, count in outcomes.items() if name in _OF_RECORDS)
            if stated != records[at]:
                what = "missing" if stated < records[at] else "extra"
                text = f"{place}: {records[at]:,} records, outcomes of {stated:,}"
                report.checks[what].add(text, abs(int(records[at]) - stated))
            for name, counts in found.items():
                if outcomes.get(name, 0) != counts[at]:
                    text = f"{place}: {name} counted {outcomes.get(name, 0):,}, found {counts[at]:,}"
                    report.checks["counts"].add(text)

    def _found(
        self, partition: Partition, role: str, columns: InputColumns, letters: Int64s, labels: _LabelRecords
    ) -> list[tuple[str, Int64s]]:
        """Offsets by outcome, of outcomes that leave a trace."""
        punctuations = columns.offset[columns.kind == Kind.PUNCTUATION]
        found = [("punctuation", punctuations), (f"{role}_dead_letter", letters)]
        if role == "event":
            predicted = np.unique(self._rows.get(partition, _NO_ROWS)[0])
            taken = np.concatenate([predicted, punctuations, letters])
            found += [("prediction", predicted), ("event_duplicate", np.setdiff1d(columns.offset, taken))]
        elif role == "label":
            joined = [
                offset for (place, offset), times in labels.joined.items() for _ in range(times) if place == partition
            ]
            found.append(("example", np.array(joined, dtype=np.int64)))
        return found


_NOTHING = np.empty(0, dtype=np.int64)
_NO_ROWS = (_NOTHING, _NOTHING)


class _LabelRecords:
    """The good records of label topics by id. joined: how many examples each made, by place."""

    def __init__(self) -> None:
        self.by_id: dict[str, list[tuple[int, int, Partition, int]]] = {}  # label, time, place
        self.joined: dict[tuple[Partition, int], int] = {}

    def add(self, partition: Partition, columns: InputColumns) -> None:
        is_label = columns.kind == Kind.LABEL
        rows = zip(
            *(column[is_label].tolist() for column in (columns.id, columns.label, columns.time, columns.offset)),
            strict=True,
        )
        for id_, label, time, offset in rows:
            self.by_id.setdefault(id_, []).append((label, time, partition, offset))

    def find(self, example: Example) -> tuple[Partition, int] | None:
        """The place of the first record with the example's label and time."""
        for label, time, partition, offset in self.by_id.get(example.id, ()):
            if label == example.label and time == example.label_time:
                return partition, offset
        return None

    def told(self, id_: str) -> str:
        """What the records of an id say."""
        return ", ".join(
            f"{label} of {time} at {place}@{offset}" for label, time, place, offset in self.by_id.get(id_, ())
        )


def rows_by_source(predictions: Predictions) -> dict[Partition, tuple[Int64s, Int64s]]:
    """Offsets of the events that were predicted, ascending, and the rows of their predictions, by input partition."""
    found: dict[Partition, tuple[Int64s, Int64s]] = {}
    topics = predictions.table.column("topic").dictionary_encode()
    codes, numbers, offsets = topics.indices.to_numpy(), predictions.numbers("partition"), predictions.numbers("offset")
    for code, topic in enumerate(topics.dictionary.to_pylist()):
        for number in np.unique(numbers[codes == code]).tolist():
            rows = np.flatnonzero((codes == code) & (numbers == number))
            rows = rows[np.argsort(offsets[rows], kind="stable")]
            found[Partition(topic, number)] = (offsets[rows], rows)
    return found


def _per_commit(ranges: Ranges, offsets: Int64s) -> Int64s:
    """How many of the offsets each commit speaks for."""
    at = ranges.commit_of(offsets)
    return np.bincount(at[at >= 0], minlength=len(ranges.start))


def _at(values: Int64s, places: Any) -> Int64s:
    """The values at places, the last one for those behind it."""
    return values[np.minimum(places, len(values) - 1)] if len(values) else np.full(len(places), -1, dtype=np.int64)
