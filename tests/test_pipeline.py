"""What a stream becomes: outputs, outcomes and rows, whatever the batches. No servers; the wire is real."""

from __future__ import annotations

import copy
import datetime
import decimal
import io
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import fastavro
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.in_memory import (
    OUTPUTS,
    App,
    ConstantScorer,
    Machinery,
    Worker,
    a_shop,
    kafka_in_memory,
    row_states,
    sum_of,
)
from tidemill.core.records import Outcome, Partition
from tidemill.core.rows import RowState, unpack_row
from tidemill.io.framing import header_of
from tidemill.io.slices import unpack_slice

READINGS, OUTCOMES, EVENTS = (Partition(name, 0) for name in ("readings", "outcomes", "events"))
MACHINERY = Machinery(a_shop())
SHORT_WAIT = Machinery(a_shop(wait_ms=1_000, allowed_lateness_ms=100, dedup_window_ms=5_000))
SERVED = ("blend", "learner", "booster", "base_rate", "n", "model_version", "numeric", "categories", "flags")
SERVED += ("other", "other_version")
EVENT = {"shop": "s", "user": 1, "amount": 0.1}


@pytest.fixture(scope="module", autouse=True)
def _kafka() -> Iterator[None]:
    with kafka_in_memory():
        yield


def an_app(machinery: Machinery = MACHINERY, partitions: int = 1) -> App:
    return App(machinery=machinery, partitions=partitions)


def served(row: Mapping[str, Any]) -> dict[str, Any]:
    """As bits: NaN is equal to itself."""
    return {name: struct.pack(f"<{len(row[name])}f", *row[name]) if name == "numeric" else row[name] for name in SERVED}


def state_of(app: App, id_: str) -> RowState:
    return unpack_row(app.backend.rows[id_]).state


# One event and its label


@pytest.mark.parametrize("cuts", [[1, 2], [1], []])
def test_event_and_its_label_give_one_prediction_and_one_example_as_served(cuts: list[int]) -> None:
    app = an_app()
    app.inputs.add("readings", 1_000, shop="s", reading=0.1)
    app.inputs.add("events", 2_000, id="a", **EVENT)
    app.inputs.add("outcomes", 5_000, id="a", outcome=1)
    worker = Worker(app, scorer=ConstantScorer(1 / 3, n=17)).claim()
    worker.run_all(cuts)

    [prediction] = app.log.rows("prediction.v1")
    [example] = app.log.rows("example.v1")
    assert served(example) == served(prediction)
    assert (example["kind"], example["id"], example["label"], example["is_learned"]) == ("example", "a", 1, True)
    assert (example["event_time"], example["label_time"]) == (2_000, 5_000)
    assert prediction["numeric"] == pytest.approx([0.1, 1.0, 0.5, 0.1])
    assert (prediction["blend"], prediction["n"], prediction["flags"]) == (1 / 3, 17, [])
    assert app.log.outcomes() == {Outcome.STATE: 1, Outcome.PREDICTION: 1, Outcome.EXAMPLE: 1}
    assert state_of(app, "a") is RowState.JOINED


def test_example_keeps_the_scores_of_its_prediction_though_the_model_moved_on() -> None:
    app = an_app()
    app.inputs.add("events", 1_000, id="a", **EVENT)
    app.inputs.add("readings", 2_000, shop="s", reading=9.0)
    app.inputs.add("outcomes", 3_000, id="a", outcome=0)
    worker = Worker(app, scorer=ConstantScorer(0.2, n=5)).claim()
    event, reading, label = worker.left()
    worker.run([event])
    worker.scorer.probability, worker.scorer.n = 0.9, 50
    worker.run([reading, label])

    [prediction], [example] = app.log.rows("prediction.v1"), app.log.rows("example.v1")
    assert served(example) == served(prediction)
    assert (example["blend"], example["n"]) == (0.2, 5)
    assert app.log.rows("commit.v1")[-1]["n"] == 50


@pytest.mark.parametrize("cuts", [[1], []])
def test_label_that_comes_first_joins_flagged_and_teaches_nothing(cuts: list[int]) -> None:
    app = an_app()
    app.inputs.add("outcomes", 1_000, id="a", outcome=1)
    app.inputs.add("events", 2_000, id="a", **EVENT)
    Worker(app).claim().run_all(cuts)

    [prediction], [example] = app.log.rows("prediction.v1"), app.log.rows("example.v1")
    assert prediction["flags"] == ["label_first"]
    assert served(example) == served(prediction)
    assert (example["is_learned"], example["label_time"]) == (False, 1_000)
    assert app.log.outcomes() == {Outcome.WAITING: 1, Outcome.PREDICTION: 1, Outcome.WAITING_JOINED: 1}
    assert "by_shop.late_12h" not in app.backend.state  # keys name entities
    assert state_of(app, "a") is RowState.JOINED


@pytest.mark.parametrize("cuts", [[1, 2, 3, 4], [2], []])
def test_second_event_and_second_equal_label_are_duplicates(cuts: list[int]) -> None:
    app = an_app()
    for time in (1_000, 1_500):
        app.inputs.add("events", time, id="a", **EVENT)
    for time in (3_000, 3_500):
        app.inputs.add("outcomes", time, id="a", outcome=1)
    app.inputs.add("events", 4_000, id="a", **EVENT)
    Worker(app).claim().run_all(cuts)

    assert len(app.log.rows("prediction.v1")) == len(app.log.rows("example.v1")) == 1
    assert app.log.outcomes() == {
        Outcome.PREDICTION: 1,
        Outcome.EVENT_DUPLICATE: 2,
        Outcome.EXAMPLE: 1,
        Outcome.LABEL_DUPLICATE: 1,
    }


@pytest.mark.parametrize("cuts", [[1, 2], [2], []])
def test_second_and_different_label_is_an_amendment_without_features_and_without_delta(cuts: list[int]) -> None:
    def run(labels: int) -> App:
        app = an_app()
        app.inputs.add("events", 1_000, id="a", **EVENT)
        for place in range(labels):
            app.inputs.add("outcomes", 3_000 + place, id="a", outcome=1 - place)
        Worker(app).claim().run_all(cuts)
        return app

    app = run(2)
    example, amendment = app.log.rows("example.v1")
    assert (example["kind"], example["label"]) == ("example", 1)
    assert (amendment["kind"], amendment["id"], amendment["label"]) == ("amendment", "a", 0)
    assert (amendment["numeric"], amendment["categories"], amendment["is_learned"]) == ([], [], False)
    assert amendment["label_time"] == 3_001
    assert app.log.outcomes() == {Outcome.PREDICTION: 1, Outcome.EXAMPLE: 1, Outcome.AMENDMENT: 1}
    assert app.digest() == run(1).digest()


def test_examples_and_amendments_of_one_batch_stand_in_merged_order() -> None:
    app = an_app()
    for id_ in "ab":
        app.inputs.add("events", 1_000, id=id_, **EVENT)
    for place, (id_, outcome) in enumerate((("a", 1), ("a", 0), ("b", 1), ("b", 0))):
        app.inputs.add("outcomes", 2_000 + place, id=id_, outcome=outcome)
    Worker(app).claim().run_all()

    assert [(row["id"], row["kind"]) for row in app.log.rows("example.v1")] == [
        ("a", "example"),
        ("a", "amendment"),
        ("b", "example"),
        ("b", "amendment"),
    ]


def test_label_that_waited_feeds_the_features_as_its_own_record() -> None:
    def run(label_time: int, cuts: list[int]) -> App:
        app = an_app()
        app.inputs.add("outcomes", label_time, id="a", outcome=1)
        app.inputs.add("events", 2_000, id="a", **EVENT)
        app.inputs.add("events", 9_000, id="b", **EVENT)
        Worker(app).claim().run_all(cuts)
        return app

    before, after = run(1_000, [1, 2]), run(3_000, [1, 2])
    assert before.digest() == after.digest()  # same pane: the time of the label counts, not of the event it joined
    assert [row["numeric"][2] for row in before.log.rows("prediction.v1")] == [0.5, 0.75]


# Windows of event time


def test_prediction_without_label_expires_once_the_group_is_past_its_wait() -> None:
    app = an_app(SHORT_WAIT)
    app.inputs.add("events", 1_000, id="a", **EVENT)
    app.inputs.punctuate(2_101)
    worker = Worker(app).claim()
    worker.run(worker.left())
    assert worker.group_watermark() == 2_101
    [report] = worker.run()

    assert state_of(app, "a") is RowState.EXPIRED
    assert sum_of([report]) == {Outcome.EXPIRED: 1}
    assert report.records == 0
    last = app.log.rows("commit.v1")[-1]
    assert (last["topic"], last["start"], last["next"], last["merge_rank"]) == ("events", 2, 2, -1)
    assert (last["group_watermark"], last["outcomes"]) == (2_101, [("expired", 1)])
    assert app.backend.partitions[EVENTS].outbox == []


def test_prediction_does_not_expire_while_one_partition_is_behind() -> None:
    app = an_app(SHORT_WAIT)
    app.inputs.add("events", 1_000, id="a", **EVENT)
    app.inputs.add("readings", 50_000, shop="s", reading=1.0)
    app.inputs.add("outcomes", 2_100, id="other", outcome=1)
    worker = Worker(app).claim()
    worker.run_all()
    assert state_of(app, "a") is RowState.PENDING


def test_label_after_the_wait_is_an_orphan_before_and_after_expiry() -> None:
    for cuts in ([], [1], [2]):
        app = an_app(SHORT_WAIT)
        app.inputs.add("events", 1_000, id="a", **EVENT)
        app.inputs.add("readings", 2_300, shop="s", reading=1.0)
        app.inputs.add("outcomes", 2_400, id="a", outcome=1)
        Worker(app).claim().run_all(cuts)
        assert app.log.outcomes()[Outcome.ORPHAN] == 1
        assert not app.log.rows("example.v1")


def test_label_whose_event_never_comes_is_orphaned_and_forgotten() -> None:
    app = an_app(SHORT_WAIT)
    app.inputs.add("outcomes", 1_000, id="a", outcome=1)
    app.inputs.punctuate(2_101)
    worker = Worker(app).claim()
    worker.run(worker.left())
    [report] = worker.run()

    assert sum_of([report]) == {Outcome.WAITING_ORPHANED: 1}
    assert app.backend.rows == {} and app.backend.due[OUTCOMES] == {}
    assert app.log.rows("commit.v1")[-1]["topic"] == "outcomes"


def test_row_is_forgotten_after_the_dedup_window_without_an_outcome() -> None:
    app = an_app(SHORT_WAIT)
    app.inputs.add("events", 1_000, id="a", **EVENT)
    app.inputs.add("outcomes", 1_500, id="a", outcome=1)
    app.inputs.punctuate(6_001)
    worker = Worker(app).claim()
    worker.run(worker.left())
    transactions = len(app.log.transactions)
    [report] = worker.run()

    assert app.backend.rows == {}
    assert sum_of([report]) == {}
    assert len(app.log.transactions) == transactions  # nothing to publish: no commit record either


def test_event_behind_its_partition_by_more_than_the_lateness_is_flagged_and_not_learned() -> None:
    app = an_app(SHORT_WAIT)
    for id_, time in (("a", 1_000), ("b", 900), ("c", 899)):
        app.inputs.add("events", time, id=id_, **EVENT)
        app.inputs.add("outcomes", 1_100, id=id_, outcome=1)
    worker = Worker(app).claim()
    records = {record.message.offset(): record for record in worker.left() if record.topic_index == 2}
    worker.run([records[0]])
    worker.run([records[1]])
    worker.run([records[2]])
    worker.run(worker.left())

    flags = {row["id"]: row["flags"] for row in app.log.rows("prediction.v1")}
    assert flags == {"a": [], "b": [], "c": ["late"]}
    assert {row["id"]: row["is_learned"] for row in app.log.rows("example.v1")} == {"a": True, "b": True, "c": False}


# Slices and commit records


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


def test_label_waits_and_joins_whatever_types_its_other_fields_have() -> None:
    spec = a_shop()
    outcomes = spec.topics[1]
    logical = {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}
    more = [
        {"name": "raw", "type": "bytes"},
        {"name": "day", "type": {"type": "int", "logicalType": "date"}},
        {"name": "price", "type": ["null", logical], "default": None},
        {"name": "tags", "type": {"type": "map", "values": "long"}},
        {
            "name": "lines",
            "type": {
                "type": "array",
                "items": {
                    "type": "record",
                    "name": "Line",
                    "fields": [{"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}}],
                },
            },
        },
    ]
    schema = {**outcomes.schema, "fields": [*outcomes.schema["fields"], *more]}
    spec = replace(spec, topics=(spec.topics[0], replace(outcomes, schema=schema), spec.topics[2]))
    app = an_app(Machinery(spec))
    day = datetime.datetime(2013, 1, 1, tzinfo=datetime.UTC)
    label = {
        "id": "a", "outcome": 1, "raw": b"\xff", "day": day.date(), "price": decimal.Decimal("1.50"),
        "tags": {"x": 1}, "lines": [{"at": day}],
    }  # fmt: skip
    value = io.BytesIO()
    fastavro.schemaless_writer(value, fastavro.parse_schema(schema), label)
    app.inputs.send("outcomes", 1_000, header_of(schema) + value.getvalue())
    app.inputs.add("events", 2_000, id="a", **EVENT)
    Worker(app).claim().run_all([1])

    assert app.log.outcomes() == {Outcome.WAITING: 1, Outcome.PREDICTION: 1, Outcome.WAITING_JOINED: 1}


# However the stream is cut


IDS = "abcd"
WINDOW_MS = 900_000  # shorter than every window of MACHINERY, so that no answer hangs on when a row is settled


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


LAW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


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
    """`kept` records survive in an older copy of the store; None: the store is empty and is rebuilt."""
    app = app_of(stream)
    live = Worker(app, scorer=ConstantScorer(0.3, n=4)).claim()
    records = live.left()
    survivor = App(machinery=app.machinery).backend
    if kept is not None:
        live.run(records[:kept])
        survivor = copy.deepcopy(app.backend)
    live.run_all(sorted(before)).run()
    digest, rows, published = app.digest(), row_states(app.backend), {t: app.log.outputs(t) for t in OUTPUTS[:2]}

    app.backend = survivor
    rebuilt = Worker(app).claim()
    assert app.digest() == digest
    assert rebuilt.positions == {place: at for place, (at, _) in app.log.offsets.items()}
    rebuilt.run()
    rebuilt.run()  # what was due is settled now, for a roll-forward leaves it to the first live batches
    assert row_states(app.backend) == rows
    assert {topic: app.log.outputs(topic) for topic in OUTPUTS[:2]} == published
