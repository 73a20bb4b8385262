"""An app's past in memory: every record once, in the order of time, with what was known then."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest
from in_memory import HOUR_MS
from in_memory import a_shop as an_app

from tests.memory_kafka import Inputs
from tidemill.apps.backtest_run import BacktestRun
from tidemill.apps.retraining import Promoted, Retraining, RetrainPlan, Shelf
from tidemill.core.features import FeaturePlan
from tidemill.core.loop_spec import MonitorSpec, RetrainSpec
from tidemill.core.merge import Offered
from tidemill.core.records import ExampleColumns, Outcome, Partition
from tidemill.core.spec import AppSpec, BoosterSpec
from tidemill.io.offered import offered
from tidemill.io.wire import decode
from tidemill.models.training_examples import TrainingExamples

DAY_MS = 24 * HOUR_MS
CHUNK = 7
FEW_TREES = BoosterSpec(rounds=5, min_child_weight=1.0, leaf_trees=2)


def a_shop() -> AppSpec:
    return an_app(wait_ms=12 * HOUR_MS)


def lanes_of(inputs: Inputs, chunk: int = CHUNK) -> dict[Partition, Iterator[list[Offered]]]:
    """What producers wrote, in small pieces."""

    def lane(partition: Partition) -> Iterator[list[Offered]]:
        records = inputs.lanes[partition]
        for start in range(0, len(records), chunk):
            yield [offered(record.message, record.offset) for record in records[start : start + chunk]]

    return {partition: lane(partition) for partition in inputs.lanes}


class Past:
    """A run and what it published."""

    def __init__(self, spec: AppSpec, *, keeps_log: bool = False) -> None:
        self.examples: list[ExampleColumns] = []
        self.outputs: dict[str, list[bytes]] = {}
        self.training: TrainingExamples | None = None
        self.shelf = Shelf(FeaturePlan(spec))
        self.run = BacktestRun(
            spec,
            load=self.shelf,
            on_examples=self._hear,
            on_outputs=lambda topic, values: self.outputs.setdefault(topic, []).extend(values),
            keeps_log=keeps_log,
        )

    def rows(self, kind: str) -> list[dict]:
        name = f"{self.run.spec.name}.{kind}s.v1"
        return decode(f"{kind}.v1", self.outputs.get(name, [])).to_pylist()

    def _hear(self, examples: ExampleColumns) -> None:
        self.examples.append(examples)
        if self.training is not None:
            self.training.append(examples)


def a_past(spec: AppSpec, events: int = 40, *, unlabelled: int = 5) -> Inputs:
    """An event an hour with its label two hours later, but the last ones; a reading between them."""
    inputs = Inputs(spec, partitions=2)
    for hour in range(events):
        time = DAY_MS + hour * HOUR_MS
        inputs.add("readings", time + 1, partition=hour % 2, shop="a", reading=float(hour))
        inputs.add(
            "events",
            time + 2,
            partition=hour % 2,
            id=str(hour),
            shop="ab"[hour % 2],
            user=hour,
            amount=float(hour % 10),
        )
        if hour >= 2 and hour - 2 < events - unlabelled:
            inputs.add("outcomes", time + 3, partition=hour % 2, id=str(hour - 2), outcome=int(hour % 10 > 4))
    return inputs


def test_every_record_has_its_outcome_and_what_has_no_label_expires():
    spec = a_shop()
    inputs = a_past(spec)
    past = Past(spec)
    past.run.run(lanes_of(inputs))

    count = past.run.progress.outcomes
    assert past.run.progress.records == sum(len(lane) for lane in inputs.lanes.values())
    assert (count[Outcome.PREDICTION], count[Outcome.EXAMPLE], count[Outcome.EXPIRED]) == (40, 35, 5)


@pytest.mark.parametrize(("batch_records", "span"), [(2_000, None), (3, None), (2_000, 2 * HOUR_MS), (1, 1)])
def test_features_do_not_depend_on_how_the_past_is_cut(batch_records: int, span: int | None):
    spec = replace(a_shop(), batch_records=batch_records, batch_span_ms=span)
    past, whole = Past(spec), Past(a_shop())
    past.run.run(lanes_of(a_past(spec)))
    whole.run.run(lanes_of(a_past(spec)))

    features = [
        {row["id"]: (str(row["numeric"]), row["categories"]) for row in one.rows("prediction")} for one in (past, whole)
    ]
    assert features[0] == features[1]


def test_no_batch_covers_more_event_time_than_declared():
    spec = replace(a_shop(), batch_span_ms=2 * HOUR_MS)
    past = Past(spec)
    times: list[tuple[int, int]] = []
    seen = 0
    past_events = sorted(DAY_MS + hour * HOUR_MS + 2 for hour in range(40))

    def on_batch(progress) -> None:
        nonlocal seen
        scored = progress.outcomes[Outcome.PREDICTION]
        if scored > seen:
            times.append((past_events[seen], past_events[scored - 1]))
        seen = scored

    past.run.run(lanes_of(a_past(spec)), on_batch=on_batch)
    assert seen == 40
    assert all(last - first < 2 * HOUR_MS for first, last in times)


def test_an_event_is_scored_by_what_was_learned_before_its_batch():
    """With a batch for each event, N counts the labels that had come: each example ends in a marker's offset."""
    spec = replace(a_shop(), batch_span_ms=HOUR_MS // 2)
    past = Past(spec)
    past.run.run(lanes_of(a_past(spec, unlabelled=0)))
    n = {row["id"]: row["n"] for row in past.rows("prediction")}
    # At event h the labels of events 0 .. h - 3 came in batches before; that of h - 2 is in the batch with h or after.
    assert [n[str(hour)] for hour in (0, 2, 3, 4, 10)] == [0, 0, 1, 3, 15]


def retrained(spec: AppSpec, plan: RetrainPlan, events: int) -> tuple[Past, list[Promoted], list[str]]:
    past, said = Past(spec), []
    past.training = TrainingExamples(past.run.plan.numeric_names, past.run.plan.category_names)
    retraining = Retraining(past.run, past.shelf, plan, examples=past.training, threads=1, report=said.append)
    past.run.run(lanes_of(a_past(spec, events)))
    return past, retraining.promoted, said


def test_a_model_learns_from_labels_before_its_time_and_serves_after_its_latency():
    spec = replace(a_shop(), booster=FEW_TREES, batch_span_ms=6 * HOUR_MS)
    trained_at, latency = 20 * DAY_MS, 2 * DAY_MS
    past, promoted, _ = retrained(spec, RetrainPlan(first_ms=trained_at, every_ms=5 * DAY_MS, latency_ms=latency), 800)

    assert [one.time_ms for one in promoted] == [trained_at + latency + at * 5 * DAY_MS for at in range(len(promoted))]
    assert len(promoted) >= 2
    first = promoted[0].manifest
    assert first.time_last < trained_at and first.examples == (trained_at - DAY_MS) // HOUR_MS - 2
    versions = ["initial", *(one.manifest.version for one in promoted)]
    starts = [0, *(one.time_ms for one in promoted)]
    for row in past.rows("prediction"):
        expected = versions[sum(start <= row["event_time"] for start in starts[1:])]
        assert row["model_version"] == expected, row["event_time"]
        assert (row["booster"] is None) == (expected == "initial")


def test_too_few_labels_are_said_and_nothing_is_promoted():
    _, promoted, said = retrained(a_shop(), RetrainPlan(first_ms=2 * DAY_MS, every_ms=DAY_MS, times=1), 60)
    assert promoted == []
    assert len(said) == 1 and "TM-5030" in said[0]


def test_a_month_later_is_the_same_day_of_the_next_month():
    plan = RetrainPlan(first_ms=0)
    november, december, january = 1383264000000, 1385856000000, 1388534400000
    assert [plan.following(november), plan.following(december)] == [december, january]


def test_what_is_to_be_done_at_one_time_is_done_in_the_order_of_the_calls():
    past, done = Past(a_shop()), []
    at = 1  # before the first record

    def first() -> None:
        done.append("first")
        past.run.at(at, lambda: done.append("called by the first"))

    past.run.at(at, first)
    past.run.at(at, lambda: done.append("second"))
    past.run.run(lanes_of(a_past(a_shop())))
    assert done == ["first", "second", "called by the first"]


def test_the_same_past_twice_publishes_the_same_bytes():
    spec = replace(a_shop(), booster=FEW_TREES)
    plan = RetrainPlan(first_ms=20 * DAY_MS, every_ms=5 * DAY_MS)
    one, other = retrained(spec, plan, 700)[0], retrained(spec, plan, 700)[0]
    assert one.outputs == other.outputs
    assert Counter(row["model_version"] for row in one.rows("prediction")).keys() > {"initial"}


@pytest.mark.parametrize("batch_records", [5, 2_000])
def test_run_with_a_loop_is_cut_at_its_ticks_however_its_records_arrive(batch_records: int):
    every = 10 * HOUR_MS
    loop = {"retrain": RetrainSpec(), "monitor": MonitorSpec(every_ms=every)}
    spec = replace(a_shop(), batch_records=batch_records, **loop)
    inputs = a_past(spec)
    found = []
    for chunk in (1, 7, 1_000):
        past = Past(spec)
        past.run.run(lanes_of(inputs, chunk))
        found.append(past.outputs)
    assert found[0] == found[1] == found[2]

    slices: dict[int, set[int]] = {}
    for row in past.rows("commit"):
        lane = inputs.lanes[Partition(row["topic"], row["partition"])]
        for record in lane[row["start"] : row["next"]]:
            slices.setdefault(row["batch"], set()).add(-(-record.time // every))
    assert all(len(one) == 1 for one in slices.values())
    assert set().union(*slices.values()) == set(range(3, 8))
