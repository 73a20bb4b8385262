"""What the trainer does next: train, bring a version up step by step, take it back, guard the learner.

In: ticks, demands and the story so far. Out: decisions, each with its cause, its commands and its story event.
Invariant: the state is the fold of the story, so a restarted trainer that is told its story decides as if it had never
stopped; at most one version is on trial, and none serves without a verdict "better"; a trigger that no training has
answered is trained for once nothing is in its way.

    idle ─train─► training ─trained─► waiting ─prepare─► shadow ─(canary)─► probation ─► idle
                     └─failed, gated─► idle      └────────┴─drop─┴─► idle     drop or rollback
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from tidemill.core.alerts import Alert
from tidemill.core.decisions import NO_EVIDENCE, Decision, DecisionKind, Order
from tidemill.core.loop_spec import RetrainSpec
from tidemill.core.roles import INITIAL
from tidemill.core.story import DEMAND_KEY, StoryEvent, StoryKind
from tidemill.core.ticks import RolloutState, Tick
from tidemill.core.unanswered import Unanswered

LEARNER_GUARD = "learner guard"
HOUR_MS = 3_600_000

Phase = Literal["idle", "training", "waiting", "shadow", "canary", "probation"]

_COMMANDED: frozenset[StoryKind] = frozenset(
    ("shadow", "canary", "promoted", "kept", "rolled_back", "aborted", "frozen", "thawed", "excised")
)

# What a story event makes of the phase; at any other phase, or about another version, it is not of this trial.
_NEXT: Mapping[StoryKind, tuple[tuple[Phase, ...], Phase]] = {
    "triggered": (("idle",), "training"),
    "trained": (("training",), "waiting"),
    "failed": (("training", "waiting"), "idle"),
    "gated": (("training", "waiting"), "idle"),
    "shadow": (("waiting",), "shadow"),
    "canary": (("shadow",), "canary"),
    "promoted": (("shadow", "canary"), "probation"),
    "aborted": (("waiting", "shadow", "canary"), "idle"),
    "kept": (("probation",), "idle"),
    "rolled_back": (("probation",), "idle"),
}


@dataclass(slots=True)
class _Trial:
    """Of the version that is trained or on trial; `triggered` is the event that began it."""

    triggered: StoryEvent
    version: str = ""
    parent: str = ""
    due: int = -1
    is_asked: bool = False
    is_approved: bool = False
    stage_start: int = -1  # offset of the command that began the stage


class Steering:
    """Decides from ticks; `tell` it every story event, its own and those of people, in the order of the topic."""

    def __init__(self, spec: RetrainSpec) -> None:
        self._spec = spec
        self._phase: Phase = "idle"
        self._trial: _Trial | None = None
        self._trained_last: int | None = None  # time of the last training's trigger
        self._answered: set[str] = set()  # ids of triggers and demands
        self._unanswered = Unanswered()
        self._demands: dict[str, Alert] = {}
        self._command_offset = -1  # of the last one
        self._unwritten: int | None = None  # time of the last one that had no offset when it was told
        self._frozen: StoryEvent | None = None  # by the learner guard, not thawed yet
        self._excised: StoryEvent | None = None  # the last one of the learner guard

    @property
    def phase(self) -> Phase:
        return self._phase

    @property
    def version(self) -> str:
        """The version on trial, "" = none."""
        return self._trial.version if self._trial else ""

    @property
    def training(self) -> StoryEvent | None:
        """The trigger whose training has no outcome yet: what a restarted trainer has to begin again."""
        return self._trial.triggered if self._trial and self._phase == "training" else None

    def demand(self, alert: Alert) -> None:
        """A person's wish to retrain, an alert of key `trigger/demand`; answered at the next `decide`."""
        if alert.id not in self._answered:
            self._demands[alert.id] = alert

    def tell(self, event: StoryEvent) -> None:
        """Fold one story event. What is not of the trial that is under way changes nothing."""
        if event.kind in ("triggered", "declined"):
            self._answered.add(event.cause)
            self._demands.pop(event.cause, None)
        self._unanswered.tell(event)
        self._command_offset = max(self._command_offset, event.command_offset)
        if event.kind in _COMMANDED and event.command_offset < 0:
            self._unwritten = event.time
        if event.kind in ("frozen", "excised", "thawed"):
            self._fold_guard(event)
        trial = self._trial
        if trial and event.version == trial.version and self._phase == "waiting":
            trial.is_asked |= event.kind == "approval_asked"
            trial.is_approved |= event.kind == "approved"
        allowed, phase = _NEXT.get(event.kind, ((), self._phase))
        if self._phase not in allowed or (trial and trial.version and event.version != trial.version):
            return
        self._phase = phase
        if phase == "idle":
            self._trial = None
        elif event.kind == "triggered":
            self._trained_last = event.time
            self._trial = _Trial(triggered=event)
        elif trial and event.kind == "trained":
            trial.version, trial.parent, trial.due = event.version, event.parent, event.due
        elif trial:
            trial.stage_start = event.command_offset
            trial.parent = event.parent or trial.parent

    def decide(self, tick: Tick) -> tuple[Decision, ...]:
        """What to do at the end of a tick. Do it, tell what became of it, and ask again until there is nothing left."""
        steps: tuple[Decision, ...] = ()
        if self._has_seen_commands(tick):
            steps = self._step_trial(tick) or self._guard_learner(tick)
        return steps or self._answer_triggers(tick) or self._train_for_unanswered(tick)

    def _has_seen_commands(self, tick: Tick) -> bool:
        """Else the champion of the tick is not the one that the next command would meet."""
        is_later = self._unwritten is None or tick.time > self._unwritten
        return is_later and tick.offset_next > self._command_offset

    def _fold_guard(self, event: StoryEvent) -> None:
        if event.cause != LEARNER_GUARD:
            return
        if event.kind == "excised":
            self._excised = event
        else:
            self._frozen = event if event.kind == "frozen" else None

    def _guard_learner(self, tick: Tick) -> tuple[Decision, ...]:
        """Freeze, excise and thaw; what is left of it where the trainer stopped in between."""
        frozen, excised = self._frozen, self._excised
        if frozen:
            is_done = excised is not None and excised.time >= frozen.time
            left = _guard_decisions(frozen.version, frozen.evidence, frozen.offset_start, frozen.offset_next)
            return left[2:] if is_done else left[1:]
        is_cool = excised is None or tick.time - excised.time >= self._spec.cooldown_ms
        if not (self._spec.guards_learner and tick.is_learner_bad and tick.champion != INITIAL and is_cool):
            return ()
        if not 0 <= tick.bad_since < tick.offset_next:
            return ()  # nothing was learned in the window
        return _guard_decisions(tick.champion, dict(tick.losses), tick.bad_since, tick.offset_next)

    def _step_trial(self, tick: Tick) -> tuple[Decision, ...]:
        trial = self._trial
        if trial is None or self._phase == "training":
            return ()
        if self._phase == "waiting":
            return self._bring_up(trial, tick)
        if self._is_out_of_hand(trial, tick):
            verdict = f"somebody changed the roles: champion {tick.champion}, challenger {tick.challenger or 'none'}"
            return (self._end(trial, tick, verdict, None),)
        state = tick.rollout
        other = trial.parent if self._phase == "probation" else trial.version
        if state is None or state.other != other or state.stage_start != trial.stage_start:
            return ()
        judge = self._judge_probation if self._phase == "probation" else self._judge_challenger
        return judge(trial, tick, state)

    def _bring_up(self, trial: _Trial, tick: Tick) -> tuple[Decision, ...]:
        if tick.time < trial.due:
            return ()
        if not self._spec.needs_approval:
            return (_prepared(trial, tick, "the gate is passed"),)
        if trial.is_approved:
            return (_prepared(trial, tick, "a person has approved"),)
        return () if trial.is_asked else (_staged("ask", trial, tick, "a person decides", "approval_asked"),)

    def _is_out_of_hand(self, trial: _Trial, tick: Tick) -> bool:
        """Whether roles are not what the last command made them; the tick has seen it."""
        if self._phase == "probation":
            return (tick.champion, tick.challenger) != (trial.version, trial.parent)
        return tick.challenger != trial.version

    def _judge_challenger(self, trial: _Trial, tick: Tick, state: RolloutState) -> tuple[Decision, ...]:
        compared = _in_words(trial.version, state)
        if self._phase == "shadow" and state.verdict == "better" and self._spec.rollout.canary_share > 0:
            return (
                _staged("canary", trial, tick, compared, "canary", (_order("canary", trial.version, tick),), state),
            )
        # A canary is there to show harm: it passed the shadow as better, and need not be shown better a second time.
        is_harmless = self._phase == "canary" and state.verdict == "undecided" and state.examples > 0
        is_fit = state.verdict == "better" or is_harmless
        if is_fit:
            return (_staged("swap", trial, tick, compared, "promoted", (_order("swap", trial.version, tick),), state),)
        if state.verdict in ("worse", "undecided"):
            return (self._end(trial, tick, compared, state),)
        return ()

    def _judge_probation(self, trial: _Trial, tick: Tick, state: RolloutState) -> tuple[Decision, ...]:
        compared = _in_words(trial.parent, state)
        # A margin lets a challenger pass that is a little worse; the former champion comes back only if it is better.
        if state.verdict == "better" and state.lower > 0:
            commands = (_order("swap", trial.parent, tick), Order("drop", trial.version, expects=trial.parent))
            return (_staged("rollback", trial, tick, compared, "rolled_back", commands, state),)
        if state.verdict in ("worse", "undecided") or state.examples >= self._spec.rollout.probation_examples:
            return (self._end(trial, tick, compared, state),)
        return ()

    def _end(self, trial: _Trial, tick: Tick, verdict: str, state: RolloutState | None) -> Decision:
        """The challenger goes: the new version, or in probation the former champion."""
        if self._phase == "probation":
            return _staged("drop", trial, tick, verdict, "kept", (_order("drop", trial.parent, tick),), state)
        return _staged("drop", trial, tick, verdict, "aborted", (_order("drop", trial.version, tick),), state)

    def _answer_triggers(self, tick: Tick) -> tuple[Decision, ...]:
        """One training at most; every other trigger is declined, with the reason, and the newest is not forgotten."""
        decisions: list[Decision] = []
        refusal = self._refusal_of_phase()
        for alert in self._open_triggers(tick):
            is_demand = alert.key == DEMAND_KEY
            reason = refusal or ("" if is_demand else self._refusal_of_limits(tick))
            if reason:
                decisions.append(_answer("decline", alert.id, alert.evidence, tick, reason, "declined"))
            else:
                limits = self._refusal_of_limits(tick)
                words = f"on demand, although {limits}" if limits else alert.summary
                decisions.append(_answer("train", alert.id, alert.evidence, tick, words, "triggered"))
                refusal = f"{alert.id} is trained for at this tick"
        return tuple(decisions)

    def _train_for_unanswered(self, tick: Tick) -> tuple[Decision, ...]:
        """A trigger is told once: what was declined, or failed, is made up for when nothing is in its way any more."""
        event = self._unanswered.newest
        is_trained_at = self._trained_last is not None and self._trained_last >= tick.time  # a demand, and it failed
        if event is None or is_trained_at or self._trial or not self._has_seen_commands(tick):
            return ()
        if self._refusal_of_limits(tick):
            return ()
        was = "the training failed" if event.kind == "failed" else "the trigger was declined"
        words = f"{was} before: {event.verdict}"
        return (_answer("train", event.cause, event.evidence, tick, words, "triggered"),)

    def _open_triggers(self, tick: Tick) -> Iterable[Alert]:
        """Demands first, then the tick's own, each id once."""
        found = {**self._demands, **{alert.id: alert for alert in tick.alerts if alert.kind == "trigger"}}
        return [alert for alert in found.values() if alert.id not in self._answered]

    def _refusal_of_phase(self) -> str:
        if self._trial is None:
            return ""
        if self._phase == "training":
            return f"a training is under way for {self._trial.triggered.cause}"
        return f"{self._trial.version} is in {self._phase}"

    def _refusal_of_limits(self, tick: Tick) -> str:
        if tick.examples_total < self._spec.examples_min:
            return f"there are {tick.examples_total:,} examples, of {self._spec.examples_min:,} at least"
        since = None if self._trained_last is None else tick.time - self._trained_last
        if since is not None and since < self._spec.cooldown_ms:
            hours = f"{since / HOUR_MS:g} h"
            return f"the last training was {hours} ago, the cooldown is {self._spec.cooldown_ms / HOUR_MS:g} h"
        return ""


def _guard_decisions(
    champion: str, evidence: Mapping[str, float], offset_start: int, offset_next: int
) -> tuple[Decision, ...]:
    steps: tuple[tuple[DecisionKind, StoryKind, str], ...] = (
        ("freeze", "frozen", champion),
        ("excise", "excised", f"{offset_start}-{offset_next}"),
        ("thaw", "thawed", champion),
    )
    return tuple(
        Decision(
            kind=kind,
            version=champion,
            cause=LEARNER_GUARD,
            evidence=evidence,
            verdict="over the window the learner is worse than booster and constant",
            offset_start=offset_start,
            offset_next=offset_next,
            tells=tells,
            commands=(Order(kind, named, champion),),
        )
        for kind, tells, named in steps
    )


def _prepared(trial: _Trial, tick: Tick, verdict: str) -> Decision:
    """From here on the version is compared with whoever is the champion now."""
    staged = _staged("prepare", trial, tick, verdict, "shadow", (_order("prepare", trial.version, tick),))
    return staged._replace(parent=tick.champion)


def _staged(
    kind: DecisionKind,
    trial: _Trial,
    tick: Tick,
    verdict: str,
    tells: StoryKind,
    commands: tuple[Order, ...] = (),
    state: RolloutState | None = None,
) -> Decision:
    """A step of the version on trial."""
    return Decision(
        kind=kind,
        version=trial.version,
        cause=trial.triggered.cause,
        evidence=_evidence_of(state) if state else NO_EVIDENCE,
        verdict=verdict,
        offset_start=trial.stage_start,
        offset_next=tick.offset_next,
        parent=trial.parent,
        tells=tells,
        commands=commands,
    )


def _order(kind: str, model_version: str, tick: Tick) -> Order:
    return Order(kind, model_version, expects=tick.champion)


def _answer(
    kind: DecisionKind, cause: str, evidence: Mapping[str, float], tick: Tick, verdict: str, tells: StoryKind
) -> Decision:
    return Decision(
        kind=kind,
        cause=cause,
        evidence={**evidence, "examples_total": float(tick.examples_total)},
        verdict=verdict,
        offset_next=tick.offset_next,
        parent=tick.champion,
        tells=tells,
    )


def _evidence_of(state: RolloutState) -> Mapping[str, float]:
    return {"examples": float(state.examples), "mean": state.mean, "lower": state.lower, "upper": state.upper}


def _in_words(version: str, state: RolloutState) -> str:
    if state.verdict == "undecided" and not state.examples:
        return (
            f"{version} could not be compared: no event was scored by both models and labelled in time; do the workers"
            " trust the trainer's key, do labels come?"
        )
    is_passed_by_margin = state.verdict == "better" and state.lower <= 0
    verdict = "not worse than the margin allows" if is_passed_by_margin else state.verdict
    return (
        f"{version} is {verdict}: its loss is lower by {state.mean:+.5f} nats"
        f" [{state.lower:+.5f}, {state.upper:+.5f}] over {state.examples:,} examples"
    )
