"""How a bounded replay keeps step with monitor and trainer: nothing of a tick is sent before the last one is answered.

In: the ticks on `<app>.drift.v1`, the position of the trainer's group there. Out: a call that returns once a tick is
answered. Invariant: when it returns, every command that the tick caused stands in the examples log; so what models
learned and served is a function of the records, whatever the processes' speeds.
"""

from __future__ import annotations

import time

from tidemill.apps.topics import drift_topic, ensure_loop_topics
from tidemill.config import Settings
from tidemill.core.records import Partition
from tidemill.errors import UnavailableError
from tidemill.io import kafka
from tidemill.io.kafka_reader import LogReader
from tidemill.io.loop_records import decode_ticks

ASK_AGAIN_S = 0.005
WAIT_BEYOND_TRAINING_S = 120.0  # worker, monitor and trainer together; they speak of their own stalls before


class TickPacer:
    """One thread owns it; `close` it."""

    def __init__(self, settings: Settings) -> None:
        app = settings.app
        ensure_loop_topics(settings)
        clients = kafka.client_settings(settings.bootstrap_servers or "", settings.kafka)
        self._at = Partition(drift_topic(app), 0)
        self._reader = LogReader(clients, *self._at)
        self._reader.seek(0)
        self._group = kafka.GroupOffsets(clients, f"tidemill.{app.name}.trainer")
        self._ends: list[tuple[int, int]] = []  # (end of the tick, its offset)
        self._answered = 0  # the next offset that the trainer has not answered
        self._patience_s = WAIT_BEYOND_TRAINING_S + (app.retrain.timeout_s if app.retrain else 0)
        self.waited_s = 0.0

    def wait(self, end: int) -> None:
        """Until the tick that ends at `end` is answered.

        Raises:
            UnavailableError: TM-4034, monitor and trainer did not answer; do they run?
        """
        started = time.monotonic()
        while not self.is_answered(end):
            if time.monotonic() - started > self._patience_s:
                newest = self._ends[-1][0] if self._ends else None
                raise UnavailableError(
                    "TM-4034",
                    f"the tick that ends at {end} has no answer after {self._patience_s:.0f} s; the newest ends at "
                    f"{newest}, the trainer has answered {self._answered} of them; do `tidemill worker`, `tidemill "
                    "monitor` and `tidemill trainer` of this app run?",
                )
            time.sleep(ASK_AGAIN_S)
        self.waited_s += time.monotonic() - started

    def close(self) -> None:
        self._reader.close()
        self._group.close()

    def is_answered(self, end: int) -> bool:
        """Whether the trainer has answered the tick that ends at `end`, or a later one."""
        messages = self._reader.read(until_offset=None, timeout_s=0.0, max_records=1_000)
        ticks = decode_ticks([message.value() for message in messages])
        self._ends += [(tick.time, message.offset()) for tick, message in zip(ticks, messages, strict=True)]
        offset = next((offset for of_tick, offset in self._ends if of_tick >= end), None)
        if offset is None:
            return False
        if self._answered <= offset:
            self._answered = self._group.next_offset(self._at)
        return self._answered > offset
