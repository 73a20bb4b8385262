"""Results of backtests that never ran, from seeded random numbers: small ones, and the largest that must still fit."""

from __future__ import annotations

import numpy as np

from tidemill.apps.backtest_results import (
    WINDOW_MS,
    Comparison,
    Counts,
    DelayBin,
    Promotion,
    Results,
    Series,
    SeriesKind,
    Slice,
    Source,
    WeightPoint,
    series_of,
    with_kappa,
)
from tidemill.core.metrics import RunningMetrics
from tidemill.core.spec import CostSpec

START_MS = 1_356_998_400_000  # 2013-01-01
HOUR_MS = 3_600_000
COSTS = CostSpec(false_alarm=9, miss=1)
KINDS: tuple[SeriesKind, ...] = ("blend", "learner", "booster", "constant", "no_change")


def some_series(name: str, kind: SeriesKind, *, windows: int, seed: int, noise: float = 0.5) -> Series:
    """200 examples a week with a season in it."""
    random = np.random.default_rng(seed)
    by_window = {}
    for week in range(windows):
        truth = -1.1 + 0.5 * np.sin(week / 8) + 1.6 * random.normal(size=200)
        label = (random.random(200) < 1 / (1 + np.exp(-truth))).astype(int)
        said = {"constant": np.full(200, 0.27), "no_change": np.where(random.random(200) < 0.27, 0.99, 0.01)}.get(
            kind, 1 / (1 + np.exp(-truth - noise * random.normal(size=200)))
        )
        by_window[START_MS + week * WINDOW_MS] = RunningMetrics.of(said, label)
    return series_of(name, kind, sum(by_window.values(), RunningMetrics.empty()), by_window, COSTS)


def some_results(
    *,
    windows: int = 20,
    names: tuple[str, ...] = KINDS,
    promotions: int = 3,
    slices: int = 12,
    text: str = "",
) -> Results:
    """`text` stands in every field that a user can fill. The last two series are the baselines."""
    kinds: list[SeriesKind] = ["blend", *("comparator" for _ in names[1:-2]), "constant", "no_change"]
    series = with_kappa(
        [
            some_series(name + text, kind, windows=windows, seed=number, noise=0.2 + number / 4)
            for number, (name, kind) in enumerate(zip(names, kinds, strict=True))
        ]
    )
    end_ms = START_MS + windows * WINDOW_MS
    return Results(
        app="mill" + text,
        config_digest="5f2c" + text,
        made="2026-11-21T08:00:00Z",
        command="tidemill backtest config/mill.yaml" + text,
        sources=(Source(name="orders.v1[0]" + text, records=9, offset_start=0, offset_next=10),),
        time_first_ms=START_MS,
        time_last_ms=end_ms,
        counts=Counts(
            records=10_000, events=4_000, labels=4_000, examples=3_990, expired=10, dead_letters=2, batches=8
        ),
        seconds=12.5,
        records_per_s=800.0,
        rss_bytes_max=400_000_000,
        false_alarm_cost=COSTS.false_alarm,
        miss_cost=COSTS.miss,
        label_delay_ms_p50=3.5 * HOUR_MS,
        label_delay_ms_p95=9.0 * HOUR_MS,
        series=series,
        promotions=tuple(
            Promotion(
                time_ms=START_MS + (number + 1) * (end_ms - START_MS) // (promotions + 1),
                version=f"m{number:012x}" + text,
                trained_examples=1_000 * (number + 1),
                cause="schedule" + text,
            )
            for number in range(promotions)
        ),
        slices=tuple(
            Slice(feature="shop" + text, value=f"s{number}" + text, n=100 + number, log_loss=0.7, excess=0.2, auc=None)
            for number in range(slices)
        ),
        label_delays=tuple(
            DelayBin(start_ms=hour * HOUR_MS, end_ms=(hour + 1) * HOUR_MS, n=100 - 8 * hour) for hour in range(12)
        ),
        blend_weights=tuple(
            WeightPoint(
                time_ms=START_MS + week * WINDOW_MS,
                weights={name + text: (0.8 if number else 0.2) for number, name in enumerate(names[1:3])},
            )
            for week in range(windows)
        ),
        blend_excess=-0.0012,
        comparisons=(
            Comparison(name="as it is" + text, figures=series[0].figures),
            Comparison(
                name="deeper" + text, figures=series[1].figures, difference=-0.0031, standard_error=0.0011, days=140
            ),
        ),
    )
