"""docs/configuration.md, made of the models that validate an app's YAML and of the specs that hold the defaults.

In: the models, the specs, `config_meanings`. Out: Markdown. Invariant: a key that the models take is in the text with
its type, range, default and meaning; a key without a meaning is an error here, not a gap there.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator
from pydantic.fields import FieldInfo

from tidemill import config_models as models
from tidemill.apps import config_meanings as meanings
from tidemill.config import SchemaRegistrySettings, Settings, SinkSettings, WorkerSettings
from tidemill.core import loop_spec, spec

TITLE = "# Configuration: every key of an app's YAML"
OPENING = """\
Made from the code by `tidemill config reference`; do not edit it. An app is one YAML file. Unknown keys, keys that
stand twice and values out of range are errors with file, line and the nearest right name; without a server,
`tidemill config check CONFIG` looks for them.

**Durations** are texts with a unit, `500ms`, `30s`, `15m`, `24h`, `7d`, `1h30m`, and mean event time unless the table
says wall clock. Command line goes before environment, environment before YAML, YAML before the default. `${NAME}` in
addresses, headers and `kafka:` is read from the environment, so that no secret stands in a file.
"""
MILLISECONDS = {"d": 86_400_000, "h": 3_600_000, "m": 60_000, "s": 1_000, "ms": 1}
BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


class Section(NamedTuple):
    """One table: the keys of a model, with the spec whose defaults hold where YAML says nothing."""

    title: str
    model: type[models.Closed]
    spec: type
    meanings: Mapping[str, str]


SECTIONS = (
    Section("The file", models.FileModel, spec.AppSpec, meanings.FILE),
    Section("`topics.<name>`", models.TopicModel, spec.TopicSpec, meanings.TOPIC),
    Section("`topics.<name>.rules[]`", models.RuleModel, spec.RuleSpec, meanings.RULE),
    Section("`label`", models.LabelModel, spec.LabelSpec, meanings.LABEL),
    Section("`label.positive_if_any[]`", models.ConditionModel, spec.Condition, meanings.CONDITION),
    Section("`groups.<name>`", models.GroupModel, spec.GroupSpec, meanings.GROUP),
    Section("`groups.<name>.features.<name>`", models.FeatureModel, spec.FeatureSpec, meanings.FEATURE),
    Section("`learner`", models.LearnerModel, spec.LearnerSpec, meanings.LEARNER),
    Section("`booster`", models.BoosterModel, spec.BoosterSpec, meanings.BOOSTER),
    Section("`blend`", models.BlendModel, spec.BlendSpec, meanings.BLEND),
    Section("`costs`", models.CostsModel, spec.CostSpec, meanings.COSTS),
    Section("`limits`", models.LimitsModel, spec.LimitsSpec, meanings.LIMITS),
    Section("`comparators.<name>`", models.ComparatorModel, spec.ComparatorSpec, meanings.COMPARATOR),
    Section("`monitor`", models.MonitorModel, loop_spec.MonitorSpec, meanings.MONITOR),
    Section("`retrain`", models.RetrainModel, loop_spec.RetrainSpec, meanings.RETRAIN),
    Section("`retrain.any_of[]`, `retrain.all_of[]`", models.TriggerModel, loop_spec.TriggerSpec, meanings.TRIGGER),
    Section("`retrain.window`", models.TrainingWindowModel, object, meanings.WINDOW),
    Section("`retrain.rollout`", models.RolloutModel, loop_spec.RolloutSpec, meanings.ROLLOUT),
    Section("`sinks[]`", models.SinkModel, SinkSettings, meanings.SINK),
    Section(
        "`schema_registry` (wall clock)", models.SchemaRegistryModel, SchemaRegistrySettings, meanings.SCHEMA_REGISTRY
    ),
    Section("`worker` (wall clock)", models.WorkerModel, WorkerSettings, meanings.WORKER),
)
ONE_OF = {models.TriggerModel, models.TrainingWindowModel}  # mappings with exactly one of their keys


def config_reference() -> str:
    """The whole page."""
    parts = [TITLE, "", OPENING]
    for section in SECTIONS:
        parts += [f"## {section.title}", ""]
        if section.model in ONE_OF:
            parts += ["Exactly one of:", ""]
        parts += ["| key | type | default | meaning |", "|---|---|---|---|"]
        parts += [f"| {' | '.join(row)} |" for row in _rows(section)]
        parts.append("")
    parts += ["## Environment", "", "| variable | meaning |", "|---|---|"]
    parts += [f"| `{name}` | {meaning} |" for name, meaning in meanings.ENVIRONMENT.items()]
    return "\n".join(parts) + "\n"


def _rows(section: Section) -> Iterator[tuple[str, str, str, str]]:
    for name, field in section.model.model_fields.items():
        key = field.alias or name
        yield f"`{key}`", _type_of(field), _default_of(section, name, field), section.meanings[key].replace("|", "\\|")


def _default_of(section: Section, name: str, field: FieldInfo) -> str:
    """What holds where YAML says nothing: the spec's default, else the model's."""
    if field.is_required():
        return "**required**"
    if section.model in ONE_OF:
        return ""
    defaults = {one.name: one for spec_type in (section.spec, Settings) for one in _fields_of(spec_type)}
    found = defaults.get(name)
    value: Any = field.default
    if found is not None and found.default is not dataclasses.MISSING:
        value = found.default
    elif found is not None and found.default_factory is not dataclasses.MISSING:
        value = found.default_factory()
    if isinstance(value, tuple | dict) and not value:
        return "none"
    if dataclasses.is_dataclass(value):
        return "below"
    if value is None:
        return "none"
    return _shown(value, is_duration=_is_duration(field))


def _fields_of(spec_type: type) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(spec_type) if dataclasses.is_dataclass(spec_type) else ()


def _shown(value: object, *, is_duration: str) -> str:
    if is_duration and isinstance(value, int | float):
        milliseconds = round(value * 1_000) if is_duration == "s" else round(value)
        unit = next(unit for unit, size in MILLISECONDS.items() if milliseconds % size == 0)
        return f"`{milliseconds // MILLISECONDS[unit]}{unit}`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    return f"`{value}`" if value != "" else "none"


def _is_duration(field: FieldInfo) -> str:
    """ "ms" or "s" for a duration, by the unit in which the spec holds it; else empty."""
    text = repr(field.annotation) + repr(field.metadata)
    if "parse_duration" in text:
        return "ms"
    return "s" if "<lambda>" in text and "float" in text else ""


def _type_of(field: FieldInfo) -> str:
    """Type and range, as YAML writes them."""
    if unit := _is_duration(field):
        text = "duration"
    elif "parse_date" in repr(field.metadata):
        text = "day or time"
    else:
        unit, text = "", _name_of(field.annotation)
    bounds = [bound for bound in _bounds_of(field) if not (unit and bound[:2] == ">=")]
    return ", ".join([text, *bounds])


def _name_of(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        if any(isinstance(one, BeforeValidator) for one in arguments[1:]):
            return "text, number or truth value"
        return _name_of(arguments[0])
    if origin is Literal:
        return " ".join(f"`{one}`" for one in arguments)
    if origin in (Union, types.UnionType):
        names = list(dict.fromkeys(_name_of(one) for one in arguments if one is not type(None)))
        return " or ".join(names)
    if origin is tuple:
        return f"list of {_name_of(arguments[0])}"
    if origin is dict:
        return f"mapping to {_name_of(arguments[1])}"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "mapping"
    return {int: "whole number", float: "number", str: "text", bool: "`true` `false`"}[annotation]


def _bounds_of(field: FieldInfo) -> Iterator[str]:
    for one in (*field.metadata, *_metadata_inside(field.annotation)):
        for name, sign in BOUNDS.items():
            value = getattr(one, name, None)
            if isinstance(value, int | float):
                yield f"{sign} {value}"
        if isinstance(pattern := getattr(one, "pattern", None), str):
            yield f"`{pattern}`".replace("|", "\\|")


def _metadata_inside(annotation: Any) -> Iterator[Any]:
    """Constraints of an optional part: `Annotated[...] | None`."""
    if get_origin(annotation) in (Union, types.UnionType):
        for one in get_args(annotation):
            if get_origin(one) is Annotated:
                for inner in get_args(one)[1:]:
                    yield from getattr(inner, "metadata", [inner])
