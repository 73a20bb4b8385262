"""Which features the state in the store belongs to, and what a new declaration changes of them.

In: the text that the store remembers, an `AppSpec`. Out: one change per group, and what forbids it. Invariant: a
group's digest covers all that gives its state layout and meaning, so equal name, version and digest mean equal state.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from hashlib import blake2b
from typing import Literal

from tidemill.core.feature_plan import LABEL_VALUE, plan_groups
from tidemill.core.spec import AppSpec, GroupSpec

_KEY = re.compile(r"([a-z][a-z0-9_]*)(?:\.[^:]*)?:v(\d+):")  # <group>:v<n>: or <group>.<part>:v<n>:


@dataclass(frozen=True, slots=True)
class GroupChange:
    """One group's version in the store and in the declaration; None = it is not there."""

    group: str
    before: int | None
    after: int | None

    @property
    def action(self) -> Literal["keep", "fill", "drop"]:
        if self.after is None:
            return "drop"
        return "keep" if self.before == self.after else "fill"


@dataclass(frozen=True, slots=True)
class Comparison:
    """refusals: what the operator must change in the declaration first. is_same: the store's state is as declared."""

    changes: tuple[GroupChange, ...]
    refusals: tuple[str, ...]
    is_same: bool


def declared_features(spec: AppSpec) -> str:
    """What the store remembers: topics in order (rows name them by their place), and (name, version, digest) of each
    group in order (labels feed them by their place), as JSON."""
    groups = [[group.name, group.version, _digest(spec, group)] for group in spec.groups]
    return json.dumps({"topics": [topic.name for topic in spec.topics], "groups": groups}, separators=(",", ":"))


def compare_features(remembered: str, spec: AppSpec) -> Comparison:
    """What `spec` changes of the features that the store remembers (`declared_features` of an earlier app)."""
    before = json.loads(remembered)
    known: Mapping[str, tuple[int, str]] = {name: (version, digest) for name, version, digest in before["groups"]}
    refusals = []
    topics = [topic.name for topic in spec.topics]
    if topics[: len(before["topics"])] != before["topics"]:
        refusals.append(
            f"the topics were {', '.join(before['topics'])} and are {', '.join(topics)}: rows and state name them by "
            "their place, so keep their order and add new ones at the end"
        )
    changes = []
    for group in spec.groups:
        version, digest = known.get(group.name, (None, ""))
        changes.append(GroupChange(group.name, version, group.version))
        if version == group.version and digest != _digest(spec, group):
            refusals.append(
                f"group {group.name} changed and still has version {version}, so its state means something else: set "
                f"`version: {version + 1}`"
            )
    names = {group.name for group in spec.groups}
    changes += [GroupChange(name, version, None) for name, (version, _) in known.items() if name not in names]
    return Comparison(tuple(changes), tuple(refusals), remembered == declared_features(spec))


def group_of_key(key: str) -> tuple[str, int] | None:
    """Name and version of the group that a key of feature state belongs to; None = it is no such key."""
    found = _KEY.match(key)
    return None if found is None else (found[1], int(found[2]))


def _digest(spec: AppSpec, group: GroupSpec) -> str:
    """BLAKE2b-128 in hex of a group's declaration, of its layout, and of the label rule where it feeds on labels."""
    means_label = any(feature.value == LABEL_VALUE for feature in group.features)
    meaning = {
        "declared": asdict(group),
        "layout": [asdict(plan) for plan in plan_groups(replace(spec, groups=(group,)))],
        "label": [asdict(condition) for condition in spec.label.positive_if_any] if means_label else [],
    }
    return blake2b(json.dumps(meaning, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()
