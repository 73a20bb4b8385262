"""The rows of `metrics.v1`: figures of a tally, and of what was served.

In: tallies, integers all. Out: one mapping per row with the fields of schemas/tidemill/metrics.v1.avsc. Invariant: a
figure that divides by nothing is None, never zero; every accuracy stands beside its n, label delay and baselines.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tidemill.core.curves import calibration, calibration_error
from tidemill.core.metrics import LOSS_UNIT
from tidemill.core.spec import CostSpec
from tidemill.core.validation_cells import Tally

DAY_MS = 86_400_000
# compared: examples of events since the last declared comparator was first trained, so that all series have the same.
COMPARED = "compared"
WINDOWS: Mapping[str, int | None] = {
    "run": None,
    "1d": DAY_MS,
    "7d": 7 * DAY_MS,
    "28d": 28 * DAY_MS,
    COMPARED: None,
}
PREDICTIONS = "predictions"  # the series of what was served

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Slice:
    """Which examples a row is about. feature "" = all; value None with a feature = the rest."""

    feature: str = ""
    value: str | None = None

    @property
    def text(self) -> str:
        return self.feature if self.value is None else f"{self.feature}={self.value}"


def key_of(row: Row) -> bytes:
    """The key of a row in the compacted topic."""
    slice_ = Slice(row["slice_feature"], row["slice_value"]).text
    return f"{row['series']}/{row['window']}/{row['window_start']}/{slice_}".encode()


def score_row(
    *,
    series: str,
    window: str,
    number: int,
    slice_: Slice,
    tally: Tally,
    costs: CostSpec,
    global_log_loss: float | None,
) -> Row:
    """A row of a series that said something; `global_log_loss` of the same series and window over all examples."""
    running = tally.running
    n, positives = running.count, int(running.positives.sum())
    hits, false_alarms = tally.sum_of("hits"), tally.sum_of("false_alarms")
    misses = positives - hits
    accuracy = (n - misses - false_alarms) / n
    no_change_accuracy = tally.sum_of("no_change_right") / n
    reliability = calibration(running.positives, running.negatives)
    shown = reliability if not slice_.feature else ()
    return {
        **_place(series, window, number, slice_, costs),
        "n": n,
        "positives": positives,
        "mean_probability": tally.sum_of("said") * LOSS_UNIT / n,
        "log_loss": running.log_loss,
        "auc": _or_none(running.auc),
        "auc_error_max": _or_none(running.auc_error_max),
        "brier": running.brier,
        "accuracy": accuracy,
        "precision": _share(hits, hits + false_alarms),
        "recall": _share(hits, positives),
        "alarm_rate": (hits + false_alarms) / n,
        "cost": (costs.false_alarm * false_alarms + costs.miss * misses) / n,
        "calibration_error": calibration_error(reliability),
        "calibration_probability": [one.probability for one in shown],
        "calibration_share": [one.share for one in shown],
        "calibration_n": [one.n for one in shown],
        "label_delay_p50_ms": tally.delay_ms(50),
        "label_delay_p95_ms": tally.delay_ms(95),
        "constant_log_loss": tally.sum_of("constant_loss") * LOSS_UNIT / n,
        "constant_accuracy": tally.sum_of("constant_right") / n,
        "no_change_log_loss": tally.sum_of("no_change_loss") * LOSS_UNIT / n,
        "no_change_accuracy": no_change_accuracy,
        "kappa_no_change": (accuracy - no_change_accuracy) / (1 - no_change_accuracy)
        if no_change_accuracy < 1
        else None,
        "excess_log_loss": running.log_loss - global_log_loss if global_log_loss is not None else None,
        "labelled": None,
        "join_rate": None,
        "unmeasured": None,
        "degraded": None,
        "outliers": None,
        "offset_first": tally.offset_first,
        "offset_last": tally.offset_last,
    }


@dataclass(slots=True)
class ServedCounts:
    """Predictions of one window of event time, and how many of them have their label."""

    served: int = 0
    said: int = 0  # sum of the probabilities in LOSS_UNIT
    alarms: int = 0
    degraded: int = 0
    outliers: int = 0
    labelled: int = 0
    positives: int = 0  # of the labelled ones
    unmeasured: int = 0


def served_row(*, window: str, number: int, counts: ServedCounts, costs: CostSpec) -> Row:
    """A row of the series `predictions`."""
    served = counts.served
    row: dict[str, Any] = dict.fromkeys(_NULL_OF_PREDICTIONS)
    return row | {
        **_place(PREDICTIONS, window, number, Slice(), costs),
        "n": served,
        "positives": counts.positives,
        "mean_probability": counts.said * LOSS_UNIT / served if served else None,
        "alarm_rate": _share(counts.alarms, served),
        "calibration_probability": [],
        "calibration_share": [],
        "calibration_n": [],
        "labelled": counts.labelled,
        "join_rate": _share(counts.labelled, served),
        "unmeasured": counts.unmeasured,
        "degraded": counts.degraded,
        "outliers": counts.outliers,
    }


_NULL_OF_PREDICTIONS = (
    *("log_loss", "auc", "auc_error_max", "brier", "accuracy", "precision", "recall", "cost", "calibration_error"),
    *("label_delay_p50_ms", "label_delay_p95_ms", "constant_log_loss", "constant_accuracy"),
    *("no_change_log_loss", "no_change_accuracy", "kappa_no_change", "excess_log_loss", "offset_first", "offset_last"),
)


def _place(series: str, window: str, number: int, slice_: Slice, costs: CostSpec) -> dict[str, Any]:
    width = WINDOWS[window] or 0
    return {
        "series": series,
        "window": window,
        "window_start": number * width,
        "window_end": (number + 1) * width,
        "slice_feature": slice_.feature,
        "slice_value": slice_.value,
        "threshold": costs.threshold,
    }


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
