"""Files are published in the order of time across topics, with true punctuations, at the pace asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest

from tidemill.apps import produce
from tidemill.apps.produce import PUNCTUATION_EVERY_MS, FilesPublished, Pace, publish_files
from tidemill.core.spec import AppSpec, LabelSpec, TopicSpec
from tidemill.errors import RecordError
from tidemill.io import kafka_producer
from tidemill.io.kafka import TIMESTAMP_AFTER_MAX
from tidemill.io.partitioner import partitions_of
from tidemill.io.source import END_HEADER, PUNCTUATION_HEADER

HOUR = 3_600_000
SCHEMA = {"type": "record", "name": "Row", "fields": [{"name": "no", "type": "long"}]}
PARTITIONS = {"context": 1, "labels": 2, "events": 3}
APP = AppSpec(
    name="app",
    topics=tuple(
        TopicSpec(name=name, role=role, schema=SCHEMA, id_field="no", partitions=PARTITIONS[name])
        for name, role in (("events", "event"), ("labels", "label"), ("context", "context"))
    ),
    label=LabelSpec(positive_if_any=(), wait_ms=HOUR, allowed_lateness_ms=5),
    groups=(),
)


class Sent(NamedTuple):
    topic: str
    partition: int
    key: bytes | None
    time: int
    headers: dict[str, bytes]
    at: float  # of the wall clock


class Clock:
    """Stands still unless somebody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class RecordingProducer:
    sent: list[Sent]
    clock: Clock

    def __init__(self, settings: dict[str, object]) -> None:
        pass

    def list_topics(self, topic: str, timeout: float) -> SimpleNamespace:
        found = SimpleNamespace(error=None, partitions=dict.fromkeys(range(PARTITIONS[topic])))
        return SimpleNamespace(topics={topic: found})

    def produce(self, topic, value=None, key=None, partition=-1, timestamp=0, headers=()) -> None:
        assert (value is None) == bool(headers)
        self.sent.append(Sent(topic, partition, key, timestamp, dict(headers), self.clock.now))

    def poll(self, timeout: float) -> int:
        return 0

    def flush(self) -> int:
        return 0


@pytest.fixture(autouse=True)
def recording(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    RecordingProducer.sent, RecordingProducer.clock = [], Clock()
    monkeypatch.setattr(kafka_producer, "Producer", RecordingProducer)
    monkeypatch.setattr(produce, "ensure_topics", lambda *_: [])
    monkeypatch.setattr(produce, "topic_settings", lambda _, topics: dict.fromkeys(topics))
    monkeypatch.setattr(produce, "clock", RecordingProducer.clock)
    yield


def published(folder: Path, times: dict[str, list[int]], **options: object) -> tuple[FilesPublished, list[Sent]]:
    paths = {}
    for topic, found in times.items():
        paths[topic] = [folder / f"{topic}.csv"]
        lines = "".join(f"{time},{at}\n" for at, time in enumerate(found))
        paths[topic][0].write_text("_time,no\n" + lines)
    result = publish_files("nowhere:1", app=APP, files=paths, **options)  # type: ignore[arg-type]
    return result, RecordingProducer.sent


def test_records_come_in_the_order_of_time_and_what_is_known_before_what_is_asked(tmp_path: Path):
    result, sent = published(tmp_path, {"events": [1, 2, 2, 5], "labels": [2, 3], "context": [2, 9]})

    assert [(one.time, one.topic) for one in sent] == [
        (1, "events"),
        *((2, topic) for topic in ("context", "labels", "events", "events")),
        (3, "labels"),
        (5, "events"),
        (9, "context"),
    ]
    assert [one.key for one in sent if one.topic == "events"] == [b"0", b"1", b"2", b"3"]
    assert all(partitions_of([one.key], PARTITIONS[one.topic])[0] == one.partition for one in sent if one.key)
    assert result.records == {"events": 4, "labels": 2, "context": 2}
    assert (result.first_time, result.last_time, result.end_time) == (1, 9, None)


def test_punctuation_stands_behind_every_record_up_to_its_time_and_before_the_later_ones(tmp_path: Path):
    every = PUNCTUATION_EVERY_MS
    times = {"events": [every - 1, every, every + 1, 3 * every], "labels": [every, 3 * every + 1]}

    result, sent = published(tmp_path, times, ends=True)

    punctuations = [one for one in sent if one.key is None]
    for at, one in enumerate(sent):
        if one.key is None:
            time = int(one.headers[PUNCTUATION_HEADER])
            assert all(other.time <= time for other in sent[:at])
            assert all(other.time > time for other in sent[at:] if other.key is not None)
    end = 3 * every + 1 + HOUR + 5 + 1
    assert result.end_time == end
    told = [int(one.headers[PUNCTUATION_HEADER]) for one in punctuations]
    assert told == [time for time in (every, 2 * every, 3 * every, end) for _ in range(5)]
    assert [END_HEADER in one.headers for one in punctuations] == [False] * 15 + [True] * 5
    assert result.punctuations == {"events": 12, "labels": 8}


def test_every_partition_learns_that_a_tick_is_over_before_anything_later_is_sent(tmp_path: Path):
    day = APP.monitor.every_ms
    times = {"context": [1], "events": [day + 1, 2 * day, 2 * day + 1, 4 * day + 1]}

    _, sent = published(tmp_path, times)

    for end in (day, 2 * day, 3 * day, 4 * day):
        told = [at for at, one in enumerate(sent) if one.key is None and one.time == end]
        assert len(told) == 4
        assert all(one.time <= end for one in sent[: told[0]]) and all(one.time > end for one in sent[told[-1] + 1 :])


def test_end_is_stamped_no_later_than_the_last_record_though_it_tells_of_days_ahead(tmp_path: Path):
    result, sent = published(tmp_path, {"events": [5, 9]}, ends=True)

    ends = [one for one in sent if END_HEADER in one.headers]
    assert result.end_time == 9 + HOUR + 5 + 1
    assert {(one.time, int(one.headers[PUNCTUATION_HEADER])) for one in ends} == {(9, result.end_time)}


def test_topics_without_end_stay_open(tmp_path: Path):
    _, sent = published(tmp_path, {"events": [1, 2]})
    assert not any(one.headers for one in sent)


def test_rate_and_speed_space_the_records(tmp_path: Path):
    _, sent = published(tmp_path, {"events": [0, 100, 200, 300]}, pace=Pace(records_per_s=2))
    assert waits(sent) == pytest.approx([0, 0.5, 1, 1.5])

    sent.clear()
    published(tmp_path, {"events": [0, 10_000, 10_000, 50_000]}, pace=Pace(speed=10))
    assert waits(sent) == pytest.approx([0, 1, 1, 5])


def waits(sent: list[Sent]) -> list[float]:
    """When each record was sent, in seconds after the first."""
    return [one.at - sent[0].at for one in sent if one.key is not None]


def test_nothing_is_sent_of_files_with_a_bad_row(tmp_path: Path):
    with pytest.raises(RecordError, match=r"labels\.csv:3"):
        published(tmp_path, {"events": [1, 2], "labels": [4, 3]})
    assert not RecordingProducer.sent


@pytest.mark.parametrize(("last", "is_refused"), [(100_000 + HOUR, False), (100_000 + HOUR + 1, True)])
def test_nothing_is_sent_of_files_that_go_further_ahead_than_a_topic_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: int, is_refused: bool
):
    limits = {TIMESTAMP_AFTER_MAX: str(HOUR)}
    monkeypatch.setattr(produce, "topic_settings", lambda _, topics: dict.fromkeys(topics, limits))
    with (
        pytest.raises(RecordError, match=rf"TM-2053 .*topic labels .*{last} .*nothing was sent")
        if is_refused
        else nullcontext()
    ):
        published(tmp_path, {"events": [1, 2], "labels": [4, last]})
    assert bool(RecordingProducer.sent) is not is_refused


def test_a_broker_that_stamps_by_itself_takes_any_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    limits = {TIMESTAMP_AFTER_MAX: "0", "message.timestamp.type": "LogAppendTime"}
    monkeypatch.setattr(produce, "topic_settings", lambda _, topics: dict.fromkeys(topics, limits))
    published(tmp_path, {"events": [10**12]}, pace=Pace(records_per_s=2))
    assert RecordingProducer.sent


def test_a_file_that_is_played_as_fast_as_it_happens_may_reach_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    limits = {TIMESTAMP_AFTER_MAX: "0"}
    monkeypatch.setattr(produce, "topic_settings", lambda _, topics: dict.fromkeys(topics, limits))
    published(tmp_path, {"events": [100_000, 101_000]}, pace=Pace(speed=1))
    assert RecordingProducer.sent
