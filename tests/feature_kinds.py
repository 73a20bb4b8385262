"""What every kind of feature must be, by brute force in pandas over a table of effects.

In: an app and a stream of records of the builders' topics. Out: the matrix, float32, one row per event.
Invariant: no batch, no state, no delta and no code of the product; sums are Python's integers, decays its fractions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from fractions import Fraction
from hashlib import blake2b
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import pandas as pd

from tests.builders import Record
from tidemill.core.spec import AppSpec, FeatureSpec


def effects_of(records: Sequence[Record]) -> pd.DataFrame:
    """One row for each record that feeds: topic, position at which it takes effect, time, offset, entity, fields."""
    rows: list[dict[str, Any]] = []
    events = {fields["id"]: (at, fields) for at, (topic, _, fields) in enumerate(records) if topic == "events"}
    for at, (topic, time, fields) in enumerate(records):
        owner, position, label = fields, at, None
        if topic == "outcomes":
            if fields["id"] not in events:
                continue
            event_at, owner = events[fields["id"]]
            position, label = max(at, event_at), float((fields["outcome"] or 0) > 0)
        row = {"topic": topic, "position": position, "time": time, "offset": at, "fields": {**fields, "label": label}}
        rows.append(row | {"shop": owner.get("shop"), "user": owner.get("user")})
    return pd.DataFrame(rows, columns=["topic", "position", "time", "offset", "fields", "shop", "user"])


def expected_matrix(spec: AppSpec, records: Sequence[Record]) -> npt.NDArray[np.float32]:
    effects = effects_of(records)
    listed = [(group.entity, one) for group in spec.groups for one in group.features if one.kind != "category"]
    rows = []
    for at, (topic, time, fields) in enumerate(records):
        if topic == "events":
            seen = {entity: _seen(effects, entity, event=fields, at=at) for entity, _ in listed}
            rows.append([_value(spec, one, seen[entity], event=fields, time=time) for entity, one in listed])
    with np.errstate(over="ignore"):
        return np.array(rows, dtype=np.float64).astype(np.float32).reshape(len(rows), len(listed))


def _seen(effects: pd.DataFrame, entity: Sequence[str], *, event: Mapping[str, Any], at: int) -> pd.DataFrame:
    """The records of the event's entity that took effect before it."""
    seen = effects[effects.position < at]
    for name in entity:
        seen = seen[seen[name] == event[name]] if event[name] is not None else seen[:0]
    return seen


def _value(spec: AppSpec, one: FeatureSpec, seen: pd.DataFrame, *, event: Mapping[str, Any], time: int) -> float:
    if one.kind == "calendar":
        return _calendar(one, time)
    if one.kind == "field":
        return _number(event[one.field])
    fed = seen[seen.topic == one.of]
    if one.kind in ("latest", "time_since_last"):
        known = fed[fed.time <= time].sort_values(["time", "offset"], ascending=False)
        if len(known) <= one.back:
            return math.nan
        newest = known.iloc[one.back]
        return (time - int(newest.time)) / 1000 if one.kind == "time_since_last" else _number(newest.fields[one.field])
    if one.kind == "distinct":
        buckets: dict[int, int] = {}
        for row in fed.itertuples():
            if (text := row.fields[one.field]) is not None:
                bucket = blake2b(str(text).encode(), digest_size=1).digest()[0]
                buckets[bucket] = max(buckets.get(bucket, -1), row.time)
        count = sum(time - one.window_ms < newest <= time + spec.max_skew_ms for newest in buckets.values())
        return 256 * math.log(256 / max(1, 256 - count))
    if one.kind == "open":
        opened = _due(fed, one.due, one.ahead_ms, is_closing=False)
        closed = _due(seen[seen.topic == one.closed_by], one.closed_due, one.ahead_ms, is_closing=True)
        return max(
            0, len(_in_window(opened, one.window_ms // 12, time)) - len(_in_window(closed, one.window_ms // 12, time))
        )
    pane_ms = one.half_life_ms // 2 if one.half_life_ms else one.window_ms // 12
    inside = _in_window(fed, pane_ms, time)
    if one.value is None:
        units = [1] * len(inside)
    else:
        raw = [_number(fields[one.value]) for fields in inside.fields]
        is_good = [abs(value / one.unit) < 2**37 and abs(round(value / one.unit)) < 2**36 for value in raw]
        inside = inside[np.array(is_good, dtype=bool)]
        units = [round(value / one.unit) for value, good in zip(raw, is_good, strict=True) if good]
    if one.kind in ("min", "max"):
        return (min if one.kind == "min" else max)(units) * one.unit if units else math.nan
    age = [time // pane_ms - int(moment) // pane_ms for moment in inside.time]
    weight = [Fraction(round(2.0 ** (-each / 2) * 2**20), 2**20) if one.half_life_ms else Fraction(1) for each in age]
    n, total = float(sum(weight)), float(sum(w * unit for w, unit in zip(weight, units, strict=True)))
    if one.kind in ("count", "decayed_count"):
        return n
    if one.kind == "rate":
        return n * 3_600_000 / one.window_ms
    if one.kind == "sum":
        return total * one.unit
    denominator = n + one.prior_weight
    return (total * one.unit + one.prior * one.prior_weight) / denominator if denominator else math.nan


def _in_window(fed: pd.DataFrame, pane_ms: int, time: int) -> pd.DataFrame:
    pane = fed.time.astype("int64") // pane_ms
    return fed[(pane > time // pane_ms - 12) & (pane <= time // pane_ms)]


def _due(fed: pd.DataFrame, field: str | None, ahead_ms: int, *, is_closing: bool) -> pd.DataFrame:
    """The records at the times at which they count."""
    if field is None:
        return fed
    due = pd.Series([fields[field] for fields in fed.fields], index=fed.index, dtype="Int64")
    is_counted = (due >= 0) & (due <= fed.time + ahead_ms)
    fed, due = fed[is_counted.fillna(False)], due[is_counted.fillna(False)].astype("int64")
    return fed.assign(time=due.clip(lower=fed.time) if is_closing else due)


def _calendar(one: FeatureSpec, time: int) -> float:
    if not 0 <= time < 253_402_300_800_000:
        return math.nan
    moment = datetime.fromtimestamp(time // 1000, UTC).astimezone(ZoneInfo(one.zone))
    parts = {"weekday": moment.weekday(), "minute_of_day": moment.hour * 60 + moment.minute}
    return parts[one.part] if one.part in parts else getattr(moment, str(one.part))


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
