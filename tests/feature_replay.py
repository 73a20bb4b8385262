"""A plan fed batch by batch, and what its features must be.

In: records of the builders' topics. Out: the matrix as computed, and as brute force says it is.
Invariant: brute force knows no batches, no state and no deltas; it looks at all records before each event.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from tests.builders import Record, a_batch, columns_of
from tidemill.core.features import EventRows, FeaturePlan, LabelRows
from tidemill.core.records import FeatureBatch, Float32s, LatestDelta, PaneDelta
from tidemill.core.spec import AppSpec, FeatureSpec, GroupSpec
from tidemill.core.state import PANES, merge_latest, merge_pane


@dataclass
class Replay:
    """Feeds batches to a plan and keeps the state in a dictionary, with the simplest join that can be."""

    spec: AppSpec
    state: dict[str, bytes] = field(default_factory=dict)
    open_events: dict[str, tuple[str, ...]] = field(default_factory=dict)
    open_labels: dict[str, tuple[int, int, Any]] = field(default_factory=dict)
    offset: int = 0
    rows: list[Float32s] = field(default_factory=list)
    categories: list[tuple[str, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.plan = FeaturePlan(self.spec)

    def batch(self, records: Sequence[Record]) -> tuple[FeatureBatch, tuple[PaneDelta, ...], tuple[LatestDelta, ...]]:
        batch = a_batch(self.spec, records, first_offset=self.offset)
        at = [i for i, record in enumerate(records) if record[0] == "events"]
        columns = columns_of(self.spec.topics[2], [records[i][2] for i in at])
        events = EventRows(np.array(at, dtype=np.int64), np.array([records[i][1] for i in at], dtype=np.int64), columns)
        joined = self.join(records, dict(zip(at, self.plan.entities(events), strict=True)))
        keys = self.plan.state_keys(batch)
        assert len(set(keys)) == len(keys)
        result = self.plan.compute(
            batch=batch, events=events, joined=joined, keys=keys, state=[self.state.get(key) for key in keys]
        )
        features, pane_deltas, latest_deltas = result
        places = [delta[:3] for delta in pane_deltas]
        assert places == sorted(set(places))
        assert [delta.key for delta in latest_deltas] == sorted(delta.key for delta in latest_deltas)
        self.apply(pane_deltas, latest_deltas)
        self.offset += len(records)
        self.rows.extend(features.numeric)
        self.categories.extend(zip(*features.categories, strict=True))
        return result

    def join(self, records: Sequence[Record], entities: dict[int, tuple[str, ...]]) -> LabelRows:
        found: list[tuple[int, int, int, Any, tuple[str, ...]]] = []
        for at, (topic, time, fields) in enumerate(records):
            if topic == "events":
                self.open_events[fields["id"]] = entities[at]
                if fields["id"] in self.open_labels:
                    found.append((at, *self.open_labels.pop(fields["id"]), self.open_events.pop(fields["id"])))
            elif topic == "outcomes" and fields["id"] in self.open_events:
                found.append((at, time, self.offset + at, fields, self.open_events.pop(fields["id"])))
            elif topic == "outcomes":
                self.open_labels[fields["id"]] = (time, self.offset + at, fields)
        return LabelRows(
            row_index=np.array([one[0] for one in found], dtype=np.int64),
            time=np.array([one[1] for one in found], dtype=np.int64),
            partition=np.zeros(len(found), dtype=np.int32),
            offset=np.array([one[2] for one in found], dtype=np.int64),
            columns=columns_of(self.spec.topics[1], [one[3] for one in found]),
            label=np.array([(one[3]["outcome"] or 0) > 0 for one in found], dtype=np.int8),
            entities=[one[4] for one in found],
        )

    def apply(self, pane_deltas: Iterable[PaneDelta], latest_deltas: Iterable[LatestDelta]) -> None:
        for delta in pane_deltas:
            self.state[delta.key] = merge_pane(self.state.get(delta.key, b""), delta)
        for entry in latest_deltas:
            self.state[entry.key] = merge_latest(self.state.get(entry.key, b""), entry)

    @property
    def matrix(self) -> Float32s:
        return np.array(self.rows, dtype=np.float32).reshape(len(self.rows), len(self.plan.numeric_names))


class Effect(NamedTuple):
    """A record that feeds features from `position` on."""

    topic: str
    position: int
    time: int
    offset: int
    owner: Any  # the record that has the entity's fields
    fields: dict[str, Any]


def brute_force(spec: AppSpec, records: Sequence[Record]) -> Float32s:
    """The features of all events of a stream, each from all the records before it."""
    effects: list[Effect] = []
    events: dict[str, tuple[int, Any]] = {}
    labels: dict[str, tuple[int, int, Any]] = {}
    for at, (topic, time, fields) in enumerate(records):
        if topic != "outcomes":
            effects.append(Effect(topic, at, time, at, fields, fields))
        if topic == "events":
            events[fields["id"]] = (at, fields)
        if topic == "outcomes":
            labels[fields["id"]] = (at, time, {**fields, "label": int((fields["outcome"] or 0) > 0)})
    for id_ in events.keys() & labels.keys():
        (event_at, event), (label_at, time, fields) = events[id_], labels[id_]
        effects.append(Effect("outcomes", max(event_at, label_at), time, label_at, event, fields))
    rows = [
        [read(group, one, effects, event, position=at, time=records[at][1]) for group, one in numeric_of(spec)]
        for at, event in sorted(events.values(), key=lambda pair: pair[0])
    ]
    return np.array(rows, dtype=np.float32).reshape(len(rows), len(numeric_of(spec)))


def numeric_of(spec: AppSpec) -> list[tuple[GroupSpec, FeatureSpec]]:
    return [(group, one) for group in spec.groups for one in group.features if one.kind != "category"]


def read(
    group: GroupSpec, one: FeatureSpec, effects: Iterable[Effect], event: Any, *, position: int, time: int
) -> float:
    if one.kind == "field":
        value = event[one.field]
        return math.nan if value is None else value
    entity = [event[name] for name in group.entity]
    seen = [
        effect
        for effect in effects
        if effect.topic == one.of
        and effect.position < position
        and None not in entity
        and [effect.owner[name] for name in group.entity] == entity
    ]
    if one.kind == "latest":
        known = [effect for effect in seen if effect.time <= time]
        value = max(known, key=lambda effect: (effect.time, effect.offset)).fields[one.field] if known else None
        return math.nan if value is None else value
    pane = one.window_ms // PANES
    inside = [effect for effect in seen if time // pane - PANES < effect.time // pane <= time // pane]
    if one.kind == "count":
        return len(inside)
    values = [effect.fields[one.value] for effect in inside if effect.fields[one.value] is not None]
    total = sum(round(value / one.unit) for value in values)
    weight = len(values) + one.prior_weight
    return (total * one.unit + one.prior * one.prior_weight) / weight if weight else math.nan
