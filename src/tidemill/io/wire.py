"""Input records to columns: the one place that looks inside a message.

In: records in merged order. Out: a `Batch`, good records as columns, the others as dead letters. Invariant: every
record is in the batch exactly once, as a row, a punctuation or a dead letter; none of them stops the stream.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.core.records import Batch, Command, DeadLetter, Int64s, Kind, Partition, Span, TopicRecords
from tidemill.core.rules import broken_text, first_broken
from tidemill.core.spec import AppSpec, RuleSpec, TopicSpec
from tidemill.io.dead_letters import Code, dead_letter_output
from tidemill.io.framing import CONFLUENT_HEADER_BYTES, CONFLUENT_MAGIC, HEADER_BYTES
from tidemill.io.input_topic import InputTopic, Schemas, header_in
from tidemill.io.judge import Fault
from tidemill.io.limits import RecordLimits
from tidemill.io.outputs import (
    Encoder,
    FeatureShape,
    decode,
    decode_commands,
    decode_examples,
    decode_rows,
    without_commands,
)
from tidemill.io.source import PUNCTUATION_HEADER, Message, SourceRecord, read_headers

_KIND_OF_ROLE = {"event": Kind.EVENT, "label": Kind.LABEL, "context": Kind.CONTEXT}
_STAGES = {Code.RULE: "rules", Code.KILLS_SCORING: "score"}
_RANK_OF_ROLE = {"context": 0, "label": 1, "event": 2}
_PUNCTUATION_RANK = 3

_Group = tuple[list[int], list[bytes]]  # positions and bodies
_Bodies = dict[tuple[int, bytes], _Group]  # by topic and header


class InputDecoder:
    """Decodes the input topics of one app; not for use by two threads at once.

    Args:
        writer_schemas: by topic, older versions that records may still be written with; the reader's is always known.
        schemas: where the schemas of other writers are looked up; None = what is not declared is unknown.
    Raises:
        ConfigError: a reader's schema cannot read what one of its writers wrote.
    """

    def __init__(
        self,
        spec: AppSpec,
        writer_schemas: Mapping[str, Sequence[dict[str, Any]]] | None = None,
        schemas: Schemas | None = None,
    ) -> None:
        self._topics = [InputTopic(topic, (writer_schemas or {}).get(topic.name, ()), schemas) for topic in spec.topics]
        self._max_value_bytes = spec.limits.value_bytes
        self._limits = [RecordLimits(spec, one.spec, one.reader.arrow) for one in self._topics]
        self._kinds = np.array([_KIND_OF_ROLE[topic.role] for topic in spec.topics], dtype=np.int8)
        self._ranks = np.array([_RANK_OF_ROLE[topic.role] for topic in spec.topics], dtype=np.int8)
        self._max_skew_ms = spec.max_skew_ms
        self._has_time_fields = any(topic.time_field is not None for topic in spec.topics)

    def input_schema(self, topic: str) -> pa.Schema:
        """The columns that good records of an input topic have."""
        return next(each.reader.arrow for each in self._topics if each.spec.name == topic)

    def decode(
        self,
        records: Sequence[SourceRecord],
        spans: Mapping[Partition, Span],
        condemned: Mapping[int, Fault] = MappingProxyType({}),
    ) -> Batch:
        """The batch of `records`; positions are theirs unless a time field re-sorts them.

        Args:
            condemned: by position, records that are dead letters without being looked at.
        Raises:
            UnavailableError: TM-3060, a schema has to be looked up and its registry is away.
        """
        bodies: _Bodies = {
            (index, header): ([], []) for index, topic in enumerate(self._topics) for header in topic.resolutions
        }
        faults: dict[int, Fault] = dict(condemned)
        punctuations: dict[int, int] = {}
        for position, (_, topic_index, _, _, message) in enumerate(records):
            if position in condemned:
                continue
            value = message.value()
            if value is not None and len(value) <= self._max_value_bytes and message.key() is not None:
                size = CONFLUENT_HEADER_BYTES if value[:1] == CONFLUENT_MAGIC else HEADER_BYTES
                group = bodies.get((topic_index, value[:size])) or self._new_group(topic_index, value, bodies)
                if group is not None:
                    group[0].append(position)
                    group[1].append(value[size:])
                    continue
            read = self._without_body(message, topic_index)
            if isinstance(read, Fault):
                faults[position] = read
            else:
                punctuations[position] = read
        columns = list(zip(*(record[:4] for record in records), strict=True)) or [()] * 4
        time, topic_index_of, partition, offset = (np.array(column, dtype=np.int64) for column in columns)
        found = self._read(bodies, time, faults)
        if self._has_time_fields:
            for position, punctuated in punctuations.items():
                if self._topics[topic_index_of[position]].spec.time_field is not None:
                    time[position] = punctuated
        kind = self._kinds[topic_index_of]
        kind[list(punctuations)] = Kind.PUNCTUATION
        kind[list(faults)] = Kind.DEAD_LETTER
        letters = [(position, self._letter(records[position], faults[position])) for position in sorted(faults)]
        order = self._order(time, kind, topic_index_of, partition, offset) if self._has_time_fields else None
        return _batch(spans, (time, kind, topic_index_of, partition, offset), found, letters, order)

    def _new_group(self, topic_index: int, value: bytes, bodies: _Bodies) -> _Group | None:
        """Where bodies with a header go that was not known so far; None when they cannot be read."""
        header = header_in(value)
        if header is None or self._topics[topic_index].learn(header) is not None:
            return None
        return bodies.setdefault((topic_index, header), ([], []))

    def _without_body(self, message: Message, topic_index: int) -> Fault | int:
        """What a record is that has no readable body: a punctuation's time, or a fault."""
        value, key = message.value(), message.key()
        if value is None:
            headers = read_headers(message)
            if headers is None:
                return Fault(
                    Code.BAD_HEADERS,
                    "has a null value, and the name of a header is not UTF-8, so that none can be read",
                )
            contents = dict(headers)
            if PUNCTUATION_HEADER in contents:
                return _punctuation(key, contents[PUNCTUATION_HEADER])
            return Fault(Code.NO_VALUE, f"has a null value and no header {PUNCTUATION_HEADER}")
        if key is None:
            return Fault(Code.NO_KEY, "has a null key; key it, so that records of one entity keep their order")
        if len(value) > self._max_value_bytes:
            return Fault(
                Code.TOO_LARGE, f"has a value of {len(value)} bytes, over the limit of {self._max_value_bytes}"
            )
        header = header_in(value)
        fault = None if header is None else self._topics[topic_index].learn(header)
        return fault or Fault(
            Code.NOT_FRAMED,
            f"begins with {value[:2].hex(' ') or 'nothing'} and has {len(value)} bytes; an Avro single object "
            f"begins with C3 01 and a fingerprint, {HEADER_BYTES} bytes",
        )

    def _read(
        self,
        bodies: _Bodies,
        time: Int64s,
        faults: dict[int, Fault],
    ) -> dict[str, TopicRecords]:
        """Good records by topic, rows in order of position; adds faults, and times that stand in a field."""
        parts: dict[int, list[tuple[Int64s, pa.RecordBatch]]] = {}
        for (topic_index, header), (positions, values) in bodies.items():
            if not positions:
                continue
            topic = self._topics[topic_index]
            columns, kept, refused = topic.resolutions[header].read(values)
            faults.update((positions[place], fault) for place, fault in refused.items())
            # Usually nothing was refused, and a list of two thousand places need not be walked.
            places = np.array(positions, dtype=np.int64)
            if refused:
                places = places[kept]
            times = time[places]
            if topic.spec.time_field is not None:
                told = columns.column(topic.spec.time_field).fill_null(-1).cast(pa.int64()).to_numpy()
                # Nothing happens after it was sent: one clock that is years ahead must not end everybody's windows.
                times = np.minimum(told, times + self._max_skew_ms)
            unfit = {**self._limits[topic_index].find_excess(columns), **_unfit(topic.spec, columns, times)}
            if topic.refusing:
                unfit = {**_rule_breakers(topic.refusing, columns), **unfit}
            if unfit:
                faults.update((int(places[row]), fault) for row, fault in unfit.items())
                rest = np.setdiff1d(np.arange(len(places)), list(unfit))
                places, times, columns = places[rest], times[rest], columns.take(pa.array(rest))
            time[places] = times  # a dead letter keeps the time of Kafka
            if len(places):
                parts.setdefault(topic_index, []).append((places, columns))
        return {self._topics[index].spec.name: _joined(self._topics[index].spec.name, parts[index]) for index in parts}

    def _letter(self, record: SourceRecord, fault: Fault) -> DeadLetter:
        message = record.message
        partition = Partition(self._topics[record.topic_index].spec.name, record.partition)
        return DeadLetter(
            partition=partition,
            offset=record.offset,
            key=message.key(),
            value=message.value(),
            headers=read_headers(message),
            timestamp=message.timestamp()[1],
            code=str(fault.code),
            message=f"{partition}@{record.offset}: {fault.what}",
            stage=_STAGES.get(fault.code, "decode"),
        )

    def _order(
        self, time: Int64s, kind: npt.NDArray[np.int8], topic_index: Int64s, partition: Int64s, offset: Int64s
    ) -> Int64s:
        """The merged order of positions, once times come from fields."""
        rank = self._ranks[topic_index]
        rank[kind == Kind.PUNCTUATION] = _PUNCTUATION_RANK
        return np.lexsort((offset, partition, topic_index, rank, time))


def _punctuation(key: bytes | None, content: bytes | str | None) -> Fault | int:
    text = content.decode("latin-1") if isinstance(content, bytes) else content or ""
    if key is not None:
        return Fault(Code.BAD_PUNCTUATION, "is a punctuation with a key; its key is null")
    if not (text.isascii() and text.isdigit() and len(text) <= 15):  # 15 digits: the year 33658
        return Fault(
            Code.BAD_PUNCTUATION, f"has {PUNCTUATION_HEADER} {text[:40]!r}; it is event time in ms, digits only"
        )
    return int(text)


def _unfit(topic: TopicSpec, columns: pa.RecordBatch, time: Int64s) -> dict[int, Fault]:
    """Rows that are sound but have no id or no time."""
    unfit: dict[int, Fault] = {}
    if topic.id_field is not None:
        ids = columns.column(topic.id_field)
        is_absent = ids.is_null()
        if pa.types.is_string(ids.type):
            is_absent = pc.or_(is_absent, pc.fill_null(pc.equal(ids, ""), True))
        if pc.any(is_absent).as_py():
            what = f"has no id: field {topic.id_field} is null or empty"
            rows = np.flatnonzero(is_absent.to_numpy(zero_copy_only=False)).tolist()
            unfit.update(dict.fromkeys(rows, Fault(Code.NO_ID, what)))
    if len(time) and time.min() < 0:
        source = "the Kafka timestamp" if topic.time_field is None else f"field {topic.time_field}"
        what = f"has no event time: {source} is absent or before 1970"
        for row in np.flatnonzero(time < 0).tolist():
            unfit.setdefault(row, Fault(Code.NO_TIME, what))
    return unfit


def _rule_breakers(rules: Sequence[RuleSpec], columns: pa.RecordBatch) -> dict[int, Fault]:
    """Rows that break a rule whose records are dead letters."""
    broken = first_broken(rules, columns)
    if broken is None:
        return {}
    return {
        row: Fault(Code.RULE, broken_text(rules[broken[row]], columns.slice(row, 1)))
        for row in np.flatnonzero(broken >= 0).tolist()
    }


def _joined(topic: str, parts: Sequence[tuple[Int64s, pa.RecordBatch]]) -> TopicRecords:
    """The rows of one topic from all its writers, in order of position."""
    if len(parts) == 1:
        return TopicRecords(topic, *parts[0])
    places = np.concatenate([each for each, _ in parts])
    order = np.argsort(places)
    table = pa.Table.from_batches([columns for _, columns in parts]).combine_chunks().take(pa.array(order))
    return TopicRecords(topic, places[order], table.combine_chunks().to_batches()[0])


def _batch(
    spans: Mapping[Partition, Span],
    columns: tuple[Int64s, npt.NDArray[np.int8], Int64s, Int64s, Int64s],
    records: Mapping[str, TopicRecords],
    letters: Sequence[tuple[int, DeadLetter]],
    order: Int64s | None,
) -> Batch:
    """The batch, its records moved into `order`."""
    if order is not None:
        place_of = np.empty(len(order), dtype=np.int64)
        place_of[order] = np.arange(len(order))
        columns = tuple(column[order] for column in columns)  # type: ignore[assignment]
        records = {topic: _moved(found, place_of) for topic, found in records.items()}
        letters = sorted(((int(place_of[at]), letter) for at, letter in letters), key=lambda each: each[0])
    time, kind, topic_index, partition, offset = columns
    return Batch(
        spans=spans,
        time=time,
        kind=kind,
        topic_index=topic_index.astype(np.int16),
        partition=partition.astype(np.int32),
        offset=offset,
        records=records,
        dead_letters=tuple(letters),
    )


def _moved(found: TopicRecords, place_of: Int64s) -> TopicRecords:
    places = place_of[found.row_index]
    order = np.argsort(places)
    return TopicRecords(found.topic, places[order], found.columns.take(pa.array(order)))


__all__ = [
    "Command",
    "Encoder",
    "FeatureShape",
    "InputDecoder",
    "SourceRecord",
    "dead_letter_output",
    "decode",
    "decode_commands",
    "decode_examples",
    "decode_rows",
    "without_commands",
]
