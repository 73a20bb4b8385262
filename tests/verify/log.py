"""What the verifier reads: the content of topics, from Kafka or built by a test.

In: bootstrap servers and topic names, or records in memory. Out: a `Log`. Invariant: only committed records are seen
(read_committed), each exactly once, in the order of their partition.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

Headers = tuple[tuple[str, bytes | None], ...]


class Record(NamedTuple):
    """One Kafka record; `timestamp` in milliseconds since the epoch, UTC."""

    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()


@dataclass(frozen=True)
class TopicLog:
    """All committed records of a topic. `begin` and `end`: first offset and next offset of each partition."""

    records: Iterable[Record] = ()
    begin: Mapping[int, int] = field(default_factory=dict)
    end: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Log:
    """Topics by name; one that does not exist is absent. Records of a topic are read once."""

    topics: Mapping[str, TopicLog]

    def topic(self, name: str) -> TopicLog:
        return self.topics.get(name, TopicLog())


def read_log(bootstrap_servers: str, names: Sequence[str], settings: Mapping[str, str] | None = None) -> Log:
    """The topics as they are now; records are fetched when they are iterated.

    Raises:
        ConnectionError: no broker answers within 15 s.
    """
    from confluent_kafka import Consumer, KafkaException, TopicPartition

    configuration = {
        "bootstrap.servers": bootstrap_servers,
        "group.id": "verifier",  # never committed to; librdkafka wants one
        "enable.auto.commit": False,
        "enable.auto.offset.store": False,
        "isolation.level": "read_committed",
        "enable.partition.eof": True,
        "auto.offset.reset": "error",
        "queued.min.messages": 1_000_000,  # a bounded read: as much ahead as memory of the queue allows
        "queued.max.messages.kbytes": 262_144,
        "fetch.message.max.bytes": 8_388_608,
        "fetch.wait.max.ms": 50,
        "log_level": 2,  # a broker that does not answer becomes an exception; no line for each attempt
        **(settings or {}),
    }
    consumer = Consumer(configuration)
    topics: dict[str, TopicLog] = {}
    try:
        existing = consumer.list_topics(timeout=15).topics
        for name in names:
            if name not in existing or existing[name].error is not None:
                continue
            begin: dict[int, int] = {}
            end: dict[int, int] = {}
            for partition in sorted(existing[name].partitions):
                low, high = consumer.get_watermark_offsets(TopicPartition(name, partition), timeout=15, cached=False)
                begin[partition], end[partition] = low, high
            topics[name] = TopicLog(_KafkaRecords(configuration, name, begin), begin, end)
    except KafkaException as error:
        raise ConnectionError(f"no answer from Kafka at {bootstrap_servers}: {error}; is the broker up?") from error
    finally:
        consumer.close()
    return Log(topics)


@dataclass(frozen=True)
class _KafkaRecords:
    """The records of one topic up to the last stable offset, fetched anew at each iteration."""

    configuration: Mapping[str, object]
    name: str
    begin: Mapping[int, int]

    def __iter__(self) -> Iterator[Record]:
        from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

        consumer = Consumer(dict(self.configuration))
        open_partitions = set(self.begin)
        try:
            consumer.assign([TopicPartition(self.name, number, first) for number, first in self.begin.items()])
            while open_partitions:
                for message in consumer.consume(20_000, timeout=0.05):
                    error = message.error()
                    if error is None:
                        yield Record(
                            message.partition(),  # type: ignore[arg-type]
                            message.offset(),  # type: ignore[arg-type]
                            message.timestamp()[1],
                            message.key(),
                            message.value(),
                            tuple(message.headers() or ()),  # type: ignore[arg-type]
                        )
                    elif error.code() == KafkaError._PARTITION_EOF:
                        open_partitions.discard(message.partition())
                    elif not error.retriable():
                        raise KafkaException(error)
        finally:
            consumer.close()
