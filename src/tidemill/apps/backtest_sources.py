"""A backtest's records from Kafka: ranges of the topics, and the batches that a live run cut of them.

In: an app's settings. Out: lanes for `apps.backtest_run`. Invariant: offsets are those of the topics.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from tidemill.apps.backtest_run import GivenCut
from tidemill.apps.clients import clients_of
from tidemill.config import Settings
from tidemill.core.merge import Offered
from tidemill.core.records import Partition, Span
from tidemill.core.topic_names import commits_topic
from tidemill.errors import StateLostError
from tidemill.io import kafka
from tidemill.io.kafka_reader import LogReader, read_topic
from tidemill.io.offered import offered
from tidemill.io.wire import decode

READ_RECORDS_MAX = 5_000


def kafka_ranges(settings: Settings) -> dict[Partition, tuple[int, int]]:
    """The offsets [start, end) that the app's input topics hold now."""
    clients = clients_of(settings)
    return dict(kafka.log_bounds(clients, kafka.partitions_of(clients, [topic.name for topic in settings.app.topics])))


def kafka_lanes(
    settings: Settings, ranges: Mapping[Partition, tuple[int, int]]
) -> dict[Partition, Iterator[list[Offered]]]:
    """The records of each range, read as they are needed."""
    return {partition: _read(settings, partition, *bounds) for partition, bounds in ranges.items()}


def recorded_cuts(settings: Settings) -> list[GivenCut]:
    """The batches of a run of one worker, from the commits log.

    Raises:
        StateLostError: TM-4120, the log tells of several workers: their batches have no single order.
    """
    batches: dict[int, GivenCut] = {}
    workers: set[str] = set()
    for messages in read_topic(clients_of(settings), commits_topic(settings.app.name)):
        for row in decode("commit.v1", [message.value() for message in messages]).to_pylist():
            workers.add(row["worker"])
            cut = batches.setdefault(row["batch"], GivenCut({}, row["group_watermark"], row["n"]))
            span = Span(row["start"], row["next"], row["watermark"], False)
            batches[row["batch"]] = cut._replace(spans={**cut.spans, Partition(row["topic"], row["partition"]): span})
    if len(workers) > 1:
        raise StateLostError(
            "TM-4120", f"commits of {len(workers)} workers: only a run of one worker can be repeated batch by batch"
        )
    return [batches[number] for number in sorted(batches)]


def _read(settings: Settings, partition: Partition, start: int, end: int) -> Iterator[list[Offered]]:
    reader = LogReader(clients_of(settings), partition.topic, partition.number)
    reader.seek(start)
    try:
        while reader.position < end:
            messages = reader.read(until_offset=end, timeout_s=1.0, max_records=READ_RECORDS_MAX)
            if messages:
                yield [offered(message, message.offset()) for message in messages]
    finally:
        reader.close()
