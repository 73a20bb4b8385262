"""`tidemill audit`: does every record have one outcome, and does every score follow from the log?

In: arguments. Out: tables or JSON on stdout, progress on stderr, exit code 1 with the first findings named. Invariant:
nothing is written.
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
    form_of,
    hint,
    progress,
    settings_with_servers,
)

ELSEWHERE = 1e-5  # another processor or another build of the libraries rounds the last bits of a sum otherwise


def audit(
    config: Config,
    start: Annotated[
        int | None,
        typer.Option("--from", metavar="OFFSET", min=0, help="First commit.", show_default="the first one"),
    ] = None,
    end: Annotated[
        int | None,
        typer.Option("--to", metavar="OFFSET", min=0, help="Behind the last commit.", show_default="the end"),
    ] = None,
    elsewhere: Annotated[
        bool,
        typer.Option(
            "--elsewhere", help="The workers ran on another platform: scores are compared within 1e-5, not bit for bit."
        ),
    ] = False,
    output: OutputForm = "table",
    bootstrap_servers: Servers = None,
    data: Data = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Hold every input record against its outcome, and recompute every score from the logs and the stored models.

    --from and --to are offsets of <app>.commits.v1: each commit names the input records of one batch. Nothing is
    written, and the store is not asked. Exit 1: something does not add up; the first findings are named.
    """
    form = form_of(output)
    settings = settings_with_servers(config, bootstrap_servers=bootstrap_servers, data_folder=data)
    from tidemill.apps.audit import run_audit
    from tidemill.apps.audit_report import report_as_json, report_rows
    from tidemill.apps.results import Form, print_json, print_rows

    found = run_audit(settings, start=start, end=end, tolerance=ELSEWHERE if elsewhere else 0.0, report=progress)
    if form is Form.TABLE:
        looked_at, checks = report_rows(found)
        print_rows("looked at", looked_at, ("what", "value"), form)
        print_rows("audit", checks, ("check", "means", "findings", "first"), form)
    else:
        print_json(report_as_json(found), form)
    if found.mismatched and found.close == found.mismatched and not elsewhere:
        hint("all differences are within 1e-5: if the workers ran on another platform, audit with --elsewhere")
    return 0 if found.is_sound else 1


EPILOG = (
    "Examples: [bold]tidemill audit app.yaml[/bold]; "
    "[bold]tidemill audit app.yaml --from 1200 --to 1300 -o json | jq .checks.scores[/bold]"
)
