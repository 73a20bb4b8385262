"""Monitor and trainer of a run in memory: the same judgement and decisions as the live loop, at the same ticks.

In: what a run publishes. Out: ticks with their alerts, the story, commands in the run's log. Invariant: what is decided
at the end of a tick is obeyed before the first record behind it, so the whole is a function of the records.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from itertools import compress
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tidemill.apps.backtest_run import BacktestRun
from tidemill.apps.loop_following import alert_text, story_text
from tidemill.apps.models import feature_shape
from tidemill.apps.retraining import Promoted, Shelf
from tidemill.apps.rounds import RoundTask, story_of_failure, story_of_round, train_and_gate
from tidemill.core.decisions import Decision
from tidemill.core.drift.reference import Reference
from tidemill.core.examples import chosen, joined, no_examples
from tidemill.core.records import Command, ExampleColumns, FeatureBatch, Float64s, Int64s
from tidemill.core.roles import INITIAL
from tidemill.core.steering import Steering
from tidemill.core.story import StoryEvent
from tidemill.core.surveillance import Surveillance
from tidemill.core.ticks import Tick
from tidemill.errors import ConfigError, ModelRefusedError
from tidemill.io.monitored import monitored_predictions
from tidemill.models.training_examples import TrainingExamples


class _Predictions(NamedTuple):
    """As `Surveillance.fold_predictions` takes them."""

    event_time: Int64s
    blend: Float64s
    is_degraded: npt.NDArray[np.bool_]
    features: FeatureBatch


class MemoryLoop:
    """Give it what the run publishes: `on_examples`, `on_outputs`.

    ticks, story: so far. promoted: the versions that came to serve, with the event time at which they did.
    """

    def __init__(
        self,
        run: BacktestRun,
        shelf: Shelf,
        *,
        examples: TrainingExamples,
        threads: int,
        report: Callable[[str], None],
    ) -> None:
        """`examples`: of the run so far; somebody else appends to it.

        Raises:
            ConfigError: TM-1812, the app declares no `retrain:`.
        """
        spec = run.spec
        if spec.retrain is None:
            raise ConfigError("TM-1812", f"app {spec.name} has no `retrain:` section, so its loop would do nothing")
        self._run, self._shelf, self._threads, self._report = run, shelf, threads, report
        self._training_examples = examples
        self._every_ms, self._latency_ms = spec.monitor.every_ms, spec.retrain.latency_ms
        self._shape = feature_shape(run.plan)
        self._surveillance = Surveillance(
            spec, run.plan.numeric_names, run.plan.category_names, reference_of=self._reference_of
        )
        self._steering = Steering(spec.retrain)
        self._examples: list[ExampleColumns] = []  # published, and of no closed tick
        self._predictions: list[_Predictions] = []
        self._commands: list[Command] = []  # written since the last tick
        self._end: int | None = None  # of the open tick
        self.ticks: list[Tick] = []
        self.story: list[StoryEvent] = []
        self.promoted: list[Promoted] = []

    def on_examples(self, examples: ExampleColumns) -> None:
        self._examples.append(examples)

    def on_outputs(self, topic: str, values: list[bytes]) -> None:
        if topic != self._run.pipeline.predictions_topic or not values:
            return
        columns, _, _, features = monitored_predictions(values, range(len(values)), self._shape)
        self._predictions.append(_Predictions(columns.event_time, columns.blend, columns.is_degraded, features))
        if self._end is None:
            self._open((int(columns.event_time.min()) // self._every_ms + 1) * self._every_ms)

    def _reference_of(self, version: str) -> Reference | None:
        if version == INITIAL:
            return None
        reference = self._shelf.manifest(version).reference
        return None if reference is None else Reference.from_json(reference)

    def _open(self, end: int) -> None:
        self._end = end
        self._run.at(end, lambda: self._close(end))

    def _close(self, end: int) -> None:
        self._run.catch_up()
        self._fold_examples(end)
        self._fold_predictions(end)
        tick = self._surveillance.close(end)
        self.ticks.append(tick)
        for alert in tick.alerts:
            self._say(end, f"alert: {alert_text(alert)}")
        while decisions := self._steering.decide(tick):
            for decision in decisions:
                self._do(decision, tick)
        self._open(end + self._every_ms)

    def _fold_examples(self, end: int) -> None:
        published = joined(self._examples) if self._examples else no_examples()
        is_due = published.label_time < end
        due, later = chosen(published, is_due), chosen(published, ~is_due)
        self._examples = [later] if len(later) else []
        commands, self._commands = self._commands, []
        offset_next = int(later.offset[0]) if len(later) else self._run.log.own_next
        self._surveillance.fold_examples(due, commands, offset_next)

    def _fold_predictions(self, end: int) -> None:
        pieces, self._predictions = self._predictions, []
        for piece in pieces:
            is_due = piece.event_time < end
            self._surveillance.fold_predictions(*_rows(piece, is_due))
            if not is_due.all():  # a record at the very end of a tick is processed with it and belongs to the next
                self._predictions.append(_rows(piece, ~is_due))

    def _do(self, decision: Decision, tick: Tick) -> None:
        offset = -1
        for kind, version, expects in decision.commands:
            command = self._run.log.command(
                kind, version=version, expects=expects, cause=decision.cause, time=tick.time
            )
            self._commands.append(command)
            self._run.catch_up()
            offset = command.offset if offset < 0 else offset
        self._tell(decision.story(time=tick.time, command_offset=offset))
        if decision.kind == "train":
            self._train(decision, tick)
        elif decision.kind in ("swap", "rollback"):
            champion = self._run.serving.roles.champion
            if champion != INITIAL:
                self.promoted.append(Promoted(tick.time, self._shelf.manifest(champion)))

    def _train(self, decision: Decision, tick: Tick) -> None:
        task = RoundTask(
            time=tick.time,
            offset_next=decision.offset_next,
            parent=tick.champion,
            cause=decision.cause,
            due=tick.time + self._latency_ms,
        )
        try:
            done = train_and_gate(
                self._run.spec,
                self._run.plan,
                self._training_examples,
                task,
                champion=None if tick.champion == INITIAL else self._shelf(tick.champion),
                excised=self._run.serving.roles.excised,
                threads=self._threads,
            )
        except ModelRefusedError as error:
            self._tell(story_of_failure(str(error), task))
            return
        self._shelf.put(done.trained)
        for event in story_of_round(done, task):
            self._tell(event)

    def _tell(self, event: StoryEvent) -> None:
        self._steering.tell(event)
        self.story.append(event)
        cause = f" · because of {event.cause}" if event.cause else ""
        self._say(event.time, f"model: {story_text(event)}{cause}")

    def _say(self, time: int, text: str) -> None:
        self._report(f"{datetime.fromtimestamp(time / 1_000, UTC).date()} {text}")


def _rows(piece: _Predictions, at: npt.NDArray[np.bool_]) -> _Predictions:
    if at.all():
        return piece
    categories = tuple(tuple(compress(column, at)) for column in piece.features.categories)
    features = FeatureBatch(piece.features.numeric[at], categories)
    return _Predictions(piece.event_time[at], piece.blend[at], piece.is_degraded[at], features)
