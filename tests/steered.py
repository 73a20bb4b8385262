"""A world in which the trainer's decisions are carried out; after every tick a restarted trainer has to agree."""

from __future__ import annotations

from dataclasses import replace

from tidemill.core.alerts import Alert
from tidemill.core.decisions import Decision
from tidemill.core.loop_spec import DAY_MS, RetrainSpec
from tidemill.core.records import Command
from tidemill.core.roles import INITIAL, Roles
from tidemill.core.steering import Steering
from tidemill.core.story import StoryEvent
from tidemill.core.ticks import RolloutState, Tick, Verdict

SPEC = RetrainSpec(cooldown_ms=3 * DAY_MS, latency_ms=DAY_MS, examples_min=1_000)
TICK = Tick(
    time=0, offset_next=0, champion=INITIAL, challenger="", events=10, examples=10, examples_total=5_000, log_loss=0.5,
    excess=0.0, e_value=1.0, threshold=100.0, adwin=0, page_hinkley=0,
)  # fmt: skip


def alert(key: str, time: int) -> Alert:
    return Alert(
        id=f"{key}@{time}", key=key, kind="trigger", event="opened", severity="info", time=time, opened=time,
        summary="concept/blend is open", action="nothing", runbook="docs/runbooks/trigger.md", champion=INITIAL,
        window_start=0, window_end=time, evidence={"e_value": 200.0},
    )  # fmt: skip


class World:
    """An executor and a log in memory. Versions are m1, m2, ... in the order of their trainings."""

    def __init__(self, spec: RetrainSpec = SPEC, outcome: str = "trained") -> None:
        self.spec = spec
        self.steering = Steering(spec)
        self.story: list[StoryEvent] = []
        self.roles = Roles()
        self.offset = 100
        self.day = 0
        self.outcome = outcome
        self.trainings = 0
        self.done: list[Decision] = []

    def tell(self, event: StoryEvent) -> None:
        self.story.append(event)
        self.steering.tell(event)

    def restart(self) -> None:
        self.steering = Steering(self.spec)
        for told in self.story:
            self.steering.tell(told)

    def tick(self, *triggers: str, **facts: object) -> list[Decision]:
        """The next day; all that was decided at its end, done and told."""
        self.day += 1
        self.offset += 50
        time = self.day * DAY_MS
        tick = replace(
            TICK, time=time, offset_next=self.offset, champion=self.roles.champion, challenger=self.roles.challenger,
            alerts=tuple(alert(f"trigger/{name}", time) for name in triggers),
        )  # fmt: skip
        tick = replace(tick, **facts)
        decided: list[Decision] = []
        for _ in range(10):
            found = self.steering.decide(tick)
            self.check_restarted(tick, found)
            if not found:
                return decided
            for decision in found:
                self.execute(decision, tick)
            decided.extend(found)
        raise AssertionError(f"no end of decisions: {decided}")

    def judged(self, verdict: Verdict, *triggers: str, **facts: float) -> list[Decision]:
        """The next day, with a verdict on the stage that is under way."""
        start = next(told.command_offset for told in reversed(self.story) if told.command_offset >= 0)
        mean = {"better": 0.01, "worse": -0.01}.get(verdict, 0.0)
        state = RolloutState(
            other=self.roles.challenger, stage_start=start, examples=600, mean=mean, lower=mean - 0.005,
            upper=mean + 0.005, verdict=verdict,
        )  # fmt: skip
        return self.tick(*triggers, rollout=replace(state, **facts))

    def execute(self, decision: Decision, tick: Tick) -> None:
        self.done.append(decision)
        assert decision.cause, "a decision without a cause"
        assert decision.verdict, "a decision without a word"
        command_offset = self.offset if decision.commands else -1
        for order in decision.commands:
            command = Command(
                offset=self.offset, id="c", kind=order.kind, expects=order.expects, model_version=order.model_version,
                cause=decision.cause, time=tick.time,
            )  # fmt: skip
            assert not (order.kind == "prepare" and self.roles.challenger), "two challengers"
            changed = self.roles.after(command)
            assert changed is not None, f"{order} is ignored by {self.roles}"
            self.roles = changed
            self.offset += 1
        self.tell(decision.story(time=tick.time, command_offset=command_offset))
        if decision.kind == "train":
            self.trainings += 1
            told = self.story[-1]
            if self.outcome == "trained":
                due = tick.time + self.spec.latency_ms
                version = f"m{self.trainings}"
                self.tell(replace(told, id=version, kind="trained", version=version, due=due))
            else:
                self.tell(replace(told, id="no", kind=self.outcome, verdict="no"))

    def check_restarted(self, tick: Tick, expected: tuple[Decision, ...]) -> None:
        if self.steering._demands:
            return  # those are read again from the alarm topic
        again = Steering(self.spec)
        for told in self.story:
            again.tell(told)
        assert again.decide(tick) == expected


def kinds(decisions: list[Decision]) -> list[str]:
    return [decision.kind for decision in decisions]


def to_shadow(spec: RetrainSpec = SPEC) -> World:
    world = World(spec)
    assert kinds(world.tick("concept")) == ["train"]
    assert kinds(world.tick()) == ["prepare"]
    assert (world.roles.challenger, world.steering.phase) == ("m1", "shadow")
    return world


def to_probation(spec: RetrainSpec = SPEC) -> World:
    world = to_shadow(spec)
    assert kinds(world.judged("better")) == ["swap"]
    assert (world.roles.champion, world.roles.challenger) == ("m1", INITIAL)
    return world
