"""A transactional producer: outputs and input offsets, together or not at all.

In: outputs in order, the next offset of each input partition. Out: one committed transaction. Invariant: after any
error the writer must be thrown away (`abandon`) and another opened with the same id: that ends whatever is unfinished,
and the caller looks at the store and the group to learn what happened.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Protocol

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition

from tidemill.core.records import Output, Partition
from tidemill.errors import FencedError, InvariantError, UnavailableError
from tidemill.io.kafka import MESSAGE_BYTES_MAX

TRANSACTION_TIMEOUT_MS = 10_000  # one hung transaction holds up every reader for at most this and a second
OPEN_TIMEOUT_S = 30.0  # a predecessor's transaction must time out first
COMMIT_TIMEOUT_S = 30.0
OFFSETS_TIMEOUT_S = TRANSACTION_TIMEOUT_MS / 1000  # later than that there is no transaction to add them to
DELIVERY_POLL_S = 0.1

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


class Failpoint(Protocol):
    """Hears where a transaction stands; `bring_about` makes that true of the broker too, should it matter."""

    def __call__(self, name: str, bring_about: Callable[[], object] | None = None) -> None: ...


def _pass_by(name: str, bring_about: Callable[[], object] | None = None) -> None:
    """Nobody wants to hear."""


class TransactionalWriter:
    """One thread owns it. Within a topic outputs keep their order; keys meet the same partitions as in Java clients."""

    def __init__(self, settings: Mapping[str, Any], transactional_id: str, failpoint: Failpoint = _pass_by) -> None:
        self._id = transactional_id
        self._failpoint = failpoint
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
        self,
        outputs: Sequence[Output],
        offsets: Mapping[Partition, tuple[int, str]],
        group_metadata: object,
        *,
        partitions: Sequence[int | None] = (),
    ) -> dict[str, int]:
        """One transaction; per topic the offset of its last output.

        Args:
            offsets: next offset and metadata of each input partition.
            group_metadata: of the consumer, as it was when the batch was polled.
            partitions: of each output; None = by its key. Without them, all by their keys.

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

        for output, number in zip(outputs, partitions, strict=False):
            self._produce(output.topic, [output], delivered, number)
        by_topic: dict[str, list[Output]] = {}
        for output in outputs[len(partitions) :]:
            by_topic.setdefault(output.topic, []).append(output)
        for topic, of_topic in by_topic.items():
            self._produce(topic, of_topic, delivered)
        self._end(offsets, group_metadata, errors)
        return last_offsets

    def publish_told(
        self,
        outputs: Sequence[Output],
        tell: Callable[[Sequence[int]], Sequence[Output]],
        offsets: Mapping[Partition, tuple[int, str]],
        group_metadata: object,
    ) -> Sequence[int]:
        """One transaction of `outputs` and of what `tell` makes of their offsets; those offsets.

        Raises: as `publish`.
        """
        self._call("begin", self._producer.begin_transaction)
        places: dict[int, int] = {}
        errors: list[KafkaError] = []

        def place_of(index: int) -> Callable[[KafkaError | None, Message], None]:
            def delivered(error: KafkaError | None, message: Message) -> None:
                if error is not None:
                    errors.append(error)
                else:
                    places[index] = message.offset()

            return delivered

        for index, output in enumerate(outputs):
            self._produce(output.topic, [output], place_of(index))
        deadline = time.monotonic() + COMMIT_TIMEOUT_S
        while len(places) < len(outputs) and not errors and time.monotonic() < deadline:
            self._call("produce", lambda: self._producer.poll(DELIVERY_POLL_S))
        if errors:
            raise self._wrapped("produce", KafkaException(errors[0]))
        if len(places) < len(outputs):
            raise UnavailableError(
                "TM-3014", f"transaction of {self._id}, produce: Kafka does not answer; nothing of it will be seen"
            )
        found = [places[index] for index in range(len(outputs))]
        for at, output in enumerate(tell(found), start=len(outputs)):
            self._produce(output.topic, [output], place_of(at))
        self._end(offsets, group_metadata, errors)
        return found

    def _end(
        self, offsets: Mapping[Partition, tuple[int, str]], group_metadata: object, errors: Sequence[KafkaError]
    ) -> None:
        """Send the positions and commit."""
        self._failpoint("F5", self._producer.flush)
        positions = [TopicPartition(p.topic, p.number, offset, metadata) for p, (offset, metadata) in offsets.items()]
        if positions:
            self._call("send offsets", lambda: self._send_offsets(positions, group_metadata))
        self._failpoint("F6", self._producer.flush)
        self._call("commit", lambda: self._producer.commit_transaction(COMMIT_TIMEOUT_S))
        self._failpoint("F7")
        self._producer.poll(0)
        if errors:
            raise InvariantError(
                "TM-9010", f"a committed transaction lost a record: {errors[0].str()}; please report this"
            )

    def abandon(self) -> None:
        """Drop the producer without waiting; its transaction is ended by the next one of its id."""
        with suppress(KafkaException):
            self._producer.purge(in_queue=True, in_flight=True, blocking=False)

    def _produce(self, topic: str, outputs: list[Output], delivered: Any, partition: int | None = None) -> None:
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
            if partition is not None:
                more["partition"] = partition
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

    def _send_offsets(self, positions: Sequence[TopicPartition], group_metadata: object) -> None:
        """In a thread that can be left behind: librdkafka does not look at this call's time-out, and when connections
        were cut it may wait for ever (librdkafka issue 5456). The thread ends when its producer does."""
        producer = self._producer
        errors: list[BaseException] = []

        def send() -> None:
            try:
                producer.send_offsets_to_transaction(list(positions), group_metadata, OFFSETS_TIMEOUT_S)
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=send, name="send offsets", daemon=True)
        thread.start()
        thread.join(OFFSETS_TIMEOUT_S)
        if thread.is_alive():
            raise UnavailableError(
                "TM-3014",
                f"transaction of {self._id}, send offsets: no answer within {OFFSETS_TIMEOUT_S:.0f} s; nothing of it "
                "will be seen, the next claim sends it again",
            )
        if errors:
            raise errors[0]

    def _call(self, what: str, request: Any) -> None:
        try:
            request()
        except KafkaException as error:
            raise self._wrapped(what, error) from None
        except SystemError as error:
            # The client raises a fatal error while it calls back: the callback then fails by the exception in its way.
            if not isinstance(error.__cause__, KafkaException):
                raise
            raise self._wrapped(what, error.__cause__) from None

    def _wrapped(self, what: str, exception: KafkaException) -> FencedError | UnavailableError:
        error: KafkaError = exception.args[0]
        if error.code() in _FENCED or "fenced" in error.str().lower():
            return FencedError(
                "TM-4010", f"transaction of {self._id}, {what}: another worker took over ({error.str()})"
            )
        return UnavailableError(
            "TM-3014", f"transaction of {self._id}, {what}: {error.str()}; its result is unknown until the next claim"
        )
