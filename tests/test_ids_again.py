"""Ids that come again after they were forgotten, in a rebuild by several workers that are not equally far."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.in_memory import App, Machinery, Worker, a_shop, row_states
from tests.memory_kafka import kafka_in_memory
from tests.streams_in_memory import LAW, assert_balances_close
from tidemill.core.records import Partition

SHORT = Machinery(a_shop(wait_ms=1_000, allowed_lateness_ms=0, dedup_window_ms=2_000))
EVENTS, LABELS = Partition("events", 0), Partition("outcomes", 0)


@pytest.fixture(autouse=True, scope="module")
def kafka() -> Iterator[None]:
    with kafka_in_memory():
        yield


def an_app(records: list[tuple[str, str, int]]) -> App:
    """(topic, id, time) of events and labels, one partition each, ascending in time."""
    app = App(machinery=SHORT)
    for topic, id_, time in records:
        fields = {"shop": "st"[time % 2], "user": 1, "amount": 1.0} if topic == "events" else {"outcome": time % 2}
        app.inputs.add(topic, time, id=id_, **fields)
    return app


def rebuilt(app: App, first: Partition, then: Partition) -> None:
    """By two workers: the second begins when the first is done."""
    for slot, partition in enumerate((first, then)):
        Worker(app, slot=str(slot)).claim(partition)
    rest = app.partitions - {first, then}
    Worker(app, slot="2").claim(*rest)


def settled(worker: Worker, group_watermark: int) -> None:
    """Expired, then forgotten."""
    for _ in range(2):
        worker.run(group_watermark=group_watermark)


@st.composite
def streams(draw: st.DrawFn) -> list[tuple[str, str, int]]:
    gaps = draw(st.lists(st.sampled_from((1, 400, 900, 2_500)), min_size=2, max_size=16))
    time, records = 1_000, []
    for gap in gaps:
        time += gap
        records.append((draw(st.sampled_from(("events", "outcomes"))), draw(st.sampled_from("ab")), time))
    return records


AGAIN = [("events", "a", 1_000), ("events", "a", 4_000), ("outcomes", "a", 4_001)]  # the first one expired
JOINED = [("events", "a", 1_000), ("outcomes", "a", 1_500), ("events", "a", 4_000)]
WAITS = [("events", "a", 1_000), ("events", "b", 3_999), ("outcomes", "a", 4_000)]  # when the event is forgotten


@LAW
@example(AGAIN, None, False, 1)
@example(JOINED, None, True, 1)
@example(JOINED, 1, True, 1)  # the first event was in the store
@example(WAITS, None, False, 1)
@given(streams(), st.none() | st.integers(0, 16), st.booleans(), st.integers(1, 4))
def test_whoever_is_ahead_every_label_meets_the_event_that_it_met(
    stream: list[tuple[str, str, int]], kept: int | None, is_events_first: bool, every: int
) -> None:
    app = an_app(stream)
    live = Worker(app).claim()
    records = live.left()
    survivor, watermark = App(machinery=SHORT).backend, -1
    for at, (record, (_, _, time)) in enumerate(zip(records, stream, strict=True)):
        if at == kept:
            survivor = copy.deepcopy(app.backend)
        watermark = time if at % every == 0 else watermark
        live.run([record], group_watermark=watermark)
    settled(live, stream[-1][2])
    digest, outcomes, rows = app.digest(), app.log.outcomes(), row_states(app.backend)

    app.backend = survivor
    rebuilt(app, *((EVENTS, LABELS) if is_events_first else (LABELS, EVENTS)))
    settled(Worker(app, slot="3").claim(), stream[-1][2])
    assert app.digest() == digest
    assert app.log.outcomes() == outcomes
    assert_balances_close(app)
    assert row_states(app.backend) == rows
