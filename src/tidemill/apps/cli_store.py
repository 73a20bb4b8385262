"""`tidemill snapshot` and `tidemill restore`: the store, kept and put back.

In: arguments. Out: tables or JSON on stdout, progress and hints on stderr, an exit code. Invariant: a snapshot disturbs
no worker; a restore changes nothing that was not asked for twice.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from tidemill.apps.cli_options import (
    Config,
    Data,
    OutputForm,
    Quiet,
    RedisUrl,
    Servers,
    Verbose,
    confirm_or_exit,
    form_of,
    hint,
    progress,
    settings_with_servers,
)

COLUMNS = ("id", "taken", "keys", "mb", "records", "incarnation")


def add_store_commands(app: typer.Typer) -> None:
    app.command(
        epilog="Examples: [bold]tidemill snapshot app.yaml[/bold] every quarter of an hour, by cron or a timer; "
        "[bold]tidemill snapshot app.yaml --list[/bold] shows what there is."
    )(snapshot)
    app.command(
        epilog="Examples: [bold]tidemill restore app.yaml --dry-run[/bold] shows what would be applied again; "
        "[bold]tidemill restore app.yaml --replace --yes[/bold] gives up the store that is there."
    )(restore)


def snapshot(
    config: Config,
    keep: Annotated[int, typer.Option("--keep", min=1, help="Delete all but so many newest ones.")] = 5,
    list_only: Annotated[bool, typer.Option("--list", help="Take none; show those that are there.")] = False,
    bootstrap_servers: Servers = None,
    redis_url: RedisUrl = None,
    data: Data = None,
    output: OutputForm = "table",
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Copy the store, with the positions it stands at, into the object store; workers go on meanwhile.

    A worker that finds the store lost restores the newest snapshot that fits, and rolls it forward through the log.
    """
    form = form_of(output)
    settings = settings_with_servers(
        config, bootstrap_servers=bootstrap_servers, redis_url=redis_url, data_folder=data, needs_store=True
    )
    from tidemill.apps.restoring import snapshots_of
    from tidemill.apps.results import print_rows
    from tidemill.apps.store_snapshots import take_snapshot

    if list_only:
        place = snapshots_of(settings)
        rows = [_row(place.load(id_)) for id_ in place.ids()]
        print_rows("snapshots", rows, COLUMNS, form)
        return 0
    taken = take_snapshot(settings, kept=keep, report=progress)
    print_rows("taken", [_row(taken)], COLUMNS, form)
    if settings.object_store is None:
        hint(f"it is in {settings.data_folder / 'stores'}; declare `object_store:` to keep it on another machine")
    return 0


def restore(
    config: Config,
    id_: Annotated[
        str | None, typer.Option("--from", metavar="ID", help="Which one.", show_default="the newest that fits")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Empty the store first.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be applied again.")] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    bootstrap_servers: Servers = None,
    redis_url: RedisUrl = None,
    data: Data = None,
    output: OutputForm = "table",
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Put a snapshot into the empty store; the next worker applies what the log has beyond it.

    Stop all workers first. Nothing is published a second time: predictions and examples stay as they are in the log.
    """
    form = form_of(output)
    settings = settings_with_servers(
        config, bootstrap_servers=bootstrap_servers, redis_url=redis_url, data_folder=data, needs_store=True
    )
    from tidemill.apps.results import print_rows
    from tidemill.apps.store_snapshots import restore_snapshot

    planned = restore_snapshot(settings, id_, replaces=replace, is_dry_run=True, report=progress)
    if not dry_run:
        what = "Empty the store of" if replace else "Restore the store of"
        more = " and restore it" if replace else ""
        confirm_or_exit(f"{what} app {settings.app.name}{more} from {planned.snapshot.id}?", yes=yes)
        planned = restore_snapshot(settings, planned.snapshot.id, replaces=replace, is_dry_run=False, report=progress)
    rows = [
        {"snapshot": planned.snapshot.id, "partition": str(partition), "again": count}
        for partition, count in sorted(planned.behind.items())
    ]
    print_rows("would restore" if dry_run else "restored", rows, ("snapshot", "partition", "again"), form)
    if not dry_run:
        again = sum(planned.behind.values())
        hint(f"restored in {planned.seconds:.1f} s; start the workers, they apply {again:,} records again")
    return 0


def _row(found: Any) -> dict[str, object]:
    taken = datetime.fromtimestamp(found.taken_ms / 1000, UTC)
    return {
        "id": found.id,
        "taken": taken.isoformat(timespec="seconds"),
        "keys": found.keys,
        "mb": round(found.size / 1e6, 1),
        "records": sum(one.applied or 0 for one in found.head.partitions.values()),
        "incarnation": found.head.incarnation,
    }
