"""The clients of broker and store: what the product calls, each request a step of the world.

In: calls of the product. Out: answers of the fake servers, or the errors that the real clients raise. Invariant: a
request carries what its sender knew when it sent it, whenever it takes effect.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tests.memory_kafka import Message
from tests.simulation.broker import Metadata
from tests.simulation.world import World
from tidemill.core.ports import Applied, Conflict
from tidemill.core.records import Commit, Mark, Output, Partition, Reads, StateView
from tidemill.errors import UnavailableError
from tidemill.io.memory import MemoryStore
from tidemill.io.store_answers import ClaimView

STABLE_TRIES = 200  # while an offset stands in an open transaction


class ReadMessage(Message):
    """A message that knows its topic, as those of a consumer do."""

    def __init__(self, topic: str, offset: int, output: Output) -> None:
        super().__init__(output.key, output.value, output.headers, -1, offset)
        self._topic = topic

    def topic(self) -> str:
        return self._topic

    def partition(self) -> int:
        return 0


class SimulatedStore(MemoryStore):
    """`MemoryStore`, reached over a network, and watched by the oracle."""

    def __init__(self, world: World, owner_slot: str) -> None:
        super().__init__(world.backend, "shop", owner_slot=owner_slot, random_hex=world.random_hex)
        self._world = world

    def read(self, reads: Reads) -> StateView:
        """Not atomic, as on the real server: marks, what is due, state, rows, one after the other."""
        process = self._world.running
        marks = self.marks()
        due = self._ask("read", lambda: self._as_sent().read(_due_of(reads)).due)
        process.read_serial = self._world.oracle.serial
        backend = self._backend
        state = tuple(backend.state.get(key) for key in reads.state_keys)
        if self._world.chance.random() < 0.3:
            process.pause()
        rows = tuple(backend.rows.get(id_) for id_ in reads.ids)
        known = dict(zip(reads.ids, rows, strict=True))
        return StateView(
            state, rows, tuple((entry, known.get(entry.id, backend.rows.get(entry.id))) for entry, _ in due), marks
        )

    def commit(self, commit: Commit) -> Applied | Conflict:
        process, world = self._world.running, self._world
        sender, serial = self._as_sent(), process.read_serial
        step = process.stepped if process.stepped is not None and process.stepped.commit is commit else None

        def request() -> Applied | Conflict:
            answer = sender.commit(commit)
            if isinstance(answer, Applied):
                world.oracle.applied(sender._token, step, serial, commit)
            return answer

        return self._ask("commit", request)

    def mark_published(self, offsets_next: Mapping[Partition, int]) -> Mapping[Partition, Mark]:
        sender = self._as_sent()
        return self._ask("mark", lambda: sender.mark_published(offsets_next))

    def marks(self) -> Mapping[Partition, Mark]:
        return self._ask("marks", lambda: {p: r.mark() for p, r in self._backend.partitions.items()})

    def claim(self, partitions: Sequence[Partition], *, may_create: bool) -> ClaimView:
        self._world.running.is_cut_off = False  # a connection of its own
        sender = self._as_sent()
        self._incarnation = None

        def request() -> ClaimView:
            view = sender.claim(partitions, may_create=may_create)
            if view.incarnation is not None:
                self._world.oracle.claimed(sender._token, partitions)
            return view

        view = self._ask("claim", request)
        self._token, self._incarnation = sender._token, sender._incarnation
        return view

    def open_rebuild(self, new_incarnation: str, *earlier: str) -> str:
        return self._ask("rebuild", lambda: MemoryStore.open_rebuild(self, new_incarnation, *earlier))

    def set_start(self, partition: Partition, offset: int) -> None:
        sender = self._as_sent()
        self._ask("start", lambda: sender.set_start(partition, offset))

    def touch(self, marks: Mapping[Partition, Mark]) -> None:
        sender = self._as_sent()

        def request() -> None:
            sender.touch(marks)
            self._world.oracle.touched(sender._token, marks)

        self._ask("touch", request)

    def release(self, partitions: Sequence[Partition]) -> None:
        sender = self._as_sent()
        self._ask("release", lambda: sender.release(partitions))

    def _as_sent(self) -> MemoryStore:
        """A request as it leaves: with the claim of this moment, and done in one go where it arrives."""
        sent = MemoryStore.__new__(MemoryStore)
        sent.__dict__.update(self.__dict__)
        return sent

    def _ask(self, what: str, request: Callable[[], Any]) -> Any:
        process = self._world.running
        if process.is_cut_off:
            raise UnavailableError("TM-3001", f"store, {what}: the connection was lost")

        def unless_cut_off() -> Any:
            if process.is_cut_off and what != "claim":
                raise UnavailableError("TM-3001", f"store, {what}: the connection was lost")
            return request()

        unless_cut_off.is_of_store = True  # type: ignore[attr-defined]
        return self._world.call(f"store {what}", unless_cut_off)


def _due_of(reads: Reads) -> Reads:
    return Reads((), (), reads.due_partitions, reads.due_before, reads.due_limit)


class SimulatedWriter:
    """Stands in for `TransactionalWriter`."""

    def __init__(self, settings: Mapping[str, Any], transactional_id: str, failpoint: object = None) -> None:
        self._world: World = settings["world"]
        self._id = transactional_id
        self._epoch = -1

    def open(self) -> None:
        self._epoch = self._world.call("kafka init", lambda: self._world.broker.init_transactions(self._id))

    def publish(
        self, outputs: Sequence[Output], offsets: Mapping[Partition, tuple[int, str]], group_metadata: object
    ) -> dict[str, int]:
        broker, call = self._world.broker, self._world.call
        assert isinstance(group_metadata, Metadata)
        transaction = broker.begin(self._id, self._epoch)
        last: dict[str, int] = {}
        if outputs:
            last = call("kafka produce", lambda: broker.produce(transaction, outputs))
        call("kafka offsets", lambda: broker.send_offsets(transaction, offsets, group_metadata))
        call("kafka end", lambda: broker.end(transaction))
        return last

    def abandon(self) -> None:
        """What it left is ended by the next producer of its id."""


class SimulatedReader:
    """Stands in for `LogReader`, on inputs and outputs."""

    is_committed_only = True

    def __init__(self, settings: Mapping[str, Any], topic: str, partition: int) -> None:
        self._world: World = settings["world"]
        self._at = Partition(topic, partition)
        self.position = 0

    def seek(self, offset: int) -> None:
        self.position = offset

    def first_offset(self) -> int:
        return 0

    def end_offset(self) -> int:
        return int(self._world.call("kafka end of log", lambda: self._world.broker.stable_end(self._at.topic)))

    def read(self, *, until_offset: int | None, timeout_s: float, max_records: int) -> list[Message]:
        found, after = self._world.call("kafka fetch", self._fetch)
        if until_offset is not None:
            found = [message for message in found if message.offset() < until_offset]
            after = min(after, until_offset)
        if not found and timeout_s:
            self._world.sleep(timeout_s)
        if len(found) > max_records:
            found, after = found[:max_records], found[max_records].offset()
        self.position = max(self.position, after)
        return found

    def close(self) -> None:
        """There is no connection."""

    def _fetch(self) -> tuple[list[Message], int]:
        if self._at in self._world.lanes:
            messages = [m for m in self._world.lanes[self._at] if m.offset() >= self.position]
            return messages, self._world.end(self._at)
        listed, after = self._world.broker.read(self._at.topic, self.position, is_committed_only=self.is_committed_only)
        return [ReadMessage(self._at.topic, at, output) for at, output in listed], after


class SimulatedKafka:
    """Stands in for the module `tidemill.io.kafka`."""

    @staticmethod
    def partitions_of(settings: Mapping[str, Any], topics: Sequence[str]) -> list[Partition]:
        return [place for name in topics for place in sorted(settings["world"].lanes) if place.topic == name]

    @staticmethod
    def committed_offsets(
        settings: Mapping[str, Any], group: str, partitions: Sequence[Partition]
    ) -> dict[Partition, tuple[int | None, str]]:
        world: World = settings["world"]
        for _ in range(STABLE_TRIES):
            found: dict[Partition, tuple[int | None, str]] | None
            found = world.call("kafka committed", lambda: world.broker.committed(partitions))
            if found is not None:
                return found
        raise UnavailableError("TM-3010", "an offset stands in an open transaction")

    @staticmethod
    def log_bounds(settings: Mapping[str, Any], partitions: Sequence[Partition]) -> dict[Partition, tuple[int, int]]:
        world: World = settings["world"]
        return {partition: (0, world.end(partition)) for partition in partitions}


def read_topic(settings: Mapping[str, Any], topic: str) -> Iterator[list[ReadMessage]]:
    """What can be read of a topic now; asked only while the group has no offset, when nothing can go wrong with it."""
    yield [ReadMessage(topic, at, output) for at, output in settings["world"].broker.read(topic, 0)[0]]


def read_to_end(settings: Mapping[str, Any], topic: str, _starts: Sequence[int] = ()) -> Iterator[list[Message]]:
    """All committed records that a topic holds now, those behind open transactions included."""
    world: World = settings["world"]
    end = world.broker.log_end(topic)
    for _ in range(STABLE_TRIES):
        listed, after = world.call("kafka read", lambda: world.broker.read(topic, 0))
        if after >= end:
            break
    else:
        raise UnavailableError("TM-3010", f"a transaction on {topic} does not end")
    if listed:
        yield [ReadMessage(topic, at, output) for at, output in listed]
