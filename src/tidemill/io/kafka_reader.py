"""Read one partition of a log from any offset, committed records only, in no group.

In: a topic, a partition, an offset. Out: messages in order. Invariant: `position` is the next offset to read, holes
(transaction markers, aborted records) included, so it reaches the end of a log that ends in a marker.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from confluent_kafka import Consumer, IsolationLevel, KafkaError, Message, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec

from tidemill.core.records import Partition
from tidemill.errors import StateLostError, UnavailableError
from tidemill.io.kafka import (
    REQUEST_TIMEOUT_S,
    STABLE_DEADLINE_S,
    partition_counts,
    unavailable_unless_answered,
    watermark_offsets,
)

FETCH_WAIT_MS = 10  # who reads to an end learns within it that a marker was the last of the log
FOLLOW_WAIT_MS = 500  # who follows a log is sent what comes at once; asking less often costs everybody less
TOPIC_RECORDS_MAX = 10_000  # per step of `read_topic` and `read_to_end`; bounds memory


class LogReader:
    """One thread owns it."""

    def __init__(
        self, settings: Mapping[str, Any], topic: str, partition: int, *, fetch_wait_ms: int = FETCH_WAIT_MS
    ) -> None:
        """`fetch_wait_ms`: how long the broker holds a request while there is nothing; what comes is sent at once."""
        self._settings = settings
        self._at = TopicPartition(topic, partition)
        self.position = 0
        self._held: list[Message] = []  # read, but at or behind the offset that the caller asked to stop at
        self._consumer = Consumer(
            {
                **settings,
                "group.id": "tidemill.none",  # required by the client, never used: nothing is subscribed or committed
                "enable.auto.commit": False,
                "isolation.level": "read_committed",
                "auto.offset.reset": "error",
                "enable.partition.eof": True,  # tells the position behind markers at the end
                "fetch.wait.max.ms": fetch_wait_ms,
                "fetch.error.backoff.ms": 10,
            }
        )

    def seek(self, offset: int) -> None:
        self.position = offset
        self._held = []
        self._consumer.assign([TopicPartition(self._at.topic, self._at.partition, offset)])

    def first_offset(self) -> int:
        with unavailable_unless_answered(f"return the start of {self._at.topic}", self._settings):
            return watermark_offsets(self._consumer, self._at)[0]

    def end_offset(self) -> int:
        """The last stable offset: every record before it is committed or aborted."""
        with unavailable_unless_answered(f"return the end of {self._at.topic}", self._settings):
            return watermark_offsets(self._consumer, self._at)[1]

    def read(self, *, until_offset: int | None, timeout_s: float, max_records: int) -> list[Message]:
        """What is there, or else comes first within `timeout_s`: at most `max_records`, all before `until_offset`.

        Raises:
            StateLostError: the log no longer holds the position.
            UnavailableError: another error of the client that it does not retry by itself.
        """
        found: list[Message] = []
        deadline = time.monotonic() + timeout_s
        while len(found) < max_records and (until_offset is None or self.position < until_offset):
            messages = self._fetch(max_records - len(found), 0.0 if found else max(0.0, deadline - time.monotonic()))
            if not messages:
                break
            for index, message in enumerate(messages):
                if message.error() is not None:
                    self._take_error(message)
                elif until_offset is None or message.offset() < until_offset:
                    found.append(message)
                    self.position = message.offset() + 1
                else:
                    self._held = messages[index:]
                    self.position = until_offset
                    break
        return found

    def _fetch(self, max_records: int, timeout_s: float) -> list[Message]:
        if self._held:
            held, self._held = self._held[:max_records], self._held[max_records:]
            return held
        first = self._consumer.poll(timeout_s)  # `consume` alone waits for the whole count or the whole time
        return [] if first is None else [first, *self._consumer.consume(max_records - 1, 0.0)]

    def close(self) -> None:
        self._consumer.close()

    @property
    def place(self) -> str:
        return f"{self._at.topic}[{self._at.partition}]@{self.position}"

    def _take_error(self, message: Message) -> None:
        error, place = message.error(), self.place
        if error.code() == KafkaError._PARTITION_EOF:
            self.position = max(self.position, message.offset())
        elif error.code() in (KafkaError.OFFSET_OUT_OF_RANGE, KafkaError._AUTO_OFFSET_RESET):
            raise StateLostError(
                "TM-4020",
                f"{place} is no longer in the log: records were deleted; restore the topic, or see `tidemill reset`",
            )
        elif not error.retriable() and error.code() != KafkaError._ALL_BROKERS_DOWN:
            raise UnavailableError("TM-3012", f"{place} cannot be read: {error.str()}")


def read_topic(settings: Mapping[str, Any], topic: str) -> Iterator[list[Message]]:
    """The committed records that can be read of a topic now, partition after partition: up to the first transaction
    that is still open."""
    for number in range(partition_counts(settings, [topic])[topic]):
        reader = LogReader(settings, topic, number)
        yield from _read_until(reader, reader.end_offset())


def read_to_end(settings: Mapping[str, Any], topic: str, starts: Sequence[int] = ()) -> Iterator[list[Message]]:
    """All committed records that a topic holds now, partition after partition; waits for transactions that are open.

    What was committed last may stand behind one that a dead writer left open, which ends by its time-out.

    Args:
        starts: by partition, where to begin; those without an entry from their beginning.
    Raises:
        UnavailableError: Kafka does not answer; TM-3016 a transaction does not end.
    """
    partitions = [Partition(topic, number) for number in range(partition_counts(settings, [topic])[topic])]
    ends = LogEnds(settings, partitions).ask()
    for partition in partitions:
        reader = LogReader(settings, topic, partition.number)
        yield from _read_until(reader, ends[partition], *starts[partition.number : partition.number + 1])


def _read_until(reader: LogReader, end: int, start: int = 0) -> Iterator[list[Message]]:
    reader.seek(max(reader.first_offset(), start))
    position, deadline = reader.position, time.monotonic() + STABLE_DEADLINE_S
    while reader.position < end:
        messages = reader.read(until_offset=end, timeout_s=1.0, max_records=TOPIC_RECORDS_MAX)
        if messages:
            yield messages
        if reader.position > position:
            position, deadline = reader.position, time.monotonic() + STABLE_DEADLINE_S
        elif time.monotonic() > deadline:
            raise UnavailableError(
                "TM-3016",
                f"{reader.place} came no further in {STABLE_DEADLINE_S:g} s and ends at {end}: Kafka is away, or a "
                "transaction is open and does not end (`kafka-transactions.sh find-hanging` names it)",
            )
    reader.close()


class StableEnds:
    """Which logs hold records of a transaction that is still open: no reader of committed records gets past them."""

    def __init__(self, settings: Mapping[str, Any], timeout_s: float) -> None:
        self._settings = settings
        self._timeout_s = timeout_s
        self._admin = AdminClient(dict(settings))

    def hidden(self, partitions: Sequence[Partition]) -> dict[Partition, tuple[int, int]]:
        """(last stable offset, end) of the partitions where they differ.

        Raises:
            UnavailableError: Kafka does not answer in time.
        """
        latest = {TopicPartition(*partition): OffsetSpec.latest() for partition in partitions}
        found: list[dict[Partition, int]] = []
        with unavailable_unless_answered("return the ends of its logs", self._settings):
            # The stable one first: what is written in between is then taken for hidden only until the next question.
            for level in (IsolationLevel.READ_COMMITTED, IsolationLevel.READ_UNCOMMITTED):
                answers = self._admin.list_offsets(latest, isolation_level=level, request_timeout=self._timeout_s)
                found.append({Partition(a.topic, a.partition): int(one.result().offset) for a, one in answers.items()})
        stable, ends = found
        return {p: (stable[p], ends[p]) for p in partitions if stable[p] < ends[p]}


class LogEnds:
    """Where logs end, records of open transactions included: whatever was written before the question is before it.

    A transaction's markers are written one partition after the other, so a reader of one topic may see it while the
    last stable offset of another still lies before it.
    """

    def __init__(self, settings: Mapping[str, Any], partitions: Sequence[Partition]) -> None:
        self._settings = settings
        self._admin = AdminClient(dict(settings))
        self._latest = {TopicPartition(*partition): OffsetSpec.latest() for partition in partitions}

    def ask(self) -> dict[Partition, int]:
        """The end of each, in one request.

        Raises:
            UnavailableError: Kafka does not answer.
        """
        with unavailable_unless_answered("return the ends of its logs", self._settings):
            answers = self._admin.list_offsets(
                self._latest, isolation_level=IsolationLevel.READ_UNCOMMITTED, request_timeout=REQUEST_TIMEOUT_S
            )
            return {Partition(at.topic, at.partition): int(one.result().offset) for at, one in answers.items()}
