"""What a stream becomes: outputs, outcomes and rows, record by record. No servers; the wire is real."""

from __future__ import annotations

import datetime
import decimal
import io
import struct
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import fastavro
import pytest

from tests.in_memory import App, ConstantScorer, Machinery, Worker, a_shop, sum_of
from tests.memory_kafka import kafka_in_memory
from tests.streams_in_memory import EVENT, an_app
from tidemill.core.records import Outcome, Partition
from tidemill.core.rows import RowState, unpack_row
from tidemill.io.framing import header_of

OUTCOMES, EVENTS = (Partition(name, 0) for name in ("outcomes", "events"))
SHORT_WAIT = Machinery(a_shop(wait_ms=1_000, allowed_lateness_ms=100, dedup_window_ms=5_000))
SERVED = ("blend", "learner", "booster", "base_rate", "n", "model_version", "numeric", "categories", "flags")
SERVED += ("other", "other_version")


@pytest.fixture(scope="module", autouse=True)
def _kafka() -> Iterator[None]:
    with kafka_in_memory():
        yield


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
