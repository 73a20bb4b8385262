"""The order of the stages: `reads` says what a batch needs, `step` turns it into one commit.

In: a turn (batch, group watermark, partitions owned), the state as read, a scorer at a known N. Out: a `Commit` with
every effect, its outputs packed by the input partition that caused them, and the counts of outcomes.
Invariant: a function of its arguments alone; the live worker, the roll-forward and the backtest call the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter

import numpy as np
import pyarrow as pa

from tidemill.core.features import EventRows, FeaturePlan, LabelRows
from tidemill.core.label_rule import label_values
from tidemill.core.labels import EventEntry, Joined, LabelEntry, columns_of_labels, join_labels, names_aside
from tidemill.core.ports import Codec, Scorer, Served
from tidemill.core.records import Batch, Commit, Kind, Outcome, Output, Partition, Reads, StateView, TopFeatures
from tidemill.core.rows import pack_row, revision_of
from tidemill.core.rules import outliers
from tidemill.core.spec import AppSpec
from tidemill.core.tables import (
    OUTLIER,
    UNTAUGHT,
    amendment_columns,
    commit_columns,
    example_columns,
    prediction_columns,
    served_columns,
    with_entities,
)
from tidemill.core.topic_names import commits_topic, examples_topic, predictions_topic

_DEAD_LETTER = {
    "event": Outcome.EVENT_DEAD_LETTER,
    "label": Outcome.LABEL_DEAD_LETTER,
    "context": Outcome.CONTEXT_DEAD_LETTER,
}


@dataclass(frozen=True, slots=True)
class Turn:
    """One batch and what its worker knew when it took it.

    group_watermark: of the whole group as of the last commit, -1 = none; rows due before it are settled.
    """

    batch: Batch
    group_watermark: int
    owned: frozenset[Partition]
    worker: str
    number: int


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """What a turn comes to. blocked_at >= 0: cut the batch before that position; there is no commit."""

    commit: Commit
    outputs: Mapping[Partition, Sequence[Output]] = field(default_factory=dict)
    outcomes: Mapping[Partition, Counter[Outcome]] = field(default_factory=dict)
    blocked_at: int = -1


class Pipeline:
    """The stages of one app, built once from its declaration."""

    def __init__(self, spec: AppSpec, plan: FeaturePlan, codec: Codec) -> None:
        self.spec = spec
        self.plan = plan
        self.codec = codec
        self.topic_names = tuple(topic.name for topic in spec.topics)
        self.predictions_topic = predictions_topic(spec.name)
        self.examples_topic = examples_topic(spec.name)
        self.commits_topic = commits_topic(spec.name)
        self._event_flagging, self._label_flagging = (
            [rule for topic in spec.topics if topic.role == role for rule in topic.rules if rule.otherwise == "flag"]
            for role in ("event", "label")
        )
        self._untaught = UNTAUGHT - {OUTLIER} if spec.learn_flagged else UNTAUGHT

    def reads(self, turn: Turn) -> Reads:
        ids: dict[str, None] = {}
        for index, topic in enumerate(self.spec.topics):
            found = turn.batch.records.get(topic.name)
            if found is not None and topic.role != "context":
                ids.update(dict.fromkeys(self._ids(index, found.columns)))
        return Reads(
            state_keys=self.plan.state_keys(turn.batch),
            ids=tuple(ids),
            due_partitions=tuple(sorted(turn.owned)) if turn.group_watermark >= 0 else (),
            due_before=turn.group_watermark,
        )

    def reads_again(self, turn: Turn, served: Served) -> Reads:
        """What a batch needs in a roll-forward: rows aside as well."""
        reads = self.reads(turn)
        entries, _ = self._entries(turn.batch)
        return replace(reads, ids=(*reads.ids, *names_aside(entries, served.labelled)))

    def first_position(self, turn: Turn, ids: frozenset[str]) -> int:
        """The position of the first event or label with one of these ids; -1 when the batch has none."""
        entries, _ = self._entries(turn.batch)
        return next((entry.position for entry in entries if entry.id in ids), -1)

    def step(self, turn: Turn, reads: Reads, view: StateView, scorer: Scorer) -> StepOutcome:
        """Score, join, and publish: everything that the batch causes."""
        batch = turn.batch
        joined, labels = self._join(turn, reads, view, None)
        if joined.blocked_at >= 0:
            return StepOutcome(Commit(spans={}), blocked_at=joined.blocked_at)
        events = self._event_rows(batch, joined)
        pending = self._pending(joined)
        entities = self.plan.entities(events)
        label_rows = self._label_rows(joined, pending, entities, labels)
        features, pane_deltas, latest_deltas = self.plan.compute(
            batch=batch,
            events=events,
            joined=label_rows,
            keys=reads.state_keys,
            state=view.state,
        )
        scores = scorer.score(features, [event.id for event in joined.scored])
        flags = self._flags(joined, events, view, scores.is_degraded)
        served = served_columns(features, scores, entities, flags, self.plan.digest)
        examples = self._examples(joined, served, pending, label_rows)
        outputs = self._outputs(batch, joined, served, examples, scores.top_features)
        outcomes = self._outcomes(batch, joined)
        self._add_commit_records(turn, outputs, joined, scorer.n)
        # A partition without records is in the commit when one of its rows was due: then its owner is checked too.
        touched = {*outputs, *(due.partition for due, _ in view.due)}
        return StepOutcome(
            commit=Commit(
                spans={p: span for p, span in batch.spans.items() if p in touched},
                read_set=self._read_set(reads, view),
                rows=self._rows(joined, served),
                due_add=tuple(joined.due_add),
                due_remove=tuple(joined.due_remove),
                pane_deltas=pane_deltas,
                latest_deltas=latest_deltas,
                slices={p: self.codec.pack_slice(slice_) for p, slice_ in outputs.items()},
            ),
            outputs=outputs,
            outcomes=outcomes,
        )

    def roll_forward(self, turn: Turn, reads: Reads, view: StateView, served: Served) -> Commit:
        """The deltas of a batch whose outputs are already published: nothing is scored, nothing is published."""
        joined, labels = self._join(turn, reads, view, served)
        events = self._event_rows(turn.batch, joined)
        # Entities are of the groups of today, whose state this fills; what was served may be of earlier ones.
        entities = self.plan.entities(events)
        recorded = with_entities(served.columns(joined.scored), entities)
        pending = self._pending(joined)
        _, pane_deltas, latest_deltas = self.plan.compute(
            batch=turn.batch,
            events=events,
            joined=self._label_rows(joined, pending, entities, labels),
            keys=reads.state_keys,
            state=view.state,
        )
        return Commit(
            spans=turn.batch.spans,
            read_set=self._read_set(reads, view),
            rows=self._rows(joined, recorded),
            due_add=tuple(joined.due_add),
            due_remove=tuple(joined.due_remove),
            pane_deltas=pane_deltas,
            latest_deltas=latest_deltas,
        )

    def _join(
        self, turn: Turn, reads: Reads, view: StateView, served: Served | None
    ) -> tuple[Joined, dict[int, pa.RecordBatch]]:
        entries, labels = self._entries(turn.batch)
        joined = join_labels(
            spec=self.spec.label,
            topic_names=self.topic_names,
            entries=entries,
            rows=dict(zip(reads.ids, view.rows, strict=True)),
            due=view.due,
            due_before=turn.group_watermark,
            published={p: mark.committed for p, mark in view.marks.items() if p not in turn.owned},
            predicted=None if served is None else served.sources,
            labelled=None if served is None else served.labelled,
            label_columns=labels,
        )
        return joined, labels

    def _ids(self, topic_index: int, columns: pa.RecordBatch) -> list[str]:
        id_field = self.spec.topics[topic_index].id_field
        assert id_field is not None  # config.py: every event and label topic has one
        ids: list[str] = columns.column(id_field).cast(pa.string()).to_pylist()
        return ids

    def _entries(self, batch: Batch) -> tuple[list[EventEntry | LabelEntry], dict[int, pa.RecordBatch]]:
        """Events and labels of the batch in merged order, and the label columns by topic index."""
        entries: list[EventEntry | LabelEntry] = []
        labels: dict[int, pa.RecordBatch] = {}
        for index, topic in enumerate(self.spec.topics):
            found = batch.records.get(topic.name)
            if found is None or topic.role == "context":
                continue
            at = found.row_index
            places = zip(
                at.tolist(),
                self._ids(index, found.columns),
                batch.time[at].tolist(),
                [index] * len(at),
                batch.partition[at].tolist(),
                batch.offset[at].tolist(),
                range(len(at)),
                strict=True,
            )
            if topic.role == "event":
                entries.extend(map(EventEntry._make, places))
            else:
                labels[index] = found.columns
                values = label_values(self.spec.label, found.columns).tolist()
                entries.extend(LabelEntry._make((*place, value)) for place, value in zip(places, values, strict=True))
        entries.sort(key=itemgetter(0))  # the position
        return entries, labels

    def _event_rows(self, batch: Batch, joined: Joined) -> EventRows:
        """The events to score, as columns, in merged order."""
        topic = next(topic for topic in self.spec.topics if topic.role == "event")
        found = batch.records.get(topic.name)
        row_index = np.array([event.position for event in joined.scored], dtype=np.int64)
        if found is None:
            empty = self.codec.input_schema(topic.name).empty_table().to_batches()
            columns = empty[0] if empty else pa.RecordBatch.from_pylist([], schema=self.codec.input_schema(topic.name))
        elif len(joined.scored) == found.columns.num_rows:
            columns = found.columns
        else:
            columns = found.columns.take(pa.array([event.order for event in joined.scored], pa.int64()))
        return EventRows(row_index=row_index, time=batch.time[row_index], columns=columns)

    def _pending(self, joined: Joined) -> pa.RecordBatch:
        return self.codec.decode_rows([join.tail for join in joined.joins if join.tail is not None])

    def _label_rows(
        self,
        joined: Joined,
        pending: pa.RecordBatch,
        entities: Sequence[tuple[str, ...]],
        labels: Mapping[int, pa.RecordBatch],
    ) -> LabelRows:
        """The labels that join in this batch, with the entities of their events."""
        topic_index, topic = next((i, t) for i, t in enumerate(self.spec.topics) if t.role == "label")
        scored_at = {event.order: at for at, event in enumerate(joined.scored)}
        pending_entities = iter(pending.column("entities").to_pylist())
        texts = [
            tuple(next(pending_entities)) if join.tail is not None else entities[scored_at[join.event_order]]
            for join in joined.joins
        ]
        return LabelRows(
            row_index=np.array([join.position for join in joined.joins], dtype=np.int64),
            time=np.array([join.label_time for join in joined.joins], dtype=np.int64),
            partition=np.array([join.label_partition for join in joined.joins], dtype=np.int32),
            offset=np.array([join.label_offset for join in joined.joins], dtype=np.int64),
            columns=columns_of_labels(joined.joins, labels.get(topic_index), self.codec.input_schema(topic.name)),
            label=np.array([join.label for join in joined.joins], dtype=np.int8),
            entities=texts,
        )

    def _flags(self, joined: Joined, events: EventRows, view: StateView, is_degraded: bool) -> list[list[str]]:
        lateness = self.spec.label.allowed_lateness_ms
        seen = {p: mark.watermark for p, mark in view.marks.items()}
        flags: list[list[str]] = []
        for event, is_label_first in zip(joined.scored, joined.label_first, strict=True):
            mine = ["degraded"] if is_degraded else []
            # Merged order sorts a batch by time: only what the partition showed before this batch can make it late.
            if event.time < seen.get(Partition(self.topic_names[event.topic_index], event.partition), -1) - lateness:
                mine.append("late")
            if is_label_first:
                mine.append("label_first")
            flags.append(mine)
        for row in np.flatnonzero(outliers(self._event_flagging, events.columns)).tolist():
            flags[row].append(OUTLIER)
        return flags

    def _outputs(
        self,
        batch: Batch,
        joined: Joined,
        served: pa.RecordBatch,
        examples: Sequence[tuple[int, str, bytes]],
        top: Mapping[int, TopFeatures],
    ) -> dict[Partition, list[Output]]:
        """Every output of the batch, by the partition of its cause, in merged order."""
        outputs: dict[Partition, list[Output]] = {p: [] for p, span in batch.spans.items() if span.next > span.start}
        events = joined.scored
        if events:
            columns = prediction_columns(events, self.topic_names, served, self.spec.costs.threshold, top)
            values = self.codec.encode("prediction.v1", columns)
            for event, value in zip(events, values, strict=True):
                cause = Partition(self.topic_names[event.topic_index], event.partition)
                outputs[cause].append(Output(self.predictions_topic, event.id.encode(), value))
        for position, id_, value in examples:
            cause = Partition(self.topic_names[batch.topic_index[position]], int(batch.partition[position]))
            outputs[cause].append(Output(self.examples_topic, id_.encode(), value))
        for _, letter in batch.dead_letters:
            outputs[letter.partition].append(self.codec.dead_letter(letter))
        return outputs

    def _examples(
        self, joined: Joined, served: pa.RecordBatch, pending: pa.RecordBatch, labels: LabelRows
    ) -> list[tuple[int, str, bytes]]:
        """(position, id, encoded) of every example and amendment, in merged order."""
        found: list[tuple[int, str, bytes]] = []
        if joined.joins:
            scored_at = {event.order: at for at, event in enumerate(joined.scored)}
            of_pending = iter(range(pending.num_rows))
            judged = [
                next(of_pending) if join.tail is not None else pending.num_rows + scored_at[join.event_order]
                for join in joined.joins
            ]
            rows = pa.Table.from_batches([pending, served]).combine_chunks().take(pa.array(judged, pa.int64()))
            columns = example_columns(
                joined.joins,
                rows.to_batches()[0],
                is_label_flagged=outliers(self._label_flagging, labels.columns),
                untaught=self._untaught,
            )
            values = self.codec.encode("example.v1", columns)
            found += [(join.position, join.id, value) for join, value in zip(joined.joins, values, strict=True)]
        if joined.amendments:
            values = self.codec.encode("example.v1", amendment_columns(joined.amendments, self.plan.digest))
            found += [(one.position, one.id, value) for one, value in zip(joined.amendments, values, strict=True)]
            found.sort(key=lambda each: each[0])
        return found

    def _outcomes(self, batch: Batch, joined: Joined) -> dict[Partition, Counter[Outcome]]:
        outcomes = joined.outcomes
        roles = [topic.role for topic in self.spec.topics]
        for kind, outcome in ((Kind.CONTEXT, Outcome.STATE), (Kind.PUNCTUATION, Outcome.PUNCTUATION)):
            of_kind = batch.kind == kind
            places = np.stack([batch.topic_index[of_kind].astype(np.int32), batch.partition[of_kind]])
            pairs, counts = np.unique(places, axis=1, return_counts=True)
            for (topic_index, number), count in zip(pairs.T.tolist(), counts.tolist(), strict=True):
                outcomes.setdefault(Partition(self.topic_names[topic_index], number), Counter())[outcome] += count
        for position, letter in batch.dead_letters:
            outcomes.setdefault(letter.partition, Counter())[_DEAD_LETTER[roles[batch.topic_index[position]]]] += 1
        return outcomes

    def _add_commit_records(self, turn: Turn, outputs: dict[Partition, list[Output]], joined: Joined, n: int) -> None:
        """One commit record per partition that had records or outcomes, as the last output of its slice."""
        outcomes = joined.outcomes
        partitions = sorted({*outputs, *outcomes})
        ranks = [_merge_rank(turn.batch, self.topic_names, partition) for partition in partitions]
        columns = commit_columns(
            [(partition, turn.batch.spans[partition], outcomes.get(partition, {})) for partition in partitions],
            ranks,
            joined=[joined.met.get(partition, ()) for partition in partitions],
            waiting=[joined.waiting.get(partition, ()) for partition in partitions],
            settled=[joined.settled.get(partition, ()) for partition in partitions],
            worker=turn.worker,
            number=turn.number,
            n=n,
            group_watermark=turn.group_watermark,
        )
        for partition, value in zip(partitions, self.codec.encode("commit.v1", columns), strict=True):
            outputs.setdefault(partition, []).append(Output(self.commits_topic, str(partition).encode(), value))

    def _read_set(self, reads: Reads, view: StateView) -> dict[str, int]:
        read_set = {id_: revision_of(row) for id_, row in zip(reads.ids, view.rows, strict=True)}
        for due, row in view.due:
            read_set.setdefault(due.id, revision_of(row))
        return read_set

    def _rows(self, joined: Joined, served: pa.RecordBatch) -> dict[str, bytes | None]:
        """New bytes of every touched row; pending ones carry what was served."""
        scored_at = {event.order: at for at, event in enumerate(joined.scored)}
        waiting_for_label = [scored_at[order] for order in joined.pending_order.values()]
        tails = self.codec.encode_rows(served.take(pa.array(waiting_for_label, pa.int64())))
        tail_of = dict(zip(joined.pending_order, tails, strict=True))
        return {id_: None if row is None else pack_row(row) + tail_of.get(id_, b"") for id_, row in joined.rows.items()}


def _merge_rank(batch: Batch, topic_names: Sequence[str], partition: Partition) -> int:
    mine = (batch.topic_index == topic_names.index(partition.topic)) & (batch.partition == partition.number)
    return int(np.argmax(mine)) if mine.any() else -1
