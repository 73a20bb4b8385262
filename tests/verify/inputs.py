"""The input topics as columns, each record judged good, bad or punctuation, in the one order of the stream.

In: the declared topics and the log. Out: `Inputs`. Invariant: every record of every input topic has one row; rows are
numbered topic by topic in YAML order, and `rank` is a row's place in the merged order.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.verify.avro import BadRecordError, Decoder
from tests.verify.declared import ROLE_RANK, Declared, Topic
from tests.verify.log import Log, Record, TopicLog

GOOD, BAD, PUNCTUATION = 0, 1, 2
PUNCTUATION_HEADER = "tidemill.punctuation"

Int64s = npt.NDArray[np.int64]


@dataclass
class Columns:
    """The records of one topic, as they were read; `fields` are lists with None for rows that are not good."""

    partition: list[int] = field(default_factory=list)
    offset: list[int] = field(default_factory=list)
    time: list[int] = field(default_factory=list)
    verdict: list[int] = field(default_factory=list)
    fields: dict[str, list[Any]] = field(default_factory=dict)
    labels: list[int] = field(default_factory=list)  # label topics: what the declared rule makes of the record, or -1
    bad: dict[int, tuple[Record, str]] = field(default_factory=dict)  # by row within the topic


@dataclass
class Inputs:
    """All input records; arrays have one entry per row. `merged_time`: the largest time so far in the partition."""

    columns: list[Columns]
    first_row: list[int]  # of each topic
    topic: npt.NDArray[np.int16]
    partition: Int64s
    offset: Int64s
    time: Int64s
    verdict: npt.NDArray[np.int8]
    merged_time: Int64s
    order: Int64s  # rows in merged order
    rank: Int64s
    ranges: dict[tuple[int, int], tuple[int, int]]  # (topic, partition) -> (begin, end) offsets

    def value(self, row: int, name: str) -> Any:
        topic = int(self.topic[row])
        return self.columns[topic].fields[name][row - self.first_row[topic]]

    def label(self, row: int) -> int:
        topic = int(self.topic[row])
        return self.columns[topic].labels[row - self.first_row[topic]]

    def rows_of(self, topic: int) -> range:
        return range(self.first_row[topic], self.first_row[topic] + len(self.columns[topic].offset))

    def name(self, row: int, declared: Declared) -> str:
        return f"{declared.topics[int(self.topic[row])].name}[{self.partition[row]}]@{self.offset[row]}"


def read_inputs(declared: Declared, log: Log) -> Inputs:
    wanted = _wanted_fields(declared)
    columns = [_read_topic(topic, log.topic(topic.name), wanted, declared) for topic in declared.topics]
    sizes = [len(one.offset) for one in columns]
    first_row = [int(n) for n in np.concatenate([[0], np.cumsum(sizes)[:-1]])]
    topic = np.repeat(np.arange(len(columns), dtype=np.int16), sizes)
    partition, offset, time = (
        _joined([getattr(one, name) for one in columns]) for name in ("partition", "offset", "time")
    )
    verdict = _joined([one.verdict for one in columns]).astype(np.int8)
    merged_time = _running_max(topic, partition, offset, time)
    role = np.array([ROLE_RANK[one.role] for one in declared.topics], dtype=np.int8)[topic]
    order = np.lexsort((offset, partition, topic, role, merged_time))
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    ranges = {}
    for index, one in enumerate(declared.topics):
        content = log.topic(one.name)
        for number in content.end:
            ranges[index, number] = (content.begin.get(number, 0), content.end[number])
    return Inputs(
        columns, first_row, topic, partition, offset, time, verdict, merged_time, order, rank, ranges
    )  # fmt: skip


def _wanted_fields(declared: Declared) -> set[str]:
    """Only these are kept in memory: a year of records has many that nothing reads."""
    names = {one for topic in declared.topics for one in (topic.id_field, topic.time_field) if one}
    for feature in declared.features:
        names.update(feature.entity)
        read = (feature.field, feature.value, feature.due, feature.closed_due)
        names.update(one for one in read if one and one != "label")
    return names


def _read_topic(topic: Topic, content: TopicLog, wanted: set[str], declared: Declared) -> Columns:
    decode = Decoder(topic.schemas).decode
    out = Columns()
    names = [one["name"] for one in topic.schemas[0]["fields"] if one["name"] in wanted]
    lists = [(name, out.fields.setdefault(name, [])) for name in names]
    is_label, id_field = topic.role == "label", topic.id_field
    for record in content.records:
        fields: dict[str, Any] | None = None
        verdict, time = GOOD, record.timestamp
        if _is_punctuation(record):
            verdict, time = PUNCTUATION, next(int(told) for name, told in record.headers if name == PUNCTUATION_HEADER)
        else:
            try:
                fields = decode(_body(record))
                if id_field is not None and not fields[id_field]:
                    raise BadRecordError("no id")
                if topic.time_field is not None:
                    time = min(int(fields[topic.time_field]), record.timestamp + declared.max_skew_ms)
            except BadRecordError as error:
                verdict, fields = BAD, None
                out.bad[len(out.offset)] = (record, str(error))
        out.partition.append(record.partition)
        out.offset.append(record.offset)
        out.time.append(time)
        out.verdict.append(verdict)
        if fields is None:
            for _, column in lists:
                column.append(None)
            if is_label:
                out.labels.append(-1)
        else:
            for name, column in lists:
                column.append(fields[name])
            if is_label:
                out.labels.append(declared.is_positive(fields))
    return out


def _is_punctuation(record: Record) -> bool:
    if record.key is not None or record.value is not None:
        return False
    return any(name == PUNCTUATION_HEADER and (time or b"").isdigit() for name, time in record.headers)


def _body(record: Record) -> bytes:
    """The value of a record that may be decoded at all."""
    if record.value is None:
        raise BadRecordError("null value without punctuation")
    if record.key is None:
        raise BadRecordError("null key")
    if record.headers and any(name == PUNCTUATION_HEADER for name, _ in record.headers):
        raise BadRecordError("punctuation with key and value")
    return record.value


def _joined(lists: list[list[int]]) -> Int64s:
    return np.concatenate([np.array(one, dtype=np.int64) for one in lists])


def _running_max(topic: npt.NDArray[np.int16], partition: Int64s, offset: Int64s, time: Int64s) -> Int64s:
    """A record that comes behind a newer one of its partition is merged right after it, not before it."""
    merged = np.empty_like(time)
    order = np.lexsort((offset, partition, topic))
    if len(order) == 0:
        return merged
    part = topic[order].astype(np.int64) << 32 | partition[order]
    starts = np.flatnonzero(np.concatenate([[True], part[1:] != part[:-1]]))
    for start, stop in zip(starts, [*starts[1:], len(order)], strict=True):
        rows = order[start:stop]
        merged[rows] = np.maximum.accumulate(time[rows])
    return merged
