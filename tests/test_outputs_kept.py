"""A rebuild from logs that lost what it needs is refused; what it does not need may be gone."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest

from tests.in_memory import OUTPUTS, App, Worker, row_states
from tests.memory_kafka import kafka_in_memory
from tests.streams_in_memory import EVENT, MACHINERY, an_app, assert_balances_close
from tidemill.apps import roll_forward
from tidemill.core.outputs_kept import offsets_without_record, predictions_gone
from tidemill.core.records import Outcome, Partition
from tidemill.core.settlements import Decided, Example, Labelled
from tidemill.errors import StateLostError

A, B = Partition("events", 0), Partition("events", 1)
PREDICTIONS, EXAMPLES, COMMITS = OUTPUTS


@pytest.fixture(autouse=True, scope="module")
def kafka() -> Iterator[None]:
    with kafka_in_memory():
        yield


def a_commit(start: int, next_: int, predictions: int = 0, joined: tuple[int, ...] = ()) -> Decided:
    return Decided(start, next_, -1, predictions, joined, (), ())


@pytest.mark.parametrize(
    ("spans", "gone"),
    [
        ([(0, 4), (4, 4), (4, 9)], 0),
        ([(4, 9)], 2),  # the range begins at 2
        ([(0, 4), (6, 9)], 2),
        ([(0, 4)], 5),
        ([], 7),
        ([(0, 4), (4, 9), (0, 5), (5, 7)], 0),  # a second pass of which the group has seen a part
        ([(9, 9), (12, 15)], 7),
    ],
)
def test_every_offset_of_a_range_has_a_commit_record(spans: list[tuple[int, int]], gone: int) -> None:
    records = {A: [a_commit(*span) for span in spans]}
    assert offsets_without_record(records, {A: (2, 9)}) == gone
    assert offsets_without_record(records, {A: (2, 9), B: (3, 3)}) == gone  # an empty range needs none


def test_predictions_that_commits_of_the_range_counted_are_missed() -> None:
    records = {A: [a_commit(0, 4, 3), a_commit(4, 8, 2), a_commit(8, 8)], B: [a_commit(0, 2, 2)]}
    ranges = {A: (0, 8), B: (0, 2)}
    everything = [(A, 0), (A, 1), (A, 3), (A, 4), (A, 7), (B, 0), (B, 1)]
    assert predictions_gone(records, ranges, everything) == 0
    assert predictions_gone(records, ranges, everything[2:]) == 2
    assert predictions_gone(records, ranges, reversed(everything[:5])) == 2
    assert predictions_gone(records, ranges, []) == 7


def test_a_commit_that_reaches_beyond_the_range_misses_nothing() -> None:
    records = {A: [a_commit(0, 4, 3), a_commit(4, 8, 2), a_commit(8, 12, 4)]}
    assert predictions_gone(records, {A: (2, 8)}, [(A, 4), (A, 7)]) == 0


def test_predictions_of_a_second_pass_do_not_stand_for_others() -> None:
    """After `tidemill reset --to earliest` two commits count each prediction, and both passes published it."""
    records = {A: [a_commit(0, 4, 4), a_commit(4, 8, 4), a_commit(0, 8, 8)]}
    assert predictions_gone(records, {A: (0, 8)}, {(A, at) for at in range(8)}) == 0
    assert predictions_gone(records, {A: (0, 8)}, {(A, at) for at in range(4)}) == 8


def test_a_label_is_missed_by_id_and_time_whatever_it_says_today() -> None:
    labelled = Labelled([Example("a", 1, 5, 1)], {B: [a_commit(0, 3, joined=(0, 1))]}, EXAMPLES)
    labelled.expect_example_of_label(B, 0, id_="a", label_time=5)
    labelled.expect_example_of_label(B, 2, id_="b", label_time=5)  # no commit names it
    with pytest.raises(StateLostError, match=rf"TM-4207 the label at events\[1\]@1 .* {EXAMPLES} .*tidemill restore"):
        labelled.expect_example_of_label(B, 1, id_="a", label_time=6)


# --- on the log


def six_events(app: App) -> App:
    """The label of e5 comes first; e0 to e2 have theirs, and a second, different one."""
    app.inputs.add("outcomes", 900, id="e5", outcome=1)
    for number in range(6):
        app.inputs.add("events", 1_000 + number, **(EVENT | {"id": f"e{number}"}))
    for number in range(3):
        app.inputs.add("outcomes", 2_000 + number, id=f"e{number}", outcome=1)
        app.inputs.add("outcomes", 3_000 + number, id=f"e{number}", outcome=0)
    return app


def forget(app: App, topic: str, first: int = 0, count: int = 1) -> None:
    """Records of an output topic are deleted."""
    kept = app.log.outputs(topic)
    app.log.topics[topic] = [*kept[:first], *kept[first + count :]]


def test_a_whole_log_gives_the_store_back() -> None:
    app = six_events(an_app())
    Worker(app).claim().run_all([4, 8])
    assert app.log.outcomes()[Outcome.WAITING_JOINED] == 1 and app.log.outcomes()[Outcome.AMENDMENT] == 3
    digest, rows = app.digest(), row_states(app.backend)
    app.backend = App(machinery=MACHINERY).backend
    Worker(app).claim()
    assert (app.digest(), row_states(app.backend)) == (digest, rows)
    assert_balances_close(app)


@pytest.mark.parametrize(
    ("topic", "first", "found"),
    [
        (PREDICTIONS, 0, "1 predictions are missing"),
        (PREDICTIONS, 5, "1 predictions are missing"),
        (COMMITS, 0, "offsets have no commit record"),
        (EXAMPLES, 0, "1 events that met a label that waited have no example"),
        (EXAMPLES, 1, r"the label at outcomes\[0\]@1 was joined and has no example"),
    ],
)
def test_a_rebuild_whose_outputs_were_deleted_is_refused(topic: str, first: int, found: str) -> None:
    app = six_events(an_app())
    Worker(app).claim().run_all([4, 8])
    forget(app, topic, first)
    transactions, offsets = len(app.log.transactions), dict(app.log.offsets)
    app.backend = App(machinery=MACHINERY).backend
    for _ in range(2):  # and again at the next start
        with pytest.raises(StateLostError, match=f"TM-4207 .*{found}: {topic} lacks") as refused:
            Worker(app).claim()
    assert refused.value.exit_code == 4
    assert len(app.log.transactions) == transactions and app.log.offsets == offsets


def test_amendments_that_were_deleted_are_not_needed() -> None:
    app = six_events(an_app())
    Worker(app).claim().run_all()
    digest, rows = app.digest(), row_states(app.backend)
    for at, row in reversed(list(enumerate(app.log.rows("example.v1")))):
        if row["kind"] == "amendment":
            forget(app, EXAMPLES, at)
    app.backend = App(machinery=MACHINERY).backend
    Worker(app).claim()
    assert (app.digest(), row_states(app.backend)) == (digest, rows)


def test_a_store_that_lost_little_is_rolled_forward_though_older_outputs_were_deleted() -> None:
    app = six_events(an_app())
    live = Worker(app).claim()
    live.run(live.left()[:8])
    survivor = copy.deepcopy(app.backend)
    old = {topic: len(app.log.outputs(topic)) for topic in OUTPUTS}
    live.run_all()
    app.inputs.add("events", 4_000, **(EVENT | {"id": "later"}))
    live.run_all()
    digest, rows = app.digest(), row_states(app.backend)

    app.backend = survivor
    for topic, count in old.items():
        forget(app, topic, count=count)
    Worker(app).claim()
    assert (app.digest(), row_states(app.backend)) == (digest, rows)


def test_a_snapshot_of_a_store_that_was_behind_the_log_lets_the_whole_log_be_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was taken in the middle of a rebuild: where the logs stood then, the outputs of its ranges were in them."""
    app = six_events(an_app())
    Worker(app).claim().run_all([4, 8])
    digest, rows = app.digest(), row_states(app.backend)
    app.backend = App(machinery=MACHINERY).backend
    worker = Worker(app)
    read_all = roll_forward.read_to_end
    monkeypatch.setattr(
        roll_forward,
        "read_to_end",
        lambda settings, topic, starts=(): iter(()) if starts else read_all(settings, topic),
    )
    monkeypatch.setattr(
        worker.roll_forward, "_last_cut", lambda ranges: {"log_ends": {topic: [99] for topic in OUTPUTS}}
    )
    worker.claim()
    assert (app.digest(), row_states(app.backend)) == (digest, rows)
