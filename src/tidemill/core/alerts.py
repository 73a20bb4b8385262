"""Alerts: what the monitor tells operators and the trainer, on the alarm topic `<app>.alerts.v1`.

In: findings of detectors. Out: records with the fields of schemas/tidemill/alert.v1.avsc. Invariant: an incident has
one id from its opening to its resolution; its key is the same whenever the same thing happens again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

AlertKind = Literal["covariate", "label", "prediction", "concept", "quality", "performance", "operations", "trigger"]
AlertEvent = Literal["opened", "repeated", "resolved", "acknowledged"]
Severity = Literal["page", "ticket", "info"]
ALERT_KINDS: tuple[AlertKind, ...] = (
    *("covariate", "label", "prediction", "concept", "quality", "performance", "operations", "trigger"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """One record about one incident.

    key: "<kind>/<subject>", as "concept/blend" or "quality/missing/temp". id: "<key>@<opened>". time: the end of the
    tick that told, ms. window: what the evidence is of, ms; offsets: of the examples log, [start, next). evidence:
    numbers by name. culprits: features or slices, worst first. A trigger is opened and resolved at once.
    """

    id: str
    key: str
    kind: AlertKind
    event: AlertEvent
    severity: Severity
    time: int
    opened: int
    summary: str
    action: str  # what to do, one sentence
    runbook: str  # path of a page: docs/runbooks/<kind>.md
    champion: str
    window_start: int
    window_end: int
    offset_start: int = -1
    offset_next: int = -1
    culprits: tuple[str, ...] = ()
    evidence: Mapping[str, float] = field(default_factory=dict)
    by: str = ""  # acknowledged: who
