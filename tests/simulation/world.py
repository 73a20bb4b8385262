"""The world of one seed: clock, broker, store, inputs that arrive, worker processes, and what goes wrong.

In: a seed, what to leave out. Out: a `Result`. Invariant: the same seed and the same mutant give the same steps; after
each step that applied or published something the oracle has judged it.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tests.memory_kafka import Message
from tests.simulation.broker import Broker
from tests.simulation.faults import STORE_FAULTS, Fault, a_plan
from tests.simulation.oracle import Oracle, Violation
from tests.simulation.stage import Actor, Killed
from tests.simulation.stream import PARTITIONS, Bodies, Sent, a_stream
from tidemill.core.records import Partition
from tidemill.core.spec import AppSpec
from tidemill.errors import StateLostError, TidemillError, UnavailableError
from tidemill.io.memory import MemoryBackend
from tidemill.io.source import END_HEADER, PUNCTUATION_HEADER

T = TypeVar("T")
STEPS_MAX = 6_000  # a run needs some hundreds
WALL_MS = 1_700_000_000_000  # the wall clock has nothing to do with event time
EPOCH_STEPS = 15  # how often a cut of the store is kept, to go back to


@dataclass(frozen=True)
class Left:
    """What a smaller run of the same seed leaves out: numbers of records and of faults."""

    records: frozenset[int] = frozenset()
    faults: frozenset[int] = frozenset()


@dataclass
class Result:
    seed: int
    violation: str | None
    steps: int
    happened: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)


class World:
    """`processes` make workers; see `process.py`."""

    def __init__(
        self, seed: int, spec: AppSpec, bodies: Bodies, left: Left, process: Callable[[World, str], Any]
    ) -> None:
        self.spec = spec
        self.chance = random.Random(f"world {seed}")
        self.step = 0
        self.clock_ms = WALL_MS
        self.running: Any = None  # the process whose turn it is
        self.happened: list[str] = []
        self.backend = MemoryBackend()
        self.hexes = 0
        self.sent = [one for one in a_stream(seed) if one.number not in left.records or one.kind == "end"]
        plan = [fault for number, fault in enumerate(a_plan(seed)) if number not in left.faults]
        self.plan = [fault for fault in plan if fault.kind not in STORE_FAULTS]
        self.store_plan = [fault for fault in plan if fault.kind in STORE_FAULTS]
        self.lanes: dict[Partition, list[Message]] = {
            Partition(topic.name, number): [] for topic in spec.topics for number in range(PARTITIONS)
        }
        self._ends = dict.fromkeys(self.lanes, 0)
        self.oracle = Oracle(spec, sorted(self.lanes))
        self.broker = Broker(lambda: self.clock_ms, self.oracle.published)
        self.broker.group.partitions = sorted(self.lanes)
        self.broker.group.shuffle = random.Random(f"group {seed}").shuffle
        self.oracle.read_examples = lambda: self.broker.read(f"{spec.name}.examples.v1", 0)[0]
        self._bodies = bodies
        self._make = process
        self._late: list[tuple[int, Callable[[], object]]] = []
        self._cuts: list[tuple[int, MemoryBackend, int]] = []
        self.processes: list[Any] = []
        self._restarts: dict[str, int] = {}
        workers = self.chance.choice([1, 2, 2, 3, 3])
        self._slots = [str(slot) for slot in range(workers)]
        self._speed = {slot: self.chance.choice([1.0, 1.0, 1.0, 0.4, 0.15]) for slot in self._slots}
        self._arrive_every = self.chance.choice([0.3, 1.0, 3.0])
        self._arrived = 0
        self._may_ask_operator = False  # once, after the store was harmed: anything else is a violation
        self._is_with_operator = False

    # What processes call

    def call(self, what: str, request: Callable[[], T]) -> T:
        """A request to a server: the others go on meanwhile, and it may meet a fault."""
        process = self.running
        process.pause()
        fault = self._take_fault(what)
        if fault is None:
            return request()
        self.happened.append(f"step {self.step}: {process} {what}: {fault.kind} ({fault.length})")
        match fault.kind:
            case "crash before":
                raise Killed
            case "crash after":
                _try(request)
                raise Killed
            case "request lost":
                raise UnavailableError("TM-3001", f"{what}: the request was lost")
            case "answer lost":
                _try(request)
                raise UnavailableError("TM-3001", f"{what}: the answer was lost")
            case "delayed":
                self._late.append((self.step + fault.length, request))
                raise UnavailableError("TM-3001", f"{what}: no answer in time")
            case "delayed and crash":
                self._late.append((self.step + fault.length, request))
                raise Killed
            case "asleep" | "twin":
                process.actor.frozen_until = self.step + fault.length
                if fault.kind == "twin":
                    self._start(process.slot)
                process.pause()
        return request()

    def sleep(self, seconds: float) -> None:
        self.clock_ms += round(seconds * 1_000)
        self.running.pause()

    def random_hex(self, count: int) -> str:
        self.hexes += 1
        return f"{self.hexes:0{2 * count}x}"

    def end(self, partition: Partition) -> int:
        return self._ends[partition]

    # The run

    def run(self) -> str | None:
        """What was broken, or None."""
        try:
            for slot in self._slots:
                self._start(slot)
            while self.step < STEPS_MAX:
                self._take_step()
                if self._is_over():
                    return self.oracle.judge_end(self.backend, self.broker, self.processes)
            return f"I4 no progress: {self._where()}"
        except Violation as violation:
            return str(violation)
        finally:
            for process in self.processes:
                self.running = process
                process.actor.kill()

    def _take_step(self) -> None:
        self.step += 1
        self.clock_ms += self.chance.randrange(20, 250)
        self._arrive()
        for due, request in [late for late in self._late if late[0] <= self.step]:
            self._late.remove((due, request))
            _try(request)
        for process in self.processes:
            if not process.actor.is_done and process.actor.frozen_until <= self.step:
                process.beat()
        self.broker.tick()
        self._keep_cut()
        if self.store_plan and self.store_plan[0].step <= self.step:
            self._harm_store()
        for slot, at in list(self._restarts.items()):
            if at <= self.step:
                del self._restarts[slot]
                self._start(slot)
        if self._is_with_operator and not self._late and self.broker.is_deserted:
            self._reset_to_committed()
        ready = [p for p in self.processes if not p.actor.is_done and p.actor.frozen_until <= self.step]
        if not ready:
            return
        # Who found nothing to do mostly waits: that saves steps in which nothing can happen.
        weights = [self._speed[one.slot] * (0.2 if one.is_idle else 1.0) for one in ready]
        process = self.chance.choices(ready, weights)[0]
        self.running = process
        process.actor.step()
        if process.actor.is_done:
            self._bury(process)

    def _bury(self, process: Any) -> None:
        error = process.actor.error
        if isinstance(error, Violation):
            raise error
        if isinstance(error, StateLostError) and error.code == "TM-4201" and self._may_ask_operator:
            self.happened.append(f"step {self.step}: {error.code}, the operator stops all workers")
            self._may_ask_operator, self._is_with_operator = False, True
            for other in self.processes:
                self.running = other
                other.actor.kill()
            self.processes.clear()
            self._restarts.clear()
            return
        if error is not None:
            kind = "a process ended" if isinstance(error, TidemillError) else "a process failed"
            raise Violation(f"{kind}: {error!r}") from error
        self.processes.remove(process)
        if all(other.slot != process.slot for other in self.processes):
            self._restarts[process.slot] = self.step + self.chance.choice([1, 5, 20, 80])

    def _reset_to_committed(self) -> None:
        """What the message of TM-4201 advises when the other store is lost: `tidemill reset --to committed`."""
        if not self.oracle.can_forget(-1):
            raise Violation("TM-4201 came when a batch was published in part")
        self.happened.append(f"step {self.step}: store emptied by the operator")
        self._replace_store(MemoryBackend(), -1)
        self._is_with_operator = False
        for slot in self._slots:
            self._start(slot)

    def _start(self, slot: str) -> None:
        process = self._make(self, slot)
        self.processes.append(process)
        process.actor = Actor(f"worker {slot}", process.live)

    def _arrive(self) -> None:
        while self._arrived < len(self.sent) and self.chance.random() < self._arrive_every / (1 + self._arrive_every):
            one = self.sent[self._arrived]
            self._arrived += 1
            place = Partition(one.topic, one.partition)
            offset = self._ends[place] + one.hole
            self._ends[place] = offset + 1
            if one.kind == "end":
                headers = ((PUNCTUATION_HEADER, str(one.time).encode()), (END_HEADER, b""))
                message = Message(None, None, headers, one.time, offset)
            else:
                value = b"?" if one.kind == "poison" else self._bodies.of(one.topic, one.fields)
                message = Message(b"k", value, (), one.time, offset)
            self.lanes[place].append(message)
            self.oracle.sent(place, offset, one)

    def _take_fault(self, what: str) -> Fault | None:
        for fault in self.plan:
            if fault.step > self.step:
                return None
            if fault.at in ("", what):
                self.plan.remove(fault)
                return fault
        return None

    def _keep_cut(self) -> None:
        if self.step % EPOCH_STEPS == 0 and any(fault.kind == "store back" for fault in self.store_plan):
            self._cuts.append((self.step, copy.deepcopy(self.backend), self.oracle.serial))

    def _harm_store(self) -> None:
        """Where connections are lost with the server, whoever asks next claims anew.

        Where something is applied and not published, the harm waits until nobody is about to publish it: a transaction
        that is committed after the loss is as good as one before it.
        """
        fault = self.store_plan[0]
        if self.oracle.has_unsent() and (self._late or any(process.is_busy for process in self.processes)):
            return
        backend, serial = MemoryBackend(), -1
        if fault.kind == "store back":
            older = [cut for cut in self._cuts if cut[0] <= self.step - fault.length]
            if older:
                _, cut, serial = older[-1]
                backend = copy.deepcopy(cut)
        if not self.oracle.can_forget(serial):
            return
        self.store_plan.pop(0)
        self._may_ask_operator = True
        self.happened.append(f"step {self.step}: {fault.kind}" + (f" to commit {serial}" if serial >= 0 else ""))
        self._replace_store(backend, serial)
        self._late = [late for late in self._late if not getattr(late[1], "is_of_store", False)]
        # Only an older cut needs another server: FLUSHALL leaves everybody connected.
        is_restarted = fault.kind == "store back" or self.chance.random() < 0.6
        for process in self.processes:
            process.is_cut_off = is_restarted

    def _replace_store(self, backend: MemoryBackend, serial: int) -> None:
        self.oracle.forget(serial)
        for name in MemoryBackend.__slots__:
            setattr(self.backend, name, getattr(backend, name))

    def _is_over(self) -> bool:
        """Everything has come, nothing is to go wrong any more, and all has been published and settled."""
        if self._arrived < len(self.sent) or self._late or self._restarts or self._is_with_operator:
            return False
        return (
            self.oracle.is_settled(self._ends)
            and not self.backend.rows
            and all(process.is_idle and process.actor.frozen_until <= self.step for process in self.processes)
        )

    def _where(self) -> str:
        return f"after {self.step} steps {self.oracle.standing(self._ends)}"

    def counts(self) -> dict[str, int]:
        return dict(self.oracle.counted)


def _try(request: Callable[[], object]) -> None:
    """A request whose answer nobody hears."""
    try:
        request()
    except TidemillError:
        return


__all__ = ["Left", "Result", "Sent", "World"]
