"""What the app's YAML declares, read by the verifier itself.

In: the path of the YAML. Out: `Declared`. Invariant: nothing is taken from the code that is judged; where the YAML is
silent, the defaults are those of the documentation.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROLE_RANK = {"context": 0, "label": 1, "event": 2}
PANES = 12
_MS = {"ms": 1, "s": 1_000, "m": 60_000, "min": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}


@dataclass(frozen=True)
class Topic:
    """`schemas`: every version of the topic's record, as parsed JSON; the first is the reader's."""

    name: str
    role: str
    schemas: tuple[dict[str, Any], ...]
    id_field: str | None = None
    time_field: str | None = None


@dataclass(frozen=True)
class Feature:
    name: str
    kind: str
    entity: tuple[str, ...]
    of: str | None = None
    field: str | None = None
    value: str | None = None
    unit: float = 1.0
    window_ms: int = 0
    prior: float = 0.0
    prior_weight: float = 0.0
    half_life_ms: int = 0
    back: int = 0
    closed_by: str | None = None
    due: str | None = None
    closed_due: str | None = None
    ahead_ms: int = 2 * 3_600_000
    part: str | None = None
    zone: str = "UTC"


@dataclass(frozen=True)
class Declared:
    """Topics and features in the order of the YAML; durations in milliseconds."""

    topics: tuple[Topic, ...]
    conditions: tuple[dict[str, Any], ...]
    wait_ms: int
    features: tuple[Feature, ...]
    allowed_lateness_ms: int = 600_000
    dedup_window_ms: int = 7 * 86_400_000
    max_skew_ms: int = 600_000
    numeric: tuple[Feature, ...] = field(init=False)
    categories: tuple[Feature, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "numeric", tuple(f for f in self.features if f.kind != "category"))
        object.__setattr__(self, "categories", tuple(f for f in self.features if f.kind == "category"))

    @property
    def settle_ms(self) -> int:
        """After this much event time a row that is still open is settled."""
        return self.wait_ms + self.allowed_lateness_ms

    @property
    def forget_ms(self) -> int:
        return max(self.dedup_window_ms, self.settle_ms)

    def is_positive(self, record: Mapping[str, Any]) -> int:
        """The label of a label record: 1 if any condition holds; null satisfies none."""
        return int(any(_holds(condition, record.get(condition["field"])) for condition in self.conditions))


def _holds(condition: Mapping[str, Any], value: Any) -> bool:
    if value is None:
        return False
    if "above" in condition:
        return bool(value > condition["above"])
    if "at_least" in condition:
        return bool(value >= condition["at_least"])
    if "below" in condition:
        return bool(value < condition["below"])
    if "one_of" in condition:
        return value in condition["one_of"]
    return bool(value == condition["equals"])


def milliseconds(duration: str | int | float) -> int:
    """`"24h"`, `"1d 12h"`, or a number of milliseconds."""
    if isinstance(duration, int | float):
        return int(duration)
    parts = re.findall(r"([\d.]+)\s*([a-z]+)", duration.lower())
    if not parts:
        raise ValueError(f"not a duration: {duration!r}; write for example 24h")
    return round(sum(float(number) * _MS[unit] for number, unit in parts))


def read_declared(path: str | Path) -> Declared:
    """Read the YAML and the schemas that it names.

    Raises:
        FileNotFoundError: a schema is neither beside the YAML nor in a folder above it.
    """
    path = Path(path).resolve()
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    label = content["label"]
    features: list[Feature] = []
    for group in content["groups"].values():
        for name, given in group["features"].items():
            features.append(_feature(name, tuple(group.get("entity") or ()), given))
    return Declared(
        topics=tuple(_topic(name, given, path) for name, given in content["topics"].items()),
        conditions=tuple(label["positive_if_any"]),
        wait_ms=milliseconds(label["wait"]),
        allowed_lateness_ms=milliseconds(label.get("allowed_lateness", "10m")),
        dedup_window_ms=milliseconds(label.get("dedup_window", "7d")),
        features=tuple(features),
        max_skew_ms=milliseconds(content.get("max_skew", "10m")),
    )


def _feature(name: str, entity: tuple[str, ...], given: Mapping[str, Any]) -> Feature:
    return Feature(
        name=name,
        kind=given["kind"],
        entity=entity,
        of=given.get("of"),
        field=given.get("field"),
        value=given.get("value"),
        unit=float(given.get("unit", 1.0)),
        window_ms=milliseconds(given["window"]) if given.get("window") is not None else 0,
        prior=float(given.get("prior", 0.0)),
        prior_weight=float(given.get("prior_weight", 0.0)),
        half_life_ms=milliseconds(given.get("half_life", 0)),
        back=given.get("back", 0),
        closed_by=given.get("closed_by"),
        due=given.get("due"),
        closed_due=given.get("closed_due"),
        ahead_ms=milliseconds(given.get("ahead", "2h")),
        part=given.get("part"),
        zone=given.get("zone", "UTC"),
    )


def _topic(name: str, given: Mapping[str, Any], config: Path) -> Topic:
    schema = given["schema"]
    if isinstance(schema, dict):
        schemas = [schema]
    else:
        reader_path = _find(schema, config)
        reader = json.loads(reader_path.read_text(encoding="utf-8"))
        others = [json.loads(p.read_text(encoding="utf-8")) for p in sorted(reader_path.parent.glob("*.avsc"))]
        same = [one for one in others if one != reader and _full_name(one) == _full_name(reader)]
        schemas = [reader, *same]
    return Topic(name, given["role"], tuple(schemas), given.get("id"), given.get("time"))


def _full_name(schema: Any) -> tuple[Any, Any]:
    return (schema.get("namespace"), schema.get("name")) if isinstance(schema, dict) else (None, None)


def _find(name: str, config: Path) -> Path:
    for folder in config.parents:
        for candidate in (folder / name, folder / "schemas" / name):
            if candidate.is_file():
                return candidate
    raise FileNotFoundError(f"schema {name} of {config} is in none of the folders above it")
