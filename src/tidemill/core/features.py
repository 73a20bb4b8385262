"""Streaming features of a batch: what each event sees, and what its records leave in the store.

In: a batch, the events to score, the labels that join, the state of their entities as read. Out: the feature matrix,
and deltas merged per entity and slot, in the order of their keys.
Invariant: an event at position i sees the state as read and the records at positions < i, none after and not itself;
a delta is a function of its record alone (label-made: and of the entities of its event).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.core.asking import Queries, Updates
from tidemill.core.calendar import calendar_parts, has_calendar
from tidemill.core.entities import Coded, encode, entity_texts, texts_as_kept, texts_with_missing
from tidemill.core.feature_plan import (
    LABEL_VALUE,
    GroupPlan,
    category_features,
    feature_digest,
    label_groups,
    numeric_features,
    plan_groups,
)
from tidemill.core.latest import StoredEntries, fill_latest, latest_deltas
from tidemill.core.pane_features import GroupInputs, fill_pane_features
from tidemill.core.records import Batch, FeatureBatch, Int64s, LatestDelta, PaneDelta
from tidemill.core.sources import Source, numbers_of
from tidemill.core.spec import AppSpec, FeatureSpec
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
        self._calendar = tuple((at, one) for at, one in enumerate(numeric) if one.kind == "calendar")
        self._categories = categories
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
            if group.words:
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
                numeric[:, column] = numbers_of(events.columns, name)
            for column, one in self._calendar:
                numeric[:, column] = np.where(has_calendar(events.time), _calendar_of(one, events), np.nan)
            for group in self._groups:
                coded = encode(self._entity_lists(group, events, joined, sources))
                queries = Queries.of(coded.codes[0], events.row_index, events.time)
                updates = {
                    topic: _updates(code, sources[topic])
                    for topic, code in zip(group.topics, coded.codes[1:], strict=True)
                }
                if group.words:
                    words = _words(group, _stored(stored, group.key_prefix, coded, queries))
                    given = GroupInputs(group, queries, words, updates, sources, numeric)
                    pane_deltas += fill_pane_features(given, coded)
                for series in group.latest:
                    entries = StoredEntries.of(series, _stored(stored, series.key_prefix, coded, queries))
                    fed = updates[series.topic]
                    values = np.empty((len(fed), len(series.fields)))
                    for at, name in enumerate(series.fields):
                        values[:, at] = sources[series.topic].numbers(name)[fed.row]
                    fill_latest(series, entries, queries, fed, values, numeric)
                    latest += latest_deltas(series, fed, values, coded.texts, coded.rank)
        # Pane deltas are in order, because groups are; the keys of latest entries interleave across groups.
        latest.sort(key=lambda delta: delta.key)
        return FeatureBatch(numeric, self._category_columns(events)), tuple(pane_deltas), tuple(latest)

    def _sources(self, batch: Batch, events: EventRows, joined: LabelRows) -> dict[str, Source]:
        sources: dict[str, Source] = {}
        for topic in dict.fromkeys(topic for group in self._groups for topic in group.topics):
            if topic == self._label_topic:
                label = {LABEL_VALUE: joined.label.astype(np.float64)}
                sources[topic] = Source(
                    joined.row_index, joined.time, joined.partition, joined.offset, joined.columns, label
                )
                continue
            found = batch.records.get(topic)
            at = found.row_index if found is not None else np.zeros(0, dtype=np.int64)
            columns = found.columns if found is not None else None
            if topic == self._event_topic:
                at, columns = events.row_index, events.columns
            sources[topic] = Source(at, batch.time[at], batch.partition[at], batch.offset[at], columns)
        return sources

    def _entity_lists(
        self, group: GroupPlan, events: EventRows, joined: LabelRows, sources: Mapping[str, Source]
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
        return tuple(tuple(_category_texts(one, events).to_pylist()) for one in self._categories)


def _calendar_of(feature: FeatureSpec, events: EventRows) -> Int64s:
    assert feature.part is not None  # config_models.py: a calendar names its part
    return calendar_parts(events.time, feature.part, feature.zone)


def _category_texts(feature: FeatureSpec, events: EventRows) -> pa.Array:
    if feature.part is None:
        return events.columns.column(str(feature.field)).cast(pa.string()).fill_null("")
    texts = pa.array(_calendar_of(feature, events)).cast(pa.string())
    return pc.if_else(pa.array(has_calendar(events.time)), texts, "")


def _updates(code: Int64s, source: Source) -> Updates:
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
            "TM-1054",
            f"stored panes of {group.key_prefix} are longer than the {group.words} words that its features declare;"
            " they were stored under another declaration: raise the group's version",
        )
    padded = b"".join([content.ljust(size, b"\0") for content in (*stored, b"")])
    return np.frombuffer(padded, dtype=">i8").astype(np.int64).reshape(len(stored) + 1, group.words)
