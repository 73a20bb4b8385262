"""Batches made of batches: with the idle partitions of their worker, and cut in two where the rest has to wait.

In: a batch. Out: batches with the same records in the same order. Invariant: every partition has a span in each, and
the spans of two parts tile that of the whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from tidemill.core.records import Batch, Partition, Span, TopicRecords


def with_idle_partitions(batch: Batch, positions: Mapping[Partition, int]) -> Batch:
    """The batch with an empty span for every partition at a position that it has no records of."""
    idle = {partition: Span(at, at, -1, False) for partition, at in positions.items()}
    return replace(batch, spans={**idle, **batch.spans})


def split_batch(batch: Batch, position: int, topic_names: tuple[str, ...]) -> tuple[Batch, Batch]:
    """The records before `position`, and the rest; 0 < position < len(batch).

    A watermark of the head is the largest time of its own records (-1 without any): a watermark never falls, so the
    store keeps the larger of what it had and this. A partition that has no records in a part stays in it with an empty
    span: rows of it may be due.
    """
    head_spans: dict[Partition, Span] = {}
    tail_spans: dict[Partition, Span] = {}
    for partition, span in batch.spans.items():
        topic_index = topic_names.index(partition.topic)
        mine = (batch.topic_index == topic_index) & (batch.partition == partition.number)
        rest = mine.copy()
        mine[position:] = False
        rest[:position] = False
        middle = int(batch.offset[mine].max()) + 1 if mine.any() else span.start
        watermark = int(batch.time[mine].max()) if mine.any() else -1
        if not rest.any():  # nothing of it is left: the head takes the holes at its end too
            head_spans[partition], tail_spans[partition] = span, Span(span.next, span.next, -1, False)
        else:
            head_spans[partition] = Span(span.start, middle, watermark, middle > span.start)
            tail_spans[partition] = span._replace(start=middle)
    return (
        _part(batch, slice(0, position), 0, head_spans),
        _part(batch, slice(position, len(batch)), position, tail_spans),
    )


def _part(batch: Batch, part: slice, shift: int, spans: dict[Partition, Span]) -> Batch:
    records: dict[str, TopicRecords] = {}
    for topic, found in batch.records.items():
        first, last = (int(np.searchsorted(found.row_index, at)) for at in (part.start, part.stop))
        if last > first:
            columns = found.columns.slice(first, last - first)
            records[topic] = TopicRecords(topic, found.row_index[first:last] - shift, columns)
    letters = tuple((at - shift, letter) for at, letter in batch.dead_letters if part.start <= at < part.stop)
    return Batch(
        spans=spans,
        time=batch.time[part],
        kind=batch.kind[part],
        topic_index=batch.topic_index[part],
        partition=batch.partition[part],
        offset=batch.offset[part],
        records=records,
        dead_letters=letters,
    )
