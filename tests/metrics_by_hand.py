"""Every figure of `metrics.v1` once more, from the records of the topics, in plain Python and NumPy.

In: predictions and examples as decoded records. Out: rows by key, fields as in schemas/tidemill/metrics.v1.avsc.
Invariant: nothing of the product is called; where the product counts in bins or buckets, the same bins are cut here
from the single values.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

DAY_MS = 86_400_000
WIDTHS = {"run": 0, "1d": DAY_MS, "7d": 7 * DAY_MS, "28d": 28 * DAY_MS, "compared": 0}
TOLERANCE = 1e-9

Record = Mapping[str, Any]
Probability = float | None
Comparator = Callable[[Sequence[Record]], list[Probability]]  # measured examples in log order -> what it says of each


def constant(examples: Sequence[Record]) -> list[Probability]:
    known = known_labels(examples)
    return [(sum(one["label"] for one in labels) + 1) / (len(labels) + 2) for labels in known]


def no_change(examples: Sequence[Record]) -> list[Probability]:
    said: list[Probability] = []
    for labels in known_labels(examples):
        newest = max(labels, key=lambda one: (one["label_time"], one["offset"]), default=None)
        said.append(0.5 if newest is None else 0.99 if newest["label"] else 1 - 0.99)
    return said


def known_labels(examples: Sequence[Record]) -> Iterator[list[Record]]:
    """Of each example: those before it in the log whose label had come when its event happened."""
    times = np.array([one["label_time"] for one in examples])
    for place, one in enumerate(examples):
        yield [examples[at] for at in np.flatnonzero(times[:place] <= one["event_time"])]


def rows_by_hand(
    predictions: Sequence[Record],
    examples: Sequence[Record],
    *,
    columns: Sequence[str],
    false_alarm: float,
    miss: float,
    comparators: Mapping[str, Comparator],
    compared_from: int | None = None,
) -> dict[str, dict[str, Any]]:
    """`examples` in log order, with their offsets."""
    threshold = false_alarm / (false_alarm + miss)
    first_labels = [one for one in examples if one["kind"] == "example"]
    measured = [one for one in first_labels if one["is_learned"] and one["label_time"] >= one["event_time"]]
    said = {name: [one[name] for one in measured] for name in ("blend", "learner", "booster", "base_rate")}
    said |= {name: comparator(measured) for name, comparator in comparators.items()}
    baselines = {"constant": constant(measured), "no_change": no_change(measured)}
    shown = [
        {value for value, _ in sorted(Counter(texts).items(), key=lambda pair: (-pair[1], pair[0]))[:20]}
        for texts in ([one["categories"][column] for one in measured] for column in range(len(columns)))
    ]

    places: defaultdict[tuple[str, int, str, str | None], list[int]] = defaultdict(list)
    for place, one in enumerate(measured):
        for window, width in WIDTHS.items():
            if window == "compared" and (compared_from is None or one["event_time"] < compared_from):
                continue
            start = one["label_time"] // width * width if width else 0
            places[window, start, "", None].append(place)
            for column, feature in enumerate(columns):
                if window in ("run", "28d"):
                    value = one["categories"][column]
                    places[window, start, feature, value if value in shown[column] else None].append(place)
    rows: dict[str, dict[str, Any]] = {}
    for (window, start, feature, value), at in places.items():
        for series, column in said.items():
            has = [place for place in at if column[place] is not None]
            if not has:
                continue
            row = {
                **_place(series, window, start, feature, value, threshold),
                **_figures(measured, column, baselines, has, window, feature, threshold, false_alarm, miss),
                **_of_group([measured[place] for place in at]),
            }
            rows[_key(row)] = row
    for row in rows.values():
        overall = rows[_key(row | {"slice_feature": "", "slice_value": None})]
        row["excess_log_loss"] = row["log_loss"] - overall["log_loss"] if row["slice_feature"] else None
    return rows | _served(predictions, first_labels, threshold)


def assert_same_rows(found: Sequence[Mapping[str, Any]], expected: Mapping[str, Mapping[str, Any]]) -> int:
    """The same rows with the same fields, figures to 1e-9; how many figures were compared."""
    by_key = {_key(row): row for row in found}
    assert len(by_key) == len(found)
    assert by_key.keys() == expected.keys()
    compared = 0
    for key, row in by_key.items():
        assert row.keys() == expected[key].keys()
        for name, value in row.items():
            wanted = expected[key][name]
            lists = (value, wanted) if isinstance(value, list) else ([value], [wanted])
            assert len(lists[0]) == len(lists[1]), (key, name, value, wanted)
            for one, other in zip(*lists, strict=True):
                is_figure = isinstance(one, float) and isinstance(other, float | int)
                assert one == other or (is_figure and abs(one - other) <= TOLERANCE), (key, name, one, other)
                compared += 1
    return compared


def _figures(measured, column, baselines, has, window, feature, threshold, false_alarm, miss) -> dict[str, Any]:
    label = np.array([measured[place]["label"] for place in has])
    p = np.array([column[place] for place in has])
    n = len(has)
    alarm = p > threshold
    hits, false_alarms = int((alarm & (label == 1)).sum()), int((alarm & (label == 0)).sum())
    positives = int(label.sum())
    accuracy = float((alarm == label).mean())
    compared = {name: np.array([said[place] for place in has]) for name, said in baselines.items()}
    no_change_accuracy = float(((compared["no_change"] > threshold) == label).mean())
    bins = 512 if feature or window == "1d" else 4096
    cut = np.minimum(np.floor(p * bins), bins - 1)
    wins = ties = 0.0
    for one in cut[label == 1]:
        wins += (cut[label == 0] < one).sum()
        ties += (cut[label == 0] == one).sum()
    pairs = positives * (n - positives)
    group = np.floor(cut * 20 / bins)
    reliability = [
        (float(((cut[group == one] + 0.5) / bins).mean()), float(label[group == one].mean()), int((group == one).sum()))
        for one in sorted(set(group.tolist()))
    ]
    shown = [] if feature else reliability
    return {
        "n": n,
        "positives": positives,
        "mean_probability": float(p.mean()),
        "log_loss": _log_loss(p, label),
        "auc": float((wins + ties / 2) / pairs) if pairs else None,
        "auc_error_max": float(ties / 2 / pairs) if pairs else None,
        "brier": float(((p - label) ** 2).mean()),
        "accuracy": accuracy,
        "precision": hits / (hits + false_alarms) if hits + false_alarms else None,
        "recall": hits / positives if positives else None,
        "alarm_rate": float(alarm.mean()),
        "cost": (false_alarm * false_alarms + miss * (positives - hits)) / n,
        "calibration_error": sum(abs(was - came) * count for was, came, count in reliability) / n,
        "calibration_probability": [one[0] for one in shown],
        "calibration_share": [one[1] for one in shown],
        "calibration_n": [one[2] for one in shown],
        "constant_log_loss": _log_loss(compared["constant"], label),
        "constant_accuracy": float(((compared["constant"] > threshold) == label).mean()),
        "no_change_log_loss": _log_loss(compared["no_change"], label),
        "no_change_accuracy": no_change_accuracy,
        "kappa_no_change": (accuracy - no_change_accuracy) / (1 - no_change_accuracy)
        if no_change_accuracy < 1
        else None,
        **dict.fromkeys(("labelled", "join_rate", "unmeasured", "degraded", "outliers")),
    }


def _of_group(group: Sequence[Record]) -> dict[str, Any]:
    delays = sorted(one["label_time"] - one["event_time"] for one in group)
    offsets = [one["offset"] for one in group]
    return {
        "label_delay_p50_ms": _seven_bits(delays[math.ceil(len(delays) * 50 / 100) - 1]),
        "label_delay_p95_ms": _seven_bits(delays[math.ceil(len(delays) * 95 / 100) - 1]),
        "offset_first": min(offsets),
        "offset_last": max(offsets),
    }


def _seven_bits(delay: int) -> int:
    """The delay with only its seven highest bits kept: 1/64 less at most."""
    dropped = max(delay.bit_length() - 7, 0)
    return delay >> dropped << dropped


def _log_loss(p, label) -> float:
    right = np.clip(np.where(label == 1, p, 1 - p), 1e-15, 1 - 1e-15)
    return float(-np.log(right).mean())


def _served(predictions: Sequence[Record], labelled: Sequence[Record], threshold: float) -> dict[str, dict[str, Any]]:
    rows = {}
    for window, width in WIDTHS.items():
        if window == "compared":
            continue

        def start_of(one: Record, width: int = width) -> int:
            return one["event_time"] // width * width if width else 0

        for start in sorted({start_of(one) for one in (*predictions, *labelled)}):
            served = [one for one in predictions if start_of(one) == start]
            labels = [one for one in labelled if start_of(one) == start]
            row = _place("predictions", window, start, "", None, threshold)
            row |= dict.fromkeys(
                [
                    "log_loss",
                    "auc",
                    "auc_error_max",
                    "brier",
                    "accuracy",
                    "precision",
                    "recall",
                    "cost",
                    "calibration_error",
                    "label_delay_p50_ms",
                    "label_delay_p95_ms",
                    "constant_log_loss",
                    "constant_accuracy",
                    "no_change_log_loss",
                    "no_change_accuracy",
                    "kappa_no_change",
                    "excess_log_loss",
                    "offset_first",
                    "offset_last",
                ]
            )
            row |= {f"calibration_{name}": [] for name in ("probability", "share", "n")}
            row |= {
                "n": len(served),
                "positives": sum(one["label"] for one in labels),
                "mean_probability": float(np.mean([one["blend"] for one in served])) if served else None,
                "alarm_rate": sum(one["blend"] > threshold for one in served) / len(served) if served else None,
                "labelled": len(labels),
                "join_rate": len(labels) / len(served) if served else None,
                "unmeasured": sum(not one["is_learned"] or one["label_time"] < one["event_time"] for one in labels),
                "degraded": sum("degraded" in one["flags"] for one in served),
                "outliers": sum("outlier" in one["flags"] for one in served),
            }
            rows[_key(row)] = row
    return rows


def _place(series, window, start, feature, value, threshold) -> dict[str, Any]:
    return {
        "series": series,
        "window": window,
        "window_start": start,
        "window_end": start + WIDTHS[window],
        "slice_feature": feature,
        "slice_value": value,
        "threshold": threshold,
    }


def _key(row: Mapping[str, Any]) -> str:
    value = row["slice_value"]
    slice_ = row["slice_feature"] if value is None else f"{row['slice_feature']}={value}"
    return f"{row['series']}/{row['window']}/{row['window_start']}/{slice_}"
