"""What an app declares, as frozen values: topics, label rule, features, learner.

`config.py` validates YAML into these; the core only reads them. Units are in the names; durations are milliseconds of
event time. Nothing here knows where the values came from.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from tidemill.core.loop_spec import MonitorSpec, RetrainSpec

Role = Literal["event", "label", "context"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleSpec:
    """What a good record of a topic satisfies at its entry, and what becomes of one that does not.

    One kind of test: bounds (which may be given together), one_of, matches (the whole text), is_missing, or a
    comparison with another field of the record. A null satisfies all of them but `is_missing` False.
    """

    field: str
    otherwise: Literal["flag", "dead_letter"]
    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None
    one_of: tuple[str, ...] | tuple[int, ...] | None = None
    matches: str | None = None  # a regular expression of RE2: its time is linear in the text
    is_missing: bool | None = None
    not_after: str | None = None  # another field, which is at least as large
    not_before: str | None = None  # another field, which is at most as large
    differs_from: str | None = None  # another field
    burst_above: int | None = None  # so many records with one value of the field may come in one batch


@dataclass(frozen=True, slots=True, kw_only=True)
class TopicSpec:
    """One input topic. `time_field` None means the Kafka timestamp is the event time."""

    name: str
    role: Role
    schema: dict[str, Any]  # the reader's Avro schema, parsed JSON
    id_field: str | None = None  # event and label: the field that names the event
    time_field: str | None = None
    partitions: int = 4  # used only when Tidemill creates the topic
    rules: tuple[RuleSpec, ...] = ()
    writers: tuple[dict[str, Any], ...] = ()  # other schemas that its records may be written with


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


FeatureKind = Literal[
    "field", "category", "calendar",  # of the event itself
    "count", "rate", "sum", "mean", "min", "max", "open",  # of the panes of a window
    "decayed_count", "decayed_mean",  # of twelve panes of half a half-life
    "distinct",
    "latest", "time_since_last",
]  # fmt: skip
CalendarPart = Literal["hour", "weekday", "day", "month", "minute_of_day"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureSpec:
    """One feature; which attributes it needs depends on `kind` (see docs/features.md)."""

    name: str
    kind: FeatureKind
    of: str | None = None  # topic whose records feed it; None: the event itself
    field: str | None = None  # field, category, latest, distinct: the field that is read
    value: str | None = None  # sum, means, min, max: a numeric field of `of`, or "label" = 1 when the label is positive
    unit: float = 1.0  # values are stored as round(value / unit), so that sums are integers
    window_ms: int | None = None  # kinds of panes, and distinct
    half_life_ms: int | None = None  # decayed kinds: after so long a record counts for half
    prior: float = 0.0  # means: (sum + prior * prior_weight) / (n + prior_weight)
    prior_weight: float = 0.0
    back: int = 0  # latest: 0 = the newest record, 1 = the one before it
    closed_by: str | None = None  # open: the topic whose records close what those of `of` opened
    due: str | None = None  # open: a field of `of`, ms since the epoch, at which its records begin to count
    closed_due: str | None = None  # open: a field of `closed_by`, before which its records do not count either
    ahead_ms: int = 7_200_000  # open: a due time further ahead of its record does not count; schedules move by hours
    part: CalendarPart | None = None  # calendar, category: what is read of the event's time
    zone: str = "UTC"  # IANA name


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

    # mc: the margin is corrected by category, as many weights as there are categories. docs/decisions/0007
    arguments: str = "--loss_function logistic --link logistic -b 20 -l 0.2 --interactions mc"
    snapshot_every: int = 20_000  # offsets of the examples log
    warm_offsets: int = 20_000  # of the log, that a new version's learner folds again with its booster: .3 s


@dataclass(frozen=True, slots=True, kw_only=True)
class BoosterSpec:
    """How a booster is trained (XGBoost's terms), and what of it the learner sees."""

    rounds: int = 180  # trees at most: each costs 30 ns a row when it scores; early stopping mostly ends before
    early_stopping_rounds: int = 15  # trees without a better loss on the newest examples
    validation_share: float = 0.1  # of the examples, the newest by label time: they say how many trees
    max_depth: int = 6
    learning_rate: float = 0.12
    subsample: float = 0.8
    column_share: float = 0.3  # of the columns, for each tree
    min_child_weight: float = 50.0
    max_bin: int = 64  # thresholds per column; more changed nothing on a year of examples
    leaf_trees: int = 30  # the leaves of the first trees are tokens of the learner; 0 = none
    category_values_max: int = 256  # by column, the most frequent; the rest count as missing


@dataclass(frozen=True, slots=True, kw_only=True)
class BlendSpec:
    """Weights of the experts along the examples log: w * exp(-rate * loss), then Fixed Share (Herbster and Warmuth)."""

    rate: float = 0.1  # (0, 1], read to 1 / 2^24; smaller = slower to follow, fewer changes of mind
    share: float = 0.0003  # of all weight, given out evenly after each example: how fast a loser of long ago comes back


@dataclass(frozen=True, slots=True, kw_only=True)
class CostSpec:
    """What a decision costs, in any unit; a right one is the measure and costs nothing."""

    false_alarm: float = 1.0
    miss: float = 1.0

    @property
    def threshold(self) -> float:
        """Positive where the expected cost of an alarm is below that of silence: (1 - p) false_alarm < p miss."""
        return self.false_alarm / (self.false_alarm + self.miss)


RESERVED_SERIES = ("blend", "learner", "booster", "base_rate", "predictions")  # what metrics.v1 calls its own
ComparatorKind = Literal["constant", "no_change", "booster"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparatorSpec:
    """A model that is measured beside those that serve, and never serves.

    constant, no_change: of the labels known at the event's time. booster: trained once on all examples whose label came
    before `trained_until_ms`, and again every `retrain_every_ms` of event time when that is given; before the first
    training it says nothing. `features` None means all.
    """

    name: str
    kind: ComparatorKind
    trained_until_ms: int | None = None
    retrain_every_ms: int | None = None
    features: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitsSpec:
    """What one input record may hold; one that holds more is a dead letter. Never changed by other records."""

    value_bytes: int = 1024 * 1024  # Kafka's own default of message.max.bytes
    text_bytes: int = 1_024  # of an id, an entity, a category: they become keys of the store and stand in each output
    items: int = 10_000  # of all arrays and maps of a record together


@dataclass(frozen=True, slots=True, kw_only=True)
class AppSpec:
    """A whole app. Order of `topics` is the order of YAML and breaks ties of event time within a role."""

    name: str
    topics: tuple[TopicSpec, ...]
    label: LabelSpec
    groups: tuple[GroupSpec, ...]
    learner: LearnerSpec = LearnerSpec()
    booster: BoosterSpec = BoosterSpec()
    blend: BlendSpec = BlendSpec()
    costs: CostSpec = CostSpec()
    comparators: tuple[ComparatorSpec, ...] = ()
    max_skew_ms: int = 600_000  # how far a worker may be ahead of the slowest other one
    batch_records: int = 2_000
    batch_span_ms: int | None = None  # event time that one batch may cover; None = as much as there is
    default_probability: float = 0.5  # answers while nothing has been learned
    limits: LimitsSpec = LimitsSpec()
    learn_flagged: bool = False  # learn also from examples whose event or label broke a rule that flags
    monitor: MonitorSpec = field(default_factory=MonitorSpec)
    retrain: RetrainSpec | None = None  # None: only by hand
