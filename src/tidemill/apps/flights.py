"""Publish the flights of 2013 as a stream: four topics, in time order, as they would have come.

In: an app whose topics carry the schemas Scheduled, Departed, Arrived, Weather. Out: their records in Kafka, poison
between them, a punctuation in every partition each six hours of event time. Invariant: records are sent in the order of
their times, and after a punctuation T no record with a time up to T follows in its partition.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from tidemill.apps.flights_data import HOUR_MS, KINDS, Records, flight_records, merge_order
from tidemill.apps.flights_faults import Fault, with_faults
from tidemill.apps.flights_poison import POISON_AIRPORT, Poison, Sample, make_poison, poison_id
from tidemill.apps.topics import INPUT_CONFIG
from tidemill.core.spec import AppSpec, TopicSpec
from tidemill.errors import ConfigError
from tidemill.io.kafka import ensure_topics
from tidemill.io.kafka_producer import EventProducer
from tidemill.io.outputs import InputEncoder

PUNCTUATION_EVERY_MS = 6 * HOUR_MS  # about 700 records: a reader that waits for a quiet partition never waits long
CHUNK_RECORDS = 5_000  # encoded at once; the producer's callbacks are served between chunks
POISON_COUNT = 200  # one in 5,000 records of the year


class Progress(NamedTuple):
    """Reported after each punctuation: how far the stream is."""

    event_time: int  # milliseconds since the epoch, UTC
    sent: int  # records and poison so far
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """What was sent, by topic. Every record counted here was acknowledged by Kafka."""

    records: Mapping[str, int]
    poison: Mapping[str, int]
    punctuations: Mapping[str, int]
    poison_kinds: Mapping[str, int]
    first_time: int  # of the records, milliseconds since the epoch, UTC
    last_time: int
    end_time: int  # of the last punctuation: every label has come and every wait is over

    @property
    def total(self) -> int:
        return sum(sum(counts.values()) for counts in (self.records, self.poison, self.punctuations))


def run_producer(
    bootstrap_servers: str,
    *,
    app: AppSpec,
    until: date | None = None,
    poison_count: int = POISON_COUNT,
    seed: int = 0,
    faults: Sequence[Fault] = (),
    kafka: Mapping[str, str] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Published:
    """Create the app's input topics where they are missing, then publish; see `publish`."""
    admin_conf = {**(kafka or {}), "bootstrap.servers": bootstrap_servers}
    ensure_topics(admin_conf, {topic.name: topic.partitions for topic in app.topics}, INPUT_CONFIG)
    return publish(
        bootstrap_servers,
        app=app,
        until=until,
        poison_count=poison_count,
        seed=seed,
        faults=faults,
        kafka=kafka,
        on_progress=on_progress,
    )


def publish(
    bootstrap_servers: str,
    *,
    app: AppSpec,
    until: date | None = None,
    poison_count: int = POISON_COUNT,
    seed: int = 0,
    faults: Sequence[Fault] = (),
    kafka: Mapping[str, str] | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> Published:
    """Send all records, poison and punctuations, in time order; the topics exist.

    Args:
        app: its topics are found by the names of their schemas; its label rule tells when the stream ends.
        until: only flights scheduled to depart before this day (UTC); None: the whole year.
        seed: of the poison: same seed, same poison.
        faults: what breaks on purpose.
        kafka: settings for librdkafka, verbatim.
    Raises:
        ConfigError: TM-1008 no data, TM-1009 the app lacks one of the topics.
        UnavailableError: TM-3010 Kafka did not take records, TM-3011 a topic is missing.
    """
    topics = topics_by_kind(app)
    records = {kind: found for kind, found in flight_records(until).items() if len(found.time)}
    records = with_faults(records, faults)
    if not records:
        raise ConfigError("TM-1008", f"no flight is scheduled before {until}; the data begins on 2013-01-01")
    encoders = {kind: InputEncoder(topic.schema) for kind, topic in topics.items()}
    sender = EventProducer(bootstrap_servers, kafka or {})
    partitions = {topics[kind].name: sender.partition_count(topics[kind].name) for kind in KINDS}

    times, kind_indexes = merge_order(records)
    first_time, last_time = int(times[0]), int(times[-1])
    end_time = last_time + app.label.wait_ms + app.label.allowed_lateness_ms + 1
    samples = {
        topics[kind].name: _sample(partitions[topics[kind].name], topics[kind], found, encoders[kind])
        for kind, found in records.items()
    }
    poison = make_poison(poison_count, seed=seed, first_time=first_time, last_time=last_time, samples=samples)
    extras = iter(_extras(poison, first_time, last_time, end_time, app.monitor.every_ms))

    names = [topics[kind].name for kind in records]
    total = len(times) + len(poison)
    sent = 0
    extra = next(extras)
    produce, buffer_is_full = sender.producer.produce, sender.wait_for_room
    for chunk_times, chunk_kinds, rows in _chunks(times, kind_indexes, records, encoders):
        for time, kind_index in zip(chunk_times, chunk_kinds, strict=True):
            while extra.time < time:  # after all records up to its time, before the first one beyond
                _send_extra(sender, extra, partitions)
                if extra.poison is None and on_progress:
                    on_progress(Progress(extra.time, sent, total))
                sent += extra.poison is not None
                extra = next(extras)
            key, value = next(rows[kind_index])
            while True:
                try:
                    produce(names[kind_index], value, key, timestamp=time)
                    break
                except BufferError:
                    buffer_is_full()
            sent += 1
        sender.serve_callbacks()
    for rest in (extra, *extras):
        _send_extra(sender, rest, partitions)
        sent += rest.poison is not None
    sender.flush()
    if on_progress:
        on_progress(Progress(end_time, sent, total))
    return Published(
        records={topics[kind].name: len(found.time) for kind, found in records.items()},
        poison=Counter(one.topic for one in poison),
        poison_kinds=Counter(one.kind for one in poison),
        punctuations=sender.punctuations,
        first_time=first_time,
        last_time=last_time,
        end_time=end_time,
    )


class _Extra(NamedTuple):
    """What comes between the records: a poison record, or (None) a punctuation of every partition."""

    time: int
    order: int  # at the same time: poison, then the punctuation that speaks of it
    poison: Poison | None
    is_end: bool = False  # the last punctuation: nothing follows, so a bounded replay may close


def _extras(poison: tuple[Poison, ...], first_time: int, last_time: int, end_time: int, tick_ms: int) -> list[_Extra]:
    """In order of time; the last is the punctuation that ends the stream."""
    times = {
        time
        for every in (PUNCTUATION_EVERY_MS, tick_ms)
        for time in range(first_time + -first_time % every, last_time, every)
    }
    ordered = sorted([_Extra(one.time, 0, one) for one in poison] + [_Extra(time, 1, None) for time in times])
    return [*ordered, _Extra(end_time, 1, None, is_end=True)]


def topics_by_kind(app: AppSpec) -> dict[str, TopicSpec]:
    """The app's topics by the names of their schemas, whatever the topics are called."""
    found = {str(topic.schema["name"]).lower(): topic for topic in app.topics}
    if missing := [kind for kind in KINDS if kind not in found]:
        raise ConfigError(
            "TM-1009",
            f"app {app.name} has no topic whose schema is named {' or '.join(kind.capitalize() for kind in missing)}; "
            "see config/flights.yaml",
        )
    return {kind: found[kind] for kind in KINDS}


def _chunks(
    times: np.ndarray[tuple[int], np.dtype[np.int64]],
    kind_indexes: np.ndarray[tuple[int], np.dtype[np.int8]],
    records: Mapping[str, Records],
    encoders: Mapping[str, InputEncoder],
) -> Iterator[tuple[list[int], list[int], list[Iterator[tuple[bytes, bytes]]]]]:
    """Times and kinds of the next records in merged order, and by kind the keys and values in the same order."""
    starts = [0] * len(records)
    for begin in range(0, len(times), CHUNK_RECORDS):
        chunk = kind_indexes[begin : begin + CHUNK_RECORDS]
        counts = np.bincount(chunk, minlength=len(records)).tolist()
        rows: list[Iterator[tuple[bytes, bytes]]] = []
        for index, (kind, found) in enumerate(records.items()):
            part = found.columns.slice(starts[index], counts[index])
            keys = found.keys.slice(starts[index], counts[index]).cast(pa.binary()).to_pylist()
            rows.append(iter(zip(keys, encoders[kind].encode(part), strict=True)))
            starts[index] += counts[index]
        yield times[begin : begin + CHUNK_RECORDS].tolist(), chunk.tolist(), rows


def _sample(partitions: int, topic: TopicSpec, records: Records, encoder: InputEncoder) -> Sample:
    """The topic's first record under a name that no flight and no airport has."""
    first = records.columns.slice(0, 1)
    name, text = ("origin", POISON_AIRPORT) if records.kind == "weather" else ("id", poison_id(topic.name))
    first = first.set_column(first.schema.get_field_index(name), name, pa.array([text]))
    floats = [one.name for one in first.schema if pa.types.is_floating(one.type)]
    spoilt = first
    for one in floats:
        spoilt = spoilt.set_column(spoilt.schema.get_field_index(one), one, pa.array([float("nan")]))
    return Sample(partitions, encoder.encode(first)[0], encoder.encode(spoilt)[0] if floats else None)


def _send_extra(sender: EventProducer, extra: _Extra, partitions: Mapping[str, int]) -> None:
    if extra.poison is None:
        sender.punctuate(partitions, extra.time, stamp=extra.time, is_end=extra.is_end)
        return
    one = extra.poison
    sender.send(one.topic, one.partition, one.key, one.value, one.time, one.headers)
