"""Rebuild what the store forgot: apply the log again, publish nothing.

In: offset ranges whose outputs are already in Kafka. Out: feature state and rows as if the store had never lost them,
features and scores of open predictions taken from the predictions topic. Invariant: deltas are functions of the
records and of what was published of them: which label joined and which row expired is read from the log, never decided
again, so the digest of the feature state is that of the first time and both balances stay closed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from types import MappingProxyType
from typing import Any

import pyarrow as pa

from tidemill.apps.dead_letters import letter_of
from tidemill.apps.patience import Patience
from tidemill.core.batches import with_idle_partitions
from tidemill.core.labels import EventEntry
from tidemill.core.merge import TimeOrderedMerge
from tidemill.core.outputs_kept import offsets_without_record, predictions_gone
from tidemill.core.pipeline import Pipeline, Turn
from tidemill.core.ports import Conflict, Store
from tidemill.core.records import Batch, Partition, Span
from tidemill.core.settlements import Decided, Example, Labelled, Settlements, outputs_gone
from tidemill.core.spec import AppSpec
from tidemill.core.tables import SERVED
from tidemill.core.topic_names import dead_letter_topic
from tidemill.errors import UnavailableError
from tidemill.io.dead_letters import KILLING_CODES, Code
from tidemill.io.judge import Fault
from tidemill.io.kafka_reader import LogReader, read_to_end
from tidemill.io.offered import offered
from tidemill.io.source import records_of, spans_of
from tidemill.io.wire import InputDecoder, decode, without_commands

READ_RECORDS_MAX = 5_000  # per poll; bounds memory, not meaning
READ_STILL_S = 60.0  # without a record, although the end is known: the broker is down
DUE_ROWS_MAX = 1_000_000  # none of the rows that a commit settled may be missed
FOREVER_MS = 1 << 62  # later than any row is due


class PublishedPredictions:
    """The predictions of some source ranges, as served. Fulfils `core.ports.Served`."""

    def __init__(
        self,
        rows: pa.Table,
        sources: Sequence[tuple[int, int, int]],
        label_first: Sequence[tuple[str, int]],
        labelled: Labelled,
    ) -> None:
        """`label_first`: the events (id, time) among them whose labels had come before."""
        self._rows = rows
        self.label_first = label_first
        self.labelled = labelled
        self._row_of = {source: row for row, source in enumerate(sources)}
        self.sources = frozenset(self._row_of)

    def columns(self, events: Sequence[EventEntry]) -> pa.RecordBatch:
        rows = [self._row_of[event.topic_index, event.partition, event.offset] for event in events]
        taken = self._rows.take(pa.array(rows, pa.int64())).combine_chunks().to_batches()
        return taken[0] if taken else pa.RecordBatch.from_pylist([], schema=SERVED)


class RollForward:
    """Applies ranges of the inputs to the store without outputs; the compute thread owns it."""

    def __init__(
        self,
        *,
        client_settings: Mapping[str, Any],
        pipeline: Pipeline,
        decoder: InputDecoder,
        store: Store,
        report: Callable[[str], None],
        last_cut: Callable[[Mapping[Partition, tuple[int, int]]], Mapping[str, Any]] = lambda _ranges: {},
    ) -> None:
        """`last_cut`: of the store, before some ranges were applied (apps/restoring.py); empty = it is not known."""
        self._last_cut = last_cut
        self._client_settings = client_settings
        self._pipeline = pipeline
        self._decoder = decoder
        self._store = store
        self._report = report

    def run(self, ranges: Mapping[Partition, tuple[int, int]], owned: frozenset[Partition]) -> None:
        """Apply the records of every range [start, end), in merged order; settle the rows that were settled then.

        Raises:
            StateLostError: TM-4207, outputs of the ranges were deleted; nothing was decided without them.
        """
        began = time.monotonic()
        cut = self._last_cut(ranges)
        recorded = self._recorded(ranges, cut)
        if cut.get("log_ends") and offsets_without_record(recorded, ranges):
            # The cut was of a store that was itself behind the log: what it lacked had been published before.
            cut = {**cut, "log_ends": {}}
            recorded = self._recorded(ranges, cut)
        labelled = Labelled(self._examples(cut), recorded, self._pipeline.examples_topic)
        served = self._published(ranges, cut, labelled)
        self._refuse_gaps(ranges, recorded, served)
        settlements = Settlements(recorded)
        applied = {partition: start for partition, (start, _) in ranges.items()}
        self._report(f"{len(served.sources)} published predictions found for the ranges")
        number = 0
        condemned = condemned_records(self._client_settings, self._pipeline.spec.name, ranges)
        for batch in read_merged(self._client_settings, self._pipeline.spec, self._decoder, ranges, condemned):
            for partition, span in batch.spans.items():
                settlements.advance(partition, before=span.next)
            self._apply(with_idle_partitions(batch, applied), number, owned, served, settlements)
            applied.update({partition: span.next for partition, span in batch.spans.items()})
            number += 1
        # Holes at the end of a range belong to it: the next batch starts where the group's offset stands. And the last
        # commit of a partition may have moved no offset.
        rest = {partition: Span(applied[partition], end, -1, False) for partition, (_, end) in ranges.items()}
        for partition, span in rest.items():
            settlements.advance(partition, before=span.next + 1)
        # Rows that ended then may be due later by today's windows. Only once: it may look at every row there is.
        self._apply(self._decoder.decode([], rest), number, owned, served, settlements, missed_due_before=FOREVER_MS)
        count = sum(end - start for start, end in ranges.values())
        self._report(f"{count:,} offsets applied again in {time.monotonic() - began:.1f} s")

    def _refuse_gaps(
        self,
        ranges: Mapping[Partition, tuple[int, int]],
        recorded: Mapping[Partition, Sequence[Decided]],
        served: PublishedPredictions,
    ) -> None:
        """What a log does not tell any more would be decided otherwise: events would become duplicates, predictions
        would be labelled or expire a second time."""
        pipeline = self._pipeline
        if count := offsets_without_record(recorded, ranges):
            raise outputs_gone(pipeline.commits_topic, f"{count:,} offsets have no commit record")
        topics = pipeline.topic_names
        published = ((Partition(topics[index], number), offset) for index, number, offset in served.sources)
        if count := predictions_gone(recorded, ranges, published):
            raise outputs_gone(pipeline.predictions_topic, f"{count:,} predictions are missing")
        served.labelled.expect_examples_of_events(served.label_first)

    def _apply(
        self,
        batch: Batch,
        number: int,
        owned: frozenset[Partition],
        served: PublishedPredictions,
        settlements: Settlements,
        *,
        missed_due_before: int | None = None,
    ) -> None:
        """One batch as one commit without outputs; `batch` has a span for every partition of the ranges.

        `missed_due_before`: where to look for rows that the log names as settled and that are not due.
        """
        turn = Turn(batch, settlements.watermark, owned, worker="roll-forward", number=number)
        wanted = tuple(sorted(batch.spans)) if turn.group_watermark >= 0 else ()
        reads = replace(self._pipeline.reads_again(turn, served), due_partitions=wanted, due_limit=DUE_ROWS_MAX)
        while True:
            view = self._store.read(reads)
            chosen = settlements.choose(view.due)
            if missed_due_before is not None and settlements.misses_rows:
                reads, missed_due_before = replace(reads, due_before=missed_due_before), None
                continue
            commit = self._pipeline.roll_forward(turn, reads, replace(view, due=chosen), served)
            if not isinstance(self._store.commit(commit), Conflict):
                break

    def _published(
        self, ranges: Mapping[Partition, tuple[int, int]], cut: Mapping[str, Any], labelled: Labelled
    ) -> PublishedPredictions:
        index_of = {topic.name: index for index, topic in enumerate(self._pipeline.spec.topics)}
        tables: list[pa.Table] = []
        sources: list[tuple[int, int, int]] = []
        label_first: list[tuple[str, int]] = []
        for messages in self._read(self._pipeline.predictions_topic, cut):
            found = decode("prediction.v1", [message.value() for message in messages])
            keep = []
            origins = zip(*(found.column(name).to_pylist() for name in ("topic", "partition", "offset")), strict=True)
            for row, (topic, partition, offset) in enumerate(origins):
                start, end = ranges.get(Partition(topic, partition), (0, 0))
                if start <= offset < end:
                    keep.append(row)
                    sources.append((index_of[topic], partition, offset))
            served = found.select(SERVED.names).take(pa.array(keep, pa.int64())).cast(SERVED)
            tables.append(pa.Table.from_batches([served]))
            for row, flags in zip(keep, served.column("flags").to_pylist(), strict=True):
                if "label_first" in flags:
                    label_first.append((found.column("id")[row].as_py(), found.column("event_time")[row].as_py()))
        rows = pa.concat_tables(tables) if tables else SERVED.empty_table()
        return PublishedPredictions(rows, sources, label_first, labelled)

    def _examples(self, cut: Mapping[str, Any]) -> Iterator[Example]:
        for messages in self._read(self._pipeline.examples_topic, cut):
            found = decode("example.v1", without_commands([message.value() for message in messages]))
            columns = [found.column(name).to_pylist() for name in ("kind", *Example._fields)]
            for kind, *fields in zip(*columns, strict=True):
                if kind == "example":
                    yield Example(*fields)

    def _recorded(
        self, ranges: Mapping[Partition, tuple[int, int]], cut: Mapping[str, Any]
    ) -> dict[Partition, list[Decided]]:
        """The commit records of the ranges, by partition; a roll-forward before may have ended within the first one."""
        # At the very position of a cut, a commit that moved no offset is in it if the cut's outbox held its record.
        in_cut = {name for place in cut.get("partitions", ()) for name in place["known"]}
        recorded: dict[Partition, list[Decided]] = {}
        for messages in self._read(self._pipeline.commits_topic, cut):
            values = [message.value() for message in messages]
            for value, row in zip(values, decode("commit.v1", values).to_pylist(), strict=True):
                place = Partition(row["topic"], row["partition"])
                if place not in ranges or name_of_record(value) in in_cut:
                    continue
                begin = ranges[place][0]
                if row["next"] <= begin and row["start"] < begin:
                    continue
                told = row | {"predictions": dict(row["outcomes"]).get("prediction", 0)}
                recorded.setdefault(place, []).append(Decided(*(told[name] for name in Decided._fields)))
        return recorded

    def _read(self, topic: str, cut: Mapping[str, Any]) -> Iterator[list[Any]]:
        """A log from where it stood when the store was cut; all of it when the store was never cut."""
        return read_to_end(self._client_settings, topic, cut.get("log_ends", {}).get(topic, ()))


def name_of_record(value: bytes) -> str:
    """Names a record of the commits log, by its content."""
    return blake2b(value, digest_size=8).hexdigest()


def condemned_records(
    client_settings: Mapping[str, Any], app: str, ranges: Mapping[Partition, tuple[int, int]]
) -> dict[tuple[Partition, int], Fault]:
    """The records of the ranges [start, end) that became dead letters because they end a process: not to be touched."""
    found: dict[tuple[Partition, int], Fault] = {}
    for topic in sorted({partition.topic for partition, (start, end) in ranges.items() if start < end}):
        for messages in read_to_end(client_settings, dead_letter_topic(topic)):
            for letter in map(letter_of, messages):
                if letter.code in KILLING_CODES and letter.origin is not None and letter.is_of(app):
                    start, end = ranges.get(letter.origin.partition, (0, 0))
                    if start <= letter.origin.offset < end:
                        place = (letter.origin.partition, letter.origin.offset)
                        found[place] = Fault(Code(letter.code), letter.message)
    return found


def read_merged(
    client_settings: Mapping[str, Any],
    spec: AppSpec,
    decoder: InputDecoder,
    ranges: Mapping[Partition, tuple[int, int]],
    condemned: Mapping[tuple[Partition, int], Fault] = MappingProxyType({}),
) -> Iterator[Batch]:
    """The records of every range [start, end) of the inputs in merged order, in batches; condemned ones undecoded.

    Raises:
        StateLostError: TM-4020, records of a range were deleted.
        UnavailableError: TM-3018, what an input holds cannot be read.
    """
    topics = spec.topics
    merge = TimeOrderedMerge([topic.role for topic in topics], is_bounded=False)
    index_of = {topic.name: index for index, topic in enumerate(topics)}
    readers: dict[Partition, LogReader] = {}
    for partition, (start, _) in ranges.items():
        readers[partition] = LogReader(client_settings, partition.topic, partition.number)
        readers[partition].seek(start)
        merge.add_partition(index_of[partition.topic], partition.number, start)
    patience, batches = Patience(READ_STILL_S), 0
    while True:
        unfinished = {
            (index_of[partition.topic], partition.number): partition
            for partition, reader in readers.items()
            if reader.position < ranges[partition][1]
        }
        # The partition that keeps the merge from a batch is read on, however much of one time is buffered of it.
        needed = merge.blocking(set(unfinished))
        for place, partition in unfinished.items():
            if merge.buffered(place) < READ_RECORDS_MAX or place == needed:
                reader, end = readers[partition], ranges[partition][1]
                messages = reader.read(until_offset=end, timeout_s=0.05, max_records=READ_RECORDS_MAX)
                merge.offer(*place, [offered(message, message.offset()) for message in messages])
        cut = merge.take(spec.batch_records, limit=None, lagging=set(unfinished))
        if cut is not None:
            records = records_of(cut)
            faults: dict[int, Fault] = {}
            for at, one in enumerate(records if condemned else ()):
                place = (Partition(topics[one.topic_index].name, one.partition), one.offset)
                if place in condemned:
                    faults[at] = condemned[place]
            batches += 1
            yield decoder.decode(records, spans_of(cut, [topic.name for topic in topics]), faults)
        elif not unfinished:
            break
        if patience.is_over((batches, [reader.position for reader in readers.values()])):
            places = ", ".join(f"{partition}@{readers[partition].position}" for partition in unfinished.values())
            raise UnavailableError("TM-3018", f"{places}: nothing came in {READ_STILL_S:g} s; check the broker")
    for reader in readers.values():
        reader.close()
