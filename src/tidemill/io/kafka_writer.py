"""A transactional producer: outputs and input offsets, together or not at all.

In: outputs in order, the next offset of each input partition. Out: one committed transaction. Invariant: after any
error the writer must be thrown away (`abandon`) and another opened with the same id: that ends whatever is unfinished,
and the caller looks at the store and the group to learn what happened.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from tidemill.core.records import Output, Partition
from tidemill.errors import FencedError, InvariantError, UnavailableError
from tidemill.io.kafka import MESSAGE_BYTES_MAX

TRANSACTION_TIMEOUT_MS = 10_000  # one hung transaction holds up every reader for at most this and a second
OPEN_TIMEOUT_S = 30.0  # a predecessor's transaction must time out first
COMMIT_TIMEOUT_S = 30.0

_FENCED = {
    KafkaError._FENCED,
    KafkaError.INVALID_PRODUCER_EPOCH,
    KafkaError.PRODUCER_FENCED,
    KafkaError.ILLEGAL_GENERATION,
    KafkaError.UNKNOWN_MEMBER_ID,
    KafkaError.FENCED_INSTANCE_ID,
    KafkaError.REBALANCE_IN_PROGRESS,
}


def group_metadata(settings: Mapping[str, Any], group: str) -> object:
    """What `publish` takes for a group without members: of one process that reads its partitions by itself.

    Such a group fences nobody; the transactional id does.
    """
    consumer = Consumer({**settings, "group.id": group})
    try:
        return consumer.consumer_group_metadata()
    finally:
        consumer.close()


class TransactionalWriter:
    """One thread owns it. Within a topic outputs keep their order; keys meet the same partitions as in Java clients."""

    def __init__(self, settings: Mapping[str, Any], transactional_id: str) -> None:
        self._id = transactional_id
        self._producer = Producer(
            {
                **settings,
                "transactional.id": transactional_id,
                "transaction.timeout.ms": TRANSACTION_TIMEOUT_MS,
                "partitioner": "murmur2_random",  # as Java clients place keys
                "linger.ms": 1,
                "compression.type": "lz4",
                "message.max.bytes": MESSAGE_BYTES_MAX,
                "queue.buffering.max.messages": 1_000_000,
                "queue.buffering.max.kbytes": 512 * 1024,
            }
        )

    def open(self) -> None:
        """Fence older producers of this id and end their transaction."""
        self._call("start", lambda: self._producer.init_transactions(OPEN_TIMEOUT_S))

    def publish(
        self, outputs: Sequence[Output], offsets: Mapping[Partition, tuple[int, str]], group_metadata: object
    ) -> dict[str, int]:
        """One transaction; per topic the offset of its last output.

        Args:
            offsets: next offset and metadata of each input partition.
            group_metadata: of the consumer, as it was when the batch was polled.

        Raises:
            FencedError: a newer producer of this id, or a newer generation of the group, has taken over.
            UnavailableError: the result is unknown.
        """
        self._call("begin", self._producer.begin_transaction)
        last_offsets: dict[str, int] = {}
        errors: list[KafkaError] = []

        def delivered(error: KafkaError | None, message: Message) -> None:
            if error is not None:
                errors.append(error)
            else:
                last_offsets[message.topic()] = max(message.offset(), last_offsets.get(message.topic(), -1))

        by_topic: dict[str, list[Output]] = {}
        for output in outputs:
            by_topic.setdefault(output.topic, []).append(output)
        for topic, of_topic in by_topic.items():
            self._produce(topic, of_topic, delivered)
        positions = [TopicPartition(p.topic, p.number, offset, metadata) for p, (offset, metadata) in offsets.items()]
        if positions:
            self._call(
                "send offsets",
                lambda: self._producer.send_offsets_to_transaction(positions, group_metadata, COMMIT_TIMEOUT_S),
            )
        self._call("commit", lambda: self._producer.commit_transaction(COMMIT_TIMEOUT_S))
        self._producer.poll(0)
        if errors:
            raise InvariantError(
                "TM-9010", f"a committed transaction lost a record: {errors[0].str()}; please report this"
            )
        return last_offsets

    def abandon(self) -> None:
        """Drop the producer without waiting; its transaction is ended by the next one of its id."""
        with suppress(KafkaException):
            self._producer.purge(in_queue=True, in_flight=True, blocking=False)

    def _produce(self, topic: str, outputs: list[Output], delivered: Any) -> None:
        # `produce_batch` takes neither headers nor timestamps and reports no offsets: the last one goes alone.
        plain = [{"key": o.key, "value": o.value} for o in outputs[:-1]]
        if all(not o.headers and o.timestamp is None for o in outputs) and len(plain) > 1:
            try:
                accepted = self._producer.produce_batch(topic, plain)
            except KafkaException as error:
                raise self._wrapped("produce", error) from None
            except BufferError:
                accepted = 0
            if accepted != len(plain):
                refused = next((each["_error"] for each in plain if "_error" in each), "its queue is full")
                raise UnavailableError(
                    "TM-3013", f"{topic}: the producer refused records: {refused}; the batch is claimed and sent again"
                )
            outputs = outputs[-1:]
        for output in outputs:
            more: dict[str, Any] = {} if output.timestamp is None else {"timestamp": output.timestamp}
            while True:
                try:
                    self._producer.produce(
                        topic,
                        output.value,
                        output.key,
                        headers=list(output.headers) or None,
                        on_delivery=delivered,
                        **more,
                    )
                    break
                except BufferError:
                    self._producer.poll(0.05)
                except KafkaException as error:
                    raise self._wrapped("produce", error) from None

    def _call(self, what: str, request: Any) -> None:
        try:
            request()
        except KafkaException as error:
            raise self._wrapped(what, error) from None

    def _wrapped(self, what: str, exception: KafkaException) -> FencedError | UnavailableError:
        error: KafkaError = exception.args[0]
        if error.code() in _FENCED or "fenced" in error.str().lower():
            return FencedError(
                "TM-4010", f"transaction of {self._id}, {what}: another worker took over ({error.str()})"
            )
        return UnavailableError(
            "TM-3014", f"transaction of {self._id}, {what}: {error.str()}; its result is unknown until the next claim"
        )
