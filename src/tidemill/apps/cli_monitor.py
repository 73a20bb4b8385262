"""`tidemill monitor` and `tidemill metrics`: how good the predictions are.

In: arguments. Out: rows of `<app>.metrics.v1`; tables or JSON on stdout, progress on stderr, an exit code. Invariant:
every accuracy is printed with its n, its label delay and what knowing nothing would have scored.
"""

from __future__ import annotations

from typing import Annotated

import typer

from tidemill.apps.cli_options import (
    Config,
    Data,
    OutputForm,
    Quiet,
    Servers,
    Verbose,
    WithParent,
    form_of,
    hint,
    nearest_of,
    progress,
    settings_with_servers,
)


def monitor(
    config: Config,
    bootstrap_servers: Servers = None,
    until_end: Annotated[
        bool, typer.Option("--until-end", help="Stop at the present ends of the logs; otherwise follow them.")
    ] = False,
    metrics_port: Annotated[
        int | None,
        typer.Option(min=1, max=65_535, help="Serve /metrics on 127.0.0.1.", show_default="none"),
    ] = None,
    data: Data = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
    with_parent: WithParent = False,
) -> int:
    """Measure what was served against the labels, judge drift tick by tick, publish figures, ticks and alerts.

    One monitor an app: a second one fences the first. It folds the logs from their start, and publishes what is new.
    """
    settings = settings_with_servers(config, bootstrap_servers=bootstrap_servers, data_folder=data)
    from tidemill.apps.monitor import run_monitor

    return run_monitor(settings, is_until_end=until_end, metrics_port=metrics_port, report=progress)


def metrics(
    config: Config,
    output: OutputForm = "table",
    slices: Annotated[
        bool, typer.Option("--slices", help="The worst slices, by excess of log loss over all examples.")
    ] = False,
    window: Annotated[
        str, typer.Option("--window", help="run, 1d, 7d or 28d; the newest of its kind is shown.")
    ] = "run",
    bootstrap_servers: Servers = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """The newest figures of every series, with n, label delay and baselines."""
    form = form_of(output)
    from tidemill.core.validation import SLICED_WINDOWS
    from tidemill.core.validation_rows import WINDOWS

    known = SLICED_WINDOWS if slices else tuple(WINDOWS)
    if window not in known:
        what = "a window with slices" if slices else "a window"
        raise typer.BadParameter(f"{window!r} is not {what}; {nearest_of(window, known)}", param_hint="--window")
    settings = settings_with_servers(config, bootstrap_servers=bootstrap_servers)
    from tidemill.apps.metrics_table import newest_rows, print_metrics, read_metrics, worst_slices

    rows = newest_rows(read_metrics(settings), window)
    if not rows:
        hint(f"nothing is published yet for app {settings.app.name}: run `tidemill monitor {config} --until-end`")
    print_metrics(worst_slices(rows) if slices else [row for row in rows if not row["slice_feature"]], form)
    return 0


def add_monitor_commands(app: typer.Typer) -> None:
    """Register both with the command line."""
    app.command(
        epilog="Example: [bold]tidemill monitor app.yaml --bootstrap-servers kafka:9092 --metrics-port 9400[/bold]. "
        "TERM or Ctrl-C stops it cleanly."
    )(monitor)
    app.command(
        epilog="Examples: [bold]tidemill metrics app.yaml --window 28d[/bold]; "
        "[bold]tidemill metrics app.yaml --slices -o jsonl | jq .excess_log_loss[/bold]"
    )(metrics)
