"""The life of each model version as the web page draws it: spans on a time axis.

In: the story in the order of its log, and who served at the first tick. Out: one lane per version that did anything,
oldest first. Invariant: the spans of a lane follow each other, and at most one lane has an open span of `champion`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tidemill.core.story import StoryEvent

LANES_MAX = 40
CHAMPION, SHADOW, CANARY, PROBATION = "champion", "shadow", "canary", "probation"
# What ends a challenger's way before it serves.
_REFUSED = {"gated": "refused by the gate", "aborted": "aborted", "failed": "failed"}


@dataclass(slots=True)
class Lane:
    """One version: when it was shadow, canary, champion, or on probation beside its successor."""

    version: str
    trained: int | None = None
    cause: str = ""
    ending: str = ""
    ended: int | None = None
    spans: list[dict[str, Any]] = field(default_factory=list)

    def begin(self, role: str, time: int) -> None:
        self.end(time)
        self.spans.append({"role": role, "from": time, "to": None})
        self.ending, self.ended = "", None

    def end(self, time: int) -> None:
        if self.spans and self.spans[-1]["to"] is None:
            self.spans[-1]["to"] = time

    def finish(self, ending: str, time: int) -> None:
        self.end(time)
        self.ending, self.ended = ending, time


def model_lanes(story: Iterable[StoryEvent], first_champion: tuple[int, str] | None) -> list[dict[str, Any]]:
    """Lanes as JSON values, the newest LANES_MAX.

    Args:
        first_champion: (end of the first tick, version that served then, "" = none); its span begins there unless the
            story tells of it.
    """
    lanes: dict[str, Lane] = {}
    if first_champion is not None and first_champion[1]:
        time, version = first_champion
        _lane(lanes, version).begin(CHAMPION, time)
    for event in story:
        _fold(lanes, event)
    return [
        {
            "version": lane.version[:80],
            "trained": lane.trained,
            "cause": lane.cause[:200],
            "ending": lane.ending,
            "ended": lane.ended,
            "spans": lane.spans,
        }
        for lane in list(lanes.values())[-LANES_MAX:]
    ]


def _fold(lanes: dict[str, Lane], event: StoryEvent) -> None:
    if not event.version:
        return  # a trigger, or a training that came to no version
    time = event.time
    if event.kind == "trained":
        lane = _lane(lanes, event.version)
        lane.trained, lane.cause = time, event.cause
    elif event.kind in (SHADOW, CANARY):
        _lane(lanes, event.version).begin(event.kind, time)
    elif event.kind == "promoted":
        _serve(lanes, event.version, time, beside=event.parent)
    elif event.kind == "rolled_back":
        if event.parent:
            _serve(lanes, event.parent, time, beside="")
        _lane(lanes, event.version).finish("rolled back", time)
    elif event.kind == "kept":
        for lane in lanes.values():
            if lane.version != event.version and lane.spans and lane.spans[-1]["role"] == PROBATION:
                lane.end(time)
    elif event.kind in _REFUSED:
        _lane(lanes, event.version).finish(_REFUSED[event.kind], time)


def _serve(lanes: dict[str, Lane], version: str, time: int, *, beside: str) -> None:
    """`version` serves from now on; who served goes, or is scored beside it on probation."""
    for lane in lanes.values():
        if lane.version != version and lane.spans and lane.spans[-1]["to"] is None:
            if lane.version == beside:
                lane.begin(PROBATION, time)
            elif lane.spans[-1]["role"] == CHAMPION:
                lane.end(time)
    lane = _lane(lanes, version)
    if not (lane.spans and lane.spans[-1]["role"] == CHAMPION and lane.spans[-1]["to"] is None):
        lane.begin(CHAMPION, time)


def _lane(lanes: dict[str, Lane], version: str) -> Lane:
    return lanes.setdefault(version, Lane(version))
