"""The columns of what is served, published and remembered, as Arrow tables.

In: features, scores, joins. Out: record batches whose columns are those of `schemas/tidemill/*.avsc`, in their order.
Invariant: features and scores of an example are those of its prediction, copied and never computed again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.core.labels import Amendment, EventEntry, Join
from tidemill.core.records import (
    FeatureBatch,
    Float32s,
    Float64s,
    Outcome,
    Partition,
    Scores,
    Span,
    TopFeatures,
)

TEXTS = pa.list_(pa.string())
NUMBERS = pa.list_(pa.float32())
OUTLIER = "outlier"  # the event, or its label, breaks an entry rule that flags
UNTAUGHT = frozenset({"label_first", "late", OUTLIER})  # flags of examples that are published and not learned
_UNEXPLAINED = TopFeatures((), ())

SERVED = pa.schema(
    [
        pa.field("blend", pa.float64(), nullable=False),
        pa.field("learner", pa.float64()),
        pa.field("booster", pa.float64()),
        pa.field("base_rate", pa.float64()),
        pa.field("n", pa.int64(), nullable=False),
        pa.field("model_version", pa.string(), nullable=False),
        pa.field("other", pa.float64()),
        pa.field("other_version", pa.string(), nullable=False),
        pa.field("feature_digest", pa.string(), nullable=False),
        pa.field("numeric", NUMBERS, nullable=False),
        pa.field("categories", TEXTS, nullable=False),
        pa.field("entities", TEXTS, nullable=False),
        pa.field("flags", TEXTS, nullable=False),
    ]
)


def served_columns(
    features: FeatureBatch,
    scores: Scores,
    entities: Sequence[Sequence[str]],
    flags: Sequence[Sequence[str]],
    feature_digest: str,
) -> pa.RecordBatch:
    """Features and scores of scored events, one row each: what a pending row keeps (row.v1)."""
    count = len(features)
    blend, model_version, other, other_version = _who_served(scores, count)
    return pa.RecordBatch.from_arrays(
        [
            blend,
            pa.array(scores.learner),
            _optional(scores.booster, count),
            pa.array(scores.base_rate),
            _repeated(scores.n, count, pa.int64()),
            model_version,
            other,
            other_version,
            _repeated(feature_digest, count, pa.string()),
            _number_lists(features.numeric),
            _text_lists(features.categories, count),
            pa.array(entities, TEXTS),
            pa.array(flags, TEXTS),
        ],
        schema=SERVED,
    )


def with_entities(served: pa.RecordBatch, entities: Sequence[Sequence[str]]) -> pa.RecordBatch:
    """Rows as served, with other entities."""
    return served.set_column(SERVED.get_field_index("entities"), SERVED.field("entities"), pa.array(entities, TEXTS))


def prediction_columns(
    events: Sequence[EventEntry],
    topic_names: Sequence[str],
    served: pa.RecordBatch,
    threshold: float,
    top: Mapping[int, TopFeatures],
) -> pa.RecordBatch:
    """prediction.v1, one row per scored event; `top` by row."""
    blend = served.column("blend")
    columns = {
        "id": pa.array([event.id for event in events], pa.string()),
        "event_time": pa.array([event.time for event in events], pa.int64()),
        "topic": pa.array([topic_names[event.topic_index] for event in events], pa.string()),
        "partition": pa.array([event.partition for event in events], pa.int32()),
        "offset": pa.array([event.offset for event in events], pa.int64()),
        "blend": blend,
        "decision": pa.array(blend.to_numpy() > threshold),
    }
    for name in SERVED.names[1:]:
        columns[name] = served.column(name)
    explained = [top.get(row, _UNEXPLAINED) for row in range(len(events))]
    columns["top_features"] = pa.array([one.names for one in explained], TEXTS)
    columns["top_contributions"] = pa.array([one.contributions for one in explained], NUMBERS)
    return pa.RecordBatch.from_pydict(columns)


def example_columns(
    joins: Sequence[Join],
    served: pa.RecordBatch,
    *,
    is_label_flagged: Sequence[bool] = (),
    untaught: frozenset[str] = UNTAUGHT,
) -> pa.RecordBatch:
    """example.v1, one row per join; `served` has the row that each join judges, in the same order.

    A label that came before its event, or an event that came late, teaches nothing: its features were not those of an
    event on time. Nor does an outlier, unless the app declares that it does.

    Args:
        is_label_flagged: per join, whether its label's record is an outlier; empty = none is.
        untaught: the flags of examples that are not learned.
    """
    flags = served.column("flags").to_pylist()
    for at in np.flatnonzero(is_label_flagged).tolist():
        if OUTLIER not in flags[at]:
            flags[at] = [*flags[at], OUTLIER]
    is_learned = [untaught.isdisjoint(mine) for mine in flags]
    columns = {
        "kind": _repeated("example", len(joins), pa.string()),
        "id": pa.array([join.id for join in joins], pa.string()),
        "label": pa.array([join.label for join in joins], pa.int32()),
        "event_time": pa.array([join.event_time for join in joins], pa.int64()),
        "label_time": pa.array([join.label_time for join in joins], pa.int64()),
        "is_learned": pa.array(is_learned, pa.bool_()),
    }
    for name in SERVED.names:
        if name not in ("entities", "flags"):
            columns[name] = served.column(name)
    columns["flags"] = pa.array(flags, TEXTS)
    return pa.RecordBatch.from_pydict(columns)


def amendment_columns(amendments: Sequence[Amendment], feature_digest: str) -> pa.RecordBatch:
    """example.v1 of kind amendment: the row it amends was dropped when its first label came, so features are empty."""
    count = len(amendments)
    empty = pa.array([[]] * count, TEXTS)
    return pa.RecordBatch.from_pydict(
        {
            "kind": _repeated("amendment", count, pa.string()),
            "id": pa.array([one.id for one in amendments], pa.string()),
            "label": pa.array([one.label for one in amendments], pa.int32()),
            "event_time": pa.array([one.event_time for one in amendments], pa.int64()),
            "label_time": pa.array([one.label_time for one in amendments], pa.int64()),
            "is_learned": _repeated(False, count, pa.bool_()),
            "blend": _repeated(0.0, count, pa.float64()),
            "learner": pa.nulls(count, pa.float64()),
            "booster": pa.nulls(count, pa.float64()),
            "base_rate": pa.nulls(count, pa.float64()),
            "n": _repeated(0, count, pa.int64()),
            "model_version": _repeated("", count, pa.string()),
            "other": pa.nulls(count, pa.float64()),
            "other_version": _repeated("", count, pa.string()),
            "feature_digest": _repeated(feature_digest, count, pa.string()),
            "numeric": pa.array([[]] * count, NUMBERS),
            "categories": empty,
            "flags": empty,
        }
    )


def commit_columns(
    parts: Sequence[tuple[Partition, Span, Mapping[Outcome, int]]],
    merge_ranks: Sequence[int],
    *,
    joined: Sequence[Sequence[int]],
    waiting: Sequence[Sequence[int]],
    settled: Sequence[Sequence[int]],
    worker: str,
    number: int,
    n: int,
    group_watermark: int,
) -> pa.RecordBatch:
    """commit.v1, one row per partition: span, counts of outcomes, offsets of what joined, waits and ended."""
    count = len(parts)
    return pa.RecordBatch.from_pydict(
        {
            "topic": pa.array([partition.topic for partition, _, _ in parts], pa.string()),
            "partition": pa.array([partition.number for partition, _, _ in parts], pa.int32()),
            "start": pa.array([span.start for _, span, _ in parts], pa.int64()),
            "next": pa.array([span.next for _, span, _ in parts], pa.int64()),
            "worker": _repeated(worker, count, pa.string()),
            "batch": _repeated(number, count, pa.int64()),
            "n": _repeated(n, count, pa.int64()),
            "watermark": pa.array([span.watermark for _, span, _ in parts], pa.int64()),
            "group_watermark": _repeated(group_watermark, count, pa.int64()),
            "merge_rank": pa.array(merge_ranks, pa.int32()),
            "outcomes": pa.array(
                [[(o.name.lower(), counted) for o, counted in sorted(outcomes.items())] for _, _, outcomes in parts],
                pa.map_(pa.string(), pa.int64()),
            ),
            "joined": pa.array(joined, pa.list_(pa.int64())),
            "waiting": pa.array(waiting, pa.list_(pa.int64())),
            "settled": pa.array(settled, pa.list_(pa.int64())),
        }
    )


def _who_served(scores: Scores, count: int) -> tuple[pa.Array, pa.Array, pa.Array, pa.Array]:
    """Per row: the blend served and whose it is, and what the other of champion and challenger says."""
    champion = _repeated(scores.model_version, count, pa.string())
    challenger = _repeated(scores.other_version, count, pa.string())
    if scores.is_canary is None or scores.other is None:
        return pa.array(scores.blend), champion, _optional(scores.other, count), challenger
    chosen = pa.array(scores.is_canary)
    return (
        pa.array(scores.served),
        pc.if_else(chosen, challenger, champion),
        pa.array(np.where(scores.is_canary, scores.blend, scores.other)),
        pc.if_else(chosen, champion, challenger),
    )


def _number_lists(matrix: Float32s) -> pa.ListArray:
    rows, width = matrix.shape
    offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * width)
    return pa.ListArray.from_arrays(offsets, pa.array(np.ascontiguousarray(matrix).reshape(-1)))


def _text_lists(columns: Sequence[Sequence[str]], count: int) -> pa.ListArray:
    """One list per row, of the row's text in each column."""
    offsets = pa.array(np.arange(count + 1, dtype=np.int32) * len(columns))
    return pa.ListArray.from_arrays(offsets, pa.array([*chain.from_iterable(zip(*columns, strict=True))], pa.string()))


def _repeated(value: object, count: int, kind: pa.DataType) -> pa.Array:
    return pa.repeat(pa.scalar(value, kind), count)


def _optional(values: Float64s | None, count: int) -> pa.Array:
    return pa.nulls(count, pa.float64()) if values is None else pa.array(values)
