"""Publish files as the topics of an app: every record at its time, in the order of time across topics.

In: files by topic. Out: records in Kafka, stamped with their times, and punctuations. Invariant: when a punctuation of
time t stands in a partition, every record up to t that the files have for it stands before it.
"""

from __future__ import annotations

import heapq
import time as clock
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tidemill.apps.topics import INPUT_CONFIG
from tidemill.core.merge import RANKS
from tidemill.core.spec import AppSpec, TopicSpec
from tidemill.io.files import read_records
from tidemill.io.kafka import TIMESTAMP_AFTER_MAX, client_settings, ensure_topics, topic_settings
from tidemill.io.kafka_producer import EventProducer, refused_stamps
from tidemill.io.partitioner import partitions_of

PUNCTUATION_EVERY_MS = 6 * 3_600_000  # a reader that waits for a quiet partition learns how far the others are
CALLBACKS_EVERY = 1_000  # records: errors of the broker are heard that often
SLEEP_MIN_S = 0.005  # shorter waits are left to the next record


class Progress(NamedTuple):
    """How far publishing is. time: of the last record, ms."""

    sent: int
    time: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FilesPublished:
    """What was sent, by topic, and acknowledged by Kafka. Times in ms, -1 = no record; end_time: of the punctuation
    that ends the topics, None = they go on."""

    records: Mapping[str, int]
    punctuations: Mapping[str, int]
    first_time: int
    last_time: int
    end_time: int | None


class Pace(NamedTuple):
    """How fast records are sent; without either as fast as they are taken."""

    records_per_s: float | None = None
    speed: float | None = None  # seconds of event time in a second


class _Record(NamedTuple):
    """Sorts by merged order; `row` keeps the order of a topic's files."""

    time: int
    rank: int
    topic_index: int
    row: int
    partition: int
    key: bytes
    value: bytes


def publish_files(
    bootstrap_servers: str,
    *,
    app: AppSpec,
    files: Mapping[str, Sequence[Path]],
    pace: Pace = Pace(),  # noqa: B008
    ends: bool = False,
    kafka: Mapping[str, str] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> FilesPublished:
    """Create the topics that are missing and send the records of `files` (paths by topic, each in the order of time).

    Every 6 h of event time and at every tick's end, and at the end when `ends`, a punctuation says in all partitions
    of these topics that nothing earlier follows. The last one lies behind the wait of the last event, so that every
    outcome is resolved.

    Raises:
        ConfigError, RecordError: a file cannot be read, see `io.files`; TM-2053 Kafka refuses times far ahead.
        UnavailableError: TM-3010 Kafka did not take records.
    """
    topics = [topic for topic in app.topics if topic.name in files]
    last_times: dict[str, int] = {}
    for topic in topics:  # once without Kafka: a bad row must not leave half a file in a topic
        for chunk in read_records(topic, files[topic.name]):
            last_times[topic.name] = int(chunk.time[-1])
    settings = client_settings(bootstrap_servers, kafka)
    ensure_topics(settings, {topic.name: topic.partitions for topic in topics}, INPUT_CONFIG)
    if pace.speed is None:  # else a row may be as far ahead as it is sent later
        _refuse_times_ahead(settings, last_times)
    sender = EventProducer(bootstrap_servers, kafka or {})
    partitions = {topic.name: sender.partition_count(topic.name) for topic in topics}
    counts: Counter[str] = Counter(dict.fromkeys(partitions, 0))
    names = [topic.name for topic in topics]
    waiting = _Pacemaker(pace, sender)
    tick_ms = app.monitor.every_ms
    first, last, next_punctuation = -1, -1, 0
    for sent, record in enumerate(_merged(topics, files, partitions)):
        if first < 0:
            first = record.time
            next_punctuation = _next_punctuation(first - 1, tick_ms)
        while next_punctuation < record.time:
            sender.punctuate(partitions, next_punctuation, stamp=next_punctuation, is_end=False)
            next_punctuation = _next_punctuation(next_punctuation, tick_ms)
        waiting.wait(sent, record.time)
        name = names[record.topic_index]
        sender.send(name, record.partition, record.key, record.value, record.time, [])
        counts[name] += 1
        last = record.time
        if (sent + 1) % CALLBACKS_EVERY == 0:
            sender.serve_callbacks()
            if on_progress:
                on_progress(Progress(sent + 1, last))
    end = max(last, 0) + app.label.wait_ms + app.label.allowed_lateness_ms + 1 if ends else None
    if end is not None:
        # Behind the wait of the last event may be days from now; Kafka takes no stamp so far ahead.
        sender.punctuate(partitions, end, stamp=max(last, 0), is_end=True)
    sender.flush()
    return FilesPublished(
        records=counts, punctuations=sender.punctuations, first_time=first, last_time=last, end_time=end
    )  # fmt: skip


def _refuse_times_ahead(settings: Mapping[str, Any], last_times: Mapping[str, int]) -> None:
    """As the broker would in mid-stream, wherever this user may see what it takes."""
    now_ms = round(clock.time() * 1_000)
    for name, found in topic_settings(settings, list(last_times)).items():
        if found is None or found.get("message.timestamp.type") == "LogAppendTime":
            continue
        limit = found.get(TIMESTAMP_AFTER_MAX)
        if limit is not None and last_times[name] > now_ms + int(limit):
            raise refused_stamps(name, last_times[name], now_ms, "nothing was sent")


def _next_punctuation(time: int, tick_ms: int) -> int:
    """The first time after `time` that ends six hours or a tick."""
    return min((time // every + 1) * every for every in (PUNCTUATION_EVERY_MS, tick_ms))


def _merged(
    topics: Sequence[TopicSpec], files: Mapping[str, Sequence[Path]], partitions: Mapping[str, int]
) -> Iterator[_Record]:
    return heapq.merge(
        *(_records(index, topic, files[topic.name], partitions[topic.name]) for index, topic in enumerate(topics))
    )


def _records(index: int, topic: TopicSpec, paths: Sequence[Path], partition_count: int) -> Iterator[_Record]:
    rank, row = RANKS[topic.role], 0
    for chunk in read_records(topic, paths):
        numbers = partitions_of(chunk.keys, partition_count).tolist()
        for time, number, key, value in zip(chunk.time.tolist(), numbers, chunk.keys, chunk.values, strict=True):
            yield _Record(time, rank, index, row, number, key, value)
            row += 1


class _Pacemaker:
    """Waits until a record is due. A wait flushes: what was sent is not to linger in a buffer."""

    def __init__(self, pace: Pace, sender: EventProducer) -> None:
        self._pace, self._sender = pace, sender
        self._start: tuple[float, int] | None = None  # of the wall clock in s, of event time in ms

    def wait(self, sent: int, time: int) -> None:
        if self._start is None:
            self._start = clock.monotonic(), time
        start, first = self._start
        due = start
        if self._pace.records_per_s is not None:
            due = max(due, start + sent / self._pace.records_per_s)
        if self._pace.speed is not None:
            due = max(due, start + (time - first) / 1_000 / self._pace.speed)
        while (left := due - clock.monotonic()) > SLEEP_MIN_S:
            self._sender.serve_callbacks()
            clock.sleep(min(left, 1.0))
