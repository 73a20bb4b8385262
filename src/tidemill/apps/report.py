"""The backtest as one HTML page: a reader sees first what it scored and against what, then why.

In: `Results`. Out: the page as text. Invariant: it stands alone and stays small: it loads nothing (its own security
policy forbids it), nothing a user named is markup, and it has less than PAGE_BYTES_MAX whatever was measured.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path

from tidemill.apps.backtest_results import BASELINES, Comparison, Figures, Results, Series
from tidemill.apps.report_decisions import calibration_chart, decision_charts, said_histogram, small_multiples
from tidemill.apps.report_figures import SERIES_MAX, delay_chart, over_time, styles, weights_chart, windows_table
from tidemill.apps.report_html import DASH, day, details, duration, moment, number, percent, signed, table, text

PAGE_BYTES_MAX = 1_000_000
SLICES_MAX = 20
ROWS_MAX = 60  # of any other table
COMMAND_CHARACTERS = 2_000
SENTENCE_CHARACTERS = 100
FIGURE_COLUMNS = (
    "n",
    "log loss",
    "against constant",
    "AUC",
    "Brier",
    "accuracy",
    "precision",
    "recall",
    "alarm rate",
    "cost / event",
    "calibration error",
    "kappa",
)


def render(results: Results) -> str:
    """One page, complete, in UTF-8."""
    shown = _shown(results)
    sections = [
        ("figures", "How good it was", _headline(results)),
        ("variants", "Variants side by side", _comparisons(results.comparisons)),
        ("time", "Over time", _over_time(results, shown)),
        ("calibration-of", "Calibration", _calibration(shown)),
        ("decisions", "Decisions", _decisions(results, shown)),
        ("slices", "Worst slices", _slices(results)),
        ("label-delay", "Label delay", delay_chart(results)),
        ("run", "The run", _run(results)),
    ]
    sections = [(key, title, content) for key, title, content in sections if content]
    links = "".join(f'<li><a href="#{key}">{title}</a></li>' for key, title, _ in sections)
    body = "".join(
        f'<section id="{key}" aria-labelledby="{key}-title"><h2 id="{key}-title">{title}</h2>{content}</section>'
        for key, title, content in sections
    )
    app = text(results.app)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" '
        f'content="{_policy()}"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><meta name="referrer" content="no-referrer">'
        f'<link rel="icon" href="data:,"><title>{app} · backtest</title><style>{_shipped("report.css")}</style></head>'
        f'<body><header><p class="kind">tidemill backtest</p><h1>{app}</h1>{_lead(results)}'
        f'<nav aria-label="Sections"><ul>{links}</ul></nav></header><main>{body}</main>'
        f"<footer>Made {text(results.made)} by <span>tidemill backtest</span>. Times are UTC, log loss is in nats."
        f"</footer>"
        f"<script>{_shipped('report.js')}</script></body></html>\n"
    )


def _shown(results: Results) -> list[Series]:
    """The series that charts draw, the one that serves first; tables have them all."""
    served = results.served
    if served is None:
        return []
    return [served, *(one for one in results.series if one is not served)][:SERIES_MAX]


def _lead(results: Results) -> str:
    served = results.served
    span = f"{day(results.time_first_ms)} to {day(results.time_last_ms)}"
    if served is None or served.figures.log_loss is None:
        return f'<p class="lead">{span}. No prediction met its label, so nothing was measured.</p>'
    against = [
        f"{number(abs(gap))} {'below' if gap <= 0 else 'above'} {text(one.name)}"
        for one in results.series
        if one.kind in BASELINES and one.figures.log_loss is not None
        for gap in [served.figures.log_loss - one.figures.log_loss]
    ]
    baselines = f", {' and '.join(against[:2])}" if against else ""
    return (
        f'<p class="lead">{span}. On {served.figures.n:,} events whose label came, '
        f"<strong>{text(served.name)}</strong> scored a log loss of "
        f"<strong>{number(served.figures.log_loss)}</strong>{baselines}.</p>"
    )


def _headline(results: Results) -> str:
    if not results.series:
        return ""
    constant = next((one.figures.log_loss for one in results.series if one.kind == "constant"), None)
    css = styles(_shown(results))
    ordered = sorted(results.series, key=lambda one: (one is not results.served, one.kind in BASELINES))
    rows = [
        [_named(one, results, css), *_figure_cells(one.figures, None if one.kind == "constant" else constant)]
        for one in ordered[:ROWS_MAX]
    ]
    best = ""
    if results.blend_excess is not None:
        side = "below" if results.blend_excess <= 0 else "above"
        best = f" The blend's log loss is {number(abs(results.blend_excess))} {side} that of its best expert."
    return (
        f'<p class="soft">Labels came {duration(results.label_delay_ms_p50)} after their event at p50 and '
        f"{duration(results.label_delay_ms_p95)} at p95. Every row, the baselines too, knew at an event only what had "
        f"come by then. Accuracy to cost are at the decision's threshold of {results.threshold:.2f}.{best}</p>"
        + table("Overall figures by series", ("series", *FIGURE_COLUMNS), rows, css="headline")
        + _left_out(len(ordered), len(rows), "series")
    )


def _named(series: Series, results: Results, css: dict[str, str]) -> str:
    line = f'<path class="line {css.get(series.name, "b0")}" d="M0 4H22"/>'
    mark = " is-served" if series is results.served else ""
    baseline = " baseline" if series.kind in BASELINES else ""
    return (
        f'<svg class="swatch{mark}" viewBox="0 0 22 8" aria-hidden="true">{line}</svg>'
        f'<span class="name{baseline}">{text(series.name)}</span>'
    )


def _figure_cells(figures: Figures, constant: float | None) -> list[str]:
    against = None if figures.log_loss is None or constant is None else figures.log_loss - constant
    return [
        f"{figures.n:,}",
        number(figures.log_loss),
        signed(against),
        number(figures.auc),
        number(figures.brier),
        percent(figures.accuracy),
        number(figures.precision, 3),
        number(figures.recall, 3),
        percent(figures.alarm_rate),
        number(figures.cost),
        number(figures.calibration_error),
        number(figures.kappa, 3),
    ]


def _comparisons(comparisons: Sequence[Comparison]) -> str:
    if not comparisons:
        return ""
    shown = comparisons[:ROWS_MAX]
    reach = max(
        (abs(one.difference) + 2 * (one.standard_error or 0) for one in shown if one.difference is not None), default=0
    )
    rows = [
        [
            text(one.name),
            f"{one.figures.n:,}",
            number(one.figures.log_loss),
            number(one.figures.auc),
            number(one.figures.cost),
            "first" if one.difference is None else f"{signed(one.difference)} ± {number(one.standard_error)}",
            "" if one.days is None else f"{one.days:,}",
            _interval(one, reach or 1.0),
        ]
        for one in shown
    ]
    return (
        '<p class="soft">Difference in log loss to the first variant on the same events, ± its standard error by '
        "blocks of days; the bars are 95 % intervals, and left of the line is better.</p>"
        + table(
            "Variants",
            ("variant", "n", "log loss", "AUC", "cost / event", "difference", "days", "better | worse"),
            rows,
            css="barred",
        )
        + _left_out(len(comparisons), len(shown), "variants")
    )


def _interval(one: Comparison, reach: float) -> str:
    zero = '<path class="zero" d="M500 0V100"/>'
    inside = ""
    if one.difference is not None:
        at, half = 500 + 480 * one.difference / reach, 480 * 1.96 * (one.standard_error or 0) / reach
        inside = (
            f'<path class="line s0" d="M{at - half:.0f} 50H{at + half:.0f}"/>'
            f'<path class="dot s0" stroke-width="8" d="M{at:.0f} 50h0"/>'
        )
    return (
        f'<svg class="forest" viewBox="0 0 1000 100" preserveAspectRatio="none" aria-hidden="true">{zero}{inside}</svg>'
    )


def _over_time(results: Results, shown: Sequence[Series]) -> str:
    charts = over_time(results, shown) if shown else ""
    if not charts:
        return ""
    columns, rows = windows_table(shown)
    return (
        charts
        + weights_chart(results, shown)
        + _promotions(results)
        + details("The numbers by window", table("Figures by window", columns, rows))
        + _left_out(len(results.series), len(shown), "series")
    )


def _promotions(results: Results) -> str:
    numbered = list(enumerate(sorted(results.promotions, key=lambda one: one.time_ms), 1))
    if not numbered:
        return ""
    rows = [
        [
            str(index),
            moment(one.time_ms),
            text(one.version),
            f"{one.trained_examples:,}",
            text(one.cause, SENTENCE_CHARACTERS),
        ]
        for index, one in numbered[-ROWS_MAX:]
    ]
    count = f"{len(numbered)} promotion{'s' if len(numbered) > 1 else ''}"
    return details(
        count,
        table("Promotions", ("", "time", "version", "trained on examples", "cause"), rows, css="left")
        + _left_out(len(numbered), len(rows), "promotions, the last ones"),
    )


def _calibration(shown: Sequence[Series]) -> str:
    if not shown or not shown[0].calibration:
        return ""
    rows = [
        [f"{one.probability:.3f}", f"{one.share:.3f}", signed(one.share - one.probability, 3), f"{one.n:,}"]
        for one in shown[0].calibration
    ]
    numbers = table(
        f"Calibration of {text(shown[0].name)}", ("said", "came", "gap", "n"), rows, css="tight", is_first_text=False
    )
    error = number(shown[0].figures.calibration_error)
    return (
        f'<div class="pair"><div>{calibration_chart(shown)}</div><div>{said_histogram(shown[0])}'
        f'<p class="soft">Mean distance of {text(shown[0].name)} from the diagonal, weighted by n: {error}.</p>'
        f"{numbers}</div></div>"
    )


def _decisions(results: Results, shown: Sequence[Series]) -> str:
    charts = decision_charts(results, shown) if shown else ""
    if not charts:
        return ""
    rows = [
        [
            f"{one.threshold:.3f}" + (" (decision)" if one.is_decision else ""),
            number(one.precision, 3),
            number(one.recall, 3),
            percent(one.alarm_rate),
            percent(one.accuracy),
            number(one.cost),
        ]
        for one in shown[0].thresholds
    ]
    numbers = table(
        f"Decisions of {text(shown[0].name)} by threshold",
        ("threshold", "precision", "recall", "alarm rate", "accuracy", "cost / event"),
        rows,
        is_first_text=False,
    )
    others = small_multiples(results, shown)
    folded = details("The numbers by threshold", numbers)
    small = f'<p class="soft others">The others, <b class="s0">precision</b> and recall (dashed):</p>{others}'
    return f'<div class="pair level">{charts}</div>{small if others else ""}{folded}'


def _slices(results: Results) -> str:
    if not results.slices:
        return ""
    worst = sorted(results.slices, key=lambda one: -one.excess)[:SLICES_MAX]
    most = max(one.excess for one in worst)
    rows = [
        [
            f'{text(one.feature)} <span class="none">=</span> {text(one.value)}',
            f"{one.n:,}",
            number(one.log_loss),
            number(one.auc, 3),
            signed(one.excess),
            f'<span class="bar" style="--share:{max(one.excess, 0) / most if most > 0 else 0:.3f}"></span>',
        ]
        for one in worst
    ]
    return (
        '<p class="soft">Events that share one value of one feature and were predicted worse than the rest. '
        "Excess is over the log loss of all events.</p>"
        + table("Worst slices", ("slice", "n", "log loss", "AUC", "excess", ""), rows, css="barred")
        + _left_out(len(results.slices), len(rows), "slices")
    )


def _run(results: Results) -> str:
    counts = results.counts
    facts = [
        ("events", f"{counts.events:,}, {moment(results.time_first_ms)} to {moment(results.time_last_ms)}"),
        ("records", f"{counts.records:,} in {counts.batches:,} batches"),
        ("labels", f"{counts.labels:,}"),
        ("predictions with their label", f"{counts.examples:,}"),
        ("expired without a label", f"{counts.expired:,}"),
        ("dead letters", f"{counts.dead_letters:,}"),
        ("time", f"{duration(1_000 * results.seconds)}, {results.records_per_s:,.0f} records/s"),
        ("peak memory", DASH if results.rss_bytes_max is None else f"{results.rss_bytes_max / 2**20:,.0f} MiB"),
        ("config", text(results.config_digest, SENTENCE_CHARACTERS)),
        ("made", text(results.made)),
    ]
    listed = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts)
    rows = [
        [
            text(one.name, SENTENCE_CHARACTERS),
            f"{one.records:,}",
            number(one.offset_start, 0),
            number(one.offset_next, 0),
        ]
        for one in results.sources[:ROWS_MAX]
    ]
    sources = table("Sources", ("source", "records", "first offset", "next offset"), rows) if rows else ""
    return f"<code>{text(results.command, COMMAND_CHARACTERS)}</code><dl>{listed}</dl>{sources}" + _left_out(
        len(results.sources), len(rows), "sources"
    )


def _left_out(total: int, shown: int, what: str) -> str:
    return f'<p class="soft">Shown are {shown} of {total:,} {what}.</p>' if total > shown else ""


def _policy() -> str:
    """Nothing may be loaded and no script may run but the page's own."""
    digest = b64encode(sha256(_shipped("report.js").encode()).digest()).decode()
    return f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"


@cache
def _shipped(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")
