"""Incidents: opened once, repeated rarely, resolved once, and known from their records alone."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tidemill.core.alert_book import ACTIONS, SEVERITIES, AlertBook, Firing
from tidemill.core.alerts import ALERT_KINDS, Alert
from tidemill.core.loop_spec import DAY_MS, MonitorSpec

SPEC = MonitorSpec(quiet_ms=4 * DAY_MS, cooldown_ms=3 * DAY_MS)


def a_firing(subject: str = "blend", kind="concept", effect: float = 1.0) -> Firing:
    return Firing(
        kind=kind,
        subject=subject,
        summary=f"{subject} is off by {effect}.",
        window_start=0,
        window_end=DAY_MS,
        offset_start=3,
        offset_next=9,
        culprits=("shop=b",),
        evidence={"effect": effect},
    )


def told(days: str, book: AlertBook | None = None) -> list[tuple[int, str]]:
    """(day, event) of an incident that fires on the days marked x."""
    book = book or AlertBook(SPEC)
    found = []
    for day, mark in enumerate(days, start=1):
        records = book.tell(day * DAY_MS, "v1", 100, [a_firing()] if mark == "x" else [])
        found += [(day, record.event) for record in records]
    return found


def test_a_firing_opens_an_incident_with_all_that_an_operator_needs() -> None:
    (record,) = AlertBook(SPEC).tell(5 * DAY_MS, "v1", 100, [a_firing()])

    assert record == Alert(
        id=f"concept/blend@{5 * DAY_MS}",
        key="concept/blend",
        kind="concept",
        event="opened",
        severity="page",
        time=5 * DAY_MS,
        opened=5 * DAY_MS,
        summary="blend is off by 1.0.",
        action=ACTIONS["concept"],
        runbook="docs/runbooks/concept.md",
        champion="v1",
        window_start=0,
        window_end=DAY_MS,
        offset_start=3,
        offset_next=9,
        culprits=("shop=b",),
        evidence={"effect": 1.0},
    )


def test_every_kind_has_a_severity_and_an_action_of_one_sentence() -> None:
    assert set(SEVERITIES) == set(ACTIONS) == set(ALERT_KINDS)
    assert all(action.endswith(".") and ". " not in action for action in ACTIONS.values())


def test_an_incident_that_lasts_is_repeated_once_each_cooldown() -> None:
    assert told("xxxxxxxx") == [(1, "opened"), (4, "repeated"), (7, "repeated")]


def test_an_incident_that_comes_and_goes_within_the_quiet_time_is_one() -> None:
    assert told("x..x...x...........") == [(1, "opened"), (4, "repeated"), (8, "repeated"), (12, "resolved")]
    assert told("x.x.........") == [(1, "opened"), (7, "resolved")]


def test_after_a_resolution_the_key_cannot_open_until_the_cooldown_is_over() -> None:
    assert told("x....xxxx") == [(1, "opened"), (5, "resolved"), (8, "opened")]


def test_a_resolution_says_how_long_it_was_and_keeps_the_id() -> None:
    book = AlertBook(SPEC)
    opened = book.tell(DAY_MS, "v1", 9, [a_firing()])[0]
    book.tell(3 * DAY_MS, "v1", 50, [a_firing()])
    resolved = book.tell(7 * DAY_MS, "v2", 100, [])[0]

    assert (resolved.event, resolved.id, resolved.opened) == ("resolved", opened.id, DAY_MS)
    assert resolved.evidence == {"open_ms": 6.0 * DAY_MS, "silent_ms": 4.0 * DAY_MS}
    assert resolved.summary == "concept/blend was open for 6 days; silent for the last 4 days."
    assert (resolved.offset_start, resolved.offset_next, resolved.champion) == (3, 100, "v2")
    assert book.resolved == {"concept/blend": 7 * DAY_MS} and not book.incidents


def test_an_acknowledged_incident_is_not_repeated_and_still_resolved() -> None:
    book = AlertBook(SPEC)
    assert told("x", book) == [(1, "opened")]
    record = book.acknowledge(f"concept/blend@{DAY_MS}", "ann", DAY_MS + 5)

    assert record is not None and (record.event, record.by, record.time) == ("acknowledged", "ann", DAY_MS + 5)
    assert told("xxxxxxxx....", book) == [(12, "resolved")]
    assert book.acknowledge(f"concept/blend@{DAY_MS}", "ann", 13 * DAY_MS) is None


def test_an_acknowledgement_is_of_one_incident_not_of_its_key() -> None:
    book = AlertBook(SPEC)
    told("x", book)
    book.acknowledge(f"concept/blend@{DAY_MS}", "ann", DAY_MS)
    told("......", book)

    later = [r.event for day in range(11, 16) for r in book.tell(day * DAY_MS, "v1", 1, [a_firing()])]
    assert later == ["opened", "repeated"]


def test_records_keep_the_order_of_firings_and_resolutions_come_last() -> None:
    book = AlertBook(SPEC)
    book.tell(DAY_MS, "v1", 1, [a_firing("b", "quality"), a_firing("a", "quality")])
    records = book.tell(5 * DAY_MS, "v1", 1, [a_firing("share", "label"), a_firing("features", "covariate")])

    assert [(r.key, r.event) for r in records] == [
        ("label/share", "opened"),
        ("covariate/features", "opened"),
        ("quality/b", "resolved"),
        ("quality/a", "resolved"),
    ]


def test_incidents_that_are_published_take_the_place_of_those_that_the_book_made() -> None:
    """By today's settings: open from day 1, resolved on day 5, silenced by the cooldown on day 6. Published: open."""
    book = AlertBook(SPEC)
    assert told("x....x", book) == [(1, "opened"), (5, "resolved")]
    published = a_firing().opened(2 * DAY_MS, "v1")
    book.take_over([published])
    assert [one.first for one in book.incidents.values()] == [published] and not book.resolved
    found = [record for day in range(7, 12) for record in book.tell(day * DAY_MS, "v1", 100, [])]
    assert [(record.time // DAY_MS, record.id, record.event) for record in found] == [(10, published.id, "resolved")]

    book.take_over([])
    assert not book.incidents
    assert [one.event for one in book.tell(12 * DAY_MS, "v1", 100, [a_firing()])] == ["opened"]


DAYS = st.lists(st.tuples(st.sets(st.sampled_from("abc")), st.booleans()), max_size=60)


def run(days) -> tuple[AlertBook, list[Alert]]:
    """What fires by day, and whether somebody acknowledges the oldest incident on it."""
    book, records = AlertBook(SPEC), []
    for day, (subjects, is_seen) in enumerate(days, start=1):
        firings = [a_firing(subject, effect=day) for subject in sorted(subjects)]
        records += book.tell(day * DAY_MS, "v1", day, firings)
        if is_seen and book.incidents:
            oldest = next(iter(book.incidents.values()))
            records.append(book.acknowledge(oldest.first.id, "ann", day * DAY_MS))
    return book, records


@given(DAYS)
def test_the_book_of_the_records_says_what_the_book_says(days) -> None:
    book, records = run(days)
    read = AlertBook.of(records, SPEC)

    assert list(read.incidents.items()) == list(book.incidents.items())
    assert read.resolved == book.resolved


@given(DAYS)
def test_incidents_of_a_key_never_overlap_and_each_is_resolved_once(days) -> None:
    silence = [(set(), False)] * (SPEC.quiet_ms // DAY_MS)
    book, records = run([*days, *silence])

    assert not book.incidents
    for key in {record.key for record in records}:
        events = [r for r in records if r.key == key]
        ends = [r.event for r in events if r.event in ("opened", "resolved")]
        assert ends == ["opened", "resolved"] * (len(ends) // 2)
        assert set(Counter(r.id for r in events if r.event == "resolved").values()) == {1}
        times = [r.time for r in events if r.event in ("opened", "repeated", "resolved")]
        assert all(later - former >= SPEC.cooldown_ms for former, later in pairwise(times))


@pytest.mark.parametrize("event", ["repeated", "resolved", "acknowledged"])
def test_a_record_about_an_incident_that_is_over_changes_nothing(event: str) -> None:
    book, records = run([({"a"}, False), *[(set(), False)] * 8])
    stray = records[0].__class__(**{name: getattr(records[0], name) for name in Alert.__slots__} | {"event": event})

    assert AlertBook.of([*records, stray], SPEC).resolved == book.resolved
    assert not AlertBook.of([*records, stray], SPEC).incidents
    reopened = a_firing("a").opened(20 * DAY_MS, "v1")
    read = AlertBook.of([*records, reopened, stray], SPEC)
    assert [(one.first, one.newest, one.acknowledged_by) for one in read.incidents.values()] == [
        (reopened, reopened, "")
    ]
