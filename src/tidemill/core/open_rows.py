"""The rows that a batch works on.

In: packed rows as read. Out: each row once, as the batch left it. Invariant: whatever a row becomes, and however often
within the batch, it has the next revision.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tidemill.core.records import Partition
from tidemill.core.rows import Row, due_time, partition_of, unpack_row
from tidemill.core.spec import LabelSpec


def name_aside(id_: str, event_time: int) -> str:
    """Of the row of one event that does not stand under its id (core/rejoining.py)."""
    return f"{id_}\0{event_time}"


@dataclass(slots=True)
class OpenRow:
    """A row while the batch works on it."""

    revision: int
    before: tuple[Partition, int] | None  # (partition, time) of the due entry as read
    row: Row | None
    event_order: int = -1  # the pending event is of this batch
    is_changed: bool = False
    is_aside: bool = False  # see core/rejoining.py

    @property
    def next_revision(self) -> int:
        return self.revision + 1

    def move_to(self, other: OpenRow) -> None:
        """Leave the row to `other`, which has none."""
        assert self.row is not None and other.row is None
        other.row, self.row = self.row._replace(revision=other.next_revision), None
        other.event_order, self.event_order = self.event_order, -1
        self.is_changed = other.is_changed = True


class OpenRows:
    """Rows by name, opened when they are asked for."""

    def __init__(self, packed: Mapping[str, bytes | None], spec: LabelSpec, topic_names: tuple[str, ...]) -> None:
        """`packed`: the rows as read, None = absent."""
        self._packed = packed
        self._spec = spec
        self._topic_names = topic_names
        self._opened: dict[str, OpenRow] = {}

    def __getitem__(self, name: str) -> OpenRow:
        """A row that was not read counts as absent."""
        return self._opened.get(name) or self.open(name, self._packed.get(name))

    def open(self, name: str, packed: bytes | None) -> OpenRow:
        found = self._opened.get(name)
        if found is None:
            row = None if packed is None else unpack_row(packed)
            before = None if row is None else (partition_of(row, self._topic_names), due_time(self._spec, row))
            found = self._opened[name] = OpenRow(row.revision if row else 0, before, row)
        return found

    def aside(self, id_: str, event_time: int) -> OpenRow:
        row = self[name_aside(id_, event_time)]
        row.is_aside = True
        return row

    def changed(self) -> Iterable[tuple[str, OpenRow]]:
        """Those that became something else, in the order in which they were opened."""
        return ((name, row) for name, row in self._opened.items() if row.is_changed)
