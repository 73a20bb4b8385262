"""The order of `tidemill --help`: what one does first stands first.

In: the app with all its commands. Out: panels. Invariant: every command stands in one panel; one that was forgotten is
a KeyError at the first start.
"""

from __future__ import annotations

from typing import Any

import typer
from typer.core import TyperGroup

PANELS = {
    "Begin": ("demo", "config", "backtest", "produce"),
    "Run": ("worker", "monitor", "trainer", "web"),
    "Look": ("status", "metrics", "alerts", "models", "dlq", "audit", "doctor"),
    "Change": ("retrain", "learner", "features", "schema"),
    "Repair": ("snapshot", "restore", "reset"),
}
_ORDER = [name for names in PANELS.values() for name in names]


class OrderedCommands(TyperGroup):
    """Lists the commands in the order of `PANELS`."""

    def list_commands(self, ctx: Any) -> list[str]:
        return sorted(super().list_commands(ctx), key=_ORDER.index)


def put_in_panels(app: typer.Typer) -> None:
    """After the last command was added."""
    panel_of = {name: panel for panel, names in PANELS.items() for name in names}
    for command in app.registered_commands:
        name = command.name or (command.callback.__name__ if command.callback else "")
        command.rich_help_panel = panel_of[name]
    for group in app.registered_groups:
        group.rich_help_panel = panel_of[group.name or ""]
