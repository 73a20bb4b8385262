"""`tidemill features`: change what an app computes of its past.

In: arguments. Out: tables or JSON on stdout, progress on stderr, an exit code. Invariant: a command that was stopped
can be given again.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated

import typer

from tidemill.apps.cli_options import (
    Config,
    OutputForm,
    Quiet,
    RedisUrl,
    Servers,
    Verbose,
    form_of,
    hint,
    progress,
    settings_with_servers,
)

features_app = typer.Typer(help="Change features without losing their past.", no_args_is_help=True)


@features_app.callback()
def features() -> None:
    """Change features without losing their past."""


@features_app.command(
    epilog="Example: [bold]tidemill features fill app.yaml --dry-run[/bold] tells which groups would be filled."
)
def fill(
    config: Config,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be filled.")] = False,
    bootstrap_servers: Servers = None,
    redis_url: RedisUrl = None,
    output: OutputForm = "table",
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Replay the inputs into groups of features that changed, and let the store accept the configuration.

    Stop all workers, change a group, raise its `version`, and give this command. If it stops midway, the former
    configuration is still in force: give it again.
    """
    form = form_of(output)
    settings = settings_with_servers(config, bootstrap_servers=bootstrap_servers, redis_url=redis_url, needs_store=True)
    from tidemill.apps.feature_fill import fill_features
    from tidemill.apps.results import print_rows

    found = fill_features(settings, is_dry_run=dry_run, report=progress)
    rows = [dataclasses.asdict(group) for group in found.groups]
    print_rows("would fill" if dry_run else "filled", rows, ("group", "before", "after", "action", "keys"), form)
    if dry_run:
        hint(f"would replay {found.records:,} offsets and rewrite {found.rows:,} predictions that wait for their label")
        return 0
    hint(
        f"{found.records:,} records replayed; {found.rows:,} predictions that wait for their label feed the new groups"
    )
    if found.lost_rows:
        hint(f"{found.lost_rows:,} of them feed no group: their events are no longer in the log")
    hint(f"take a snapshot now (`tidemill snapshot {config}`): those from before do not fit this YAML")
    hint("to undo: give the groups their former features under a higher version, and fill again")
    return 0
