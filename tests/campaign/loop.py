"""Monitor and trainer in a campaign: whether they are done, and whether they left each thing once.

In: a stream whose processes run, or have stopped. Out: done or not; what is wrong, "" = nothing. Invariant: only topics
and the trainer's position are read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TypeVar

from tests.campaign.stream import Stream
from tidemill.apps.pacing import AnsweredTicks
from tidemill.apps.story import read_story
from tidemill.core.topic_names import alerts_topic, drift_topic
from tidemill.io.kafka_reader import read_topic
from tidemill.io.loop_records import decode_alerts, decode_ticks

Record = TypeVar("Record")


class LoopEnd:
    """Asked again and again while the loop works; `close` it."""

    def __init__(self, stream: Stream) -> None:
        every = stream.settings.app.monitor.every_ms
        self._end = min(mark.watermark for mark in stream.marks().values()) // every * every
        self._answered = AnsweredTicks(stream.settings)

    def is_reached(self) -> bool:
        """Whether the last tick that the stream holds is answered."""
        return self._answered.includes(self._end)

    def close(self) -> None:
        self._answered.close()


def judge_loop(stream: Stream) -> dict[str, str]:
    """By check: ticks without gap and once each, alerts and story events once each."""
    app = stream.settings.app
    every = app.monitor.every_ms
    times = [tick.time for tick in _all(stream, drift_topic(app.name), decode_ticks)]
    gaps = [(before, after) for before, after in pairwise(times) if after - before != every]
    alerts = _all(stream, alerts_topic(app.name), decode_alerts)
    story = read_story(stream.settings)
    trained = [event.version for event in story if event.kind == "trained"]
    return {
        "ticks": f"not one a tick: {gaps[:3]}" if gaps or not times else "",
        "alerts": _twice([f"{alert.event} {alert.id} {alert.time}" for alert in alerts]),
        "story": _twice([event.id for event in story]),
        "trainings": "" if trained else "nothing was trained",
    }


def _all(stream: Stream, topic: str, read: Callable[[Sequence[bytes]], Sequence[Record]]) -> list[Record]:
    return [record for messages in read_topic(stream.clients, topic) for record in read([m.value() for m in messages])]


def _twice(names: Sequence[str]) -> str:
    again = [name for name, count in Counter(names).items() if count > 1]
    return f"{len(again)} twice: {again[:3]}" if again else ""
