"""The monitor without Kafka: what is true at the end of each tick, and which alerts that makes.

In: the examples log with its commands, predictions, counts of records. Out: one `Tick` at each `close`, with the alert
records in the order in which they are published. Invariant: a tick is a function of what was folded since the one
before, the examples as a sequence and the rest as a set; how either was cut into calls changes nothing.

A tick in which the champion changes is of two models and is judged by the reference of neither: the new champion's
reference, detectors and windows begin with the tick behind it. Rollouts change at the offset of their command.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from tidemill.core.alert_book import AlertBook, Firing
from tidemill.core.alert_findings import (
    Operations,
    Scope,
    of_concept,
    of_operations,
    of_performance,
    of_quality,
    of_shifts,
)
from tidemill.core.alerts import Alert
from tidemill.core.drift.concept import ConceptDetector, ConceptState
from tidemill.core.drift.quality import Finding, QualityJudge
from tidemill.core.drift.reference import Reference
from tidemill.core.drift.shifts import ShiftJudge
from tidemill.core.examples import between, chosen
from tidemill.core.loop_spec import RolloutSpec
from tidemill.core.loss_window import GuardVerdict, LearnerGuard, LossWindow
from tidemill.core.records import Command, ExampleColumns, FeatureBatch, Float64s, Int64s
from tidemill.core.roles import Roles
from tidemill.core.rollout import RolloutWatch
from tidemill.core.spec import AppSpec
from tidemill.core.ticks import Shift, Tick
from tidemill.core.triggers import TriggerFacts, TriggerWatch
from tidemill.errors import InvariantError

OFFSET_MAX = 2**62


class ShownDetectors(Protocol):
    """Detectors that decide nothing and are shown beside; `models.drift_baselines` has river's."""

    adwin: int  # alarms so far
    page_hinkley: int

    def add(self, loss: float) -> None:
        """The mean log loss of a tick, nats."""
        ...


class Surveillance:
    """Folds the topics of one app tick by tick.

    Args:
        reference_of: the training reference of a model version; None: it has none, so shifts are not judged.
        make_baselines: detectors that are shown beside, anew for each champion; None: there are none.
    """

    def __init__(
        self,
        spec: AppSpec,
        numeric_names: Sequence[str],
        category_names: Sequence[str],
        *,
        reference_of: Callable[[str], Reference | None],
        make_baselines: Callable[[], ShownDetectors] | None = None,
    ) -> None:
        self._spec = spec.monitor
        self._every_ms = spec.monitor.every_ms
        self._numeric_names, self._category_names = tuple(numeric_names), tuple(category_names)
        self._reference_of, self._make_baselines = reference_of, make_baselines
        self._rollout_spec = RolloutSpec() if spec.retrain is None else spec.retrain.rollout
        self._triggers = None if spec.retrain is None else TriggerWatch(spec.retrain)
        ticks = max(1, spec.monitor.window_ms // self._every_ms)
        self._losses = LossWindow(self._category_names, ticks)
        self._guard = LearnerGuard(ticks)
        self._quality = QualityJudge(
            spec.monitor, self._numeric_names, self._category_names, [topic.name for topic in spec.topics]
        )
        self._rollout = RolloutWatch(self._rollout_spec, spec.label.wait_ms)
        self._book = AlertBook(spec.monitor)
        self._acknowledged: list[tuple[int, str, str]] = []  # (time, id, by) that a later tick will take in

        self._roles = Roles()
        self._examples_total = 0
        self._offset_next = 0
        self._tick_offsets: deque[int] = deque([0], maxlen=ticks)  # where each tick of the window begins in the log
        self._has_booster = False
        self._alarms_before = np.zeros(2, dtype=np.int64)  # of the shown detectors of former champions
        self._baselines: ShownDetectors | None = None
        self._next_end: int | None = None
        # Calls before the first `close`, which alone says what the first tick is; None afterwards.
        self._early: list[Callable[[], None]] | None = []
        self._concept = ConceptDetector(spec.monitor)
        self._judge_by(self._roles.champion)
        self._open_tick()

    @property
    def next_end(self) -> int | None:
        """The end of the open tick, ms; None before the first learned example or prediction."""
        return self._next_end

    @property
    def book(self) -> AlertBook:
        """The incidents so far."""
        return self._book

    def fold_examples(self, examples: ExampleColumns, commands: Sequence[Command], offset_next: int) -> None:
        """The next piece of the examples log, in its order; `offset_next` is the offset behind it."""
        if self._early is not None:
            self._see(examples.label_time[examples.is_learned])
        self._when_open(lambda: self._fold_examples(examples, commands, offset_next))

    def fold_predictions(
        self, event_time: Int64s, blend: Float64s, is_degraded: npt.NDArray[np.bool_], features: FeatureBatch
    ) -> None:
        """Predictions of the open tick in any order, each once. blend: as served."""
        if self._early is not None:
            self._see(event_time)
        self._when_open(lambda: self._fold_predictions(blend, is_degraded, features))

    def fold_records(self, counts: Mapping[str, int], dead_letters: int) -> None:
        """Input records by topic, and how many of them became dead letters, since the last call."""
        self._when_open(lambda: self._fold_records(dict(counts), dead_letters))

    def acknowledge(self, id: str, by: str, time: int) -> None:
        """An acknowledgement that stands on the alarm topic; it counts from the first tick that ends after `time`."""
        self._acknowledged.append((time, id, by))

    def take_over(self, records: Sequence[Alert]) -> None:
        """The ticks so far are published with these records of alerts and triggers: go on from what readers know."""
        self._book.take_over(records)
        if self._triggers is not None:
            self._triggers.take_over(one for one in records if one.kind == "trigger")

    def close(self, end: int) -> Tick:
        """The tick that ends at `end` is complete: judge it, and open the next one.

        Raises:
            InvariantError: TM-9611, it is not the end of the open tick.
        """
        if end % self._every_ms or (self._early is None and end != self._next_end):
            raise InvariantError(
                "TM-9611",
                f"surveillance: a tick was closed at {end}, open is that until {self._next_end}; this is a bug",
            )
        self._next_end = end
        early, self._early = self._early, None
        for call in early or ():
            call()
        tick = self._close(end)
        self._next_end = end + self._every_ms
        self._tick_offsets.append(self._offset_next)
        if self._is_new_champion:
            self._judge_by(self._roles.champion)
        self._open_tick()
        return tick

    # Folding ------------------------------------------------------------------------------------------------------

    def _see(self, time: Int64s) -> None:
        if len(time):
            end = (int(time.min()) // self._every_ms + 1) * self._every_ms
            self._next_end = end if self._next_end is None else min(end, self._next_end)

    def _when_open(self, call: Callable[[], None]) -> None:
        if self._early is None:
            call()
        else:
            self._early.append(call)

    def _fold_examples(self, examples: ExampleColumns, commands: Sequence[Command], offset_next: int) -> None:
        measured = self._fold_measured(examples)
        start = -1
        for command in commands:
            self._fold_under_roles(between(measured, start, command.offset))
            learned = examples.is_learned[: np.searchsorted(examples.offset, command.offset)]
            self._obey(command, self._examples_total + int(learned.sum()))
            start = command.offset
        self._fold_under_roles(between(measured, start, OFFSET_MAX))
        self._examples_total += int(examples.is_learned.sum())
        self._offset_next = max(self._offset_next, offset_next)
        if self._triggers is not None and examples.is_learned.any():
            self._triggers.note_example(int(examples.label_time[examples.is_learned][0]))

    def _fold_measured(self, examples: ExampleColumns) -> ExampleColumns:
        """What the champion does not matter for; the measured examples."""
        is_measured = examples.is_learned & (examples.label_time >= examples.event_time) & ~np.isnan(examples.blend)
        measured = chosen(examples, is_measured)
        if len(measured):
            self._losses.add(measured)
            self._quality.add_labels(self._tick, measured.label)
            if self._shifts is not None:
                self._shifts.add_labels(self._tick, measured.label)
            self._has_booster = self._has_booster or not bool(np.isnan(measured.booster).all())
        return measured

    def _fold_under_roles(self, measured: ExampleColumns) -> None:
        """Measured examples between two commands: to the guard and to the rollout."""
        if not len(measured):
            return
        served, beside = np.array(measured.model_version), np.array(measured.other_version)
        champion, challenger = self._roles.champion, self._roles.challenger
        # Logs of before have no versions: only champions served then.
        self._guard.add(chosen(measured, (served == champion) | (served == "")))
        if challenger:
            is_plain = (served == champion) & (beside == challenger)
            is_swapped = (served == challenger) & (beside == champion)  # a canary, or served before the swap
            pairs = chosen(measured, (is_plain | is_swapped) & ~np.isnan(measured.other))
            if len(pairs):
                swapped = np.array(pairs.model_version) == challenger
                self._rollout.add(
                    pairs.event_time,
                    np.where(swapped, pairs.other, pairs.blend),
                    np.where(swapped, pairs.blend, pairs.other),
                    pairs.label,
                    pairs.offset,
                )

    def _obey(self, command: Command, examples_total: int) -> None:
        before, after = self._roles, self._roles.after(command)
        if after is None:
            return
        self._roles = after
        if after.champion != before.champion:
            self._is_new_champion = True
        if after.champion != before.champion or command.kind in ("excise", "thaw"):
            self._guard.begin()
        if command.kind in ("prepare", "canary", "swap"):
            spec = self._rollout_spec
            examples_max = {
                "prepare": spec.examples_max,
                "canary": spec.canary_examples,
                "swap": spec.probation_examples,
            }[command.kind]
            # Commands carry the clock of who wrote them, so the stage's events are those from the open tick on.
            self._rollout.begin(after.challenger, command.offset, examples_max, since=self._tick_start)
        elif not after.challenger:
            self._rollout.end()
        if command.kind == "prepare" and self._triggers is not None:
            self._triggers.note_prepare(command.cause, self._tick_start, examples_total)

    def _fold_predictions(self, blend: Float64s, is_degraded: npt.NDArray[np.bool_], features: FeatureBatch) -> None:
        self._events += len(blend)
        self._degraded += int(is_degraded.sum())
        if len(blend):
            self._quality.add(self._tick, features)
            if self._shifts is not None:
                self._shifts.add(self._tick, features, blend)

    def _fold_records(self, counts: Mapping[str, int], dead_letters: int) -> None:
        for topic, count in counts.items():
            self._quality.add_records(self._tick, topic, count)
        self._records += sum(counts.values())
        self._dead_letters += dead_letters

    # Closing ------------------------------------------------------------------------------------------------------

    @property
    def _tick_start(self) -> int:
        return (self._next_end or 0) - self._every_ms

    @property
    def _tick(self) -> int:
        """The number of the open tick."""
        return self._tick_start // self._every_ms

    def _open_tick(self) -> None:
        self._events = self._degraded = self._records = self._dead_letters = 0
        self._is_new_champion = False

    def _judge_by(self, champion: str) -> None:
        """Detectors of a champion, from the next tick on."""
        reference = self._reference_of(champion)
        self._shifts = (
            None if reference is None else ShiftJudge(reference, self._spec, self._numeric_names, self._category_names)
        )
        self._quality.set_reference(reference)
        self._concept.restart()
        self._state = ConceptState(0.0, float(self._spec.average_run_length), False)
        self._alarms_before = self._alarms
        self._baselines = self._make_baselines() if self._make_baselines is not None else None

    @property
    def _alarms(self) -> Int64s:
        """Of the shown detectors so far: ADWIN, Page-Hinkley."""
        shown = self._baselines
        if shown is None:
            return self._alarms_before
        return self._alarms_before + np.array([shown.adwin, shown.page_hinkley], dtype=np.int64)

    def _close(self, end: int) -> Tick:
        losses = self._losses.close_tick()
        guard = self._guard.close_tick()
        if self._roles.is_frozen:  # by a person, for the trainer thaws what it froze: whoever froze it decides
            guard = GuardVerdict(False, -1)
        shifts: tuple[Shift, ...] = ()
        state = self._state._replace(is_firing=False)
        if not self._is_new_champion:
            shifts = () if self._shifts is None else self._shifts.judge(self._tick)
            judged = self._concept.add(losses.excess_sum, losses.examples, losses.squared_error)
            if judged is not None:
                self._state = state = judged
        if losses.log_loss is not None and self._baselines is not None:
            self._baselines.add(losses.log_loss)
        findings = self._quality.judge(self._tick)
        scope = self._scope(end)
        alerts = self._tell(end, scope, self._firings(shifts, state, findings, scope))
        adwin, page_hinkley = self._alarms.tolist()
        return Tick(
            time=end,
            offset_next=self._offset_next,
            champion=self._roles.champion,
            challenger=self._roles.challenger,
            events=self._events,
            examples=losses.examples,
            examples_total=self._examples_total,
            log_loss=losses.log_loss,
            excess=losses.excess,
            e_value=state.e_value,
            threshold=state.threshold,
            adwin=adwin,
            page_hinkley=page_hinkley,
            losses=self._losses.losses,
            shifts=shifts,
            quality={one.subject: one.value for one in findings},
            rollout=self._rollout.look(end),
            is_learner_bad=guard.is_bad,
            bad_since=guard.since,
            alerts=alerts,
        )

    def _firings(
        self,
        shifts: Sequence[Shift],
        state: ConceptState,
        findings: Iterable[Finding],
        scope: Scope,
    ) -> tuple[Firing, ...]:
        operations = Operations(self._records, self._dead_letters, self._events, self._degraded, self._has_booster)
        return (
            *of_shifts(shifts, self._spec, scope),
            *of_concept(state, self._losses, scope),
            *of_quality(findings, scope),
            *of_performance(self._losses, scope),
            *of_operations(operations, scope),
        )

    def _tell(self, end: int, scope: Scope, firings: Sequence[Firing]) -> tuple[Alert, ...]:
        """The alert records of the tick, a trigger last."""
        due = [one for one in self._acknowledged if one[0] < end]
        self._acknowledged = [one for one in self._acknowledged if one[0] >= end]
        for time, id, by in sorted(due):
            self._book.acknowledge(id, by, time)
        records = self._book.tell(end, self._roles.champion, self._offset_next, firings)
        if self._triggers is None:
            return records
        trigger = self._triggers.judge(
            TriggerFacts(
                time=end,
                champion=self._roles.champion,
                examples_total=self._examples_total,
                window_start=scope.window_start,
                offset_start=scope.window_offset,
                offset_next=scope.offset_next,
                records=records,
                open_alerts=[incident.newest for incident in self._book.incidents.values()],
                gaps=self._losses.gaps,
            )
        )
        return records if trigger is None else (*records, trigger)

    def _scope(self, end: int) -> Scope:
        return Scope(
            tick_start=self._tick_start,
            tick_offset=self._tick_offsets[-1],
            window_start=end - len(self._tick_offsets) * self._every_ms,
            window_offset=self._tick_offsets[0],
            end=end,
            offset_next=self._offset_next,
        )
