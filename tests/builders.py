"""Small apps and batches for tests of the core.

In: a few lines of what matters to the test. Out: an `AppSpec`, a `Batch` as the wire would decode it.
Invariant: records keep the order in which they are listed; merged order is up to the test.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from tidemill.core.records import Batch, Kind, Partition, Span, TopicRecords
from tidemill.core.spec import AppSpec, Condition, FeatureSpec, GroupSpec, LabelSpec, Role, TopicSpec

ARROW = {
    "string": pa.string(),
    "int": pa.int32(),
    "long": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "boolean": pa.bool_(),
}
KINDS = {"event": Kind.EVENT, "label": Kind.LABEL, "context": Kind.CONTEXT}
CONTEXT = {"shop": "string", "reading": "double"}
LABEL = {"id": "string", "outcome": "int"}
EVENT = {"id": "string", "shop": "string", "user": "long", "amount": "double"}

Record = tuple[str, int, Mapping[str, Any]]  # topic, event time, fields


def a_topic(name: str, role: Role, fields: Mapping[str, str]) -> TopicSpec:
    """All fields may be null; `id` names the event."""
    listed = [{"name": field, "type": ["null", kind], "default": None} for field, kind in fields.items()]
    schema = {"type": "record", "name": name.replace(".", "_"), "fields": listed}
    return TopicSpec(name=name, role=role, schema=schema, id_field="id" if "id" in fields else None)


def a_count(name: str, of: str, window_ms: int) -> FeatureSpec:
    return FeatureSpec(name=name, kind="count", of=of, window_ms=window_ms)


def a_mean(name: str, of: str, value: str, window_ms: int, **more: float) -> FeatureSpec:
    return FeatureSpec(name=name, kind="mean", of=of, value=value, window_ms=window_ms, **more)


def a_latest(name: str, of: str, field: str) -> FeatureSpec:
    return FeatureSpec(name=name, kind="latest", of=of, field=field)


def a_field(name: str, field: str) -> FeatureSpec:
    return FeatureSpec(name=name, kind="field", field=field)


def a_category(name: str, field: str) -> FeatureSpec:
    return FeatureSpec(name=name, kind="category", field=field)


def a_group(name: str, entity: Sequence[str], *features: FeatureSpec, version: int = 1) -> GroupSpec:
    return GroupSpec(name=name, entity=tuple(entity), features=features, version=version)


def a_spec(
    *groups: GroupSpec,
    context: Mapping[str, str] = CONTEXT,
    label: Mapping[str, str] = LABEL,
    event: Mapping[str, str] = EVENT,
    max_skew_ms: int = 0,
) -> AppSpec:
    """Topics `readings` (context), `outcomes` (label: positive when `outcome` is above 0) and `events`."""
    return AppSpec(
        name="shop",
        topics=(
            a_topic("readings", "context", context),
            a_topic("outcomes", "label", label),
            a_topic("events", "event", event),
        ),
        label=LabelSpec(positive_if_any=(Condition(field="outcome", above=0),), wait_ms=1_000_000),
        groups=groups,
        max_skew_ms=max_skew_ms,
    )


def columns_of(topic: TopicSpec, rows: Sequence[Mapping[str, Any]]) -> pa.RecordBatch:
    """Rows as columns of the topic's schema; fields that a row lacks are null."""
    types = {one["name"]: one["type"] for one in topic.schema["fields"]}
    fields = [(name, ARROW[kind if isinstance(kind, str) else kind[1]]) for name, kind in types.items()]
    return pa.RecordBatch.from_arrays(
        [pa.array([row.get(name) for row in rows], kind) for name, kind in fields], names=[name for name, _ in fields]
    )


def a_batch(spec: AppSpec, records: Sequence[Record], *, first_offset: int = 0) -> Batch:
    """One batch of `records` as listed, all in partition 0 of their topics.

    Offsets count up from `first_offset` over the whole batch, so that each partition has holes, as real ones do.
    """
    topics = {topic.name: (index, topic) for index, topic in enumerate(spec.topics)}
    names = [name for name, _, _ in records]
    found: dict[str, TopicRecords] = {}
    spans: dict[Partition, Span] = {}
    for name in dict.fromkeys(names):
        at = np.array([i for i, other in enumerate(names) if other == name], dtype=np.int64)
        found[name] = TopicRecords(name, at, columns_of(topics[name][1], [records[i][2] for i in at]))
        watermark = max(records[i][1] for i in at)
        spans[Partition(name, 0)] = Span(first_offset, first_offset + len(records), watermark, False)
    return Batch(
        spans=spans,
        time=np.array([time for _, time, _ in records], dtype=np.int64),
        kind=np.array([KINDS[topics[name][1].role] for name in names], dtype=np.int8),
        topic_index=np.array([topics[name][0] for name in names], dtype=np.int16),
        partition=np.zeros(len(records), dtype=np.int32),
        offset=np.arange(first_offset, first_offset + len(records), dtype=np.int64),
        records=found,
    )
