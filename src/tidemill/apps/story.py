"""The story of the models in `<app>.models.v1`, and what people add to it by way of the alarm topic.

In: an app's settings. Out: the events as they were told; records of what a person wants. Invariant: the trainer is the
only writer of the story: people write to the alarm topic, and the trainer tells what became of it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from tidemill.apps.clients import clients_of
from tidemill.apps.topics import ensure_loop_topics
from tidemill.config import Settings
from tidemill.core.alerts import Alert
from tidemill.core.records import Output
from tidemill.core.spec import AppSpec
from tidemill.core.story import APPROVAL_KEY, DEMAND_KEY, REJECTION_KEY, StoryEvent
from tidemill.core.ticks import Tick
from tidemill.core.topic_names import alerts_topic, drift_topic, models_topic
from tidemill.io.kafka_producer import EventProducer
from tidemill.io.kafka_reader import read_topic
from tidemill.io.loop_records import decode_story, decode_ticks, encode_alerts, encode_story

RUNBOOK = "docs/runbooks/trigger.md"


def read_story(settings: Settings) -> list[StoryEvent]:
    """Every event that was told, in order; none when the trainer never ran."""
    ensure_loop_topics(settings)
    return story_of(clients_of(settings), settings.app)


def story_of(clients: Mapping[str, Any], app: AppSpec) -> list[StoryEvent]:
    """As `read_story`; the topic exists."""
    return [
        event
        for messages in read_topic(clients, models_topic(app.name))
        for event in decode_story([m.value() for m in messages])
    ]


def story_outputs(app: AppSpec, events: Sequence[StoryEvent]) -> list[Output]:
    """Records of the story, each under its version."""
    return [
        Output(models_topic(app.name), event.version.encode(), value)
        for event, value in zip(events, encode_story(events), strict=True)
    ]


def demand_training(settings: Settings, *, cause: str, by: str) -> Alert:
    """Ask the trainer for a training at its next look, whatever the cooldown says."""
    return _ask(settings, DEMAND_KEY, summary=cause, by=by, culprits=())


def approve_version(settings: Settings, version: str, *, cause: str, by: str) -> Alert:
    """Tell the trainer that a version may serve once it has proved itself."""
    return _ask(settings, APPROVAL_KEY, summary=cause, by=by, culprits=(version,))


def reject_version(settings: Settings, version: str, *, cause: str, by: str) -> Alert:
    """Tell the trainer that a version that waits for approval shall not go on."""
    return _ask(settings, REJECTION_KEY, summary=cause, by=by, culprits=(version,))


def _ask(settings: Settings, key: str, *, summary: str, by: str, culprits: tuple[str, ...]) -> Alert:
    ensure_loop_topics(settings)
    tick = _newest_tick(settings)
    asked = round(time.time() * 1_000)
    at = tick.time if tick else asked  # a replay of the past is told in the past's time
    alert = Alert(
        id=f"{key}@{asked}",
        key=key,
        kind="trigger",
        event="opened",
        severity="info",
        time=at,
        opened=asked,
        summary=summary,
        action="Nothing: the trainer answers it in the story of the models.",
        runbook=RUNBOOK,
        champion=tick.champion if tick else "",
        window_start=at,
        window_end=at,
        offset_next=tick.offset_next if tick else -1,
        culprits=culprits,
        by=by,
    )
    producer = EventProducer(settings.bootstrap_servers or "", settings.kafka)
    producer.send(alerts_topic(settings.app.name), 0, key.encode(), encode_alerts([alert])[0], asked, [])
    producer.flush()
    return alert


def _newest_tick(settings: Settings) -> Tick | None:
    clients = clients_of(settings)
    newest = None
    for messages in read_topic(clients, drift_topic(settings.app.name)):
        newest = messages[-1].value()
    return decode_ticks([newest])[0] if newest is not None else None
