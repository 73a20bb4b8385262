"""A worker process of the simulation: the product's `Engine`, with the loop of `apps/worker.py` around it.

In: the world, a slot. Out: steps. Invariant: what decides whether something is published once is the product's own
(Engine, Claims, Cycle, Pipeline, Publishing, RollForward, ExampleFold, TimeOrderedMerge); the loop here only calls it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from tests.in_memory import Machinery
from tests.simulation.broker import Metadata
from tests.simulation.clients import (
    SimulatedKafka,
    SimulatedReader,
    SimulatedStore,
    SimulatedWriter,
    read_to_end,
    read_topic,
)
from tests.simulation.model import DigestModel
from tests.simulation.stage import Actor
from tests.simulation.steps import Step
from tests.simulation.stream import Bodies, a_stream, an_app
from tests.simulation.world import Left, Result, World
from tidemill.apps import claims, cycle, engine, folding, publishing, roll_forward, wholeness
from tidemill.apps.engine import Engine
from tidemill.apps.folding import ExampleFold
from tidemill.core.merge import TimeOrderedMerge
from tidemill.core.pipeline import Pipeline, StepOutcome, Turn
from tidemill.core.records import Commit, Partition
from tidemill.errors import FencedError, UnavailableError
from tidemill.io.offered import offered
from tidemill.io.source import SourceBatch, records_of, spans_of

IDLE_AFTER_S = 5.0
POLL_RECORDS_MAX = 8


class WatchedPipeline(Pipeline):
    """Tells the process what was made of a turn, so that the oracle can judge it when the store applies it."""

    world: World

    def step(self, turn: Turn, *arguments: Any) -> StepOutcome:
        outcome = super().step(turn, *arguments)
        self.world.running.stepped = _step_of(turn, self.topic_names, outcome.commit, outcome.outputs)
        return outcome

    def roll_forward(self, turn: Turn, *arguments: Any) -> Commit:
        commit = super().roll_forward(turn, *arguments)
        self.world.running.stepped = _step_of(turn, self.topic_names, commit, {})
        return commit


def _step_of(turn: Turn, names: tuple[str, ...], commit: Commit, outputs: Mapping[Partition, Any]) -> Step:
    batch = turn.batch
    places = zip(batch.topic_index.tolist(), batch.partition.tolist(), batch.offset.tolist(), strict=True)
    order = [(Partition(names[index], number), offset) for index, number, offset in places]
    return Step(order, turn.group_watermark, turn.owned, turn.worker, commit, outputs)


class Process:
    """One life of a worker in a slot."""

    def __init__(self, world: World, slot: str) -> None:
        self.world = world
        self.slot = slot
        self.actor: Actor = None  # type: ignore[assignment]
        self.engine: Engine | None = None
        self.serving = DigestModel()
        self.fold: ExampleFold | None = None
        self.stepped: Step | None = None
        self.read_serial = -1
        self.is_cut_off = False  # the connection to the store was lost, and a claim has not made a new one
        self.is_idle = False
        self.is_busy = True  # between two looks at the group
        self.said: list[str] = []
        self._member = -1
        self._generation = -1
        self._positions: dict[Partition, int] = {}
        self._settled_at: dict[Partition, int] = {}  # marks at the last settling: without a change there is nothing due
        self._merge = TimeOrderedMerge([topic.role for topic in world.spec.topics], is_bounded=False)
        self._topics = [topic.name for topic in world.spec.topics]

    def __str__(self) -> str:
        return f"worker {self.slot}.{self._member}"

    def beat(self) -> None:
        if self._member >= 0:
            self.world.broker.group.beat(self.slot, self._member)

    def pause(self) -> None:
        self.actor.pause()
        self._hear()

    def live(self, actor: Actor) -> None:
        """Until the process is killed or another one has its slot."""
        self._member = self.world.broker.group.join(self.slot)
        settings: Any = SimpleNamespace(
            app=self.world.spec,
            redis_url="",
            bootstrap_servers=self.world,
            kafka={},
            data_folder=Path(),
            schema_registry=None,
            worker=SimpleNamespace(is_bounded=False, idle_after_s=IDLE_AFTER_S, when_behind="stop"),
        )
        while self.engine is None:
            try:
                self.engine = Engine(settings, slot=int(self.slot), report=self.said.append)
            except UnavailableError:
                self.pause()
        group = self.world.broker.group
        while True:
            self.is_busy = False
            self.pause()
            self.is_busy = True
            standing = group.standing(self.slot, self._member)
            if standing == "replaced":
                return
            if standing == "unknown":
                self._give_up()
                self._member = group.join(self.slot)
            elif group.is_preparing:
                self._give_up()
                group.rejoin(self.slot)
            elif self._generation != group.generation:
                self._claim()
            else:
                try:
                    self._work()
                except (FencedError, UnavailableError):
                    if self.engine.current_generation == self._generation:
                        self._claim()

    def _hear(self) -> None:
        """The polling thread learns of a rebalance while the compute thread works; mostly at once."""
        group = self.world.broker.group
        is_current = group.standing(self.slot, self._member) == "member" and group.generation == self._generation
        if self.engine is not None and (group.is_preparing or not is_current) and self.world.chance.random() < 0.7:
            self.engine.current_generation = -1

    def _give_up(self) -> None:
        assert self.engine is not None
        self.is_idle = False
        self.engine.current_generation = self._generation = -1

    def _claim(self) -> None:
        """As `Worker._claim`: again and again, until a newer assignment comes."""
        assert self.engine is not None
        group = self.world.broker.group
        self.is_idle = False
        self._generation = self.engine.current_generation = generation = group.generation
        assigned = group.assignment.get(self.slot, frozenset())
        metadata = Metadata(self.slot, self._member, generation)
        while self.engine.current_generation == generation:
            try:
                self._positions = self.engine.claim(assigned, generation, metadata)
                self.engine.epoch += 1
                self._merge.clear()
                for partition, offset in self._positions.items():
                    self._merge.add_partition(self._topics.index(partition.topic), partition.number, offset)
                return
            except (FencedError, UnavailableError):
                self.pause()
        self._generation = -1

    def _work(self) -> None:
        """One batch, or what a worker does while there is none."""
        assert self.engine is not None
        ends, lagging = {}, set()
        for partition, at in list(self._positions.items()):
            place = (self._topics.index(partition.topic), partition.number)
            new = [message for message in self.world.lanes[partition] if message.offset() >= at][:POLL_RECORDS_MAX]
            self._merge.offer(*place, [offered(message, message.offset()) for message in new])
            if new:
                self._positions[partition] = new[-1].offset() + 1
            ends[partition] = self.world.end(partition)
            if self._positions[partition] < ends[partition]:
                lagging.add(place)
        limit = self.engine.progress.group_limit
        cut = self._merge.take(self.world.spec.batch_records, limit=limit, lagging=lagging)
        self.is_idle = False
        if cut is not None:
            metadata = Metadata(self.slot, self._member, self._generation)
            batch = SourceBatch(
                records_of(cut), spans_of(cut, self._topics), self._generation, self.engine.epoch, metadata
            )
            self.engine.process(batch)
            self.engine.pass_time(ends, idle_after_s=IDLE_AFTER_S)
            return
        next_time = self._merge.next_time()
        if limit is not None and next_time is not None and next_time > limit:
            self.engine.say_waiting(next_time)
            return
        self.engine.take_commands()
        self.engine.pass_time(ends, idle_after_s=IDLE_AFTER_S)
        marks = {partition: mark.watermark for partition, mark in self.engine.progress.marks.items()}
        if marks != self._settled_at or self.world.chance.random() < 0.05:
            self._settled_at = marks
            while self.engine.settle():
                pass
        self.is_idle = True


class Deaf:
    """Stands in for counters, and for the trials of `apps.bisecting`: no record of these streams kills a process."""

    is_trial = False

    def __getattr__(self, name: str) -> Any:
        return lambda *given, **named: {}


class Workshop:
    """What all worlds share: the app's declaration, its encoders, its pipeline."""

    def __init__(self) -> None:
        self.spec = an_app()
        self.machinery = Machinery(self.spec)
        built = self.machinery.pipeline
        self.pipeline = WatchedPipeline(self.spec, built.plan, built.codec)
        self.bodies = Bodies(self.spec)

    def run(self, seed: int, left: Left | None = None) -> Result:
        world = World(seed, self.spec, self.bodies, left or Left(), Process)
        violation = self.play(world)
        return Result(seed, violation, world.step, world.happened, world.counts())

    def play(self, world: World) -> str | None:
        """What was broken, or None."""
        self.pipeline.world = world
        with self._in(world):
            return world.run()

    def records_of(self, seed: int, left: Left) -> list[str]:
        """What comes in a run, a line for each record."""
        return [
            f"{one.topic}[{one.partition}] at {one.time}: {one.fields if one.kind == 'good' else one.kind}"
            for one in a_stream(seed)
            if one.kind != "end" and one.number not in left.records
        ]

    @contextmanager
    def _in(self, world: World) -> Iterator[None]:
        clock = SimpleNamespace(
            monotonic=lambda: world.clock_ms / 1_000,
            perf_counter=lambda: world.clock_ms / 1_000,
            sleep=world.sleep,
        )

        def models(settings: Any, pipeline: Any, clients: Any, **hooks: Any) -> tuple[Any, Any]:
            serving = world.running.serving
            snapshots: Any = SimpleNamespace(put=lambda app, snapshot: None)
            reader: Any = folding.LogReader(clients, pipeline.examples_topic, 0)
            fold = ExampleFold(
                reader=reader,
                serving=serving,
                snapshots=snapshots,
                app=self.spec.name,
                is_bounded=False,
                on_roles=lambda roles: None,
            )
            return serving, fold

        replaced: dict[Any, dict[str, Any]] = {
            engine: {
                "kafka": SimulatedKafka,
                "clients_of": lambda settings: {"world": world},
                "ensure_output_topics": lambda settings: [],
                "InputDecoder": lambda spec, **named: self.machinery.decoder,
                "FeaturePlan": lambda spec: self.pipeline.plan,
                "WireCodec": lambda *given: self.pipeline.codec,
                "Pipeline": lambda *given: self.pipeline,
                "RedisStore": lambda url, app, *, owner_slot, **declared: SimulatedStore(world, owner_slot),
                "config_digest": lambda spec: "",
                "declared_features": lambda spec: "",
                "make_models": models,
                "Telemetry": lambda topics: Deaf(),
                "LogReader": SimulatedReader,
                "Bisecting": lambda settings, *, report: Deaf(),
                "died_before": lambda file: False,
                "NewestSnapshot": lambda settings, report: lambda committed: False,
                "LastCut": lambda settings, store, report: lambda ranges: {},
                "time": clock,
            },
            wholeness: {"time": clock},
            claims: {
                "kafka": SimulatedKafka,
                "read_topic": read_topic,
                "secrets": SimpleNamespace(token_hex=world.random_hex),
            },
            publishing: {"TransactionalWriter": SimulatedWriter},
            roll_forward: {"LogReader": SimulatedReader, "read_to_end": read_to_end},
            cycle: {"time": clock},
            folding: {"LogReader": SimulatedReader, "time": clock},
        }
        with ExitStack() as stack:
            for module, names in replaced.items():
                for name, stand_in in names.items():
                    stack.enter_context(mock.patch.object(module, name, stand_in))
            yield
