"""A broker as far as the product relies on it: logs, transactions, last stable offsets, one consumer group.

In: requests of producers and consumers. Out: answers, `FencedError` where Kafka would refuse. Invariant: records and
offsets of a transaction become visible together when it is committed, and never when it is aborted; a producer of an
older epoch and a member of an older generation change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tidemill.core.records import Output, Partition
from tidemill.errors import FencedError, UnavailableError

TRANSACTION_TIMEOUT_MS = 10_000
SESSION_TIMEOUT_MS = 6_000
REBALANCE_TIMEOUT_MS = 6_000


@dataclass(eq=False)
class Transaction:
    """`state`: open, committed or aborted."""

    writer: str
    epoch: int
    began_ms: int
    state: str = "open"
    outputs: list[Output] = field(default_factory=list)
    offsets: dict[Partition, tuple[int, str]] = field(default_factory=dict)


class Entry(NamedTuple):
    """One offset of an output topic. output: None = the marker that ends a transaction."""

    output: Output | None
    transaction: Transaction


class Metadata(NamedTuple):
    """What a consumer tells of its place in the group."""

    slot: str
    member: int
    generation: int


class Broker:
    """Output topics have one partition each; inputs are the world's."""

    def __init__(self, now_ms: Callable[[], int], on_commit: Callable[[Transaction], None]) -> None:
        self.logs: dict[str, list[Entry]] = {}
        self.offsets: dict[Partition, tuple[int, str]] = {}
        self.group = Group(now_ms)
        self._now_ms = now_ms
        self._on_commit = on_commit
        self._epochs: dict[str, int] = {}
        self._open: dict[str, Transaction] = {}

    # Producers

    def init_transactions(self, writer: str) -> int:
        """The epoch of a new producer; the transaction of the one before it is aborted."""
        self._abort(writer)
        self._epochs[writer] = self._epochs.get(writer, -1) + 1
        return self._epochs[writer]

    def begin(self, writer: str, epoch: int) -> Transaction:
        """Known to the producer alone until its first request."""
        return Transaction(writer, epoch, self._now_ms())

    def produce(self, transaction: Transaction, outputs: Sequence[Output]) -> dict[str, int]:
        """The offset of the last output of each topic."""
        self._check_open(transaction)
        last = {}
        for output in outputs:
            log = self.logs.setdefault(output.topic, [])
            log.append(Entry(output, transaction))
            last[output.topic] = len(log) - 1
            transaction.outputs.append(output)
        return last

    def send_offsets(
        self, transaction: Transaction, offsets: Mapping[Partition, tuple[int, str]], metadata: Metadata
    ) -> None:
        self._check_open(transaction)
        self.group.check(metadata)
        transaction.offsets.update(offsets)

    def end(self, transaction: Transaction) -> None:
        """Commit."""
        self._check_open(transaction)
        transaction.state = "committed"
        self._write_markers(transaction)
        self.offsets.update(transaction.offsets)
        del self._open[transaction.writer]
        self._on_commit(transaction)

    def tick(self) -> None:
        """Time passes: transactions and sessions end."""
        for writer, transaction in list(self._open.items()):
            if self._now_ms() - transaction.began_ms > TRANSACTION_TIMEOUT_MS:
                self._abort(writer)
                self._epochs[writer] += 1
        self.group.tick()

    @property
    def is_deserted(self) -> bool:
        """No transaction is open and no session lives."""
        return not self._open and self.group.is_empty

    # Consumers

    def committed(self, partitions: Sequence[Partition]) -> dict[Partition, tuple[int | None, str]] | None:
        """None while a transaction with an offset of one of them is open."""
        pending = {partition for transaction in self._open.values() for partition in transaction.offsets}
        if pending & set(partitions):
            return None
        return {partition: self.offsets.get(partition, (None, "")) for partition in partitions}

    def log_end(self, topic: str) -> int:
        """Open transactions included."""
        return len(self.logs.get(topic, []))

    def stable_end(self, topic: str) -> int:
        """The last stable offset."""
        log = self.logs.get(topic, [])
        return next((at for at, entry in enumerate(log) if entry.transaction.state == "open"), len(log))

    def read(self, topic: str, start: int, *, is_committed_only: bool = True) -> tuple[list[tuple[int, Output]], int]:
        """Records from `start` with their offsets, and where the next read begins."""
        log = self.logs.get(topic, [])
        end = self.stable_end(topic) if is_committed_only else len(log)
        found = [
            (at, entry.output)
            for at, entry in enumerate(log[start:end], start)
            if entry.output is not None and (entry.transaction.state == "committed" or not is_committed_only)
        ]
        return found, max(start, end)

    def _check_epoch(self, writer: str, epoch: int) -> None:
        if self._epochs.get(writer) != epoch:
            raise FencedError("TM-4010", f"a newer producer of {writer} took over, or its transaction timed out")

    def _check_open(self, transaction: Transaction) -> None:
        self._check_epoch(transaction.writer, transaction.epoch)
        if self._open.setdefault(transaction.writer, transaction) is not transaction or transaction.state != "open":
            raise UnavailableError("TM-3014", f"transaction of {transaction.writer} is {transaction.state}")

    def _abort(self, writer: str) -> None:
        transaction = self._open.pop(writer, None)
        if transaction is not None:
            transaction.state = "aborted"
            self._write_markers(transaction)

    def _write_markers(self, transaction: Transaction) -> None:
        for topic in dict.fromkeys(output.topic for output in transaction.outputs):
            self.logs[topic].append(Entry(None, transaction))


@dataclass
class _Member:
    number: int
    seen_ms: int
    has_joined: bool = True


class Group:
    """Members by their static name; eager rebalances."""

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self.generation = 0
        self.is_preparing = False
        self.assignment: dict[str, frozenset[Partition]] = {}
        self.partitions: list[Partition] = []
        self.shuffle: Callable[[list[Partition]], None] = lambda partitions: None
        self._members: dict[str, _Member] = {}
        self._numbers = 0
        self._since_ms = 0
        self._now_ms = now_ms

    @property
    def is_empty(self) -> bool:
        return not self._members

    def join(self, slot: str) -> int:
        """A new process of a slot. A known slot keeps its partitions: nobody else hears of it."""
        self._numbers += 1
        is_known = slot in self._members and not self.is_preparing and slot in self.assignment
        self._members[slot] = _Member(self._numbers, self._now_ms())
        if not is_known:
            self._prepare()
            self._members[slot].has_joined = True
        return self._numbers

    def rejoin(self, slot: str) -> None:
        self._members[slot].has_joined = True

    def leave(self, slot: str, member: int) -> None:
        if self.standing(slot, member) == "member":
            del self._members[slot]
            self._prepare()

    def standing(self, slot: str, member: int) -> str:
        """member; unknown: it was silent for too long; replaced: another process has its slot."""
        found = self._members.get(slot)
        if found is None:
            return "unknown"
        return "member" if found.number == member else "replaced"

    def beat(self, slot: str, member: int) -> None:
        found = self._members.get(slot)
        if found is not None and found.number == member:
            found.seen_ms = self._now_ms()

    def check(self, metadata: Metadata) -> None:
        """Raises FencedError unless the member is one, of this generation."""
        is_member = self.standing(metadata.slot, metadata.member) == "member"
        if not is_member or metadata.generation != self.generation:
            raise FencedError("TM-4010", f"{metadata} is not of generation {self.generation}")

    def tick(self) -> None:
        now = self._now_ms()
        gone = [slot for slot, member in self._members.items() if now - member.seen_ms > SESSION_TIMEOUT_MS]
        for slot in gone:
            del self._members[slot]
        if gone:
            self._prepare()
        if not self.is_preparing:
            return
        late = [slot for slot, member in self._members.items() if not member.has_joined]
        if late and now - self._since_ms <= REBALANCE_TIMEOUT_MS:
            return
        for slot in late:
            del self._members[slot]
        self.generation += 1
        self.is_preparing = False
        slots = sorted(self._members)
        listed = list(self.partitions)
        self.shuffle(listed)
        self.assignment = {slot: frozenset(listed[at :: len(slots)]) for at, slot in enumerate(slots)}

    def _prepare(self) -> None:
        if not self.is_preparing:
            self._since_ms = self._now_ms()
        self.is_preparing = True
        for member in self._members.values():
            member.has_joined = False
