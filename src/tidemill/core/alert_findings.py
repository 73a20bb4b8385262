"""From what detectors say of a tick to what is told of it: one sentence with numbers, evidence, culprits.

In: shifts, findings, states, counts. Out: firings, at most one per key. Invariant: nothing is decided here but the
limits of operations, which are constants below.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from tidemill.core.alert_book import Firing
from tidemill.core.alerts import AlertKind
from tidemill.core.drift.concept import ConceptState
from tidemill.core.drift.quality import Finding
from tidemill.core.drift.shifts import LABEL, PREDICTION
from tidemill.core.loop_spec import MonitorSpec
from tidemill.core.loss_window import LossWindow
from tidemill.core.ticks import Shift

CULPRITS_MAX = 10
SLICES_MAX = 3
SLICE_ROWS_MIN = 50
OPERATIONS_SHARE = 0.05  # of a tick: dead letters of its records, degraded ones of its predictions
OPERATIONS_MIN = 20  # records or predictions of a tick: of fewer, one is more than the share


class Scope(NamedTuple):
    """What evidence is of. Times in ms; offsets of the examples log; tick_*: of the last tick, window_*: of all."""

    tick_start: int
    tick_offset: int
    window_start: int
    window_offset: int
    end: int
    offset_next: int


class Operations(NamedTuple):
    """Counts of one tick."""

    records: int
    dead_letters: int
    events: int
    degraded: int
    has_booster: bool  # one has served by now: before, a fallback is what is expected


def of_shifts(shifts: Sequence[Shift], spec: MonitorSpec, scope: Scope) -> Iterator[Firing]:
    """covariate/features, prediction/blend, label/share."""
    moved = sorted((one for one in shifts if one.is_drift), key=lambda one: (-abs(one.effect), one.subject))
    features = [one for one in moved if one.subject not in (PREDICTION, LABEL)]
    if features:
        worst = features[0]
        judged = sum(one.subject not in (PREDICTION, LABEL) for one in shifts)
        evidence = {
            "features": float(len(features)),
            "features_judged": float(judged),
            "effect": worst.effect,
            "p_value": worst.p_value,
            "threshold": spec.psi,
            **{f"effect/{one.subject}": one.effect for one in features[:CULPRITS_MAX]},
        }
        summary = (
            f"{len(features)} of {judged} features moved; most of all {worst.subject}, by a PSI of {worst.effect:.3g}"
            f" (p = {worst.p_value:.2g})."
        )
        culprits = tuple(one.subject for one in features[:CULPRITS_MAX])
        yield _of_window(scope, "covariate", "features", summary, evidence, culprits)
    for one in moved:
        evidence = {"effect": one.effect, "p_value": one.p_value}
        if one.subject == PREDICTION:
            summary = f"What is predicted moved by a PSI of {one.effect:.3g} (p = {one.p_value:.2g})."
            yield _of_window(scope, "prediction", "blend", summary, {**evidence, "threshold": spec.psi})
        elif one.subject == LABEL:
            summary = f"The share of positive labels changed by {one.effect:+.3f} (p = {one.p_value:.2g})."
            yield _of_window(scope, "label", "share", summary, evidence)


def of_concept(state: ConceptState, window: LossWindow, scope: Scope) -> Iterator[Firing]:
    """concept/blend, of the tick whose block fired; the slices are those of the window."""
    if not state.is_firing:
        return
    slices = window.worst_slices(count=SLICES_MAX, rows_min=SLICE_ROWS_MIN)
    evidence = {
        "e_value": state.e_value,
        "threshold": state.threshold,
        "excess": state.excess,
        "excess_window": window.mean_excess or 0.0,
        "n": float(window.examples),
        **{f"excess/{name}": value for name, value in slices},
    }
    ticks = "tick" if state.ticks == 1 else f"{state.ticks} ticks"
    summary = (
        f"The log loss of the blend was {state.excess:+.4f} nats off what its probabilities expect in the last {ticks}"
        f" (e-value {state.e_value:.3g}, threshold {state.threshold:.3g})."
    )
    yield _of_window(scope, "concept", "blend", summary, evidence, tuple(name for name, _ in slices))


def of_quality(findings: Iterable[Finding], scope: Scope) -> Iterator[Firing]:
    """quality/<subject>."""
    for one in findings:
        text = one.text if one.text.endswith(".") else f"{one.text}."
        column = one.subject.partition("/")[2]
        evidence = {"value": one.value, "threshold": one.limit}
        yield _of_tick(scope, "quality", one.subject, text, evidence, (column,) if column else ())


def of_performance(window: LossWindow, scope: Scope) -> Iterator[Firing]:
    """performance/blend: over the window worse than knowing only the share of positives."""
    gap = window.gaps.get("base_rate", 0.0)
    if gap <= 0:
        return
    blend, base_rate = window.losses["blend"], window.losses["base_rate"]
    evidence = {"effect": gap, "blend": blend, "base_rate": base_rate, "n": float(window.examples), "threshold": 0.0}
    summary = (
        f"Over the window the log loss of the blend, {blend:.4f}, is {gap:.4f} nats above that of the base rate,"
        f" on {window.examples:,} examples."
    )
    yield _of_window(scope, "performance", "blend", summary, evidence)


def of_operations(counts: Operations, scope: Scope) -> Iterator[Firing]:
    """operations/dead_letters and operations/degraded."""
    for subject, found, total, is_judged in (
        ("dead_letters", counts.dead_letters, counts.records, True),
        ("degraded", counts.degraded, counts.events, counts.has_booster),
    ):
        if is_judged and total >= OPERATIONS_MIN and found > OPERATIONS_SHARE * total:
            what = "records went to the dead letters" if subject == "dead_letters" else "predictions were degraded"
            summary = f"{found:,} of {total:,} {what} in the last tick, {found / total:.1%}."
            evidence = {
                "effect": found / total,
                "threshold": OPERATIONS_SHARE,
                "count": float(found),
                "n": float(total),
            }
            yield _of_tick(scope, "operations", subject, summary, evidence)


def _of_window(
    scope: Scope,
    kind: AlertKind,
    subject: str,
    summary: str,
    evidence: Mapping[str, float],
    culprits: tuple[str, ...] = (),
) -> Firing:
    return Firing(
        kind=kind,
        subject=subject,
        summary=summary,
        window_start=scope.window_start,
        window_end=scope.end,
        offset_start=scope.window_offset,
        offset_next=scope.offset_next,
        culprits=culprits,
        evidence=evidence,
    )


def _of_tick(
    scope: Scope,
    kind: AlertKind,
    subject: str,
    summary: str,
    evidence: Mapping[str, float],
    culprits: tuple[str, ...] = (),
) -> Firing:
    of_tick = scope._replace(window_start=scope.tick_start, window_offset=scope.tick_offset)
    return _of_window(of_tick, kind, subject, summary, evidence, culprits)
