"""The story of each model version: what the trainer did, why, and with which verdict, on `<app>.models.v1`.

In: decisions and their outcomes. Out: records with the fields of schemas/tidemill/model_event.v1.avsc. Invariant: the
trainer's state is the fold of its story, so a restarted trainer knows what it was about.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

DEMAND_KEY = "trigger/demand"
APPROVAL_KEY = "trigger/approval"  # its culprits: the version that is approved
REJECTION_KEY = "trigger/rejection"  # likewise: that is refused
PEOPLES_KEYS = (DEMAND_KEY, APPROVAL_KEY, REJECTION_KEY)  # of the alarm topic: what people ask the trainer

StoryKind = Literal[
    "triggered",  # a training begins, or is due
    "declined",  # a trigger that came too early, or during another rollout
    "failed",  # the training failed or was stopped; the verdict says why
    "trained",  # registered
    "gated",  # refused by the gate
    "approval_asked", "approved",
    "shadow",  # prepared: folded and scored beside
    "canary",  # serves a share
    "promoted",  # serves; the parent is scored beside on probation
    "kept",  # probation is over: the parent is dropped
    "rolled_back",  # the parent serves again
    "aborted",  # the challenger is dropped, or a person rejects what waits for approval
    "frozen", "thawed", "excised",  # the champion's learner
]  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class StoryEvent:
    """One step. id: stable, so that doing it twice is told from doing it again.

    cause: the id of an alert or trigger, or a person's words. offsets: of the data that the step rests on. due: event
    time at which the next step may follow. command_offset: where the command stands in the examples log, -1 = none.
    """

    id: str
    kind: StoryKind
    time: int
    version: str = ""
    parent: str = ""
    cause: str = ""
    verdict: str = ""
    evidence: Mapping[str, float] = field(default_factory=dict)
    offset_start: int = -1
    offset_next: int = -1
    due: int = -1
    command_offset: int = -1
