"""Streaming features of a batch: what each event sees, and what its records leave in the store.

In: a batch, the events to score, the labels that join, the state of their entities as read. Out: the feature matrix,
and deltas merged per entity and slot, in the order of their keys.
Invariant: an event at position i sees the state as read and the records at positions < i, none after and not itself;
a delta is a function of its record alone (label-made: and of the entities of its event).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.core.asking import Queries, Updates
from tidemill.core.entities import Coded, encode, entity_texts, texts_as_kept, texts_with_missing
from tidemill.core.feature_plan import (
    LABEL_VALUE,
    GroupPlan,
    PaneFeature,
    category_features,
    feature_digest,
    label_groups,
    numeric_features,
    plan_groups,
)
from tidemill.core.latest import StoredEntries, latest_deltas, read_latest
from tidemill.core.panes import MergedDeltas, PaneReader, merged_deltas, pane_deltas, stored_cells, stored_totals
from tidemill.core.records import Batch, FeatureBatch, Float32s, Float64s, Int64s, LatestDelta, PaneDelta
from tidemill.core.spec import AppSpec
from tidemill.core.state import WORD_BYTES
from tidemill.errors import ConfigError, InvariantError

Int32s = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class EventRows:
    """Events to score, duplicates removed, in merged order.

    row_index: their positions in the batch. columns: one row per event, as in the batch.
    """

    row_index: Int64s
    time: Int64s
    columns: pa.RecordBatch


@dataclass(frozen=True, slots=True)
class LabelRows:
    """Labels that join an event in this batch.

    row_index: position of the record that applies the label (itself, or the event that it waited for). time, partition,
    offset, columns: of the label's record. label: 0 or 1. entities: of its event, one text per label group.
    """

    row_index: Int64s
    time: Int64s
    partition: Int32s
    offset: Int64s
    columns: pa.RecordBatch
    label: npt.NDArray[np.int8]
    entities: Sequence[tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class _Source:
    """Records of one topic that feed features, with their places; columns None = no records.

    values: numeric fields read so far, and from the start the label as LABEL_VALUE.
    """

    position: Int64s
    time: Int64s
    partition: Int32s
    offset: Int64s
    columns: pa.RecordBatch | None
    values: dict[str, Float64s] = field(default_factory=dict)

    def numbers(self, name: str) -> Float64s:
        if name not in self.values:
            self.values[name] = np.zeros(0) if self.columns is None else _numbers(self.columns, name)
        return self.values[name]


class FeaturePlan:
    """How one app's features are computed; made once from its declaration and never changed.

    numeric_names, category_names: columns of the matrix, in the order of YAML. digest: of everything declared of them.
    label_groups: the groups that labels feed; a pending row keeps one entity text for each.
    """

    def __init__(self, spec: AppSpec) -> None:
        numeric, categories = numeric_features(spec), category_features(spec)
        self.numeric_names = tuple(feature.name for feature in numeric)
        self.category_names = tuple(feature.name for feature in categories)
        self.digest = feature_digest(spec)
        self.label_groups = label_groups(spec)
        self._groups = tuple(sorted(plan_groups(spec), key=lambda group: group.key_prefix))
        self._fields = tuple((at, str(one.field)) for at, one in enumerate(numeric) if one.kind == "field")
        self._categories = tuple(str(one.field) for one in categories)
        self._event_topic = next(topic.name for topic in spec.topics if topic.role == "event")
        self._label_topic = next(topic.name for topic in spec.topics if topic.role == "label")

    def state_keys(self, batch: Batch) -> tuple[str, ...]:
        """Keys of the entities that events of the batch ask for, each once, by group and first appearance."""
        found = batch.records.get(self._event_topic)
        if found is None:
            return ()
        keys: list[str] = []
        for group in self._groups:
            texts = pc.unique(entity_texts(found.columns, group.entity)).drop_null().to_pylist()
            if group.panes:
                keys += [group.key_prefix + text for text in texts]
            for series in group.latest:
                keys += [series.key_prefix + text for text in texts]
        return tuple(keys)

    def entities(self, events: EventRows) -> list[tuple[str, ...]]:
        """For each event one text per label group, MISSING_ENTITY where a field of the entity is null."""
        if not self.label_groups:
            return [()] * len(events.row_index)
        texts = [texts_with_missing(entity_texts(events.columns, group.entity)) for group in self.label_groups]
        return list(zip(*texts, strict=True))

    def compute(
        self, *, batch: Batch, events: EventRows, joined: LabelRows, keys: Sequence[str], state: Sequence[bytes | None]
    ) -> tuple[FeatureBatch, tuple[PaneDelta, ...], tuple[LatestDelta, ...]]:
        """Features of `events` in their order, and the deltas of the batch sorted by key.

        Args:
            keys, state: `state_keys(batch)` and what the store answered, None = nothing yet.
        Raises:
            ConfigError: stored state is longer than declared.
            InvariantError: an event asks for an entity that is not in `keys`.
        """
        numeric = np.full((len(events.row_index), len(self.numeric_names)), np.nan, dtype=np.float32)
        pane_deltas: list[PaneDelta] = []
        latest: list[LatestDelta] = []
        stored = dict(zip(keys, state, strict=True))
        sources = self._sources(batch, events, joined)
        # A mean of nothing without a prior is NaN on purpose, and a float64 beyond float32 becomes infinite.
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            for column, name in self._fields:
                numeric[:, column] = _numbers(events.columns, name)
            for group in self._groups:
                coded = encode(self._entity_lists(group, events, joined, sources))
                queries = Queries.of(coded.codes[0], events.row_index, events.time)
                updates = {
                    topic: _updates(code, sources[topic])
                    for topic, code in zip(group.topics, coded.codes[1:], strict=True)
                }
                if group.panes:
                    words = _words(group, _stored(stored, group.key_prefix, coded, queries))
                    pane_deltas += _pane_features(group, coded, queries, words, updates, sources, numeric)
                for series in group.latest:
                    entries = StoredEntries.of(series, _stored(stored, series.key_prefix, coded, queries))
                    fed = updates[series.topic]
                    values = np.stack([sources[series.topic].numbers(name)[fed.row] for name in series.fields], axis=1)
                    numeric[:, series.columns] = read_latest(entries, queries, fed, values)
                    latest += latest_deltas(series, fed, values, coded.texts, coded.rank)
        # Pane deltas are in order, because groups are; the keys of latest entries interleave across groups.
        latest.sort(key=lambda delta: delta.key)
        return FeatureBatch(numeric, self._category_columns(events)), tuple(pane_deltas), tuple(latest)

    def _sources(self, batch: Batch, events: EventRows, joined: LabelRows) -> dict[str, _Source]:
        sources: dict[str, _Source] = {}
        for topic in dict.fromkeys(topic for group in self._groups for topic in group.topics):
            if topic == self._label_topic:
                label = {LABEL_VALUE: joined.label.astype(np.float64)}
                sources[topic] = _Source(
                    joined.row_index, joined.time, joined.partition, joined.offset, joined.columns, label
                )
                continue
            found = batch.records.get(topic)
            at = found.row_index if found is not None else np.zeros(0, dtype=np.int64)
            columns = found.columns if found is not None else None
            if topic == self._event_topic:
                at, columns = events.row_index, events.columns
            sources[topic] = _Source(at, batch.time[at], batch.partition[at], batch.offset[at], columns)
        return sources

    def _entity_lists(
        self, group: GroupPlan, events: EventRows, joined: LabelRows, sources: Mapping[str, _Source]
    ) -> list[pa.Array]:
        """Entity texts of the events, then of the records of each topic that feeds the group."""
        of_events = entity_texts(events.columns, group.entity)
        lists = [of_events]
        for topic in group.topics:
            columns = sources[topic].columns
            if topic == self._label_topic:
                lists.append(texts_as_kept([texts[group.label_place] for texts in joined.entities]))
            elif topic == self._event_topic:
                lists.append(of_events)
            else:
                lists.append(pa.array([], pa.string()) if columns is None else entity_texts(columns, group.entity))
        return lists

    def _category_columns(self, events: EventRows) -> tuple[tuple[str, ...], ...]:
        return tuple(
            tuple(events.columns.column(name).cast(pa.string()).fill_null("").to_pylist()) for name in self._categories
        )


def _numbers(columns: pa.RecordBatch, name: str) -> Float64s:
    """A numeric field as float64; null and every NaN are the one NaN, because its bits are stored."""
    values = columns.column(name).cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return np.where(np.isnan(values), np.nan, values)


def _updates(code: Int64s, source: _Source) -> Updates:
    return Updates.of(
        code=code, position=source.position, time=source.time, partition=source.partition, offset=source.offset
    )


def _stored(stored: Mapping[str, bytes | None], prefix: str, coded: Coded, queries: Queries) -> list[bytes]:
    """The state of each entity that is asked for."""
    try:
        return [stored[prefix + text] or b"" for text in coded.texts[: queries.entity_count]]
    except KeyError as error:
        raise InvariantError(
            "TM-9301", f"state of {error.args[0]!r} was not read: events of a batch ask for keys beyond its state_keys"
        ) from error


def _words(group: GroupPlan, stored: Sequence[bytes]) -> Int64s:
    """Pane state as int64, shape (entities + 1, words); the last row is zeros, for events without entity."""
    size = group.words * WORD_BYTES
    if max(map(len, stored), default=0) > size:
        raise ConfigError(
            "TM-1053",
            f"stored panes of {group.key_prefix} are longer than the {group.words} words that its features declare;"
            " they were stored under another declaration: raise the group's version",
        )
    padded = b"".join([content.ljust(size, b"\0") for content in (*stored, b"")])
    return np.frombuffer(padded, dtype=">i8").astype(np.int64).reshape(len(stored) + 1, group.words)


def _pane_features(
    group: GroupPlan,
    coded: Coded,
    queries: Queries,
    words: Int64s,
    updates: Mapping[str, Updates],
    sources: Mapping[str, _Source],
    numeric: Float32s,
) -> list[PaneDelta]:
    """Fill the columns of the group's counts and means; returns the deltas of the group in order."""
    readers = {topic: PaneReader.of(queries, fed) for topic, fed in updates.items()}
    merged: list[MergedDeltas] = []
    for series in group.panes:
        fed = updates[series.topic]
        values = None if series.value is None else sources[series.topic].numbers(series.value)[fed.row]
        cells = stored_cells(values, series.unit, len(fed))
        totals = stored_totals(series, words, queries) + readers[series.topic].totals(series, cells)
        for feature in series.features:
            numeric[:, feature.column] = _read(totals, feature, series.unit)
        merged.append(merged_deltas(series, fed, cells))
    return pane_deltas(merged, [group.key_prefix + text for text in coded.texts], coded.rank, group.words)


def _read(totals: Int64s, feature: PaneFeature, unit: float) -> Float64s:
    """The only float operations on state: a count as it is, or (sum * unit + prior * weight) / (n + weight)."""
    if not feature.is_mean:
        return totals[:, 0].astype(np.float64)
    weight = totals[:, 0] + feature.prior_weight
    mean = (totals[:, 1] * unit + feature.prior * feature.prior_weight) / weight
    return np.where(weight == 0, np.nan, mean)
