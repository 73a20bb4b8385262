"""`tidemill produce`: files, or the example's events, into Kafka.

In: arguments. Out: counts on stdout, progress on stderr, an exit code. Invariant: nothing here reads a record.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tidemill.apps.cli_options import (
    OutputForm,
    PoisonCount,
    Quiet,
    Servers,
    Until,
    Verbose,
    WithParent,
    form_of,
    progress,
    settings_with_servers,
)

if TYPE_CHECKING:
    from tidemill.config import Settings

EXAMPLE_CONFIG = "config/flights.yaml"
EPILOG = (
    "Examples: [bold]tidemill produce --until 2013-01-15 --bootstrap-servers 127.0.0.1:9092[/bold] sends the example; "
    "[bold]tidemill produce app.yaml --file orders=orders.csv --file returns=returns.parquet --end[/bold] sends files."
)
Files = Annotated[
    list[str] | None,
    typer.Option(
        "--file",
        metavar="TOPIC=PATH",
        show_default=False,
        help="A file of a topic: .csv, .avro or .parquet, rows in the order of their times. The time is in the field "
        "that the topic declares, else in a column _time (ISO 8601 or ms). May be repeated.",
    ),
]


def produce(
    config: Annotated[
        Path | None, typer.Argument(metavar="[CONFIG]", help="The app's YAML.", show_default=EXAMPLE_CONFIG)
    ] = None,
    files: Files = None,
    rate: Annotated[
        float | None, typer.Option(min=0.001, help="Records per second, with --file.", show_default="no limit")
    ] = None,
    speed: Annotated[
        float | None,
        typer.Option(min=0.001, help="Times as fast as it happened, with --file.", show_default="no limit"),
    ] = None,
    end: Annotated[
        bool, typer.Option("--end", help="With --file: say at the end that nothing follows, for a bounded worker.")
    ] = False,
    until: Until = None,
    poison: PoisonCount = 200,
    inject: Annotated[
        list[str] | None,
        typer.Option(
            "--inject",
            metavar="FAULT[@DAY]",
            show_default=False,
            help="Break something of the example for some weeks; `--inject list` names what. May be repeated.",
        ),
    ] = None,
    bootstrap_servers: Servers = None,
    output: OutputForm = "table",
    quiet: Quiet = False,
    verbose: Verbose = False,
    with_parent: WithParent = False,
) -> int:
    """Publish files to an app's topics, or the example's events, in the order of their times.

    Without --file it is the example: broken records between the good ones, and its own end.
    """
    from tidemill.resources import shipped_path

    form = form_of(output)
    if not files and (rate is not None or speed is not None or end):
        raise typer.BadParameter("--rate, --speed and --end go with --file; the example is sent as fast as it can")
    if files and until is not None:
        raise typer.BadParameter("--until is for the example; a file is sent to its end")
    if files and config is None:
        raise typer.BadParameter("with --file, name the app's YAML before it")
    if files and inject:
        raise typer.BadParameter("--inject is for the example")
    settings = settings_with_servers(config or shipped_path(EXAMPLE_CONFIG), bootstrap_servers=bootstrap_servers)
    if files:
        return _produce_files(settings, files, form, rate=rate, speed=speed, ends=end)
    return _produce_example(settings, form, until=until, poison=poison, inject=inject or [])


def _produce_files(
    settings: Settings,
    files: list[str],
    form: Any,
    *,
    rate: float | None,
    speed: float | None,
    ends: bool,
) -> int:
    from tidemill.apps.input_files import files_by_topic
    from tidemill.apps.produce import Pace, Progress, publish_files
    from tidemill.apps.results import Form, counts_table, print_json, print_tables

    def show(at: Progress) -> None:
        if at.sent % 50_000 == 0:
            moment = datetime.fromtimestamp(at.time / 1000).astimezone()
            progress(f"{moment:%Y-%m-%d %H:%M}: {at.sent:,} records sent")

    assert settings.bootstrap_servers is not None
    published = publish_files(
        settings.bootstrap_servers,
        app=settings.app,
        files=files_by_topic(settings.app, files),
        pace=Pace(rate, speed),
        ends=ends,
        kafka=settings.kafka,
        on_progress=show,
    )
    if form is Form.TABLE:
        tables = [("records", published.records), ("punctuations", published.punctuations)]
        print_tables([counts_table(name, counts) for name, counts in tables])
    else:
        print_json(
            {
                "schema_version": 1,
                "records": dict(published.records),
                "punctuations": dict(published.punctuations),
                "first_time": published.first_time,
                "last_time": published.last_time,
                "end_time": published.end_time,
            },
            form,
        )
    return 0


def _produce_example(
    settings: Settings,
    form: Any,
    *,
    until: datetime | None,
    poison: int,
    inject: Sequence[str],
) -> int:
    from tidemill.apps.flights import Progress, run_producer
    from tidemill.apps.flights_faults import parse_fault
    from tidemill.apps.results import Form, counts_table, print_json, print_tables

    def show(at: Progress) -> None:
        day = datetime.fromtimestamp(at.event_time / 1000).astimezone().date()
        if day != shown[0]:
            shown[0] = day
            progress(f"{day}: {at.sent:,} of {at.total:,} records sent")

    shown: list[Any] = [None]
    assert settings.bootstrap_servers is not None
    published = run_producer(
        settings.bootstrap_servers,
        app=settings.app,
        until=until.date() if until else None,
        poison_count=poison,
        faults=[parse_fault(text) for text in inject],
        kafka=settings.kafka,
        on_progress=show,
    )
    if form is Form.TABLE:
        print_tables(
            [
                counts_table("records", published.records),
                counts_table("poison", published.poison_kinds),
                counts_table("punctuations", published.punctuations),
            ]
        )
    else:
        print_json(
            {
                "schema_version": 1,
                "records": dict(published.records),
                "poison": dict(published.poison),
                "poison_kinds": dict(published.poison_kinds),
                "punctuations": dict(published.punctuations),
                "first_time": published.first_time,
                "last_time": published.last_time,
                "end_time": published.end_time,
            },
            form,
        )
    return 0
