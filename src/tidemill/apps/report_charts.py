"""Charts of the backtest's page, drawn without a library.

In: scales, lines and marks. Out: one HTML figure. Invariant: lines are an SVG that stretches with the page, while words
are HTML beside it, so that a chart is readable at any width and in any font; each says in words what it shows.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from html import unescape
from statistics import median

from tidemill.apps.report_html import DAY_MS, data, date_of

FIELD = 1_000.0  # the SVG's own units in both directions
LABEL_PX = 15  # the height of one line of words at the end of a line
TICKS_MAX = 13
MARK_ROOM = (12.0, 85.0)  # of FIELD, between two labels of marks: on a wide page and on a narrow one
LABELS_NARROW = 4


@dataclass(frozen=True, slots=True)
class Tick:
    """`is_minor`: shown where there is room."""

    at: float
    label: str
    is_minor: bool = False


@dataclass(frozen=True, slots=True)
class Scale:
    """Values from `low` to `high` along one axis."""

    low: float
    high: float
    ticks: tuple[Tick, ...]

    def across(self, value: float) -> float:
        """In units of FIELD from the left."""
        return FIELD * (value - self.low) / ((self.high - self.low) or 1.0)

    def down(self, value: float) -> float:
        """In units of FIELD from the top."""
        return FIELD - self.across(value)


@dataclass(frozen=True, slots=True)
class Line:
    """`name` is ready HTML. A point whose y is None interrupts the line."""

    name: str
    css: str
    points: Sequence[tuple[float, float | None]]
    digits: int = 4
    has_label: bool = True


@dataclass(frozen=True, slots=True)
class Mark:
    """A vertical line; `label` is ready HTML, empty for a bare line."""

    at: float
    label: str
    css: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """`summary` says in plain words what a picture would show. `tips`: the text of each x of the first line, read out
    with the values of all lines at that x; all lines then have the same x."""

    key: str
    title: str
    summary: str
    x: Scale
    y: Scale
    lines: Sequence[Line]
    height: int
    note: str = ""
    x_title: str = ""
    marks: Sequence[Mark] = ()
    under: str = ""  # SVG below the lines
    over: str = ""  # SVG above them
    tips: Sequence[str] = ()
    css: str = ""


def draw(chart: Chart) -> str:
    """The figure as HTML."""
    labels = [line for line in chart.lines if line.has_label]
    grid = "".join(f"M0 {_short(chart.y.down(tick.at))}H1000" for tick in chart.y.ticks)
    lines = "".join(  # the first one last, on top of the others
        f'<path class="line {line.css}" d="{path(line.points, chart.x, chart.y)}"/>' for line in reversed(chart.lines)
    )
    marks = "".join(
        f'<path class="mark {mark.css}" d="M{_short(chart.x.across(mark.at))} 0V1000"/>' for mark in chart.marks
    )
    y_words = "".join(_word("top", chart.y.down(tick.at), tick) for tick in chart.y.ticks)
    x_words = "".join(_word("left", chart.x.across(tick.at), tick) for tick in chart.x.ticks)
    note = f"<p>{chart.note}</p>" if chart.note else ""
    legend = f'<ul class="legend">{"".join(_legend(line) for line in labels)}</ul>' if labels else ""
    ends = f'<div class="ends" aria-hidden="true">{_ends(chart, labels)}</div>' if labels else ""
    x_title = f'<div class="x-title" aria-hidden="true">{chart.x_title}</div>' if chart.x_title else ""
    return (
        f'<figure class="chart {chart.css}{" has-ends" if labels else ""}" id="{chart.key}">'
        f"<figcaption><h3>{chart.title}</h3>{note}</figcaption>{legend}"
        f'<div class="plot" style="--height:{chart.height}px"><div class="y" aria-hidden="true">{y_words}</div>'
        f"<div {_field_attributes(chart)}>"
        f'<svg viewBox="0 0 1000 1000" preserveAspectRatio="none" role="img" '
        f'aria-label="{chart.title}. {chart.summary}">'
        f'<path class="grid" d="{grid}"/>{chart.under}{marks}{lines}{chart.over}</svg>'
        f"{_mark_labels(chart)}{_tip_parts(chart)}</div>{ends}"
        f'<div class="x" aria-hidden="true">{x_words}</div>{x_title}</div></figure>'
    )


def path(points: Iterable[tuple[float, float | None]], x: Scale, y: Scale) -> str:
    """The `d` of a line; a lone point is a dot, as caps of lines are round."""
    parts: list[str] = []
    is_open = False
    for at, value in points:
        if value is None or not math.isfinite(value):
            is_open = False
            continue
        # Far outside of the field a point has no meaning; a large number only makes the page longer.
        down = min(max(y.down(value), -FIELD), 2 * FIELD)
        parts.append(f"{'L' if is_open else 'M'}{_short(x.across(at))} {_short(down)}{'' if is_open else 'h0'}")
        is_open = True
    return "".join(parts)


def dot(at: float, value: float, x: Scale, y: Scale, *, css: str, width: float = 8) -> str:
    """A round point of `width` pixels, whatever the field is stretched to."""
    return f'<path class="dot {css}" stroke-width="{width:.1f}" d="M{_short(x.across(at))} {_short(y.down(value))}h0"/>'


def bars(spans: Iterable[tuple[float, float, float]], x: Scale, y: Scale, *, css: str = "bars") -> str:
    """Bars over (from, to, value), with a thin gap between."""
    parts = []
    for start, end, value in spans:
        left, right = x.across(start), x.across(end)
        gap = min((right - left) * 0.08, 1.5)
        parts.append(f"M{_short(left + gap)} 1000V{_short(y.down(value))}H{_short(right - gap)}V1000z")
    return f'<path class="{css}" d="{"".join(parts)}"/>'


def area(points: Sequence[tuple[float, float, float]], x: Scale, y: Scale, *, css: str) -> str:
    """What lies between two curves: (x, lower, upper)."""
    there = "L".join(f"{_short(x.across(at))} {_short(y.down(upper))}" for at, _, upper in points)
    back = "L".join(f"{_short(x.across(at))} {_short(y.down(lower))}" for at, lower, _ in reversed(points))
    return f'<path class="area {css}" d="M{there}L{back}z"/>' if points else ""


def numbers_scale(low: float, high: float, *, ticks: int = 5) -> Scale:
    """Round ticks within [low, high]; an empty range is widened."""
    if not high > low:
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    step = _round_step((high - low) / ticks)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return Scale(low, high, tuple(Tick(one * step, f"{one * step:,.{digits}f}") for one in range(first, last + 1)))


def percent_scale(top: float) -> Scale:
    """From 0 to a little above `top`."""
    high = max(top, 1e-6) * 1.08
    ticks = numbers_scale(0, high, ticks=3).ticks
    return Scale(0, high, tuple(Tick(one.at, f"{100 * one.at:.3g} %") for one in ticks))


def within(values: Iterable[float | None], *, room: float = 0.08) -> tuple[float, float]:
    """The range of the known values and a little room; (0, 1) without any."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    return low - room * (high - low), high + room * (high - low)


def time_scale(low_ms: int, high_ms: int) -> Scale:
    """Ticks at starts of hours, days, weeks, months or years: as many as there is room for."""
    low, high = date_of(low_ms), date_of(max(high_ms, low_ms + 1))
    days = (high - low).total_seconds() * 1_000 / DAY_MS
    for step_h in (6, 24, 48, 168):
        if days * 24 / step_h <= TICKS_MAX:
            ticks = _hour_ticks(low, high, step_h)
            break
    else:
        months = next((one for one in (1, 3, 6) if days / 30.4 / one <= TICKS_MAX), None)
        ticks = _month_ticks(low, high, months) if months else _year_ticks(low, high)
    every = math.ceil(len(ticks) / LABELS_NARROW)
    return Scale(
        low_ms,
        max(high_ms, low_ms + 1),
        tuple(Tick(one.timestamp() * 1_000, label, bool(index % every)) for index, (one, label) in enumerate(ticks)),
    )


def _hour_ticks(low: datetime, high: datetime, step_h: int) -> list[tuple[datetime, str]]:
    found: list[tuple[datetime, str]] = []
    at = low.replace(hour=0, minute=0, second=0, microsecond=0)
    while at <= high and len(found) <= TICKS_MAX:
        if at >= low:
            found.append((at, f"{at:%H:%M}" if at.hour else f"{at.day} {at:%b}"))
        at += timedelta(hours=step_h)
    return found


def _month_ticks(low: datetime, high: datetime, step: int) -> list[tuple[datetime, str]]:
    found: list[tuple[datetime, str]] = []
    for month in range(low.year * 12 + (low.month - 1) // step * step, high.year * 12 + high.month, step):
        at = datetime(max(month // 12, 1), month % 12 + 1, 1, tzinfo=UTC)
        # A run seldom starts at midnight: its first day is near enough to its month.
        if low - timedelta(days=2) <= at <= high:
            has_year = not found or at.month == 1
            found.append((max(at, low), f"{at:%b} {at.year}" if has_year else f"{at:%b}"))
    return found


def _year_ticks(low: datetime, high: datetime) -> list[tuple[datetime, str]]:
    years = high.year - low.year + 1
    step = next(one for one in (1, 2, 5, 10, 50, 100, 1_000) if years / one <= TICKS_MAX)
    first = -(-low.year // step) * step
    starts = [datetime(max(year, 1), 1, 1, tzinfo=UTC) for year in range(first, high.year + 1, step)]
    return [(at, str(at.year)) for at in starts if low <= at <= high]


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(one * power for one in (1, 2, 5, 10) if one * power >= step * (1 - 1e-9))


def _word(side: str, at: float, tick: Tick) -> str:
    is_at_end = side == "left" and at > 0.96 * FIELD and len(tick.label) > 3
    css = " ".join(["minor"] * tick.is_minor + ["at-end"] * is_at_end)
    attribute = f' class="{css}"' if css else ""
    return f'<span{attribute} style="{side}:{at / FIELD:.2%}">{tick.label}</span>'


def _legend(line: Line) -> str:
    stroke = f'<path class="line {line.css}" d="M1 4H25"/>'
    return f'<li><svg viewBox="0 0 26 8" aria-hidden="true">{stroke}</svg>{line.name}</li>'


def _ends(chart: Chart, lines: Sequence[Line]) -> str:
    """Names at the ends of their lines, moved apart; an arrow where the line leaves the chart."""
    wanted = []
    for line in lines:
        known = [value for _, value in line.points if value is not None]
        if known:
            # The last points jump about; where a line "is" at its end is the middle of the last few.
            last = median(known[-3:])
            down = chart.y.down(last)
            arrow = " ↑" if down < -1 else " ↓" if down > FIELD + 1 else ""
            wanted.append((min(max(down, 0.0), FIELD) / FIELD * chart.height, line, arrow))
    wanted.sort(key=lambda one: one[0])
    tops: list[float] = []
    for top, _, _ in wanted:
        tops.append(max(top, tops[-1] + LABEL_PX) if tops else max(top, LABEL_PX / 2))
    limit = chart.height + LABEL_PX / 2
    for index in range(len(tops) - 1, -1, -1):
        tops[index] = min(tops[index], limit)
        limit = tops[index] - LABEL_PX
    return "".join(
        f'<span class="{line.css}" style="top:{top:.0f}px">{line.name}{arrow}</span>'
        for top, (_, line, arrow) in zip(tops, wanted, strict=True)
    )


def _mark_labels(chart: Chart) -> str:
    parts, wide_last, narrow_last = [], -FIELD, -FIELD
    for mark in sorted(chart.marks, key=lambda one: one.at):
        at = chart.x.across(mark.at)
        if not mark.label or at - wide_last < MARK_ROOM[0] + 6 * len(mark.label):
            continue
        wide_last, is_minor = at, at - narrow_last < MARK_ROOM[1]
        narrow_last = narrow_last if is_minor else at
        minor = " minor" if is_minor else ""
        edge = " at-end" if at > 0.85 * FIELD and len(mark.label) > 3 else ""
        parts.append(f'<span class="flag {mark.css}{minor}{edge}" style="left:{at / FIELD:.2%}">{mark.label}</span>')
    return f'<div class="flags" aria-hidden="true">{"".join(parts)}</div>' if parts else ""


def _field_attributes(chart: Chart) -> str:
    if not chart.tips:
        return 'class="field"'
    return (
        f'class="field" tabindex="0" role="group" data-tips="{chart.key}-tips" '
        f'aria-label="{chart.title}, the left and right arrow keys read its values"'
    )


def _tip_parts(chart: Chart) -> str:
    if not chart.tips:
        return ""
    at = [round(chart.x.across(x)) for x, _ in chart.lines[0].points]
    # The script puts names in as text, where an entity would be seen as such.
    rows = [
        [unescape(line.name), line.css, [_rounded(value, line.digits) for _, value in line.points]]
        for line in chart.lines
    ]
    return '<i class="cross" hidden></i><output class="tip" hidden></output>' + data(
        f"{chart.key}-tips", {"at": at, "when": list(chart.tips), "rows": rows}
    )


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, digits)


def _short(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
