"""The figures of the backtest's page: which chart shows what of the results.

In: `Results`. Out: HTML figures. Invariant: a figure's size is bounded whatever was measured: at most SERIES_MAX lines
of POINTS_MAX points; what is left out is said.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from statistics import median

from tidemill.apps.backtest_results import BASELINES, DelayBin, Results, Series, WeightPoint, Window
from tidemill.apps.report_charts import (
    Chart,
    Line,
    Mark,
    Scale,
    Tick,
    area,
    bars,
    draw,
    numbers_scale,
    percent_scale,
    time_scale,
    within,
)
from tidemill.apps.report_html import day, duration, duration_words, number, percent, text

SERIES_MAX = 12  # lines that can be told apart
POINTS_MAX = 600  # of a line: more than a screen has columns for
WEIGHTS_MAX = 300  # points in time of the stacked weights, each drawn twice
MARKS_MAX = 300
DENSE_POINTS = 150  # of a line: from there on strokes are thinner
BARS_MAX = 60
COLOURS = 5  # report.css defines s0 to s5, b0 and b1, and dashes d1 and d2


def styles(series: Sequence[Series]) -> dict[str, str]:
    """The CSS classes of each series by name: colours, then dashes, so that two are never told apart by hue alone."""
    found: dict[str, str] = {}
    others = baselines = 0
    for index, one in enumerate(series):
        if one.kind in BASELINES:
            found.setdefault(one.name, f"b{baselines % 2}")
            baselines += 1
        elif index == 0:
            found[one.name] = "s0"
        else:
            dash = others // COLOURS
            found.setdefault(one.name, f"s{others % COLOURS + 1}" + (f" d{min(dash, 2)}" if dash else ""))
            others += 1
    return found


def over_time(results: Results, shown: Sequence[Series]) -> str:
    """Log loss, AUC and share of positives by window, with promotions."""
    css = styles(shown)
    windows = {one.name: _merged(one.windows, POINTS_MAX) for one in shown}
    starts = sorted({one.start_ms for column in windows.values() for one in column})
    if not starts:
        return ""
    step = results.window_ms * max(1, _merge_factor(shown))
    x = time_scale(starts[0], starts[-1] + step)
    marks = _promotion_marks(results)
    tips = _window_names(starts, step, results)
    span = duration_words(step)
    merged = " The AUC of a point is the mean of its windows." if step > results.window_ms else ""

    def chart(
        key: str, title: str, measure: Callable[[Window], float | None], height: int, note: str, *, has_flags: bool
    ) -> str:
        lines = []
        for one in shown:
            by_start = {window.start_ms: measure(window) for window in windows[one.name]}
            points = [(start + step / 2, by_start.get(start)) for start in starts]
            lines.append(Line(text(one.name), css[one.name], points))
        y = _range_of(shown, lines)
        return draw(
            Chart(
                key=key,
                title=title,
                note=note,
                summary=_said(lines, len(marks)),
                x=x,
                y=y,
                lines=lines,
                height=height,
                marks=marks if has_flags else [Mark(one.at, "", one.css) for one in marks],
                tips=tips,
                css="dense" if len(starts) > DENSE_POINTS else "",
            )
        )

    flags = " Numbered lines are promotions." if marks else ""
    loss = chart(
        "log-loss",
        "Log loss",
        lambda one: one.log_loss,
        280,
        f"Lower is better; each point is {span} of events.{flags}",
        has_flags=True,
    )
    auc = chart("auc", "AUC", lambda one: one.auc, 220, f"Higher is better.{merged}", has_flags=False)
    return loss + auc + _base_rate(windows[shown[0].name], x, step)


def windows_table(shown: Sequence[Series]) -> tuple[list[str], list[list[str]]]:
    """Columns and rows of the numbers behind `over_time`."""
    merged = [(one, {window.start_ms: window for window in _merged(one.windows, POINTS_MAX)}) for one in shown]
    columns = ["from", "n", "positive", *(f"{text(one.name)}: log loss, AUC" for one, _ in merged)]
    rows = []
    for start in sorted({start for _, by_start in merged for start in by_start}):
        here = [by_start.get(start) for _, by_start in merged]
        first = next(one for one in here if one is not None)
        cells = [f"{number(one.log_loss)} {number(one.auc, 3)}" if one else "" for one in here]
        rows.append([day(start), f"{first.n:,}", percent(first.base_rate), *cells])
    return columns, rows


def delay_chart(results: Results) -> str:
    """How long labels took."""
    found = _merged_bins(results.label_delays)
    total = sum(one.n for one in found)
    if not total:
        return ""
    every = max(1, len(found) // 8)
    ticks = [
        Tick(index, duration(one.start_ms), bool(index % (2 * every)))
        for index, one in enumerate(found)
        if index % every == 0
    ]
    x = Scale(0, len(found), tuple(ticks))
    y = percent_scale(max(one.n for one in found) / total)
    marks = [
        Mark(at, f"p{share} {duration(delay)}", "decision")
        for share, delay in ((50, results.label_delay_ms_p50), (95, results.label_delay_ms_p95))
        if delay is not None and (at := _bin_place(found, delay)) is not None
    ]
    chart = Chart(
        key="delay",
        title="From an event to its label",
        note="Until then a prediction is open, and nothing can be learned from it.",
        summary=f"{total:,} labels; half came within {duration_words(results.label_delay_ms_p50)}, "
        f"95 % within {duration_words(results.label_delay_ms_p95)}.",
        x=x,
        y=y,
        lines=(),
        height=180,
        marks=marks,
        under=bars([(index, index + 1, one.n / total) for index, one in enumerate(found)], x, y),
    )
    return draw(chart)


def weights_chart(results: Results, shown: Sequence[Series]) -> str:
    """What the blend gave to each expert, stacked, over the same time as the windows."""
    points = results.blend_weights[:: -(-len(results.blend_weights) // WEIGHTS_MAX) or 1]
    if not points:
        return ""
    names = list(dict.fromkeys(name for one in points for name in one.weights))[:SERIES_MAX]
    known = styles(shown)
    spare = iter(f"s{index % COLOURS + 1} d{index // COLOURS}" for index in range(2 * SERIES_MAX))
    css = {name: known[name] if name in known else next(spare) for name in names}
    starts = [one.start_ms for column in shown for one in column.windows] or [points[0].time_ms]
    x = time_scale(min(min(starts), points[0].time_ms), max(max(starts) + results.window_ms, points[-1].time_ms))
    y = Scale(0, 1, tuple(Tick(one / 4, f"{25 * one} %") for one in range(5)))
    lines, under = [], ""
    lower = [0.0] * len(points)
    for name in names:
        upper = [low + one.weights.get(name, 0.0) for low, one in zip(lower, points, strict=True)]
        spans = [(one.time_ms, low, high) for one, low, high in zip(points, lower, upper, strict=True)]
        under += area(spans, x, y, css=css[name])
        lines.append(Line(text(name), css[name], [(at, high) for at, _, high in spans], 3))
        lower = upper
    chart = Chart(
        key="weights",
        title="Weights of the blend",
        note="How much of the blend is each expert's, by what it lost so far.",
        summary="; ".join(_weight_words(name, points) for name in names) + ".",
        x=x,
        y=y,
        lines=lines,
        height=160,
        under=under,
        css="stacked",
    )
    return draw(chart)


def _base_rate(windows: Sequence[Window], x: Scale, step: float) -> str:
    known = [(one.start_ms, one.start_ms + step, one.base_rate) for one in windows if one.base_rate is not None]
    top = max((rate for _, _, rate in known), default=1.0)
    y = percent_scale(top)
    low = min((rate for _, _, rate in known), default=0.0)
    return draw(
        Chart(
            key="base-rate",
            title="Share of positives",
            summary=f"Between {100 * low:.1f} % and {100 * top:.1f} %.",
            x=x,
            y=y,
            lines=(),
            height=80,
            under=bars(known, x, y),
            css="has-ends",  # for the same axis as the charts above
        )
    )


def _range_of(shown: Sequence[Series], lines: Sequence[Line]) -> Scale:
    """Of what competes; a baseline far away would flatten all the rest, so it may leave the chart."""
    medians = [median(known) if (known := _known(line)) else None for line in lines]
    competing = [
        value for one, line in zip(shown, lines, strict=True) if one.kind not in BASELINES for value in _known(line)
    ] or [value for line in lines for value in _known(line)]
    low, high = within(competing)
    near = [
        value
        for one, line, middle in zip(shown, lines, medians, strict=True)
        if one.kind in BASELINES and middle is not None and low - (high - low) / 3 <= middle <= high + (high - low) / 3
        for value in _known(line)
    ]
    return numbers_scale(*within([*competing, *near]))


def _known(line: Line) -> list[float]:
    return [value for _, value in line.points if value is not None]


def _said(lines: Sequence[Line], mark_count: int) -> str:
    parts = []
    for line in lines:
        if known := _known(line):
            parts.append(
                f"{line.name}: first {known[0]:.3f}, last {known[-1]:.3f}, from {min(known):.3f} to {max(known):.3f}"
            )
    promotions = f" {mark_count} promotions are marked." if mark_count else ""
    return "; ".join(parts) + "." + promotions


def _promotion_marks(results: Results) -> list[Mark]:
    """Numbered in the order of the table of promotions; of too many, the last ones."""
    numbered = list(enumerate(sorted(results.promotions, key=lambda one: one.time_ms), 1))[-MARKS_MAX:]
    return [Mark(one.time_ms, str(index), "promotion") for index, one in numbered]


def _window_names(starts: Sequence[int], step: int, results: Results) -> list[str]:
    times = sorted(one.time_ms for one in results.promotions)
    names = []
    for start in starts:
        first, last = bisect_right(times, start - 1), bisect_right(times, start + step - 1)
        promoted = f", promotion {first + 1}" + (f" to {last}" if last > first + 1 else "") if last > first else ""
        names.append(f"{day(start)} + {duration_words(step)}{promoted}")
    return names


def _merge_factor(shown: Sequence[Series]) -> int:
    return max((-(-len(one.windows) // POINTS_MAX) for one in shown), default=1)


def _merged(windows: Sequence[Window], count_max: int) -> list[Window]:
    """At most `count_max` windows: neighbours become one, means weighted by n."""
    size = -(-len(windows) // count_max) or 1
    if size == 1:
        return list(windows)
    found = []
    for first in range(0, len(windows), size):
        group = windows[first : first + size]
        found.append(
            Window(
                start_ms=group[0].start_ms,
                n=sum(one.n for one in group),
                log_loss=_mean(group, lambda one: one.log_loss),
                auc=_mean(group, lambda one: one.auc),
                base_rate=_mean(group, lambda one: one.base_rate),
            )
        )
    return found


def _mean(windows: Sequence[Window], measure: Callable[[Window], float | None]) -> float | None:
    known = [(value, one.n) for one in windows if (value := measure(one)) is not None]
    n = sum(count for _, count in known)
    return sum(value * count for value, count in known) / n if n else None


def _merged_bins(bins: Sequence[DelayBin]) -> list[DelayBin]:
    size = -(-len(bins) // BARS_MAX) or 1
    groups = [bins[first : first + size] for first in range(0, len(bins), size)]
    return [DelayBin(start_ms=one[0].start_ms, end_ms=one[-1].end_ms, n=sum(part.n for part in one)) for one in groups]


def _bin_place(bins: Sequence[DelayBin], delay_ms: float) -> float | None:
    for index, one in enumerate(bins):
        if one.start_ms <= delay_ms < one.end_ms:
            return index + (delay_ms - one.start_ms) / (one.end_ms - one.start_ms)
    return None


def _weight_words(name: str, points: Sequence[WeightPoint]) -> str:
    first, last = points[0].weights.get(name, 0.0), points[-1].weights.get(name, 0.0)
    return f"{text(name)}: first {100 * first:.0f} %, last {100 * last:.0f} %"
