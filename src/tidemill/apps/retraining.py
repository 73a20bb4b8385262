"""Retrain on a schedule of event time: what a backtest does instead of a trainer process.

In: a run in memory, a plan. Out: promotions in its log. Invariant: a model learns from labels that came before its
time, and serves `latency` of event time later, as training takes time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from tidemill.apps.backtest_run import BacktestRun
from tidemill.apps.boosters import load_for, train_for
from tidemill.core.features import FeaturePlan
from tidemill.core.manifest import Manifest
from tidemill.errors import ModelRefusedError
from tidemill.models.booster import Booster
from tidemill.models.booster_training import Trained
from tidemill.models.training_examples import TrainingExamples

DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrainPlan:
    """first_ms: of the first training. every_ms: between trainings, None = a calendar month (UTC). times: at most."""

    first_ms: int
    every_ms: int | None = None
    times: int | None = None
    latency_ms: int = DAY_MS

    def following(self, time_ms: int) -> int:
        if self.every_ms is not None:
            return time_ms + self.every_ms
        at = datetime.fromtimestamp(time_ms / 1_000, UTC)
        return round(at.replace(year=at.year + at.month // 12, month=at.month % 12 + 1).timestamp() * 1_000)


@dataclass(frozen=True, slots=True)
class Promoted:
    """A version that served from `time_ms` on."""

    time_ms: int
    manifest: Manifest


class Shelf:
    """Boosters of a run, by version: what the registry is to a worker."""

    def __init__(self, plan: FeaturePlan) -> None:
        self._plan = plan
        self._trained: dict[str, Trained] = {}

    def put(self, trained: Trained) -> str:
        self._trained[trained.manifest.version] = trained
        return trained.manifest.version

    def manifest(self, version: str) -> Manifest:
        return self._trained[version].manifest

    def __call__(self, version: str) -> Booster:
        trained = self._trained[version]
        return load_for(self._plan, trained.model, trained.manifest)


class Retraining:
    """Trains on what a run has labelled so far, and promotes it."""

    def __init__(
        self,
        run: BacktestRun,
        shelf: Shelf,
        plan: RetrainPlan,
        *,
        examples: TrainingExamples,
        threads: int,
        report: Callable[[str], None],
    ) -> None:
        """`examples`: of the run so far; somebody else appends to it."""
        self._run = run
        self._shelf = shelf
        self._plan = plan
        self._threads = threads
        self._report = report
        self._count = 0
        self._examples = examples
        self.promoted: list[Promoted] = []
        run.at(plan.first_ms, lambda: self._train(plan.first_ms))

    def _train(self, time_ms: int) -> None:
        self._count += 1
        following = self._plan.following(time_ms)
        if self._plan.times is None or self._count < self._plan.times:
            self._run.at(following, lambda: self._train(following))
        spec, plan = self._run.spec, self._run.plan
        try:
            trained = train_for(
                spec,
                plan,
                self._examples.before(time_ms),
                parent=self._run.serving.roles.champion,
                cause="schedule",
                created=time_ms,
                threads=self._threads,
            )
        except ModelRefusedError as error:
            self._report(f"{_day(time_ms)}: not trained: {error}")
            return
        version = self._shelf.put(trained)
        self._run.at(time_ms + self._plan.latency_ms, lambda: self._promote(version, time_ms + self._plan.latency_ms))

    def _promote(self, version: str, time_ms: int) -> None:
        run = self._run
        run.catch_up()
        expects = run.serving.roles.champion
        for kind in ("prepare", "promote"):
            run.log.command(kind, version=version, expects=expects, cause="schedule", time=time_ms)
        manifest = self._shelf.manifest(version)
        self.promoted.append(Promoted(time_ms, manifest))
        self._report(
            f"{_day(time_ms)}: promoted {version}, {manifest.trees} trees of {manifest.examples:,} examples, "
            f"log loss {manifest.metrics['log_loss']:.4f} on the newest {manifest.metrics['n']:,.0f}"
        )


def _day(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1_000, UTC).date().isoformat()
