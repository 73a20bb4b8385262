"""Schemas over time: what the app reads, what was and is written, and whether the one fits the other.

In: settings, or schema files. Out: findings with advice; ids.
Invariant: nothing is registered that cannot read every version before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tidemill.apps.schema_lookup import open_registry
from tidemill.config import Settings
from tidemill.config_schemas import read_schema
from tidemill.core.schema_rules import ROOT, Finding, changes, explained
from tidemill.core.spec import TopicSpec
from tidemill.errors import ConfigError
from tidemill.io.resolution import ReaderSchema, Resolution
from tidemill.io.schema_cache import subject_of
from tidemill.io.schema_compatibility import find_incompatibilities
from tidemill.io.schema_registry import SchemaRegistry


@dataclass(frozen=True, slots=True)
class Version:
    """A schema that records of a topic are, or were, written with; `name` says where it is from."""

    name: str
    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Misfit:
    """A version that a reader cannot read whole."""

    topic: str
    reader: str
    writer: str
    finding: Finding


@dataclass(frozen=True, slots=True)
class Checked:
    """pairs: how many pairs of reader and writer were compared."""

    pairs: int
    misfits: tuple[Misfit, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """One change between two schemas; advice: empty where both can read each other there."""

    field: str
    change: str
    before: str
    after: str
    new_reads_old: bool
    old_reads_new: bool
    advice: str


@dataclass(frozen=True, slots=True)
class Registration:
    """What became of a topic's schema. schema_id: None in a dry run of a schema that is new."""

    topic: str
    subject: str
    schema_id: int | None
    action: str


def check_app(settings: Settings) -> Checked:
    """Whether the app reads every version of its topics: those that it declares, and those of its registry.

    Raises:
        ConfigError, UnavailableError: of the registry.
    """
    registry = None if settings.schema_registry is None else open_registry(settings)
    pairs, misfits = 0, []
    for topic in settings.app.topics:
        versions = versions_of(topic, registry)
        pairs += len(versions)
        misfits += [
            Misfit(topic.name, "the app", version.name, finding)
            for version in versions
            for finding in find_misfits(topic.name, topic.schema, version.schema)
        ]
        misfits += _look_alikes(topic, versions)
    return Checked(pairs, tuple(misfits))


def versions_of(topic: TopicSpec, registry: SchemaRegistry | None) -> list[Version]:
    """What a topic's records may be written with beside the reader's schema, oldest first."""
    versions = [Version(f"writer {index + 1}", schema) for index, schema in enumerate(topic.writers)]
    if registry is None:
        return versions
    return versions + [
        Version(f"registry version {one.version}", one.schema)
        for one in registry.versions(subject_of(topic.name))
        if one.schema is not None
    ]


def check_files(paths: Sequence[Path]) -> Checked:
    """Whether every file's schema reads those of all files before it.

    Raises:
        ConfigError: TM-1004 a file is no Avro schema.
    """
    schemas = [schema_file(path) for path in paths]
    misfits = []
    pairs = 0
    for newer, reader in enumerate(schemas):
        for older in range(newer):
            pairs += 1
            misfits += [
                Misfit(str(reader["name"]), str(paths[newer]), str(paths[older]), finding)
                for finding in find_misfits(str(reader["name"]), reader, schemas[older])
            ]
    return Checked(pairs, tuple(misfits))


def schema_file(path: Path) -> dict[str, Any]:
    """The record schema in a file. Raises ConfigError TM-1004."""
    try:
        return read_schema(path.parent, path.name)
    except ValueError as error:
        raise ConfigError("TM-1004", f"{path}: {error}") from error


def find_misfits(topic: str, reader: Mapping[str, Any], writer: Mapping[str, Any]) -> list[Finding]:
    """What a reader cannot read of a writer: by Avro's rules, and by what this program does with them."""
    try:
        found = [explained(one) for one in find_incompatibilities(reader, writer)]
    except ValueError as error:
        return [Finding(ROOT, str(error), "correct the schema")]
    if not found:
        try:
            Resolution(ReaderSchema(topic, reader), writer)
        except ConfigError as error:
            found.append(Finding(ROOT, error.message, "Avro allows it, this program does not: keep the type"))
    return found


def compare(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Difference]:
    """What changed, field by field, with what each change means for readers of either schema."""
    topic = str(new["name"])
    backward = {finding.path: finding for finding in find_misfits(topic, new, old)}
    forward = {finding.path: finding for finding in find_misfits(topic, old, new)}
    found = [(one.path, one.kind, one.before, one.after) for one in changes(old, new)]
    former = {path: before for path, kind, before, _ in found if kind == "renamed"}
    paths = {path for path, *_ in found} | set(former.values())
    found += [(path, "unreadable", "", "") for path in (*backward, *forward) if path not in paths]
    rows = []
    for path, kind, before, after in found:
        mine, theirs = backward.get(path), forward.get(former.get(path, path))
        advice = mine.advice if mine else ""
        if theirs and not mine:
            advice = f"old readers cannot follow ({theirs.what}): change all of them first, or keep the field as it was"
        rows.append(Difference(path, kind, before, after, mine is None, theirs is None, advice))
    return rows


def register_app(
    settings: Settings, *, only: str | None, is_dry_run: bool
) -> tuple[list[Registration], tuple[Misfit, ...]]:
    """Make the schemas of the topics the newest versions of their subjects, those that are none yet.

    Args:
        only: one topic; None = all.
    Returns:
        What was done, or would be; or no registration and what stands against it.
    Raises:
        ConfigError: TM-1318; TM-1319 there is no such topic; TM-1315 and TM-1316 the registry refuses.
        UnavailableError: TM-3060.
    """
    registry = open_registry(settings)
    topics = [topic for topic in settings.app.topics if only in (None, topic.name)]
    if not topics:
        known = ", ".join(topic.name for topic in settings.app.topics)
        raise ConfigError("TM-1319", f"app {settings.app.name} has no topic {only!r}; there is {known}")
    versions = {topic.name: registry.versions(subject_of(topic.name)) for topic in topics}
    misfits = tuple(
        Misfit(topic.name, "the app", f"registry version {one.version}", finding)
        for topic in topics
        for one in versions[topic.name]
        if one.schema is not None
        for finding in find_misfits(topic.name, topic.schema, one.schema)
    )
    if misfits:
        return [], misfits
    done = []
    for topic in topics:
        subject = subject_of(topic.name)
        present = next((one.id for one in versions[topic.name] if one.schema == topic.schema), None)
        if present is not None:
            done.append(Registration(topic.name, subject, present, "present"))
        elif is_dry_run:
            done.append(Registration(topic.name, subject, None, "would register"))
        else:
            done.append(Registration(topic.name, subject, registry.register(subject, topic.schema), "registered"))
    return done, ()


def _look_alikes(topic: TopicSpec, versions: Sequence[Version]) -> list[Misfit]:
    """Versions whose records look like those of another one and mean something else."""
    reader = ReaderSchema(topic.name, topic.schema)
    seen: dict[bytes, tuple[str, Resolution]] = {}
    found = []
    for version in (Version("the app", topic.schema), *versions):
        try:
            resolution = Resolution(reader, version.schema)
        except ConfigError:
            continue  # found by Avro's rules
        name, other = seen.setdefault(resolution.header, (version.name, resolution))
        try:
            resolution.check_is_told_from(other)
        except ConfigError as error:
            what, _, advice = error.message.rpartition("; ")
            found.append(Misfit(topic.name, name, version.name, Finding(ROOT, what, advice)))
    return found
