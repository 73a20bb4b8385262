"""What the trainer decides: one thing to do, the commands that do it, and what the story tells of it.

In: nothing. Out: values that `core/steering.py` makes and the trainer carries out. Invariant: the story event of a
decision is a function of the decision and of its tick, so deciding again tells the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

from tidemill.core.story import StoryEvent, StoryKind

DecisionKind = Literal[
    "train", "prepare", "canary", "swap", "drop", "rollback", "freeze", "thaw", "excise", "decline", "ask"
]
NO_EVIDENCE: Mapping[str, float] = MappingProxyType({})


class Order(NamedTuple):
    """A command to write into the examples log, as `records.Command` has it."""

    kind: str
    model_version: str
    expects: str


class Decision(NamedTuple):
    """One thing to do, and what to tell once it is done.

    version: the version on trial that the step is about ("" where there is none); for freeze, thaw and excise the
    champion. parent: the champion that it is compared with, after a swap the former one. commands: to write in this
    order, in one transaction with the story event `tells`; the offset of the first is that event's command_offset.
    offset_start, offset_next: the examples that the decision rests on, for train all of them up to offset_next, for
    excise the range that goes.
    """

    kind: DecisionKind
    version: str = ""
    cause: str = ""
    evidence: Mapping[str, float] = NO_EVIDENCE
    verdict: str = ""
    offset_start: int = -1
    offset_next: int = -1
    parent: str = ""
    tells: StoryKind = "declined"
    commands: tuple[Order, ...] = ()

    def story(self, *, time: int, command_offset: int = -1) -> StoryEvent:
        """The event to tell once it is done. time: of the tick that decided; deciding again gives the same id.

        command_offset: needed where there are commands; may be told as -1 while they are not written yet.
        """
        return StoryEvent(
            id=f"{self.tells}/{self.version or self.cause}@{time}",
            kind=self.tells,
            time=time,
            version=self.version,
            parent=self.parent,
            cause=self.cause,
            verdict=self.verdict,
            evidence=dict(self.evidence),
            offset_start=self.offset_start,
            offset_next=self.offset_next,
            command_offset=command_offset,
        )
