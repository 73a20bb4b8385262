"""What `--inject` breaks, and that it breaks nothing else."""

from __future__ import annotations

from datetime import UTC, date, datetime

import numpy as np
import pyarrow.compute as pc
import pytest

from tidemill.apps.flights_data import flight_records
from tidemill.apps.flights_faults import BAD_CARRIER, BAD_MINUTES, FAULTS, LATE_ABOVE, parse_fault, with_faults
from tidemill.errors import ConfigError

START = date(2013, 1, 3)
DAY_MS = 86_400_000


@pytest.fixture(scope="module")
def records():
    return flight_records(date(2013, 1, 20))


def is_late(columns):
    late = pc.fill_null(pc.greater(columns.column("arrival_delay"), LATE_ABOVE), False)
    return pc.or_(late, pc.not_equal(columns.column("outcome"), "arrived")).to_numpy(zero_copy_only=False)


def test_inverted_labels_say_the_opposite_within_their_two_weeks_and_the_truth_outside(records):
    fault = parse_fault(f"labels@{START}")
    broken = with_faults(records, [fault])
    was, now = records["arrived"], broken["arrived"]
    is_hit = (was.time >= fault.start) & (was.time < fault.end)
    assert fault.end - fault.start == 14 * DAY_MS
    assert 0 < is_hit.sum() < len(is_hit)
    np.testing.assert_array_equal(is_late(now.columns) != is_late(was.columns), is_hit)
    np.testing.assert_array_equal(now.time, was.time)


def test_a_bad_carrier_is_later_and_all_others_are_as_they_were(records):
    fault = parse_fault(f"carrier@{START}")
    was, now = records["arrived"], with_faults(records, [fault])["arrived"]
    schedule = records["scheduled"].columns
    carrier_of = dict(zip(schedule["id"].to_pylist(), schedule["carrier"].to_pylist(), strict=True))
    carriers = np.array([carrier_of[one] for one in was.columns["id"].to_pylist()])
    later = pc.subtract(now.columns["arrival_delay"], was.columns["arrival_delay"])
    later = pc.fill_null(later, 0).to_numpy(zero_copy_only=False)
    assert set(later[(carriers == BAD_CARRIER) & (was.time >= fault.start)]) == {0, BAD_MINUTES}
    assert not later[(carriers != BAD_CARRIER) | (was.time < fault.start)].any()


def test_a_missing_sensor_takes_two_columns_of_the_weather(records):
    fault = parse_fault(f"sensor@{START}")
    was, now = records["weather"], with_faults(records, [fault])["weather"]
    is_hit = (was.time >= fault.start) & (was.time < fault.end)
    assert now.columns["temp"].filter(is_hit).null_count == is_hit.sum()
    assert now.columns["temp"].filter(~is_hit).equals(was.columns["temp"].filter(~is_hit))
    assert now.columns["humid"].equals(was.columns["humid"])


def test_every_fault_has_a_usual_time_in_the_year_of_the_data():
    for kind in FAULTS:
        fault = parse_fault(kind)
        assert datetime.fromtimestamp(fault.start / 1_000, UTC).year == 2013 and fault.end > fault.start


@pytest.mark.parametrize("text", ["fire", "labels@yesterday", ""])
def test_an_unknown_fault_is_an_error_that_names_what_there_is(text):
    with pytest.raises(ConfigError, match=r"TM-1013.*labels"):
        parse_fault(text)
