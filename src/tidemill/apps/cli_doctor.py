"""`tidemill doctor`: is everything there that an app needs, and may it do what it must.

In: arguments. Out: a table or JSON on stdout, commands that would help on stderr, exit 1 where something is missing.
Invariant: nothing is changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from tidemill.apps.cli_options import (
    Config,
    Data,
    OutputForm,
    Quiet,
    RedisUrl,
    Servers,
    Verbose,
    form_of,
    hint,
    nearest_of,
    settings_with_servers,
)

if TYPE_CHECKING:
    from tidemill.apps.doctor import Finding
    from tidemill.config import Settings


def doctor(
    config: Config,
    acls: Annotated[bool, typer.Option("--acls", help="What each role needs, and what this user has.")] = False,
    role: Annotated[
        list[str] | None,
        typer.Option("--role", metavar="ROLE", help="With --acls: judge this role. Repeatable.", show_default="all"),
    ] = None,
    output: OutputForm = "table",
    bootstrap_servers: Servers = None,
    redis_url: RedisUrl = None,
    data: Data = None,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> int:
    """Look for what would keep an app from running: servers, topics, settings, and with --acls rights.

    It asks with the app's own `kafka:` block and `redis_url`, and changes nothing.
    """
    form = form_of(output)
    settings = settings_with_servers(config, bootstrap_servers=bootstrap_servers, redis_url=redis_url, data_folder=data)
    from dataclasses import asdict

    from tidemill.apps.doctor import ROLES, check_app, check_rights
    from tidemill.apps.results import print_rows

    for name in role or ():
        if name not in ROLES:
            raise typer.BadParameter(f"{name!r} is not a role; {nearest_of(name, ROLES)}", param_hint="--role")
    found = check_rights(settings, role or ROLES) if acls else check_app(settings)
    columns = ("verdict", "role", "what", "found", "advice")
    print_rows("rights" if acls else "doctor", [asdict(one) for one in found], columns, form)
    missing = [one for one in found if one.verdict == "missing"]
    if acls and missing:
        _hint_commands(settings, missing)
    return 1 if missing else 0


def _hint_commands(settings: Settings, missing: Sequence[Finding]) -> None:
    """What an administrator would run, by prefix of the names."""
    from tidemill.apps.rights import KAFKA_RIGHTS, prefixes

    user = settings.kafka.get("sasl.username", "USER")
    for role in dict.fromkeys(one.role for one in missing if not one.what.startswith("store ")):
        for right in KAFKA_RIGHTS[role]:
            operations = " ".join(f"--operation {one}" for one in right.operations)
            for prefix in prefixes(settings.app)[right.kind]:
                hint(
                    f"{role}: kafka-acls --add --allow-principal User:{user} {operations} --{right.kind} {prefix} "
                    "--resource-pattern-type prefixed"
                )
    if any(one.what.startswith("store ") for one in missing):
        hint("store: the ACL of docs/own-servers.md, section `Rights and settings in Redis or Valkey`")


def add_doctor_command(app: typer.Typer) -> None:
    """Register it with the command line."""
    app.command(
        epilog="Examples: [bold]tidemill doctor app.yaml[/bold]; [bold]tidemill doctor app.yaml --acls --role worker"
        "[/bold]. Exit 1: something is missing."
    )(doctor)
