"""The order of a cycle, and what it does when another worker is in the way."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import pytest

from tests.in_memory import App, ConstantScorer, Machinery, Worker, a_shop, sum_of
from tests.memory_kafka import kafka_in_memory
from tidemill.core.ports import Applied, Conflict
from tidemill.core.records import Commit, Mark, Outcome, Partition, Reads, StateView
from tidemill.core.rows import RowState, unpack_row
from tidemill.errors import FencedError
from tidemill.io.memory import MemoryStore

READINGS, OUTCOMES, EVENTS = (Partition(name, 0) for name in ("readings", "outcomes", "events"))
MACHINERY = Machinery(a_shop())
SHORT_WAIT = Machinery(a_shop(wait_ms=1_000, allowed_lateness_ms=100, dedup_window_ms=5_000))
EVENT = {"shop": "s", "user": 1, "amount": 0.5}


@pytest.fixture(scope="module", autouse=True)
def _kafka() -> Iterator[None]:
    with kafka_in_memory():
        yield


class Watched:
    """A store whose calls are told before they are made; `lock` makes each of them whole for threads."""

    lock = threading.Lock()

    def __init__(self, store: MemoryStore, tell: Callable[[str], None]) -> None:
        self._store = store
        self._tell = tell

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def read(self, reads: Reads) -> StateView:
        self._tell("read")
        with self.lock:
            return self._store.read(reads)

    def commit(self, commit: Commit) -> Applied | Conflict:
        self._tell("commit")
        with self.lock:
            return self._store.commit(commit)

    def mark_published(self, offsets_next: Mapping[Partition, int]) -> Mapping[Partition, Mark]:
        self._tell("mark")
        with self.lock:
            return self._store.mark_published(offsets_next)


def an_app(machinery: Machinery = MACHINERY) -> App:
    return App(machinery=machinery)


def watched(app: App, tell: Callable[[str], None], **more: Any) -> Worker:
    return Worker(app, store=lambda store: Watched(store, tell), **more)


def test_cycle_folds_reads_steps_commits_publishes_marks_in_this_order() -> None:
    calls: list[str] = []

    class Scorer(ConstantScorer):
        def score(self, features: Any, ids: Any) -> Any:
            calls.append("step")
            return super().score(features, ids)

    app = an_app()
    app.inputs.add("events", 1_000, id="a", **EVENT)
    fold = partial(calls.append, "fold")
    worker = watched(app, calls.append, scorer=Scorer(), failpoint=calls.append, fold=fold).claim()
    publish = worker.publishing.publish
    worker.publishing.publish = lambda *each: (calls.append("publish"), publish(*each))  # type: ignore[method-assign]
    calls.clear()
    [report] = worker.run(worker.left())

    assert calls == ["F1", "fold", "read", "step", "F2", "commit", "F4", "publish", "F8", "mark"]
    assert set(report.seconds_by_stage) == {"fold", "read", "step", "commit", "publish", "mark"}
    assert report.marks[EVENTS] == Mark(app.backend.partitions[EVENTS].owner, 1, 1, 1_000, False)


def test_empty_turn_commits_nothing() -> None:
    app = an_app()
    app.inputs.add("events", 1_000, id="a", **EVENT)
    calls: list[str] = []
    worker = watched(app, calls.append).claim()
    calls.clear()
    [report] = worker.run()
    assert calls == ["read"]
    assert report.records == 0 and not report.outcome.commit.spans and not app.log.transactions


def test_batch_that_was_taken_away_commits_nothing() -> None:
    app = an_app()
    app.inputs.add("events", 1_000, id="a", **EVENT)
    worker = Worker(app, is_current=lambda: False).claim()
    with pytest.raises(FencedError, match="TM-4001"):
        worker.run(worker.left())
    assert not app.backend.rows and not app.log.transactions


def test_batch_that_another_worker_claimed_meanwhile_publishes_nothing() -> None:
    app = an_app()
    app.inputs.add("events", 1_000, id="a", **EVENT)
    worker = Worker(app).claim()
    Worker(app, slot="1").claim()
    with pytest.raises(FencedError, match="TM-4101"):
        worker.run(worker.left())
    assert not app.backend.rows and not app.log.transactions


def test_conflict_reads_again_and_recomputes() -> None:
    app = an_app()
    app.inputs.add("events", 1_000, id="a", **EVENT)
    app.inputs.add("outcomes", 1_500, id="a", outcome=1)
    labels = Worker(app, slot="1").claim(OUTCOMES)
    calls: list[str] = []

    def interfere(call: str) -> None:
        calls.append(call)
        if call == "commit" and calls.count("commit") == 1:
            labels.run(labels.left())

    events = watched(app, interfere).claim(EVENTS)
    calls.clear()
    [report] = events.run(events.left())

    assert calls == ["read", "commit", "read", "commit", "mark"]
    assert sum_of([report]) == {Outcome.PREDICTION: 1, Outcome.WAITING_JOINED: 1}
    assert [row["id"] for row in app.log.rows("example.v1")] == ["a"]


def test_three_conflicts_cut_the_batch_before_the_first_contested_record() -> None:
    app = an_app()
    for place, id_ in enumerate("abcd"):
        app.inputs.add("events", 1_000 + place, id=id_, **EVENT)
    commits: list[list[str]] = []

    class Contested(Watched):
        """Commits with `c` meet another worker three times."""

        def commit(self, commit: Commit) -> Applied | Conflict:
            commits.append(sorted(commit.rows))
            return Conflict(("c",)) if "c" in commit.rows and len(commits) <= 3 else super().commit(commit)

    worker = Worker(app, store=lambda store: Contested(store, lambda call: None)).claim()
    first, second = worker.run(worker.left())

    assert commits == [["a", "b", "c", "d"]] * 3 + [["a", "b"], ["c", "d"]]
    assert (first.records, second.records) == (2, 2)
    assert first.outcome.commit.spans[EVENTS][:2] == (0, 2) and second.outcome.commit.spans[EVENTS][:2] == (2, 4)
    assert [row["id"] for row in app.log.rows("prediction.v1")] == list("abcd")


def test_conflicts_on_the_first_record_are_tried_until_they_end() -> None:
    app = an_app()
    app.inputs.add("events", 1_000, id="a", **EVENT)
    left = iter([True] * 7)

    class Contested(Watched):
        def commit(self, commit: Commit) -> Applied | Conflict:
            return Conflict(("a",)) if next(left, False) else super().commit(commit)

    worker = Worker(app, store=lambda store: Contested(store, lambda call: None)).claim()
    [report] = worker.run(worker.left())
    assert report.records == 1 and len(app.log.rows("prediction.v1")) == 1


def published_late(app: App) -> Worker:
    """A worker of the events that stops between script and transaction."""

    def stop(name: str) -> None:
        if name == "F4":
            raise InterruptedError

    worker = Worker(app, slot="1", failpoint=stop).claim(EVENTS)
    with pytest.raises(InterruptedError):
        worker.run(worker.left())
    return worker


def test_label_of_an_unpublished_prediction_waits_and_what_was_before_it_goes_ahead() -> None:
    app = an_app()
    app.inputs.add("events", 1_000, id="a", **EVENT)
    app.inputs.add("outcomes", 1_400, id="x", outcome=1)
    app.inputs.add("outcomes", 1_500, id="a", outcome=1)
    app.inputs.add("outcomes", 1_600, id="y", outcome=1)
    published_late(app)
    reads = itertools.count(1)

    def publish_at_last(call: str) -> None:
        # The first read finds the block, the second commits the head; then the tail asks until the owner has published.
        if call == "read" and next(reads) == 4:
            assert [row["outcomes"] for row in app.log.rows("commit.v1")] == [[("waiting", 1)]]
            Worker(app, slot="1").claim(EVENTS)

    labels = watched(app, publish_at_last).claim(OUTCOMES)
    head, tail = labels.run(labels.left())

    assert (head.records, tail.records) == (1, 2)
    assert sum_of([tail]) == {Outcome.EXAMPLE: 1, Outcome.WAITING: 1}
    assert next(reads) == 5
    predicted = app.log.topics["shop.predictions.v1"][0]
    assert predicted is not None and predicted.key == b"a"
    names = [output.topic for outputs, _ in app.log.transactions for output in outputs]
    assert names.index("shop.predictions.v1") < names.index("shop.examples.v1")


def test_revoke_ends_the_wait_for_an_unpublished_prediction() -> None:
    app = an_app()
    app.inputs.add("events", 1_000, id="a", **EVENT)
    app.inputs.add("outcomes", 1_500, id="a", outcome=1)
    published_late(app)
    answers = iter([True, True, True])
    labels = Worker(app, is_current=lambda: next(answers, False)).claim(OUTCOMES)
    with pytest.raises(FencedError, match="TM-4001"):
        labels.run(labels.left())
    assert not app.log.rows("example.v1") and next(answers, None) is None


def test_own_prediction_of_an_earlier_batch_is_joined_at_once() -> None:
    app = an_app()
    app.inputs.add("events", 1_000, id="a", **EVENT)
    app.inputs.add("outcomes", 1_500, id="a", outcome=1)
    worker = Worker(app).claim()
    for record in worker.left():
        worker.run([record])
    assert len(app.log.rows("example.v1")) == 1


@pytest.mark.parametrize("due", ["event", "label", "both"])
def test_rows_fall_due_in_both_parts_of_a_cut_batch(due: str) -> None:
    """A part may hold no record of the partition whose row is due."""
    app = an_app(SHORT_WAIT)
    if due != "label":
        app.inputs.add("events", 1_000, id="old", **EVENT)
    if due != "event":
        app.inputs.add("outcomes", 1_000, id="never", outcome=1)
    app.inputs.add("readings", 9_000, shop="s", reading=1.0)
    app.inputs.add("events", 9_000, id="a", **EVENT)
    app.inputs.add("outcomes", 9_001, id="b", outcome=1)
    app.inputs.add("readings", 9_002, shop="s", reading=1.0)
    conflicts = iter([True] * 3)

    class Contested(Watched):
        def commit(self, commit: Commit) -> Applied | Conflict:
            return Conflict(("b",)) if "b" in commit.rows and next(conflicts, False) else super().commit(commit)

        def read(self, reads: Reads) -> StateView:
            # Other rows fall due while the batch is worked on: one at a time is what a small limit answers.
            return super().read(Reads(reads.state_keys, reads.ids, reads.due_partitions, reads.due_before, 1))

    worker = Worker(app, store=lambda store: Contested(store, lambda call: None)).claim()
    early = [record for record in worker.left() if record.time < 9_000]
    worker.run(early)
    reports = worker.run(worker.left(), group_watermark=9_000)

    assert [report.records for report in reports] == [2, 2]
    expected = Counter({"event": [Outcome.EXPIRED], "label": [Outcome.WAITING_ORPHANED]}.get(due, []))
    expected = expected or Counter([Outcome.EXPIRED, Outcome.WAITING_ORPHANED])
    sums = sum_of(reports)
    assert {outcome: sums[outcome] for outcome in expected} == expected
    ends: Counter[Partition] = Counter()
    for row in app.log.rows("commit.v1"):
        assert row["start"] == ends[Partition(row["topic"], row["partition"])]
        ends[Partition(row["topic"], row["partition"])] = row["next"]


# Two workers race for an event and its label


POINTS = ("F1", "read", "F2", "commit", "F4", "F8", "mark")


@pytest.mark.parametrize(("first", "second"), [("events", "outcomes"), ("outcomes", "events")])
@pytest.mark.parametrize("point", POINTS)
def test_event_and_label_of_two_workers_join_once_wherever_one_overtakes_the_other(
    first: str, second: str, point: str
) -> None:
    """The second worker runs its whole turn while the first one stands at `point`; where it would have to wait for the
    first one to publish, it is told that its partitions are gone, and tries again later."""
    app = an_app()
    app.inputs.add("events", 1_000, id="a", **EVENT)
    app.inputs.add("outcomes", 1_500, id="a", outcome=1)
    is_open = [True]
    asked = itertools.count()
    other = Worker(app, slot="1", is_current=lambda: not is_open[0] or next(asked) < 2).claim(Partition(second, 0))

    def overtake(name: str) -> None:
        if name == point and is_open[0] and worker.positions:
            try:
                other.run(other.left())
            except FencedError:
                assert (first, point) in {("events", "F4"), ("events", "F8"), ("events", "mark")}
            is_open[0] = False

    worker = watched(app, overtake, failpoint=overtake)
    worker.claim(Partition(first, 0))
    worker.run(worker.left())
    if other.left():
        other.run(other.left())

    assert not is_open[0]
    assert [row["id"] for row in app.log.rows("prediction.v1")] == ["a"]
    assert [row["id"] for row in app.log.rows("example.v1")] == ["a"]
    assert unpack_row(app.backend.rows["a"]).state is RowState.JOINED
    joined = app.log.outcomes()
    assert joined[Outcome.EXAMPLE] + joined[Outcome.WAITING_JOINED] == 1


def test_threads_that_race_join_every_event_once() -> None:
    app = an_app()
    count = 60
    for place in range(count):
        app.inputs.add("events", 1_000 + place, id=f"e{place}", **EVENT)
        app.inputs.add("outcomes", 1_000 + place, id=f"e{place}", outcome=place % 2)
    workers = [watched(app, lambda call: None, slot=str(n)) for n in range(2)]
    workers[0].claim(EVENTS)
    workers[1].claim(OUTCOMES)
    errors: list[BaseException] = []

    def work(worker: Worker) -> None:
        try:
            while left := worker.left():
                worker.run(left[:7])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(worker,), daemon=True) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not errors and not any(thread.is_alive() for thread in threads)
    everything = [f"e{place}" for place in range(count)]
    assert sorted(row["id"] for row in app.log.rows("prediction.v1")) == sorted(everything)
    assert sorted(row["id"] for row in app.log.rows("example.v1")) == sorted(everything)
