"""Kafka's admin side: one builder of client settings, topics, offsets.

In: names and settings. Out: plain values. Invariant: every client of Tidemill is configured by `client_settings`; what
librdkafka raises leaves here as one of our errors.
"""

from __future__ import annotations

import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType

from tidemill.core.records import Partition
from tidemill.errors import UnavailableError

REQUEST_TIMEOUT_S = 20.0  # a broker that elects or restarts answers within seconds
FIRST_TURN_S = 1.0  # of the first question; then we look whether the client was refused
STABLE_DEADLINE_S = (
    30.0  # a dead worker's transaction ends after its time-out of 10 s, and the broker looks now and then
)
CREATE_ATTEMPT_S = 10.0  # of one client that looks for the controller; it learns a new one only every 30 s
CREATE_DEADLINE_S = 40.0  # a broker that stood still is itself again within seconds, on a busy machine within tens
COORDINATOR_WAIT_S = 3.0  # of one question for committed offsets; then we look whether it was refused
NOT_YET_RETRY_S = 0.02  # the marker of a transaction that has just ended arrives within milliseconds

_NOT_YET = {
    KafkaError.UNSTABLE_OFFSET_COMMIT,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.NOT_COORDINATOR,
    KafkaError.LEADER_NOT_AVAILABLE,  # these three: the topic was created a moment ago
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
}
_EXISTS = KafkaError.TOPIC_ALREADY_EXISTS
REFUSED = frozenset(
    {
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
    }
)  # for want of a right
_ADVICE = {
    **dict.fromkeys(REFUSED, "grant what docs/own-servers.md lists; `tidemill doctor --acls` says what is missing"),
    KafkaError._AUTHENTICATION: "correct the mechanism, user name and password of `sasl.*` in the `kafka:` settings",
    KafkaError._SSL: "correct `security.protocol` and `ssl.*` in the `kafka:` settings",
}
MESSAGE_BYTES_MAX = 16 * 1024 * 1024  # a dead letter must fit whatever its input topic accepted
TIMESTAMP_AFTER_MAX = "message.timestamp.after.max.ms"  # of a topic: how far ahead of the broker's clock a stamp may be


def client_settings(bootstrap_servers: str, extra: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Settings that every client shares; `extra` is the user's `kafka:` block, given verbatim."""
    return {
        "bootstrap.servers": bootstrap_servers,
        "client.id": "tidemill",
        "log_level": 0,  # librdkafka writes to stderr by itself; what matters comes back as errors
        "reconnect.backoff.max.ms": 1000,
        "topic.metadata.refresh.interval.ms": 30_000,
        **(extra or {}),
    }


@contextmanager
def unavailable_unless_answered(what: str, settings: Mapping[str, Any]) -> Iterator[None]:
    """Turn what a client raises into an UnavailableError that names the request and the broker."""
    try:
        yield
    except KafkaException as error:
        let_go(error)
        refusal = error.args[0] if error.args and isinstance(error.args[0], KafkaError) else None
        advice = _ADVICE.get(
            refusal.code() if refusal else 0,
            "check that the broker runs and that the address and the `kafka:` settings are right",
        )
        raise UnavailableError(
            "TM-3010",
            f"Kafka at {settings['bootstrap.servers']} did not {what}: {refusal.str() if refusal else error}; {advice}",
        ) from None


def let_go(error: KafkaException) -> None:
    """Part an error of a future from the frames that it has passed.

    The future holds the error, the error its frames, and they the future and its client: a ring, so the client and its
    threads would live on until the collector comes, which may be the end of the process.
    """
    traceback.clear_frames(error.__traceback__)
    error.__traceback__ = None


def _connected(settings: Mapping[str, Any]) -> tuple[AdminClient, Any]:
    """A client, and what the cluster told it of itself.

    A client that cannot connect tries on and says why to its callback alone, which it serves between requests: so it is
    asked in turns, each twice as long as the last, for an answer may be slow. A refusal ends it after two: another
    broker may be willing. What else it said last takes the place of "timed out".
    """
    heard: deque[KafkaError] = deque(maxlen=20)
    admin = AdminClient({**settings, "error_cb": heard.append})
    deadline, turn_s = time.monotonic() + REQUEST_TIMEOUT_S, FIRST_TURN_S
    while True:
        try:
            return admin, admin.list_topics(timeout=turn_s)
        except KafkaException as error:
            admin.poll(0)
            said = [one for one in heard if one.code() != KafkaError._ALL_BROKERS_DOWN]
            refusals = [one for one in said if one.code() in (KafkaError._AUTHENTICATION, KafkaError._SSL)]
            if time.monotonic() > deadline or (refusals and turn_s > FIRST_TURN_S):
                raise KafkaException([*said, *refusals][-1] if said else error.args[0]) from None
            turn_s = min(2 * turn_s, max(1.0, deadline - time.monotonic()))


def is_answering(settings: Mapping[str, Any], timeout_s: float) -> bool:
    """Whether a broker answers a request for its metadata in time."""
    try:
        AdminClient(dict(settings)).list_topics(timeout=timeout_s)
    except KafkaException:
        return False
    return True


def ensure_topics(settings: Mapping[str, Any], topics: Mapping[str, int], config: Mapping[str, str]) -> list[str]:
    """Create the topics that are missing, with these partition counts; the names that were created.

    They can be seen by every client then. A broker that starts or stood still may answer and yet know of no controller:
    then another client asks anew. One before 3.6 knows no TIMESTAMP_AFTER_MAX: its topics are made without.
    """
    created: list[str] = []
    config = dict(config)
    deadline = time.monotonic() + CREATE_DEADLINE_S
    with unavailable_unless_answered("create topics", settings):
        while True:
            # Asked first: who may not create topics may still use those that an administrator has created.
            admin, cluster = _connected(settings)
            found = cluster.topics
            wanted = [
                NewTopic(name, num_partitions=count, replication_factor=-1, config=config)
                for name, count in topics.items()
                if name not in found
            ]
            if not wanted:
                return created
            answers = admin.create_topics(wanted, request_timeout=CREATE_ATTEMPT_S)
            errors = {name: future.exception() for name, future in answers.items()}
            created += [name for name, error in errors.items() if error is None]
            failed = [error for error in errors.values() if error and not _is_about(error, _EXISTS)]
            is_late = time.monotonic() > deadline
            if failed and _is_about(failed[0], KafkaError.INVALID_CONFIG) and config.pop(TIMESTAMP_AFTER_MAX, None):
                continue
            if failed and (is_late or not _will_pass(failed[0])):
                raise failed[0]
            if is_late:  # they exist, and this user may not see them: whoever needs them says so
                return created
            time.sleep(NOT_YET_RETRY_S)


def topic_settings(settings: Mapping[str, Any], topics: Sequence[str]) -> dict[str, dict[str, str] | None]:
    """The settings in force of topics that exist; None = this user may not see them (DescribeConfigs)."""
    found: dict[str, dict[str, str] | None] = {}
    with unavailable_unless_answered("describe the settings of topics", settings):
        admin = AdminClient(dict(settings))  # held by name, as below
        for name in topics:
            try:
                found[name] = _once_ready(partial(_settings_of, admin, name))
            except KafkaException as error:
                if error.args[0].code() not in REFUSED:
                    raise
                let_go(error)
                found[name] = None
    return found


def _settings_of(admin: AdminClient, topic: str) -> dict[str, str]:
    at = ConfigResource(ResourceType.TOPIC, topic)
    entries = admin.describe_configs([at], request_timeout=REQUEST_TIMEOUT_S)[at].result()
    return {name: entry.value for name, entry in entries.items()}


def partition_counts(settings: Mapping[str, Any], topics: Sequence[str]) -> dict[str, int]:
    """How many partitions each topic has.

    Raises:
        UnavailableError: TM-3011 a topic does not exist.
    """
    with unavailable_unless_answered("list its topics", settings):
        found = _connected(settings)[1].topics
    missing = [name for name in topics if name not in found]
    if missing:
        raise UnavailableError(
            "TM-3011",
            f"topic {missing[0]} does not exist at {settings['bootstrap.servers']}; create it, or fix its name",
        )
    return {name: len(found[name].partitions) for name in topics}


def partitions_of(settings: Mapping[str, Any], topics: Sequence[str]) -> list[Partition]:
    """Every partition of the topics, topic after topic. Raises: as `partition_counts`."""
    counts = partition_counts(settings, topics)
    return [Partition(name, number) for name, count in counts.items() for number in range(count)]


def committed_offsets(
    settings: Mapping[str, Any], group: str, partitions: Sequence[Partition]
) -> dict[Partition, tuple[int | None, str]]:
    """(offset, metadata) that the group committed, once no transaction on them is open; (None, "") = never."""
    if not partitions:
        return {}
    request = [TopicPartition(p.topic, p.number) for p in partitions]
    # Not an AdminClient: librdkafka's reads an address of nothing when a coordinator answers that it is none (yet), as
    # it does to the first question of all and whenever groups move to another broker: SIGSEGV, librdkafka #5040.
    consumer = Consumer({**settings, "group.id": group, "isolation.level": "read_committed"})
    try:
        with unavailable_unless_answered(f"return the offsets of group {group}", settings):
            offsets = _once_ready(lambda: _stable_offsets(consumer, request))
    finally:
        consumer.close()
    return {
        Partition(at.topic, at.partition): (at.offset, at.metadata or "") if at.offset >= 0 else (None, "")
        for at in offsets
    }


class GroupOffsets:
    """The offsets of one group, asked for again and again by one client; `close` it."""

    def __init__(self, settings: Mapping[str, Any], group: str) -> None:
        self._settings = settings
        self._consumer = Consumer({**settings, "group.id": group, "enable.auto.commit": False})

    def next_offset(self, at: Partition) -> int:
        """What the group committed, once no transaction on it is open; 0 = never."""
        with unavailable_unless_answered(f"return an offset of {at}", self._settings):
            found = self._consumer.committed([TopicPartition(at.topic, at.number)], timeout=REQUEST_TIMEOUT_S)
        return max(0, int(found[0].offset))

    def close(self) -> None:
        self._consumer.close()


def _will_pass(error: BaseException) -> bool:
    """What a broker says that has not found its controller again, or the controller of a broker that is back."""
    if not isinstance(error, KafkaException):
        return False
    passing = (KafkaError._TIMED_OUT, KafkaError.REQUEST_TIMED_OUT, KafkaError.NOT_CONTROLLER)
    return error.args[0].code() in passing or "brokers are currently fenced" in error.args[0].str()


def _is_about(error: BaseException, code: int) -> bool:
    return isinstance(error, KafkaException) and bool(error.args[0].code() == code)


def _once_ready(ask: Callable[[], Any]) -> Any:
    """The answer, asked for again while a coordinator or a leader says "not yet"."""
    deadline = time.monotonic() + STABLE_DEADLINE_S
    while True:
        try:
            return ask()
        except KafkaException as error:
            if error.args[0].code() not in _NOT_YET or time.monotonic() > deadline:
                raise
            let_go(error)
            time.sleep(NOT_YET_RETRY_S)


def _stable_offsets(consumer: Consumer, request: list[TopicPartition]) -> list[TopicPartition]:
    try:
        offsets: list[TopicPartition] = consumer.committed(request, timeout=min(COORDINATOR_WAIT_S, STABLE_DEADLINE_S))
    except KafkaException as error:
        if not _is_about(error, KafkaError._TIMED_OUT):
            raise
        told = consumer.poll(0)  # it goes on looking for a coordinator that it may not ask, and says so here only
        if told is not None and told.error() is not None and told.error().code() in REFUSED:
            raise KafkaException(told.error()) from None
        consumer.list_topics(request[0].topic, timeout=REQUEST_TIMEOUT_S)  # raises when it is the broker that is away
        raise KafkaException(KafkaError(KafkaError.UNSTABLE_OFFSET_COMMIT)) from None
    for at in offsets:
        if at.error is not None:
            raise KafkaException(at.error)
    return offsets


def set_committed_offsets(
    settings: Mapping[str, Any], group: str, offsets: Mapping[Partition, int], metadata: str
) -> None:
    """Move the group's offsets; only `tidemill reset` does so, and only while the group has no members."""
    at = [TopicPartition(p.topic, p.number, offset, metadata) for p, offset in offsets.items()]
    with unavailable_unless_answered(f"move the offsets of group {group}", settings):
        admin = AdminClient(dict(settings))  # held by name: a client that is collected never answers its futures
        request = [ConsumerGroupTopicPartitions(group, at)]

        def alter() -> None:
            answer = admin.alter_consumer_group_offsets(request, request_timeout=REQUEST_TIMEOUT_S)[group].result()
            for each in answer.topic_partitions:
                if each.error is not None:  # a group with members answers so, partition by partition
                    raise KafkaException(each.error)

        _once_ready(alter)


def delete_group(settings: Mapping[str, Any], group: str) -> None:
    """Forget a group and its offsets; nothing happens when there is none."""
    with unavailable_unless_answered(f"delete group {group}", settings):
        admin = AdminClient(dict(settings))
        try:
            _once_ready(
                lambda: admin.delete_consumer_groups([group], request_timeout=REQUEST_TIMEOUT_S)[group].result()
            )
        except KafkaException as error:
            if error.args[0].code() != KafkaError.GROUP_ID_NOT_FOUND:
                raise


def living_members(settings: Mapping[str, Any], group: str) -> int:
    """How many members the group has now."""
    with unavailable_unless_answered(f"describe group {group}", settings):
        admin = AdminClient(dict(settings))
        try:
            described = _once_ready(
                lambda: admin.describe_consumer_groups([group], request_timeout=REQUEST_TIMEOUT_S)[group].result()
            )
        except KafkaException as error:
            if error.args[0].code() == KafkaError.GROUP_ID_NOT_FOUND:
                return 0
            raise
    return len(described.members)


def watermark_offsets(consumer: Consumer, at: TopicPartition) -> tuple[int, int]:
    """(first offset, end offset) as the broker knows them, asked for again while a new topic has no leader."""
    low, high = _once_ready(lambda: consumer.get_watermark_offsets(at, timeout=REQUEST_TIMEOUT_S, cached=False))
    return int(low), int(high)


def log_bounds(settings: Mapping[str, Any], partitions: Sequence[Partition]) -> dict[Partition, tuple[int, int]]:
    """(first offset, end offset) of each partition; the end is behind the last committed record."""
    if not partitions:
        return {}
    with unavailable_unless_answered("return its log bounds", settings):
        consumer = Consumer({**settings, "group.id": "tidemill.none", "isolation.level": "read_committed"})
        try:
            return {p: watermark_offsets(consumer, TopicPartition(p.topic, p.number)) for p in partitions}
        finally:
            consumer.close()
