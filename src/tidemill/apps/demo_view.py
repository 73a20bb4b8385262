"""What a demo shows while it runs: a live panel on a terminal, a plain line elsewhere.

In: one `Snapshot` of plain values at a time. Out: text on stderr. Invariant: nothing is measured here.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from tidemill.apps.results import Quality

BARS = "▁▂▃▄▅▆▇█"
SPARK_COLUMNS = 48
LINE_EVERY_S = 5.0  # a log that a person scrolls through
DRAW_EVERY_S = 0.5  # faster is not read, and costs a core's percents


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Where a run stands. Rates are records per second of the wall clock."""

    elapsed_s: float
    simulated_ms: int | None = None  # event time that the whole group has reached
    records: int = 0
    rate_now: float = 0.0
    rate_mean: float = 0.0
    lag: int = 0
    predictions: int = 0
    examples: int = 0
    dead_letters: int = 0
    n: int = 0
    is_producing: bool = True
    quality: Mapping[str, Quality] = field(default_factory=dict)
    losses_by_day: Sequence[float] = ()


class View(Protocol):
    """Where progress goes."""

    def say(self, message: str) -> None: ...

    def show(self, snapshot: Snapshot) -> None: ...

    def close(self) -> None: ...


def make_view(*, is_quiet: bool) -> View:
    """The panel on a terminal, lines elsewhere, nothing when quiet."""
    if is_quiet:
        return SilentView()
    return LiveView() if sys.stderr.isatty() else LineView()


class SilentView:
    def say(self, message: str) -> None:
        """Nothing."""

    def show(self, snapshot: Snapshot) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class LineView:
    """One line every five seconds."""

    def __init__(self) -> None:
        self._next_at = 0.0

    def say(self, message: str) -> None:
        print(message, file=sys.stderr, flush=True)

    def show(self, snapshot: Snapshot) -> None:
        if time.monotonic() >= self._next_at:
            self._next_at = time.monotonic() + LINE_EVERY_S
            self.say(line_of(snapshot))

    def close(self) -> None:
        """A line needs no end."""


class LiveView:
    """A panel that is drawn over itself."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        # Drawn by our own loop: a refresh thread would cost as much again.
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._next_at = 0.0
        self._live.start()

    def say(self, message: str) -> None:
        self._console.print(message)

    def show(self, snapshot: Snapshot) -> None:
        if time.monotonic() >= self._next_at:
            self._next_at = time.monotonic() + DRAW_EVERY_S
            self._live.update(panel_of(snapshot), refresh=True)

    def close(self) -> None:
        self._live.stop()


def line_of(snapshot: Snapshot) -> str:
    """A snapshot as one line of text."""
    parts = [
        f"{snapshot.elapsed_s:4.0f} s",
        simulated_text(snapshot.simulated_ms),
        f"{snapshot.records:,} records",
        f"{snapshot.rate_now:,.0f}/s",
        f"lag {snapshot.lag:,}",
        f"{snapshot.predictions:,} predictions",
        f"{snapshot.examples:,} labels",
        f"{snapshot.dead_letters:,} dead letters",
        *(f"{name} {quality_text(one)}" for name, one in snapshot.quality.items()),
    ]
    return " · ".join(parts)


def panel_of(snapshot: Snapshot) -> Panel:
    """A snapshot as the live panel."""
    facts = Table.grid(padding=(0, 2))
    producing = "publishing" if snapshot.is_producing else "all published"
    for left, left_value, right, right_value in (
        ("simulated", simulated_text(snapshot.simulated_ms), "elapsed", f"{snapshot.elapsed_s:.0f} s"),
        ("records", f"{snapshot.records:,}", "records/s", f"{snapshot.rate_now:,.0f} (mean {snapshot.rate_mean:,.0f})"),
        ("lag", f"{snapshot.lag:,} ({producing})", "dead letters", f"{snapshot.dead_letters:,}"),
        ("predictions", f"{snapshot.predictions:,}", "labels joined", f"{snapshot.examples:,} (N = {snapshot.n:,})"),
    ):
        facts.add_row(Text(left, style="dim"), left_value, Text(right, style="dim"), right_value)
    quality = Table(box=None, padding=(0, 2), header_style="dim")
    for heading in ("expert", "log loss", "AUC"):
        quality.add_column(heading)
    for place, (name, one) in enumerate(snapshot.quality.items()):
        loss, area = (f"{value:.4f}" for value in (one.log_loss, one.auc))
        quality.add_row(name, loss, area, style="bold" if place == 0 else "")
    spark = Text(f"log loss by day  {sparkline(snapshot.losses_by_day)}", style="cyan")
    return Panel(Group(facts, Text(), quality, Text(), spark), title="tidemill demo", title_align="left", expand=False)


def sparkline(values: Sequence[float], columns: int = SPARK_COLUMNS) -> str:
    """One bar per value, or per group of neighbours where there are more than `columns`; NaN is left out."""
    known = [value for value in values if not math.isnan(value)]
    if len(known) > columns:
        edges = [round(column * len(known) / columns) for column in range(columns + 1)]
        known = [sum(known[a:b]) / (b - a) for a, b in pairwise(edges)]
    if not known:
        return ""
    low, high = min(known), max(known)
    height = (high - low) or 1.0
    return "".join(BARS[int((value - low) / height * (len(BARS) - 1))] for value in known)


def simulated_text(time_ms: int | None) -> str:
    """Event time to the minute, UTC."""
    return "-" if time_ms is None else datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M")


def quality_text(one: Quality) -> str:
    return f"{one.log_loss:.3f}/{one.auc:.3f}"
