"""What the trainer reads of the alarm topic: the records that a tick names, and what people want.

In: `<app>.alerts.v1` from its start. Out: ticks with their records; demands and approvals that have no answer yet.
Invariant: a record counts once, however often the topic is read: what was answered stands in the story.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from tidemill.core.alerts import Alert
from tidemill.core.spec import AppSpec
from tidemill.core.story import PEOPLES_KEYS
from tidemill.core.ticks import Tick
from tidemill.core.topic_names import alerts_topic
from tidemill.errors import StateLostError
from tidemill.io.kafka_reader import FOLLOW_WAIT_MS, LogReader
from tidemill.io.loop_records import decode_alerts, decode_ticks

READ_RECORDS_MAX = 10_000
# A tick and its records are one transaction, but each topic shows it on its own, milliseconds apart.
PATIENCE_S = 20.0
LOOK_AGAIN_S = 0.01


class Inbox:
    """One thread owns it; `close` it."""

    def __init__(self, clients: Mapping[str, Any], app: AppSpec) -> None:
        self._reader = LogReader(clients, alerts_topic(app.name), 0, fetch_wait_ms=FOLLOW_WAIT_MS)
        self._reader.seek(self._reader.first_offset())
        self._of_ticks: dict[int, list[Alert]] = {}
        self._answered_until = -1
        self._wishes: dict[str, Alert] = {}
        self._answered: set[str] = set()

    def wishes(self) -> list[Alert]:
        """Demands, approvals and rejections without an answer, oldest first."""
        self._look(0.0)
        return list(self._wishes.values())

    def settle(self, cause: str) -> None:
        """A wish has its answer in the story."""
        self._answered.add(cause)
        self._wishes.pop(cause, None)

    def tick_of(self, value: bytes) -> Tick:
        """A tick with its records.

        Raises:
            StateLostError: TM-4120, the alarm topic does not hold a record that the tick names.
        """
        time_ms = decode_ticks([value])[0].time
        deadline = time.monotonic() + PATIENCE_S
        while True:
            self._look(0.0)
            try:
                return decode_ticks([value], self._of_ticks.get(time_ms, ()))[0]
            except StateLostError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(LOOK_AGAIN_S)

    def forget(self, until: int) -> None:
        """Ticks up to this one are answered: their records are needed no more."""
        self._answered_until = max(until, self._answered_until)
        for time_ms in [one for one in self._of_ticks if one <= self._answered_until]:
            del self._of_ticks[time_ms]

    def close(self) -> None:
        self._reader.close()

    def _look(self, timeout_s: float) -> None:
        messages = self._reader.read(until_offset=None, timeout_s=timeout_s, max_records=READ_RECORDS_MAX)
        for alert in decode_alerts([message.value() for message in messages]):
            if alert.key in PEOPLES_KEYS and alert.event == "opened":
                if alert.id not in self._answered:
                    self._wishes.setdefault(alert.id, alert)
            elif alert.time > self._answered_until:
                self._of_ticks.setdefault(alert.time, []).append(alert)
