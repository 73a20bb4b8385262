"""The input records of an audit, as columns by partition.

In: input topics between two offsets. Out: what each record is, with id, time and label. Invariant: every committed
record of the range is there once; only the wire looks inside, and never at what became a dead letter: it may be
one that kills a library.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tidemill.apps.audit_logs import Logs
from tidemill.apps.dead_letters import KafkaMessage
from tidemill.core.label_rule import label_values
from tidemill.core.records import Int64s, Kind, Partition, Span
from tidemill.core.spec import AppSpec
from tidemill.io.source import SourceRecord
from tidemill.io.wire import InputDecoder

Kinds = npt.NDArray[np.int8]
Strings = npt.NDArray[np.object_]


@dataclass(frozen=True, slots=True)
class InputColumns:
    """The records of one partition in the order of their offsets, one entry each.

    id: "" where the record has none. label: -1 where it is no label.
    """

    offset: Int64s
    kind: Kinds
    time: Int64s
    id: Strings
    label: Kinds

    def __len__(self) -> int:
        return len(self.offset)


class InputReader:
    """Reads one partition after the other."""

    def __init__(self, spec: AppSpec, logs: Logs, decoder: InputDecoder) -> None:
        self._spec = spec
        self._logs = logs
        self._decoder = decoder

    def read(self, partition: Partition, start: int, end: int, letters: Iterable[int]) -> InputColumns:
        """The records at [start, end); `letters`: the offsets of those that became dead letters."""
        parts = list(self._parts(partition, start, end, frozenset(letters)))
        if not parts:
            none, nothing = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int8)
            return InputColumns(none, nothing, none, none.astype(object), nothing)
        return InputColumns(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))

    def _parts(
        self, partition: Partition, start: int, end: int, letters: frozenset[int]
    ) -> Iterator[tuple[npt.NDArray[Any], ...]]:
        for messages in self._logs.read(partition, start, end):
            unread = [message for message in messages if message.offset() in letters]
            read = [message for message in messages if message.offset() not in letters] if unread else messages
            found = self._columns(partition, read) if read else None
            if unread:
                lost = _dead(unread)
                both = lost if found is None else tuple(map(np.concatenate, zip(found, lost, strict=True)))
                order = np.argsort(both[0], kind="stable")
                found = tuple(column[order] for column in both)
            if found is not None:
                yield found

    def _columns(self, partition: Partition, messages: Sequence[KafkaMessage]) -> tuple[npt.NDArray[Any], ...]:
        index = next(at for at, topic in enumerate(self._spec.topics) if topic.name == partition.topic)
        topic = self._spec.topics[index]
        records = [SourceRecord(m.timestamp()[1], index, partition.number, m.offset(), m) for m in messages]
        span = Span(records[0].offset, records[-1].offset + 1, -1, False)
        batch = self._decoder.decode(records, {partition: span})
        ids, labels = np.full(len(batch), "", dtype=object), np.full(len(batch), -1, dtype=np.int8)
        found = batch.records.get(topic.name)
        if found is not None and topic.id_field is not None:
            ids[found.row_index] = found.columns.column(topic.id_field).cast(pa.string()).to_pylist()
            if topic.role == "label":
                labels[found.row_index] = label_values(self._spec.label, found.columns)
        order = np.argsort(batch.offset, kind="stable")  # a time field sorts a batch by time
        return tuple(column[order] for column in (batch.offset, batch.kind, batch.time, ids, labels))


def _dead(messages: Sequence[KafkaMessage]) -> tuple[npt.NDArray[Any], ...]:
    """Columns of records that nobody looks into."""
    count = len(messages)
    offset = np.array([message.offset() for message in messages], dtype=np.int64)
    time = np.array([message.timestamp()[1] for message in messages], dtype=np.int64)
    kind = np.full(count, Kind.DEAD_LETTER, dtype=np.int8)
    return offset, kind, time, np.full(count, "", dtype=object), np.full(count, -1, dtype=np.int8)
