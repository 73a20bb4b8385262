"""What was settled the first time: a roll-forward expires the rows that the log says were expired, and no others.

In: the commit records of some ranges, the examples that were published, the rows that are due. Out: which of these rows
to settle again. Invariant: no row is settled that an example was made of later, and per partition no more are settled
than the log counts; so both balances close after a rebuild as they did before.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from tidemill.core.records import Due, Partition
from tidemill.core.rows import RowState, unpack_row


class Settled(NamedTuple):
    """One commit record of a partition: its span, the watermark that rows were settled with, and how many were."""

    start: int
    next: int
    group_watermark: int
    expired: int
    orphaned: int


class Example(NamedTuple):
    """A label that joined, as the examples log names it."""

    id: str
    event_time: int
    label_time: int
    label: int


class Labelled:
    """The labels that joined the first time."""

    def __init__(self, examples: Iterable[Example]) -> None:
        self._examples = frozenset(examples)
        self._events = {(one.id, one.event_time) for one in self._examples}
        self._labels = {(one.id, one.label_time, one.label) for one in self._examples}

    def __contains__(self, example: Example) -> bool:
        return example in self._examples

    def has_event(self, id_: str, event_time: int) -> bool:
        return (id_, event_time) in self._events

    def has_label(self, id_: str, label_time: int, label: int) -> bool:
        return (id_, label_time, label) in self._labels


class Settlements:
    """Walks through the commit records of a range while its records are applied again."""

    def __init__(self, records: Mapping[Partition, Sequence[Settled]], labelled: Labelled) -> None:
        """`records`: by partition, in the order of the log."""
        self._left = {partition: deque(found) for partition, found in records.items()}
        self._labelled = labelled
        self._watermarks: dict[Partition, int] = {}
        self._expired: Counter[Partition] = Counter()
        self._orphaned: Counter[Partition] = Counter()

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
            self._expired[partition] += found.expired
            self._orphaned[partition] += found.orphaned

    def choose(self, due: Sequence[tuple[Due, bytes | None]]) -> tuple[tuple[Due, bytes | None], ...]:
        """The rows to settle now; `due` in the order in which a worker settles."""
        chosen: list[tuple[Due, bytes | None]] = []
        expired, orphaned = self._expired.copy(), self._orphaned.copy()
        for entry, packed in due:
            place = entry.partition
            if packed is None or entry.time >= self._watermarks.get(place, -1):
                continue
            row = unpack_row(packed)
            if row.state is RowState.PENDING:
                if self._labelled.has_event(entry.id, row.event_time) or not expired[place]:
                    continue
                expired[place] -= 1
            elif row.state is RowState.WAITING:
                if self._labelled.has_label(entry.id, row.label_time, row.label) or not orphaned[place]:
                    continue
                orphaned[place] -= 1
            chosen.append((entry, packed))
        return tuple(chosen)

    def spend(self, chosen: Sequence[tuple[Due, bytes | None]]) -> None:
        """What was chosen has been applied."""
        for entry, packed in chosen:
            state = packed[8] if packed else None
            if state == RowState.PENDING:
                self._expired[entry.partition] -= 1
            elif state == RowState.WAITING:
                self._orphaned[entry.partition] -= 1
