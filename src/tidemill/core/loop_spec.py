"""What an app declares of its loop: when it is judged, when it retrains, and what a new model has to prove.

`config.py` validates YAML (`monitor:` and `retrain:`) into these; the core only reads them. A tick is the unit of the
loop: a slice [k * every, (k + 1) * every) of event time, closed once the whole group's watermark is past its end. In a
bounded replay nothing later than a tick's end is processed before monitor and trainer have answered it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

DAY_MS = 86_400_000

TriggerKind = Literal["alert", "schedule", "volume", "performance"]


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitorSpec:
    """How drift is judged. Windows and waits are milliseconds of event time."""

    every_ms: int = DAY_MS
    window_ms: int = 7 * DAY_MS  # of the tests on features, predictions and labels: the last ticks
    # Taken as normal after a start, before concept drift is judged, and then for a new model, judged by the old measure
    # meanwhile. Of ticks with few labels several count as one.
    reference_ticks: int = 28
    # Ticks between two false alarms of a detector, at least. A test is made at each tick, so one in as many may err.
    average_run_length: int = 365
    psi: float = 0.25  # a smaller shift is no alert, however certain it is
    missing: float = 0.1  # rise of a column's share of missing values, of values out of range, of unseen categories
    volume: float = 0.5  # events of a tick below this share of the median of the same weekday's
    run_of_one_class: int = 500  # consecutive labels of one class
    quiet_ms: int = 14 * DAY_MS  # an alert is resolved when its detector was silent for so long
    cooldown_ms: int = 7 * DAY_MS  # after a resolution, before an alert of the same key may open


@dataclass(frozen=True, slots=True, kw_only=True)
class TriggerSpec:
    """One reason to retrain.

    alert: an alert of `alert_kind` has opened or repeated. schedule: `every_ms` since the last training (or the first
    example). volume: examples have grown by the share `growth` since the last training. performance: the blend's log
    loss over the monitor's window is above that of `comparator`, an expert beside it: booster, learner, base_rate.
    """

    kind: TriggerKind
    alert_kind: str = ""
    every_ms: int = 0
    growth: float = 0.0
    comparator: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutSpec:
    """What a challenger proves after the gate: in shadow, then on a share of the events, then as the champion.

    The confidence sequence of the mean difference of loss (champion minus challenger) holds at every look with
    probability 1 - alpha. Only events whose wait for a label is over count, so a label's delay cannot choose them.
    """

    alpha: float = 0.05
    examples_min: int = 500  # before the first look at a stage
    examples_max: int = 20_000  # undecided after so many: the challenger goes
    margin: float = 0.0  # nats: promoted when it is certainly not worse than this
    canary_share: float = 0.0  # of the events, by a hash of their ids; 0 = no canary
    canary_examples: int = 2_000  # of the canary stage
    probation_examples: int = 10_000  # after promotion the former champion is scored beside for so many


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrainSpec:
    """When a new booster is trained, on what, and what becomes of it."""

    any_of: tuple[TriggerSpec, ...] = ()
    all_of: tuple[TriggerSpec, ...] = ()  # all must hold at one tick; together with any_of: one of those as well
    window: Literal["all", "last", "decayed"] = "all"
    window_ms: int = 0  # last: so much before the training; decayed: the half-life of an example's weight
    examples_min: int = 2_000
    cooldown_ms: int = 7 * DAY_MS  # between trainings; a person's demand does not wait for it
    latency_ms: int = DAY_MS  # bounded replay: event time that a training takes; live, it takes what it takes
    timeout_s: float = 600.0
    needs_approval: bool = False  # `tidemill models approve` before a challenger serves anything
    holdout: float = 0.02  # share of all examples, by a hash of their offset, that no booster is trained on
    gate_margin: float = (
        0.002  # nats: a challenger may be worse than the champion by so much on recent rows and holdout
    )
    slice_margin: float = 0.02  # nats, for each value of a category with at least `slice_examples`
    slice_examples: int = 500
    rollout: RolloutSpec = field(default_factory=RolloutSpec)
    guards_learner: bool = True  # freeze and roll back the learner where it is worse than booster and constant
