"""What a run showed: as tables for people, as JSON for programs.

In: plain values. Out: text on stdout. Invariant: table and JSON are made of the same values; a number that could not be
measured is null in JSON and a dash in a table, never zero.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TextIO

from rich.console import Console, RenderableType
from rich.table import Table

from tidemill.apps.status import Balance, Status
from tidemill.core.records import Partition

PIPE_COLUMNS = 240
SCHEMA_VERSION = 1  # grows when a name of the JSON changes


class Form(StrEnum):
    """How a command prints its result."""

    TABLE = "table"
    JSON = "json"
    JSONL = "jsonl"


@dataclass(frozen=True, slots=True)
class Quality:
    """Of the probabilities of one expert over all labelled predictions."""

    log_loss: float
    auc: float


@dataclass(frozen=True, slots=True)
class Compared:
    """One series over the examples that all series are compared on."""

    n: int
    log_loss: float
    auc: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResults:
    """One replay from its first to its last record. Seconds are of the wall clock, delays of event time."""

    app: str
    workers: int
    records: int
    predictions: int
    examples: int
    label_delay_s_p50: float | None
    label_delay_s_p95: float | None
    quality: Mapping[str, Quality]  # by expert: learner, constant, no-change
    compared: Mapping[str, Compared]  # by series: what serves, and what is declared beside it
    timeline: tuple[str, ...]  # alerts, trainings, promotions, by event time
    balances: tuple[Balance, ...]
    dead_letters: Mapping[str, int]  # by code
    out_of_order: int | None  # records merged after a later one; None = a worker did not tell
    setup_s: float  # from the command to running servers
    first_prediction_s: float | None  # from the command
    replay_s: float  # from the start of the workers to the last commit
    records_per_s: float
    feature_digest: str | None

    @property
    def is_sound(self) -> bool:
        return all(balance.is_closed for balance in self.balances)


def results_as_json(results: RunResults) -> dict[str, Any]:
    """JSON values; NaN becomes null."""
    plain = dataclasses.asdict(dataclasses.replace(results, balances=()))
    plain["balances"] = balances_as_json(results.balances)
    return {"schema_version": SCHEMA_VERSION, **_without_nan(plain)}


def balances_as_json(balances: Sequence[Balance]) -> list[dict[str, Any]]:
    return [
        {"name": one.name, "total": one.total, "parts": dict(one.parts), "is_closed": one.is_closed} for one in balances
    ]


def results_tables(results: RunResults) -> list[RenderableType]:
    """The tables at the end of a run."""
    quality = _table("predictions against labels", "expert", "log loss", "AUC")
    for name, one in results.quality.items():
        quality.add_row(name, _number(one.log_loss, 4), _number(one.auc, 4))
    compared = _table("all series on the same examples", "series", "n", "log loss", "AUC")
    for name, of_series in results.compared.items():
        compared.add_row(name, f"{of_series.n:,}", _number(of_series.log_loss, 4), _number(of_series.auc, 4))
    timings = _table("run", "what", "value")
    for name, value in (
        ("set-up", f"{results.setup_s:.1f} s"),
        ("first prediction", f"{_number(results.first_prediction_s, 1)} s after the command"),
        ("replay", f"{results.replay_s:.1f} s"),
        ("records", f"{results.records:,}"),
        ("records/s", f"{results.records_per_s:,.0f}"),
        ("predictions", f"{results.predictions:,}"),
        ("labels joined", f"{results.examples:,}"),
        ("label delay", f"p50 {_duration(results.label_delay_s_p50)}, p95 {_duration(results.label_delay_s_p95)}"),
        ("workers", str(results.workers)),
        ("out of order", _number(results.out_of_order, 0)),
    ):
        timings.add_row(name, value)
    timeline = _table("the loop", "when and what")
    for line in results.timeline:
        timeline.add_row(line)
    letters = counts_table("dead letters", results.dead_letters)
    return [timeline, quality, compared, timings, balances_table(results.balances), letters]


def balances_table(balances: Sequence[Balance]) -> Table:
    """One line per equation; an open one says by how much."""
    table = _table("balances", "what came", "count", "what became of it", "closes")
    for one in balances:
        parts = " + ".join(f"{count:,} {name}" for name, count in one.parts.items())
        gap = one.total - sum(one.parts.values())
        verdict = "[green]yes[/green]" if one.is_closed else f"[red]no, {gap:+,}[/red]"
        table.add_row(one.name, f"{one.total:,}", parts, verdict)
    return table


def counts_table(title: str, counts: Mapping[str, int]) -> Table:
    table = _table(title, "which", "count")
    for name, count in sorted(counts.items()):
        table.add_row(name, f"{count:,}")
    table.add_row("all", f"{sum(counts.values()):,}", style="bold")
    return table


def status_tables(status: Status) -> list[RenderableType]:
    tables: list[RenderableType] = [
        balances_table(status.balances),
        counts_table("outcomes", status.outcomes),
        counts_table("rows in the store", status.open_rows),
        counts_table("lag", _by_topic(status.lag)),
    ]
    if status.feature_digest is not None:
        tables.append(f"feature digest {status.feature_digest}")
    return tables


def print_tables(tables: Sequence[RenderableType], *, file: TextIO | None = None) -> None:
    """On stdout unless told otherwise; no colour off a terminal or with NO_COLOR."""
    file = file or sys.stdout
    # A pipe has no width: a line is then as long as it has to be.
    console = Console(file=file, highlight=False, width=None if file.isatty() else PIPE_COLUMNS)
    for table in tables:
        console.print(table)


def print_json(value: Mapping[str, Any], form: Form) -> None:
    """`jsonl` is the same value on one line."""
    print(json.dumps(value, indent=2 if form is Form.JSON else None, ensure_ascii=False))


def print_rows(title: str, rows: Sequence[Mapping[str, Any]], columns: Sequence[str], form: Form) -> None:
    """Rows of one kind: a table, a JSON object with `rows`, or one JSON object a line."""
    if form is Form.TABLE:
        table = _table(title, *columns)
        for row in rows:
            table.add_row(*(_cell(row[name]) for name in columns))
        print_tables([table])
    elif form is Form.JSON:
        print_json({"schema_version": SCHEMA_VERSION, "rows": list(rows)}, form)
    else:
        for row in rows:
            print_json({"schema_version": SCHEMA_VERSION, **row}, form)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for name in columns:
        table.add_column(name, overflow="fold")
    return table


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:,.{digits}f}"


def _duration(seconds: float | None) -> str:
    if seconds is None or math.isnan(seconds):
        return "-"
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


def _by_topic(lag: Mapping[Partition, int]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for partition, count in lag.items():
        counts[partition.topic] = counts.get(partition.topic, 0) + count
    return counts


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_nan(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value
