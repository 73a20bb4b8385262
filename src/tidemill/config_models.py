"""The shape of an app's YAML file: closed models, whose fields are those of the spec with YAML's names as aliases.

In: plain values of YAML. Out: validated models, durations in milliseconds. Invariant: an unknown key, a wrong type or a
value out of its range does not pass; what concerns more than one key is checked by `config_checks.py`.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping
from datetime import UTC, date, datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator, types

from tidemill.core.alerts import Severity
from tidemill.core.calendar import is_known_zone
from tidemill.core.spec import CalendarPart, ComparatorKind, FeatureKind, Role
from tidemill.core.state import LATEST_CAPACITY, PANES

MILLISECONDS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}


def parse_duration(text: object) -> int:
    """Milliseconds of "24h", "15m", "7d", "1h30m", "500ms". Raises ValueError on anything else."""
    parts = re.findall(r"(\d+)(ms|s|m|h|d)", text) if isinstance(text, str) else []
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"{text!r} is not a duration; write a number with a unit, such as 500ms, 30s, 15m, 24h or 7d")
    return sum(int(number) * MILLISECONDS[unit] for number, unit in parts)


def parse_date(value: object) -> int:
    """Milliseconds since the epoch of a day (YAML's own dates) or of an ISO 8601 time, UTC where it names no zone."""
    if isinstance(value, datetime):
        moment = value
    elif isinstance(value, date):
        moment = datetime(value.year, value.month, value.day)
    else:
        try:
            moment = datetime.fromisoformat(str(value))
        except ValueError:
            raise ValueError(f"{value!r} is not a day or a time; write 2013-04-01 or 2013-04-01T12:00:00Z") from None
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1_000)


Duration = Annotated[int, BeforeValidator(parse_duration)]  # milliseconds
Seconds = Annotated[float, BeforeValidator(lambda text: parse_duration(text) / 1_000)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]  # feature and group names end up in keys and in VW's text
TopicName = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,249}$")]
Scalar = types.StrictStr | types.StrictBool | types.StrictFloat  # an int is a float here
NEEDS: Mapping[str, frozenset[str]] = {  # kind of a feature -> the attributes that it must have
    "field": frozenset({"field"}),
    "category": frozenset(),  # either `field` or `part`
    "count": frozenset({"of", "window"}),
    "rate": frozenset({"of", "window"}),
    "sum": frozenset({"of", "window", "value"}),
    "mean": frozenset({"of", "window", "value"}),
    "min": frozenset({"of", "window", "value"}),
    "max": frozenset({"of", "window", "value"}),
    "decayed_count": frozenset({"of", "half_life"}),
    "decayed_mean": frozenset({"of", "half_life", "value"}),
    "distinct": frozenset({"of", "window", "field"}),
    "latest": frozenset({"of", "field"}),
    "time_since_last": frozenset({"of"}),
    "open": frozenset({"of", "closed_by", "window"}),
    "calendar": frozenset({"part"}),
}
_MAY_HAVE: Mapping[str, frozenset[str]] = {
    "category": frozenset({"field", "part", "zone"}),
    "sum": frozenset({"unit"}),
    "mean": frozenset({"unit", "prior", "prior_weight"}),
    "min": frozenset({"unit"}),
    "max": frozenset({"unit"}),
    "decayed_mean": frozenset({"unit", "prior", "prior_weight"}),
    "latest": frozenset({"back"}),
    "open": frozenset({"due", "closed_due", "ahead"}),
    "calendar": frozenset({"zone"}),
}
BOUNDS = frozenset({"above", "at_least", "below", "at_most"})  # of a rule: a range has two
ALLOWS: Mapping[str, frozenset[str]] = {kind: NEEDS[kind] | _MAY_HAVE.get(kind, frozenset()) for kind in NEEDS}


class Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, populate_by_name=False)


class RuleModel(Closed):
    field: str
    otherwise: Literal["flag", "dead_letter"]
    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None
    one_of: Annotated[
        tuple[types.StrictStr, ...] | tuple[types.StrictInt, ...] | None,
        Field(min_length=1),
    ] = None
    matches: types.StrictStr | None = None
    is_missing: types.StrictBool | None = None
    not_after: str | None = None
    not_before: str | None = None
    differs_from: str | None = None
    burst_above: Annotated[int | None, Field(ge=1)] = None

    @model_validator(mode="after")
    def _has_one_kind_of_test(self) -> RuleModel:
        tests = self.model_fields_set - {"field", "otherwise"}
        if not tests or (len(tests) > 1 and not tests <= BOUNDS):
            kinds = [name for name in RuleModel.model_fields if name not in BOUNDS | {"field", "otherwise"}]
            raise ValueError(
                f"a rule has a field, `otherwise`, and either bounds ({', '.join(sorted(BOUNDS))}) or exactly one of "
                f"{', '.join(kinds)}"
            )
        if self.burst_above is not None and self.otherwise == "dead_letter":
            raise ValueError("a burst is a matter of the batch, so it can flag only: write `otherwise: flag`")
        return self


class TopicModel(Closed):
    role: Role
    schema_path: Annotated[str, Field(alias="schema")]
    id_field: Annotated[str | None, Field(alias="id")] = None
    time_field: Annotated[str | None, Field(alias="time")] = None
    partitions: Annotated[int, Field(ge=1, le=10_000)] = 4
    rules: tuple[RuleModel, ...] = ()
    writers: tuple[str, ...] = ()


class ConditionModel(Closed):
    field: str
    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    equals: Scalar | None = None
    one_of: Annotated[tuple[str, ...] | None, Field(min_length=1)] = None

    @model_validator(mode="after")
    def _has_one_test(self) -> ConditionModel:
        if len(self.model_fields_set) != 2:
            raise ValueError("a condition has a field and exactly one of above, at_least, below, equals, one_of")
        return self


class LabelModel(Closed):
    positive_if_any: Annotated[tuple[ConditionModel, ...], Field(min_length=1)]
    wait_ms: Annotated[Duration, Field(alias="wait", ge=1)]
    allowed_lateness_ms: Annotated[Duration, Field(alias="allowed_lateness")] = 0
    dedup_window_ms: Annotated[Duration, Field(alias="dedup_window")] = 0


class FeatureModel(Closed):
    kind: FeatureKind
    of: str | None = None
    field: str | None = None
    value: str | None = None
    unit: Annotated[float, Field(gt=0)] = 1.0
    window_ms: Annotated[Duration | None, Field(alias="window", ge=1)] = None
    prior: float = 0.0
    prior_weight: Annotated[float, Field(ge=0)] = 0.0
    half_life_ms: Annotated[Duration | None, Field(alias="half_life", ge=2, multiple_of=2)] = None
    back: Annotated[int, Field(ge=0, lt=LATEST_CAPACITY)] = 0
    closed_by: str | None = None
    due: str | None = None
    closed_due: str | None = None
    ahead_ms: Annotated[Duration, Field(alias="ahead")] = 0
    part: CalendarPart | None = None
    zone: Annotated[str, AfterValidator(lambda name: known_zone(name))] = ""

    @model_validator(mode="after")
    def _has_what_its_kind_needs(self) -> FeatureModel:
        given = {FeatureModel.model_fields[name].alias or name for name in self.model_fields_set} - {"kind"}
        for name in sorted(NEEDS[self.kind] - given):
            raise ValueError(f"a {self.kind} needs `{name}`")
        for name in sorted(given - ALLOWS[self.kind]):
            raise ValueError(f"a {self.kind} has no `{name}`; it takes {', '.join(sorted(ALLOWS[self.kind]))}")
        if self.kind == "category" and (self.field is None) == (self.part is None):
            raise ValueError("a category needs either `field` or `part`")
        if "zone" in given and self.part is None:
            raise ValueError("a zone is that of a `part` of the event's time")
        if "ahead" in given and self.due is None and self.closed_due is None:
            raise ValueError("`ahead` says how far a due time may be ahead; name `due` or `closed_due` too")
        if self.window_ms is not None and self.window_ms % PANES:
            raise ValueError(f"a window is kept in {PANES} panes of whole milliseconds; take a multiple")
        return self


class GroupModel(Closed):
    entity: tuple[str, ...]
    features: Annotated[dict[Name, FeatureModel], Field(min_length=1)]
    version: Annotated[int, Field(ge=1)] = 1


class LearnerModel(Closed):
    arguments: str = ""
    snapshot_every: Annotated[int, Field(ge=1)] = 1
    warm_offsets: Annotated[int, Field(ge=0)] = 0


class BoosterModel(Closed):
    rounds: Annotated[int, Field(ge=1, le=10_000)] = 1
    early_stopping_rounds: Annotated[int, Field(ge=1)] = 1
    validation_share: Annotated[float, Field(gt=0, lt=0.5)] = 0.1
    max_depth: Annotated[int, Field(ge=1, le=12)] = 1
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 1
    subsample: Annotated[float, Field(gt=0, le=1)] = 1
    column_share: Annotated[float, Field(gt=0, le=1)] = 1
    min_child_weight: Annotated[float, Field(ge=0)] = 0
    max_bin: Annotated[int, Field(ge=2, le=65_536)] = 2
    leaf_trees: Annotated[int, Field(ge=0, le=1_000)] = 0
    category_values_max: Annotated[int, Field(ge=1, le=65_536)] = 1


class BlendModel(Closed):
    rate: Annotated[float, Field(gt=0, le=1)] = 1
    share: Annotated[float, Field(ge=0, lt=1)] = 0


class CostsModel(Closed):
    false_alarm: Annotated[float, Field(gt=0)] = 1
    miss: Annotated[float, Field(gt=0)] = 1


class ComparatorModel(Closed):
    kind: ComparatorKind
    trained_until_ms: Annotated[int | None, BeforeValidator(parse_date), Field(alias="trained_until")] = None
    retrain_every_ms: Annotated[Duration | None, Field(alias="retrain_every", ge=1)] = None
    features: Annotated[tuple[Name, ...] | None, Field(min_length=1)] = None

    @model_validator(mode="after")
    def _has_what_its_kind_needs(self) -> ComparatorModel:
        if self.kind == "booster" and self.trained_until_ms is None:
            raise ValueError("a booster needs `trained_until`: a day such as 2013-04-01")
        if self.kind != "booster" and len(self.model_fields_set) > 1:
            raise ValueError(f"a {self.kind} takes nothing else")
        return self


class MonitorModel(Closed):
    every_ms: Annotated[Duration, Field(alias="every", ge=1)] = 1
    window_ms: Annotated[Duration, Field(alias="window", ge=1)] = 1
    reference_ticks: Annotated[int, Field(ge=2)] = 2
    average_run_length: Annotated[int, Field(ge=2)] = 2
    psi: Annotated[float, Field(gt=0)] = 1
    missing: Annotated[float, Field(gt=0, le=1)] = 1
    volume: Annotated[float, Field(ge=0, lt=1)] = 0
    run_of_one_class: Annotated[int, Field(ge=2)] = 2
    quiet_ms: Annotated[Duration, Field(alias="quiet")] = 0
    cooldown_ms: Annotated[Duration, Field(alias="cooldown")] = 0


class TriggerModel(Closed):
    alert: Literal["covariate", "label", "prediction", "concept", "quality", "performance", "operations"] | None = None
    every_ms: Annotated[Duration | None, Field(alias="every", ge=1)] = None
    growth: Annotated[float | None, Field(gt=0)] = None
    worse_than: Name | None = None

    @model_validator(mode="after")
    def _is_one_reason(self) -> TriggerModel:
        if len(self.model_fields_set) != 1:
            raise ValueError("a trigger is one of alert, every, growth, worse_than")
        return self


class TrainingWindowModel(Closed):
    last_ms: Annotated[Duration | None, Field(alias="last", ge=1)] = None
    half_life_ms: Annotated[Duration | None, Field(alias="half_life", ge=1)] = None

    @model_validator(mode="after")
    def _is_one_window(self) -> TrainingWindowModel:
        if len(self.model_fields_set) != 1:
            raise ValueError("a window is `all`, or one of last, half_life")
        return self


class RolloutModel(Closed):
    alpha: Annotated[float, Field(gt=0, lt=0.5)] = 0.05
    examples_min: Annotated[int, Field(ge=50)] = 50
    examples_max: Annotated[int, Field(ge=50)] = 50
    margin: Annotated[float, Field(ge=0)] = 0
    canary_share: Annotated[float, Field(ge=0, lt=1)] = 0
    canary_examples: Annotated[int, Field(ge=1)] = 1
    probation_examples: Annotated[int, Field(ge=0)] = 0


class RetrainModel(Closed):
    any_of: tuple[TriggerModel, ...] = ()
    all_of: tuple[TriggerModel, ...] = ()
    window: Literal["all"] | TrainingWindowModel = "all"
    examples_min: Annotated[int, Field(ge=200)] = 200
    cooldown_ms: Annotated[Duration, Field(alias="cooldown")] = 0
    latency_ms: Annotated[Duration, Field(alias="latency")] = 0
    timeout_s: Annotated[Seconds, Field(alias="timeout")] = 0
    needs_approval: bool = False
    holdout: Annotated[float, Field(ge=0, le=0.5)] = 0
    gate_margin: Annotated[float, Field(ge=0)] = 0
    slice_margin: Annotated[float, Field(ge=0)] = 0
    slice_examples: Annotated[int, Field(ge=1)] = 1
    rollout: RolloutModel | None = None
    guards_learner: bool = True


class SinkModel(Closed):
    kind: Literal["webhook", "slack", "alertmanager"]
    name: Name | None = None
    url: str
    headers: dict[str, str] = {}
    min_severity: Severity = "info"


class SchemaRegistryModel(Closed):
    url: str
    basic_auth: str | None = None
    ca_file: str | None = None
    timeout_s: Annotated[Seconds, Field(alias="timeout")] = 0
    refresh_s: Annotated[Seconds, Field(alias="refresh")] = 0
    if_unreachable: Literal["wait", "dead_letter"] = "wait"


class LimitsModel(Closed):
    value_bytes: Annotated[int, Field(ge=1, le=16_000_000)] = 1
    text_bytes: Annotated[int, Field(ge=16, le=65_536)] = 16
    items: Annotated[int, Field(ge=1, le=1_000_000)] = 1


class WorkerModel(Closed):
    is_bounded: Annotated[bool, Field(alias="bounded")] = False
    max_idle_s: Annotated[Seconds, Field(alias="max_idle")] = 0
    idle_after_s: Annotated[Seconds, Field(alias="idle_after")] = 0
    stall_after_s: Annotated[Seconds, Field(alias="stall_after")] = 0
    start_timeout_s: Annotated[Seconds, Field(alias="start_timeout")] = 0
    when_behind: Literal["stop", "degraded"] = "stop"
    metrics_port: Annotated[int, Field(ge=0, le=65_535)] = 0


class FileModel(Closed):
    """Defaults of optional parts are never used: only what is set goes on, the spec's own defaults fill the rest."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$")]
    topics: dict[TopicName, TopicModel]
    label: LabelModel
    groups: Annotated[dict[Name, GroupModel], Field(min_length=1)]
    learner: LearnerModel | None = None
    booster: BoosterModel | None = None
    blend: BlendModel | None = None
    costs: CostsModel | None = None
    comparators: dict[Name, ComparatorModel] = {}
    monitor: MonitorModel | None = None
    retrain: RetrainModel | None = None
    max_skew_ms: Annotated[Duration, Field(alias="max_skew")] = 0
    batch_records: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    batch_span_ms: Annotated[Duration | None, Field(alias="batch_span", ge=1)] = None
    default_probability: Annotated[float, Field(gt=0, lt=1)] = 0.5
    learn_flagged: bool = False
    limits: LimitsModel | None = None
    kafka: dict[str, Annotated[str, BeforeValidator(lambda value: as_text(value))]] = {}
    redis_url: str | None = None
    object_store: str | None = None
    trusted_keys: tuple[str, ...] = ()
    sinks: tuple[SinkModel, ...] = ()
    schema_registry: SchemaRegistryModel | None = None
    worker: WorkerModel | None = None


MODELS: Mapping[tuple[Hashable, int], type[Closed]] = {  # (first key, depth) of a mapping -> what stands in it
    ("", 0): FileModel,
    ("topics", 2): TopicModel,
    ("topics", 4): RuleModel,
    ("label", 1): LabelModel,
    ("label", 3): ConditionModel,
    ("groups", 2): GroupModel,
    ("groups", 4): FeatureModel,
    ("learner", 1): LearnerModel,
    ("booster", 1): BoosterModel,
    ("blend", 1): BlendModel,
    ("costs", 1): CostsModel,
    ("limits", 1): LimitsModel,
    ("comparators", 2): ComparatorModel,
    ("monitor", 1): MonitorModel,
    ("retrain", 1): RetrainModel,
    ("retrain", 2): RolloutModel,
    ("retrain", 3): TriggerModel,
    ("sinks", 2): SinkModel,
    ("schema_registry", 1): SchemaRegistryModel,
    ("worker", 1): WorkerModel,
}


def known_zone(name: str) -> str:
    """The name, if this platform knows the zone. Raises ValueError."""
    if not is_known_zone(name):
        raise ValueError(f"{name!r} is no time zone that this platform knows; write for example Europe/Vienna")
    return name


def as_text(value: object) -> object:
    """librdkafka takes text: YAML's true and 5 become "true" and "5"."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else value
