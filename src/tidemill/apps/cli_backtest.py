"""`tidemill backtest`: the past of an app, once more, in memory.

In: arguments. Out: a table or JSON on stdout, results and a page in a folder, progress on stderr, an exit code.
Invariant: it writes to no topic and no store.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tidemill.apps.cli_options import (
    Config,
    Data,
    OutputForm,
    Quiet,
    Servers,
    Verbose,
    Voice,
    form_of,
    hint,
    progress,
)

if TYPE_CHECKING:
    pass

EPILOG = (
    "Examples: [bold]tidemill backtest app.yaml --file orders=orders.csv --file returns=returns.csv --out results"
    "[/bold]; [bold]tidemill backtest app.yaml --bootstrap-servers kafka:9092 --retrain-from 2013-04-01 "
    "--compare other.yaml[/bold]"
)
DAY_FORMATS = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]


def backtest(
    config: Config,
    files: Annotated[
        list[str] | None,
        typer.Option(
            "--file",
            metavar="TOPIC=PATH",
            show_default=False,
            help="A file of a topic: .csv, .avro or .parquet, as `tidemill produce` takes it. Without any, the topics.",
        ),
    ] = None,
    example: Annotated[
        Path | None,
        typer.Option(
            "--example", metavar="DIR", help="Write the example's files there first and take them.", show_default=False
        ),
    ] = None,
    until: Annotated[
        datetime | None,
        typer.Option(formats=DAY_FORMATS, help="Only records before this event time (UTC).", show_default="none"),
    ] = None,
    loop: Annotated[
        bool,
        typer.Option("--loop", help="Judge drift, retrain, and promote as `retrain:` declares; each step is told."),
    ] = False,
    retrain_from: Annotated[
        datetime | None,
        typer.Option(
            formats=DAY_FORMATS, help="Train a booster at this event time (UTC), and then again.", show_default="none"
        ),
    ] = None,
    retrain_every: Annotated[str, typer.Option(metavar="DURATION", help="`month`, or such as 7d.")] = "month",
    retrain_times: Annotated[
        int | None, typer.Option(min=1, help="At most this often.", show_default="to the end")
    ] = None,
    training_latency: Annotated[
        str, typer.Option(metavar="DURATION", help="Event time from training to promotion.")
    ] = "1d",
    measured_from: Annotated[
        datetime | None,
        typer.Option(
            "--measure-from", formats=DAY_FORMATS, help="Measure events from this time on (UTC).", show_default="none"
        ),
    ] = None,
    boosters_beside: Annotated[
        bool, typer.Option("--comparators/--no-comparators", help="Train the declared comparators of kind booster.")
    ] = True,
    compare: Annotated[
        list[Path] | None,
        typer.Option(
            "--compare", metavar="CONFIG", help="Another YAML on the same past; may be repeated.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Write results.json and report.html there.", show_default=False),
    ] = None,
    predictions: Annotated[
        bool, typer.Option("--predictions", help="With --out: predictions.parquet, every prediction as published.")
    ] = False,
    threads: Annotated[int, typer.Option(min=1, help="For training.", show_default="all")] = os.cpu_count() or 1,
    bootstrap_servers: Servers = None,
    data: Data = None,
    output: OutputForm = "table",
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Run an app over its past and show what its predictions would have been worth.

    Every prediction is made by the worker's own code, with what was known at its event; labels come at their times.
    """
    form = form_of(output)
    if predictions and out is None:
        raise typer.BadParameter("--predictions needs a folder: give --out DIR")
    if files and example:
        raise typer.BadParameter("--example brings its own files; leave --file out")
    from tidemill.apps.backtest_job import BacktestJob, run_jobs
    from tidemill.apps.backtest_view import print_results
    from tidemill.apps.report import render

    job = BacktestJob(
        config=config,
        files=tuple(files or ()),
        example=example,
        until_ms=_ms(until),
        has_loop=loop,
        retrain_from_ms=_ms(retrain_from),
        retrain_every_ms=None if retrain_every == "month" else _duration(retrain_every, "--retrain-every"),
        retrain_times=retrain_times,
        training_latency_ms=_duration(training_latency, "--training-latency"),
        measured_from_ms=_ms(measured_from),
        has_boosters_beside=boosters_beside,
        predictions=None if not predictions or out is None else out / "predictions.parquet",
        threads=threads,
        bootstrap_servers=bootstrap_servers,
        data_folder=data,
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        command=shlex.join(["tidemill", *sys.argv[1:]]),
    )
    results = run_jobs(job, tuple(compare or ()), is_quiet=Voice.is_quiet, report=progress)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        (out / "results.json").write_text(json.dumps(results.to_json(), indent=1) + "\n", encoding="utf-8")
        (out / "report.html").write_text(render(results), encoding="utf-8")
        hint(f"wrote {out / 'results.json'} and {out / 'report.html'}")
    print_results(results, form)
    return 0


def _ms(moment: datetime | None) -> int | None:
    return None if moment is None else round(moment.replace(tzinfo=UTC).timestamp() * 1_000)


def _duration(text: str, option: str) -> int:
    from tidemill.config_models import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error
