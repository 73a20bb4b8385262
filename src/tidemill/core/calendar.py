"""Parts of the calendar of event times, in a time zone.

In: milliseconds since the epoch, a part, the IANA name of a zone. Out: the part as a number.
Invariant: UTC needs no data of the platform; any other zone follows the rules that the platform has for it.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.core.asking import TIME_LIMIT, Bools
from tidemill.core.records import Int64s
from tidemill.core.spec import CalendarPart

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_QUARTER_MS = 900_000  # clocks have changed at full quarters of an hour since 1970 (but Monrovia's, in 1972)
_LAST_MS = TIME_LIMIT - 2 * 86_400_000  # a local time is still before the year 10000


def is_known_zone(zone: str) -> bool:
    """Can times be read in this zone on this platform?"""
    try:
        ZoneInfo(zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return False
    return True


def calendar_parts(time: Int64s, part: CalendarPart, zone: str) -> Int64s:
    """hour 0-23, weekday 0 (Monday) - 6, day of the month 1-31, month 1-12, minute_of_day 0-1439.

    Meaningless outside 1970..9999, see `has_calendar`.
    """
    known = np.where(has_calendar(time), time, 0)
    # Arrow's own zones keep no summer time after 2037.
    local = known if zone == "UTC" else known + _offsets_ms(known, zone)
    moments = pa.array(local).cast(pa.timestamp("ms"))
    if part == "minute_of_day":
        parts = pc.add(pc.multiply(pc.hour(moments), 60), pc.minute(moments))
    elif part == "weekday":
        parts = pc.day_of_week(moments)
    else:
        parts = {"hour": pc.hour, "day": pc.day, "month": pc.month}[part](moments)
    numbers: Int64s = parts.to_numpy()
    return numbers


def has_calendar(time: Int64s) -> Bools:
    """Where the time is one that features know at all."""
    known: Bools = (time >= 0) & (time < TIME_LIMIT)
    return known


def _offsets_ms(time: Int64s, zone: str) -> Int64s:
    """What local clocks are ahead of UTC."""
    rules = ZoneInfo(zone)
    quarters, place = np.unique(np.minimum(time, _LAST_MS) // _QUARTER_MS, return_inverse=True)
    moments = (_EPOCH + timedelta(milliseconds=quarter * _QUARTER_MS) for quarter in quarters.tolist())
    offsets = [(moment.astimezone(rules).utcoffset() or timedelta()) // timedelta(milliseconds=1) for moment in moments]
    return np.array(offsets, dtype=np.int64)[place]
