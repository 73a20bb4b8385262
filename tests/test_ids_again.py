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
from tidemill.io.source import SourceRecord

SHORT = Machinery(a_shop(wait_ms=1_000, allowed_lateness_ms=0, dedup_window_ms=2_000))
PLACES = [Partition(topic, number) for topic in ("events", "outcomes") for number in (0, 1)]


@pytest.fixture(autouse=True, scope="module")
def kafka() -> Iterator[None]:
    with kafka_in_memory():
        yield


def an_app() -> App:
    return App(machinery=SHORT, partitions=2)


def arrive(app: App, topic: str, id_: str, time: int, number: int) -> SourceRecord:
    fields = {"shop": "st"[time % 2], "user": 1, "amount": 1.0} if topic == "events" else {"outcome": time % 2}
    return app.inputs.add(topic, time, partition=number, id=id_, **fields)


def settled(worker: Worker, group_watermark: int) -> None:
    """Expired, then forgotten."""
    for _ in range(2):
        worker.run(group_watermark=group_watermark)


@st.composite
def streams(draw: st.DrawFn) -> list[tuple[str, str, int, int]]:
    """(topic, id, time, partition) of events and labels, as they arrive; some are late."""
    gaps = draw(st.lists(st.sampled_from((1, 400, 900, 2_500)), min_size=2, max_size=16))
    time, records = 1_000, []
    for gap in gaps:
        time += gap
        topic, id_, number = (draw(st.sampled_from(some)) for some in (("events", "outcomes"), "ab", (0, 1)))
        late = draw(st.sampled_from((0, 0, 0, 0, 300, 1_200)))
        records.append((topic, id_, time - late, number))
    return records


AGAIN = [("events", "a", 1_000, 0), ("events", "a", 4_000, 0), ("outcomes", "a", 4_001, 0)]  # the first one expired
JOINED = [("events", "a", 1_000, 0), ("outcomes", "a", 1_500, 0), ("events", "a", 4_000, 0)]
WAITS = [("events", "a", 1_000, 0), ("events", "b", 3_999, 0), ("outcomes", "a", 4_000, 0)]  # its event is forgotten
LATE = [("outcomes", "a", 4_000, 0), ("events", "b", 5_500, 0), ("events", "a", 3_900, 1)]  # its label waited in vain


@LAW
@example(AGAIN, None, PLACES[::-1], 1, 1)
@example(JOINED, None, PLACES, 1, 1)
@example(JOINED, 1, PLACES, 1, 1)  # the first event was in the store
@example(WAITS, None, PLACES[::-1], 1, 1)
@example(LATE, None, PLACES, 4, 1)
@given(streams(), st.none() | st.integers(0, 16), st.permutations(PLACES), st.integers(1, 4), st.integers(1, 4))
def test_whoever_is_ahead_every_label_meets_the_event_that_it_met(
    stream: list[tuple[str, str, int, int]], kept: int | None, order: list[Partition], each: int, settle_every: int
) -> None:
    """The partitions are rebuilt in this order by workers of which one begins when the one before is done; each has
    this many."""
    app = an_app()
    live = Worker(app).claim()
    survivor, seen, watermark = an_app().backend, -1, -1
    for at, record in enumerate(stream):
        if at == kept:
            survivor = copy.deepcopy(app.backend)
        arrived = arrive(app, *record)
        seen = max(seen, arrived.time)
        watermark = seen if at % settle_every == 0 else watermark
        live.run([arrived], group_watermark=watermark)
    end = seen
    settled(live, end)
    digest, outcomes, rows = app.digest(), app.log.outcomes(), row_states(app.backend)

    app.backend = survivor
    for first in range(0, len(order), each):
        Worker(app, slot=str(first)).claim(*order[first : first + each])
    settled(Worker(app, slot="last").claim(), end)
    assert app.digest() == digest
    assert app.log.outcomes() == outcomes
    assert_balances_close(app)
    assert row_states(app.backend) == rows
