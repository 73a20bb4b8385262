"""One backtest as a value that another process can run, and how several are run side by side.

In: a job. Out: what was measured. Invariant: a job says everything: two runs of one job on one past measure the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as ProgressBar

from tidemill.apps.backtest import BacktestOptions, Measured, run_backtest
from tidemill.apps.backtest_compare import run_variants
from tidemill.apps.backtest_results import Results, Source
from tidemill.apps.backtest_run import Lanes, Progress
from tidemill.apps.backtest_sources import kafka_lanes, kafka_ranges
from tidemill.apps.input_files import file_lanes, files_by_topic, require_all_topics
from tidemill.apps.predictions_file import PredictionsFile
from tidemill.apps.retraining import RetrainPlan
from tidemill.apps.schema_lookup import open_schemas
from tidemill.config import Settings, load_settings
from tidemill.core.merge import Offered
from tidemill.core.spec import AppSpec, ComparatorSpec
from tidemill.core.topic_names import predictions_topic
from tidemill.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class BacktestJob:
    """The arguments of `tidemill backtest`; times and durations in ms."""

    config: Path
    files: tuple[str, ...]
    example: Path | None
    until_ms: int | None
    has_loop: bool  # retrain as the app declares it, with its monitor and trainer, instead of by the clock
    retrain_from_ms: int | None
    retrain_every_ms: int | None
    retrain_times: int | None
    training_latency_ms: int
    measured_from_ms: int | None
    has_boosters_beside: bool  # whether comparators of kind booster are trained and measured
    predictions: Path | None
    threads: int
    bootstrap_servers: str | None
    data_folder: Path | None
    made: str
    command: str


def run_jobs(job: BacktestJob, others: tuple[Path, ...], *, is_quiet: bool, report: Callable[[str], None]) -> Results:
    """The job, and the same with other declarations beside it, in processes."""
    if job.example is not None:
        job = _with_example_files(job, job.example)
    if not others:
        with _progress_bar(is_quiet) as show:
            return run_job(job, on_progress=show, report=report).results
    variants = {job.config.stem: job}
    for path in others:
        name = path.stem if path.stem not in variants else str(path)
        variants[name] = replace(job, config=path, predictions=None)
    report(f"{len(variants)} variants side by side: {', '.join(variants)}")
    # The machine's cores are shared out: variants run at once, so each trains with its part.
    threads = max(1, job.threads // len(variants))
    jobs = {name: partial(run_job, replace(one, threads=threads)) for name, one in variants.items()}
    return run_variants(jobs, processes=min(len(jobs), max(1, job.threads)))


def run_job(
    job: BacktestJob,
    *,
    on_progress: Callable[[Progress, int], None] = lambda progress, total: None,
    report: Callable[[str], None] = lambda line: None,
) -> Measured:
    """Open the past and run it."""
    settings = load_settings(job.config, bootstrap_servers=job.bootstrap_servers, data_folder=job.data_folder)
    app = _with_comparators(settings.app, has_boosters=job.has_boosters_beside)
    lanes, sources, total = _open(settings, job)
    retrain = (
        None
        if job.retrain_from_ms is None
        else RetrainPlan(
            first_ms=job.retrain_from_ms,
            every_ms=job.retrain_every_ms,
            times=job.retrain_times,
            latency_ms=job.training_latency_ms,
        )
    )
    with ExitStack() as stack:
        file = None if job.predictions is None else stack.enter_context(PredictionsFile(job.predictions))
        published = predictions_topic(settings.app.name)

        def keep(topic: str, values: list[bytes]) -> None:
            if file is not None and topic == published:
                file.write(values)

        options = BacktestOptions(
            retrain=retrain,
            has_loop=job.has_loop,
            measured_from_ms=job.measured_from_ms,
            threads=job.threads,
            made=job.made,
            command=job.command,
            schemas=None if job.files else open_schemas(settings, report),
            on_progress=lambda progress: on_progress(progress, total),
            on_outputs=keep,
            report=report,
        )
        return run_backtest(app, lanes, sources, options)


def _with_comparators(app: AppSpec, *, has_boosters: bool) -> AppSpec:
    """Those declared, and the two that every accuracy is read against."""
    kept = tuple(one for one in app.comparators if has_boosters or one.kind != "booster")
    kinds = {one.kind for one in kept}
    baselines = (ComparatorSpec(name="constant", kind="constant"), ComparatorSpec(name="no_change", kind="no_change"))
    return replace(app, comparators=(*kept, *(one for one in baselines if one.kind not in kinds)))


def _open(settings: Settings, job: BacktestJob) -> tuple[Lanes, list[Source], int]:
    """Lanes, what they are, and how many records they hold (0 = unknown)."""
    if job.files:
        paths = files_by_topic(settings.app, list(job.files))
        require_all_topics(settings.app, paths)
        sources = [Source(name=str(path), records=0) for some in paths.values() for path in some]
        return _until(file_lanes(settings.app, paths), job.until_ms), sources, 0
    if settings.bootstrap_servers is None:
        raise ConfigError(
            "TM-1064",
            f"{job.config}: nothing to run over; give --file TOPIC=PATH for each topic, or --bootstrap-servers "
            "HOST:PORT",
        )
    ranges = kafka_ranges(settings)
    sources = [
        Source(name=str(partition), records=end - start, offset_start=start, offset_next=end)
        for partition, (start, end) in sorted(ranges.items())
    ]
    return (
        _until(kafka_lanes(settings, ranges), job.until_ms),
        sources,
        sum(end - start for start, end in ranges.values()),
    )


def _until(lanes: Lanes, until_ms: int | None) -> Lanes:
    if until_ms is None:
        return lanes
    return {partition: _cut(lane, until_ms) for partition, lane in lanes.items()}


def _cut(lane: Iterable[list[Offered]], until_ms: int) -> Iterator[list[Offered]]:
    """The records before a time; what follows the first later one is not read."""
    for records in lane:
        kept = [one for one in records if one.time < until_ms]
        if kept:
            yield kept
        if len(kept) < len(records):
            return


def _with_example_files(job: BacktestJob, folder: Path) -> BacktestJob:
    """The example's raw data is larger than a run: another process holds it, and gives it back."""
    from tidemill.apps.flights_files import write_files

    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        paths = pool.submit(write_files, load_settings(job.config).app, folder).result()
    return replace(job, files=tuple(f"{topic}={path}" for topic, path in paths.items()), example=None)


@contextmanager
def _progress_bar(is_quiet: bool) -> Iterator[Callable[[Progress, int], None]]:
    """A bar where the number of records is known, else a count; on stderr."""
    console = Console(stderr=True)
    columns: tuple[Any, ...] = (
        TextColumn("{task.fields[day]}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} records, {task.fields[rate]:,.0f}/s"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with ProgressBar(*columns, console=console, disable=is_quiet or not console.is_terminal, transient=True) as bar:
        task = bar.add_task("", total=None, day="", rate=0.0)

        def show(progress: Progress, total: int) -> None:
            elapsed = bar.tasks[0].elapsed or 0.0
            rate = progress.records / elapsed if elapsed else 0.0
            day = str(_day(progress.time))
            bar.update(task, completed=progress.records, total=total or None, day=day, rate=rate)

        yield show


def _day(time_ms: int) -> date | str:
    return datetime.fromtimestamp(time_ms / 1_000, UTC).date() if time_ms >= 0 else ""
