"""How a bounded replay keeps step with monitor and trainer: nothing of a tick is taken before the last is answered.

In: the ticks on `<app>.drift.v1`, the position of the trainer's group there, how far the worker has come. Out: the
event time up to which it may go on. Invariant: when it may, every command that the tick caused stands in the examples
log; so what models learned and served is a function of the records, whatever the processes' speeds.
"""

from __future__ import annotations

import time

from tidemill.apps.clients import clients_of
from tidemill.apps.topics import ensure_loop_topics, output_topics
from tidemill.config import Settings
from tidemill.core.records import Partition
from tidemill.core.topic_names import drift_topic, predictions_topic
from tidemill.errors import UnavailableError
from tidemill.io import kafka
from tidemill.io.kafka_reader import FOLLOW_WAIT_MS, LogReader
from tidemill.io.loop_records import decode_ticks
from tidemill.io.wire import decode

WAIT_BEYOND_TRAINING_S = 120.0  # worker, monitor and trainer together; they speak of their own stalls before


class AnsweredTicks:
    """Which ticks the trainer has answered. One thread owns it; `close` it."""

    def __init__(self, settings: Settings) -> None:
        ensure_loop_topics(settings)
        clients = clients_of(settings)
        self._at = Partition(drift_topic(settings.app.name), 0)
        self._reader = LogReader(clients, *self._at, fetch_wait_ms=FOLLOW_WAIT_MS)
        self._reader.seek(0)
        self._group = kafka.GroupOffsets(clients, f"tidemill.{settings.app.name}.trainer")
        self._ends: list[tuple[int, int]] = []  # (end of the tick, its offset)
        self.count = 0  # the next offset that the trainer has not answered

    @property
    def newest(self) -> int | None:
        """The end of the newest tick, answered or not."""
        return self._ends[-1][0] if self._ends else None

    def includes(self, end: int) -> bool:
        """Whether the trainer has answered the tick that ends at `end`, or a later one."""
        messages = self._reader.read(until_offset=None, timeout_s=0.0, max_records=1_000)
        ticks = decode_ticks([message.value() for message in messages])
        self._ends += [(tick.time, message.offset()) for tick, message in zip(ticks, messages, strict=True)]
        offset = next((offset for of_tick, offset in self._ends if of_tick >= end), None)
        if offset is None:
            return False
        if self.count <= offset:
            self.count = self._group.next_offset(self._at)
        return self.count > offset

    def close(self) -> None:
        self._reader.close()
        self._group.close()


class TickPacer:
    """What a paced worker may take. Its compute thread owns it; `close` it.

    limit: no record later than this event time may be taken now; -1 = none at all.
    is_waiting: whether it waits for an answer: no progress is then no stall.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._every_ms = settings.app.monitor.every_ms
        self._answered = AnsweredTicks(settings)
        self._patience_s = WAIT_BEYOND_TRAINING_S + (settings.app.retrain.timeout_s if settings.app.retrain else 0)
        self._first_end: int | None = None  # of the first tick there will be: that of the first event
        self._since: float | None = None
        self.limit = -1

    @property
    def is_waiting(self) -> bool:
        return self._since is not None

    def look(self, candidate: int, watermark: int) -> None:
        """Move the limit to the end of the tick of `candidate` if the ticks before it are answered.

        Args:
            candidate: the time of the worker's next record.
            watermark: the smallest one of the worker's own partitions: what is complete on its side. Ticks beyond it,
                of which nothing is there, cannot be answered and are not waited for.
        Raises:
            UnavailableError: TM-4034, monitor and trainer did not answer; do they run?
        """
        end = watermark // self._every_ms * self._every_ms
        if self._exists(end) and not self._answered.includes(end):
            now = time.monotonic()
            self._since = self._since or now
            if now - self._since > self._patience_s:
                raise UnavailableError(
                    "TM-4034",
                    f"the tick that ends at {end} has no answer after {self._patience_s:.0f} s; the newest ends at "
                    f"{self._answered.newest}, the trainer's position is {self._answered.count}; do `tidemill monitor` "
                    "and `tidemill trainer` of this app run? A worker that is not to wait for them needs no --paced",
                )
            return
        self._since = None
        self.limit = -(-candidate // self._every_ms) * self._every_ms

    def close(self) -> None:
        self._answered.close()

    def _exists(self, end: int) -> bool:
        """Whether a tick ends at `end`: ticks begin with that of the first event."""
        if self._first_end is None:
            first = self._first_event()
            if first is None:
                return False
            self._first_end = (first // self._every_ms + 1) * self._every_ms
        return end >= self._first_end

    def _first_event(self) -> int | None:
        """The smallest event time at the starts of the predictions' partitions; None: there is no prediction yet."""
        topic = predictions_topic(self._settings.app.name)
        clients = clients_of(self._settings)
        partitions = [Partition(topic, number) for number in range(output_topics(self._settings.app)[topic])]
        times: list[int] = []
        for partition, (start, end) in kafka.log_bounds(clients, partitions).items():
            if start == end:
                continue
            reader = LogReader(clients, *partition)
            reader.seek(start)
            values = [m.value() for m in reader.read(until_offset=end, timeout_s=1.0, max_records=1)]
            reader.close()
            times += decode("prediction.v1", values).column("event_time").to_pylist() if values else []
        return min(times, default=None)
