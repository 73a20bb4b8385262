"""The logs that an audit reads: topics as of one moment, although the app may be running.

In: settings. Out: messages of a partition between two offsets. Invariant: what a transaction wrote before the moment is
read whole or, when it was aborted, not at all; a log that does not come forward ends the audit instead of hanging it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from tidemill.apps.clients import clients_of
from tidemill.apps.dead_letters import KafkaMessage
from tidemill.config import Settings
from tidemill.core.records import Partition
from tidemill.errors import UnavailableError
from tidemill.io import kafka
from tidemill.io.kafka_reader import LogEnds, LogReader
from tidemill.io.wire import decode_examples
from tidemill.models.replica import LogPart

READ_RECORDS = 10_000  # per step; bounds memory
PATIENCE_S = 30.0  # an open transaction of a dead worker ends after 10 s


class Logs(Protocol):
    """Topics of an app."""

    def partitions(self, topic: str) -> list[Partition]: ...

    def bounds(self, partition: Partition) -> tuple[int, int]:
        """First offset, and the next one behind what is committed now."""
        ...

    def ends(self, partitions: Sequence[Partition]) -> Mapping[Partition, int]:
        """The ends now, open transactions included."""
        ...

    def read(self, partition: Partition, start: int, end: int) -> Iterator[Sequence[KafkaMessage]]:
        """The committed records at offsets [start, end) that are kept, in order."""
        ...


class KafkaLogs:
    """Fulfils `Logs`."""

    def __init__(self, settings: Settings) -> None:
        self._clients: dict[str, Any] = clients_of(settings)

    def partitions(self, topic: str) -> list[Partition]:
        return kafka.partitions_of(self._clients, [topic])

    def bounds(self, partition: Partition) -> tuple[int, int]:
        return kafka.log_bounds(self._clients, [partition])[partition]

    def ends(self, partitions: Sequence[Partition]) -> Mapping[Partition, int]:
        return LogEnds(self._clients, partitions).ask()

    def read(self, partition: Partition, start: int, end: int) -> Iterator[Sequence[KafkaMessage]]:
        """
        Raises:
            UnavailableError: TM-3050, nothing more can be read although the log goes on.
        """
        reader = LogReader(self._clients, *partition)
        try:
            reader.seek(max(start, reader.first_offset()))
            moved_at, before = time.monotonic(), reader.position
            while reader.position < end:
                messages = reader.read(until_offset=end, timeout_s=1.0, max_records=READ_RECORDS)
                if messages:
                    yield messages
                if reader.position > before:
                    moved_at, before = time.monotonic(), reader.position
                elif time.monotonic() - moved_at > PATIENCE_S:
                    raise UnavailableError(
                        "TM-3050",
                        f"{partition} cannot be read past {before} for {PATIENCE_S:.0f} s although it ends at {end}: a "
                        "transaction is still open, or the broker does not answer; end its producer, then audit again",
                    )
        finally:
            reader.close()


class AuditHistory:
    """The examples log once more: what commands look back at. Fulfils `models.replica.History`."""

    def __init__(self, logs: Logs, examples: Partition, expected: Any) -> None:
        self._logs, self._examples, self._expected = logs, examples, expected

    def first_offset(self) -> int:
        return self._logs.bounds(self._examples)[0]

    def parts(self, start: int, end: int) -> Iterator[LogPart]:
        for messages in self._logs.read(self._examples, start, end):
            values, offsets = [m.value() or b"" for m in messages], [m.offset() for m in messages]
            yield LogPart(*decode_examples(values, offsets, self._expected))


def whole(logs: Logs, topic: str, ends: Mapping[Partition, int]) -> Iterator[Sequence[KafkaMessage]]:
    """All records of a topic before `ends`, partition after partition."""
    for partition in logs.partitions(topic):
        yield from logs.read(partition, 0, ends[partition])
