"""Command lines that stand in files: checked by the command line's own parser, and not run."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path

import typer

from tidemill.apps import cli

# The parent of all errors that typer raises about arguments; typer itself does not export it.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]


def complaint_about(arguments: Sequence[str]) -> str | None:
    """What `tidemill <arguments>` would say of its arguments; None when it takes them."""
    command, name, rest = typer.main.get_command(cli.app), "tidemill", list(arguments)
    context = command.make_context(name, ["status", "x"])
    try:
        while hasattr(command, "commands"):
            if not rest or rest[0] not in command.commands:
                return f"there is no command {' '.join([name, *rest[:1]])}"
            command, name, rest = command.commands[rest[0]], f"{name} {rest[0]}", rest[1:]
        command.make_context(name, rest, parent=context)
    except UsageError as error:
        return error.format_message()  # type: ignore[attr-defined, no-any-return]
    return None


def console_lines(page: Path) -> list[list[str]]:
    """The arguments of every `$ tidemill ...` in a page's consoles."""
    found = re.findall(r"^\$ tidemill (.*)$", page.read_text(), re.M)
    return [shlex.split(re.split(r"\s[|#>]", line)[0]) for line in found]
