"""The rows of `metrics.v1` for people and programs.

In: `<app>.metrics.v1`. Out: a table, or the rows as they are in JSON. Invariant: the newest value of a key counts, and
a row that was taken back is not shown; where there is an accuracy, its n, delay and baselines stand in the same line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from tidemill.apps.clients import clients_of
from tidemill.apps.monitor_rows import METRICS_SCHEMA
from tidemill.apps.results import Compared, Form, print_rows
from tidemill.config import Settings
from tidemill.core.topic_names import metrics_topic
from tidemill.core.validation_rows import COMPARED, PREDICTIONS
from tidemill.io.kafka_reader import read_topic
from tidemill.io.outputs import decode

SLICE_EXAMPLES_MIN = 200  # the excess of fewer is noise: its standard error is above .04
WORST_SLICES = 20
SCORE_COLUMNS = (
    *("series", "slice", "n", "base rate", "log loss", "AUC", "Brier", "accuracy", "precision", "recall", "cost"),
    *("calibration error", "delay p50", "delay p95", "constant: log loss", "accuracy of it"),
    *("no change: log loss", "accuracy of it ", "kappa"),
)
SERVED_COLUMNS = ("predictions", "labelled", "join rate", "positives", "alarm rate", "mean", "degraded", "outliers",
                  "unmeasured")  # fmt: skip


def read_metrics(settings: Settings) -> list[dict[str, Any]]:
    """Every row that the topic holds now.

    Raises:
        UnavailableError: TM-3011, there is no such topic: no monitor has run.
    """
    clients = clients_of(settings)
    values: dict[bytes, bytes | None] = {}
    for messages in read_topic(clients, metrics_topic(settings.app.name)):
        values.update((message.key(), message.value()) for message in messages)
    rows: list[dict[str, Any]] = decode(METRICS_SCHEMA, [one for one in values.values() if one is not None]).to_pylist()
    return rows


def newest_rows(rows: Sequence[dict[str, Any]], window: str) -> list[dict[str, Any]]:
    """Of one kind of window: the newest that has a score, by series in the order of the topic."""
    of_kind = [row for row in rows if row["window"] == window]
    scored = [row["window_start"] for row in of_kind if row["series"] != PREDICTIONS]
    newest = max(scored or [row["window_start"] for row in of_kind], default=0)
    return [row for row in of_kind if row["window_start"] == newest]


def compared_series(rows: Sequence[dict[str, Any]]) -> dict[str, Compared]:
    """Every series over the same examples, the best first: since the declared comparators were trained, else the run.

    {} where nothing was measured.
    """
    for window in (COMPARED, "run"):
        of_window = [row for row in rows if row["window"] == window and not row["slice_feature"]]
        found = [row for row in of_window if row["series"] != PREDICTIONS]
        if found:
            ordered = sorted(found, key=lambda row: (row["log_loss"], row["series"]))
            return {row["series"]: Compared(row["n"], row["log_loss"], row["auc"]) for row in ordered}
    return {}


def worst_slices(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Slices of the blend whose log loss exceeds that of all examples most; each with enough examples."""
    slices = [
        row for row in rows if row["slice_feature"] and row["series"] == "blend" and row["n"] >= SLICE_EXAMPLES_MIN
    ]
    return sorted(slices, key=lambda row: -row["excess_log_loss"])[:WORST_SLICES]


def print_metrics(rows: Sequence[dict[str, Any]], form: Form) -> None:
    """A table of scores and one of what was served; in JSON the rows with all their fields."""
    if form is not Form.TABLE:
        print_rows("metrics", rows, (), form)
        return
    scores = [row for row in rows if row["series"] != PREDICTIONS]
    served = [row for row in rows if row["series"] == PREDICTIONS]
    if scores:
        has_slices = bool(scores[0]["slice_feature"])
        columns = tuple(name for name in SCORE_COLUMNS if has_slices or name != "slice")
        more = ("excess log loss",) if has_slices else ()
        print_rows(
            f"progressive validation, {_span(scores[0])}, decision above {scores[0]['threshold']:.3g}",
            [_score_cells(row) for row in scores],
            columns + more,
            form,
        )
    if served:
        print_rows(f"served, {_span(served[0])}", [_served_cells(row) for row in served], SERVED_COLUMNS, form)


def _score_cells(row: Mapping[str, Any]) -> dict[str, Any]:
    values = (
        row["series"],
        _slice(row),
        row["n"],
        _number(row["positives"] / row["n"]),
        *(_number(row[name]) for name in ("log_loss", "auc", "brier", "accuracy", "precision", "recall", "cost")),
        _number(row["calibration_error"]),
        _duration(row["label_delay_p50_ms"]),
        _duration(row["label_delay_p95_ms"]),
        *(_number(row[name]) for name in ("constant_log_loss", "constant_accuracy")),
        *(_number(row[name]) for name in ("no_change_log_loss", "no_change_accuracy", "kappa_no_change")),
    )
    return dict(zip(SCORE_COLUMNS, values, strict=True)) | {"excess log loss": _number(row["excess_log_loss"])}


def _served_cells(row: Mapping[str, Any]) -> dict[str, Any]:
    values = (
        row["n"],
        row["labelled"],
        *(_number(row["join_rate"]), row["positives"], _number(row["alarm_rate"]), _number(row["mean_probability"])),
        *(row["degraded"], row["outliers"], row["unmeasured"]),
    )
    return dict(zip(SERVED_COLUMNS, values, strict=True))


def _slice(row: Mapping[str, Any]) -> str:
    if row["slice_value"] is None:
        return f"{row['slice_feature']}: the rest"
    return f"{row['slice_feature']} {row['slice_value'] or 'missing'}"


def _span(row: Mapping[str, Any]) -> str:
    if row["window"] == "run":
        return "the whole run"
    first, last = (datetime.fromtimestamp(row[name] / 1_000, UTC).date() for name in ("window_start", "window_end"))
    return f"{row['window']} from {first} to before {last}"


def _number(value: float | None) -> str | None:
    return None if value is None else f"{value:,.4f}"


def _duration(milliseconds: int | None) -> str | None:
    if milliseconds is None:
        return None
    seconds = milliseconds / 1_000
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"
