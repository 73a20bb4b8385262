"""The trainer: decides at each tick of the monitor, trains, and writes commands.

In: `<app>.drift.v1` tick by tick, `<app>.alerts.v1`. Out: story events on `<app>.models.v1`, commands in
`<app>.examples.v1`, and the position of the group `tidemill.<app>.trainer` on the ticks, in one transaction. Invariant:
a tick is answered once: who is killed before the commit finds the tick again, trains the same version again and writes
the same; no transaction is open while it trains; a second trainer of an app fences the first.
"""

from __future__ import annotations

import copy
import os
import signal
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from tidemill.apps.clients import clients_of
from tidemill.apps.failpoints import failpoint
from tidemill.apps.loop_following import story_text
from tidemill.apps.rounds import RoundTask, retrain_spec
from tidemill.apps.story import story_of, story_outputs
from tidemill.apps.topics import ensure_loop_topics, ensure_output_topics
from tidemill.apps.trainer_inbox import Inbox
from tidemill.apps.training_process import TrainingProcess, TrainingStopped
from tidemill.config import Settings
from tidemill.core.alerts import Alert
from tidemill.core.decisions import Decision, Order
from tidemill.core.records import Output, Partition
from tidemill.core.roles import OffsetRange
from tidemill.core.spec import AppSpec
from tidemill.core.steering import Steering
from tidemill.core.story import APPROVAL_KEY, DEMAND_KEY, StoryEvent, StoryKind
from tidemill.core.ticks import Tick
from tidemill.core.topic_names import drift_topic, examples_topic
from tidemill.errors import InvariantError
from tidemill.io import kafka
from tidemill.io.kafka_reader import FOLLOW_WAIT_MS, LogReader
from tidemill.io.kafka_writer import TransactionalWriter, group_metadata
from tidemill.io.loop_records import decode_ticks
from tidemill.io.telemetry import TrainerTelemetry
from tidemill.io.wire import Encoder

READ_RECORDS_MAX = 1_000
WAIT_S = 0.1  # for a tick, when there is none; what people want is looked for as often
DECISIONS_MAX = 100  # rounds of decisions at one tick: more would never end
NICENESS = 10  # who serves goes first


def trainer_id(app: AppSpec) -> str:
    """The group and the transactional id of an app's trainer."""
    return f"tidemill.{app.name}.trainer"


@dataclass(frozen=True, slots=True)
class _Step:
    """One thing that is done: what to tell, and the commands that do it."""

    event: StoryEvent
    orders: tuple[Order, ...] = ()


class Trainer:
    """One thread owns it; `close` it."""

    def __init__(
        self,
        settings: Settings,
        *,
        is_bounded: bool,
        is_stopped: Callable[[], bool],
        telemetry: TrainerTelemetry,
        report: Callable[[str], None],
    ) -> None:
        """`is_bounded`: a replay, in which a training takes `latency_ms` of event time; live it takes what it takes."""
        app = settings.app
        self._app = app
        self._spec = retrain_spec(app)
        self._latency_ms = self._spec.latency_ms if is_bounded else 0
        self._is_stopped = is_stopped
        self._telemetry = telemetry
        self._report = report
        self._clients = clients_of(settings)
        ensure_output_topics(settings)
        ensure_loop_topics(settings)
        self._process = TrainingProcess(settings, is_stopped=is_stopped)
        self._encoder = Encoder("command.v1")

        # The writer comes first: a predecessor's transaction is over before its story and position are read.
        self._writer = TransactionalWriter(self._clients, trainer_id(app))
        self._writer.open()
        self._group = group_metadata(self._clients, trainer_id(app))
        self._inbox = Inbox(self._clients, app)
        self._steering = Steering(self._spec)
        self._take(story_of(self._clients, app))
        self._at = Partition(drift_topic(app.name), 0)
        self._ticks = LogReader(self._clients, *self._at, fetch_wait_ms=FOLLOW_WAIT_MS)
        self._last: Tick | None = None  # the newest that was answered, without its records
        self._seek(kafka.committed_offsets(self._clients, trainer_id(app), [self._at])[self._at][0] or 0)

    def run(self, *, is_until_end: bool) -> None:
        """Answer ticks and people until told to stop, or up to the end of the ticks at the start.

        Raises:
            FencedError: another trainer of this app has started.
            UnavailableError: Kafka did not answer, or the fate of a transaction is unknown; start again.
        """
        end = self._ticks.end_offset() if is_until_end else None
        try:
            while not self._is_stopped():
                wait_s = 0.0 if is_until_end else WAIT_S
                messages = self._ticks.read(until_offset=end, timeout_s=wait_s, max_records=READ_RECORDS_MAX)
                for message in messages:
                    self._answer(self._inbox.tick_of(message.value()), message.offset() + 1)
                    if self._is_stopped():
                        return
                self._answer_people()
                if end is not None and self._ticks.position >= end:
                    return
        except TrainingStopped:
            return

    def close(self) -> None:
        self._process.close()
        self._writer.abandon()
        self._ticks.close()
        self._inbox.close()

    def _seek(self, position: int) -> None:
        """The committed position, and the tick before it, at which people are answered meanwhile."""
        first = self._ticks.first_offset()
        answered = LogReader(self._clients, *self._at)
        answered.seek(first)
        while answered.position < position:
            messages = answered.read(until_offset=position, timeout_s=1.0, max_records=READ_RECORDS_MAX)
            if messages:
                self._last = decode_ticks([messages[-1].value()])[0]
        answered.close()
        self._ticks.seek(max(first, position))
        since = "from the first tick on" if self._last is None else f"after the tick that ended {_day(self._last.time)}"
        self._report(f"the trainer of {self._app.name} goes on {since}; {self._steering.phase}")
        if self._last is not None:
            self._inbox.forget(self._last.time)
            self._telemetry.set_models(champion=self._last.champion, challenger=self._last.challenger)

    def _answer(self, tick: Tick, position: int) -> None:
        self._publish(self._decide(tick), position)
        self._last = replace(tick, alerts=())
        self._inbox.forget(tick.time)
        self._telemetry.set_models(champion=tick.champion, challenger=tick.challenger)

    def _answer_people(self) -> None:
        """Between ticks: the newest tick is decided upon again, which changes nothing but what people asked for."""
        if self._last is not None and self._inbox.wishes():
            steps = self._decide(self._last)
            if steps:
                self._publish(steps, None)

    def _decide(self, tick: Tick) -> list[_Step]:
        """Everything that is to be done at a tick; trainings are done then, and nothing is written yet."""
        steps: list[_Step] = []
        steering = copy.deepcopy(self._steering)  # what was not committed was not told
        for wish in self._inbox.wishes():
            if wish.key == DEMAND_KEY:
                steering.demand(wish)
            else:
                self._add(steps, steering, _judgement(wish, steering, tick))
        for _ in range(DECISIONS_MAX):
            decisions = steering.decide(tick)
            if not decisions:
                return steps
            for decision in decisions:
                self._add(steps, steering, _Step(decision.story(time=tick.time), decision.commands))
                if decision.kind == "train":
                    for event in self._train(decision, tick, steps):
                        self._add(steps, steering, _Step(event))
        raise InvariantError(
            "TM-9720", f"the decisions of the tick that ends at {tick.time} do not end; please report this"
        )

    @staticmethod
    def _add(steps: list[_Step], steering: Steering, step: _Step) -> None:
        steps.append(step)
        steering.tell(step.event)

    def _train(self, decision: Decision, tick: Tick, steps: Iterable[_Step]) -> tuple[StoryEvent, ...]:
        task = RoundTask(
            time=tick.time,
            offset_next=decision.offset_next,
            parent=decision.parent,
            cause=decision.cause,
            due=tick.time + self._latency_ms,
            excised=_excised(steps),
        )
        self._report(f"{_day(tick.time)} training for {decision.cause}")
        failpoint("trainer.before_training")
        events = self._process.train(task, timeout_s=self._spec.timeout_s)
        failpoint("trainer.after_training")
        return events

    def _publish(self, steps: Sequence[_Step], position: int | None) -> None:
        """One transaction; then it is known to the steering, to whoever reads along and to the telemetry."""
        offsets = {} if position is None else {self._at: (position, "")}
        orders = [(index, order) for index, step in enumerate(steps) for order in step.orders]
        told: list[StoryEvent] = []

        def tell(places: Sequence[int]) -> list[Output]:
            first: dict[int, int] = {}
            for (index, _), place in zip(orders, places, strict=True):
                first.setdefault(index, place)
            told.extend(
                replace(step.event, command_offset=first[index]) if index in first else step.event
                for index, step in enumerate(steps)
            )
            failpoint("trainer.before_commit")
            return story_outputs(self._app, told)

        self._writer.publish_told(self._commands(steps), tell, offsets, self._group)
        failpoint("trainer.after_commit")
        self._take(told)
        self._telemetry.count_story(told)
        for event in told:
            self._report(f"{_day(event.time)} {story_text(event)}")

    def _commands(self, steps: Sequence[_Step]) -> list[Output]:
        """A command's id and time are those of its tick, so that doing it again writes the same bytes."""
        rows = [
            {
                "id": f"{order.kind}/{order.model_version}@{step.event.time}",
                "kind": order.kind,
                "expects": order.expects,
                "model_version": order.model_version,
                "cause": step.event.cause,
                "time": step.event.time,
            }
            for step in steps
            for order in step.orders
        ]
        if not rows:
            return []
        values = self._encoder.encode({name: [row[name] for row in rows] for name in rows[0]})
        topic = examples_topic(self._app.name)
        return [Output(topic, str(row["id"]).encode(), value) for row, value in zip(rows, values, strict=True)]

    def _take(self, events: Iterable[StoryEvent]) -> None:
        for event in events:
            self._steering.tell(event)
            self._inbox.settle(event.cause)


def _judgement(wish: Alert, steering: Steering, tick: Tick) -> _Step:
    """Approved or dropped, when it is what the trainer waits for; declined with the reason otherwise."""
    is_approval = wish.key == APPROVAL_KEY
    version = wish.culprits[0] if wish.culprits else ""
    is_awaited = steering.phase == "waiting" and version == steering.version
    waits_for = f"{steering.version} is in {steering.phase}" if steering.version else "no version waits for approval"
    words = (
        f"{wish.summary} ({wish.by})"
        if is_awaited
        else f"{version} cannot be {'approved' if is_approval else 'rejected'}: {waits_for}"
    )
    judged: StoryKind = "approved" if is_approval else "aborted"
    kind: StoryKind = judged if is_awaited else "declined"
    return _Step(
        StoryEvent(
            id=f"{kind}/{wish.id}@{tick.time}",
            kind=kind,
            time=tick.time,
            version=version if is_awaited else "",
            cause=wish.id,
            verdict=words,
        )
    )


def _excised(steps: Iterable[_Step]) -> tuple[OffsetRange, ...]:
    return tuple((step.event.offset_start, step.event.offset_next) for step in steps if step.event.kind == "excised")


def _day(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1_000, UTC).date().isoformat()


def run_trainer(
    settings: Settings,
    *,
    is_bounded: bool,
    is_until_end: bool,
    metrics_port: int | None,
    report: Callable[[str], None],
) -> int:
    """Run the trainer until TERM, Ctrl-C or the end that was asked for; the exit code."""
    os.nice(NICENESS)
    stopped = threading.Event()
    former = {one: signal.signal(one, lambda *_: stopped.set()) for one in (signal.SIGTERM, signal.SIGINT)}
    telemetry = TrainerTelemetry()
    trainer: Trainer | None = None
    end_serving = telemetry.serve(metrics_port) if metrics_port else lambda: None
    try:
        trainer = Trainer(
            settings, is_bounded=is_bounded, is_stopped=stopped.is_set, telemetry=telemetry, report=report
        )
        trainer.run(is_until_end=is_until_end)
    finally:
        if trainer is not None:
            trainer.close()
        end_serving()
        for one, handler in former.items():
            signal.signal(one, handler)
    return 0
