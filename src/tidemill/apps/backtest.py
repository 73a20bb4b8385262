"""A backtest: an app's past in memory, through the worker's own cycle, and what it would have been worth.

In: an app, lanes of its input topics, when to retrain. Out: `Results`. Invariant: every score was made before its label
came, by models that had served from before its event.
"""

from __future__ import annotations

import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tidemill.apps.backtest_log import OnExamples, OnOutputs
from tidemill.apps.backtest_loop import MemoryLoop
from tidemill.apps.backtest_results import Counts as ResultCounts
from tidemill.apps.backtest_results import (
    DelayBin,
    Promotion,
    Results,
    Series,
    SeriesKind,
    Slice,
    Source,
    WeightPoint,
    series_of,
    with_kappa,
)
from tidemill.apps.backtest_run import BacktestRun, Lanes, Progress
from tidemill.apps.garbage_collection import collect_rarely
from tidemill.apps.monitor_training import ComparatorTraining
from tidemill.apps.retraining import Promoted, Retraining, RetrainPlan, Shelf
from tidemill.config import config_digest
from tidemill.core.features import FeaturePlan
from tidemill.core.metrics import LOSS_UNIT
from tidemill.core.records import ExampleColumns, Outcome
from tidemill.core.spec import AppSpec
from tidemill.core.validation import Validation, Window
from tidemill.core.validation_cells import Tally, delay_of
from tidemill.errors import ConfigError
from tidemill.io.input_topic import Schemas

SLICES_SHOWN = 20
SLICE_EXAMPLES_MIN = 200  # below it an excess is mostly chance
DELAY_BINS = 24
WEEK = "7d"
WEEK_MS = 7 * 86_400_000
WEIGHTS_EVERY_MS = 86_400_000


@dataclass(frozen=True, slots=True, kw_only=True)
class BacktestOptions:
    """retrain None: no booster is trained but comparators. has_loop: monitor and trainer of the app beside, instead of
    `retrain`. measured_from_ms: earlier examples teach, and are not
    measured. threads: for training alone. made, command: for the record."""

    retrain: RetrainPlan | None = None
    has_loop: bool = False
    measured_from_ms: int | None = None
    threads: int = 1
    made: str = ""
    command: str = ""
    schemas: Schemas | None = None  # of writers that are not declared
    on_progress: Callable[[Progress], None] = lambda progress: None
    on_outputs: OnOutputs = lambda topic, values: None
    on_examples: OnExamples = lambda examples: None
    on_loop: Callable[[MemoryLoop], None] = lambda loop: None  # hears it before the first record
    report: Callable[[str], None] = lambda line: None


@dataclass(frozen=True, slots=True)
class Measured:
    """results, and for comparisons the sum of the blend's losses by day of label time: day number -> (n, nats)."""

    results: Results
    losses_by_day: Mapping[int, tuple[int, float]]


def run_backtest(app: AppSpec, lanes: Lanes, sources: Sequence[Source], options: BacktestOptions) -> Measured:
    """Run the lanes through the app and measure every prediction against its label."""
    started = time.monotonic()
    plan = FeaturePlan(app)
    trains = options.retrain is not None or options.has_loop or any(one.kind == "booster" for one in app.comparators)
    training = ComparatorTraining(app, plan, threads=options.threads, report=options.report) if trains else None
    watch = _Watch(app, plan, training, options)
    watch.retraining = (
        Retraining(
            watch.run, watch.shelf, options.retrain, examples=training.examples, threads=options.threads,
            report=options.report,
        )
        if options.retrain is not None and training is not None
        else None
    )  # fmt: skip
    if options.has_loop:
        assert training is not None
        watch.loop = MemoryLoop(
            watch.run, watch.shelf, examples=training.examples, threads=options.threads, report=options.report
        )
        options.on_loop(watch.loop)
    collect_rarely()
    watch.run.run(lanes, on_batch=watch.on_batch)
    results = _results(app, watch, sources, options, time.monotonic() - started)
    tallies = {day.number: watch.validation.tally(day, "blend").running for day in watch.validation.windows("1d")}
    losses = {day: (one.count, one.loss_units * LOSS_UNIT) for day, one in tallies.items() if one.count}
    return Measured(results, losses)


class _Watch:
    """What looks on while a run goes by."""

    def __init__(
        self, app: AppSpec, plan: FeaturePlan, training: ComparatorTraining | None, options: BacktestOptions
    ) -> None:
        self._options = options
        self.validation = Validation(
            app, plan.category_names, training, measured_from_ms=options.measured_from_ms, sliced_windows=("run",)
        )
        self.retraining: Retraining | None = None
        self.loop: MemoryLoop | None = None
        self.weights: list[WeightPoint] = []
        self.time_first = -1

        self.shelf = Shelf(plan)
        self.run = BacktestRun(
            app,
            load=self.shelf,
            on_examples=self._on_examples,
            on_outputs=self._on_outputs,
            keeps_log=options.has_loop,
            schemas=options.schemas,
        )

    def on_batch(self, progress: Progress) -> None:
        if self.time_first < 0:
            self.time_first = progress.time
        if not self.weights or progress.time >= self.weights[-1].time_ms + WEIGHTS_EVERY_MS:
            weights = self.run.serving.blend_weights
            self.weights.append(
                WeightPoint(time_ms=progress.time, weights=dict(zip(weights.names, weights.weights, strict=True)))
            )
        self._options.on_progress(progress)

    def _on_examples(self, examples: ExampleColumns) -> None:
        self.validation.fold(examples)
        self._options.on_examples(examples)
        if self.loop is not None:
            self.loop.on_examples(examples)

    def _on_outputs(self, topic: str, values: list[bytes]) -> None:
        self._options.on_outputs(topic, values)
        if self.loop is not None:
            self.loop.on_outputs(topic, values)

    @property
    def promoted(self) -> Sequence[Promoted]:
        """By the schedule or by the loop."""
        found = self.retraining or self.loop
        return () if found is None else found.promoted


def _results(
    app: AppSpec, watch: _Watch, sources: Sequence[Source], options: BacktestOptions, seconds: float
) -> Results:
    validation, progress = watch.validation, watch.run.progress
    if not validation.windows("run"):
        raise ConfigError(
            "TM-1811",
            f"app {app.name}: {progress.records:,} records, {progress.outcomes[Outcome.PREDICTION]:,} predictions, and "
            "no label among those to be measured; do labels carry the events' ids, and is --measure-from too late?",
        )
    overall = {name: validation.tally(Window("run", 0), name) for name in validation.series}
    series = _series(app, validation, overall)
    served = overall["blend"]
    experts = [overall[name].running for name in ("booster", "learner", "base_rate") if overall[name].running.count]
    counts = progress.outcomes
    return Results(
        app=app.name,
        config_digest=config_digest(app),
        made=options.made,
        command=options.command,
        sources=tuple(sources),
        time_first_ms=watch.time_first,
        time_last_ms=progress.time,
        counts=_counts(progress, counts),
        seconds=seconds,
        records_per_s=progress.records / seconds if seconds else 0.0,
        rss_bytes_max=_rss_bytes_max(),
        false_alarm_cost=app.costs.false_alarm,
        miss_cost=app.costs.miss,
        label_delay_ms_p50=served.delay_ms(50),
        label_delay_ms_p95=served.delay_ms(95),
        series=series,
        promotions=tuple(
            Promotion(
                time_ms=one.time_ms,
                version=one.manifest.version,
                trained_examples=one.manifest.examples,
                cause=one.manifest.cause,
            )
            for one in watch.promoted
        ),
        slices=_worst_slices(validation),
        label_delays=_delay_bins(served),
        blend_weights=tuple(watch.weights),
        blend_excess=served.running.log_loss - min(one.log_loss for one in experts) if experts else None,
        window_ms=WEEK_MS,
    )


def _series(app: AppSpec, validation: Validation, overall: dict[str, Tally]) -> tuple[Series, ...]:
    """Every series that said something, the blend first."""
    kinds: dict[str, SeriesKind] = {"blend": "blend", "learner": "learner", "booster": "booster"}
    for comparator in app.comparators:
        kinds[comparator.name] = "comparator" if comparator.kind == "booster" else comparator.kind
    weeks = validation.windows(WEEK)
    found = []
    for name in validation.series:
        if not overall[name].running.count:
            continue
        windows = {week.number * WEEK_MS: validation.tally(week, name).running for week in weeks}
        kept = {start: running for start, running in windows.items() if running.count}
        found.append(series_of(name, kinds.get(name, "constant"), overall[name].running, kept, app.costs))
    return with_kappa(found)


def _counts(progress: Progress, counts: Counter[Outcome]) -> ResultCounts:
    letters = (Outcome.EVENT_DEAD_LETTER, Outcome.LABEL_DEAD_LETTER, Outcome.CONTEXT_DEAD_LETTER)
    events = (Outcome.PREDICTION, Outcome.EVENT_DUPLICATE, Outcome.EVENT_DEAD_LETTER)
    labels = (
        Outcome.EXAMPLE, Outcome.AMENDMENT, Outcome.LABEL_DUPLICATE, Outcome.ORPHAN, Outcome.WAITING,
        Outcome.LABEL_DEAD_LETTER,
    )  # fmt: skip
    return ResultCounts(
        records=progress.records,
        events=sum(counts[one] for one in events),
        labels=sum(counts[one] for one in labels),
        examples=counts[Outcome.EXAMPLE] + counts[Outcome.WAITING_JOINED],
        expired=counts[Outcome.EXPIRED],
        dead_letters=sum(counts[one] for one in letters),
        batches=progress.batches,
    )


def _worst_slices(validation: Validation) -> tuple[Slice, ...]:
    """Of what served, by the excess of their log loss."""
    rows: list[Any] = [
        row
        for row in validation.slice_rows(Window("run", 0))
        if row["series"] == "blend" and row["slice_value"] is not None and row["n"] >= SLICE_EXAMPLES_MIN
    ]
    rows.sort(key=lambda row: -row["excess_log_loss"])
    return tuple(
        Slice(
            feature=row["slice_feature"],
            value=row["slice_value"],
            n=row["n"],
            log_loss=row["log_loss"],
            excess=row["excess_log_loss"],
            auc=row["auc"],
        )
        for row in rows[:SLICES_SHOWN]
    )


def _delay_bins(tally: Tally) -> tuple[DelayBin, ...]:
    """The delays in few bins of equal width, up to the longest."""
    found = [(delay_of(bucket), int(n)) for bucket, n in enumerate(tally.delays.tolist()) if n]
    if not found:
        return ()
    width = max(1, -(-(found[-1][0] + 1) // DELAY_BINS))
    counts: Counter[int] = Counter()
    for delay, n in found:
        counts[delay // width] += n
    last = max(counts)
    return tuple(DelayBin(start_ms=at * width, end_ms=(at + 1) * width, n=counts[at]) for at in range(last + 1))


def _rss_bytes_max() -> int:
    """Of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
