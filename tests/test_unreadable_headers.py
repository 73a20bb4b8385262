"""Records with a header whose name is not UTF-8: Kafka takes them, and confluent-kafka cannot read them.

The records are real: librdkafka's mock broker and producer (that of confluent-kafka sends no such names), and
confluent-kafka's consumer.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer, Message, Producer, TopicPartition
from stored_letters import StoredLetter
from wire_samples import EVENT, an_app, an_event, event_topic, framed

from tidemill.apps.dead_letters import letter_of
from tidemill.apps.redriving import TRUNCATED, refusal
from tidemill.core.records import Kind
from tidemill.io.dead_letters import TRUNCATED_HEADER, Code, dead_letter_output
from tidemill.io.offered import offered
from tidemill.io.source import PUNCTUATION_HEADER, SourceRecord, read_headers
from tidemill.io.trial_files import read_records, write_records
from tidemill.io.wire import InputDecoder

BAD_NAME = b"\xffbad"
TOPIC = "events"
END, VTYPE_TOPIC, VTYPE_PARTITION, VTYPE_VALUE, VTYPE_KEY, VTYPE_FLAGS, VTYPE_HEADER = 0, 1, 3, 4, 5, 7, 9  # rdkafka.h
PRODUCER, COPY = 0, 2

Sent = tuple[bytes | None, bytes | None, Sequence[bytes]]  # key, value, names of headers


class RawProducer:
    """librdkafka as confluent-kafka has loaded it: it sends the names of headers as they are."""

    def __init__(self, servers: str) -> None:
        maps = Path("/proc/self/maps")
        paths = (
            [line.split()[-1] for line in maps.read_text().splitlines() if "librdkafka" in line]
            if maps.exists()
            else []
        )
        if not paths:
            pytest.skip("librdkafka is not a library of its own here")
        self._library = ctypes.CDLL(paths[0])
        self._library.rd_kafka_conf_new.restype = self._library.rd_kafka_new.restype = ctypes.c_void_p
        said = ctypes.create_string_buffer(256)
        conf = ctypes.c_void_p(self._library.rd_kafka_conf_new())
        assert self._library.rd_kafka_conf_set(conf, b"bootstrap.servers", servers.encode(), said, 256) == 0, said.value
        self._handle = ctypes.c_void_p(self._library.rd_kafka_new(PRODUCER, conf, said, ctypes.c_size_t(256)))
        assert self._handle, said.value

    def send(self, key: bytes | None, value: bytes | None, names: Sequence[bytes]) -> None:
        words: list[Any] = [VTYPE_TOPIC, TOPIC.encode(), VTYPE_PARTITION, 0, VTYPE_FLAGS, COPY]
        for kind, content in ((VTYPE_KEY, key), (VTYPE_VALUE, value)):
            words += [] if content is None else [kind, content, ctypes.c_size_t(len(content))]
        for name in names:
            words += [VTYPE_HEADER, name, b"5", ctypes.c_ssize_t(1)]
        assert self._library.rd_kafka_producev(self._handle, *words, END) == 0

    def close(self) -> None:
        assert self._library.rd_kafka_flush(self._handle, 30_000) == 0
        self._library.rd_kafka_destroy(self._handle)


def messages_of(servers: str, count: int) -> list[Message]:
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "g"})
    consumer.assign([TopicPartition(TOPIC, 0, 0)])
    found: list[Message] = []
    while len(found) < count:
        batch = consumer.consume(count - len(found), 30)
        assert batch and all(message.error() is None for message in batch)
        found += batch
    consumer.close()
    return found


GOOD = framed(EVENT, an_event())
SENT: list[Sent] = [
    (None, None, [BAD_NAME]),
    (None, None, [b"trace", BAD_NAME, PUNCTUATION_HEADER.encode()]),
    (b"k", b"no Avro", [BAD_NAME, b"trace"]),
    (b"k", GOOD, [BAD_NAME]),
    (None, None, [b"trace", PUNCTUATION_HEADER.encode()]),
]


@pytest.fixture
def records() -> Iterator[list[SourceRecord]]:
    """Those of `SENT`, fresh from the client: what was asked of a message once is not unasked."""
    broker = Producer({"bootstrap.servers": "mock", "test.mock.num.brokers": 1, "log_level": 0})
    servers = ",".join(f"{one.host}:{one.port}" for one in broker.list_topics(timeout=30).brokers.values())
    producer = RawProducer(servers)
    for one in SENT:
        producer.send(*one)
    producer.close()
    messages = messages_of(servers, len(SENT))
    yield [SourceRecord(message.timestamp()[1], 0, 0, message.offset(), message) for message in messages]
    del broker


def test_the_client_fails_on_them_and_what_it_answers_then_is_deadly(records: list[SourceRecord]) -> None:
    """What `read_headers` guards against. If this fails, the client has been mended."""
    message = records[0].message
    with pytest.raises(SystemError, match="exception set"):
        message.headers()
    assert "<NULL>" in repr(message.headers())  # `dict` of it is SIGSEGV


def test_headers_are_unreadable_however_often_they_are_asked_for(records: list[SourceRecord]) -> None:
    for _ in range(1_000):  # until the interpreter has made the calls its own, and checks them no more
        read_headers(records[-1].message)
    for _ in range(3):
        assert [read_headers(one.message) for one in records] == [
            *[None] * 4,
            (("trace", b"5"), (PUNCTUATION_HEADER, b"5")),
        ]


def test_the_stream_goes_on_and_who_might_be_a_punctuation_is_a_dead_letter(records: list[SourceRecord]) -> None:
    polled = [offered(one.message, one.offset) for one in records]
    assert [one.is_punctuation for one in polled] == [False] * 4 + [True]
    decoder = InputDecoder(an_app(event_topic()))
    for _ in range(2):  # a batch that met a conflict is decoded again
        batch = decoder.decode(records, {})
        assert [Kind(kind) for kind in batch.kind] == [*[Kind.DEAD_LETTER] * 3, Kind.EVENT, Kind.PUNCTUATION]
        assert [letter.code for _, letter in batch.dead_letters] == [Code.BAD_HEADERS] * 2 + [Code.NOT_FRAMED]
        assert [letter.headers for _, letter in batch.dead_letters] == [None] * 3


def test_the_letter_says_that_headers_are_lost_and_is_not_sent_again_without_them(records: list[SourceRecord]) -> None:
    batch = InputDecoder(an_app(event_topic())).decode(records, {})
    for at, letter in batch.dead_letters:
        output = dead_letter_output(letter, "app")
        assert b"not UTF-8" in (dict(output.headers)[TRUNCATED_HEADER] or b"")
        found = letter_of(StoredLetter(output, at))
        assert (found.value, found.headers, found.code) == (letter.value, (), letter.code)
        assert refusal(found, {TOPIC: 1}) == TRUNCATED


def test_who_tries_records_in_another_process_decodes_the_same(records: list[SourceRecord], tmp_path: Path) -> None:
    write_records(tmp_path / "records", records)
    decoder = InputDecoder(an_app(event_topic()))
    tried, own = decoder.decode(read_records(tmp_path / "records"), {}), decoder.decode(records, {})
    assert tried.dead_letters == own.dead_letters and tried.kind.tolist() == own.kind.tolist()


def test_a_foreign_record_among_the_dead_letters_can_be_listed(records: list[SourceRecord]) -> None:
    letter: Any = records[2].message
    assert (letter_of(letter).code, letter_of(letter).origin) == ("unknown", None)
