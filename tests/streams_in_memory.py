"""Streams of the shop in memory, as a test lists them or hypothesis draws them, and the balances that must close.

In: records by topic and time. Out: an app whose inputs they are. Invariant: no drawn stream is longer than any window,
so what comes of it does not hang on when a row is settled.
"""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from tests.in_memory import App, ConstantScorer, Machinery, Worker, a_shop
from tidemill.core.records import Outcome
from tidemill.core.rows import RowState, unpack_row
from tidemill.io.memory import MemoryBackend

MACHINERY = Machinery(a_shop())
EVENT = {"shop": "s", "user": 1, "amount": 0.1}
IDS = "abcd"
WINDOW_MS = 900_000  # shorter than every window of MACHINERY, so that no answer hangs on when a row is settled
LAW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def an_app(machinery: Machinery = MACHINERY, partitions: int = 1) -> App:
    return App(machinery=machinery, partitions=partitions)


def a_past(
    stream: list[tuple[str, int, int, dict[str, Any]]], before: set[int], kept: int | None
) -> tuple[App, MemoryBackend]:
    """An app that has worked off a stream, cut where `before` says, and an older copy of its store, in which `kept`
    records survive; None: the store is empty."""
    app = app_of(stream)
    live = Worker(app, scorer=ConstantScorer(0.3, n=4)).claim()
    records = live.left()
    survivor = App(machinery=app.machinery).backend
    if kept is not None:
        live.run(records[:kept])
        survivor = copy.deepcopy(app.backend)
    live.run_all(sorted(before)).run()
    return app, survivor


@st.composite
def streams(draw: st.DrawFn) -> list[tuple[str, int, int, dict[str, Any]]]:
    """(topic, time, partition, fields), ascending in time."""
    times = sorted(draw(st.lists(st.integers(1_000, WINDOW_MS), min_size=1, max_size=24)))
    records: list[tuple[str, int, int, dict[str, Any]]] = []
    for time in times:
        topic = draw(st.sampled_from(("readings", "outcomes", "outcomes", "events", "events", "poison")))
        id_ = draw(st.sampled_from(IDS))
        shop = draw(st.sampled_from(("s", "t", None)))
        number = draw(st.integers(0, 3))
        fields: dict[str, Any] = {
            "readings": {"shop": shop, "reading": float(number)},
            "outcomes": {"id": id_, "outcome": number % 2},
            "events": {"id": id_, "shop": shop, "user": number, "amount": float(number)},
            "poison": {},
        }[topic]
        records.append((topic, time, number % 2, fields))
    return records


def app_of(stream: list[tuple[str, int, int, dict[str, Any]]], machinery: Machinery = MACHINERY) -> App:
    app = an_app(machinery, partitions=2)
    for topic, time, partition, fields in stream:
        if topic == "poison":
            app.inputs.send("outcomes", time, b"?", partition=partition)
        else:
            app.inputs.add(topic, time, partition=partition, **fields)
    app.inputs.punctuate(10 * 86_400_000)
    return app


def assert_balances_close(app: App) -> None:
    outcomes = app.log.outcomes()
    lanes = app.inputs.lanes
    label_count = sum(
        record.message.value() is not None
        for place, lane in lanes.items()
        if place.topic == "outcomes"
        for record in lane
    )
    open_states = Counter(unpack_row(row).state for row in app.backend.rows.values())
    assert label_count == sum(
        outcomes[outcome]
        for outcome in (
            Outcome.EXAMPLE,
            Outcome.AMENDMENT,
            Outcome.LABEL_DUPLICATE,
            Outcome.ORPHAN,
            Outcome.LABEL_DEAD_LETTER,
            Outcome.WAITING,
        )
    )
    assert outcomes[Outcome.WAITING] == (
        outcomes[Outcome.WAITING_JOINED] + outcomes[Outcome.WAITING_ORPHANED] + open_states[RowState.WAITING]
    )
    joined = outcomes[Outcome.EXAMPLE] + outcomes[Outcome.WAITING_JOINED]
    assert outcomes[Outcome.PREDICTION] == len(app.log.rows("prediction.v1"))
    assert outcomes[Outcome.PREDICTION] == joined + outcomes[Outcome.EXPIRED] + open_states[RowState.PENDING]
    assert joined == sum(row["kind"] == "example" for row in app.log.rows("example.v1"))
