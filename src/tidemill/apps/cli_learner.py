"""`tidemill learner`: stop the champion's learner, let it go on, take out what it should never have learned.

In: arguments. Out: tables or JSON on stdout, hints on stderr, an exit code. Invariant: workers obey at the same offset
of the examples log, whatever they are doing; nothing else is changed.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from tidemill.apps.cli_options import (
    Config,
    Data,
    OutputForm,
    Quiet,
    Servers,
    Verbose,
    confirm_or_exit,
    form_of,
    hint,
    settings_with_servers,
)

learner_app = typer.Typer(help="What the online learner learns, and what it must not.", no_args_is_help=True)

Cause = Annotated[str, typer.Option("--cause", help="Why, for the record.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


@learner_app.callback()
def learner() -> None:
    """What the online learner learns, and what it must not."""


@learner_app.command()
def freeze(
    config: Config,
    cause: Cause = "by hand",
    yes: Yes = False,
    bootstrap_servers: Servers = None,
    data: Data = None,
    output: OutputForm = "table",
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Stop the champion's learner: it goes on scoring and learns nothing more; a challenger's learns on."""
    settings = settings_with_servers(config, bootstrap_servers=bootstrap_servers, data_folder=data)
    confirm_or_exit(f"Freeze the learner of app {settings.app.name}?", yes=yes)
    return _write(settings, "freeze", cause, output, undo=f"to undo: tidemill learner thaw {config}")


@learner_app.command()
def thaw(
    config: Config,
    cause: Cause = "by hand",
    yes: Yes = False,
    bootstrap_servers: Servers = None,
    data: Data = None,
    output: OutputForm = "table",
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Let the champion's learner go on from the next example; what came while it was frozen stays unlearned."""
    settings = settings_with_servers(config, bootstrap_servers=bootstrap_servers, data_folder=data)
    confirm_or_exit(f"Let the learner of app {settings.app.name} go on?", yes=yes)
    return _write(settings, "thaw", cause, output, undo=f"to undo: tidemill learner freeze {config}")


@learner_app.command(
    epilog="Example: [bold]tidemill learner excise app.yaml --from 120400 --to 121900 --dry-run[/bold] counts first."
)
def excise(
    config: Config,
    start: Annotated[int, typer.Option("--from", metavar="OFFSET", min=0, help="First offset of the examples log.")],
    end: Annotated[int, typer.Option("--to", metavar="OFFSET", min=1, help="Behind the last one.")],
    cause: Cause = "by hand",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count the examples.")] = False,
    yes: Yes = False,
    bootstrap_servers: Servers = None,
    data: Data = None,
    output: OutputForm = "table",
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Let the models become what they would be had they never learned the examples at offsets [FROM, TO).

    Every worker folds the log again from the last snapshot before the range. What was served stays as it was, and
    boosters that were trained on the examples stay: train another one with `tidemill models train`.
    """
    form = form_of(output)
    settings = settings_with_servers(config, bootstrap_servers=bootstrap_servers, data_folder=data)
    from tidemill.apps.learner_commands import plan_excision
    from tidemill.apps.results import print_rows
    from tidemill.core.roles import text_of

    planned = plan_excision(settings, start, end)
    row = {
        "offsets": text_of(planned.range_),
        "examples": planned.examples,
        "learned": planned.learned,
        "folded_again": f"{planned.folded_from}-{planned.folded_to}",
    }
    if dry_run:
        print_rows("would excise", [row], tuple(row), form)
        return 0
    confirm_or_exit(
        f"Take {planned.learned:,} learned examples out of the models of app {settings.app.name}? It cannot be undone.",
        yes=yes,
    )
    hint(f"{planned.learned:,} of {planned.examples:,} examples; workers fold {row['folded_again']} again")
    undo = "an excision cannot be undone: the examples stay in the log, and the models pass them over from now on"
    return _write(settings, "excise", cause, output, undo=undo, version=str(row["offsets"]))


def _write(settings: Any, kind: str, cause: str, output: str, *, undo: str, version: str = "") -> int:
    form = form_of(output)
    from tidemill.apps.learner_commands import write_learner_command
    from tidemill.apps.results import print_rows

    command, roles = write_learner_command(settings, kind, version=version, cause=cause)
    row = {
        "kind": kind,
        "offset": command.offset,
        "champion": roles.champion,
        "is_frozen": roles.is_frozen,
        "excised": roles.excised_text,
    }
    print_rows("written", [row], tuple(row), form)
    hint(undo)
    return 0
