"""Which row a record meets when it is applied again.

In: the rows as they are, and what the log says: which label joined which event, and the group watermark that each
record was decided with. Out: the row of the record's id, or one *aside*. Why: an id may come again after it was
forgotten, and workers that apply their partitions again are not equally far, so records meet that never met.
Invariant: the row of an id is that of the record that came last; an older one whose counterpart is still to come
stands aside under a name of its own, until both are there.
"""

from __future__ import annotations

from tidemill.core.open_rows import OpenRow, OpenRows
from tidemill.core.records import Partition
from tidemill.core.rows import Row, RowState
from tidemill.core.settlements import Labelled
from tidemill.core.spec import LabelSpec

_OPEN = (RowState.PENDING, RowState.WAITING)


class Rejoining:
    """The rows of one batch of a roll-forward."""

    def __init__(self, opened: OpenRows, labelled: Labelled, spec: LabelSpec) -> None:
        self._opened = opened
        self._labelled = labelled
        self._spec = spec

    def row_of_event(self, id_: str, time: int, partition: Partition, offset: int) -> OpenRow:
        """The row of an event that was predicted."""
        return self._row_of_pair(id_, time, self._labelled.watermark_at(partition, offset))

    def row_of_label(self, id_: str, time: int, label: int, partition: Partition, offset: int) -> OpenRow:
        """The row of a label."""
        own = self._opened[id_]
        if not self._labelled.has_record(partition, offset):
            return own  # it left nothing, and changes nothing now
        watermark = self._labelled.watermark_at(partition, offset)
        event_time = self._labelled.event_time(id_, time, label)
        if event_time is not None:
            return self._row_of_pair(id_, event_time, watermark)
        is_in_the_way = own.row is not None and own.row.state in _OPEN and self._was_over(id_, own.row, watermark)
        if is_in_the_way and self._labelled.met_nobody(partition, offset, id_=id_, label_time=time):
            self._vacate(id_, own)
        return own

    def _row_of_pair(self, id_: str, event_time: int, watermark: int) -> OpenRow:
        """`watermark`: that the event or its label was decided with."""
        own, aside = self._opened[id_], self._opened.aside(id_, event_time)
        if own.row is not None:
            if self._event_time(id_, own.row) == event_time:
                return own
            if not self._was_over(id_, own.row, watermark):
                return aside
            self._vacate(id_, own)
        if aside.row is not None:
            aside.move_to(own)
        return own

    def _event_time(self, id_: str, row: Row) -> int | None:
        """Of the event that the row is about; None: of a label that met nobody."""
        if row.state is RowState.WAITING:
            return self._labelled.event_time(id_, row.label_time, row.label)
        return row.event_time

    def _was_over(self, id_: str, row: Row, watermark: int) -> bool:
        """Whether a row had been forgotten when a record was decided that it did not meet; else it came later.

        Then the watermark was past its end, or else still before its time: between the two lies all of its life. Who
        decided the record knew the watermark a little late, and events may be late too, so the middle of it is asked.
        """
        event_time, spec = self._event_time(id_, row), self._spec
        kept_ms = spec.wait_ms + spec.allowed_lateness_ms
        if event_time is None:
            return row.label_time + kept_ms // 2 < watermark
        return event_time + max(spec.dedup_window_ms, kept_ms) // 2 < watermark

    def _vacate(self, id_: str, own: OpenRow) -> None:
        """What stands under the id is over, or waits aside for its counterpart or its end."""
        row = own.row
        assert row is not None
        if row.state in _OPEN:
            event_time = self._event_time(id_, row)
            own.move_to(self._opened.aside(id_, row.label_time if event_time is None else event_time))
        own.row = None
