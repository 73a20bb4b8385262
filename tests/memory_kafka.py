"""Kafka in memory: input topics as producers wrote them, a log with transactions, and stand-ins for its clients.

In: records as a test lists them, and what the product publishes. Out: what topics and the group's offsets hold.
Invariant: no clock, thread or server; a transaction is there as a whole, with a marker behind it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from unittest import mock

from tests.builders import columns_of
from tidemill.apps import claims as claims_module
from tidemill.apps import publishing as publishing_module
from tidemill.apps import roll_forward as roll_forward_module
from tidemill.core.records import Outcome, Output, Partition, Span
from tidemill.core.spec import AppSpec
from tidemill.errors import FencedError
from tidemill.io.outputs import InputEncoder, decode
from tidemill.io.source import END_HEADER, PUNCTUATION_HEADER, SourceRecord

RANKS = {"context": 0, "label": 1, "event": 2}
PUNCTUATION_RANK = 3


class Message:
    """The part of a Kafka message that the product reads."""

    def __init__(
        self,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes | None]],
        time: int,
        offset: int,
    ) -> None:
        self._parts = (key, value, list(headers), (1, time), offset)

    def key(self) -> bytes | None:
        return self._parts[0]

    def value(self) -> bytes | None:
        return self._parts[1]

    def headers(self) -> list[tuple[str, bytes | None]]:
        return self._parts[2]

    def timestamp(self) -> tuple[int, int]:
        return self._parts[3]

    def offset(self) -> int:
        return self._parts[4]

    def topic(self) -> str:
        """Where it stands is told by who asks: only letters of the dead letter topics are asked, and then not used."""
        return ""

    def partition(self) -> int:
        return 0


class Inputs:
    """The input topics as producers wrote them; `partitions` counts those of each topic."""

    def __init__(self, spec: AppSpec, partitions: int = 1) -> None:
        self._topics = {topic.name: (index, topic) for index, topic in enumerate(spec.topics)}
        self._encoders = {topic.name: InputEncoder(topic.schema) for topic in spec.topics}
        self.lanes: dict[Partition, list[SourceRecord]] = {
            Partition(topic.name, number): [] for topic in spec.topics for number in range(partitions)
        }
        self._next = dict.fromkeys(self.lanes, 0)

    def add(self, topic: str, time: int, *, partition: int = 0, **fields: Any) -> SourceRecord:
        columns = columns_of(self._topics[topic][1], [fields])
        return self.send(topic, time, self._encoders[topic].encode(columns)[0], partition=partition)

    def send(
        self,
        topic: str,
        time: int,
        value: bytes | None,
        *,
        partition: int = 0,
        key: bytes | None = b"k",
        headers: Sequence[tuple[str, bytes | None]] = (),
    ) -> SourceRecord:
        place = Partition(topic, partition)
        message = Message(key, value, headers, time, self._next[place])
        record = SourceRecord(time, self._topics[topic][0], partition, message.offset(), message)
        self.lanes[place].append(record)
        self._next[place] += 1
        return record

    def skip(self, topic: str, count: int = 1, partition: int = 0) -> None:
        """Offsets without a record, as markers of transactions leave them."""
        self._next[Partition(topic, partition)] += count

    def punctuate(self, time: int) -> None:
        """The end of every partition: no record at or before `time` follows."""
        headers = ((PUNCTUATION_HEADER, str(time).encode()), (END_HEADER, b""))
        for place in self.lanes:
            self.send(place.topic, time, None, partition=place.number, key=None, headers=headers)

    def end(self, partition: Partition) -> int:
        return self._next[partition]

    def merged(self, starts: Mapping[Partition, int]) -> list[SourceRecord]:
        """What is left of the partitions in `starts`, in merged order."""
        left = [
            record for place, start in starts.items() for record in self.lanes[place] if record.offset >= start
        ]  # fmt: skip
        return sorted(left, key=self._order)

    def spans(self, records: Sequence[SourceRecord], starts: Mapping[Partition, int]) -> dict[Partition, Span]:
        """The spans of a batch, the idle partitions of the worker among them."""
        names = list(self._topics)
        spans = {place: Span(start, start, -1, False) for place, start in starts.items()}
        for record in records:
            place = Partition(names[record.topic_index], record.partition)
            seen = max(other.time for other in self.lanes[place] if other.offset <= record.offset)
            is_lagging = record.offset < self.lanes[place][-1].offset
            spans[place] = Span(starts[place], record.offset + 1, seen, is_lagging)
        return spans

    def _order(self, record: SourceRecord) -> tuple[int, int, int, int, int]:
        role = list(self._topics.values())[record.topic_index][1].role
        rank = PUNCTUATION_RANK if record.message.value() is None else RANKS[role]
        return (record.time, rank, record.topic_index, record.partition, record.offset)


@dataclass
class MemoryLog:
    """What Kafka would hold: records and markers by topic (one partition each), and the group's offsets."""

    topics: dict[str, list[Output | None]] = field(default_factory=dict)
    offsets: dict[Partition, tuple[int, str]] = field(default_factory=dict)
    transactions: list[tuple[list[Output], dict[Partition, tuple[int, str]]]] = field(default_factory=list)
    writers: dict[str, object] = field(default_factory=dict)  # the newest one of each transactional id
    inputs: Inputs | None = None

    def outputs(self, topic: str) -> list[Output]:
        return [output for output in self.topics.get(topic, ()) if output is not None]

    def rows(self, schema_name: str) -> list[dict[str, Any]]:
        """The records of `shop.<name>s.<version>`, in log order."""
        name, version = schema_name.split(".")
        values = [output.value or b"" for output in self.outputs(f"shop.{name}s.{version}")]
        return decode(schema_name, values).to_pylist()

    def outcomes(self) -> Counter[Outcome]:
        """Sums over all commit records."""
        sums: Counter[Outcome] = Counter()
        for row in self.rows("commit.v1"):
            sums.update({Outcome[name.upper()]: count for name, count in row["outcomes"]})
        return sums


class MemoryWriter:
    """Stands in for `TransactionalWriter`; a newer one of the same id fences it."""

    def __init__(self, settings: Mapping[str, Any], transactional_id: str, failpoint: object = None) -> None:
        self._log: MemoryLog = settings["log"]
        self._id = transactional_id

    def open(self) -> None:
        self._log.writers[self._id] = self

    def publish(
        self, outputs: Sequence[Output], offsets: Mapping[Partition, tuple[int, str]], group_metadata: object
    ) -> dict[str, int]:
        if self._log.writers.get(self._id) is not self:
            raise FencedError("TM-4010", f"a newer writer of {self._id} took over")
        last_offsets = {}
        for output in outputs:
            topic = self._log.topics.setdefault(output.topic, [])
            topic.append(output)
            last_offsets[output.topic] = len(topic) - 1
        for name in last_offsets:
            self._log.topics[name].append(None)
        self._log.offsets.update(offsets)
        self._log.transactions.append((list(outputs), dict(offsets)))
        return last_offsets

    def abandon(self) -> None:
        """There is nothing to drop."""


class MemoryReader:
    """Stands in for `LogReader` on the input partitions."""

    def __init__(self, settings: Mapping[str, Any], topic: str, partition: int) -> None:
        log: MemoryLog = settings["log"]
        assert log.inputs is not None
        self.position = 0
        self._messages = [record.message for record in log.inputs.lanes[Partition(topic, partition)]]

    def seek(self, offset: int) -> None:
        self.position = offset

    def read(self, *, until_offset: int, timeout_s: float, max_records: int) -> list[Message]:
        found = [m for m in self._messages if self.position <= m.offset() < until_offset][:max_records]
        self.position = found[-1].offset() + 1 if len(found) == max_records else until_offset
        return found

    def close(self) -> None:
        """There is no connection."""


def _read_to_end(settings: Mapping[str, Any], topic: str, starts: Sequence[int] = ()) -> Iterator[list[Message]]:
    log: MemoryLog = settings["log"]
    yield [Message(o.key, o.value, o.headers, -1, at) for at, o in enumerate(log.outputs(topic))]


def _committed_offsets(
    settings: Mapping[str, Any], group: str, partitions: Sequence[Partition]
) -> dict[Partition, tuple[int | None, str]]:
    log: MemoryLog = settings["log"]
    return {partition: log.offsets.get(partition, (None, "")) for partition in partitions}


def _log_bounds(settings: Mapping[str, Any], partitions: Sequence[Partition]) -> dict[Partition, tuple[int, int]]:
    log: MemoryLog = settings["log"]
    assert log.inputs is not None
    return {partition: (0, log.inputs.end(partition)) for partition in partitions}


@contextmanager
def kafka_in_memory() -> Iterator[None]:
    """While it is open, claims, publishing and roll-forward talk to the `MemoryLog` in their client settings."""
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(publishing_module, "TransactionalWriter", MemoryWriter))
        stack.enter_context(mock.patch.object(roll_forward_module, "LogReader", MemoryReader))
        stack.enter_context(mock.patch.object(roll_forward_module, "read_to_end", _read_to_end))
        client = SimpleNamespace(committed_offsets=_committed_offsets, log_bounds=_log_bounds)
        stack.enter_context(mock.patch.object(claims_module, "kafka", client))
        stack.enter_context(mock.patch.object(claims_module, "read_topic", _read_to_end))
        yield
