"""A backtest's results in the terminal: one table that fits 100 columns, or the whole value as JSON.

In: `Results`. Out: text on stdout. Invariant: no accuracy stands without its n, the delay of the labels and the
baselines.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TextIO

from rich.console import RenderableType
from rich.markup import escape
from rich.table import Table

from tidemill.apps.backtest_results import BASELINES, Comparison, Results
from tidemill.apps.report_html import duration_words
from tidemill.apps.results import Form, print_json, print_tables

NAME_COLUMNS = 24  # wider names are folded


def print_results(results: Results, form: Form, *, file: TextIO | None = None) -> None:
    """Tables, or `Results.to_json()`; `jsonl` is the same value on one line. `file` is for tables only."""
    if form is Form.TABLE:
        print_tables(view_of(results), file=file)
    else:
        print_json(results.to_json(), form)


def view_of(results: Results) -> list[RenderableType]:
    """The tables and lines, the most important first."""
    counts = results.counts
    p50, p95 = duration_words(results.label_delay_ms_p50), duration_words(results.label_delay_ms_p95)
    excess = results.blend_excess
    memory = _mebibytes(results.rss_bytes_max)
    lines = [
        f"label delay p50 {p50}, p95 {p95}"
        + ("" if excess is None else f"; log loss of the blend less its best expert's {_signed(excess)}"),
        f"decided at {results.threshold:.2f}: a false alarm costs {results.false_alarm_cost:g}, "
        f"a miss {results.miss_cost:g}",
        f"{counts.records:,} records, {counts.events:,} events, {counts.examples:,} labelled",
        f"{counts.expired:,} expired, {counts.dead_letters:,} dead letters, {len(results.promotions):,} promotions",
        f"{results.seconds:.1f} s, {results.records_per_s:,.0f} records/s, peak memory {memory}",
    ]
    tables: list[RenderableType] = [_series_table(results), *lines]
    return [*tables, _comparison_table(results.comparisons)] if results.comparisons else tables


def _series_table(results: Results) -> Table:
    table = _table(
        f"backtest of {results.app}",
        ("n", "log loss", "AUC", "accuracy", "precision", "recall", "cost"),
        first="series",
    )
    for one in sorted(results.series, key=lambda one: one.kind in BASELINES):
        figures = one.figures
        table.add_row(
            escape(one.name),
            f"{figures.n:,}",
            _number(figures.log_loss, 4),
            _number(figures.auc, 4),
            _number(figures.accuracy, 3),
            _number(figures.precision, 3),
            _number(figures.recall, 3),
            _number(figures.cost, 4),
            style="bold" if one is results.served else "dim" if one.kind in BASELINES else None,
        )
    return table


def _comparison_table(comparisons: Sequence[Comparison]) -> Table:
    table = _table("variants", ("n", "log loss", "AUC", "cost", "difference", "± s.e.", "days"), first="variant")
    for one in comparisons:
        table.add_row(
            escape(one.name),
            f"{one.figures.n:,}",
            _number(one.figures.log_loss, 4),
            _number(one.figures.auc, 4),
            _number(one.figures.cost, 4),
            _signed(one.difference),
            _number(one.standard_error, 4),
            _number(one.days, 0),
        )
    return table


def _table(title: str, columns: Sequence[str], *, first: str) -> Table:
    table = Table(title=escape(title), title_justify="left")
    table.add_column(first, overflow="fold", max_width=NAME_COLUMNS)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:,.{digits}f}"


def _signed(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:+.4f}"


def _mebibytes(value: int | None) -> str:
    return "-" if value is None else f"{value / 2**20:,.0f} MiB"
