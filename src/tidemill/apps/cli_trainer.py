"""`tidemill trainer` and `tidemill retrain`: models that are trained, judged and promoted by themselves, or on demand.

In: arguments. Out: progress on stderr, tables or JSON on stdout, an exit code. Invariant: a person asks by way of the
alarm topic; what became of it stands in the story of the models.
"""

from __future__ import annotations

import getpass
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
    progress,
    settings_with_servers,
)

Asked = ("id", "time", "champion", "cause", "by")


def trainer(
    config: Config,
    bootstrap_servers: Servers = None,
    data: Data = None,
    bounded: Annotated[
        bool, typer.Option("--bounded", help="A replay: a training takes `retrain.latency` of event time.")
    ] = False,
    until_end: Annotated[
        bool, typer.Option("--until-end", help="Stop at the present end of the ticks; otherwise follow them.")
    ] = False,
    metrics_port: Annotated[
        int | None,
        typer.Option(min=1, max=65_535, help="Serve /metrics on 127.0.0.1.", show_default="none"),
    ] = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
    with_parent: WithParent = False,
) -> int:
    """Answer the monitor's triggers: train, judge, bring up step by step, take back what is worse.

    One trainer an app: a second one fences the first. Trainings run in a process of their own, at low priority.
    """
    settings = settings_with_servers(config, bootstrap_servers=bootstrap_servers, data_folder=data)
    from tidemill.apps.trainer import run_trainer

    return run_trainer(
        settings,
        is_bounded=bounded or settings.worker.is_bounded,
        is_until_end=until_end,
        metrics_port=metrics_port,
        report=progress,
    )


def retrain(
    config: Config,
    cause: Annotated[str, typer.Option("--cause", help="Why, for the record.")] = "by hand",
    bootstrap_servers: Servers = None,
    output: OutputForm = "table",
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Ask the trainer for a training now, whatever the cooldown says; it goes the whole way of gate and shadow."""
    form = form_of(output)
    settings = settings_with_servers(config, bootstrap_servers=bootstrap_servers)
    from tidemill.apps.results import print_rows
    from tidemill.apps.story import demand_training

    asked = demand_training(settings, cause=cause, by=getpass.getuser())
    row = {"id": asked.id, "time": asked.time, "champion": asked.champion, "cause": asked.summary, "by": asked.by}
    print_rows("asked for", [row], Asked, form)
    hint(f"`tidemill trainer {config}` answers it; then see: tidemill models ls {config}")
    return 0


def add_trainer_commands(app: typer.Typer) -> None:
    """Register both with the command line."""
    app.command(
        epilog="Example: [bold]tidemill trainer app.yaml --bootstrap-servers kafka:9092 --metrics-port 9401[/bold]. "
        "TERM or Ctrl-C stops it cleanly; what it was training begins again at the next start."
    )(trainer)
    app.command(epilog="Example: [bold]tidemill retrain app.yaml --cause 'a new catalogue'[/bold]")(retrain)
