"""What an app's features keep in the store, and where: rings of panes, buckets, latest entries, by group of features.

In: an `AppSpec`. Out: one `GroupPlan` per group, with columns of the matrix and words of the state.
Invariant: a function of the declaration alone, so that all workers of one configuration agree on every word.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import NamedTuple

from tidemill.core.spec import AppSpec, FeatureKind, FeatureSpec, GroupSpec
from tidemill.core.state import BUCKETS, LATEST_CAPACITY, PANES, slot_count
from tidemill.errors import ConfigError

LABEL_VALUE = "label"  # as a value: 1 when the label is positive, else 0
_COUNTS = ("count", "rate", "decayed_count")  # of records, whatever their values
_SUMS = ("sum", "mean", "decayed_mean")
_DECAYED = ("decayed_count", "decayed_mean")


@dataclass(frozen=True, slots=True, kw_only=True)
class PaneFeature:
    """What is read from a series into `column` of the matrix."""

    column: int
    kind: FeatureKind
    window_ms: int
    prior: float
    prior_weight: float


class DueRule(NamedTuple):
    """Records count at the time in `field`; null, or more than `ahead_ms` after the record: they do not.

    is_closing: at the record's own time where that is later.
    """

    field: str
    ahead_ms: int
    is_closing: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PaneSeries:
    """A ring of panes that one or more features share.

    word: where its first slot starts in the state of an entity. value None: cells are (count,), else (count, sum).
    features: of the whole window; decayed: of weighted panes.
    """

    topic: str
    value: str | None
    unit: float
    due: DueRule | None
    pane_ms: int
    word: int
    slots: int
    features: tuple[PaneFeature, ...]
    decayed: tuple[PaneFeature, ...]

    @property
    def cells(self) -> int:
        return 1 if self.value is None else 2

    @property
    def slot_words(self) -> int:
        return 1 + self.cells


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenFeature:
    """Count of one series of the group less that of another, by their places."""

    column: int
    opened: int
    closed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExtremeSeries:
    """A ring of panes, each with its largest value times `sign`, that is read into all of `columns`."""

    topic: str
    value: str
    unit: float
    sign: int
    pane_ms: int
    word: int
    slots: int
    columns: tuple[int, ...]

    @property
    def slot_words(self) -> int:
        return 2


@dataclass(frozen=True, slots=True, kw_only=True)
class DistinctSeries:
    """The buckets of one field, read into `columns[i]` over `windows_ms[i]`."""

    topic: str
    field: str
    word: int
    max_skew_ms: int
    windows_ms: tuple[int, ...]
    columns: tuple[int, ...]


class LatestRead(NamedTuple):
    """What a column takes of the entry `back` places before the newest: a field by its place, None = its age."""

    column: int
    back: int
    place: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LatestSeries:
    """The latest entries of one topic, with the values of `fields`."""

    topic: str
    topic_index: int
    key_prefix: str
    fields: tuple[str, ...]
    reads: tuple[LatestRead, ...]
    capacity: int = LATEST_CAPACITY


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupPlan:
    """The state of one group. words: length of an entity's rings and buckets. label_place: its place among the groups
    that labels feed, -1 = labels do not feed it."""

    key_prefix: str
    entity: tuple[str, ...]
    words: int
    panes: tuple[PaneSeries, ...]
    open: tuple[OpenFeature, ...]
    extremes: tuple[ExtremeSeries, ...]
    distinct: tuple[DistinctSeries, ...]
    latest: tuple[LatestSeries, ...]
    topics: tuple[str, ...]
    label_place: int


def numeric_features(spec: AppSpec) -> tuple[FeatureSpec, ...]:
    """Columns of the numeric matrix, in the order of YAML."""
    return tuple(f for group in spec.groups for f in group.features if f.kind != "category")


def category_features(spec: AppSpec) -> tuple[FeatureSpec, ...]:
    return tuple(f for group in spec.groups for f in group.features if f.kind == "category")


def feature_digest(spec: AppSpec) -> str:
    """BLAKE2b-128 in hex of all that gives a feature its value, and of the order of the columns."""
    declared = [asdict(group) for group in spec.groups]
    return blake2b(json.dumps(declared, sort_keys=True).encode(), digest_size=16).hexdigest()


def plan_groups(spec: AppSpec) -> tuple[GroupPlan, ...]:
    """The groups that have state, in the order of YAML.

    Raises:
        ConfigError: a window cannot be cut into panes, or a feature names an unknown topic.
    """
    columns = {feature.name: at for at, feature in enumerate(numeric_features(spec))}
    topic_indexes = {topic.name: at for at, topic in enumerate(spec.topics)}
    fed_by_labels = label_groups(spec)
    plans: list[GroupPlan] = []
    for group in spec.groups:
        topics = tuple(dict.fromkeys(topic for feature in group.features for topic in topics_of(feature)))
        for topic in topics:
            if topic not in topic_indexes:
                raise ConfigError(
                    "TM-1051", f"a feature of group {group.name} is of {topic!r}, which is no topic of the app"
                )
        if not topics:
            continue
        rings = _Rings(group, columns, spec.max_skew_ms)
        plans.append(
            GroupPlan(
                key_prefix=f"{group.name}:v{group.version}:",
                entity=group.entity,
                panes=rings.panes,
                open=rings.open,
                extremes=rings.extremes,
                distinct=rings.distinct,
                words=rings.words,
                latest=_plan_latest(group, columns, topic_indexes),
                topics=topics,
                label_place=fed_by_labels.index(group) if group in fed_by_labels else -1,
            )
        )
    return tuple(plans)


def label_groups(spec: AppSpec) -> tuple[GroupSpec, ...]:
    """The groups that labels feed, in the order of YAML."""
    labels = {topic.name for topic in spec.topics if topic.role == "label"}
    return tuple(g for g in spec.groups if any(not labels.isdisjoint(topics_of(f)) for f in g.features))


def topics_of(feature: FeatureSpec) -> tuple[str, ...]:
    """The topics whose records a feature counts; none when it is read of the event itself."""
    return tuple(topic for topic in (feature.of, feature.closed_by) if topic is not None)


class _SeriesKey(NamedTuple):
    """Features with equal keys share a series."""

    topic: str
    value: str | None
    unit: float
    due: DueRule | None
    pane_ms: int


class _Rings:
    """The words of one group's entity: rings of sums, then of extremes, then buckets, each in the order of YAML."""

    def __init__(self, group: GroupSpec, columns: Mapping[str, int], max_skew_ms: int) -> None:
        self.words = 0
        self._columns = columns
        self._max_skew_ms = max_skew_ms
        shared: dict[_SeriesKey, list[FeatureSpec]] = {}
        opened: list[tuple[int, _SeriesKey, _SeriesKey]] = []
        for feature in group.features:
            if feature.kind in (*_COUNTS, *_SUMS):
                shared.setdefault(_series_key(feature), []).append(feature)
            elif feature.kind == "open":
                keys = _opened_key(feature), _closed_key(feature)
                for key in keys:
                    shared.setdefault(key, [])
                opened.append((columns[feature.name], *keys))
        self.panes = tuple(self._panes(key, features) for key, features in shared.items())
        place = {key: at for at, key in enumerate(shared)}
        self.open = tuple(
            OpenFeature(column=column, opened=place[one], closed=place[other]) for column, one, other in opened
        )
        self.extremes = tuple(self._extremes(group))
        self.distinct = tuple(self._distinct(group))

    def _take(self, words: int) -> int:
        self.words += words
        return self.words - words

    def _panes(self, key: _SeriesKey, features: list[FeatureSpec]) -> PaneSeries:
        slots = slot_count(key.pane_ms, self._max_skew_ms + (key.due.ahead_ms if key.due else 0))
        read = [(one.kind in _DECAYED, self._pane_feature(one)) for one in features]
        return PaneSeries(
            topic=key.topic,
            value=key.value,
            unit=key.unit,
            due=key.due,
            pane_ms=key.pane_ms,
            word=self._take(slots * (2 if key.value is None else 3)),
            slots=slots,
            features=tuple(one for is_decayed, one in read if not is_decayed),
            decayed=tuple(one for is_decayed, one in read if is_decayed),
        )

    def _pane_feature(self, feature: FeatureSpec) -> PaneFeature:
        return PaneFeature(
            column=self._columns[feature.name],
            kind=feature.kind,
            window_ms=feature.window_ms or 0,
            prior=feature.prior,
            prior_weight=feature.prior_weight,
        )

    def _extremes(self, group: GroupSpec) -> Iterator[ExtremeSeries]:
        shared: dict[tuple[str, str, float, int, int], list[int]] = {}
        for feature in group.features:
            if feature.kind in ("min", "max"):
                sign = 1 if feature.kind == "max" else -1
                key = (str(feature.of), str(feature.value), feature.unit, sign, _pane_ms(feature))
                shared.setdefault(key, []).append(self._columns[feature.name])
        for (topic, value, unit, sign, pane_ms), columns in shared.items():
            slots = slot_count(pane_ms, self._max_skew_ms)
            yield ExtremeSeries(
                topic=topic,
                value=value,
                unit=unit,
                sign=sign,
                pane_ms=pane_ms,
                word=self._take(slots * 2),
                slots=slots,
                columns=tuple(columns),
            )

    def _distinct(self, group: GroupSpec) -> Iterator[DistinctSeries]:
        shared: dict[tuple[str, str], list[FeatureSpec]] = {}
        for feature in group.features:
            if feature.kind == "distinct":
                shared.setdefault((str(feature.of), str(feature.field)), []).append(feature)
        for (topic, field), features in shared.items():
            yield DistinctSeries(
                topic=topic,
                field=field,
                word=self._take(BUCKETS),
                max_skew_ms=self._max_skew_ms,
                windows_ms=tuple(feature.window_ms or 0 for feature in features),
                columns=tuple(self._columns[feature.name] for feature in features),
            )


def _series_key(feature: FeatureSpec) -> _SeriesKey:
    if feature.kind in _COUNTS:
        return _SeriesKey(str(feature.of), None, 1.0, None, _pane_ms(feature))
    return _SeriesKey(str(feature.of), feature.value, feature.unit, None, _pane_ms(feature))


def _opened_key(feature: FeatureSpec) -> _SeriesKey:
    due = None if feature.due is None else DueRule(feature.due, feature.ahead_ms, False)
    return _SeriesKey(str(feature.of), None, 1.0, due, _pane_ms(feature))


def _closed_key(feature: FeatureSpec) -> _SeriesKey:
    due = None if feature.closed_due is None else DueRule(feature.closed_due, feature.ahead_ms, True)
    return _SeriesKey(str(feature.closed_by), None, 1.0, due, _pane_ms(feature))


def _pane_ms(feature: FeatureSpec) -> int:
    if feature.kind in _DECAYED:
        half_life_ms = feature.half_life_ms or 0
        if half_life_ms <= 0 or half_life_ms % 2:
            raise ConfigError(
                "TM-1052",
                f"half-life of feature {feature.name} is {half_life_ms} ms, which cannot be cut into two panes of whole"
                " milliseconds; use a positive even number",
            )
        return half_life_ms // 2
    window_ms = feature.window_ms or 0
    if window_ms <= 0 or window_ms % PANES:
        raise ConfigError(
            "TM-1052",
            f"window of feature {feature.name} is {window_ms} ms, which cannot be cut into {PANES} panes of whole"
            f" milliseconds; use a positive multiple of {PANES} ms, such as any number of minutes",
        )
    return window_ms // PANES


def _plan_latest(
    group: GroupSpec, columns: Mapping[str, int], topic_indexes: Mapping[str, int]
) -> tuple[LatestSeries, ...]:
    by_topic: dict[str, list[FeatureSpec]] = {}
    for feature in group.features:
        if feature.kind in ("latest", "time_since_last"):
            by_topic.setdefault(str(feature.of), []).append(feature)
    planned: list[LatestSeries] = []
    for topic, features in by_topic.items():
        fields = tuple(dict.fromkeys(feature.field for feature in features if feature.field is not None))
        places = {name: at for at, name in enumerate(fields)}
        planned.append(
            LatestSeries(
                topic=topic,
                topic_index=topic_indexes[topic],
                key_prefix=f"{group.name}.latest.{topic_indexes[topic]}:v{group.version}:",
                fields=fields,
                reads=tuple(
                    LatestRead(columns[one.name], one.back, None if one.field is None else places[one.field])
                    for one in features
                ),
            )
        )
    return tuple(planned)
