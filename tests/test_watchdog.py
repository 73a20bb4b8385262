"""A stall is noticed, and idleness is not one."""

from __future__ import annotations

from tidemill.apps.watchdog import Watchdog
from tidemill.core.records import Partition

P, Q = Partition("events", 0), Partition("labels", 1)


def test_lag_without_progress_trips_it_and_names_the_place():
    watchdog = Watchdog(60)
    assert watchdog.see({P: 5}, {P: 9}, now_s=0) is None
    assert watchdog.see({P: 5}, {P: 9}, now_s=59) is None
    stall = watchdog.see({P: 5}, {P: 9}, now_s=61)
    assert stall is not None
    message = stall.text("the store does not answer")
    assert "events[0]@5" in message and "61 s" in message and "the store does not answer" in message
    assert watchdog.is_stalled


def test_an_idle_topic_never_trips_it():
    watchdog = Watchdog(60)
    assert all(watchdog.see({P: 5}, {P: 5}, now_s=second) is None for second in range(0, 10_000, 10))


def test_progress_of_one_partition_clears_the_others():
    watchdog = Watchdog(60)
    for second in range(0, 600, 10):
        assert watchdog.see({P: 5, Q: second}, {P: 9, Q: 10_000}, now_s=second) is None


def test_lag_after_a_long_idle_time_starts_a_new_count():
    watchdog = Watchdog(60)
    watchdog.see({P: 5}, {P: 5}, now_s=0)
    watchdog.see({P: 5}, {P: 5}, now_s=1000)
    assert watchdog.see({P: 5}, {P: 6}, now_s=1001) is None


def test_how_long_nothing_has_moved_is_known_without_lag_and_begins_anew_with_other_partitions():
    watchdog = Watchdog(60)
    for second in range(0, 50, 10):
        watchdog.see({P: 5}, {P: 5}, now_s=second)
    assert watchdog.still_s == 40
    watchdog.see({P: 5, Q: 1}, {P: 5, Q: 1}, now_s=50)
    assert watchdog.still_s == 0
    watchdog.see({P: 6, Q: 1}, {P: 6, Q: 1}, now_s=60)
    assert watchdog.still_s == 0
    watchdog.see({P: 6, Q: 1}, {P: 6, Q: 1}, now_s=75)
    assert watchdog.still_s == 15
