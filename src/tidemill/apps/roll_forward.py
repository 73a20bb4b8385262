"""Rebuild what the store forgot: apply the log again, publish nothing.

In: offset ranges whose outputs are already in Kafka. Out: feature state and rows as if the store had never lost them,
features and scores of open predictions taken from the predictions topic. Invariant: deltas are functions of the
records alone, so the digest of the feature state is that of the first time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

from tidemill.core.labels import EventEntry
from tidemill.core.merge import TimeOrderedMerge
from tidemill.core.pipeline import Pipeline, Turn
from tidemill.core.ports import Conflict, Store
from tidemill.core.records import Batch, Commit, Partition, Span
from tidemill.core.spec import AppSpec
from tidemill.core.tables import SERVED
from tidemill.io.kafka_reader import LogReader, read_topic
from tidemill.io.offered import offered
from tidemill.io.source import records_of, spans_of
from tidemill.io.wire import InputDecoder, decode

READ_RECORDS_MAX = 5_000  # per poll; bounds memory, not meaning


class PublishedPredictions:
    """The predictions of some source ranges, as served. Fulfils `core.pipeline.Served`."""

    def __init__(self, rows: pa.Table, sources: Sequence[tuple[int, int, int]]) -> None:
        self._rows = rows
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
    ) -> None:
        self._client_settings = client_settings
        self._pipeline = pipeline
        self._decoder = decoder
        self._store = store
        self._report = report

    def run(self, ranges: Mapping[Partition, tuple[int, int]], owned: frozenset[Partition]) -> None:
        """Apply the records of every range [start, end), in merged order.

        Expiry is left to the first live batches: a row that the group watermark has passed is settled there.
        """
        served = self._published(ranges)
        applied = {partition: start for partition, (start, _) in ranges.items()}
        self._report(f"{len(served.sources)} published predictions found for the ranges")
        for number, batch in enumerate(read_merged(self._client_settings, self._pipeline.spec, self._decoder, ranges)):
            turn = Turn(batch, group_watermark=-1, owned=owned, worker="roll-forward", number=number)
            while True:
                reads = self._pipeline.reads(turn)
                commit = self._pipeline.roll_forward(turn, reads, self._store.read(reads), served)
                if not isinstance(self._store.commit(commit), Conflict):
                    break
            applied.update({partition: span.next for partition, span in batch.spans.items()})
        # Holes at the end of a range belong to it: the next batch starts where the group's offset stands.
        holes = {p: Span(applied[p], end, -1, False) for p, (_, end) in ranges.items() if applied[p] < end}
        if holes:
            self._store.commit(Commit(spans=holes))

    def _published(self, ranges: Mapping[Partition, tuple[int, int]]) -> PublishedPredictions:
        index_of = {topic.name: index for index, topic in enumerate(self._pipeline.spec.topics)}
        tables: list[pa.Table] = []
        sources: list[tuple[int, int, int]] = []
        for messages in read_topic(self._client_settings, self._pipeline.predictions_topic):
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
        return PublishedPredictions(pa.concat_tables(tables) if tables else SERVED.empty_table(), sources)


def read_merged(
    client_settings: Mapping[str, Any],
    spec: AppSpec,
    decoder: InputDecoder,
    ranges: Mapping[Partition, tuple[int, int]],
) -> Iterator[Batch]:
    """The records of every range [start, end) of the inputs in merged order, in batches."""
    topics = spec.topics
    merge = TimeOrderedMerge([topic.role for topic in topics], is_bounded=False)
    index_of = {topic.name: index for index, topic in enumerate(topics)}
    readers: dict[Partition, LogReader] = {}
    for partition, (start, _) in ranges.items():
        readers[partition] = LogReader(client_settings, partition.topic, partition.number)
        readers[partition].seek(start)
        merge.add_partition(index_of[partition.topic], partition.number, start)
    while True:
        unfinished = set()
        for partition, reader in readers.items():
            place, end = (index_of[partition.topic], partition.number), ranges[partition][1]
            if reader.position >= end:
                continue
            unfinished.add(place)
            if merge.buffered(place) < READ_RECORDS_MAX:
                messages = reader.read(until_offset=end, timeout_s=0.05, max_records=READ_RECORDS_MAX)
                merge.offer(*place, [offered(message, message.offset()) for message in messages])
        cut = merge.take(spec.batch_records, limit=None, lagging=unfinished)
        if cut is not None:
            yield decoder.decode(records_of(cut), spans_of(cut, [topic.name for topic in topics]))
        elif not unfinished:
            break
    for reader in readers.values():
        reader.close()
