"""The value of one feature of one event, from the records that the event sees.

In: a feature, the event's time, times and values of the records of its entity before the event. Out: a number, NaN =
missing. Invariant: taken from docs/features.md alone; sums are Python's integers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt

from tests.verify.declared import PANES, Feature

Int64s = npt.NDArray[np.int64]

UNITS_LIMIT = 2**36  # a value of so many units would not keep sums exact: it is passed over like a missing one
BUCKETS = 256
YEAR_10000 = 253_402_300_800_000


class Values(NamedTuple):
    """A field of some records of a topic, looked up when it is asked for: a history may be long."""

    column: Sequence[Any]
    rows: Int64s

    def at(self, place: int) -> Any:
        return self.column[self.rows[place]]

    def all(self) -> list[Any]:
        return [self.column[row] for row in self.rows.tolist()]


class Seen(NamedTuple):
    """Records before an event, of its entity, in the order in which they took effect."""

    time: Int64s
    partition: Int64s
    offset: Int64s
    values: Values  # of the field that the feature reads, None = missing; without a field their times


def of_panes(feature: Feature, time: int, seen: Seen) -> float:
    """Kinds that read twelve panes."""
    pane_ms = feature.half_life_ms // 2 if feature.half_life_ms else feature.window_ms // PANES
    age = time // pane_ms - seen.time // pane_ms
    places = np.flatnonzero((age >= 0) & (age < PANES)).tolist()
    units = [1] * len(places)
    if feature.value is not None:
        scaled = [_number(seen.values.at(place)) / feature.unit for place in places]
        kept = [
            at for at, value in enumerate(scaled) if abs(value) < 2 * UNITS_LIMIT and abs(round(value)) < UNITS_LIMIT
        ]
        places, units = [places[at] for at in kept], [round(scaled[at]) for at in kept]
    if feature.kind in ("min", "max"):
        chosen = min if feature.kind == "min" else max
        return chosen(units) * feature.unit if units else math.nan
    n, total = float(len(units)), float(sum(units))
    if feature.half_life_ms:
        weights = [round(2.0 ** (-age[place] / 2) * 2**20) for place in places]
        n = sum(weights) / 2**20
        total = sum(weight * unit for weight, unit in zip(weights, units, strict=True)) / 2**20
    if feature.kind in ("count", "decayed_count"):
        return n
    if feature.kind == "rate":
        return n * 3_600_000 / feature.window_ms
    if feature.kind == "sum":
        return total * feature.unit
    weight = n + feature.prior_weight
    return (total * feature.unit + feature.prior * feature.prior_weight) / weight if weight else math.nan


def newest(feature: Feature, time: int, seen: Seen) -> float:
    """latest, time_since_last: of the records that are not after the event, by (time, partition, offset)."""
    past = np.flatnonzero(seen.time <= time)
    if len(past) <= feature.back:
        return math.nan
    order = np.lexsort((seen.offset[past], seen.partition[past], seen.time[past]))
    place = int(past[order[-1 - feature.back]])
    if feature.kind == "time_since_last":
        return (time - int(seen.time[place])) / 1_000
    return _number(seen.values.at(place))


def distinct(feature: Feature, time: int, max_skew_ms: int, seen: Seen) -> float:
    """Linear counting over the newest time of each bucket."""
    buckets: dict[int, int] = {}
    for moment, value in zip(seen.time.tolist(), seen.values.all(), strict=True):
        if value is not None:
            bucket = blake2b(text(value).encode(), digest_size=1).digest()[0]
            buckets[bucket] = max(moment, buckets.get(bucket, moment))
    count = sum(time - feature.window_ms < moment <= time + max_skew_ms for moment in buckets.values())
    return BUCKETS * math.log(BUCKETS / max(1, BUCKETS - count))


def due_in_window(feature: Feature, time: int, seen: Seen, *, is_closing: bool) -> int:
    """Half of an open count; `seen.values` are due times."""
    pane_ms = feature.window_ms // PANES
    count = 0
    for moment, due in zip(seen.time.tolist(), seen.values.all(), strict=True):
        if due is not None and 0 <= due <= moment + feature.ahead_ms:
            at = max(moment, due) if is_closing else due
            count += 0 <= time // pane_ms - at // pane_ms < PANES
    return count


def calendar(feature: Feature, time: int) -> float:
    """A part of the event's own time."""
    if not 0 <= time < YEAR_10000:
        return math.nan
    local = datetime.fromtimestamp(time // 1_000, UTC).astimezone(ZoneInfo(feature.zone))
    if feature.part == "weekday":
        return local.weekday()
    if feature.part == "minute_of_day":
        return local.hour * 60 + local.minute
    return float({"hour": local.hour, "day": local.day, "month": local.month}[str(feature.part)])


def text(value: Any) -> str:
    """A value as a category has it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
