"""What an app's features keep in the store, and where: series of panes and latest entries, by group of features.

In: an `AppSpec`. Out: one `GroupPlan` per group, with columns of the matrix and words of the state.
Invariant: a function of the declaration alone, so that all workers of one configuration agree on every word.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from hashlib import blake2b

from tidemill.core.spec import AppSpec, FeatureSpec, GroupSpec
from tidemill.core.state import LATEST_CAPACITY, PANES, slot_count
from tidemill.errors import ConfigError

NUMERIC_KINDS = ("field", "count", "mean", "latest")
LABEL_VALUE = "label"  # as the value of a mean: 1 when the label is positive, else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PaneFeature:
    """A count or a mean that is read from a series into `column` of the matrix."""

    column: int
    is_mean: bool
    prior: float
    prior_weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class PaneSeries:
    """A ring of panes that one or more features share.

    word: where its first slot starts in the state of an entity. value None: cells are (count,), else (count, sum).
    """

    topic: str
    value: str | None
    unit: float
    pane_ms: int
    word: int
    slots: int
    features: tuple[PaneFeature, ...]

    @property
    def cells(self) -> int:
        return 1 if self.value is None else 2

    @property
    def slot_words(self) -> int:
        return 1 + self.cells


@dataclass(frozen=True, slots=True, kw_only=True)
class LatestSeries:
    """The latest entries of one topic: `fields[i]` is read into column `columns[i]`."""

    topic: str
    topic_index: int
    key_prefix: str
    fields: tuple[str, ...]
    columns: tuple[int, ...]
    capacity: int = LATEST_CAPACITY


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupPlan:
    """The state of one group. words: length of an entity's panes. label_place: its place among the groups that labels
    feed, -1 = labels do not feed it."""

    key_prefix: str
    entity: tuple[str, ...]
    words: int
    panes: tuple[PaneSeries, ...]
    latest: tuple[LatestSeries, ...]
    topics: tuple[str, ...]
    label_place: int


def numeric_features(spec: AppSpec) -> tuple[FeatureSpec, ...]:
    """Columns of the numeric matrix, in the order of YAML."""
    return tuple(f for group in spec.groups for f in group.features if f.kind in NUMERIC_KINDS)


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
    label_topics = {topic.name for topic in spec.topics if topic.role == "label"}
    plans: list[GroupPlan] = []
    label_place = 0
    for group in spec.groups:
        for feature in group.features:
            if feature.of is not None and feature.of not in topic_indexes:
                raise ConfigError(
                    "TM-1051", f"feature {feature.name} is of {feature.of!r}, which is no topic of the app"
                )
        fed = [feature for feature in group.features if feature.kind in ("count", "mean", "latest")]
        if not fed:
            continue
        panes, words = _plan_panes(group, columns, spec.max_skew_ms)
        topics = tuple(dict.fromkeys(feature.of for feature in fed if feature.of is not None))
        is_label_fed = not label_topics.isdisjoint(topics)
        plans.append(
            GroupPlan(
                key_prefix=f"{group.name}:v{group.version}:",
                entity=group.entity,
                words=words,
                panes=panes,
                latest=_plan_latest(group, columns, topic_indexes),
                topics=topics,
                label_place=label_place if is_label_fed else -1,
            )
        )
        label_place += is_label_fed
    return tuple(plans)


def label_groups(spec: AppSpec) -> tuple[GroupSpec, ...]:
    """The groups that labels feed, in the order of YAML."""
    labels = {topic.name for topic in spec.topics if topic.role == "label"}
    return tuple(
        g for g in spec.groups if any(f.kind in ("count", "mean", "latest") and f.of in labels for f in g.features)
    )


def _plan_panes(group: GroupSpec, columns: dict[str, int], max_skew_ms: int) -> tuple[tuple[PaneSeries, ...], int]:
    shared: dict[tuple[str, str | None, float, int], list[FeatureSpec]] = {}
    for feature in group.features:
        if feature.kind in ("count", "mean"):
            assert feature.of is not None  # config.py: a count or a mean names its topic
            value, unit = (None, 1.0) if feature.kind == "count" else (feature.value, feature.unit)
            shared.setdefault((feature.of, value, unit, _pane_ms(feature)), []).append(feature)
    series: list[PaneSeries] = []
    word = 0
    for (topic, value, unit, pane_ms), features in shared.items():
        one = PaneSeries(
            topic=topic,
            value=value,
            unit=unit,
            pane_ms=pane_ms,
            word=word,
            slots=slot_count(pane_ms, max_skew_ms),
            features=tuple(
                PaneFeature(
                    column=columns[feature.name],
                    is_mean=feature.kind == "mean",
                    prior=feature.prior,
                    prior_weight=feature.prior_weight,
                )
                for feature in features
            ),
        )
        series.append(one)
        word += one.slots * one.slot_words
    return tuple(series), word


def _pane_ms(feature: FeatureSpec) -> int:
    window_ms = feature.window_ms or 0
    if window_ms <= 0 or window_ms % PANES:
        raise ConfigError(
            "TM-1052",
            f"window of feature {feature.name} is {window_ms} ms, which cannot be cut into {PANES} panes of whole"
            f" milliseconds; use a positive multiple of {PANES} ms, such as any number of minutes",
        )
    return window_ms // PANES


def _plan_latest(group: GroupSpec, columns: dict[str, int], topic_indexes: dict[str, int]) -> tuple[LatestSeries, ...]:
    by_topic: dict[str, list[FeatureSpec]] = {}
    for feature in group.features:
        if feature.kind == "latest" and feature.of is not None:
            by_topic.setdefault(feature.of, []).append(feature)
    return tuple(
        LatestSeries(
            topic=topic,
            topic_index=topic_indexes[topic],
            key_prefix=f"{group.name}.latest.{topic_indexes[topic]}:v{group.version}:",
            fields=tuple(str(feature.field) for feature in features),
            columns=tuple(columns[feature.name] for feature in features),
        )
        for topic, features in by_topic.items()
    )
