"""Where a model version comes from, and its card: what a person reads before trusting it.

In: the story, manifests. Out: the chain of versions back to the first one; Markdown with a YAML head. Invariant: all of
it is a function of the story and the manifests, so the same version has the same card wherever it is printed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType

from tidemill.core.manifest import Manifest
from tidemill.core.roles import INITIAL
from tidemill.core.story import StoryEvent, StoryKind

NO_MANIFESTS: Mapping[str, Manifest] = MappingProxyType({})
_NOW: Mapping[StoryKind, str] = {
    "trained": "registered",
    "gated": "refused by the gate",
    "approval_asked": "waits for approval",
    "approved": "approved",
    "shadow": "in shadow",
    "canary": "serves a share",
    "promoted": "serves, on probation",
    "kept": "serves",
    "rolled_back": "rolled back",
    "aborted": "dropped",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LineageStep:
    """One version of a chain.

    parent: the champion when it was trained, "" = not known. cause: of its training. time: when it was trained, ms,
    -1 = not known. offsets: of the examples that it was trained on. status: what became of it. events: its story, in
    order.
    """

    version: str
    parent: str
    cause: str
    time: int
    offset_start: int
    offset_next: int
    status: str
    events: tuple[StoryEvent, ...]


def lineage_of(
    events: Iterable[StoryEvent], version: str, *, manifests: Mapping[str, Manifest] = NO_MANIFESTS
) -> tuple[LineageStep, ...]:
    """The chain from `version` back to the champion without a booster, newest first.

    It ends earlier where neither the story nor `manifests` (by version) know a version; empty when they do not know
    `version` itself. A manifest is asked for what the story does not tell, as of versions trained by hand.
    """
    story: dict[str, list[StoryEvent]] = {}
    for event in events:
        story.setdefault(event.version, []).append(event)
    chain: list[LineageStep] = []
    seen = {"", INITIAL}
    while version not in seen and (version in story or version in manifests):
        seen.add(version)
        chain.append(_step_of(version, tuple(story.get(version, ())), manifests.get(version)))
        version = chain[-1].parent
    return tuple(chain)


def model_card(manifest: Manifest, events: Iterable[StoryEvent]) -> str:
    """Markdown with a YAML head. `events`: the whole story, or that of this version."""
    version = manifest.version
    step = _step_of(version, tuple(event for event in events if event.version == version), manifest)
    head = [f"{key}: {_yaml(value)}" for key, value in _head_of(manifest, step).items()]
    return "\n".join(["---", *head, "---", "", *_body_of(manifest, step), ""])


def _step_of(version: str, events: tuple[StoryEvent, ...], manifest: Manifest | None) -> LineageStep:
    trained = next((event for event in events if event.kind == "trained"), None)
    statuses = [_NOW[event.kind] for event in events if event.kind in _NOW]
    status = statuses[-1] if statuses else "registered"
    if trained is not None:
        return LineageStep(
            version=version,
            parent=trained.parent or (manifest.parent if manifest else ""),
            cause=trained.cause,
            time=trained.time,
            offset_start=trained.offset_start,
            offset_next=trained.offset_next,
            status=status,
            events=events,
        )
    if manifest is not None:
        return LineageStep(
            version=version,
            parent=manifest.parent,
            cause=manifest.cause,
            time=manifest.created,
            offset_start=manifest.offset_start,
            offset_next=manifest.offset_next,
            status=status,
            events=events,
        )
    parent = next((event.parent for event in events if event.parent), "")
    cause = next((event.cause for event in events if event.cause), "")
    return LineageStep(
        version=version,
        parent=parent,
        cause=cause,
        time=-1,
        offset_start=-1,
        offset_next=-1,
        status=status,
        events=events,
    )


def _head_of(manifest: Manifest, step: LineageStep) -> Mapping[str, object]:
    return {
        "version": step.version,
        "parent": step.parent,
        "app": manifest.app,
        "status": step.status,
        "cause": step.cause,
        "created": _utc(manifest.created),
        "trained": {
            "offset_start": manifest.offset_start,
            "offset_next": manifest.offset_next,
            "examples": manifest.examples,
            "time_first": _utc(manifest.time_first),
            "time_last": _utc(manifest.time_last),
            "examples_digest": manifest.examples_digest,
        },
        "metrics": dict(sorted(manifest.metrics.items())),
        "engine": manifest.engine,
        "code_version": manifest.code_version,
        "model_digest": manifest.model_digest,
        "features": list(manifest.features),
    }


def _body_of(manifest: Manifest, step: LineageStep) -> list[str]:
    span = f"{_utc(manifest.time_first)} to {_utc(manifest.time_last)}"
    offsets = f"[{manifest.offset_start:,}, {manifest.offset_next:,})"
    return [
        f"# {manifest.app}: {step.version}",
        "",
        f"A booster of {manifest.trees} trees over {len(manifest.features)} features, the child of `{step.parent}`.",
        f"Status: {step.status}. Why it was trained: {_cell(step.cause) or 'not known'}.",
        "",
        "## Trained on",
        "",
        f"{manifest.examples:,} examples at offsets {offsets} of the examples log, with labels from {span}.",
        "",
        "## Measured on the newest of them, by trees that did not see them",
        "",
        *_table(("metric", "value"), [(name, f"{value:g}") for name, value in sorted(manifest.metrics.items())]),
        "",
        "## Story",
        "",
        *_table(
            ("time", "step", "cause", "verdict", "examples log"),
            [
                (_utc(event.time), event.kind.replace("_", " "), event.cause, event.verdict, _offsets(event))
                for event in step.events
            ],
        ),
        "",
        "## Limits",
        "",
        "It knows what the examples of that time could teach. A value of a category that they did not hold counts as"
        " missing; the learner beside it follows what has changed since.",
    ]


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    if not rows:
        return ["Nothing is known."]
    lines = [head, tuple("---" for _ in head), *rows]
    return ["| " + " | ".join(_cell(value) for value in line) + " |" for line in lines]


def _cell(text: str) -> str:
    """Causes and verdicts are the words of people and of data: they may not break out of a cell."""
    plain = " ".join(text.split())
    return plain.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")


def _offsets(event: StoryEvent) -> str:
    if event.offset_next < 0:
        return ""
    return f"[{max(event.offset_start, 0):,}, {event.offset_next:,})"


def _yaml(value: object) -> str:
    """JSON in one line, which is YAML as well."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _utc(time_ms: int) -> str:
    """2013-04-01T06:00:00Z."""
    return datetime.fromtimestamp(time_ms / 1_000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
