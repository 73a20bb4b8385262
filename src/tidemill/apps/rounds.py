"""One round of retraining: choose the rows, train, compare with who serves, and tell the story of it.

In: examples of the log, the declaration, the champion's booster. Out: a trained version with the gate's verdict, and
its story events. Invariant: a function of the arguments, without Kafka or a clock: the trainer process and a backtest
come to the same version and the same words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from tidemill.apps.boosters import train_for
from tidemill.core.features import FeaturePlan
from tidemill.core.gate import GateRows, GateVerdict, judge
from tidemill.core.loop_spec import RetrainSpec
from tidemill.core.records import Float64s
from tidemill.core.roles import OffsetRange
from tidemill.core.spec import AppSpec
from tidemill.core.story import StoryEvent, StoryKind
from tidemill.models.booster import Booster
from tidemill.models.booster_training import OnRound, Trained
from tidemill.models.training_examples import TrainingExamples, TrainingRows

HALF_LIVES_JUDGED = 2  # decayed weights: what is older has less than a quarter of the weight, and is no test


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundTask:
    """What a training rests on.

    time: end of the tick that decided; only labels that came before it count, and it is when the version was created.
    offset_next: of the examples log, behind what that tick has judged. parent: the champion of the tick. cause: the
    trigger's id. due: event time at which the version may be prepared. excised:
    ranges that decisions of the same tick take out, beside those that the log took out before.
    """

    time: int
    offset_next: int
    parent: str
    cause: str
    due: int
    excised: tuple[OffsetRange, ...] = ()


class Round(NamedTuple):
    """A trained version and what the gate says of it."""

    trained: Trained
    verdict: GateVerdict


class RoundRows(NamedTuple):
    """rows: to train on. holdout: only to judge on."""

    rows: TrainingRows
    holdout: TrainingRows


def retrain_spec(app: AppSpec) -> RetrainSpec:
    """What is declared; without a declaration trainings come by demand only."""
    return app.retrain or RetrainSpec()


def train_and_gate(
    app: AppSpec,
    plan: FeaturePlan,
    examples: TrainingExamples,
    task: RoundTask,
    *,
    champion: Booster | None,
    excised: Sequence[OffsetRange] = (),
    threads: int,
    on_round: OnRound | None = None,
) -> Round:
    """Train on what the app declares and judge it by the trees that did not see the newest examples.

    Args:
        champion: the booster of `task.parent`; None = there is none, or it cannot be loaded.
        excised: ranges that the log took out before `task.offset_next`.
    Raises:
        ModelRefusedError: TM-5030 too few examples, TM-5031 of one class only.
    """
    spec = retrain_spec(app)
    rows, holdout = choose_rows(examples, spec, task, (*excised, *task.excised))
    trained = train_for(
        app,
        plan,
        rows,
        holdout=holdout,
        parent=task.parent,
        cause=task.cause,
        created=task.time,
        threads=threads,
        on_round=on_round,
    )
    judged = trained.judged
    is_fair = _is_unseen(rows, champion) & judged.is_newest
    recent = _gate_rows(rows, is_fair, judged.newest[is_fair[judged.is_newest]], champion, plan)
    frozen = _gate_rows(holdout, np.ones(len(holdout), dtype=np.bool_), judged.holdout, champion, plan)
    verdict = judge(recent, frozen, base_rate=judged.base_rate, costs=app.costs, spec=spec)
    return Round(trained, verdict)


def choose_rows(
    examples: TrainingExamples, spec: RetrainSpec, task: RoundTask, excised: Sequence[OffsetRange] = ()
) -> RoundRows:
    """What a training at `task.time` learns from, and the holdout of the same time."""
    since = task.time - spec.window_ms if spec.window == "last" else None
    judged_since = task.time - HALF_LIVES_JUDGED * spec.window_ms if spec.window == "decayed" else since
    rows = examples.rows(
        before_ms=task.time,
        since_ms=since,
        offset_next=task.offset_next,
        excised=excised,
        holdout=spec.holdout,
    )
    holdout = examples.holdout_rows(
        spec.holdout,
        before_ms=task.time,
        since_ms=judged_since,
        offset_next=task.offset_next,
        excised=excised,
    )
    if spec.window == "decayed":
        rows = rows.decayed(spec.window_ms, task.time)
    return RoundRows(rows, holdout)


def story_of_round(done: Round, task: RoundTask) -> tuple[StoryEvent, ...]:
    """Registered; and refused, where the gate refuses it."""
    manifest, verdict = done.trained.manifest, done.verdict
    fit = (
        f"{manifest.trees} trees of {manifest.examples:,} examples, log loss {manifest.metrics['log_loss']:.4f} on the "
        f"newest {manifest.metrics['n']:,.0f}"
    )
    told: list[tuple[StoryKind, str]] = [("trained", fit)]
    if verdict.is_passed:
        told = [("trained", f"{fit}; the gate: {'; '.join(verdict.reasons)}")]
    else:
        told.append(("gated", "; ".join(verdict.reasons)))
    return tuple(
        StoryEvent(
            id=f"{kind}/{manifest.version}@{task.time}",
            kind=kind,
            time=task.time,
            version=manifest.version,
            parent=task.parent,
            cause=task.cause,
            verdict=words,
            evidence=dict(verdict.evidence),
            offset_start=manifest.offset_start,
            offset_next=manifest.offset_next,
            due=task.due,
        )
        for kind, words in told
    )


def story_of_failure(reason: str, task: RoundTask) -> StoryEvent:
    """The training came to nothing: refused by the data, stopped at its time limit, or ended by a signal."""
    return StoryEvent(
        id=f"failed/{task.cause}@{task.time}",
        kind="failed",
        time=task.time,
        parent=task.parent,
        cause=task.cause,
        verdict=reason,
        offset_next=task.offset_next,
    )


def _is_unseen(rows: TrainingRows, champion: Booster | None) -> npt.NDArray[np.bool_]:
    """Which rows the champion was not trained on: what it knows by heart is no test of it."""
    if champion is None:
        return np.ones(len(rows), dtype=np.bool_)
    return np.asarray(rows.offset >= champion.manifest.offset_next)


def _gate_rows(
    rows: TrainingRows,
    is_chosen: npt.NDArray[np.bool_],
    challenger: Float64s,
    champion: Booster | None,
    plan: FeaturePlan,
) -> GateRows:
    codes, values = {}, {}
    for at, (name, known) in enumerate(zip(plan.category_names, rows.vocabularies, strict=True)):
        of_column = rows.codes[is_chosen, at]
        missing = known.index("") if "" in known else -1
        codes[name] = np.where(of_column == missing, -1, of_column).astype(np.int32)
        values[name] = known
    return GateRows(
        label=rows.label[is_chosen],
        challenger=challenger,
        champion=None if champion is None else champion.probability(rows.features(is_chosen)),
        codes=codes,
        values=values,
    )
