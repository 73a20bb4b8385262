"""The figures of decisions on the backtest's page: is a probability what it says, and what follows from acting on it.

In: `Results` and the series that are drawn. Out: HTML figures. Invariant: only curves of sketches are drawn, whose
length does not depend on how many examples there were.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tidemill.apps.backtest_results import BASELINES, Results, Series
from tidemill.apps.report_charts import Chart, Line, Mark, Scale, Tick, bars, dot, draw, numbers_scale, percent_scale
from tidemill.apps.report_figures import styles
from tidemill.apps.report_html import text
from tidemill.core.curves import ThresholdPoint

SAID_SHARE_MIN = 0.0005  # alarms: a threshold above nearly all probabilities is left out of a chart's range


def calibration_chart(shown: Sequence[Series]) -> str:
    """What was said against what came, and how often it was said."""
    css = styles(shown)
    served = shown[0]
    unit = Scale(0, 1, tuple(Tick(one / 5, f"{one / 5:.1f}") for one in range(6)))
    lines = [
        Line(text(one.name), css[one.name], [(bin_.probability, bin_.share) for bin_ in one.calibration], 3)
        for one in shown
        if one.kind not in BASELINES and one.calibration
    ]
    n_max = max((one.n for one in served.calibration), default=1)
    intervals, dots = "", ""
    for one in served.calibration:
        error = 1.96 * (one.share * (1 - one.share) / one.n) ** 0.5
        low, high = unit.down(max(one.share - error, 0)), unit.down(min(one.share + error, 1))
        intervals += f"M{unit.across(one.probability):.1f} {low:.1f}V{high:.1f}"
        dots += dot(one.probability, one.share, unit, unit, css="s0", width=4 + 8 * (one.n / n_max) ** 0.5)
    said = ", ".join(
        f"said {one.probability:.2f} came {one.share:.2f}"
        for one in served.calibration[:: max(1, len(served.calibration) // 6)]
    )
    return draw(
        Chart(
            key="calibration",
            title="Said and came",
            note="The share of positives where a probability was said; on the diagonal, what was said came true. "
            "Bars are 95 % intervals, dots grow with n.",
            summary=f"{text(served.name)}: {said}.",
            x=unit,
            y=unit,
            lines=lines,
            height=340,
            x_title="probability said",
            under=f'<path class="diagonal" d="M0 1000L1000 0"/><path class="interval s0" d="{intervals}"/>',
            over=dots,
            css="square",
        )
    )


def said_histogram(served: Series) -> str:
    """How often each probability was said."""
    unit = Scale(0, 1, tuple(Tick(one / 5, f"{one / 5:.1f}") for one in range(6)))
    total = sum(one.n for one in served.calibration) or 1
    spans = [
        (int(one.probability * 20) / 20, int(one.probability * 20) / 20 + 0.05, one.n / total)
        for one in served.calibration
    ]
    top = max((share for _, _, share in spans), default=1.0)
    most = max(served.calibration, key=lambda one: one.n, default=None)
    return draw(
        Chart(
            key="said",
            title="How often it was said",
            summary=f"Most often near {most.probability:.2f}, {most.n:,} of {total:,} times." if most else "Nothing.",
            x=unit,
            y=percent_scale(top),
            lines=(),
            height=80,
            under=bars(spans, unit, percent_scale(top)),
            css="square",
        )
    )


def decision_charts(results: Results, shown: Sequence[Series]) -> str:
    """Precision and recall of what serves, and the cost of every series, by threshold."""
    served = shown[0]
    if not served.thresholds:
        return ""
    css = styles(shown)
    x = _threshold_scale(served.thresholds)
    unit = Scale(0, 1, tuple(Tick(one / 4, f"{one / 4:.2f}") for one in range(5)))
    decision = Mark(results.threshold, f"decision {results.threshold:.2f}", "decision")
    points = served.thresholds
    here = next((one for one in points if one.is_decision), points[0])
    lines = [
        Line("precision", "s0", [(one.threshold, one.precision) for one in points], 3),
        Line("recall", "ink d1", [(one.threshold, one.recall) for one in points], 3),
        Line("alarm rate", "b0", [(one.threshold, one.alarm_rate) for one in points], 3),
    ]
    precision = Chart(
        key="precision-recall",
        title="Precision and recall by threshold",
        note=f"Of {text(served.name)}; an alarm is a probability at or above the threshold.",
        summary=f"At the decision's threshold {results.threshold:.2f}: precision {_said_number(here.precision)}, "
        f"recall {_said_number(here.recall)}, alarms on {100 * here.alarm_rate:.1f} % of events.",
        x=x,
        y=unit,
        lines=lines,
        height=260,
        x_title="threshold",
        marks=(decision,),
        tips=[f"threshold {one.threshold:.3f}" for one in points],
    )
    return draw(precision) + draw(_cost_chart(results, shown, x, decision, css))


def small_multiples(results: Results, shown: Sequence[Series]) -> str:
    """Precision and recall by threshold of each other series that can decide."""
    unit = Scale(0, 1, tuple(Tick(one / 2, f"{one / 2:.1f}") for one in range(3)))
    parts = []
    for index, one in enumerate(shown[1:]):
        if one.kind in BASELINES or not one.thresholds:
            continue
        here = next((point for point in one.thresholds if point.is_decision), one.thresholds[0])
        chart = Chart(
            key=f"precision-recall-{index}",
            title=text(one.name),
            summary=f"At the decision's threshold: precision {_said_number(here.precision)}, "
            f"recall {_said_number(here.recall)}.",
            x=Scale(0, 1, (Tick(0, "0"), Tick(0.5, ".5"), Tick(1, "1"))),
            y=unit,
            lines=[
                Line("precision", "s0", [(point.threshold, point.precision) for point in one.thresholds], 3, False),
                Line("recall", "ink d1", [(point.threshold, point.recall) for point in one.thresholds], 3, False),
            ],
            height=110,
            marks=(Mark(results.threshold, "", "decision"),),
        )
        parts.append(draw(chart))
    return f'<div class="small">{"".join(parts)}</div>' if parts else ""


def _cost_chart(results: Results, shown: Sequence[Series], x: Scale, decision: Mark, css: Mapping[str, str]) -> Chart:
    served = shown[0]
    measured = [one for one in shown if one.thresholds and one.kind not in BASELINES]
    lines = [
        Line(text(one.name), css[one.name], [(point.threshold, point.cost) for point in one.thresholds])
        for one in measured
    ]
    silence = served.thresholds[-1].cost
    here = next((one for one in served.thresholds if one.is_decision), served.thresholds[0])
    best = min(served.thresholds, key=lambda one: one.cost)
    costs = [point.cost for one in measured for point in one.thresholds if point.is_decision]
    # An alarm on every event can cost many times what anyone would pay: the range ends half above what is at hand.
    high = 1.5 * max([here.cost, silence, *costs]) or 1.0
    y = numbers_scale(max(best.cost - (high - best.cost) / 3, 0.0), high)
    return Chart(
        key="cost",
        title="Cost by threshold",
        note=f"Of an event on average: a false alarm costs {results.false_alarm_cost:g}, a miss {results.miss_cost:g}. "
        "The dashed line is what silence costs, the dot the cheapest threshold in hindsight.",
        summary=f"{text(served.name)} costs {here.cost:.4f} at the decision's threshold, {best.cost:.4f} at "
        f"{best.threshold:.2f} in hindsight, and {silence:.4f} with no alarm at all.",
        x=x,
        y=y,
        lines=lines,
        height=260,
        x_title="threshold",
        marks=(decision,),
        under=f'<path class="silence" d="M0 {y.down(silence):.1f}H1000"/>',
        over=dot(best.threshold, best.cost, x, y, css="s0", width=9),
    )


def _said_number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"


def _threshold_scale(points: Sequence[ThresholdPoint]) -> Scale:
    """From 0 to where alarms end, and at least to the decision."""
    end = max((one.threshold for one in points if one.alarm_rate > SAID_SHARE_MIN or one.is_decision), default=1.0)
    scale = numbers_scale(0, 1 if end > 0.5 else end * 1.1)
    return Scale(
        0, scale.high, tuple(Tick(one.at, one.label, bool(index % 2)) for index, one in enumerate(scale.ticks))
    )
