"""Topics, offsets, the log reader and the transactional writer, on a real broker."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from open_transactions import an_open_transaction

from tidemill.core.records import Output, Partition
from tidemill.errors import FencedError, StateLostError, UnavailableError
from tidemill.io import kafka
from tidemill.io.embedded import Servers
from tidemill.io.kafka_reader import LogReader, read_topic
from tidemill.io.kafka_writer import TransactionalWriter

pytestmark = pytest.mark.servers


@pytest.fixture
def clients(servers: Servers) -> dict[str, object]:
    return kafka.client_settings(servers.bootstrap_servers)


@pytest.fixture
def topic(clients: dict[str, object], app_name: str) -> str:
    """A topic with one partition."""
    kafka.ensure_topics(clients, {f"{app_name}.out": 1}, {})
    return f"{app_name}.out"


@pytest.fixture
def group_member(clients: dict[str, object], topic: str, app_name: str) -> Iterator[Consumer]:
    """A member of the group `app_name` that owns the topic's partition."""
    consumer = Consumer({**clients, "group.id": app_name, "group.instance.id": "a", "enable.auto.commit": False})
    joined: list[object] = []
    consumer.subscribe([topic], on_assign=lambda *_: joined.append(True))
    while not joined:
        consumer.poll(0.05)
    yield consumer
    consumer.close()


def a_writer(clients: dict[str, object], name: str) -> TransactionalWriter:
    writer = TransactionalWriter(clients, name)
    writer.open()
    return writer


def outputs(topic: str, count: int) -> list[Output]:
    return [Output(topic, b"key", b"%d" % number) for number in range(count)]


def values(clients: dict[str, object], topic: str) -> list[bytes]:
    return [message.value() for messages in read_topic(clients, topic) for message in messages]


def test_topics_are_created_once_and_keep_their_partitions(clients: dict[str, object], app_name: str) -> None:
    assert kafka.ensure_topics(clients, {f"{app_name}.a": 3}, {"retention.ms": "-1"}) == [f"{app_name}.a"]
    assert kafka.ensure_topics(clients, {f"{app_name}.a": 5, f"{app_name}.b": 1}, {}) == [f"{app_name}.b"]
    assert kafka.partition_counts(clients, [f"{app_name}.a", f"{app_name}.b"]) == {
        f"{app_name}.a": 3,
        f"{app_name}.b": 1,
    }


def test_topic_that_does_not_exist_is_named(clients: dict[str, object], app_name: str) -> None:
    with pytest.raises(UnavailableError, match=f"TM-3011 topic {app_name}.none does not exist"):
        kafka.partition_counts(clients, [f"{app_name}.none"])


def test_group_without_offsets_has_none(clients: dict[str, object], topic: str, app_name: str) -> None:
    assert kafka.committed_offsets(clients, app_name, [Partition(topic, 0)]) == {Partition(topic, 0): (None, "")}


def test_outputs_and_offsets_are_published_together(
    clients: dict[str, object], topic: str, app_name: str, group_member: Consumer
) -> None:
    writer = a_writer(clients, app_name)
    at = Partition(topic, 0)
    for number in range(5):  # at once after each commit: its marker may still be on its way to the offsets topic
        offsets = {at: (10 + number, f"incarnation{number}")}
        last = writer.publish(outputs(topic, 3), offsets, group_member.consumer_group_metadata())
        assert kafka.committed_offsets(clients, app_name, [at]) == offsets
    assert last == {topic: 4 * 4 + 2}  # four transactions of three records and a marker, then the third record
    assert values(clients, topic) == [b"0", b"1", b"2"] * 5


def test_order_within_a_topic_holds_whatever_the_topics_between(
    clients: dict[str, object], topic: str, app_name: str
) -> None:
    kafka.ensure_topics(clients, {f"{app_name}.dlq": 1}, {})
    writer = a_writer(clients, app_name)
    mixed = []
    for number in range(50):
        mixed.append(Output(topic, b"key", b"%d" % number))
        if number % 7 == 0:
            mixed.append(
                Output(f"{app_name}.dlq", b"key", b"%d" % number, (("why", b"bad"),), timestamp=1_000 + number)
            )
    writer.publish(mixed, {}, None)
    assert values(clients, topic) == [b"%d" % number for number in range(50)]
    [letters] = read_topic(clients, f"{app_name}.dlq")
    assert [(m.value(), m.headers(), m.timestamp()[1]) for m in letters] == [
        (b"%d" % number, [("why", b"bad")], 1_000 + number) for number in range(0, 50, 7)
    ]


def test_a_key_meets_the_same_partition_alone_and_in_a_batch(clients: dict[str, object], app_name: str) -> None:
    name = f"{app_name}.wide"
    kafka.ensure_topics(clients, {name: 8}, {})
    keyed = [Output(name, b"key%d" % number, b"") for number in range(40)]
    writer = a_writer(clients, app_name)
    writer.publish(keyed, {}, None)
    writer.publish([output._replace(headers=(("a", b"b"),)) for output in keyed], {}, None)
    partitions: dict[bytes, set[int]] = {}
    for messages in read_topic(clients, name):
        for message in messages:
            partitions.setdefault(message.key(), set()).add(message.partition())
    assert len(partitions) == 40 and all(len(each) == 1 for each in partitions.values())
    assert len(set.union(*partitions.values())) > 4


def test_older_writer_of_an_id_is_fenced(clients: dict[str, object], topic: str, app_name: str) -> None:
    older = a_writer(clients, app_name)
    older.publish(outputs(topic, 1), {}, None)
    newer = a_writer(clients, app_name)
    with pytest.raises(FencedError, match="TM-4010"):
        older.publish(outputs(topic, 1), {}, None)
    newer.publish(outputs(topic, 1), {}, None)
    assert values(clients, topic) == [b"0", b"0"]


def test_writer_of_an_older_generation_is_fenced(
    clients: dict[str, object], topic: str, app_name: str, group_member: Consumer
) -> None:
    metadata_then = group_member.consumer_group_metadata()
    settings = {**clients, "group.id": app_name, "group.instance.id": "b", "enable.auto.commit": False}
    second, joined = Consumer(settings), []
    second.subscribe([topic], on_assign=lambda *_: joined.append(True))
    while not joined:
        second.poll(0.02)
        group_member.poll(0.02)
    writer = a_writer(clients, app_name)
    with pytest.raises(FencedError, match="TM-4010"):
        writer.publish(outputs(topic, 1), {Partition(topic, 0): (1, "")}, metadata_then)
    writer.abandon()
    a_writer(clients, app_name)  # ends the transaction, so that the topic can be read
    second.close()
    assert values(clients, topic) == []


def test_open_transaction_hides_its_records_and_its_offsets_until_the_next_writer_ends_it(
    clients: dict[str, object],
    topic: str,
    app_name: str,
    group_member: Consumer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torn = an_open_transaction(clients, app_name, topic)
    torn.send_offsets_to_transaction([TopicPartition(topic, 0, 7)], group_member.consumer_group_metadata(), 10)
    reader = LogReader(clients, topic, 0)
    assert reader.end_offset() == 0
    with monkeypatch.context() as patch, pytest.raises(UnavailableError, match="unstable offsets"):
        patch.setattr(kafka, "STABLE_DEADLINE_S", 0.2)
        kafka.committed_offsets(clients, app_name, [Partition(topic, 0)])  # and does not pass for a new group
    assert kafka.log_bounds(clients, [Partition(topic, 0)]) == {Partition(topic, 0): (0, 0)}
    a_writer(clients, app_name)
    assert kafka.committed_offsets(clients, app_name, [Partition(topic, 0)]) == {Partition(topic, 0): (None, "")}
    assert values(clients, topic) == []
    assert reader.end_offset() == 2  # the aborted record and its marker
    reader.seek(0)
    deadline = time.monotonic() + 90
    while reader.position < 2 and time.monotonic() < deadline:
        assert reader.read(until_offset=None, timeout_s=0.05, max_records=10) == []
    assert reader.position == 2


def test_abandoned_writer_goes_away_at_once(clients: dict[str, object], topic: str, app_name: str) -> None:
    writer = a_writer(clients, app_name)
    writer.publish(outputs(topic, 1), {}, None)
    started = time.monotonic()
    writer.abandon()
    del writer
    assert time.monotonic() - started < 1.0


def test_reader_stops_before_the_offset_asked_for_and_goes_on_from_there(
    clients: dict[str, object], topic: str, app_name: str
) -> None:
    writer = a_writer(clients, app_name)
    for _ in range(3):
        writer.publish(outputs(topic, 4), {}, None)
    reader = LogReader(clients, topic, 0)
    reader.seek(0)

    def read_until(offset: int) -> list[int]:
        found: list[int] = []
        deadline = time.monotonic() + 90
        while reader.position < offset and time.monotonic() < deadline:
            found += [m.offset() for m in reader.read(until_offset=offset, timeout_s=0.1, max_records=3)]
        return found

    assert read_until(2) == [0, 1] and reader.position == 2
    assert read_until(5) == [2, 3] and reader.position == 5  # 4 is a marker
    assert read_until(15) == [5, 6, 7, 8, 10, 11, 12, 13] and reader.position == 15
    assert reader.end_offset() == 15


def test_reader_returns_as_soon_as_there_is_something(clients: dict[str, object], topic: str, app_name: str) -> None:
    a_writer(clients, app_name).publish(outputs(topic, 1), {}, None)
    reader = LogReader(clients, topic, 0)
    reader.seek(0)
    started = time.monotonic()
    assert len(reader.read(until_offset=None, timeout_s=20.0, max_records=1_000)) == 1
    assert time.monotonic() - started < 10.0


def test_reading_an_offset_that_is_gone_is_a_lost_state(clients: dict[str, object], topic: str) -> None:
    reader = LogReader(clients, topic, 0)
    reader.seek(99)
    with pytest.raises(StateLostError, match=r"TM-4020 .*@99 is no longer in the log"):
        for _ in range(50):
            reader.read(until_offset=None, timeout_s=0.1, max_records=1)


@pytest.mark.parametrize(
    ("code", "reason", "will_pass"),
    [
        (KafkaError._TIMED_OUT, "Failed while waiting for controller", True),
        (KafkaError.NOT_CONTROLLER, "it moved", True),
        (KafkaError.INVALID_REPLICATION_FACTOR, "All brokers are currently fenced.", True),
        (KafkaError.INVALID_REPLICATION_FACTOR, "only 1 broker(s) are registered", False),
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, "no", False),
    ],
)
def test_a_refusal_to_create_is_asked_again_only_where_it_will_pass(code: int, reason: str, will_pass: bool) -> None:
    assert kafka._will_pass(KafkaException(KafkaError(code, reason))) is will_pass


def test_broker_that_answers_slowly_is_given_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow:
        def __init__(self, settings: object) -> None:
            """Connects to nothing."""

        def poll(self, timeout: float) -> None:
            """Nothing was heard."""

        def list_topics(self, timeout: float) -> SimpleNamespace:
            if timeout < 3.0:
                raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
            return SimpleNamespace(topics={"t": SimpleNamespace(partitions=[0, 1])})

    monkeypatch.setattr(kafka, "AdminClient", Slow)
    assert kafka.partition_counts(kafka.client_settings("127.0.0.1:1", {}), ["t"]) == {"t": 2}


def test_broker_that_is_away_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kafka, "REQUEST_TIMEOUT_S", 1.0)
    settings = kafka.client_settings("127.0.0.1:1", {})
    with pytest.raises(UnavailableError, match=r"TM-3010 Kafka at 127\.0\.0\.1:1 did not"):
        kafka.ensure_topics(settings, {"any": 1}, {})
