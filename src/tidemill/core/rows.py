"""The bytes that the store keeps of one event id, from its first record until it is forgotten.

In: a `Row`. Out: bytes that begin with the revision, so that the store can compare it without knowing the rest.
Invariant: `unpack_row(pack_row(row)) == row`; revision 0 is never packed (it means that no row exists).
"""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

from tidemill.core.records import Partition
from tidemill.core.spec import LabelSpec


class RowState(IntEnum):
    """Where an id stands; byte 8 of a packed row."""

    PENDING = 1  # predicted, no label yet; tail = features and scores as served (row.v1)
    WAITING = 2  # the label came first; tail = the label's fields as JSON
    JOINED = 3  # predicted and labelled; no tail
    EXPIRED = 4  # predicted, the label never came; no tail


class Row(NamedTuple):
    """`partition` and `offset`: the record that made the row (the event's; for WAITING the label's). The due entry of
    the row is indexed under that partition. `label` is -1 while unknown, `label_time` -1 likewise."""

    revision: int
    state: RowState
    event_time: int
    label_time: int
    label: int
    topic_index: int
    partition: int
    offset: int
    tail: bytes


_HEADER = struct.Struct(">QBqqbhiq")


def pack_row(row: Row) -> bytes:
    return _HEADER.pack(*row[:8]) + row.tail


def unpack_row(packed: bytes) -> Row:
    row = Row._make((*_HEADER.unpack_from(packed), packed[_HEADER.size :]))
    return row._replace(state=RowState(row.state))


def revision_of(packed: bytes | None) -> int:
    """The revision of what the store holds; 0 = no row."""
    return 0 if packed is None else int.from_bytes(packed[:8], "big")


def partition_of(row: Row, topic_names: tuple[str, ...]) -> Partition:
    """The input partition of the record that made the row."""
    return Partition(topic_names[row.topic_index], row.partition)


def due_time(spec: LabelSpec, row: Row) -> int:
    """When the row must be looked at again, in event time."""
    if row.state is RowState.PENDING:
        return row.event_time + spec.wait_ms + spec.allowed_lateness_ms
    if row.state is RowState.WAITING:
        return row.label_time + spec.wait_ms + spec.allowed_lateness_ms
    return row.event_time + max(spec.dedup_window_ms, spec.wait_ms + spec.allowed_lateness_ms)
