"""The trainer's decisions: one version on trial, every step with its cause, and the same after a restart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from steered import SPEC, TICK, World, alert, kinds, to_probation, to_shadow

from tidemill.core.loop_spec import DAY_MS, RolloutSpec
from tidemill.core.roles import INITIAL, Roles
from tidemill.core.steering import LEARNER_GUARD, Steering
from tidemill.core.story import DEMAND_KEY, StoryEvent
from tidemill.core.ticks import RolloutState, Verdict


def test_trigger_trains_and_a_better_version_comes_to_serve_with_its_cause():
    world = to_probation()
    assert kinds(world.judged("undecided")) == ["drop"]
    assert world.roles == Roles(champion="m1", parent=INITIAL)
    cause = f"trigger/concept@{DAY_MS}"
    assert [(told.kind, told.version, told.cause) for told in world.story] == [
        ("triggered", "", cause),
        ("trained", "m1", cause),
        ("shadow", "m1", cause),
        ("promoted", "m1", cause),
        ("kept", "m1", cause),
    ]
    assert world.steering.phase == "idle"


def test_version_waits_until_its_training_is_due():
    world = World(replace(SPEC, latency_ms=2 * DAY_MS))
    world.tick("concept")
    assert world.tick() == []
    assert kinds(world.tick()) == ["prepare"]


@pytest.mark.parametrize("verdict", ["worse", "undecided"])
def test_challenger_that_is_not_better_goes(verdict: Verdict):
    world = to_shadow()
    assert world.judged("open") == []
    (drop,) = world.judged(verdict)
    assert (drop.kind, drop.tells, world.roles) == ("drop", "aborted", Roles())
    assert drop.evidence["examples"] == 600
    assert verdict in drop.verdict


def test_verdict_of_another_stage_or_version_decides_nothing():
    world = to_shadow()
    assert world.judged("better", stage_start=1) == []
    assert world.judged("better", other="m9") == []
    assert world.roles.champion == INITIAL


@pytest.mark.parametrize(("verdict", "kind"), [("better", "swap"), ("undecided", "swap"), ("worse", "drop")])
def test_canary_serves_a_share_before_it_serves_all(verdict: Verdict, kind: str):
    world = to_shadow(replace(SPEC, rollout=RolloutSpec(canary_share=0.1)))
    assert kinds(world.judged("better")) == ["canary"]
    assert world.roles.is_canary
    assert world.judged("open") == []
    assert kinds(world.judged(verdict)) == [kind]
    assert world.roles.champion == ("m1" if kind == "swap" else INITIAL)


def test_former_champion_that_is_better_on_probation_serves_again():
    world = to_probation()
    (rollback,) = world.judged("better")
    assert (rollback.kind, rollback.version, rollback.parent) == ("rollback", "m1", INITIAL)
    assert (world.roles.champion, world.roles.challenger) == (INITIAL, "")
    assert world.story[-1].kind == "rolled_back"


def test_command_waits_for_a_tick_that_has_seen_the_last_one():
    """Until then the tick's champion is not the one that the command will meet."""
    world = to_probation(replace(SPEC, cooldown_ms=0))
    world.spec = replace(world.spec, latency_ms=0)
    assert kinds(world.judged("better", "concept")) == ["rollback", "train"]
    assert kinds(world.tick()) == ["prepare"]
    world = to_shadow()
    before = world.offset
    world.tick(offset_next=before - 1, is_learner_bad=True, bad_since=1)
    assert world.offset == before + 50  # no command


def test_command_that_is_not_written_yet_is_not_seen_either():
    """An executor may tell all steps of a tick before it writes their commands in one transaction."""
    world = to_probation(replace(SPEC, cooldown_ms=0))
    steering, day = world.steering, 9 * DAY_MS
    state = RolloutState(
        other=INITIAL, stage_start=world.story[-1].command_offset, examples=600, mean=0.1, lower=0.1, upper=0.2,
        verdict="better",
    )  # fmt: skip
    tick = replace(
        TICK, time=day, offset_next=world.offset + 1, champion="m1", challenger=INITIAL, rollout=state,
        alerts=(alert("trigger/concept", day),),
    )  # fmt: skip
    (rollback,) = steering.decide(tick)
    steering.tell(rollback.story(time=day))
    (train,) = steering.decide(tick)
    told = train.story(time=day)
    steering.tell(told)
    steering.tell(replace(told, kind="trained", version="m2", due=day))
    assert steering.decide(tick) == ()
    assert kinds(list(steering.decide(replace(tick, time=day + 1)))) == ["prepare"]


def test_margin_does_not_bring_the_former_champion_back():
    """With a margin "better" says no more than "hardly worse"."""
    world = to_probation(replace(SPEC, rollout=RolloutSpec(margin=0.01)))
    assert world.judged("better", lower=-0.005) == []
    assert kinds(world.judged("better", lower=-0.005, examples=10_000)) == ["drop"]
    assert world.roles.champion == "m1"


def test_one_of_many_triggers_trains_and_the_others_are_declined():
    world = World()
    decided = world.tick(*(f"t{number}" for number in range(50)))
    assert kinds(decided) == ["train"] + ["decline"] * 49
    assert len({told.cause for told in world.story if told.kind == "declined"}) == 49
    assert "is trained for at this tick" in decided[1].verdict


def test_trigger_is_answered_once():
    world = World(outcome="failed")
    world.tick("concept")
    first = alert("trigger/concept", DAY_MS)
    assert world.tick(alerts=(first,)) == []


@pytest.mark.parametrize("is_canary", [False, True])
def test_challenger_that_nobody_scores_goes_and_the_verdict_says_where_to_look(is_canary: bool):
    world = to_shadow(replace(SPEC, rollout=RolloutSpec(canary_share=0.1 if is_canary else 0)))
    if is_canary:
        assert kinds(world.judged("better")) == ["canary"]
    (drop,) = world.judged("undecided", examples=0)
    assert (drop.kind, drop.tells, world.roles.champion, world.roles.challenger) == ("drop", "aborted", INITIAL, "")
    assert drop.verdict.startswith("m1 could not be compared: no event was scored by both")
    assert "trust the trainer's key" in drop.verdict


def test_new_champion_beside_whom_nobody_scores_the_former_one_stays():
    world = to_probation()
    (drop,) = world.judged("undecided", examples=0)
    assert (drop.tells, world.roles.champion, world.roles.challenger) == ("kept", "m1", "")


def test_trigger_during_a_trial_or_a_training_is_declined():
    world = to_shadow()
    (declined,) = world.judged("open", "schedule")
    assert (declined.kind, declined.verdict) == ("decline", "m1 is in shadow")
    training = Steering(SPEC)
    tick = replace(TICK, alerts=(alert("trigger/a", 0),))
    training.tell(training.decide(tick)[0].story(time=0))
    assert training.training is not None
    (declined,) = training.decide(replace(tick, alerts=(alert("trigger/b", 0),)))
    assert declined.verdict == "a training is under way for trigger/a@0"


def test_trigger_within_the_cooldown_or_with_few_examples_is_declined():
    world = World(outcome="failed")
    assert kinds(world.tick("concept")) == ["train"]
    (declined,) = world.tick("concept")
    assert declined.verdict == "the last training was 24 h ago, the cooldown is 72 h"
    world.tick()
    assert kinds(world.tick("concept")) == ["train"]  # three days are over
    (declined,) = World().tick("concept", examples_total=999)
    assert declined.verdict == "there are 999 examples, of 1,000 at least"


def test_demand_overrides_cooldown_and_examples_and_says_so():
    world = World(outcome="failed")
    world.tick("concept")
    demand = alert(DEMAND_KEY, 5)
    world.steering.demand(demand)
    train, declined = world.tick("concept", examples_total=7)
    assert (train.kind, train.cause, declined.kind) == ("train", demand.id, "decline")
    assert train.verdict == "on demand, although there are 7 examples, of 1,000 at least"
    world.steering.demand(demand)
    assert world.tick() == []


def test_demand_during_a_trial_is_declined():
    world = to_shadow()
    world.steering.demand(alert(DEMAND_KEY, 5))
    assert kinds(world.tick()) == ["decline"]


@pytest.mark.parametrize("outcome", ["failed", "gated"])
def test_training_without_a_version_ends_there(outcome: str):
    world = World(outcome=outcome)
    world.tick("concept")
    assert world.steering.phase == "idle"
    assert world.tick() == []


def test_version_serves_nothing_before_a_person_approves():
    world = World(replace(SPEC, needs_approval=True))
    world.tick("concept")
    assert kinds(world.tick()) == ["ask"]
    assert world.tick() == []
    world.tell(StoryEvent(id="a", kind="approved", time=0, version="m9", cause="someone"))
    assert world.tick() == []
    world.tell(StoryEvent(id="a", kind="approved", time=0, version="m1", cause="someone"))
    assert kinds(world.tick()) == ["prepare"]


def test_version_that_a_person_refuses_goes():
    world = World(replace(SPEC, needs_approval=True))
    world.tick("concept")
    world.tick()
    world.tell(StoryEvent(id="a", kind="aborted", time=0, version="m1", cause="someone"))
    assert world.steering.phase == "idle"
    assert world.tick() == []


@pytest.mark.parametrize("start", [to_shadow, to_probation])
def test_roles_changed_by_hand_end_the_trial(start: Callable[[], World]):
    world = start()
    assert world.tick(offset_next=world.offset - 2) == []  # the tick has not seen the last command
    steering = world.steering
    world.roles = Roles(champion="m7", parent="m1")
    tick = replace(TICK, time=99 * DAY_MS, offset_next=world.offset + 1, champion="m7")
    (drop,) = steering.decide(tick)
    assert drop.kind == "drop"
    assert drop.verdict == "somebody changed the roles: champion m7, challenger none"
    steering.tell(drop.story(time=tick.time, command_offset=world.offset))
    assert steering.phase == "idle"


def test_bad_learner_is_frozen_and_forgets_the_window_once_in_a_cooldown():
    world = to_probation()
    decided = world.tick(is_learner_bad=True, bad_since=20)
    assert kinds(decided) == ["freeze", "excise", "thaw"]
    assert {decision.cause for decision in decided} == {LEARNER_GUARD}
    assert world.roles.excised == ((20, decided[1].offset_next),)
    assert not world.roles.is_frozen
    assert world.tick(is_learner_bad=True, bad_since=20) == []
    world.tick()
    assert kinds(world.tick(is_learner_bad=True, bad_since=20)) == ["freeze", "excise", "thaw"]


def test_learner_guard_leaves_the_initial_champion_and_who_does_not_want_it_alone():
    assert World().tick(is_learner_bad=True, bad_since=20) == []
    world = to_probation(replace(SPEC, guards_learner=False))
    assert world.tick(is_learner_bad=True, bad_since=20) == []
    assert to_probation().tick(is_learner_bad=True, bad_since=-1) == []


@pytest.mark.parametrize("told", [1, 2])
def test_learner_guard_that_was_interrupted_is_finished(told: int):
    world = to_probation()
    steering = world.steering
    tick = replace(
        TICK, time=9 * DAY_MS, offset_next=world.offset, champion="m1", challenger=INITIAL, is_learner_bad=True,
        bad_since=20,
    )  # fmt: skip
    decided = steering.decide(tick)
    for decision in decided[:told]:
        steering.tell(decision.story(time=tick.time, command_offset=1))
    later = steering.decide(replace(tick, time=10 * DAY_MS, is_learner_bad=False, bad_since=-1))
    assert [decision.commands for decision in later] == [decision.commands for decision in decided[told:]]
    for decision in later:
        steering.tell(decision.story(time=tick.time, command_offset=1))
    assert steering.decide(replace(tick, is_learner_bad=False)) == ()


DAYS = st.lists(
    st.fixed_dictionaries(
        {
            "triggers": st.integers(0, 2),
            "demand": st.booleans(),
            "outcome": st.sampled_from(["trained", "trained", "failed", "gated"]),
            "verdict": st.sampled_from(["", "open", "better", "better", "worse", "undecided"]),
            "is_of_stage": st.sampled_from([True, True, True, False]),
            "is_bad": st.booleans(),
            "approves": st.booleans(),
            "restarts": st.booleans(),
        }
    ),
    min_size=5,
    max_size=40,
)


@settings(max_examples=200, deadline=None)
@given(
    days=DAYS,
    share=st.sampled_from([0.0, 0.1]),
    needs_approval=st.booleans(),
    latency_ms=st.sampled_from([0, DAY_MS, 2 * DAY_MS]),
    cooldown_ms=st.sampled_from([0, 3 * DAY_MS]),
)
def test_whatever_happens_one_version_is_on_trial_and_none_serves_without_being_better(
    days: list[dict], share: float, needs_approval: bool, latency_ms: int, cooldown_ms: int
):
    """World.execute asserts that every decision has a cause, every command is obeyed, and there is one challenger."""
    rollout = RolloutSpec(canary_share=share)
    spec = replace(SPEC, rollout=rollout, latency_ms=latency_ms, cooldown_ms=cooldown_ms)
    world = World(replace(spec, needs_approval=needs_approval))
    better: set[str] = set()
    approved: set[str] = set()
    for day in days:
        world.outcome = day["outcome"]
        if day["restarts"]:
            world.restart()
        if day["approves"] and world.steering.phase == "waiting":
            approved.add(world.steering.version)
            version = world.steering.version
            world.tell(StoryEvent(id="a", kind="approved", time=0, version=version, cause="someone"))
        if day["demand"]:
            world.steering.demand(alert(DEMAND_KEY, world.day))
        state, phase, on_trial = None, world.steering.phase, world.steering.version
        if day["verdict"] and phase in ("shadow", "canary", "probation"):
            start = next(told.command_offset for told in reversed(world.story) if told.kind in STAGES)
            state = RolloutState(
                other=world.roles.challenger, stage_start=start if day["is_of_stage"] else start - 1, examples=600,
                mean=0.0, lower=0.001, upper=0.002, verdict=day["verdict"],
            )  # fmt: skip
            if phase == "shadow" and day["is_of_stage"] and day["verdict"] == "better":
                better.add(on_trial)
        before = world.roles.champion
        decided = world.tick(
            *(f"t{number}" for number in range(day["triggers"])), rollout=state, is_learner_bad=day["is_bad"],
            bad_since=1,
        )  # fmt: skip
        assert kinds(decided).count("train") <= 1
        if world.roles.champion not in (before, INITIAL):
            event("promoted")
            assert world.roles.champion in better
            assert not needs_approval or world.roles.champion in approved
        if phase == "probation" and day["verdict"] == "better" and day["is_of_stage"]:
            event("rolled back")
            assert on_trial not in (world.roles.champion, world.roles.challenger)
    answered = [told for told in world.story if told.kind in ("triggered", "declined")]
    declined = [told.cause for told in answered if told.kind == "declined"]
    assert len({told.id for told in answered}) == len(answered)
    assert len(set(declined)) == len(declined)
    for cause in {told.cause for told in answered}:  # once more only for what was declined, or failed
        told_of = [told.kind for told in world.story if told.cause == cause and told.kind in ANSWERS]
        assert all(before in ("declined", "failed") for before, kind in pairwise(told_of) if kind == "triggered")


STAGES = ("shadow", "canary", "promoted")
ANSWERS = ("declined", "triggered", "failed", "trained", "gated")
