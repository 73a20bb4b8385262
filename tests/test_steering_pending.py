"""Triggers that were declined, or whose training failed: the trainer makes up for them once nothing is in its way."""

from __future__ import annotations

from dataclasses import replace

import pytest
from steered import SPEC, World, alert, kinds, to_probation, to_shadow

from tidemill.core.loop_spec import DAY_MS, TriggerSpec
from tidemill.core.story import APPROVAL_KEY, DEMAND_KEY, StoryEvent
from tidemill.core.triggers import TriggerFacts, TriggerWatch


def test_trigger_declined_during_a_trial_trains_when_trial_and_cooldown_are_over():
    """The case of config/flights.yaml: a concept alert opens while the scheduled version is in shadow."""
    world = to_shadow(replace(SPEC, cooldown_ms=6 * DAY_MS))  # trained on day 1, in shadow since day 2
    (declined,) = world.tick("concept")
    assert declined.verdict == "m1 is in shadow"
    assert world.tick() == []
    assert kinds(world.judged("worse")) == ["drop"]  # day 5
    assert world.tick() == []
    (train,) = world.tick()  # day 7
    assert (train.kind, train.cause, train.tells) == ("train", f"trigger/concept@{3 * DAY_MS}", "triggered")
    assert train.verdict == "the trigger was declined before: m1 is in shadow"
    assert train.evidence == {"e_value": 200.0, "examples_total": 5_000.0}
    assert kinds(world.tick()) == ["prepare"]
    assert kinds(world.judged("worse")) == ["drop"]
    for _ in range(20):
        assert world.tick() == []  # it is answered
    assert len({told.id for told in world.story}) == len(world.story)


def test_trigger_that_is_made_up_for_meets_the_champion_that_serves():
    """At the tick that takes a version back the champion is not yet the one that the new version would meet."""
    world = to_probation(replace(SPEC, cooldown_ms=0))
    assert kinds(world.judged("open", "concept")) == ["decline"]
    assert kinds(world.judged("better")) == ["rollback"]
    (train,) = world.tick()
    assert (train.kind, train.parent) == ("train", world.roles.champion)


@pytest.mark.parametrize("is_restarted", [False, True])
def test_trigger_whose_training_failed_trains_again_after_each_cooldown_until_there_is_a_version(is_restarted: bool):
    world = World(outcome="failed")
    world.tick("concept")
    trained = []
    for _ in range(9):
        if is_restarted:
            world.restart()
        world.outcome = "failed" if world.day < 6 else "trained"
        trained += [world.day for decision in world.tick() if decision.kind == "train"]
    assert trained == [4, 7]  # the first training was on day 1, the cooldown is three days
    again = [told for told in world.story if told.kind == "triggered"]
    assert {told.cause for told in again} == {f"trigger/concept@{DAY_MS}"}
    assert again[1].verdict == "the training failed before: no"


def test_without_a_cooldown_a_training_that_fails_begins_once_a_tick():
    world = World(replace(SPEC, cooldown_ms=0), outcome="failed")
    assert kinds(world.tick("concept")) == ["train"]
    assert kinds(world.tick()) == ["train"]


def test_refusal_of_the_gate_is_an_answer():
    world = World(replace(SPEC, cooldown_ms=0), outcome="gated")
    assert kinds(world.tick("concept")) == ["train"]
    assert world.tick() == []


def test_triggers_that_one_training_answers_at_once_are_not_made_up_for():
    world = World(replace(SPEC, cooldown_ms=0), outcome="gated")
    assert kinds(world.tick("a", "b", "c")) == ["train", "decline", "decline"]
    assert world.tick() == []


def test_a_newer_trigger_takes_the_place_of_one_that_was_declined():
    world = to_shadow(replace(SPEC, cooldown_ms=0))
    world.judged("open", "concept")
    world.judged("open", "schedule")
    assert kinds(world.judged("worse")) == ["drop"]
    (train,) = world.tick("volume")
    assert train.cause == f"trigger/volume@{6 * DAY_MS}"
    assert kinds(world.tick()) == ["prepare"]
    assert kinds(world.judged("worse")) == ["drop"]
    assert world.tick() == []


def test_trigger_declined_for_few_examples_trains_when_there_are_enough():
    world = World()
    assert kinds(world.tick("concept", examples_total=999)) == ["decline"]
    assert world.tick(examples_total=999) == []
    assert kinds(world.tick(examples_total=1_000)) == ["train"]


def test_people_who_are_declined_ask_again_themselves():
    world = to_shadow(replace(SPEC, cooldown_ms=0))
    world.steering.demand(alert(DEMAND_KEY, 5))
    assert kinds(world.tick()) == ["decline"]
    world.tell(StoryEvent(id="d", kind="declined", time=4 * DAY_MS, cause=f"{APPROVAL_KEY}@7", verdict="no"))
    assert kinds(world.judged("worse")) == ["drop"]
    assert world.tick() == []


def test_demand_that_fails_leaves_the_trigger_of_its_tick_to_be_made_up_for():
    world = World(replace(SPEC, cooldown_ms=0), outcome="failed")
    world.steering.demand(alert(DEMAND_KEY, 5))
    assert kinds(world.tick("concept")) == ["train", "decline"]
    world.steering.demand(alert(DEMAND_KEY, 6))
    (train,) = world.tick()  # one training a tick
    assert train.cause == f"{DEMAND_KEY}@6"
    (train,) = world.tick()
    assert train.cause == f"trigger/concept@{DAY_MS}"


def test_an_alert_that_the_monitor_tells_of_once_is_trained_for_though_the_trainer_was_busy():
    """Monitor and trainer together: a trigger counts as told, whatever the trainer answers."""
    spec = replace(SPEC, cooldown_ms=6 * DAY_MS, any_of=(TriggerSpec(kind="alert", alert_kind="concept"),))
    watch, world = TriggerWatch(spec), to_shadow(spec)
    opened = replace(alert("concept/blend", 3 * DAY_MS), kind="concept")
    decided = []
    for day in range(3, 10):
        trigger = watch.judge(
            TriggerFacts(
                time=day * DAY_MS, champion="", examples_total=5_000, window_start=0, offset_start=0, offset_next=1,
                records=(opened,) if day == 3 else (), open_alerts=(opened,),
            )
        )  # fmt: skip
        assert (trigger is not None) == (day == 3)
        alerts = () if trigger is None else (trigger,)
        told = world.judged("worse") if day == 4 else world.tick(alerts=alerts)
        decided += [(day, one.kind, one.cause) for one in told if one.kind in ("train", "decline")]
    cause = f"trigger/concept@{3 * DAY_MS}"
    assert decided == [(3, "decline", cause), (7, "train", cause)]
