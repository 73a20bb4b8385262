"""YAML and environment in, frozen settings out; the only reader of either.

In: the path of an app's YAML file, environment variables, overrides of the command line. Out: `AppSpec` for the core,
`Settings` for the apps. Invariant: what comes out is complete and consistent; every problem is a ConfigError that names
file and line, so no later stage has to check a name, a type or a range again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn

import yaml  # type: ignore[import-untyped, unused-ignore]
from pydantic import ValidationError

from tidemill.config_checks import Location, check_app, nearest
from tidemill.config_models import (
    MODELS,
    Closed,
    FileModel,
    GroupModel,
    LabelModel,
    RetrainModel,
    SchemaRegistryModel,
    SinkModel,
    TopicModel,
    TrainingWindowModel,
    TriggerModel,
)
from tidemill.config_schemas import read_schema, read_schemas
from tidemill.core.alerts import Severity
from tidemill.core.loop_spec import MonitorSpec, RetrainSpec, RolloutSpec, TriggerSpec
from tidemill.core.spec import (
    AppSpec,
    BlendSpec,
    BoosterSpec,
    ComparatorSpec,
    Condition,
    CostSpec,
    FeatureSpec,
    GroupSpec,
    LabelSpec,
    LearnerSpec,
    LimitsSpec,
    RuleSpec,
    TopicSpec,
)
from tidemill.errors import ConfigError

# No message shows what stands there.
_MAY_HOLD_SECRETS = (("kafka",), ("redis_url",), ("object_store",), ("sinks",), ("schema_registry",))


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """How one worker runs. Only `is_bounded` changes what it computes; the rest is patience of the wall clock."""

    is_bounded: bool = False  # a worker follows a live topic unless it is told that the data ends
    max_idle_s: float = 0.5  # live merge: how long a partition that lags may hold back the others; covers a slow fetch
    idle_after_s: float = 30.0  # live: a partition without records this long takes the watermark of the group
    stall_after_s: float = 60.0  # no progress although there is lag; a rebalance or a fail-over takes up to 20 s
    start_timeout_s: float = 60.0  # servers may come up after the worker; a container host needs half a minute
    when_behind: Literal["stop", "degraded"] = "stop"  # while another partition's state is rebuilt; flags tell it
    metrics_port: int = 0  # 0 = no endpoint; each worker process needs a port of its own


@dataclass(frozen=True, slots=True, kw_only=True)
class SinkSettings:
    """Where `tidemill alerts forward` sends alerts of this severity and above."""

    kind: Literal["webhook", "slack", "alertmanager"]
    name: str  # its position is kept under it, wherever it stands in the list and whatever its URL is by now
    url: str = field(repr=False)  # Slack's are secrets
    headers: dict[str, str] = field(default_factory=dict, repr=False)  # of every request; may hold secrets
    min_severity: Severity = "info"


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaRegistrySettings:
    """Where schemas are looked up that are not declared. Durations are of the wall clock."""

    url: str  # without credentials
    basic_auth: str | None = field(default=None, repr=False)  # user:password
    ca_file: Path | None = None
    timeout_s: float = 3.0  # a registry answers within milliseconds; meanwhile the worker stands still
    refresh_s: float = 60.0  # how often the subjects are read ahead of their first record
    if_unreachable: Literal["wait", "dead_letter"] = "wait"


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """An app and where it runs. None for a server means: start an embedded one."""

    app: AppSpec
    kafka: dict[str, str] = field(repr=False)  # given verbatim to every librdkafka client; may hold secrets
    redis_url: str | None = field(repr=False)  # may hold a password
    bootstrap_servers: str | None
    data_folder: Path
    object_store: str | None = field(default=None, repr=False)  # folder or URL of snapshots and models; None = data
    trusted_keys: tuple[str, ...] = ()  # public keys of those who may sign models, beside the one in the data folder
    sinks: tuple[SinkSettings, ...] = ()
    schema_registry: SchemaRegistrySettings | None = None
    worker: WorkerSettings = WorkerSettings()


def load_app(path: Path | str) -> AppSpec:
    """The app that a YAML file declares.

    Raises:
        ConfigError: TM-1001 to TM-1006, one line for each problem found, with file, line and what to try.
    """
    source = _Source(Path(path))
    return _build_app(source, _validate(source))


def load_settings(path: Path | str, **overrides: Any) -> Settings:
    """The app with its servers and worker settings: override before environment before YAML before default.

    Args:
        overrides: fields of `Settings` (except `app` and `worker`) and of `WorkerSettings`; None counts as not given.
    Raises:
        ConfigError: as `load_app`; TM-1007 an override or variable that cannot be used.
    """
    source = _Source(Path(path))
    file = _validate(source)
    given = {name: value for name, value in overrides.items() if value is not None}
    worker_names = [one.name for one in dataclasses.fields(WorkerSettings)]
    known = [*worker_names, "kafka", "redis_url", "bootstrap_servers", "data_folder", "object_store"]
    for name in overrides:
        if name not in known:
            raise ConfigError("TM-1007", f"unknown setting {name!r}{nearest(name, known)}")

    kafka = {name: _expand(source, ("kafka", name), value) for name, value in file.kafka.items()}
    kafka.update(given.get("kafka", {}))
    servers = kafka.pop("bootstrap.servers", None)
    redis_url = None if file.redis_url is None else _expand(source, ("redis_url",), file.redis_url)
    object_store = None if file.object_store is None else _expand(source, ("object_store",), file.object_store)
    worker = file.worker.model_dump(exclude_unset=True) if file.worker else {}
    worker.update({name: value for name, value in given.items() if name in worker_names})
    folder = given.get("data_folder") or os.environ.get("TIDEMILL_DATA") or _default_data_folder()
    return Settings(
        app=_build_app(source, file),
        kafka=kafka,
        redis_url=given.get("redis_url") or os.environ.get("TIDEMILL_REDIS_URL") or redis_url,
        bootstrap_servers=given.get("bootstrap_servers") or os.environ.get("TIDEMILL_BOOTSTRAP_SERVERS") or servers,
        data_folder=Path(folder),
        object_store=given.get("object_store") or os.environ.get("TIDEMILL_OBJECT_STORE") or object_store,
        trusted_keys=file.trusted_keys,
        sinks=_build_sinks(source, file.sinks),
        schema_registry=None if file.schema_registry is None else _build_registry(source, file.schema_registry),
        worker=WorkerSettings(**worker),
    )


def config_digest(spec: AppSpec) -> str:
    """BLAKE2b-128 of the app's canonical JSON, as hex: workers of one app must agree on it.

    How boosters are trained, what the monitor compares and when, changes nothing that a worker computes; schemas of
    writers only decide which records can be read at all. Of `retrain:` workers know the share of the canary alone: by
    it each decides which version an event is served by.
    """
    declared = dataclasses.asdict(spec)
    for topic in declared["topics"]:
        del topic["writers"]
    for part in ("booster", "comparators", "monitor", "retrain"):
        del declared[part]
    if spec.limits == LimitsSpec():  # stores of before there were limits know no digest with them
        del declared["limits"]
    share = 0.0 if spec.retrain is None else spec.retrain.rollout.canary_share
    if share > 0:  # nor does one without a canary
        declared["canary_share"] = share
    canonical = json.dumps(declared, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.blake2b(canonical.encode("ascii"), digest_size=16).hexdigest()


class _Source:
    """A YAML file as plain values, with the line of every key and item. Raises ConfigError TM-1001, TM-1006."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: dict[Location, int] = {(): 1}
        try:
            root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError("TM-1001", f"{path}: cannot be read: {error}; give the path of the app's YAML") from error
        except yaml.MarkedYAMLError as error:
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise ConfigError("TM-1001", f"{path}:{line}: not YAML: {error.problem or error.context}") from error
        self.values = None if root is None else self._take(root, ())

    def line(self, location: Location) -> int:
        """The line of the key at `location`, or of the nearest one above it."""
        while location not in self.lines:
            location = location[:-1]
        return self.lines[location]

    def fail(self, code: str, location: Location, message: str) -> NoReturn:
        raise ConfigError(code, f"{self.path}:{self.line(location)}: {message}")

    def _take(self, node: yaml.Node, location: Location) -> Any:
        self.lines.setdefault(location, node.start_mark.line + 1)
        if isinstance(node, yaml.SequenceNode):
            return [self._take(item, (*location, index)) for index, item in enumerate(node.value)]
        if not isinstance(node, yaml.MappingNode):
            return yaml.SafeLoader("").construct_object(node)
        values: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value
            if key in values:
                line = key_node.start_mark.line + 1
                first = self.lines[(*location, key)]
                raise ConfigError("TM-1006", f"{self.path}:{line}: {key!r} stands twice, first at line {first}")
            self.lines[(*location, key)] = key_node.start_mark.line + 1
            values[key] = self._take(value_node, (*location, key))
        return values


def _validate(source: _Source) -> FileModel:
    try:
        return FileModel.model_validate(source.values)
    except ValidationError as error:
        # A misspelt key is unknown and its right name is missing: the first explains the second.
        problems = sorted(_problems(source, error), key=lambda problem: (problem[1], problem[0]))
        raise ConfigError(
            problems[0][1], "\n".join(f"{source.path}:{at}: {text}" for at, _, text in problems)
        ) from None


def _problems(source: _Source, error: ValidationError) -> Iterator[tuple[int, str, str]]:
    """(line, code, message) of each problem pydantic found."""
    for one in error.errors(include_url=False):
        location = one["loc"]
        name = ".".join(str(part) for part in location) or "the file"
        if one["type"] == "extra_forbidden":
            known = _known_names(location[:-1])
            yield source.line(location), "TM-1002", f"unknown key {name}{nearest(str(location[-1]), known)}"
        elif one["type"] == "missing":
            yield source.line(location), "TM-1003", f"{name} is missing"
        else:
            reason = one["msg"].removeprefix("Value error, ")
            is_hidden = location[:1] in _MAY_HOLD_SECRETS or isinstance(one["input"], dict | list)
            shown = "" if is_hidden or reason.startswith(repr(one["input"])) else one["input"]
            yield source.line(location), "TM-1003", f"{name}: {reason}{f' (found {shown!r})' if shown != '' else ''}"


def _known_names(location: Location) -> list[str]:
    """The keys that YAML may have in the mapping at `location`."""
    model = MODELS[(location[0] if location else "", len(location))]
    return [found.alias or name for name, found in model.model_fields.items()]


def _expand(source: _Source, location: Location, text: str) -> str:
    """Put the environment in place of `${NAME}`, so that no secret stands in a file."""

    def value_of(match: re.Match[str]) -> str:
        value = os.environ.get(match[1])
        if value is None:
            source.fail("TM-1007", location, f"environment variable {match[1]} is not set; export it")
        return value

    return re.sub(r"\$\{(\w+)\}", value_of, text)


def _build_sinks(source: _Source, sinks: tuple[SinkModel, ...]) -> tuple[SinkSettings, ...]:
    names = [sink.name or sink.kind for sink in sinks]
    for index, name in enumerate(names):
        if (first := names.index(name)) < index:
            text = f"sinks.{index} is named {name}, and so is sinks.{first}; give each sink a `name` of its own"
            source.fail("TM-1003", ("sinks", index), f"{text} (without one it is its kind)")
    return tuple(_build_sink(source, index, sink) for index, sink in enumerate(sinks))


def _build_sink(source: _Source, index: int, sink: SinkModel) -> SinkSettings:
    url = _expand(source, ("sinks", index, "url"), sink.url)
    if not re.match(r"https?://[^/]", url):
        source.fail("TM-1003", ("sinks", index, "url"), f"sinks.{index}.url must begin with http:// or https://")
    headers = {name: _expand(source, ("sinks", index, "headers", name), value) for name, value in sink.headers.items()}
    name = sink.name or sink.kind
    return SinkSettings(kind=sink.kind, name=name, url=url, headers=headers, min_severity=sink.min_severity)


def _build_registry(source: _Source, registry: SchemaRegistryModel) -> SchemaRegistrySettings:
    given = registry.model_dump(exclude_unset=True)
    for name in given.keys() & {"url", "basic_auth"}:
        given[name] = _expand(source, ("schema_registry", name), given[name])
    if not re.match(r"https?://[^/@]+(/[^@]*)?$", given["url"]):
        source.fail(
            "TM-1003",
            ("schema_registry", "url"),
            "schema_registry.url must begin with http:// or https:// and hold no password; that goes to basic_auth",
        )
    if ":" not in given.get("basic_auth", ":"):
        source.fail("TM-1003", ("schema_registry", "basic_auth"), "schema_registry.basic_auth must be user:password")
    if "ca_file" in given:
        given["ca_file"] = source.path.parent / given["ca_file"]
    return SchemaRegistrySettings(**given)


def _default_data_folder() -> Path:
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "tidemill"


# --- from the file to the spec, with the checks that concern more than one key


def _build_app(source: _Source, file: FileModel) -> AppSpec:
    topics = tuple(_build_topic(source, name, topic) for name, topic in file.topics.items())
    spec = AppSpec(
        name=file.name,
        topics=topics,
        label=_build_label(file.label),
        groups=tuple(_build_group(name, group) for name, group in file.groups.items()),
        learner=LearnerSpec(**_given(file.learner)),
        booster=BoosterSpec(**_given(file.booster)),
        blend=BlendSpec(**_given(file.blend)),
        costs=CostSpec(**_given(file.costs)),
        limits=LimitsSpec(**_given(file.limits)),
        comparators=tuple(ComparatorSpec(name=name, **_given(one)) for name, one in file.comparators.items()),
        monitor=MonitorSpec(**_given(file.monitor)),
        retrain=None if file.retrain is None else _build_retrain(file.retrain),
        **file.model_dump(
            exclude_unset=True,
            include={"max_skew_ms", "batch_records", "batch_span_ms", "default_probability", "learn_flagged"},
        ),
    )
    problems = sorted((source.line(location), message) for location, message in check_app(spec))
    if problems:
        raise ConfigError("TM-1005", "\n".join(f"{source.path}:{line}: {message}" for line, message in problems))
    return spec


def _given(part: Closed | None) -> dict[str, Any]:
    """What the file says of an optional part; the spec's own defaults fill the rest."""
    return {} if part is None else part.model_dump(exclude_unset=True)


def _build_retrain(retrain: RetrainModel) -> RetrainSpec:
    given = retrain.model_dump(exclude_unset=True, exclude={"any_of", "all_of", "window", "rollout"})
    return RetrainSpec(
        any_of=tuple(map(_build_trigger, retrain.any_of)),
        all_of=tuple(map(_build_trigger, retrain.all_of)),
        **_window_of(retrain.window),
        rollout=RolloutSpec(**_given(retrain.rollout)),
        **given,
    )


def _window_of(window: Literal["all"] | TrainingWindowModel) -> dict[str, Any]:
    if window == "all":
        return {}
    if window.last_ms is not None:
        return {"window": "last", "window_ms": window.last_ms}
    return {"window": "decayed", "window_ms": window.half_life_ms}


def _build_trigger(trigger: TriggerModel) -> TriggerSpec:
    if trigger.alert is not None:
        return TriggerSpec(kind="alert", alert_kind=trigger.alert)
    if trigger.every_ms is not None:
        return TriggerSpec(kind="schedule", every_ms=trigger.every_ms)
    if trigger.growth is not None:
        return TriggerSpec(kind="volume", growth=trigger.growth)
    return TriggerSpec(kind="performance", comparator=str(trigger.worse_than))


def _build_topic(source: _Source, name: str, topic: TopicModel) -> TopicSpec:
    folder = source.path.parent
    place: Location = ("topics", name, "schema")
    writers: list[dict[str, Any]] = []
    try:
        schema = read_schema(folder, topic.schema_path)
        for index, pattern in enumerate(topic.writers):
            place = ("topics", name, "writers", index)
            writers += read_schemas(folder, pattern)
    except ValueError as error:
        source.fail("TM-1004", place, str(error))
    rules = tuple(RuleSpec(**rule.model_dump(exclude_unset=True)) for rule in topic.rules)
    rest = topic.model_dump(exclude_unset=True, exclude={"schema_path", "rules", "writers"})
    return TopicSpec(name=name, schema=schema, rules=rules, writers=tuple(writers), **rest)


def _build_label(label: LabelModel) -> LabelSpec:
    rest = label.model_dump(exclude_unset=True, exclude={"positive_if_any"})
    conditions = tuple(Condition(**one.model_dump(exclude_unset=True)) for one in label.positive_if_any)
    return LabelSpec(positive_if_any=conditions, **rest)


def _build_group(name: str, group: GroupModel) -> GroupSpec:
    features = tuple(
        FeatureSpec(name=one, **found.model_dump(exclude_unset=True)) for one, found in group.features.items()
    )
    return GroupSpec(name=name, features=features, **group.model_dump(exclude_unset=True, exclude={"features"}))
