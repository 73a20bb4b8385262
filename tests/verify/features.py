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
from tests.verify.kinds import Seen, Values, calendar, distinct, due_in_window, newest, of_panes, text
from tests.verify.outcomes import RECORD_OUTCOMES, Expected

Key = tuple[Any, ...]

_NOTHING = np.zeros(0, dtype=np.int64)
_WINDOWED = ("count", "rate", "sum", "mean", "min", "max", "decayed_count", "decayed_mean")


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
    told = _Told(declared, inputs, expected, events)
    for column, feature in enumerate(declared.numeric):
        for place, row in enumerate(events):
            numeric[place, column] = told.value(feature, place, row)
    categories = [tuple(_category(inputs, one, row) for one in declared.categories) for row in events]
    return numeric, categories


def _category(inputs: Inputs, feature: Feature, row: int) -> str:
    if feature.part is None:
        return text(inputs.value(row, feature.field or feature.name))
    number = calendar(feature, int(inputs.time[row]))
    return "" if np.isnan(number) else str(int(number))


class _Told:
    """What the records tell of each event; histories are made once for each topic and entity."""

    def __init__(self, declared: Declared, inputs: Inputs, expected: Expected, events: Sequence[int]) -> None:
        self._declared, self._inputs, self._expected = declared, inputs, expected
        self._events = np.array(events, dtype=np.int64)
        self._topics = {topic.name: index for index, topic in enumerate(declared.topics)}
        self._sources: dict[str, _Source] = {}
        self._histories: dict[tuple[str, tuple[str, ...]], dict[Key, _History]] = {}
        self._keys: dict[tuple[str, ...], list[Key]] = {}

    def value(self, feature: Feature, place: int, row: int) -> float:
        time = int(self._inputs.time[row])
        if feature.kind == "calendar":
            return calendar(feature, time)
        if feature.of is None:
            value = self._inputs.value(row, feature.field or feature.name)
            return float("nan") if value is None else float(value)
        if feature.kind == "open":
            opened = self._seen(feature, feature.of, feature.due, place, row)
            closed = self._seen(feature, str(feature.closed_by), feature.closed_due, place, row)
            return max(
                0,
                due_in_window(feature, time, opened, is_closing=False)
                - due_in_window(feature, time, closed, is_closing=True),
            )
        seen = self._seen(feature, feature.of, feature.value or feature.field, place, row)
        if feature.kind == "distinct":
            return distinct(feature, time, self._declared.max_skew_ms, seen)
        if feature.kind in ("latest", "time_since_last"):
            return newest(feature, time, seen)
        return of_panes(feature, time, seen)

    def _seen(self, feature: Feature, topic: str, name: str | None, place: int, row: int) -> Seen:
        inputs = self._inputs
        history = self._history(topic, feature.entity).get(self._key(feature.entity, place))
        if history is None:
            return Seen(_NOTHING, _NOTHING, _NOTHING, Values([], _NOTHING))
        before = int(np.searchsorted(history.rank, inputs.rank[row]))
        start = 0
        if feature.kind in _WINDOWED:
            # Nothing before `start` can be newer than its merged time: the search narrows, the mask decides.
            span = feature.window_ms or feature.half_life_ms * PANES
            start = int(np.searchsorted(history.merged_time, int(inputs.time[row]) - span))
        records = history.record[start:before]
        time = history.time[start:before]
        columns = inputs.columns[self._topics[topic]]
        listed = columns.time if name is None else columns.labels if name == "label" else columns.fields[name]
        values = Values(listed, records - inputs.first_row[self._topics[topic]])
        return Seen(time, inputs.partition[records], inputs.offset[records], values)

    def _key(self, entity: tuple[str, ...], place: int) -> Key:
        if entity not in self._keys:
            self._keys[entity] = _keys(self._inputs, self._events, entity)
        return self._keys[entity][place]

    def _history(self, topic: str, entity: tuple[str, ...]) -> dict[Key, _History]:
        if topic not in self._sources:
            self._sources[topic] = _source(self._declared, self._inputs, self._expected, self._topics[topic])
        if (topic, entity) not in self._histories:
            self._key(entity, 0)
            self._histories[topic, entity] = _histories(
                self._inputs, self._sources[topic], entity, set(self._keys[entity])
            )
        return self._histories[topic, entity]


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
