"""What is replicated: champion, challenger, weights and counters as a function of the folded prefix of the log.

In: examples and commands in the order of the log. Out: members, roles, snapshots. Invariant: the state is that of the
prefix, without the examples of excised ranges: not of how it was cut, of time, nor of the snapshots in between.

`excise` cannot be obeyed by unlearning: an online learner has no memory of what an example changed. The log is folded
again instead, from the newest state before all excised ranges, its commands with it, and the ranges are passed over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np

from tidemill.core.blend import BlendWeights, updated
from tidemill.core.examples import outside
from tidemill.core.records import Command, ExampleColumns, Int64s
from tidemill.core.roles import INITIAL, OffsetRange, Roles, ranges_of, text_of
from tidemill.core.snapshot import ModelSnapshot, digest_of
from tidemill.core.spec import AppSpec
from tidemill.errors import ModelRefusedError
from tidemill.models.booster import Booster
from tidemill.models.learner import ENGINE, Learner
from tidemill.models.members import EXPERTS, Member

LoadBooster = Callable[[str], Booster]
NewestSnapshot = Callable[[int], ModelSnapshot | None]  # the one with the largest n <= the number given


class LogPart(NamedTuple):
    """Consecutive records of the examples log."""

    examples: ExampleColumns
    commands: Sequence[Command]


class History(Protocol):
    """The examples log once more."""

    def first_offset(self) -> int:
        """Nothing before it is kept."""
        ...

    def parts(self, start: int, end: int) -> Iterable[LogPart]:
        """The records at offsets [start, end) that are kept, in log order."""
        ...


def no_snapshot(at_most: int) -> ModelSnapshot | None:
    """There is none: who rebuilds begins at offset 0."""
    return None


@dataclass(frozen=True, slots=True)
class Making:
    """What a replica is made of, apart from the log. names: of the numeric and of the category columns."""

    spec: AppSpec
    names: tuple[tuple[str, ...], tuple[str, ...]]
    feature_digest: str
    load: LoadBooster
    history: History
    newest_snapshot: NewestSnapshot

    def member(self, version: str, learner: bytes) -> Member:
        """Raises ModelRefusedError: the version's artifact cannot be loaded."""
        return Member(version, None if version == INITIAL else self.load(version), self.learner(learner))

    def learner(self, model: bytes | None) -> Learner:
        return Learner(self.spec.learner.arguments, *self.names, model=model)


class Replica:
    """The state and how examples and commands change it; `models/serving.py` says when.

    learned, positives: examples learned, and how many of them were positive. ignored: commands that were not obeyed.
    missing: why a version's artifact could not be loaded. has_diverged: such a version became the champion, so that
    this state is not that of the others any more.
    """

    def __init__(
        self, making: Making, *, snapshot: ModelSnapshot | None = None, passed_over: tuple[OffsetRange, ...] = ()
    ) -> None:
        """At offset 0, or as in `snapshot`. passed_over: ranges that are excised by commands yet to come.

        Raises:
            ModelRefusedError: the snapshot is broken, was made by another engine, of other features or arguments; or an
                artifact that it names cannot be loaded.
        """
        self._making = making
        self.challenger: Member | None = None
        self.ignored = 0
        self.missing: dict[str, str] = {}
        self.has_diverged = False
        if snapshot is None:
            self.learned = self.positives = 0
            self.roles = Roles()
            self.champion = Member(INITIAL, None, making.learner(None))
            self.blend = BlendWeights.even(EXPERTS)
        else:
            _refuse_unfit(snapshot, making)
            self.learned, self.positives = snapshot.learned, snapshot.positives
            self.roles = Roles(
                snapshot.champion,
                snapshot.challenger,
                snapshot.parent,
                snapshot.is_frozen,
                snapshot.is_canary,
                ranges_of(snapshot.excised),
            )
            self.champion = making.member(snapshot.champion, snapshot.learners[0])
            if snapshot.challenger:
                self.challenger = making.member(snapshot.challenger, snapshot.learners[1])
            self.blend = BlendWeights.from_text(snapshot.blend)
        self._passed_over = passed_over or self.roles.excised

    @property
    def is_complete(self) -> bool:
        """Whether every version that has a role is at hand, so that this state is that of the others."""
        return not self.has_diverged and (self.challenger is not None) == bool(self.roles.challenger)

    def snapshot(self, n: int) -> ModelSnapshot:
        """The state, frozen; it is that before offset `n`."""
        members = [self.champion, *([] if self.challenger is None else [self.challenger])]
        made = ModelSnapshot(
            n=n,
            learned=self.learned,
            positives=self.positives,
            champion=self.roles.champion,
            challenger=self.roles.challenger,
            parent=self.roles.parent,
            is_frozen=self.roles.is_frozen,
            is_canary=self.roles.is_canary,
            excised=self.roles.excised_text,
            blend=self.blend.to_text(),
            engine=ENGINE,
            arguments=self._making.spec.learner.arguments,
            feature_digest=self._making.feature_digest,
            learners=tuple(member.learner.save() for member in members),
            digest="",
        )
        return replace(made, digest=digest_of(made))

    def learn(self, examples: ExampleColumns, start: int, stop: int) -> None:
        """The positions [start, stop), in their order."""
        rows = self._learnable(examples, start, stop)
        if not len(rows):
            return
        label = examples.label[rows]
        served = {"booster": examples.booster, "learner": examples.learner, "base_rate": examples.base_rate}
        self.blend = updated(self.blend, self._making.spec.blend, {k: v[rows] for k, v in served.items()}, label)
        if not self.roles.is_frozen:
            self.champion.learn(examples, rows)
        if self.challenger is not None:
            self.challenger.learn(examples, rows)
        self.learned += len(rows)
        self.positives += int(label.sum())

    def obey(self, command: Command) -> None:
        """A command that is not obeyed is counted.

        Raises:
            ModelRefusedError: TM-5005, the log does not go back as far as an excision has to.
        """
        roles = self.roles.after(command)
        if roles is None:
            self.ignored += 1
            return
        if command.kind == "prepare":
            self.challenger = self._prepared(command)
        elif command.kind in ("promote", "swap"):
            self._crown(keeps_former=command.kind == "swap")
        elif command.kind == "drop":
            self.challenger = None
        elif command.kind == "excise" and roles.excised[-1] not in self._passed_over:
            self._become(self._rebuilt(command, roles.excised))
        self.roles = roles

    def _crown(self, *, keeps_former: bool) -> None:
        """The challenger becomes the champion; without its artifact the former one goes on in its place."""
        if self.challenger is None:
            self.has_diverged = True
            return
        former, self.champion = self.champion, self.challenger
        self.challenger = former if keeps_former else None

    def _prepared(self, command: Command) -> Member | None:
        """The learner begins as the champion's, and sees the last examples once more as this version shows them."""
        self.missing.pop(command.model_version, None)
        making = self._making
        try:
            challenger = making.member(command.model_version, self.champion.learner.save())
        except ModelRefusedError as error:
            self.missing[command.model_version] = str(error)
            return None
        if challenger.booster is not None:
            start = max(0, command.offset - making.spec.learner.warm_offsets)
            for examples, _ in making.history.parts(start, command.offset):
                challenger.learn(examples, self._learnable(examples, 0, len(examples)))
        return challenger

    def _learnable(self, examples: ExampleColumns, start: int, stop: int) -> Int64s:
        """The positions in [start, stop) that teach something."""
        is_learned = examples.is_learned[start:stop]
        if self._passed_over:
            is_learned = is_learned & outside(examples.offset[start:stop], self._passed_over)
        found: Int64s = start + np.flatnonzero(is_learned)
        return found

    # Excision --------------------------------------------------------------------------------------------------------

    def _rebuilt(self, command: Command, ranges: tuple[OffsetRange, ...]) -> Replica:
        """The state before `command` of a log in which the ranges teach nothing."""
        at_most = min(start for start, _ in ranges)
        snapshot, fresh = self._newest_before(at_most, ranges)
        start = 0 if snapshot is None else snapshot.n
        history = self._making.history
        if history.first_offset() > start:
            raise ModelRefusedError(
                "TM-5005",
                f"examples log: {text_of(ranges[-1])} cannot be excised at {command.offset}: that needs the log from "
                f"{start} on, and it begins at {history.first_offset()}; restore the log, or a snapshot at or before "
                f"N = {at_most}",
            )
        for examples, commands in history.parts(start, command.offset):
            fresh._fold(examples, commands)
        return fresh

    def _newest_before(self, at_most: int, ranges: tuple[OffsetRange, ...]) -> tuple[ModelSnapshot | None, Replica]:
        """The newest usable state at or before an offset."""
        while (snapshot := self._making.newest_snapshot(at_most)) is not None:
            try:
                return snapshot, Replica(self._making, snapshot=snapshot, passed_over=ranges)
            except ModelRefusedError:  # older ones stand in for it
                at_most = snapshot.n - 1
        return None, Replica(self._making, passed_over=ranges)

    def _fold(self, examples: ExampleColumns, commands: Sequence[Command]) -> None:
        start = 0
        for command in commands:
            stop = int(np.searchsorted(examples.offset, command.offset))
            self.learn(examples, start, stop)
            self.obey(command)
            start = stop
        self.learn(examples, start, len(examples))

    def _become(self, other: Replica) -> None:
        """Take over the state of `other`; commands that were ignored are counted once."""
        self.champion, self.challenger = other.champion, other.challenger
        self.learned, self.positives, self.blend = other.learned, other.positives, other.blend
        self.has_diverged = other.has_diverged
        self.missing.update(other.missing)
        self._passed_over = other._passed_over


def _refuse_unfit(snapshot: ModelSnapshot, making: Making) -> None:
    """The engine itself refuses nothing: a cut file gives a model, other arguments another one."""
    name = f"snapshot at N={snapshot.n}"
    found = digest_of(snapshot)
    if found != snapshot.digest or len(snapshot.learners) != 1 + bool(snapshot.challenger):
        raise ModelRefusedError(
            "TM-5001",
            f"{name}: its content has digest {found}, promised was {snapshot.digest}; "
            "delete it, the examples log is then folded from an older one",
        )
    for what, theirs, ours in (
        ("engine", snapshot.engine, ENGINE),
        ("arguments", snapshot.arguments, making.spec.learner.arguments),
        ("feature digest", snapshot.feature_digest, making.feature_digest),
    ):
        if theirs != ours:
            raise ModelRefusedError(
                "TM-5002",
                f"{name}: made with {what} {theirs!r}, this worker has {ours!r}; "
                "delete it to fold the examples log from its start, or put the former back",
            )
