"""A rebuild settles what was settled, and no more: each outcome is counted once, whatever was lost and when."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.in_memory import OUTPUTS, App, Machinery, Worker, a_shop, row_states
from tests.memory_kafka import kafka_in_memory
from tests.streams_in_memory import LAW, a_past, assert_balances_close, streams
from tidemill.core.records import Due, Outcome, Partition
from tidemill.core.rows import Row, RowState, pack_row, unpack_row
from tidemill.core.settlements import Decided, Settlements

DAY_MS = 86_400_000
A, B = Partition("events", 0), Partition("events", 1)


@pytest.fixture(autouse=True, scope="module")
def kafka() -> Iterator[None]:
    with kafka_in_memory():
        yield


@LAW
@given(streams(), st.sets(st.integers(1, 30)), st.none() | st.integers(0, 30))
def test_after_a_rebuild_every_outcome_is_still_counted_once(
    stream: list[tuple[str, int, int, dict[str, Any]]], before: set[int], kept: int | None
) -> None:
    app, survivor = a_past(stream, before, kept)
    digest, outcomes, published = app.digest(), app.log.outcomes(), {t: app.log.outputs(t) for t in OUTPUTS}
    rows = row_states(app.backend)

    app.backend = survivor
    Worker(app).claim().run()
    assert app.digest() == digest
    assert app.log.outcomes() == outcomes
    assert {t: app.log.outputs(t) for t in OUTPUTS[:2]} == {t: published[t] for t in OUTPUTS[:2]}
    assert row_states(app.backend) == rows
    assert_balances_close(app)


def test_a_label_that_was_an_orphan_because_its_row_had_expired_stays_one_in_a_rebuild() -> None:
    app = App()
    event = app.inputs.add("events", 1_000, id="a", shop="s", user=1, amount=1.0)
    label = app.inputs.add("outcomes", 2_000, id="a", outcome=1)  # in time, but it comes too late
    live = Worker(app).claim()
    live.run([event])
    live.run(group_watermark=100 * DAY_MS)
    live.run([label], group_watermark=-1)
    outcomes, digest = app.log.outcomes(), app.digest()
    assert outcomes[Outcome.EXPIRED] == outcomes[Outcome.ORPHAN] == 1

    app.backend = App(machinery=app.machinery).backend
    Worker(app).claim()
    assert app.digest() == digest
    assert [unpack_row(row).state for row in app.backend.rows.values()] == [RowState.EXPIRED]
    assert app.log.outcomes() == outcomes


def test_what_expired_stays_expired_in_a_rebuild_with_a_longer_wait() -> None:
    """Between the two `tidemill reset --config` accepted the YAML with it."""
    app = App()
    for number in range(3):
        app.inputs.add("events", 1_000 + number, id=f"e{number}", shop="s", user=1, amount=1.0)
    app.inputs.add("outcomes", 2_000, id="early", outcome=1)
    live = Worker(app).claim()
    live.run(live.left())
    app.inputs.add("outcomes", 2_001, id="e0", outcome=1)
    live.run(live.left())
    live.run(group_watermark=20 * DAY_MS)
    app.inputs.add("events", 20 * DAY_MS, id="pending", shop="s", user=1, amount=1.0)
    live.run(live.left(), group_watermark=-1)
    digest, outcomes = app.digest(), app.log.outcomes()
    assert outcomes[Outcome.EXPIRED] == 2 and outcomes[Outcome.WAITING_ORPHANED] == 1

    later = App(machinery=Machinery(a_shop(wait_ms=1_000 * 3_600_000)))
    later.inputs, later.log = app.inputs, app.log
    worker = Worker(later).claim()
    assert later.digest() == digest
    states = {id_: unpack_row(row).state for id_, row in later.backend.rows.items()}
    assert states.pop("e0") is RowState.JOINED  # remembered for longer
    assert states == {"e1": RowState.EXPIRED, "e2": RowState.EXPIRED, "pending": RowState.PENDING}
    later.inputs.add("outcomes", 3_000, id="e1", outcome=1)
    worker.run(worker.left(), group_watermark=-1)
    assert later.log.outcomes() == outcomes + Counter({Outcome.ORPHAN: 1})
    assert_balances_close(later)


# --- which rows are settled again


def a_row(state: RowState, offset: int = 0) -> bytes:
    return pack_row(Row(1, state, 10, -1, -1, 0, 0, offset, b""))


def settling(start: int, group_watermark: int, *offsets: int) -> Decided:
    return Decided(start, start + 5, group_watermark, 0, (), (), offsets)


def some_due(*rows: tuple[str, int, bytes], place: Partition = A) -> list[tuple[Due, bytes | None]]:
    return [(Due(place, id_, time), row) for id_, time, row in rows]


def chosen_ids(settlements: Settlements, due: list[tuple[Due, bytes | None]]) -> list[str]:
    return [entry.id for entry, _ in settlements.choose(due)]


def test_rows_are_settled_with_the_commit_that_names_them() -> None:
    settlements = Settlements({A: [settling(0, 100, 2), settling(5, 200, 3)]})
    due = some_due(*((id_, at, a_row(RowState.PENDING, at)) for id_, at in (("a", 1), ("b", 2), ("c", 3))))
    assert chosen_ids(settlements, due) == []  # no commit was passed yet
    settlements.advance(A, before=5)
    assert chosen_ids(settlements, due) == ["b"]
    assert chosen_ids(settlements, due) == ["b"]  # a conflict asks again
    settlements.advance(A, before=9)
    assert settlements.watermark == 200
    assert chosen_ids(settlements, due) == ["b", "c"]


def test_rows_that_a_commit_names_are_settled_though_they_are_due_later_today() -> None:
    settlements = Settlements({A: [settling(0, 100, 2, 4)]})
    assert not settlements.misses_rows
    settlements.advance(A, before=5)
    due = some_due(("a", 900, a_row(RowState.PENDING, 1)), ("b", 901, a_row(RowState.PENDING, 2)))
    assert chosen_ids(settlements, due) == ["b"]
    assert settlements.misses_rows
    assert chosen_ids(settlements, some_due(("c", 902, a_row(RowState.WAITING, 4)))) == ["c"]
    assert not settlements.misses_rows


def test_nothing_is_forgotten_before_the_watermark_of_its_partition() -> None:
    settlements = Settlements({A: [settling(0, 100)], B: [settling(0, 300)]})
    settlements.advance(A, before=5)
    settlements.advance(B, before=5)
    row = a_row(RowState.JOINED)  # forgotten, which no commit names
    assert chosen_ids(settlements, some_due(("a", 99, row), ("b", 100, row))) == ["a"]
    assert chosen_ids(settlements, some_due(("c", 299, row), place=B)) == ["c"]


def test_what_was_not_settled_stays_open_and_what_ended_is_forgotten_unnamed() -> None:
    settlements = Settlements({A: [settling(0, 100, 1, 3)]})
    settlements.advance(A, before=5)
    due = some_due(
        ("joined later", 20, a_row(RowState.PENDING, 0)),
        ("expired", 21, a_row(RowState.PENDING, 1)),
        ("joins an event that comes", 22, a_row(RowState.WAITING, 2)),
        ("orphan", 23, a_row(RowState.WAITING, 3)),
        ("forgotten", 25, a_row(RowState.JOINED, 4)),
        ("expired before", 26, a_row(RowState.EXPIRED, 5)),
    )
    assert chosen_ids(settlements, due) == ["expired", "orphan", "forgotten", "expired before"]
    assert settlements.choose(some_due(("expired", 21, a_row(RowState.PENDING, 1)), place=B)) == ()
