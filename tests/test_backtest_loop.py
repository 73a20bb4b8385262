"""The whole loop in memory: drift is noticed, a model trained, tried, promoted; and twice the same."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from in_memory import HOUR_MS
from in_memory import a_shop as an_app
from test_backtest_run import FEW_TREES, Past, lanes_of

from tests.memory_kafka import Inputs
from tidemill.apps.backtest_loop import MemoryLoop
from tidemill.core.loop_spec import MonitorSpec, RetrainSpec, RolloutSpec, TriggerSpec
from tidemill.core.roles import INITIAL
from tidemill.core.spec import AppSpec
from tidemill.errors import ConfigError
from tidemill.models.training_examples import TrainingExamples

DAY_MS = 24 * HOUR_MS
EVENTS_A_DAY = 48
INVERTED = range(40, 50)  # days in which labels say the opposite
DAYS = 70


def a_spec() -> AppSpec:
    every = TriggerSpec(kind="schedule", every_ms=12 * DAY_MS)
    concept = TriggerSpec(kind="alert", alert_kind="concept")
    return replace(
        an_app(wait_ms=12 * HOUR_MS),
        booster=replace(FEW_TREES, rounds=20),
        monitor=MonitorSpec(
            window_ms=3 * DAY_MS, reference_ticks=8, average_run_length=60, quiet_ms=6 * DAY_MS, cooldown_ms=2 * DAY_MS
        ),
        retrain=RetrainSpec(
            any_of=(concept, every),
            examples_min=300,
            cooldown_ms=4 * DAY_MS,
            rollout=RolloutSpec(examples_min=50, examples_max=400, margin=0.1, probation_examples=100),
        ),
    )


def a_past(spec: AppSpec) -> Inputs:
    """Nine of ten labels follow the amount, but for ten days, in which they say the opposite."""
    inputs = Inputs(spec, partitions=2)
    random = np.random.default_rng(5)
    for at in range(DAYS * EVENTS_A_DAY):
        time = 100 * DAY_MS + at * DAY_MS // EVENTS_A_DAY
        amount = float(random.integers(10))
        inputs.add("events", time, partition=at % 2, id=str(at), shop="ab"[at % 2], user=at, amount=amount)
        outcome = (amount > 4) != (random.random() < 0.1) != (at // EVENTS_A_DAY in INVERTED)
        inputs.add("outcomes", time + HOUR_MS, partition=at % 2, id=str(at), outcome=int(outcome))
    return inputs


def looped(spec: AppSpec, *, batch_records: int = 500, chunk: int = 50) -> tuple[Past, MemoryLoop, list[str]]:
    spec = replace(spec, batch_records=batch_records)
    past, lines = Past(spec, keeps_log=True), []
    past.training = TrainingExamples(past.run.plan.numeric_names, past.run.plan.category_names)
    loop = MemoryLoop(past.run, past.shelf, examples=past.training, threads=1, report=lines.append)
    hear = past.run.log._on_examples
    past.run.log._on_examples = lambda examples: (hear(examples), loop.on_examples(examples))
    tell = past.run.log._on_outputs
    past.run.log._on_outputs = lambda topic, values: (tell(topic, values), loop.on_outputs(topic, values))
    past.run.run(lanes_of(a_past(spec), chunk))
    return past, loop, lines


@pytest.fixture(scope="module")
def told() -> tuple[Past, MemoryLoop, list[str]]:
    return looped(a_spec())


def test_inverted_labels_are_alarmed_once_and_resolved_once(told):
    _, loop, _ = told
    concept = [alert for tick in loop.ticks for alert in tick.alerts if alert.kind == "concept"]
    events = Counter(alert.event for alert in concept)
    assert (events["opened"], events["resolved"]) == (1, 1)
    opened = concept[0].time // DAY_MS - 100
    assert INVERTED.start < opened <= INVERTED.start + 5


def test_every_step_of_a_version_has_its_cause_and_comes_in_its_turn(told):
    _, loop, _ = told
    triggers = {alert.id for tick in loop.ticks for alert in tick.alerts if alert.kind == "trigger"}
    promoted = [event for event in loop.story if event.kind == "promoted"]
    assert promoted and promoted[0].parent == INITIAL
    for event in promoted:
        of_version = [each for each in loop.story if each.version == event.version and each.time <= event.time]
        assert [each.kind for each in of_version] == ["trained", "shadow", "promoted"]
        assert {each.cause for each in of_version} <= triggers
        assert of_version[1].time >= of_version[0].time + a_spec().retrain.latency_ms, "training takes its time"
        assert event.evidence["lower"] > -a_spec().retrain.rollout.margin


def test_what_serves_is_what_the_story_says(told):
    past, loop, _ = told
    served = [event.version for event in loop.story if event.kind in ("promoted", "rolled_back")]
    rows = past.rows("prediction")
    assert list(dict.fromkeys(row["model_version"] for row in rows)) == list(dict.fromkeys([INITIAL, *served]))
    shadowed = {row["other_version"] for row in rows} - {""}
    assert shadowed >= {event.version for event in loop.story if event.kind == "shadow"}


@pytest.mark.parametrize(("batch_records", "chunk"), [(500, 7), (500, 999)])
def test_the_story_does_not_depend_on_how_records_arrive(told, batch_records: int, chunk: int):
    past, loop, lines = told
    again, other, said = looped(a_spec(), batch_records=batch_records, chunk=chunk)
    assert said == lines and other.story == loop.story
    assert other.ticks == loop.ticks
    assert again.outputs == past.outputs


def test_an_app_without_retrain_has_no_loop():
    with pytest.raises(ConfigError, match="TM-1812"):
        looped(replace(a_spec(), retrain=None))
