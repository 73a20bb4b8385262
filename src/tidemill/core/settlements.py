"""What became of labels and rows the first time: a roll-forward does the same with them, and nothing else.

In: the commit records of some ranges, the examples that were published, the rows that are due. Out: which labels make a
row, which rows to settle again. Invariant: exactly the rows that the log names are settled, so both balances close
after a rebuild as they did before.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter
from typing import NamedTuple

from tidemill.core.records import Due, Partition
from tidemill.core.rows import RowState, unpack_row
from tidemill.errors import StateLostError


class Decided(NamedTuple):
    """One commit record of a partition: what it decided.

    start, next: its range. group_watermark: that rows were settled with. predictions: how many it published. joined,
    waiting: offsets of its labels that met their event, or began to wait for it. settled: of the records whose rows
    expired, or waited in vain.
    """

    start: int
    next: int
    group_watermark: int
    predictions: int
    joined: Sequence[int]
    waiting: Sequence[int]
    settled: Sequence[int]


class Example(NamedTuple):
    """A label that joined, as the examples log names it."""

    id: str
    event_time: int
    label_time: int
    label: int


def outputs_gone(topic: str, finding: str) -> StateLostError:
    """What the operator is told when a log lacks what its commits wrote; `finding`: what is missing, and how many."""
    return StateLostError(
        "TM-4207",
        f"{finding}: {topic} lacks records that the store is computed from, and nothing was decided without them; stop "
        "all workers, put back a snapshot that is newer than what was deleted (`tidemill restore app.yaml --replace`), "
        "and raise the topic's retention",
    )


class Labelled:
    """The labels that joined or waited the first time; others left nothing."""

    def __init__(
        self, examples: Iterable[Example], records: Mapping[Partition, Sequence[Decided]], topic: str = "examples"
    ) -> None:
        """`records`: the commit records of the ranges that are applied again. `topic`: where the examples are from."""
        self._topic = topic
        self._examples = frozenset(examples)
        self._event_times = {(one.id, one.label_time, one.label): one.event_time for one in self._examples}
        commits = [(partition, commit) for partition, found in records.items() for commit in found]
        self._joined = {(partition, offset) for partition, commit in commits for offset in commit.joined}
        self._waiting = {(p, offset): commit.group_watermark for p, commit in commits for offset in commit.waiting}
        self._records = records

    def __contains__(self, example: Example) -> bool:
        return example in self._examples

    def event_time(self, id_: str, label_time: int, label: int) -> int | None:
        """Of the event that a label joined, at once or after it had waited; None: it joined none."""
        return self._event_times.get((id_, label_time, label))

    def expect_example_of_label(self, partition: Partition, offset: int, *, id_: str, label_time: int) -> None:
        """Hold a label that is about to be applied to the log: one that a commit names as joined has an example.

        Raises:
            StateLostError: TM-4207, the example is gone.
        """
        if (partition, offset) in self._joined and not self._has_example(id_, label_time):
            raise outputs_gone(self._topic, f"the label at {partition}@{offset} was joined and has no example")

    def expect_examples_of_events(self, events: Iterable[tuple[str, int]]) -> None:
        """Hold the events (id, time) of the ranges whose labels had come before them to the log.

        Raises:
            StateLostError: TM-4207, examples are gone.
        """
        wanted = set(events)
        wanted.difference_update((one.id, one.event_time) for one in self._examples)
        if wanted:
            raise outputs_gone(self._topic, f"{len(wanted):,} events that met a label that waited have no example")

    def has_record(self, partition: Partition, offset: int) -> bool:
        """It joined or waited: where its id has no row now it has to wait, perhaps for an event applied after it."""
        return (partition, offset) in self._joined or (partition, offset) in self._waiting

    def met_nobody(self, partition: Partition, offset: int, *, id_: str, label_time: int) -> bool:
        """It waited, and no event of its id came in time."""
        return (partition, offset) in self._waiting and not self._has_example(id_, label_time)

    def _has_example(self, id_: str, label_time: int) -> bool:
        # 0 or 1: the rule that makes a label of a record may be another since.
        return any((id_, label_time, label) in self._event_times for label in (0, 1))

    def watermark_at(self, partition: Partition, offset: int) -> int:
        """The group watermark of the commit that decided a record of the ranges; -1 = none did."""
        records = self._records.get(partition, ())
        at = bisect_right(records, offset, key=attrgetter("start")) - 1
        return records[at].group_watermark if at >= 0 and offset < records[at].next else -1

    def forgotten_before(self, partition: Partition, offset: int) -> int:
        """Ended rows due before this had been forgotten when the label began to wait; -1 = it did not wait."""
        return self._waiting.get((partition, offset), -1)


class Settlements:
    """Walks through the commit records of a range while its records are applied again."""

    def __init__(self, records: Mapping[Partition, Sequence[Decided]]) -> None:
        """`records`: by partition, in the order of the log."""
        self._left = {partition: deque(found) for partition, found in records.items()}
        self._watermarks: dict[Partition, int] = {}
        self._settled: set[tuple[Partition, int]] = set()
        self._missed: set[tuple[Partition, int]] = set()  # of these, no row was due so far

    @property
    def misses_rows(self) -> bool:
        """Rows that the log names as settled were not due so far."""
        return bool(self._missed)

    @property
    def watermark(self) -> int:
        """The latest that any partition was settled with so far; -1 = none."""
        return max(self._watermarks.values(), default=-1)

    def advance(self, partition: Partition, *, before: int) -> None:
        """The records before this offset are about to be applied: what their commits settled may be settled."""
        left = self._left.get(partition)
        while left and left[0].start < before:
            found = left.popleft()
            self._watermarks[partition] = max(self._watermarks.get(partition, -1), found.group_watermark)
            named = {(partition, offset) for offset in found.settled}
            self._settled |= named
            self._missed |= named

    def choose(self, due: Sequence[tuple[Due, bytes | None]]) -> tuple[tuple[Due, bytes | None], ...]:
        """The rows to settle now; `due` in the order in which a worker settles."""
        chosen: list[tuple[Due, bytes | None]] = []
        for entry, packed in due:
            if packed is None:
                continue
            row = unpack_row(packed)
            if row.state in (RowState.PENDING, RowState.WAITING):
                # Whatever its time: the label's windows may be longer today than when it was settled.
                is_chosen = (entry.partition, row.offset) in self._settled
                self._missed.discard((entry.partition, row.offset))
            else:
                is_chosen = entry.time < self._watermarks.get(entry.partition, -1)
            if is_chosen:
                chosen.append((entry, packed))
        return tuple(chosen)
