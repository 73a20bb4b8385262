"""What an app declares, as frozen values: topics, label rule, features, learner.

`config.py` validates YAML into these; the core only reads them. Units are in the names; durations are milliseconds of
event time. Nothing here knows where the values came from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Role = Literal["event", "label", "context"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicSpec:
    """One input topic. `time_field` None means the Kafka timestamp is the event time."""

    name: str
    role: Role
    schema: dict[str, Any]  # the reader's Avro schema, parsed JSON
    id_field: str | None = None  # event and label: the field that names the event
    time_field: str | None = None
    partitions: int = 4  # used only when Tidemill creates the topic


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """One test on a field of the label record; a null field never satisfies it."""

    field: str
    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    equals: str | float | bool | None = None
    one_of: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelSpec:
    """When a label is positive, and how long its event waits for it."""

    positive_if_any: tuple[Condition, ...]
    wait_ms: int
    allowed_lateness_ms: int = 600_000  # clocks of producers differ by minutes, not hours
    dedup_window_ms: int = 7 * 86_400_000  # retries of a producer come within days


FeatureKind = Literal["field", "category", "count", "mean", "latest"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureSpec:
    """One feature; which attributes it needs depends on `kind` (see docs/features.md)."""

    name: str
    kind: FeatureKind
    of: str | None = None  # topic whose records feed it; None: the event itself
    field: str | None = None  # field, category, latest: the field that is read
    value: str | None = None  # mean: a numeric field of `of`, or "label" = 1 when the label is positive
    unit: float = 1.0  # mean: values are stored as round(value / unit), so that sums are integers
    window_ms: int | None = None  # count, mean
    prior: float = 0.0  # mean: (sum + prior * prior_weight) / (n + prior_weight)
    prior_weight: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupSpec:
    """Features of one entity. `entity` names the fields whose values form its key; they have the same names in every
    topic that feeds the group (for a label topic they are read from the label's event)."""

    name: str
    entity: tuple[str, ...]
    features: tuple[FeatureSpec, ...]
    version: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerSpec:
    """Vowpal Wabbit's arguments; always given in full again when a snapshot is resumed."""

    arguments: str = "--loss_function logistic --link logistic -b 20 -l 0.3"
    snapshot_every: int = 20_000  # offsets of the examples log


@dataclass(frozen=True, slots=True, kw_only=True)
class AppSpec:
    """A whole app. Order of `topics` is the order of YAML and breaks ties of event time within a role."""

    name: str
    topics: tuple[TopicSpec, ...]
    label: LabelSpec
    groups: tuple[GroupSpec, ...]
    learner: LearnerSpec = LearnerSpec()
    max_skew_ms: int = 600_000  # how far a worker may be ahead of the slowest other one
    batch_records: int = 2_000
    decision_threshold: float = 0.5  # the positive decision: blend above this
    default_probability: float = 0.5  # answers while nothing has been learned
