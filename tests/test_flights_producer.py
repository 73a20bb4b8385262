"""The producer tells the year as it happened: complete and in order, with honest punctuations and real poison."""

from __future__ import annotations

import dataclasses
import io
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from time import monotonic
from types import SimpleNamespace
from typing import NamedTuple
from zoneinfo import ZoneInfo

import fastavro
import numpy as np
import pytest
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, TopicPartition

from tidemill.apps import flights, flights_data
from tidemill.apps.flights import Published, publish, run_producer
from tidemill.apps.flights_data import Records, flight_records, load_raw, merge_order
from tidemill.apps.flights_poison import HEADER, KINDS, LARGE_COUNT, Sample, make_poison
from tidemill.config import load_app
from tidemill.core.records import Kind
from tidemill.core.spec import AppSpec
from tidemill.errors import ConfigError, RecordError, UnavailableError
from tidemill.io import kafka_producer
from tidemill.io.outputs import InputEncoder
from tidemill.io.source import SourceRecord
from tidemill.io.wire import InputDecoder

APP = load_app(Path(__file__).parents[1] / "config" / "flights.yaml")
SCHEMAS = {str(topic.schema["name"]).lower(): topic.schema for topic in APP.topics}
HOUR_MS = 3_600_000
WEEK = date(2013, 1, 8)


@pytest.fixture(scope="module", autouse=True)
def _files_are_read_once() -> Iterator[None]:
    raw = load_raw()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flights_data, "load_raw", lambda: raw)
        yield


@pytest.fixture(scope="module")
def year() -> dict[str, Records]:
    return flight_records()


def milliseconds(*moment: int) -> int:
    return int(datetime(*moment, tzinfo=UTC).timestamp()) * 1_000


def row_of(records: Records, id_: str) -> tuple[int, dict[str, object]]:
    """Time and fields of a flight's record."""
    index = records.columns.column("id").to_pylist().index(id_)
    return int(records.time[index]), records.columns.slice(index, 1).to_pylist()[0]


def read_value(schema: dict[str, object], value: bytes) -> tuple[dict[str, object], bytes]:
    """A framed value as fastavro reads it, and the bytes that are left."""
    body = io.BytesIO(value[10:])
    return fastavro.schemaless_reader(body, fastavro.parse_schema(schema)), body.read()


# --- the data


def test_the_year_is_complete_and_every_flight_has_one_id(year):
    assert {kind: len(records.time) for kind, records in year.items()} == {
        "weather": 26_115,
        "departed": 336_776 - 8_255,
        "arrived": 336_776,
        "scheduled": 336_776,
    }
    ids = year["scheduled"].columns.column("id").to_pylist()
    assert len(set(ids)) == len(ids)
    assert set(ids) == set(year["arrived"].columns.column("id").to_pylist())
    assert set(ids) > set(year["departed"].columns.column("id").to_pylist())
    dests = Counter(year["scheduled"].columns.column("dest").to_pylist())
    assert sum(dests[one] for one in ("BQN", "PSE", "SJU", "STT")) == 7_602  # no airport row, and still here
    outcomes = Counter(year["arrived"].columns.column("outcome").to_pylist())
    assert outcomes == {"arrived": 327_346, "cancelled": 8_255, "diverted": 1_175}


def test_times_are_milliseconds_in_utc_with_the_minute(year):
    """The first flight of the year: UA 1545, scheduled 05:15 in Newark, 2 minutes late, at 08:30 in Houston."""
    id_ = "2013-01-01T10Z-UA-1545"

    time, fields = row_of(year["scheduled"], id_)
    assert time == milliseconds(2013, 1, 1, 9, 15)
    assert fields["scheduled_departure"] == datetime(2013, 1, 1, 10, 15)
    assert (fields["hour"], fields["weekday"], fields["scheduled_arrival"]) == (5, 1, 819)
    assert row_of(year["departed"], id_)[0] == milliseconds(2013, 1, 1, 10, 17)
    time, fields = row_of(year["arrived"], id_)
    assert (time, fields["outcome"], fields["arrival_delay"]) == (milliseconds(2013, 1, 1, 14, 30), "arrived", 11)


def test_local_hour_and_weekday_are_those_of_new_york_on_both_sides_of_the_clock_changes(year):
    columns = year["scheduled"].columns
    zone = ZoneInfo("America/New_York")
    days = {date(2013, 3, day) for day in (9, 10, 11)} | {date(2013, 11, day) for day in (2, 3, 4)}
    seen = 0
    for moment, hour, weekday in zip(
        columns.column("scheduled_departure").to_pylist(),
        columns.column("hour").to_pylist(),
        columns.column("weekday").to_pylist(),
        strict=True,
    ):
        if moment.date() in days:
            local = moment.replace(tzinfo=UTC).astimezone(zone)
            assert (local.hour, local.weekday()) == (hour, weekday)
            seen += 1
    assert seen > 5_000


def test_an_observation_is_published_at_the_end_of_its_hour_and_none_after_the_data_ends(year):
    assert year["weather"].time[0] == milliseconds(2013, 1, 1, 7)  # the first is that of 06 to 07 UTC
    assert year["weather"].time[-1] == milliseconds(2013, 12, 31, 0)
    assert year["scheduled"].time[-1] > year["weather"].time[-1]


def test_cancellations_and_diversions_become_known_at_their_times(year):
    raw = load_raw().flights
    scheduled = dict(zip(year["scheduled"].columns.column("id").to_pylist(), year["scheduled"].time, strict=True))
    left = dict(zip(year["departed"].columns.column("id").to_pylist(), year["departed"].time, strict=True))
    columns = year["arrived"].columns
    after_six_hours = 0
    for id_, outcome, delay, time in zip(
        columns.column("id").to_pylist(),
        columns.column("outcome").to_pylist(),
        columns.column("arrival_delay").to_pylist(),
        year["arrived"].time.tolist(),
        strict=True,
    ):
        departure = scheduled[id_] + HOUR_MS
        if outcome == "cancelled":
            assert time == departure + 2.5 * HOUR_MS and delay is None and id_ not in left
        elif outcome == "diverted":
            assert delay is None and left[id_] <= time <= max(departure + 6 * HOUR_MS, left[id_])
            after_six_hours += time == departure + 6 * HOUR_MS
        else:
            assert time > left[id_] and delay is not None
    assert after_six_hours > 1_175 - 717
    assert raw["arr_delay"].null_count == 8_255 + 1_175


def test_every_label_comes_within_the_wait_of_the_app(year):
    asked = dict(zip(year["scheduled"].columns.column("id").to_pylist(), year["scheduled"].time, strict=True))
    events = np.array([asked[id_] for id_ in year["arrived"].columns.column("id").to_pylist()])
    delays = year["arrived"].time - events

    assert delays.min() > HOUR_MS  # asked an hour before departure, so no answer comes sooner
    assert 33 * HOUR_MS < delays.max() <= APP.label.wait_ms


def test_the_merged_order_is_that_of_time_and_keeps_the_order_of_each_kind(year):
    times, kinds = merge_order(year)

    assert len(times) == sum(len(records.time) for records in year.values())
    assert (np.diff(times) >= 0).all()
    for index, records in enumerate(year.values()):
        assert (times[kinds == index] == records.time).all()
    ties = np.diff(times) == 0
    assert (np.diff(kinds)[ties] >= 0).all()  # context, label, event


def test_until_keeps_whole_flights():
    records = flight_records(date(2013, 1, 3))

    scheduled = records["scheduled"].columns
    assert max(scheduled.column("scheduled_departure").to_pylist()) < datetime(2013, 1, 3)
    assert set(scheduled.column("id").to_pylist()) == set(records["arrived"].columns.column("id").to_pylist())
    assert records["weather"].time[-1] == milliseconds(2013, 1, 3)


@pytest.mark.parametrize("kind", list(SCHEMAS))
def test_what_is_encoded_is_read_back_by_fastavro(kind):
    records = flight_records(date(2013, 1, 2))[kind]
    schema = fastavro.parse_schema(SCHEMAS[kind])
    canonical = fastavro.schema.to_parsing_canonical_form(schema)
    frame = b"\xc3\x01" + bytes.fromhex(fastavro.schema.fingerprint(canonical, "CRC-64-AVRO"))

    values = InputEncoder(SCHEMAS[kind]).encode(records.columns)

    for value, fields in zip(values, records.columns.to_pylist(), strict=True):
        read, rest = read_value(SCHEMAS[kind], value)
        read = {name: one.replace(tzinfo=None) if isinstance(one, datetime) else one for name, one in read.items()}
        assert value[:10] == frame and rest == b"" and read == fields


# --- poison


def test_poison_cannot_be_read_or_is_refused_by_the_rules():
    good = {topic.name: InputEncoder(topic.schema).encode(first_row(topic.name))[0] for topic in APP.topics}
    samples = {name: Sample(4, value, b"NaN" if "weather" in name else None) for name, value in good.items()}

    made = make_poison(200, seed=7, first_time=0, last_time=1_000_000, samples=samples)

    assert len(made) == 200
    counts = Counter(one.kind for one in made)
    assert set(counts) == {*KINDS, "large"} and counts["large"] == LARGE_COUNT
    assert {(one.topic, one.partition) for one in made} == {(name, number) for name in samples for number in range(4)}
    assert [one.time for one in made] == sorted(one.time for one in made)
    assert max(np.diff([0, *(one.time for one in made), 1_000_000])) <= 2 * 1_000_000 / 200  # spread evenly
    schemas = {topic.name: topic.schema for topic in APP.topics}
    for one in made:
        if one.kind in ("truncated", "invalid_utf8", "large"):
            with pytest.raises((EOFError, ValueError, IndexError, OverflowError)):
                read_value(schemas[one.topic], one.value)
        elif one.kind == "trailing_bytes":
            assert read_value(schemas[one.topic], one.value)[1] != b""
        elif one.kind in ("unknown_schema", "deep_nesting"):
            assert one.value[:10] != good[one.topic][:10]
        else:
            assert (one.kind, one.key is None, one.value is None) in {
                ("null_key", True, False),
                ("null_value", False, True),
                ("nan", False, False),
            }
    assert made == make_poison(200, seed=7, first_time=0, last_time=1_000_000, samples=samples)
    assert made != make_poison(200, seed=8, first_time=0, last_time=1_000_000, samples=samples)


def first_row(topic: str):
    kind = next(str(one.schema["name"]).lower() for one in APP.topics if one.name == topic)
    return flight_records(date(2013, 1, 2))[kind].columns.slice(0, 1)


# --- publication, on a producer that keeps what it is given


class Sent(NamedTuple):
    topic: str
    partition: int
    key: bytes | None
    value: bytes | None
    time: int
    headers: dict[str, bytes]


class RecordingProducer:
    """Takes the place of librdkafka's: keeps records in order, is full now and then, fails on demand."""

    error: KafkaError | None = None

    def __init__(self, settings: dict[str, object]) -> None:
        self.settings = settings
        self.calls = 0
        self.sent: list[Sent] = []
        made.append(self)

    def list_topics(self, topic: str, timeout: float) -> SimpleNamespace:
        count = next(one.partitions for one in APP.topics if one.name == topic)
        return SimpleNamespace(topics={topic: SimpleNamespace(error=None, partitions=dict.fromkeys(range(count)))})

    def produce(self, topic, value=None, key=None, partition=-1, timestamp=0, headers=()) -> None:
        self.calls += 1
        if self.calls % 97 == 0:
            raise BufferError
        self.sent.append(Sent(topic, partition, key, value, timestamp, dict(headers)))

    def poll(self, timeout: float) -> int:
        if self.error:
            self.settings["on_delivery"](self.error, SimpleNamespace(topic=lambda: self.sent[-1].topic))
        return 0

    def flush(self) -> int:
        return self.poll(0)


made: list[RecordingProducer] = []


@pytest.fixture
def recording(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[RecordingProducer]]:
    monkeypatch.setattr(kafka_producer, "Producer", RecordingProducer)
    yield RecordingProducer
    made.clear()


def sent_week(**arguments: object) -> tuple[Published, list[Sent]]:
    published = publish("nowhere:1", app=APP, until=WEEK, **arguments)
    return published, made[-1].sent


def test_records_of_all_topics_are_sent_in_the_order_of_time(recording):
    published, sent = sent_week()

    times = [one.time for one in sent]
    assert times == sorted(times)
    assert len(sent) == published.total
    by_topic = Counter(one.topic for one in sent if not one.headers)
    assert by_topic == published.records
    expected = flight_records(WEEK)
    assert sorted(by_topic.values()) == sorted(len(records.time) for records in expected.values())
    assert made[-1].settings["enable.idempotence"] is True
    assert made[-1].settings["partitioner"] == "murmur2_random"


def test_a_punctuation_speaks_for_every_partition_and_nothing_before_it_follows(recording):
    published, sent = sent_week()

    last_punctuation: dict[tuple[str, int], int] = {}
    ticks: dict[tuple[str, int], list[int]] = {}
    for one in sent:
        if "tidemill.punctuation" in one.headers:
            assert (one.key, one.value) == (None, None)
            assert int(one.headers["tidemill.punctuation"]) == one.time
            last_punctuation[one.topic, one.partition] = one.time
            ticks.setdefault((one.topic, one.partition), []).append(one.time)
        else:  # its partition is the partitioner's choice: none of the topic may have promised more
            places = [place for place in last_punctuation if place[0] == one.topic]
            assert all(last_punctuation[place] < one.time for place in places)
    assert set(ticks) == {(topic.name, number) for topic in APP.topics for number in range(topic.partitions)}
    one_of_them, *others = ticks.values()
    assert all(other == one_of_them for other in others)
    assert all(time % (6 * HOUR_MS) == 0 for time in one_of_them[:-1])
    assert max(np.diff(one_of_them[:-1])) == 6 * HOUR_MS
    data_end = max(one.time for one in sent if not one.headers)
    assert one_of_them[-1] == published.end_time == data_end + APP.label.wait_ms + APP.label.allowed_lateness_ms + 1


def test_poison_is_counted_marked_and_bears_no_name_of_a_flight(recording):
    published, sent = sent_week(poison_count=100, seed=3)

    poison = [one for one in sent if HEADER in one.headers]
    assert len(poison) == 100 == sum(published.poison.values()) == sum(published.poison_kinds.values())
    assert Counter(one.headers[HEADER].decode() for one in poison) == published.poison_kinds
    assert Counter(one.topic for one in poison) == published.poison
    assert all(one.partition >= 0 and published.first_time <= one.time <= published.last_time for one in poison)
    keys = {one.key for one in sent if not one.headers}
    assert keys.isdisjoint({one.key for one in poison})
    ids = set(flight_records(WEEK)["scheduled"].columns.column("id").to_pylist())
    assert not any(id_.startswith("poison") for id_ in ids)


class KeptMessage(NamedTuple):
    """A sent record as the decoder reads it."""

    sent: Sent

    def key(self) -> bytes | None:
        return self.sent.key

    def value(self) -> bytes | None:
        return self.sent.value

    def headers(self) -> list[tuple[str, bytes | None]]:
        return list(self.sent.headers.items())

    def timestamp(self) -> tuple[int, int]:
        return 1, self.sent.time


def test_every_poison_becomes_a_dead_letter_and_every_other_record_is_read(recording):
    published, sent = sent_week(poison_count=200)
    names = [topic.name for topic in APP.topics]
    records = [
        SourceRecord(one.time, names.index(one.topic), max(one.partition, 0), offset, KeptMessage(one))
        for offset, one in enumerate(sent)
    ]

    batch = InputDecoder(APP).decode(records, {})

    is_poison = np.array([HEADER in one.headers for one in sent])
    assert ((batch.kind == Kind.DEAD_LETTER) == is_poison).all()
    assert len(batch.dead_letters) == 200
    assert {name: found.columns.num_rows for name, found in batch.records.items()} == published.records


def test_without_poison_the_records_are_the_same(recording):
    _, with_poison = sent_week(poison_count=50)
    published, without = sent_week(poison_count=0)

    assert [one for one in with_poison if HEADER not in one.headers] == without
    assert published.poison == {}


def test_progress_is_told_at_each_punctuation_and_ends_at_the_total(recording):
    told: list[flights.Progress] = []
    published, _ = sent_week(on_progress=told.append)

    assert len(told) == published.punctuations["flights.weather.v1"]
    assert [one.sent for one in told] == sorted(one.sent for one in told)
    assert told[-1].sent == told[-1].total == published.total - sum(published.punctuations.values())


def test_a_record_that_kafka_refuses_ends_the_stream_with_an_error(recording, monkeypatch):
    monkeypatch.setattr(RecordingProducer, "error", KafkaError(KafkaError.MSG_SIZE_TOO_LARGE))

    with pytest.raises(UnavailableError, match=r"TM-3010.*MSG_SIZE_TOO_LARGE"):
        sent_week()


def test_records_that_kafka_finds_too_old_are_told_by_the_setting_that_refuses_them(recording, monkeypatch):
    monkeypatch.setattr(RecordingProducer, "error", KafkaError(KafkaError.INVALID_TIMESTAMP))

    with pytest.raises(RecordError, match=r"TM-2053.* topic flights\..*before\.max\.ms; raise it"):
        sent_week()


def test_an_app_without_the_four_topics_is_refused(recording):
    poorer = dataclasses.replace(APP, topics=APP.topics[1:])

    with pytest.raises(ConfigError, match=r"TM-1009.*Weather"):
        publish("nowhere:1", app=poorer, until=WEEK)
    with pytest.raises(ConfigError, match="no flight is scheduled before"):
        publish("nowhere:1", app=APP, until=date(2012, 1, 1))


@pytest.mark.servers
def test_kafka_keeps_a_day_of_2013_in_order(servers, app_name):
    """Topics named anew, found by their schemas; partitions, timestamps and settings as the broker has them."""
    topics = tuple(dataclasses.replace(one, name=f"{app_name}.{one.name}") for one in APP.topics)
    app: AppSpec = dataclasses.replace(APP, topics=topics)

    published = run_producer(servers.bootstrap_servers, app=app, until=date(2013, 1, 2), poison_count=40)

    consumer = Consumer({"bootstrap.servers": servers.bootstrap_servers, "group.id": app_name})
    places = [TopicPartition(one.name, number, OFFSET_BEGINNING) for one in topics for number in range(one.partitions)]
    consumer.assign(places)
    messages = []
    deadline = monotonic() + 90
    while len(messages) < published.total:
        messages.extend(consumer.consume(1_000, timeout=0.2))
        assert monotonic() < deadline, f"only {len(messages)} of {published.total} records came"
    consumer.close()
    assert not any(message.error() for message in messages)
    watermark: dict[tuple[str, int], int] = {}
    partition_by_flight: dict[bytes, set[int]] = {}
    for message in messages:
        place, time = (message.topic(), message.partition()), message.timestamp()[1]
        headers = dict(message.headers() or ())
        is_punctuation = "tidemill.punctuation" in headers
        assert time > watermark.get(place, -1) if not is_punctuation else time >= watermark.get(place, -1)
        if is_punctuation:
            watermark[place] = time
        elif not headers and "weather" not in message.topic():
            partition_by_flight.setdefault(message.key(), set()).add(message.partition())
    assert set(watermark.values()) == {published.end_time}
    assert max(map(len, partition_by_flight.values())) == 1  # records of one flight meet on one partition number
    assert sum(HEADER in dict(message.headers() or ()) for message in messages) == 40
