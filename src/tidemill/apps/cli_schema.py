"""`tidemill schema`: whether schemas fit each other, before a producer finds out.

In: arguments. Out: tables or JSON on stdout, hints on stderr, an exit code. Invariant: only `register` changes
anything, and only after the check.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tidemill.apps.cli_options import REFUSED, Config, OutputForm, Quiet, Verbose, confirm_or_exit, form_of, hint

if TYPE_CHECKING:
    from tidemill.apps.results import Form
    from tidemill.apps.schemas import Misfit

schema_app = typer.Typer(help="Schemas over time: check, compare, register.", no_args_is_help=True)
_COLUMNS = ("topic", "reader", "writer", "field", "problem", "advice")


@schema_app.callback()
def schema() -> None:
    """Schemas over time: check, compare, register."""


@schema_app.command(
    epilog="Examples: [bold]tidemill schema check app.yaml[/bold] compares with all `writers` and all versions of the "
    "registry; [bold]tidemill schema check v1.avsc v2.avsc v3.avsc[/bold] needs no app. Exit 1: something does not fit."
)
def check(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="CONFIG | OLDEST.avsc ... NEWEST.avsc", help="An app's YAML file, or versions.", show_default=False
        ),
    ],
    output: OutputForm = "table",
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Whether a reader reads every version before it, and what to change where it does not."""
    form = form_of(output)
    from tidemill.apps.schemas import check_app, check_files

    is_files = all(path.suffix == ".avsc" for path in paths)
    if is_files and len(paths) < 2:
        raise typer.BadParameter("give at least two versions, the oldest first", param_hint="OLDEST.avsc")
    if not is_files and len(paths) > 1:
        raise typer.BadParameter("give one app, or files that end with .avsc", param_hint="CONFIG")
    if is_files:
        checked = check_files(paths)
    else:
        from tidemill.config import load_settings

        checked = check_app(load_settings(paths[0]))
    _print_misfits(checked.misfits, form)
    hint(f"{checked.pairs} pairs of reader and writer compared, {len(checked.misfits)} problems")
    return 1 if checked.misfits else 0


@schema_app.command(
    epilog="Example: [bold]tidemill schema diff old.avsc new.avsc -o json[/bold]. Exit 1: the new one cannot read the "
    "old one's records."
)
def diff(
    old: Annotated[Path, typer.Argument(metavar="OLD.avsc", help="The former schema.", show_default=False)],
    new: Annotated[Path, typer.Argument(metavar="NEW.avsc", help="The one to come.", show_default=False)],
    output: OutputForm = "table",
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """What changed, field by field, and whether the readers or the producers have to change first."""
    form = form_of(output)
    from tidemill.apps.results import print_rows
    from tidemill.apps.schemas import compare, schema_file

    compared = compare(schema_file(old), schema_file(new))
    rows = [dataclasses.asdict(row) for row in compared]
    columns = ("field", "change", "before", "after", "new_reads_old", "old_reads_new", "advice")
    print_rows(f"from {old.name} to {new.name}", rows, columns, form)
    is_backward, is_forward = (all(getattr(row, name) for row in compared) for name in columns[4:6])
    answers = ["yes" if answer else "no" for answer in (is_backward, is_forward)]
    hint(f"the new reads the old: {answers[0]}; the old reads the new: {answers[1]}")
    if is_backward != is_forward:
        hint(f"change the {'readers' if is_backward else 'producers'} first")
    return 0 if is_backward else 1


@schema_app.command(
    epilog="Example: [bold]tidemill schema register app.yaml --dry-run[/bold]. Exit 5: a registered version could not "
    "be read any more."
)
def register(
    config: Config,
    topic: Annotated[
        str | None, typer.Option("--topic", metavar="NAME", help="Only this one.", show_default="all")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be registered.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    output: OutputForm = "table",
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Make the app's schemas the newest versions of their subjects, `<topic>-value`; again is no change."""
    form = form_of(output)
    from tidemill.apps.results import print_rows
    from tidemill.apps.schemas import register_app
    from tidemill.config import load_settings

    settings = load_settings(config)
    done, misfits = register_app(settings, only=topic, is_dry_run=True)
    if not misfits and not dry_run and any(one.schema_id is None for one in done):
        count = sum(one.schema_id is None for one in done)
        confirm_or_exit(f"Register {count} schemas of app {settings.app.name}?", yes=yes)
        done, misfits = register_app(settings, only=topic, is_dry_run=False)
    if misfits:
        _print_misfits(misfits, form)
        hint("nothing was registered")
        return REFUSED
    rows = [dataclasses.asdict(one) for one in done]
    print_rows("schemas", rows, ("topic", "subject", "schema_id", "action"), form)
    return 0


def _print_misfits(misfits: Sequence[Misfit], form: Form) -> None:
    from tidemill.apps.results import print_rows

    rows = [
        {
            "topic": one.topic,
            "reader": one.reader,
            "writer": one.writer,
            "field": one.finding.path,
            "problem": one.finding.what,
            "advice": one.finding.advice,
        }
        for one in misfits
    ]
    if rows or form.value != "table":
        print_rows("what does not fit", rows, _COLUMNS, form)
