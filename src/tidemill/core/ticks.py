"""What the monitor found at the end of a tick: one record of `<app>.drift.v1`.

In: findings. Out: values with the fields of schemas/tidemill/tick.v1.avsc. Invariant: a tick says all that the trainer
needs to decide, so its decisions are a function of the ticks and of its own story.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from tidemill.core.alerts import Alert

Verdict = Literal["open", "better", "worse", "undecided"]


class Shift(NamedTuple):
    """One column of the window against the reference. test: psi or chi2; subject: a feature, "prediction", "label"."""

    subject: str
    test: str
    effect: float  # PSI; for the label the difference of shares
    p_value: float
    is_drift: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutState:
    """How a challenger (or, after a swap, the former champion) compares with who serves, so far in this stage.

    mean, lower, upper: of loss(champion) - loss(other), nats: positive = the other one is better. stage_start: the
    offset of the command that began the stage. verdict: about the other one; "undecided" = examples_max is reached, or
    nothing was counted (examples = 0) for so long that nothing will be.
    """

    other: str
    stage_start: int
    examples: int
    mean: float
    lower: float
    upper: float
    verdict: Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """The slice of event time that ends at `time`, and what was true at its end.

    offset_next: of the examples log, behind everything that was judged. losses: of the window, by series. alerts: all
    records of the alarm topic that this tick made, triggers included; published before the tick, in one transaction.
    """

    time: int
    offset_next: int
    champion: str
    challenger: str
    events: int  # predictions of this tick
    examples: int  # measured examples of this tick
    examples_total: int  # learned since the beginning of the log
    log_loss: float | None  # of the blend, this tick
    excess: float | None  # log loss minus the loss that the probabilities themselves expect
    e_value: float  # of the concept detector
    threshold: float  # where it fires
    adwin: int  # alarms of river's detectors so far, shown beside
    page_hinkley: int
    losses: Mapping[str, float] = field(default_factory=dict)
    shifts: tuple[Shift, ...] = ()
    quality: Mapping[str, float] = field(default_factory=dict)
    rollout: RolloutState | None = None
    is_learner_bad: bool = False  # over the window worse than booster and constant, and not frozen
    bad_since: int = -1  # the offset of the examples log where that window begins
    alerts: tuple[Alert, ...] = ()
