"""A monitor that starts again goes on from the incidents and triggers that are published, whatever has changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from watched_days import APP, CATEGORIES, MONITOR, NUMERIC

from tests.memory_kafka import Message
from tidemill.apps import monitor_ticks
from tidemill.apps.alerts import alert_output, incidents_of
from tidemill.apps.monitor_ticks import TickMaker, read_published
from tidemill.core import alert_findings
from tidemill.core.alerts import Alert
from tidemill.core.loop_spec import DAY_MS, RetrainSpec, TriggerSpec
from tidemill.core.records import Output, Partition
from tidemill.core.spec import AppSpec
from tidemill.core.surveillance import Surveillance
from tidemill.core.topic_names import alerts_topic, commits_topic
from tidemill.io.loop_records import decode_alerts
from tidemill.io.outputs import Encoder

RECORDS = 100  # of a day
BAD = 20  # of them dead letters: an incident
EVENTS = Partition("events", 0)
ON_OPERATIONS = RetrainSpec(
    any_of=(TriggerSpec(kind="alert", alert_kind="operations"),), examples_min=0, cooldown_ms=2 * DAY_MS
)
QUIET = replace(APP, retrain=None)
WITH_TRIGGERS = replace(APP, retrain=ON_OPERATIONS)


class Reader:
    """A partition in memory, as `LogReader` reads one."""

    def __init__(self, lane: list[Message]) -> None:
        self._lane, self.position = lane, 0

    def read(self, *, until_offset: int | None, timeout_s: float, max_records: int) -> list[Message]:
        found = self._lane[self.position : until_offset][:max_records]
        self.position += len(found)
        return found


class NoPredictions:
    """A log of predictions that holds none; the app has begun on day 0."""

    position = 0
    reader = SimpleNamespace(position=0)

    def first_time(self) -> int:
        return 5

    def is_read_beyond(self, end: int) -> bool:
        return True

    def cut(self, end: int, until_offset: int | None) -> None:
        return None


class World:
    """The topics of an app, of which a monitor sees dead letters only."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._lanes: dict[str, list[Message]] = {}
        self._day = 0
        self.said: list[str] = []
        monkeypatch.setattr(monitor_ticks, "read_topic", self._read_topic)

    def days(self, *dead_letters: int) -> None:
        for count in dead_letters:
            self._day += 1
            row = {
                "topic": "events", "partition": 0, "start": self._day, "next": self._day + 1, "worker": "w",
                "batch": self._day, "n": 0, "watermark": self._day * DAY_MS, "group_watermark": -1, "merge_rank": 0,
                "outcomes": [("prediction", RECORDS - count), ("event_dead_letter", count)],
                "joined": [], "waiting": [], "settled": [],
            }  # fmt: skip
            value = Encoder("commit.v1").encode({name: [one] for name, one in row.items()})[0]
            self._append(Output(commits_topic(APP.name), b"", value))

    def monitor(self, app: AppSpec) -> Surveillance:
        """Start one, let it publish every tick that is complete, and end it."""
        watch = Surveillance(app, NUMERIC, CATEGORIES, reference_of=lambda _: None)
        self.said = []
        maker = TickMaker(
            SimpleNamespace(app=app),  # type: ignore[arg-type]
            watch,
            partitions=[EVENTS],
            logs={Partition("predictions", 0): NoPredictions()},  # type: ignore[dict-item]
            commits=Reader(self._lane(commits_topic(app.name))),  # type: ignore[arg-type]
            alarms=Reader(self._lane(alerts_topic(app.name))),  # type: ignore[arg-type]
            ends=None,  # type: ignore[arg-type]
            published=read_published({}, app, self.said.append),
            on_examples=lambda _: None,
            on_predictions=lambda _: None,
        )
        while maker.take_commits(0.0):
            pass
        while (closed := maker.close_next()) is not None:
            for output in closed.outputs:
                self._append(output)
        return watch

    def acknowledge(self) -> None:
        """Somebody says so of the incident that was opened last."""
        opened = [alert for alert in self.alerts if alert.event == "opened" and alert.kind != "trigger"]
        if opened:
            self._append(alert_output(APP, replace(opened[-1], event="acknowledged", by="ann")))

    @property
    def alerts(self) -> list[Alert]:
        return decode_alerts([message.value() or b"" for message in self._lane(alerts_topic(APP.name))])

    @property
    def story(self) -> list[tuple[int, str, str]]:
        return [(alert.time // DAY_MS, alert.key, alert.event) for alert in self.alerts]

    def _lane(self, topic: str) -> list[Message]:
        return self._lanes.setdefault(topic, [])

    def _append(self, output: Output) -> None:
        lane = self._lane(output.topic)
        lane.append(Message(output.key, output.value, output.headers, 0, len(lane)))

    def _read_topic(self, _: object, topic: str) -> Iterator[Sequence[Message]]:
        yield from ([message] for message in self._lane(topic))


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


KEY = "operations/dead_letters"


def forbid_alerts(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a threshold that was raised."""
    monkeypatch.setattr(alert_findings, "OPERATIONS_SHARE", 1.0)


def test_an_incident_that_todays_settings_would_not_open_is_resolved_on_the_topic(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.days(0, BAD, BAD)
    world.monitor(QUIET)
    assert world.story == [(2, KEY, "opened")]
    forbid_alerts(monkeypatch)
    world.days(*[BAD] * (MONITOR.quiet_ms // DAY_MS))
    world.monitor(QUIET)

    assert "judged otherwise" in world.said[0] and "open incidents" in world.said[0]
    assert world.story[1:] == [(2 + MONITOR.quiet_ms // DAY_MS, KEY, "resolved")]
    assert [one.status for one in incidents_of(world.alerts)] == ["resolved"]


def test_an_incident_that_only_todays_settings_would_have_opened_opens_on_the_topic(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as before:
        forbid_alerts(before)
        world.days(0, BAD, BAD, BAD)
        world.monitor(QUIET)
    assert world.story == []
    world.days(BAD)
    world.monitor(QUIET)

    assert world.story == [(5, KEY, "opened")]


def test_a_trigger_that_was_never_published_holds_back_none(world: World) -> None:
    """`retrain:` is declared while an incident is open: the policy would have answered it days ago."""
    world.days(0, BAD, BAD)
    world.monitor(QUIET)
    world.days(0)
    world.monitor(WITH_TRIGGERS)

    assert world.story == [(2, KEY, "opened"), (4, "trigger/operations", "opened")]


def test_an_incident_that_was_answered_by_a_training_is_not_answered_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Today's settings know of neither, but both are published."""
    world.days(0, BAD)
    world.monitor(WITH_TRIGGERS)
    forbid_alerts(monkeypatch)
    world.days(0, 0)
    world.monitor(replace(APP, retrain=replace(ON_OPERATIONS, cooldown_ms=0)))

    assert world.story == [(2, KEY, "opened"), (2, "trigger/operations", "opened")]


def test_an_acknowledgement_of_before_the_change_still_stops_the_repeats(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.days(0, BAD)
    world.monitor(QUIET)
    world.acknowledge()
    world.days(BAD)
    world.monitor(QUIET)
    with monkeypatch.context() as otherwise:
        forbid_alerts(otherwise)  # the refold knows nothing to acknowledge
        world.days(0)
        world.monitor(QUIET)
    world.days(*[BAD] * 6)
    world.monitor(QUIET)

    assert [event for _, _, event in world.story] == ["opened", "acknowledged"]


DAYS = st.lists(st.tuples(st.sampled_from([0, BAD]), st.booleans()), min_size=2, max_size=14)


@settings(max_examples=20, deadline=None)
@given(DAYS)
def test_without_a_change_the_incidents_and_triggers_of_a_refold_are_those_of_the_topic(
    days: list[tuple[int, bool]],
) -> None:
    """On each day: dead letters, and whether a monitor starts behind it and somebody acknowledges what it says."""
    states = []
    take_over = Surveillance.take_over

    def compared(watch: Surveillance, records: Sequence[Alert]) -> None:
        before = state_of(watch)
        take_over(watch, records)
        states.append((before, state_of(watch)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Surveillance, "take_over", compared)
        world = World(patch)
        for dead_letters, is_watched in days:
            world.days(dead_letters)
            if is_watched:
                world.monitor(WITH_TRIGGERS)
                world.acknowledge()
        world.days(0)
        world.monitor(WITH_TRIGGERS)

    assert all(before == after for before, after in states)


def state_of(watch: Surveillance) -> tuple[object, ...]:
    book, triggers = watch.book, watch._triggers
    assert triggers is not None
    opened = [(one.first, one.newest, one.acknowledged_by) for one in book.incidents.values()]
    fired = {key: book._fired[key] for key in book.incidents}
    return opened, dict(book.resolved), fired, triggers._training, triggers._trigger_id
