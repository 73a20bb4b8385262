"""Runs of the examples log as columns: put together, cut by offset.

In: columns in log order. Out: columns in log order. Invariant: no row is changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from itertools import chain, compress
from typing import Any

import numpy as np
import numpy.typing as npt

from tidemill.core.records import ExampleColumns, FeatureBatch, Int64s

_TEXTS = ("model_version", "other_version")
# One value per row.
_PLAIN = tuple(field.name for field in fields(ExampleColumns) if field.name not in ("features", *_TEXTS))


def joined(parts: Sequence[ExampleColumns]) -> ExampleColumns:
    """Consecutive columns as one."""
    if len(parts) == 1:
        return parts[0]
    columns: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in _PLAIN}
    texts: dict[str, Any] = {name: tuple(chain.from_iterable(getattr(part, name) for part in parts)) for name in _TEXTS}
    by_category = zip(*(part.features.categories for part in parts), strict=True)
    categories = tuple(tuple(value for column in pieces for value in column) for pieces in by_category)
    features = FeatureBatch(np.concatenate([part.features.numeric for part in parts]), categories)
    return ExampleColumns(features=features, **columns, **texts)


def between(examples: ExampleColumns, start: int, end: int) -> ExampleColumns:
    """The rows with offsets in [start, end)."""
    first, last = np.searchsorted(examples.offset, [start, end])
    return rows(examples, int(first), int(last))


def chosen(examples: ExampleColumns, is_chosen: npt.NDArray[np.bool_]) -> ExampleColumns:
    """The rows where `is_chosen` holds."""
    if is_chosen.all():
        return examples
    columns: dict[str, Any] = {name: getattr(examples, name)[is_chosen] for name in _PLAIN}
    texts: dict[str, Any] = {name: tuple(compress(getattr(examples, name), is_chosen)) for name in _TEXTS}
    categories = tuple(tuple(compress(column, is_chosen)) for column in examples.features.categories)
    features = FeatureBatch(examples.features.numeric[is_chosen], categories)
    return ExampleColumns(features=features, **columns, **texts)


def rows(examples: ExampleColumns, start: int, end: int) -> ExampleColumns:
    """The rows [start, end) by position."""
    columns = {name: getattr(examples, name)[start:end] for name in (*_PLAIN, *_TEXTS)}
    categories = tuple(column[start:end] for column in examples.features.categories)
    return ExampleColumns(features=FeatureBatch(examples.features.numeric[start:end], categories), **columns)


def outside(offsets: Int64s, ranges: Sequence[tuple[int, int]]) -> npt.NDArray[np.bool_]:
    """Whether each offset lies in none of the ranges [start, end)."""
    found = np.ones(len(offsets), dtype=np.bool_)
    for start, end in ranges:
        found &= (offsets < start) | (offsets >= end)
    return found


def no_examples() -> ExampleColumns:
    """Columns without rows."""
    nothing = np.empty(0)
    return ExampleColumns(
        offset=nothing.astype(np.int64),
        features=FeatureBatch(np.empty((0, 0), dtype=np.float32), ()),
        label=nothing.astype(np.float32),
        is_learned=nothing.astype(np.bool_),
        event_time=nothing.astype(np.int64),
        label_time=nothing.astype(np.int64),
        learner=nothing,
        booster=nothing,
        base_rate=nothing,
        blend=nothing,
    )
