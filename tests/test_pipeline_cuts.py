"""However a stream is cut into batches, and after any roll-forward, the same comes of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.in_memory import OUTPUTS, Worker, row_states
from tests.memory_kafka import kafka_in_memory
from tests.streams_in_memory import LAW, a_past, app_of, assert_balances_close, streams


@pytest.fixture(scope="module", autouse=True)
def _kafka() -> Iterator[None]:
    with kafka_in_memory():
        yield


@LAW
@given(streams(), st.sets(st.integers(1, 30)))
def test_however_the_stream_is_cut_state_examples_and_outcomes_are_the_same(
    stream: list[tuple[str, int, int, dict[str, Any]]], cuts: set[int]
) -> None:
    whole, cut = app_of(stream), app_of(stream)
    for app, places in ((whole, []), (cut, sorted(cuts))):
        worker = Worker(app).claim().run_all(places)
        worker.run()  # what the last batch settled may be due again
        assert_balances_close(app)
    assert cut.digest() == whole.digest()
    assert row_states(cut.backend) == row_states(whole.backend)
    assert cut.log.outcomes() == whole.log.outcomes()
    for schema in ("prediction.v1", "example.v1"):
        found = [
            sorted((one["id"], one.get("label", -1), one["numeric"], one["flags"]) for one in app.log.rows(schema))
            for app in (whole, cut)
        ]
        assert repr(found[0]) == repr(found[1])  # NaN is missing, and equal here


@LAW
@given(streams(), st.sets(st.integers(1, 30)), st.none() | st.integers(0, 30))
def test_roll_forward_rebuilds_features_and_rows_from_what_was_published(
    stream: list[tuple[str, int, int, dict[str, Any]]], before: set[int], kept: int | None
) -> None:
    app, survivor = a_past(stream, before, kept)
    digest, rows, published = app.digest(), row_states(app.backend), {t: app.log.outputs(t) for t in OUTPUTS[:2]}

    app.backend = survivor
    rebuilt = Worker(app).claim()
    assert app.digest() == digest
    assert rebuilt.positions == {place: at for place, (at, _) in app.log.offsets.items()}
    rebuilt.run()
    rebuilt.run()  # what was due is settled now, for a roll-forward leaves it to the first live batches
    assert row_states(app.backend) == rows
    assert {topic: app.log.outputs(topic) for topic in OUTPUTS[:2]} == published
