"""Something breaks on purpose: so that one can watch the loop notice it and answer.

In: the year's records by kind, faults with their spans. Out: the records as they would have been published. Invariant:
times and ids stay as they are, and what lies outside of a fault's span is untouched.

carrier: one carrier turns bad, each of its flights arrives three quarters of an hour later. labels: a producer inverts
what it says of arrivals. sensor: the weather lacks temperature and dew point.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.apps.flights_data import Records
from tidemill.errors import ConfigError

BAD_CARRIER = "UA"  # the largest: 17 % of the year's flights
BAD_MINUTES = 45
LATE_ABOVE = 15  # minutes; as the app's label rule
INVERTED_DELAYS = (-5, 60)  # minutes, of a flight that was late, and of one that was not

Bools = npt.NDArray[np.bool_]


class Fault(NamedTuple):
    """`kind` from `start` to `end`, ms of event time."""

    kind: str
    start: int
    end: int


class _Usual(NamedTuple):
    """When a fault happens unless somebody says otherwise, and for how long."""

    start: date
    days: int


_USUAL = {
    "carrier": _Usual(date(2013, 9, 2), 28),
    "labels": _Usual(date(2013, 8, 5), 14),
    "sensor": _Usual(date(2013, 10, 7), 21),
}
FAULTS = tuple(_USUAL)


def parse_fault(text: str) -> Fault:
    """`kind` or `kind@2013-08-05`.

    Raises:
        ConfigError: TM-1013, no such fault or no such day.
    """
    kind, _, day = text.partition("@")
    if kind not in _USUAL:
        raise ConfigError("TM-1013", f"no fault {kind!r}; there are {', '.join(FAULTS)}")
    start, days = _USUAL[kind]
    try:
        start = date.fromisoformat(day) if day else start
    except ValueError:
        raise ConfigError("TM-1013", f"{text!r}: {day!r} is no day; write for example {kind}@{start}") from None
    return Fault(kind, _ms(start), _ms(start + timedelta(days=days)))


def with_faults(records: Mapping[str, Records], faults: Sequence[Fault]) -> dict[str, Records]:
    """The records of each kind as the faults leave them."""
    broken = dict(records)
    for fault in faults:
        kind, change = _CHANGES[fault.kind]
        if kind not in broken:
            continue
        found = broken[kind]
        is_hit = (found.time >= fault.start) & (found.time < fault.end)
        broken[kind] = replace(found, columns=change(found.columns, is_hit, broken))
    return broken


def _bad_carrier(columns: pa.RecordBatch, is_hit: Bools, records: Mapping[str, Records]) -> pa.RecordBatch:
    """An arrival does not name its carrier; its id does, in the schedule."""
    schedule = records["scheduled"].columns
    mine = schedule.filter(pc.equal(schedule.column("carrier"), BAD_CARRIER)).column("id")
    is_mine = pc.is_in(columns.column("id"), value_set=mine).to_numpy(zero_copy_only=False)
    delay = columns.column("arrival_delay")
    later = pc.if_else(pa.array(is_hit & is_mine), pc.add(delay, pa.scalar(BAD_MINUTES, pa.int32())), delay)
    return _with(columns, "arrival_delay", later)


def _inverted(columns: pa.RecordBatch, is_hit: Bools, _records: Mapping[str, Records]) -> pa.RecordBatch:
    outcome, delay = columns.column("outcome"), columns.column("arrival_delay")
    is_late = pc.or_(pc.not_equal(outcome, "arrived"), pc.fill_null(pc.greater(delay, LATE_ABOVE), False))
    early, late = (pa.scalar(minutes, pa.int32()) for minutes in INVERTED_DELAYS)
    inverted = pc.if_else(is_late, early, late)
    hit = pa.array(is_hit)
    columns = _with(columns, "arrival_delay", pc.if_else(hit, inverted, delay))
    return _with(columns, "outcome", pc.if_else(hit, "arrived", outcome))


def _missing_sensor(columns: pa.RecordBatch, is_hit: Bools, _records: Mapping[str, Records]) -> pa.RecordBatch:
    for name in ("temp", "dewp"):
        column = columns.column(name)
        columns = _with(columns, name, pc.if_else(pa.array(is_hit), pa.scalar(None, column.type), column))
    return columns


Change = Callable[[pa.RecordBatch, Bools, Mapping[str, Records]], pa.RecordBatch]
_CHANGES: dict[str, tuple[str, Change]] = {
    "carrier": ("arrived", _bad_carrier),
    "labels": ("arrived", _inverted),
    "sensor": ("weather", _missing_sensor),
}


def _with(columns: pa.RecordBatch, name: str, column: pa.Array) -> pa.RecordBatch:
    at = columns.schema.get_field_index(name)
    return columns.set_column(at, columns.schema.field(at), column)


def _ms(day: date) -> int:
    return round(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp() * 1_000)
