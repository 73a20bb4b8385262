"""What the loop did, as an outsider reads it: alerts and the story of the models, in the order of event time.

In: the alarm topic and `<app>.models.v1`. Out: lines to show as they come, and the timeline at the end. Invariant: a
line is a function of one record; the timeline is the same whatever the speed at which it was read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tidemill.core.alerts import Alert
from tidemill.core.roles import INITIAL
from tidemill.core.spec import AppSpec
from tidemill.core.story import StoryEvent
from tidemill.core.topic_names import alerts_topic, models_topic
from tidemill.io.kafka_reader import FOLLOW_WAIT_MS, LogReader
from tidemill.io.loop_records import decode_alerts, decode_story

READ_RECORDS_MAX = 1_000
CULPRITS_SHOWN = 3
# How each step of the story reads; {version} and {parent} are filled in.
STEPS: Mapping[str, str] = {
    "triggered": "training begins",
    "declined": "no training",
    "failed": "training failed",
    "trained": "trained {version}",
    "gated": "{version} refused by the gate",
    "approval_asked": "{version} waits for approval",
    "approved": "{version} approved",
    "shadow": "{version} in shadow beside {parent}",
    "canary": "{version} serves a share",
    "promoted": "{version} serves, {parent} stays beside",
    "kept": "{version} stays",
    "rolled_back": "{version} serves again",
    "aborted": "{version} dropped",
    "frozen": "learner frozen",
    "thawed": "learner goes on",
    "excised": "learner forgets a range",
}


@dataclass(frozen=True, slots=True)
class LoopEntry:
    """One line of the timeline. order: alerts of a tick stand before what was done about them."""

    time: int
    order: tuple[int, int]  # (0 alert, 1 story; offset)
    what: str  # "alert" or "model"
    text: str
    cause: str = ""

    @property
    def line(self) -> str:
        moment = datetime.fromtimestamp(self.time / 1_000, UTC).strftime("%Y-%m-%d")
        cause = f" · because of {self.cause}" if self.cause else ""
        return f"{moment} {self.what}: {self.text}{cause}"


class LoopFollower:
    """One thread owns it; `close` it."""

    def __init__(self, clients: Mapping[str, Any], app: AppSpec) -> None:
        self._alerts = LogReader(clients, alerts_topic(app.name), 0, fetch_wait_ms=FOLLOW_WAIT_MS)
        self._story = LogReader(clients, models_topic(app.name), 0, fetch_wait_ms=FOLLOW_WAIT_MS)
        for reader in (self._alerts, self._story):
            reader.seek(0)
        self._entries: list[LoopEntry] = []

    def look(self) -> list[LoopEntry]:
        """What is new."""
        found: list[LoopEntry] = []
        messages = self._alerts.read(until_offset=None, timeout_s=0.0, max_records=READ_RECORDS_MAX)
        for message, alert in zip(messages, decode_alerts([m.value() for m in messages]), strict=True):
            found.append(LoopEntry(alert.time, (0, message.offset()), "alert", alert_text(alert)))
        messages = self._story.read(until_offset=None, timeout_s=0.0, max_records=READ_RECORDS_MAX)
        for message, event in zip(messages, decode_story([m.value() for m in messages]), strict=True):
            found.append(LoopEntry(event.time, (1, message.offset()), "model", story_text(event), event.cause))
        self._entries += found
        return found

    def timeline(self) -> tuple[LoopEntry, ...]:
        """Everything so far, by event time."""
        return tuple(sorted(self._entries, key=lambda entry: (entry.time, entry.order)))

    def close(self) -> None:
        self._alerts.close()
        self._story.close()


def alert_text(alert: Alert) -> str:
    """An alert in one line."""
    culprits = f" ({', '.join(alert.culprits[:CULPRITS_SHOWN])})" if alert.culprits else ""
    return f"{alert.key} {alert.event}, {alert.severity}: {alert.summary}{culprits}"


def story_text(event: StoryEvent) -> str:
    """A step in one line."""
    names = {"version": event.version or INITIAL, "parent": event.parent or INITIAL}
    verdict = f": {event.verdict}" if event.verdict else ""
    return STEPS[event.kind].format(**names) + verdict
