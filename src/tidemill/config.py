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
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, NoReturn

import fastavro
import yaml  # type: ignore[import-untyped, unused-ignore]
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator, types

from tidemill.config_checks import Location, check_app, nearest
from tidemill.core.spec import (
    AppSpec,
    Condition,
    FeatureKind,
    FeatureSpec,
    GroupSpec,
    LabelSpec,
    LearnerSpec,
    Role,
    TopicSpec,
)
from tidemill.errors import ConfigError

MILLISECONDS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
PANES_PER_WINDOW = 12  # a window is kept as panes of a twelfth (docs/features.md)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSettings:
    """How one worker runs. Only `is_bounded` changes what it computes; the rest is patience of the wall clock."""

    is_bounded: bool = False  # a worker follows a live topic unless it is told that the data ends
    max_idle_s: float = 0.5  # live merge: how long a partition that lags may hold back the others; covers a slow fetch
    idle_after_s: float = 30.0  # live: a partition without records this long takes the watermark of the group
    stall_after_s: float = 60.0  # no progress although there is lag; a rebalance or a fail-over takes up to 20 s
    start_timeout_s: float = 60.0  # servers may come up after the worker; a container host needs half a minute
    metrics_port: int = 0  # 0 = no endpoint; each worker process needs a port of its own


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """An app and where it runs. None for a server means: start an embedded one."""

    app: AppSpec
    kafka: dict[str, str] = field(repr=False)  # given verbatim to every librdkafka client; may hold secrets
    redis_url: str | None = field(repr=False)  # may hold a password
    bootstrap_servers: str | None
    data_folder: Path
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
    known = [*worker_names, "kafka", "redis_url", "bootstrap_servers", "data_folder"]
    for name in overrides:
        if name not in known:
            raise ConfigError("TM-1007", f"unknown setting {name!r}{nearest(name, known)}")

    kafka = {name: _expand(source, ("kafka", name), value) for name, value in file.kafka.items()}
    kafka.update(given.get("kafka", {}))
    servers = kafka.pop("bootstrap.servers", None)
    redis_url = None if file.redis_url is None else _expand(source, ("redis_url",), file.redis_url)
    worker = file.worker.model_dump(exclude_unset=True) if file.worker else {}
    worker.update({name: value for name, value in given.items() if name in worker_names})
    folder = given.get("data_folder") or os.environ.get("TIDEMILL_DATA") or _default_data_folder()
    return Settings(
        app=_build_app(source, file),
        kafka=kafka,
        redis_url=given.get("redis_url") or os.environ.get("TIDEMILL_REDIS_URL") or redis_url,
        bootstrap_servers=given.get("bootstrap_servers") or os.environ.get("TIDEMILL_BOOTSTRAP_SERVERS") or servers,
        data_folder=Path(folder),
        worker=WorkerSettings(**worker),
    )


def config_digest(spec: AppSpec) -> str:
    """BLAKE2b-128 of the app's canonical JSON, as hex: workers of one app must agree on it."""
    canonical = json.dumps(dataclasses.asdict(spec), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.blake2b(canonical.encode("ascii"), digest_size=16).hexdigest()


def parse_duration(text: object) -> int:
    """Milliseconds of "24h", "15m", "7d", "1h30m", "500ms". Raises ValueError on anything else."""
    parts = re.findall(r"(\d+)(ms|s|m|h|d)", text) if isinstance(text, str) else []
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"{text!r} is not a duration; write a number with a unit, such as 500ms, 30s, 15m, 24h or 7d")
    return sum(int(number) * MILLISECONDS[unit] for number, unit in parts)


# --- the shape of the file: closed models whose fields are those of the spec, with the names of YAML as aliases


Duration = Annotated[int, BeforeValidator(parse_duration)]  # milliseconds
Seconds = Annotated[float, BeforeValidator(lambda text: parse_duration(text) / 1_000)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]  # feature and group names end up in keys and in VW's text
TopicName = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,249}$")]
Scalar = types.StrictStr | types.StrictBool | types.StrictFloat  # an int is a float here
NEEDS: Mapping[str, frozenset[str]] = {  # kind of a feature -> the attributes that it must have
    "field": frozenset({"field"}),
    "category": frozenset({"field"}),
    "count": frozenset({"of", "window"}),
    "mean": frozenset({"of", "window", "value"}),
    "latest": frozenset({"of", "field"}),
}
ALLOWS = {**NEEDS, "mean": NEEDS["mean"] | {"unit", "prior", "prior_weight"}}


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, populate_by_name=False)


class _Topic(_Closed):
    role: Role
    schema_path: Annotated[str, Field(alias="schema")]
    id_field: Annotated[str | None, Field(alias="id")] = None
    time_field: Annotated[str | None, Field(alias="time")] = None
    partitions: Annotated[int, Field(ge=1, le=10_000)] = 4


class _Condition(_Closed):
    field: str
    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    equals: Scalar | None = None
    one_of: Annotated[tuple[str, ...] | None, Field(min_length=1)] = None

    @model_validator(mode="after")
    def _has_one_test(self) -> _Condition:
        if len(self.model_fields_set) != 2:
            raise ValueError("a condition has a field and exactly one of above, at_least, below, equals, one_of")
        return self


class _Label(_Closed):
    positive_if_any: Annotated[tuple[_Condition, ...], Field(min_length=1)]
    wait_ms: Annotated[Duration, Field(alias="wait", ge=1)]
    allowed_lateness_ms: Annotated[Duration, Field(alias="allowed_lateness")] = 0
    dedup_window_ms: Annotated[Duration, Field(alias="dedup_window")] = 0


class _Feature(_Closed):
    kind: FeatureKind
    of: str | None = None
    field: str | None = None
    value: str | None = None
    unit: Annotated[float, Field(gt=0)] = 1.0
    window_ms: Annotated[Duration | None, Field(alias="window", ge=1)] = None
    prior: float = 0.0
    prior_weight: Annotated[float, Field(ge=0)] = 0.0

    @model_validator(mode="after")
    def _has_what_its_kind_needs(self) -> _Feature:
        given = {"window" if name == "window_ms" else name for name in self.model_fields_set} - {"kind"}
        for name in sorted(NEEDS[self.kind] - given):
            raise ValueError(f"a {self.kind} needs `{name}`")
        for name in sorted(given - ALLOWS[self.kind]):
            raise ValueError(f"a {self.kind} has no `{name}`; it takes {', '.join(sorted(ALLOWS[self.kind]))}")
        if self.window_ms is not None and self.window_ms % PANES_PER_WINDOW:
            raise ValueError(f"a window is kept in {PANES_PER_WINDOW} panes of whole milliseconds; take a multiple")
        return self


class _Group(_Closed):
    entity: tuple[str, ...]
    features: Annotated[dict[Name, _Feature], Field(min_length=1)]
    version: Annotated[int, Field(ge=1)] = 1


class _Learner(_Closed):
    arguments: str = ""
    snapshot_every: Annotated[int, Field(ge=1)] = 1


class _Worker(_Closed):
    is_bounded: Annotated[bool, Field(alias="bounded")] = False
    max_idle_s: Annotated[Seconds, Field(alias="max_idle")] = 0
    idle_after_s: Annotated[Seconds, Field(alias="idle_after")] = 0
    stall_after_s: Annotated[Seconds, Field(alias="stall_after")] = 0
    start_timeout_s: Annotated[Seconds, Field(alias="start_timeout")] = 0
    metrics_port: Annotated[int, Field(ge=0, le=65_535)] = 0


class _File(_Closed):
    """Defaults of optional parts are never used: only what is set goes on, the spec's own defaults fill the rest."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$")]
    topics: dict[TopicName, _Topic]
    label: _Label
    groups: Annotated[dict[Name, _Group], Field(min_length=1)]
    learner: _Learner | None = None
    max_skew_ms: Annotated[Duration, Field(alias="max_skew")] = 0
    batch_records: Annotated[int, Field(ge=1, le=1_000_000)] = 1
    decision_threshold: Annotated[float, Field(ge=0, le=1)] = 0
    default_probability: Annotated[float, Field(gt=0, lt=1)] = 0.5
    kafka: dict[str, Annotated[str, BeforeValidator(lambda value: _as_text(value))]] = {}
    redis_url: str | None = None
    worker: _Worker | None = None


MODELS: Mapping[tuple[Hashable, int], type[_Closed]] = {  # (first key, depth) of a mapping -> what stands in it
    ("", 0): _File,
    ("topics", 2): _Topic,
    ("label", 1): _Label,
    ("label", 3): _Condition,
    ("groups", 2): _Group,
    ("groups", 4): _Feature,
    ("learner", 1): _Learner,
    ("worker", 1): _Worker,
}


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


def _validate(source: _Source) -> _File:
    try:
        return _File.model_validate(source.values)
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
            shown = (
                "" if isinstance(one["input"], dict | list) or reason.startswith(repr(one["input"])) else one["input"]
            )
            yield source.line(location), "TM-1003", f"{name}: {reason}{f' (found {shown!r})' if shown != '' else ''}"


def _known_names(location: Location) -> list[str]:
    """The keys that YAML may have in the mapping at `location`."""
    model = MODELS[(location[0] if location else "", len(location))]
    return [found.alias or name for name, found in model.model_fields.items()]


def _as_text(value: object) -> object:
    """librdkafka takes text: YAML's true and 5 become "true" and "5"."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else value


def _expand(source: _Source, location: Location, text: str) -> str:
    """Put the environment in place of `${NAME}`, so that no secret stands in a file."""

    def value_of(match: re.Match[str]) -> str:
        value = os.environ.get(match[1])
        if value is None:
            source.fail("TM-1007", location, f"environment variable {match[1]} is not set; export it")
        return value

    return re.sub(r"\$\{(\w+)\}", value_of, text)


def _default_data_folder() -> Path:
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "tidemill"


# --- from the file to the spec, with the checks that concern more than one key


def _build_app(source: _Source, file: _File) -> AppSpec:
    topics = tuple(_build_topic(source, name, topic) for name, topic in file.topics.items())
    spec = AppSpec(
        name=file.name,
        topics=topics,
        label=_build_label(file.label),
        groups=tuple(_build_group(name, group) for name, group in file.groups.items()),
        learner=LearnerSpec(**file.learner.model_dump(exclude_unset=True)) if file.learner else LearnerSpec(),
        **file.model_dump(
            exclude_unset=True,
            include={"max_skew_ms", "batch_records", "decision_threshold", "default_probability"},
        ),
    )
    problems = sorted((source.line(location), message) for location, message in check_app(spec))
    if problems:
        raise ConfigError("TM-1005", "\n".join(f"{source.path}:{line}: {message}" for line, message in problems))
    return spec


def _build_topic(source: _Source, name: str, topic: _Topic) -> TopicSpec:
    path = source.path.parent / topic.schema_path
    try:
        schema = json.loads(path.read_text(encoding="utf-8"))
        fastavro.parse_schema(schema)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, fastavro.schema.SchemaParseException) as error:
        source.fail("TM-1004", ("topics", name, "schema"), f"{topic.schema_path} is no Avro schema: {error}")
    if not isinstance(schema, dict) or schema.get("type") != "record":
        source.fail("TM-1004", ("topics", name, "schema"), f"{topic.schema_path}: the schema must be a record")
    return TopicSpec(name=name, schema=schema, **topic.model_dump(exclude_unset=True, exclude={"schema_path"}))


def _build_label(label: _Label) -> LabelSpec:
    rest = label.model_dump(exclude_unset=True, exclude={"positive_if_any"})
    conditions = tuple(Condition(**one.model_dump(exclude_unset=True)) for one in label.positive_if_any)
    return LabelSpec(positive_if_any=conditions, **rest)


def _build_group(name: str, group: _Group) -> GroupSpec:
    features = tuple(
        FeatureSpec(name=one, **found.model_dump(exclude_unset=True)) for one, found in group.features.items()
    )
    return GroupSpec(name=name, features=features, **group.model_dump(exclude_unset=True, exclude={"features"}))
