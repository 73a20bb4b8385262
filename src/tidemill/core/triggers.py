"""When a new booster is due, by what the app declares.

In: at the end of each tick, its alerts and figures; commands `prepare`. Out: at most one alert of kind trigger.
Invariant: a trigger is a function of the ticks and the log, so a monitor that folds them again finds the same ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tidemill.core.alert_book import Firing
from tidemill.core.alerts import Alert
from tidemill.core.loop_spec import DAY_MS, RetrainSpec, TriggerSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class TriggerFacts:
    """A tick as triggers see it.

    records: of the tick; open_alerts: the newest record of each open incident, those of this tick included. gaps: by
    series, the blend's log loss of the window less that of the series on the same examples; only where it is judged.
    """

    time: int
    champion: str
    examples_total: int
    window_start: int
    offset_start: int
    offset_next: int
    records: Sequence[Alert] = ()
    open_alerts: Sequence[Alert] = ()
    gaps: Mapping[str, float] = field(default_factory=dict)


class Reason(NamedTuple):
    """A trigger that holds. what: of its key; causes: ids of the alerts behind it."""

    what: str
    text: str
    evidence: Mapping[str, float]
    causes: tuple[str, ...] = ()


class _Training(NamedTuple):
    """The last one that the log tells of: a trigger, or a challenger that was prepared without one.

    A trigger counts whatever became of it: the trainer keeps in mind what it could not answer (`core/unanswered.py`).
    """

    time: int
    examples_total: int


class _Prepared(NamedTuple):
    """A challenger that was prepared; fields as in `TriggerWatch.note_prepare`."""

    cause: str
    time: int
    examples_total: int


class TriggerWatch:
    """Remembers the last training and judges one tick after the other."""

    def __init__(self, spec: RetrainSpec) -> None:
        self._spec = spec
        self._first_example: int | None = None
        self._training: _Training | None = None
        self._trigger_id = ""
        self._prepared: list[_Prepared] = []

    def note_example(self, time: int) -> None:
        """The label time of a learned example; the first call counts, schedules begin there."""
        if self._first_example is None:
            self._first_example = time

    def note_prepare(self, cause: str, time: int, examples_total: int) -> None:
        """A challenger was prepared. That of the last trigger is not counted again: its data are those of then."""
        self._prepared.append(_Prepared(cause, time, examples_total))
        if not self._trigger_id or cause != self._trigger_id:
            self._training = _Training(time, examples_total)

    def note_trigger(self, trigger: Alert) -> None:
        """A trigger of this watch: the last training is its."""
        self._training = _Training(trigger.time, int(trigger.evidence["examples_total"]))
        self._trigger_id = trigger.id

    def take_over(self, triggers: Iterable[Alert]) -> None:
        """Go on from these triggers, which are published for the ticks that were judged so far; in order of time.

        Judged by another policy, the same ticks may have made other triggers: no trainer has heard of those.
        """
        self._training, self._trigger_id = None, ""
        prepared, self._prepared = self._prepared, []
        for trigger in triggers:
            while prepared and prepared[0].time < trigger.time:  # of a tick that ended no later than the trigger's
                self.note_prepare(*prepared.pop(0))
            self.note_trigger(trigger)
        for one in prepared:
            self.note_prepare(*one)

    def judge(self, facts: TriggerFacts) -> Alert | None:
        """The trigger of this tick; None where the policy does not hold, or it is too early, or examples are few."""
        if facts.examples_total < self._spec.examples_min:
            return None
        if self._training is not None and facts.time - self._training.time < self._spec.cooldown_ms:
            return None
        reasons = self.reasons(facts)
        if not reasons:
            return None
        trigger = Firing(
            kind="trigger",
            subject="+".join(dict.fromkeys(reason.what for reason in reasons)),
            summary=f"A training is due: {'; '.join(reason.text for reason in reasons)}.",
            window_start=facts.window_start,
            window_end=facts.time,
            offset_start=facts.offset_start,
            offset_next=facts.offset_next,
            culprits=tuple(dict.fromkeys(cause for reason in reasons for cause in reason.causes)),
            evidence={
                "examples_total": float(facts.examples_total),
                **{name: value for reason in reasons for name, value in reason.evidence.items()},
            },
        ).opened(facts.time, facts.champion)
        self.note_trigger(trigger)
        return trigger

    def reasons(self, facts: TriggerFacts) -> tuple[Reason, ...]:
        """Why the policy holds: all of `all_of` and the first of `any_of` that does; () = it does not hold."""
        needed = [self._reason(trigger, facts) for trigger in self._spec.all_of]
        any_one = next(_present(self._reason(trigger, facts) for trigger in self._spec.any_of), None)
        if None in needed or (self._spec.any_of and any_one is None):
            return ()
        return tuple(_present((*needed, any_one)))

    def _reason(self, trigger: TriggerSpec, facts: TriggerFacts) -> Reason | None:
        if trigger.kind == "alert":
            return self._of_alert(trigger.alert_kind, facts)
        if trigger.kind == "schedule":
            return self._of_schedule(trigger.every_ms, facts)
        if trigger.kind == "volume":
            return self._of_volume(trigger.growth, facts)
        return _of_performance(trigger.comparator, facts)

    def _of_alert(self, kind: str, facts: TriggerFacts) -> Reason | None:
        """Opened or repeated at this tick, or open since and no trigger has told of it."""
        trained = self._training.time if self._training is not None else None
        told = [one for one in facts.records if one.event in ("opened", "repeated")]
        unanswered = [one for one in facts.open_alerts if trained is None or one.opened > trained]
        found = {one.id: one for one in (*told, *unanswered) if one.kind == kind}
        if not found:
            return None
        keys = ", ".join(one.key for one in found.values())
        return Reason(kind, f"{keys} is open", {f"alerts_{kind}": float(len(found))}, tuple(found))

    def _of_schedule(self, every_ms: int, facts: TriggerFacts) -> Reason | None:
        since = self._training.time if self._training is not None else self._first_example
        if since is None or facts.time - since < every_ms:
            return None
        text = f"the last training was {(facts.time - since) / DAY_MS:.3g} days ago"
        return Reason("schedule", text, {"since_training_ms": float(facts.time - since)})

    def _of_volume(self, growth: float, facts: TriggerFacts) -> Reason | None:
        before = self._training.examples_total if self._training is not None else 0
        if facts.examples_total < before * (1 + growth) or facts.examples_total == before:
            return None
        text = f"examples have grown from {before:,} to {facts.examples_total:,}"
        return Reason("volume", text, {"examples_before": float(before)})


def _of_performance(comparator: str, facts: TriggerFacts) -> Reason | None:
    gap = facts.gaps.get(comparator, 0.0)
    if gap <= 0:
        return None
    text = f"over the window the blend's log loss is {gap:.4f} nats above that of {comparator}"
    return Reason("performance", text, {f"gap_{comparator}": gap})


def _present(reasons: Iterable[Reason | None]) -> Iterator[Reason]:
    return (reason for reason in reasons if reason is not None)
