"""What a claim does: each line of the recovery table, and crashes anywhere without a trace in what is published."""

from __future__ import annotations

import copy
import itertools
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import pytest

from tests.in_memory import App, Machinery, Worker, a_shop, row_states
from tests.memory_kafka import kafka_in_memory
from tidemill.apps.publishing import is_published, offset_metadata
from tidemill.core.ports import Applied, Conflict
from tidemill.core.records import Commit, Output, Partition, Span
from tidemill.errors import FencedError, StateLostError, UnavailableError
from tidemill.io.memory import MemoryBackend, MemoryStore
from tidemill.io.slices import pack_slice

READINGS, OUTCOMES, EVENTS = (Partition(name, 0) for name in ("readings", "outcomes", "events"))
MACHINERY = Machinery(a_shop())
SHORT_WAIT = Machinery(a_shop(wait_ms=1_000, allowed_lateness_ms=100, dedup_window_ms=5_000))
EVENT = {"shop": "s", "user": 1, "amount": 0.5}
FIRST, SECOND = Output("shop.commits.v1", b"k", b"first"), Output("shop.commits.v1", b"k", b"second")


@pytest.fixture(scope="module", autouse=True)
def _kafka() -> Iterator[None]:
    with kafka_in_memory():
        yield


class Claim:
    """A claim of the events' partition with recorded roll-forwards, on a store and a log as the test puts them."""

    def __init__(self) -> None:
        self.app = App(machinery=MACHINERY)
        for place in range(9):
            self.app.inputs.add("events", 1_000 + place, id=f"e{place}", **EVENT)
        self.replays: list[tuple[Mapping[Partition, tuple[int, int]], frozenset[Partition]]] = []
        self.earlier = self.worker()
        self.earlier.claim(EVENTS)
        self.incarnation = str(self.earlier.store.incarnation)

    def worker(self) -> Worker:
        worker = Worker(self.app)
        worker.roll_forward.run = self.replay(worker)  # type: ignore[method-assign]
        return worker

    def replay(self, worker: Worker) -> Any:
        def run(ranges: Mapping[Partition, tuple[int, int]], owned: frozenset[Partition]) -> None:
            self.replays.append((dict(ranges), owned))
            worker.store.commit(Commit(spans={p: Span(start, end, -1, False) for p, (start, end) in ranges.items()}))

        return run

    def apply(self, start: int, end: int, *outputs: Output) -> None:
        """The store applies offsets [start, end) with these outputs."""
        span = Span(start, end, 1_000 + end, False)
        self.earlier.store.commit(Commit(spans={EVENTS: span}, slices={EVENTS: pack_slice(outputs)}))

    def commit(self, offset: int, metadata: str | None = None) -> None:
        """The group's offset."""
        self.app.log.offsets[EVENTS] = (offset, self.incarnation if metadata is None else metadata)

    def take(self) -> int:
        taken = self.worker()
        start = taken.claim(EVENTS).positions[EVENTS]
        mark = taken.store.marks()[EVENTS]
        assert mark.committed == start and mark.applied == start
        assert self.app.backend.partitions[EVENTS].outbox == []
        return start

    @property
    def sent(self) -> list[tuple[list[bytes | None], dict[Partition, int]]]:
        """Values and offsets of every transaction."""
        return [
            ([output.value for output in outputs], {place: at for place, (at, _) in offsets.items()})
            for outputs, offsets in self.app.log.transactions
        ]


def test_new_partition_starts_at_the_beginning_of_the_log() -> None:
    claim = Claim()
    assert claim.take() == 0
    assert claim.sent == [] and claim.replays == []


def test_partition_that_agrees_continues() -> None:
    claim = Claim()
    claim.apply(0, 4, FIRST)
    claim.commit(4)
    assert claim.take() == 4
    assert claim.sent == [] and claim.replays == []


@pytest.mark.parametrize("published", [None, 3])
def test_slices_that_the_store_applied_and_the_group_does_not_know_are_sent_with_the_offset(
    published: int | None,
) -> None:
    claim = Claim()
    if published is None:
        claim.apply(0, 3, FIRST)
    else:
        claim.apply(0, 3, Output("shop.commits.v1", b"k", b"long ago"))
        claim.commit(3)
        claim.apply(3, 4, FIRST)
    claim.apply(3 if published is None else 4, 5, SECOND)
    assert claim.take() == 5
    assert claim.sent == [([b"first", b"second"], {EVENTS: 5})]
    assert claim.app.log.offsets[EVENTS] == (5, claim.incarnation)
    assert claim.take() == 5
    assert len(claim.sent) == 1


def test_slice_without_offsets_that_is_published_is_not_sent_again() -> None:
    claim = Claim()
    claim.apply(0, 4, FIRST)
    claim.commit(4)
    claim.earlier.store.mark_published({EVENTS: 4})
    claim.apply(4, 4, SECOND)
    claim.commit(4, offset_metadata(claim.incarnation, 4, 4, pack_slice([SECOND])))
    assert claim.take() == 4
    assert claim.sent == []


@pytest.mark.parametrize("before", [None, b"another slice"])
def test_slice_without_offsets_that_is_not_published_is_sent_once(before: bytes | None) -> None:
    claim = Claim()
    claim.apply(0, 4, FIRST)
    claim.commit(4, offset_metadata(claim.incarnation, 4, 4, before) if before else None)
    claim.earlier.store.mark_published({EVENTS: 4})
    claim.apply(4, 4, SECOND)
    assert claim.take() == 4
    assert claim.sent == [([b"second"], {EVENTS: 4})]
    offset, metadata = claim.app.log.offsets[EVENTS]
    assert is_published(metadata, offset, 4, 4, pack_slice([SECOND]))
    assert claim.take() == 4
    assert len(claim.sent) == 1


def test_slice_without_offsets_behind_one_with_offsets_goes_in_the_same_transaction() -> None:
    claim = Claim()
    claim.apply(0, 4, FIRST)
    claim.apply(4, 4, SECOND)
    assert claim.take() == 4
    assert claim.sent == [([b"first", b"second"], {EVENTS: 4})]
    assert claim.take() == 4
    assert len(claim.sent) == 1


def test_store_that_went_back_is_rolled_forward() -> None:
    claim = Claim()
    claim.apply(0, 2, FIRST)
    claim.commit(7)
    assert claim.take() == 7
    assert claim.sent == [] and claim.replays == [({EVENTS: (2, 7)}, frozenset({EVENTS}))]


def test_store_that_went_back_by_a_commit_that_moved_no_offset_settles_its_rows_again() -> None:
    claim = Claim()
    claim.apply(0, 4, FIRST)
    older = copy.deepcopy(claim.app.backend)
    claim.apply(4, 4, SECOND)
    claim.commit(4, offset_metadata(claim.incarnation, 4, 4, pack_slice([SECOND])))
    claim.earlier.store.mark_published({EVENTS: 4})
    assert claim.take() == 4 and claim.replays == []
    claim.app.backend = older
    assert claim.take() == 4
    assert claim.sent == [] and claim.replays == [({EVENTS: (4, 4)}, frozenset({EVENTS}))]


def test_store_that_was_emptied_is_rebuilt_from_the_log_under_a_new_incarnation() -> None:
    claim = Claim()
    claim.commit(7)
    claim.app.backend = MemoryBackend()
    assert claim.take() == 7
    assert claim.replays == [({EVENTS: (0, 7)}, frozenset({EVENTS}))]
    assert claim.app.backend.incarnation not in (None, claim.incarnation)
    assert claim.app.backend.lineage == {claim.incarnation}
    assert claim.take() == 7  # the offset still names the earlier incarnation
    assert len(claim.replays) == 1


def test_gap_that_no_slice_covers_stops_and_publishes_nothing() -> None:
    claim = Claim()
    claim.apply(0, 4, FIRST)
    claim.earlier.store.mark_published({EVENTS: 4})
    claim.commit(2)
    with pytest.raises(StateLostError, match=r"TM-4202 events\[0\]"):
        claim.take()
    assert claim.sent == [] and claim.replays == []


def test_offset_of_another_store_stops() -> None:
    claim = Claim()
    claim.apply(0, 4, FIRST)
    claim.commit(4, "another")
    with pytest.raises(StateLostError, match="TM-4201"):
        claim.take()
    assert claim.sent == [] and claim.replays == []


def test_claim_fences_script_and_transaction_of_the_owner_before() -> None:
    claim = Claim()
    claim.take()
    with pytest.raises(FencedError, match="TM-4101"):
        claim.apply(0, 4, FIRST)
    with pytest.raises(FencedError, match="TM-4010"):
        claim.earlier.publishing.publish_at({EVENTS: [FIRST]}, {}, None)
    assert claim.sent == []


# Crashes


class Crash(Exception):
    """The process ends here."""


class Unreliable:
    """A store whose answers may be lost: before the request takes effect, or after it."""

    def __init__(self, store: MemoryStore, chance: random.Random) -> None:
        self._store = store
        self._chance = chance

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def commit(self, commit: Commit) -> Applied | Conflict:
        if self._chance.random() < 0.05:
            raise UnavailableError("TM-3001", "the request was lost")
        result = self._store.commit(commit)
        if self._chance.random() < 0.05:
            raise UnavailableError("TM-3001", "the answer was lost")
        return result


def a_stream(seed: int) -> App:
    """Events and labels of some ids, early, late, twice or never, with context and poison, on two partitions each."""
    chance = random.Random(seed)
    app = App(machinery=SHORT_WAIT, partitions=2)
    for time in sorted(chance.sample(range(1_000, 4_000), 30)):
        topic = chance.choice(("readings", "outcomes", "outcomes", "events", "events", "poison"))
        partition = chance.randrange(2)
        if topic == "poison":
            app.inputs.send(chance.choice(("outcomes", "events")), time, b"?", partition=partition)
        else:
            id_ = f"e{chance.randrange(8)}"
            fields = {"id": id_, "shop": chance.choice("st"), "reading": 1.5, "outcome": time % 2, "amount": 0.5}
            app.inputs.add(topic, time, partition=partition, **fields)
    app.inputs.punctuate(50_000)
    return app


def contents(app: App) -> dict[str, Any]:
    """What is left when all is done, without what may differ: order across batches, names of workers and batches."""
    return {
        "features": app.digest(),
        "rows": row_states(app.backend),
        "predictions": sorted(
            (row["id"], row["topic"], row["partition"], row["offset"]) for row in app.log.rows("prediction.v1")
        ),
        "labels": sorted(
            (row["kind"], row["id"], row["label"], row["label_time"]) for row in app.log.rows("example.v1")
        ),
        "letters": Counter(output for name in ("outcomes.dlq", "events.dlq") for output in app.log.outputs(name)),
        "outcomes": app.log.outcomes(),
    }


def cuts_of(app: App) -> list[int]:
    """Places that every run cuts at, so that rows fall due in the same batches; each crash adds its own."""
    return [0, 6, 13, 21, len(app.inputs.merged(dict.fromkeys(app.partitions, 0)))]


@cache
def undisturbed(seed: int) -> dict[str, Any]:
    app = a_stream(seed)
    live(Worker(app), random.Random(seed), app)
    return contents(app)


def live(worker: Worker, chance: random.Random, app: App) -> None:
    """From the claim to the end of the stream. The group watermark of a record is a function of the stream alone."""
    worker.claim()
    everything = app.inputs.merged(dict.fromkeys(app.partitions, 0))
    cuts = cuts_of(app)
    for start, stop in itertools.pairwise(cuts):
        watermark = everything[start].time - 1
        left = {(record.topic_index, record.partition, record.offset) for record in worker.left()}
        part = [record for record in everything[start:stop] if (record.topic_index, *record[2:4]) in left]
        while part:
            size = chance.randint(1, len(part))
            worker.run(part[:size], group_watermark=watermark)
            part = part[size:]
    for _ in range(2):
        worker.run()


def killed_somewhere(app: App, chance: random.Random, risk: float) -> Worker:
    """A worker that ends at a random point, or hangs there and goes on when another one has taken over."""

    def failpoint(name: str) -> None:
        if chance.random() >= risk:
            return
        if chance.random() < 0.7:
            raise Crash(name)
        Worker(app).claim()

    worker = Worker(app, store=lambda store: Unreliable(store, chance) if risk else store, failpoint=failpoint)
    publish = worker.publishing.publish_at

    def publish_or_not(
        outputs: Mapping[Partition, Sequence[Output]], offsets: Mapping[Partition, tuple[int, str]], metadata: object
    ) -> None:
        if chance.random() < risk:
            raise UnavailableError("TM-3014", "the transaction was not committed")
        publish(outputs, offsets, metadata)
        if chance.random() < risk:
            raise UnavailableError("TM-3014", "the transaction was committed, its answer was lost")

    worker.publishing.publish_at = publish_or_not  # type: ignore[method-assign]
    return worker


@pytest.mark.parametrize("seed", range(150))
def test_crashes_anywhere_leave_no_trace(seed: int) -> None:
    print(f"seed={seed}")
    app, chance = a_stream(seed), random.Random(seed)
    crashes = 0
    while True:
        try:
            live(killed_somewhere(app, chance, risk=0.12 if crashes < 12 else 0.0), chance, app)
            break
        except (Crash, UnavailableError, FencedError):
            crashes += 1

    found, expected = contents(app), undisturbed(seed)
    assert found == expected
    assert len({id_ for id_, *_ in found["predictions"]}) == len(found["predictions"])
    ends: Counter[Partition] = Counter()
    for row in app.log.rows("commit.v1"):
        place = Partition(row["topic"], row["partition"])
        assert row["start"] == ends[place]
        ends[place] = row["next"]
    assert ends == {place: app.inputs.end(place) for place in app.partitions}
    assert all(not record.outbox and record.applied == record.committed for record in app.backend.partitions.values())


def test_a_partition_is_suspected_where_its_owner_stood_still_before_records_and_not_where_there_were_none() -> None:
    app = App(machinery=MACHINERY)
    app.inputs.add("events", 1_000, id="e", **EVENT)
    Worker(app).claim()
    suspected: list[Sequence[Partition]] = []
    again = Worker(app)
    again.claims._suspect = lambda partitions, bounds: suspected.append(partitions)
    again.claim()
    assert suspected == [[EVENTS]]
