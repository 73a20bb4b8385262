"""The command line: arguments in, exit code out; what a command does is imported when it runs.

In: `sys.argv`. Out: the result on stdout, progress, hints and errors on stderr. Invariant: a command ends with 0 ok, 1
a check failed, 2 usage, 3 configuration, 4 a dependency is unreachable or stalled, 5 refused, 70 bug, 130 interrupted;
a traceback shows with -v only.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from tidemill.apps.cli_alerts import alerts_app
from tidemill.apps.cli_audit import EPILOG as AUDIT_EPILOG
from tidemill.apps.cli_audit import audit
from tidemill.apps.cli_backtest import EPILOG as BACKTEST_EPILOG
from tidemill.apps.cli_backtest import backtest
from tidemill.apps.cli_config import config_app
from tidemill.apps.cli_dead_letters import dead_letters_app
from tidemill.apps.cli_doctor import add_doctor_command
from tidemill.apps.cli_features import features_app
from tidemill.apps.cli_help import OrderedCommands, put_in_panels
from tidemill.apps.cli_learner import learner_app
from tidemill.apps.cli_models import models_app
from tidemill.apps.cli_monitor import add_monitor_commands
from tidemill.apps.cli_options import (
    Config,
    Data,
    OutputForm,
    PoisonCount,
    Quiet,
    RedisUrl,
    Servers,
    Until,
    Verbose,
    Voice,
    WithParent,
    confirm_or_exit,
    form_of,
    hint,
    nearest_of,
    print_version,
    progress,
    settings_with_servers,
)
from tidemill.apps.cli_produce import EPILOG as PRODUCE_EPILOG
from tidemill.apps.cli_produce import produce
from tidemill.apps.cli_schema import schema_app
from tidemill.apps.cli_store import add_store_commands
from tidemill.apps.cli_story import add_story_commands
from tidemill.apps.cli_trainer import add_trainer_commands
from tidemill.apps.cli_web import add_web_command
from tidemill.errors import TidemillError

if TYPE_CHECKING:
    from tidemill.apps.reset import Target

DEMO_CONFIG = "config/flights.yaml"
BUG, USAGE, INTERRUPTED = 70, 2, 130
# The parent of all errors that typer raises about arguments; typer itself does not export it.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]

app = typer.Typer(
    name="tidemill",
    cls=OrderedCommands,
    help="Streaming predictions that learn from their labels: Kafka in, Kafka out, no loss, no double count.",
    epilog="Begin with [bold]tidemill demo --until 2013-01-15[/bold]: it starts its own servers. Exit codes: 0 ok, "
    "1 a check failed, 2 usage, 3 configuration, 4 a server is unreachable or stalled, 5 refused, 70 bug, "
    "130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(dead_letters_app, name="dlq")
app.add_typer(config_app, name="config")
app.add_typer(features_app, name="features")
app.add_typer(schema_app, name="schema")
app.add_typer(learner_app, name="learner")
app.add_typer(alerts_app, name="alerts")
add_monitor_commands(app)
add_trainer_commands(app)
add_web_command(app)
add_doctor_command(app)
add_store_commands(app)
add_story_commands(models_app)
app.add_typer(models_app, name="models")


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Streaming predictions that learn from their labels: Kafka in, Kafka out, no loss, no double count."""


@app.command(
    epilog="Examples: [bold]tidemill demo --until 2013-02-15[/bold] takes seconds; "
    "[bold]tidemill demo --workers 2 --json results.json[/bold] replays the year with two workers."
)
def demo(
    until: Until = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the results there.", show_default=False)
    ] = None,
    poison: PoisonCount = 200,
    data: Annotated[
        Path | None,
        typer.Option("--data", metavar="DIR", help="Emptied at the start.", show_default="./.tidemill/<app>"),
    ] = None,
    bootstrap_servers: Servers = None,
    redis_url: RedisUrl = None,
    workers: Annotated[int, typer.Option(min=1, max=16, help="Worker processes.")] = 1,
    inject: Annotated[
        list[str] | None,
        typer.Option(
            "--inject",
            metavar="FAULT[@DAY]",
            help="Break something on purpose and watch the loop answer; `--inject list` names what. Repeatable.",
            show_default=False,
        ),
    ] = None,
    web: Annotated[
        int | None,
        typer.Option(
            "--web", metavar="PORT", min=1, max=65_535, help="Show it on a page as well.", show_default="no page"
        ),
    ] = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """A year of real events through real servers: predict, learn, watch for drift, retrain, and show what came of it.

    Starts Kafka and Valkey by itself unless both addresses are given. Ctrl-C stops everything.
    """
    from tidemill.apps.demo import DemoOptions, run_demo

    return run_demo(
        DemoOptions(
            until=until.date() if until else None,
            json_file=json_file,
            poison_count=poison,
            data_folder=data,
            bootstrap_servers=bootstrap_servers,
            redis_url=redis_url,
            workers=workers,
            inject=tuple(inject or ()),
            web_port=web,
            is_quiet=Voice.is_quiet,
        )
    )


@app.command(
    epilog="Example: [bold]tidemill worker app.yaml --bootstrap-servers kafka:9092 --redis-url redis://store:6379/0[/bold]"
    ". Start as many as you like; TERM or Ctrl-C stops one cleanly."
)
def worker(
    config: Config,
    slot: Annotated[
        int | None, typer.Option(min=0, help="This worker's number.", show_default="the lowest free one")
    ] = None,
    bootstrap_servers: Servers = None,
    redis_url: RedisUrl = None,
    data: Data = None,
    bounded: Annotated[bool, typer.Option("--bounded", help="A replay: the inputs end, wait for each.")] = False,
    paced: Annotated[
        bool,
        typer.Option(
            "--paced",
            help="With --bounded: take nothing of a tick before monitor and trainer have answered the last one; then a "
            "replay with retraining is the same in every run.",
        ),
    ] = False,
    web_port: Annotated[
        int | None,
        typer.Option(min=1, max=65_535, help="Serve /healthz and /metrics on 127.0.0.1.", show_default="none"),
    ] = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
    with_parent: WithParent = False,
) -> int:
    """Process an app's topics until told to stop; restarts go on where they ended."""
    if paced and not bounded:
        raise typer.BadParameter("--paced is for a replay: add --bounded. Live, nothing waits for the loop")
    settings = settings_with_servers(
        config,
        bootstrap_servers=bootstrap_servers,
        redis_url=redis_url,
        data_folder=data,
        is_bounded=bounded or None,
        needs_store=True,
    )
    from tidemill.apps.worker import run_worker

    port = web_port or settings.worker.metrics_port or None
    return run_worker(settings, slot=slot, web_port=port, is_paced=paced, report=progress)


app.command(epilog=PRODUCE_EPILOG)(produce)
app.command(epilog=BACKTEST_EPILOG)(backtest)
app.command(epilog=AUDIT_EPILOG)(audit)


@app.command(epilog="Example: [bold]tidemill status app.yaml -o json | jq .balances[/bold]. Exit 1: a balance is open.")
def status(
    config: Config,
    output: OutputForm = "table",
    digests: Annotated[bool, typer.Option("--digests", help="Also the digest of the feature state (slower).")] = False,
    bootstrap_servers: Servers = None,
    redis_url: RedisUrl = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """What an app has done, where it stands, and whether its balances close.

    While workers run, the sides of a balance are read moments apart; only an idle app must balance.
    """
    form = form_of(output)
    settings = settings_with_servers(config, bootstrap_servers=bootstrap_servers, redis_url=redis_url, needs_store=True)
    from tidemill.apps.results import Form, print_json, print_tables, status_tables
    from tidemill.apps.status import as_json, read_status

    found = read_status(settings, with_digest=digests)
    if form is Form.TABLE:
        print_tables(status_tables(found))
    else:
        print_json(as_json(found), form)
    return 0 if all(balance.is_closed for balance in found.balances) else 1


@app.command(
    epilog="Examples: [bold]tidemill reset app.yaml --to applied --dry-run[/bold] shows what would move; "
    "[bold]tidemill reset app.yaml --to earliest --yes[/bold] processes everything again."
)
def reset(
    config: Config,
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="TARGET",
            show_default=False,
            help="applied: the group's offsets follow the store. committed: the store is emptied and computed again "
            "from the log, nothing is published twice. earliest: store and offsets are deleted, every record is "
            "processed and every output published again.",
        ),
    ] = None,
    accept_config: Annotated[
        bool, typer.Option("--config", help="Let the store accept the present YAML and schemas.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would move.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    bootstrap_servers: Servers = None,
    redis_url: RedisUrl = None,
    output: OutputForm = "table",
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Make store and consumer group agree again, after offsets expired or were moved by hand.

    Stop all workers first.
    """
    form = form_of(output)
    target = _target(to, accepts_config=accept_config)
    settings = settings_with_servers(config, bootstrap_servers=bootstrap_servers, redis_url=redis_url, needs_store=True)
    from tidemill.apps.reset import accept_configuration
    from tidemill.apps.reset import reset as move
    from tidemill.apps.results import print_rows

    if target is None:
        if not dry_run:
            confirm_or_exit(f"Let the store of app {settings.app.name} accept this configuration?", yes=yes)
            accept_configuration(settings)
            hint(f"take a snapshot now (`tidemill snapshot {config}`): those from before do not fit this YAML, and a")
            hint("store that is rebuilt from the log alone has its past decided by it, not by the YAML of then")
        hint("to undo: run `tidemill reset --config` with the former YAML")
        return 0
    planned = move(settings, target, is_dry_run=True)
    if not dry_run:
        what = {
            "applied": f"Set the offsets of app {settings.app.name} to the positions of its store?",
            "committed": f"Empty the store of app {settings.app.name}? The next worker computes it from the log again.",
            "earliest": f"Delete the state and offsets of app {settings.app.name}? Its outputs are published again.",
        }[target]
        confirm_or_exit(what, yes=yes)
        planned = move(settings, target, is_dry_run=False)
    rows = [
        {"partition": str(one.partition), "before": one.before, "after": one.after, "lost": one.lost} for one in planned
    ]
    print_rows("would move" if dry_run else "moved", rows, ("partition", "before", "after", "lost"), form)
    if target == "earliest":
        hint("every record is processed again: predictions, examples and commits are published a second time")
        hint("`tidemill status` then counts both passes; predictions that were pending now stay open in its balance")
        hint("to undo: restore the store from its backup, then `tidemill reset --to applied`")
    elif target == "committed":
        hint("start a worker: it computes the state up to the group's offsets and then goes on")
    else:
        hint("to undo: the column `before` holds the former offsets (kafka-consumer-groups --reset-offsets sets them)")
    if any(one.lost for one in planned):
        hint(f"{sum(one.lost for one in planned):,} records were deleted from the log before they were processed")
    return 0


def _target(to: str | None, *, accepts_config: bool) -> Target | None:
    """Where `reset` goes; None with --config."""
    if to is None and accepts_config:
        return None
    if to is None or accepts_config:
        raise typer.BadParameter("give one of --to applied, --to committed, --to earliest, --config")
    from tidemill.apps.reset import TARGETS

    for target in TARGETS:
        if to == target:
            return target
    raise typer.BadParameter(f"{to!r} is not a target; {nearest_of(to, TARGETS)}", param_hint="--to")


put_in_panels(app)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    try:
        code = app(args=None if arguments is None else list(arguments), prog_name="tidemill", standalone_mode=False)
        if code == INTERRUPTED:  # what typer makes of Ctrl-C
            print("interrupted", file=sys.stderr)
        return code if isinstance(code, int) else 0
    except TidemillError as error:
        if Voice.is_verbose:
            traceback.print_exc()
        lines = str(error).splitlines()
        print("\n".join([f"error: {lines[0]}", *lines[1:]]), file=sys.stderr)
        return error.exit_code
    except _UsageError as error:
        return _report_usage(error)
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has gone: nothing is left to say
        return 0
    except Exception as error:
        if Voice.is_verbose:
            traceback.print_exc()
        print(
            f"error: TM-9000 {type(error).__name__}: {error}; this is a bug in Tidemill: please report it with the "
            "command and the output of -v",
            file=sys.stderr,
        )
        return BUG


def _report_usage(error: Exception) -> int:
    context: Any = getattr(error, "ctx", None)
    message = error.format_message()  # type: ignore[attr-defined]
    if not message:  # no command was given: typer has printed the help
        return USAGE
    command = context.command_path if context is not None else "tidemill"
    print(f"error: TM-1053 {message}\nsee {command} --help", file=sys.stderr)
    return USAGE


def main() -> NoReturn:
    """The installed command."""
    # Both are read once, when the library is loaded. XGBoost's threads would spin while they wait, and take the cores
    # from the servers; Arrow's own pools keep what they once had: a backtest of a year took 478 MB, and takes 362.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
    sys.exit(run())
