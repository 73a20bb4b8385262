"""Features of sampled events, recomputed by brute force from the input topics.

In: inputs, the examples that must exist, rows of sampled events. Out: their numeric features (float32) and categories.
Invariant: an event sees every record before it in the merged order, none after it, and never itself; where a field
of the entity is null there is no entity, and nothing is seen.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from tests.verify.declared import PANES, Declared, Feature
from tests.verify.inputs import GOOD, Inputs, Int64s
from tests.verify.outcomes import RECORD_OUTCOMES, Expected

Key = tuple[Any, ...]

UNITS_LIMIT = 2.0**36  # a value of so many units would not keep sums exact: it is passed over like a missing one


class _Source(NamedTuple):
    """Records that feed one topic's features of one entity: who caused them, whose fields count, and when."""

    cause: Int64s  # the row at whose place they take effect
    record: Int64s  # the row with their value
    owner: Int64s  # the row with the entity's fields
    time: Int64s


@dataclass
class _History:
    """The records of one entity in the order in which they took effect."""

    rank: Int64s
    merged_time: Int64s  # of the cause; no record is newer than this
    time: Int64s
    record: Int64s


def recompute(
    declared: Declared, inputs: Inputs, expected: Expected, events: Sequence[int]
) -> tuple[npt.NDArray[np.float32], list[tuple[str, ...]]]:
    """Numeric features, shape (events, numeric features) float32 with NaN for missing, and the categories as texts."""
    numeric = np.full((len(events), len(declared.numeric)), np.nan, dtype=np.float32)
    topics = {topic.name: index for index, topic in enumerate(declared.topics)}
    sources: dict[str, _Source] = {}
    histories: dict[tuple[str, tuple[str, ...]], dict[Key, _History]] = {}
    read_values: dict[tuple[str, str], npt.NDArray[np.float64]] = {}
    for column, feature in enumerate(declared.numeric):
        if feature.of is None:
            for place, row in enumerate(events):
                numeric[place, column] = _number(inputs.value(row, feature.field or feature.name))
            continue
        if feature.of not in sources:
            sources[feature.of] = _source(declared, inputs, expected, topics[feature.of])
        keys = _keys(inputs, np.array(events, dtype=np.int64), feature.entity)
        group = (feature.of, feature.entity)
        if group not in histories:
            histories[group] = _histories(inputs, sources[feature.of], feature.entity, set(keys))
        name = feature.value if feature.kind == "mean" else feature.field
        values = None
        if name is not None:
            if (feature.of, name) not in read_values:
                read_values[feature.of, name] = _values(inputs, topics[feature.of], name)
            values = read_values[feature.of, name]
        first = inputs.first_row[topics[feature.of]]
        for place, (row, key) in enumerate(zip(events, keys, strict=True)):
            history = histories[group].get(key)
            numeric[place, column] = _one(feature, inputs, history, row, values, first)
    categories = [
        tuple(_text(inputs.value(row, one.field or one.name)) for one in declared.categories) for row in events
    ]
    return numeric, categories


def _source(declared: Declared, inputs: Inputs, expected: Expected, topic: int) -> _Source:
    role = declared.topics[topic].role
    if role == "label":
        joins = [e for e in expected.examples if e.kind == "example" and inputs.topic[e.label_row] == topic]
        cause, record, owner = (
            np.array([getattr(e, name) for e in joins], dtype=np.int64)
            for name in ("cause_row", "label_row", "event_row")
        )
        return _Source(cause, record, owner, inputs.time[record])
    kept = inputs.verdict == GOOD
    if role == "event":
        kept = expected.outcome == RECORD_OUTCOMES.index("prediction")
    rows = np.flatnonzero(kept & (inputs.topic == topic))
    return _Source(rows, rows, rows, inputs.time[rows])


def _histories(inputs: Inputs, source: _Source, entity: tuple[str, ...], wanted: set[Key]) -> dict[Key, _History]:
    """Only of the entities that are asked for."""
    by_key: dict[Key, list[int]] = defaultdict(list)
    for place, key in enumerate(_keys(inputs, source.owner, entity)):
        if key in wanted and None not in key:
            by_key[key].append(place)
    found = {}
    for key, listed in by_key.items():
        places = np.array(listed)
        places = places[np.argsort(inputs.rank[source.cause[places]], kind="stable")]
        cause = source.cause[places]
        found[key] = _History(inputs.rank[cause], inputs.merged_time[cause], source.time[places], source.record[places])
    return found


def _keys(inputs: Inputs, rows: Int64s, entity: tuple[str, ...]) -> list[Key]:
    """The entity of each row; without fields there is one entity for all."""
    keys: list[Key] = [()] * len(rows)
    for topic in np.unique(inputs.topic[rows]).tolist() if entity else ():
        places = np.flatnonzero(inputs.topic[rows] == topic)
        local = (rows[places] - inputs.first_row[topic]).tolist()
        columns = [inputs.columns[topic].fields[name] for name in entity]
        for place, at in zip(places.tolist(), local, strict=True):
            keys[place] = tuple([column[at] for column in columns])
    return keys


def _values(inputs: Inputs, topic: int, name: str) -> npt.NDArray[np.float64]:
    columns = inputs.columns[topic]
    listed = columns.labels if name == "label" else columns.fields[name]
    return np.array([_number(value) for value in listed], dtype=np.float64)


def _one(
    feature: Feature,
    inputs: Inputs,
    history: _History | None,
    row: int,
    values: npt.NDArray[np.float64] | None,
    first_row: int,
) -> float:
    if history is None:
        return _read(feature, np.empty(0))
    before = int(np.searchsorted(history.rank, inputs.rank[row]))
    time = int(inputs.time[row])
    if feature.kind == "latest":
        assert values is not None
        return _latest(inputs, history, before, time, values, first_row)
    pane = feature.window_ms // PANES
    newest = time // pane
    # Nothing before `start` can be newer than its merged time: the search narrows, the mask decides.
    start = int(np.searchsorted(history.merged_time, (newest - PANES + 1) * pane))
    panes = history.time[start:before] // pane
    inside = (panes > newest - PANES) & (panes <= newest)
    records = history.record[start:before][inside]
    return _read(feature, np.ones(len(records)) if values is None else values[records - first_row])


def _read(feature: Feature, values: npt.NDArray[np.float64]) -> float:
    if feature.kind == "latest":
        return float("nan")
    if feature.kind == "count":
        return float(len(values))
    units = np.rint(values / feature.unit)
    units = units[np.abs(units) < UNITS_LIMIT]  # a missing value is no number and not below it
    total = int(units.sum())
    weight = len(units) + feature.prior_weight
    if weight == 0:
        return float("nan")
    return (total * feature.unit + feature.prior * feature.prior_weight) / weight


def _latest(
    inputs: Inputs, history: _History, before: int, time: int, values: npt.NDArray[np.float64], first_row: int
) -> float:
    seen = np.flatnonzero(history.time[:before] <= time)
    if len(seen) == 0:
        return float("nan")
    newest = seen[history.time[seen] == history.time[seen].max()]
    records = history.record[newest]
    last = np.lexsort((inputs.offset[records], inputs.partition[records]))[-1]
    return float(values[records[last] - first_row])


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)
