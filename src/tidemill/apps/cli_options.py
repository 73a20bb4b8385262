"""The options that commands share, and how loud a command is.

In: what typer parses. Out: annotated types for the commands of `apps.cli`, and their values checked. Invariant: an
option has one name, one meaning and one help text in every command.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tidemill.errors import ConfigError

if TYPE_CHECKING:
    from tidemill.config import Settings

REFUSED = 5


class Voice:
    """How much goes to stderr; set by the options that every command has."""

    is_quiet = False
    is_verbose = False


def print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print(f"tidemill {version('tidemill')}")
        except PackageNotFoundError:
            print("tidemill, run from its sources")
        raise typer.Exit


def _follow_parent(value: bool) -> None:
    if value:
        from tidemill.apps.children import end_with_parent

        end_with_parent()


def _set_quiet(value: bool) -> None:
    Voice.is_quiet = Voice.is_quiet or value


def _set_verbose(value: bool) -> None:
    Voice.is_verbose = Voice.is_verbose or value


Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="The app's YAML file.", show_default=False)]
Servers = Annotated[
    str | None,
    typer.Option("--bootstrap-servers", metavar="HOST:PORT", help="Kafka; overrides the YAML.", show_default=False),
]
RedisUrl = Annotated[
    str | None,
    typer.Option("--redis-url", metavar="URL", help="Redis or Valkey; overrides the YAML.", show_default=False),
]
Data = Annotated[
    Path | None,
    typer.Option("--data", metavar="DIR", help="Folder for slots, snapshots and logs.", show_default=False),
]
OutputForm = Annotated[str, typer.Option("-o", "--output", metavar="FORM", help="table, json or jsonl.")]
Until = Annotated[
    datetime | None,
    typer.Option(formats=["%Y-%m-%d"], help="Only what is due before this day of 2013.", show_default="the whole year"),
]
PoisonCount = Annotated[int, typer.Option("--poison", min=0, help="Broken records mixed in.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", callback=_set_quiet, help="No progress on stderr.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", callback=_set_verbose, help="Tracebacks and details.")]
WithParent = Annotated[bool, typer.Option("--with-parent", hidden=True, callback=_follow_parent)]


def progress(message: str) -> None:
    """A line of progress; silent with --quiet."""
    if not Voice.is_quiet:
        print(message, file=sys.stderr, flush=True)


hint = progress


def settings_with_servers(config: Path, *, needs_store: bool = False, **overrides: Any) -> Settings:
    """The app's settings with addresses; only the demo starts servers."""
    from tidemill.config import load_settings

    settings = load_settings(config, **overrides)
    if settings.bootstrap_servers is None:
        raise ConfigError(
            "TM-1050",
            f"{config}: no Kafka address; give --bootstrap-servers HOST:PORT, set TIDEMILL_BOOTSTRAP_SERVERS, or write "
            "`kafka: {bootstrap.servers: ...}`; `tidemill demo` starts servers of its own",
        )
    if needs_store and settings.redis_url is None:
        raise ConfigError(
            "TM-1051",
            f"{config}: no store address; give --redis-url redis://HOST:PORT/0, set TIDEMILL_REDIS_URL, or write "
            "`redis_url:`; `tidemill demo` starts servers of its own",
        )
    return settings


def form_of(name: str) -> Any:
    from tidemill.apps.results import Form

    forms = [form.value for form in Form]
    if name not in forms:
        raise typer.BadParameter(f"{name!r} is not a form; {nearest_of(name, forms)}", param_hint="-o")
    return Form(name)


def nearest_of(name: str, known: Sequence[str]) -> str:
    from difflib import get_close_matches

    matches = get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {matches[0]!r}?" if matches else f"there is {', '.join(known)}"


def confirm_or_exit(question: str, *, yes: bool) -> None:
    """Return only when the operator agrees; without a terminal nobody can be asked."""
    if yes:
        return
    if sys.stdin.isatty() and sys.stderr.isatty() and typer.confirm(question, err=True):
        return
    print("error: TM-1052 not confirmed, so nothing was changed; --yes agrees beforehand", file=sys.stderr)
    raise typer.Exit(REFUSED)
