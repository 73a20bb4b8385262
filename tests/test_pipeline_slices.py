"""Where outputs stand: in the slice of the partition of their cause, behind them a record of what was committed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from tests.in_memory import Worker, sum_of
from tests.memory_kafka import kafka_in_memory
from tests.streams_in_memory import EVENT, an_app
from tidemill.core.records import Outcome, Partition
from tidemill.io.slices import unpack_slice


@pytest.fixture(scope="module", autouse=True)
def _kafka() -> Iterator[None]:
    with kafka_in_memory():
        yield


def test_dead_letter_lands_in_the_slice_of_its_partition_with_its_headers() -> None:
    app = an_app(partitions=2)
    app.inputs.send("events", 1_000, b"rubbish", partition=1, key=b"key", headers=[("trace", b"7")])
    app.inputs.add("events", 1_000, id="a", **EVENT)
    worker = Worker(app).claim()
    [report] = worker.run(worker.left())

    slice_ = unpack_slice(report.outcome.commit.slices[Partition("events", 1)])
    letter, commit = slice_
    assert (letter.topic, letter.key, letter.value, letter.timestamp) == ("events.dlq", b"key", b"rubbish", 1_000)
    headers = dict(letter.headers)
    assert headers["trace"] == b"7" and headers["tidemill.dlq.code"] == b"TM-2004"
    assert (headers["__streams.errors.partition"], headers["__streams.errors.offset"]) == (b"1", b"0")
    assert commit.topic == "shop.commits.v1"
    assert app.log.outputs("events.dlq") == [letter]
    assert report.dead_letter_codes == ["TM-2004"]
    assert sum_of([report]) == {Outcome.PREDICTION: 1, Outcome.EVENT_DEAD_LETTER: 1}


@pytest.mark.parametrize(
    ("topic", "outcome"),
    [
        ("readings", Outcome.CONTEXT_DEAD_LETTER),
        ("outcomes", Outcome.LABEL_DEAD_LETTER),
        ("events", Outcome.EVENT_DEAD_LETTER),
    ],
)
def test_dead_letter_is_counted_by_the_role_of_its_topic(topic: str, outcome: Outcome) -> None:
    app = an_app()
    app.inputs.send(topic, 1_000, None)
    Worker(app).claim().run_all()
    assert app.log.outcomes() == {outcome: 1}


def test_every_output_stands_in_the_slice_of_the_partition_of_its_cause() -> None:
    app = an_app(partitions=2)
    for number in (0, 1):
        app.inputs.add("events", 1_000, partition=number, id=f"e{number}", **EVENT)
        app.inputs.add("outcomes", 2_000, partition=1 - number, id=f"e{number}", outcome=1)
    app.inputs.add("outcomes", 3_000, partition=0, id="first", outcome=1)
    app.inputs.add("events", 4_000, partition=1, id="first", **EVENT)
    worker = Worker(app).claim()
    [report] = worker.run(worker.left())

    def outputs(topic: str, partition: int) -> list[tuple[str, bytes | None]]:
        packed = report.outcome.commit.slices[Partition(topic, partition)]
        return [(one.topic.split(".")[1], one.key) for one in unpack_slice(packed)]

    assert outputs("events", 0) == [("predictions", b"e0"), ("commits", b"events[0]")]
    # The event applies the label that waited for it, so the example is the event's.
    assert outputs("events", 1) == [
        ("predictions", b"e1"),
        ("predictions", b"first"),
        ("examples", b"first"),
        ("commits", b"events[1]"),
    ]
    assert outputs("outcomes", 0) == [("examples", b"e1"), ("commits", b"outcomes[0]")]
    assert outputs("outcomes", 1) == [("examples", b"e0"), ("commits", b"outcomes[1]")]


def test_commit_records_tile_the_partitions_and_their_counts_are_the_records() -> None:
    app = an_app(partitions=2)
    for place in range(12):
        partition = place % 2
        app.inputs.add("events", 1_000 + place, partition=partition, id=f"e{place}", **EVENT)
        app.inputs.add("outcomes", 5_000 + place, partition=1 - partition, id=f"e{place}", outcome=place % 2)
        if place % 3 == 0:
            app.inputs.skip("events", 2, partition)
            app.inputs.send("outcomes", 5_000 + place, b"?", partition=partition)
    Worker(app).claim().run_all([3, 4, 11, 20])

    ends: Counter[Partition] = Counter()
    counted: Counter[Partition] = Counter()
    for row in app.log.rows("commit.v1"):
        place = Partition(row["topic"], row["partition"])
        assert row["start"] == ends[place]
        ends[place] = row["next"]
        counted[place] += sum(count for _, count in row["outcomes"])
    lanes = app.inputs.lanes
    assert counted == {place: len(lane) for place, lane in lanes.items() if lane}
    assert ends == {place: lane[-1].offset + 1 for place, lane in lanes.items() if lane}
    assert {place: at for place, (at, _) in app.log.offsets.items()} == ends


def test_two_records_of_one_batch_number_share_it_and_numbers_count_up() -> None:
    app = an_app()
    app.inputs.add("events", 1_000, id="a", **EVENT)
    app.inputs.add("readings", 1_000, shop="s", reading=1.0)
    app.inputs.add("outcomes", 2_000, id="a", outcome=1)
    Worker(app).claim().run_all([2])
    assert [(row["topic"], row["batch"], row["merge_rank"]) for row in app.log.rows("commit.v1")] == [
        ("events", 0, 1),
        ("readings", 0, 0),
        ("outcomes", 1, 0),
    ]


def test_step_is_a_function_of_its_arguments() -> None:
    app = an_app()
    app.inputs.add("events", 1_000, id="a", **EVENT)
    app.inputs.add("outcomes", 2_000, id="a", outcome=1)
    worker = Worker(app).claim()
    turn = worker.turn(worker.left())
    pipeline = app.machinery.pipeline
    reads = pipeline.reads(turn)
    view = worker.store.read(reads)
    assert pipeline.step(turn, reads, view, worker.scorer) == pipeline.step(turn, reads, view, worker.scorer)
