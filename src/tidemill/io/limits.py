"""What one record may hold: texts that become keys and tokens, and items of arrays and maps.

In: sound columns of an input topic. Out: faults by row. Invariant: a row's verdict depends on that row alone, never on
its neighbours, so a replay in other batches gives the same dead letters.

Without them one producer could write keys of a megabyte into the store, and outputs that no longer fit a slice.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.core.records import Int64s
from tidemill.core.spec import AppSpec, LimitsSpec, TopicSpec
from tidemill.io.dead_letters import Code
from tidemill.io.judge import Fault


class RecordLimits:
    """The limits of one topic's records, once their values are decoded."""

    def __init__(self, spec: AppSpec, topic: TopicSpec, columns: pa.Schema) -> None:
        self._limits: LimitsSpec = spec.limits
        kept = set(_kept_fields(spec, topic))
        self._texts = [one.name for one in columns if one.name in kept and _is_text(one.type)]
        self._nested = [one.name for one in columns if pa.types.is_nested(one.type)]

    def find_excess(self, columns: pa.RecordBatch) -> dict[int, Fault]:
        """The rows that hold more than they may; of several reasons the first field's."""
        excess: dict[int, Fault] = {}
        for name in self._texts:
            length = pc.fill_null(pc.binary_length(columns.column(name)), 0).to_numpy()
            for row in np.flatnonzero(length > self._limits.text_bytes).tolist():
                limit = self._limits.text_bytes
                what = f"has {length[row]} bytes in field {name}, over the limit of {limit} for the text"
                excess.setdefault(row, Fault(Code.TEXT_TOO_LONG, f"{what} of an id, an entity or a category"))
        if self._nested and columns.num_rows:
            items = np.sum([count_items(columns.column(name)) for name in self._nested], axis=0)
            for row in np.flatnonzero(items > self._limits.items).tolist():
                what = f"holds {items[row]} items in arrays and maps, over the limit of {self._limits.items}"
                excess.setdefault(row, Fault(Code.TOO_MANY_ITEMS, what))
        return excess


def count_items(column: pa.Array) -> Int64s:
    """How many items each row's arrays and maps hold, those inside of others included."""
    kind = column.type
    if pa.types.is_struct(kind):
        children = [count_items(child) for child in column.flatten()]
        return np.sum(children, axis=0, dtype=np.int64) if children else np.zeros(len(column), np.int64)
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_map(kind)):
        return np.zeros(len(column), np.int64)
    offsets = column.offsets.to_numpy().astype(np.int64)
    inside = column.items if pa.types.is_map(kind) else column.values
    ends = np.concatenate([[0], np.cumsum(1 + count_items(inside))])
    counts: Int64s = ends[offsets[1:]] - ends[offsets[:-1]]
    return counts


def _kept_fields(spec: AppSpec, topic: TopicSpec) -> Iterator[str]:
    """Fields whose texts go into keys of the store, into features, or into outputs."""
    if topic.id_field is not None:
        yield topic.id_field
    for group in spec.groups:
        if topic.role != "label":  # a label's entity is read from its event
            yield from group.entity
        for feature in group.features:
            is_read_here = topic.role == "event" if feature.of is None else feature.of == topic.name
            if feature.field is not None and is_read_here:
                yield feature.field


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_binary(kind))
