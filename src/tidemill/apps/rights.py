"""What each role needs of Kafka and of the store: the one list that docs/own-servers.md and `tidemill doctor` share.

In: an app's declaration. Out: rights by role. Invariant: a test runs an app with these rights and no others
(tests/test_own_servers.py), and one compares them with the page (tests/test_security.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from tidemill.apps.topics import app_topics, loop_topics
from tidemill.core.spec import AppSpec
from tidemill.core.topic_names import metrics_topic

Kind = Literal["topic", "group", "transactional-id"]
Operation = Literal["Create", "Delete", "Describe", "Read", "Write"]
StoreNeed = Literal["connection", "info", "read", "write", "scripting"]


@dataclass(frozen=True, slots=True)
class Right:
    """Operations on everything of one kind that a role uses."""

    kind: Kind
    operations: tuple[Operation, ...]


_MEMBER = (Right("group", ("Describe", "Read")),)
_WRITER = (*_MEMBER, Right("transactional-id", ("Describe", "Write")))
_PROCESS = (Right("topic", ("Create", "Describe", "Read", "Write")), *_WRITER)
_READER = (Right("topic", ("Describe", "Read")), *_MEMBER)
_COMMANDER = (Right("topic", ("Describe", "Read", "Write")), *_WRITER)
KAFKA_RIGHTS: dict[str, tuple[Right, ...]] = {
    "produce": (Right("topic", ("Create", "Describe", "Write")),),
    "worker": _PROCESS,
    "monitor": _PROCESS,
    "trainer": _PROCESS,
    "dlq": _PROCESS,
    "audit": _READER,
    "status": _READER,
    "web": _READER,
    "snapshot": _READER,
    "restore": _READER,
    "alerts": _COMMANDER,
    "learner": _COMMANDER,
    "models": _COMMANDER,
    "retrain": _COMMANDER,
    "reset": (Right("group", ("Delete", "Describe", "Read")),),
}
STORE_NEEDS: dict[str, tuple[StoreNeed, ...]] = {
    "worker": ("connection", "info", "read", "write", "scripting"),
    "status": ("connection", "read"),
    "snapshot": ("connection", "info", "read", "write", "scripting"),
    "restore": ("connection", "info", "read", "write", "scripting"),
    "reset": ("connection", "read", "write", "scripting"),
}
_GROUPS: dict[str, tuple[str, ...]] = {
    "worker": ("worker",),
    "status": ("worker",),
    "reset": ("worker",),
    "snapshot": ("worker",),
    "restore": ("worker",),
}
_GROUPS |= {"monitor": ("monitor",), "trainer": ("trainer",)}


@dataclass(frozen=True, slots=True)
class Need:
    """What one role needs of one thing. name: of the topic, group or transactional id."""

    role: str
    kind: Kind
    name: str
    operations: tuple[Operation, ...]


def prefixes(app: AppSpec) -> dict[Kind, tuple[str, ...]]:
    """The fewest prefixes of names that the rights may be granted on."""
    topics = [*app_topics(app), metrics_topic(app.name), *loop_topics(app)]
    found = sorted({f"{app.name}." if name.startswith(f"{app.name}.") else name for name in topics})
    short = tuple(one for one in found if not any(one != other and one.startswith(other) for other in found))
    return {"topic": short, "group": ("tidemill.",), "transactional-id": ("tidemill.",)}


def needs_of(app: AppSpec, role: str) -> Iterator[Need]:
    """Everything by its name, in the order of the role's rights."""
    for right in KAFKA_RIGHTS[role]:
        for name in _names(app, role, right.kind):
            yield Need(role, right.kind, name, right.operations)


def _names(app: AppSpec, role: str, kind: Kind) -> tuple[str, ...]:
    if kind == "topic":
        if role == "produce":
            return tuple(topic.name for topic in app.topics)
        return tuple(dict.fromkeys((*app_topics(app), metrics_topic(app.name), *loop_topics(app))))
    if kind == "transactional-id":
        # Not an id of a process: opening one would fence the process that holds it.
        return (f"tidemill.{app.name}.doctor",)
    return tuple(f"tidemill.{app.name}.{name}" for name in _GROUPS.get(role, ())) or ("tidemill.none",)
