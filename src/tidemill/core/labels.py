"""Labels meet predictions: what becomes of every event and label of a batch, and of the rows that are due.

In: the rows as read, the events and labels of a batch in merged order, the rows that are due. Out: which events to
score, which labels join, every touched row's new state, due entries and outcome counts.
Invariant: every event and label gets exactly one outcome; a row changes at most once per batch, its revision by one.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa

from tidemill.core.open_rows import OpenRow, OpenRows, name_aside
from tidemill.core.records import Due, Outcome, Partition
from tidemill.core.rejoining import Rejoining
from tidemill.core.rows import Row, RowState, due_time, partition_of
from tidemill.core.settlements import Example, Labelled
from tidemill.core.spec import LabelSpec


class EventEntry(NamedTuple):
    """An event of the batch. `order`: its place among the events of the batch."""

    position: int
    id: str
    time: int
    topic_index: int
    partition: int
    offset: int
    order: int


class LabelEntry(NamedTuple):
    """A label of the batch. `order`: its place among the labels of its topic in the batch."""

    position: int
    id: str
    time: int
    topic_index: int
    partition: int
    offset: int
    order: int
    label: int


class Join(NamedTuple):
    """A label that joined its prediction at `position` of the batch.

    Served features and scores: `tail` of a row read from the store, else the event with place `event_order` in this
    batch. The label's fields: `label_order` in this batch, else `label_tail` of a row that waited.
    """

    position: int
    id: str
    label: int
    event_time: int
    label_time: int
    tail: bytes | None
    event_order: int
    label_tail: bytes | None
    label_topic_index: int
    label_partition: int
    label_offset: int
    label_order: int


class Amendment(NamedTuple):
    """A second, different label: published, never learned."""

    position: int
    id: str
    label: int
    event_time: int
    label_time: int


@dataclass(slots=True)
class Joined:
    """The result of `join_labels`; see the module's docstring. `rows` holds None where a row ends.

    blocked_at: the first position whose label meets a prediction of another worker that is not published yet; the
    batch must be cut before it and nothing of this result used. -1 = not blocked.
    """

    scored: list[EventEntry] = field(default_factory=list)
    label_first: list[bool] = field(default_factory=list)  # per scored event: its label was already known
    joins: list[Join] = field(default_factory=list)
    amendments: list[Amendment] = field(default_factory=list)
    rows: dict[str, Row | None] = field(default_factory=dict)
    pending_order: dict[str, int] = field(default_factory=dict)  # rows that need the tail of a scored event
    due_add: list[Due] = field(default_factory=list)
    due_remove: list[Due] = field(default_factory=list)
    outcomes: dict[Partition, Counter[Outcome]] = field(default_factory=dict)
    met: dict[Partition, list[int]] = field(default_factory=dict)  # offsets of labels that met their event
    waiting: dict[Partition, list[int]] = field(default_factory=dict)  # offsets of labels that wait for their event
    settled: dict[Partition, list[int]] = field(default_factory=dict)  # offsets whose rows expired or were orphaned
    blocked_at: int = -1

    def count(self, partition: Partition, outcome: Outcome) -> None:
        counter = self.outcomes.get(partition)
        if counter is None:
            counter = self.outcomes[partition] = Counter()
        counter[outcome] += 1


def join_labels(
    *,
    spec: LabelSpec,
    topic_names: tuple[str, ...],
    entries: Sequence[EventEntry | LabelEntry],
    rows: Mapping[str, bytes | None],
    due: Sequence[tuple[Due, bytes | None]],
    due_before: int,
    published: Mapping[Partition, int],
    predicted: frozenset[tuple[int, int, int]] | None = None,
    labelled: Labelled | None = None,
    label_columns: Mapping[int, pa.RecordBatch],
) -> Joined:
    """Decide the outcome of every event and label, in merged order, after the due rows.

    Args:
        entries: events and labels of the batch, ascending by position.
        rows: packed rows of all their ids, None = absent; in a roll-forward those of `names_aside` too.
        due: rows whose due time is before `due_before`, the group watermark as of the last commit; in a roll-forward,
            the rows to settle.
        published: per partition of other workers, the offset before which its predictions are in Kafka. A partition
            that is missing here belongs to this worker.
        predicted: in a roll-forward, the sources (topic index, partition, offset) of the published predictions: they
            decide which event was the first of its id. None = live.
        labelled: in a roll-forward, the published examples: they decide which labels join, whatever came in between.
        label_columns: by topic index, the label records (for labels that must wait).
    Raises:
        StateLostError: TM-4207, in a roll-forward: the example of a label is gone.
    """
    result = Joined()
    opened = OpenRows(rows, spec, topic_names)
    rejoining = None if labelled is None else Rejoining(opened, labelled, spec)
    for entry, packed in due:
        slot = opened.open(entry.id, packed)
        # In a roll-forward the log has told which rows ended, whatever today's windows say.
        if slot.row is not None and (labelled is not None or due_time(spec, slot.row) < due_before):
            _settle_due(slot, entry, result)

    for item in entries:
        slot = opened[item.id] if rejoining is None else _row_again(item, opened, topic_names, predicted, rejoining)
        if isinstance(item, EventEntry):
            _take_event(item, slot, topic_names, predicted, labelled, result)
        elif not _take_label(item, slot, spec, topic_names, published, labelled, label_columns, result):
            result.blocked_at = item.position
            return result

    for name, slot in opened.changed():
        _close(name, slot, spec, topic_names, result)
    return result


def names_aside(entries: Iterable[EventEntry | LabelEntry], labelled: Labelled) -> list[str]:
    """The rows aside that these may meet in a roll-forward."""
    times = (
        (item.id, item.time if isinstance(item, EventEntry) else labelled.event_time(item.id, item.time, item.label))
        for item in entries
    )
    return list(dict.fromkeys(name_aside(id_, time) for id_, time in times if time is not None))


def _row_again(
    item: EventEntry | LabelEntry,
    opened: OpenRows,
    topic_names: tuple[str, ...],
    predicted: frozenset[tuple[int, int, int]] | None,
    rejoining: Rejoining,
) -> OpenRow:
    place = Partition(topic_names[item.topic_index], item.partition)
    if isinstance(item, LabelEntry):
        return rejoining.row_of_label(item.id, item.time, item.label, place, item.offset)
    if predicted is None or (item.topic_index, item.partition, item.offset) not in predicted:
        return opened[item.id]
    return rejoining.row_of_event(item.id, item.time, place, item.offset)


def _settle_due(slot: OpenRow, entry: Due, result: Joined) -> None:
    row = slot.row
    assert row is not None
    if row.state in (RowState.PENDING, RowState.WAITING):
        is_pending = row.state is RowState.PENDING
        result.count(entry.partition, Outcome.EXPIRED if is_pending else Outcome.WAITING_ORPHANED)
        result.settled.setdefault(entry.partition, []).append(row.offset)
    if row.state is RowState.PENDING:
        slot.row = row._replace(revision=slot.next_revision, state=RowState.EXPIRED, tail=b"")
    else:
        slot.row = None
    slot.is_changed = True


def _take_event(
    event: EventEntry,
    slot: OpenRow,
    topic_names: tuple[str, ...],
    predicted: frozenset[tuple[int, int, int]] | None,
    labelled: Labelled | None,
    result: Joined,
) -> None:
    partition = Partition(topic_names[event.topic_index], event.partition)
    row = slot.row
    is_first = row is None or row.state is RowState.WAITING
    if predicted is not None:
        is_first = (event.topic_index, event.partition, event.offset) in predicted
    if not is_first:
        result.count(partition, Outcome.EVENT_DUPLICATE)
        return
    result.count(partition, Outcome.PREDICTION)
    is_label_first = row is not None and row.state is RowState.WAITING
    if row is not None and is_label_first and labelled is not None:
        # Labels of another worker may be applied before their events here, so an orphan may wait where none did.
        is_label_first = Example(event.id, event.time, row.label_time, row.label) in labelled
    result.scored.append(event)
    result.label_first.append(is_label_first)
    slot.event_order = event.order
    slot.is_changed = True
    made_by = (event.topic_index, event.partition, event.offset)
    if row is None or not is_label_first:
        slot.row = Row(slot.next_revision, RowState.PENDING, event.time, -1, -1, *made_by, b"")
        return
    result.count(partition, Outcome.WAITING_JOINED)
    result.joins.append(
        Join(
            event.position, event.id, row.label, event.time, row.label_time, None, event.order,
            row.tail, row.topic_index, row.partition, row.offset, -1,
        )
    )  # fmt: skip
    slot.row = Row(slot.next_revision, RowState.JOINED, event.time, row.label_time, row.label, *made_by, b"")


def _take_label(
    label: LabelEntry,
    slot: OpenRow,
    spec: LabelSpec,
    topic_names: tuple[str, ...],
    published: Mapping[Partition, int],
    labelled: Labelled | None,
    label_columns: Mapping[int, pa.RecordBatch],
    result: Joined,
) -> bool:
    """False when the label must wait for another worker to publish the prediction that it judges."""
    partition = Partition(topic_names[label.topic_index], label.partition)
    row = slot.row
    if labelled is not None:
        labelled.expect_example_of_label(partition, label.offset, id_=label.id, label_time=label.time)
    if row is None or _was_forgotten(row, label, partition, spec, labelled):
        if labelled is not None and not labelled.has_record(partition, label.offset):
            return True  # it met a row that is not here yet, or no more: it left nothing
        result.count(partition, Outcome.WAITING)
        result.waiting.setdefault(partition, []).append(label.offset)
        tail = _label_tail(label_columns[label.topic_index], label.order)
        made_by = (label.topic_index, label.partition, label.offset)
        slot.row = Row(slot.next_revision, RowState.WAITING, -1, label.time, label.label, *made_by, tail)
        slot.is_changed = True
    elif row.state is RowState.PENDING:
        if labelled is not None:
            is_in_time = Example(label.id, row.event_time, label.time, label.label) in labelled
        elif slot.event_order < 0 and row.offset >= published.get(partition_of(row, topic_names), row.offset + 1):
            return False
        else:
            is_in_time = label.time <= row.event_time + spec.wait_ms
        if not is_in_time:
            result.count(partition, Outcome.ORPHAN)
            return True
        result.count(partition, Outcome.EXAMPLE)
        result.met.setdefault(partition, []).append(label.offset)
        tail_served = row.tail if slot.event_order < 0 else None
        result.joins.append(
            Join(
                label.position, label.id, label.label, row.event_time, label.time, tail_served, slot.event_order,
                None, label.topic_index, label.partition, label.offset, label.order,
            )
        )  # fmt: skip
        slot.row = Row(
            slot.next_revision, RowState.JOINED, row.event_time, label.time, label.label,
            row.topic_index, row.partition, row.offset, b"",
        )  # fmt: skip
        slot.is_changed = True
    elif row.state is RowState.EXPIRED:
        result.count(partition, Outcome.ORPHAN)
    elif row.label == label.label:
        result.count(partition, Outcome.LABEL_DUPLICATE)
    else:
        result.count(partition, Outcome.AMENDMENT)
        result.amendments.append(Amendment(label.position, label.id, label.label, row.event_time, label.time))
    return True


def _was_forgotten(
    row: Row, label: LabelEntry, partition: Partition, spec: LabelSpec, labelled: Labelled | None
) -> bool:
    """In a roll-forward: the row had ended and gone before this label came the first time. A worker that forgets a row
    tells nobody: that the label waited is the first that is heard of it."""
    if labelled is None or row.state not in (RowState.JOINED, RowState.EXPIRED):
        return False
    return due_time(spec, row) < labelled.forgotten_before(partition, label.offset)


def _close(id_: str, slot: OpenRow, spec: LabelSpec, topic_names: tuple[str, ...], result: Joined) -> None:
    row = slot.row
    if row is not None and row.state is RowState.JOINED and slot.is_aside:
        row = None  # both have come: nobody asks for it any more
    after = None if row is None else (partition_of(row, topic_names), due_time(spec, row))
    if slot.before is not None and (after is None or after[0] != slot.before[0]):
        result.due_remove.append(Due(slot.before[0], id_, slot.before[1]))
    if after is not None and after != slot.before:
        result.due_add.append(Due(after[0], id_, after[1]))
    if row is None:
        # A row that was made and settled within one batch never reached the store: nothing to delete.
        if slot.revision:
            result.rows[id_] = None
        return
    result.rows[id_] = row
    if row.state is RowState.PENDING and slot.event_order >= 0:
        result.pending_order[id_] = slot.event_order


def _label_tail(columns: pa.RecordBatch, order: int) -> bytes:
    fields: dict[str, Any] = columns.slice(order, 1).to_pylist()[0]
    # Features of a label read numbers: bytes, maps and lists would not come back from JSON as they went.
    plain = {name: value for name, value in fields.items() if isinstance(value, bool | int | float | str)}
    return json.dumps(plain, sort_keys=True).encode()


def label_record(tail: bytes) -> dict[str, Any]:
    """The plain fields of a label that waited for its event; null ones and nested ones are absent."""
    fields: dict[str, Any] = json.loads(tail)
    return fields


def columns_of_labels(joins: Sequence[Join], of_batch: pa.RecordBatch | None, schema: pa.Schema) -> pa.RecordBatch:
    """The label records of the joins, in their order: from the batch, or from rows that waited."""
    waited = [label_record(join.label_tail) for join in joins if join.label_tail is not None]
    if not waited:
        orders = pa.array([join.label_order for join in joins], pa.int64())
        return pa.RecordBatch.from_pylist([], schema=schema) if of_batch is None else of_batch.take(orders)
    stored = pa.RecordBatch.from_pylist(waited, schema=schema)
    if of_batch is None:
        return stored
    of_stored = iter(range(stored.num_rows))
    picks = [
        next(of_stored) if join.label_tail is not None else stored.num_rows + join.label_order for join in joins
    ]  # fmt: skip
    both = pa.Table.from_batches([stored, of_batch.cast(schema)]).combine_chunks()
    return both.take(pa.array(picks, pa.int64())).to_batches()[0]
