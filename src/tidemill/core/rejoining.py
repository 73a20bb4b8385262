"""Which row a record meets when it is applied again.

In: the rows as they are, and the pairs of event and label that the log names. Out: the row of the record's id, or one
*aside*. Why: an id may come again after it was forgotten, and workers that apply their partitions again are not
equally far, so records meet that never met. Invariant: the row of an id is that of its newest record; an older one
whose counterpart is still to come stands aside under a name of its own, until both are there.
"""

from __future__ import annotations

from tidemill.core.open_rows import OpenRow, OpenRows
from tidemill.core.records import Partition
from tidemill.core.rows import Row, RowState
from tidemill.core.settlements import Labelled

_OPEN = (RowState.PENDING, RowState.WAITING)


def row_of_event(id_: str, time: int, opened: OpenRows, labelled: Labelled) -> OpenRow:
    """The row of an event that was predicted, and of the label that joined it."""
    own, aside = opened[id_], opened.aside(id_, time)
    if own.row is not None:
        if _event_time(id_, own.row, labelled) == time:
            return own
        if _time(own.row) > time:
            return aside
        _vacate(id_, own, opened, labelled)
    if aside.row is not None:
        aside.move_to(own)
    return own


def row_of_label(
    id_: str, time: int, label: int, partition: Partition, offset: int, opened: OpenRows, labelled: Labelled
) -> OpenRow:
    """The row of a label."""
    own = opened[id_]
    if not labelled.has_record(partition, offset):
        return own  # it left nothing, and changes nothing now
    event_time = labelled.event_time(id_, time, label)
    if event_time is not None:
        return row_of_event(id_, event_time, opened, labelled)
    is_in_the_way = own.row is not None and own.row.state in _OPEN and _time(own.row) <= time
    if is_in_the_way and labelled.met_nobody(partition, offset, id_=id_, label_time=time):
        _vacate(id_, own, opened, labelled)
    return own


def _event_time(id_: str, row: Row, labelled: Labelled) -> int | None:
    """Of the event that the row is about; None: of a label that met nobody."""
    return labelled.event_time(id_, row.label_time, row.label) if row.state is RowState.WAITING else row.event_time


def _time(row: Row) -> int:
    return row.label_time if row.state is RowState.WAITING else row.event_time


def _vacate(id_: str, own: OpenRow, opened: OpenRows, labelled: Labelled) -> None:
    """What stands under the id is over, or goes aside."""
    row = own.row
    assert row is not None
    event_time = _event_time(id_, row, labelled)
    if row.state in _OPEN and event_time is not None:
        own.move_to(opened.aside(id_, event_time))
    own.row = None
