"""A plain producer of input topics: event time as timestamp, punctuation, nothing lost in silence.

In: records with their times, in the order in which they are to stand. Out: the records in Kafka, idempotent. Invariant:
a record that was not taken is an error at the next look, and `flush` waits for all.
"""

from __future__ import annotations

import time as clock
from collections import Counter
from collections.abc import Mapping

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from tidemill.errors import RecordError, UnavailableError
from tidemill.io.kafka import MESSAGE_BYTES_MAX, TIMESTAMP_AFTER_MAX
from tidemill.io.source import END_HEADER, PUNCTUATION_HEADER

DELIVERY_TIMEOUT_MS = 60_000  # a broker that restarts is back within seconds

# Of two wrong stamps in a request librdkafka tells no more than this, and of its other records only the second.
_INVALID = {KafkaError.INVALID_RECORD, KafkaError._INVALID_DIFFERENT_RECORD}
_PART = "the topics now hold a part of the stream: delete them and produce again"

Headers = list[tuple[str, str | bytes | None]]

PRODUCER_SETTINGS: dict[str, str | int | bool] = {
    "enable.idempotence": True,  # a retry neither doubles a record nor changes the order within a partition
    "partitioner": "murmur2_random",  # as Java clients do: keys meet on the same partition number
    "compression.type": "lz4",
    "linger.ms": 50,  # throughput counts here, latency does not
    "batch.num.messages": 10_000,
    "message.max.bytes": MESSAGE_BYTES_MAX,
    "delivery.timeout.ms": DELIVERY_TIMEOUT_MS,
    "log_level": 0,  # silent: errors reach the caller as exceptions, and a lost broker logs twenty lines a second
    "delivery.report.only.error": True,  # a million good reports would cost more than the records
}


class EventProducer:
    """The Kafka producer with its failures; an error ends the stream at the next look."""

    def __init__(self, bootstrap_servers: str, kafka: Mapping[str, str]) -> None:
        self.punctuations: Counter[str] = Counter()
        self._failures: list[str] = []
        self._latest: dict[str, int] = {}  # by topic, of what was sent
        self._refused_topic: str | None = None  # for a stamp; the broker refuses the whole request that it came in
        settings = {**PRODUCER_SETTINGS, **kafka, "bootstrap.servers": bootstrap_servers}
        self.producer = Producer({**settings, "on_delivery": self._on_delivery, "error_cb": self._on_error})

    def partition_count(self, topic: str) -> int:
        try:
            found = self.producer.list_topics(topic, timeout=30).topics[topic]
        except KafkaException as error:
            raise UnavailableError("TM-3010", f"Kafka does not answer: {error}; is it running?") from error
        if found.error is not None or not found.partitions:
            raise UnavailableError("TM-3011", f"topic {topic} is missing in Kafka: {found.error}; create it first")
        return len(found.partitions)

    def punctuate(self, partitions: Mapping[str, int], time: int, *, stamp: int, is_end: bool) -> None:
        """Say in every partition of these topics that no record with a time up to `time` follows; at the end, none.

        stamp: Kafka's timestamp; only `time` is merged by, and it may lie further ahead than the broker takes stamps.
        """
        headers: Headers = [(PUNCTUATION_HEADER, str(time).encode())]
        if is_end:
            headers.append((END_HEADER, b""))
        for topic, count in partitions.items():
            for partition in range(count):
                self.send(topic, partition, None, None, stamp, headers)
            self.punctuations[topic] += count

    def wait_for_room(self) -> None:
        """The queue is full: let the broker catch up."""
        self.producer.poll(0.05)
        self._check()

    def serve_callbacks(self) -> None:
        self.producer.poll(0)
        self._check()

    def flush(self) -> None:
        """Wait until every record is acknowledged or has failed; the delivery time-out bounds it."""
        self.producer.flush()
        self._check()

    def send(
        self,
        topic: str,
        partition: int,
        key: bytes | None,
        value: bytes | None,
        time: int,
        headers: Headers,
    ) -> None:
        if time > self._latest.get(topic, -1):
            self._latest[topic] = time
        while True:
            try:
                self.producer.produce(topic, value, key, partition=partition, timestamp=time, headers=headers)
                return
            except BufferError:
                self.wait_for_room()

    def _on_delivery(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self._failures.append(str(error))
            self._note_refused(error, message)

    def _note_refused(self, error: KafkaError, message: Message) -> None:
        topic = message.topic() or ""
        is_ahead = self._latest.get(topic, -1) > _now_ms()
        if error.code() == KafkaError.INVALID_TIMESTAMP or (error.code() in _INVALID and is_ahead):
            self._refused_topic = topic

    def _on_error(self, error: KafkaError) -> None:
        if error.fatal():
            self._failures.append(str(error))

    def _check(self) -> None:
        if self._refused_topic is not None:
            raise refused_stamps(self._refused_topic, self._latest.get(self._refused_topic, -1), _now_ms(), _PART)
        if self._failures:
            raise UnavailableError(
                "TM-3010",
                f"Kafka did not take {len(self._failures)} records: {self._failures[0]}; {_PART}",
            )


def refused_stamps(topic: str, latest: int, now_ms: int, left: str) -> RecordError:
    """The error of records whose times the broker does not take. latest: of what was sent, ms; left: in the topics."""
    if latest > now_ms:
        cause = (
            f"the latest is {latest} ms since 1970, {(latest - now_ms) / 3_600_000:,.1f} h from now, and the topic's "
            f"{TIMESTAMP_AFTER_MAX} bounds how far ahead one may be (1 h where Tidemill made it); correct the last "
            "rows of its files, or raise the setting for a stream that really lies ahead"
        )
    else:
        cause = "they are older than the topic's message.timestamp.before.max.ms; raise it"
    return RecordError("TM-2053", f"Kafka refuses records of topic {topic} for their times: {cause}; {left}")


def _now_ms() -> int:
    return round(clock.time() * 1_000)
