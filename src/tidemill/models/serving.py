"""The models of an app as a replicated state machine: champion, challenger, learners and blend at a known N.

In: features to score; examples and commands in the order of the log. Out: scores, snapshots. Invariant: everything that
scores depend on is a function of the folded prefix of the log (and the platform): not of what was scored, of batch
sizes, of time, nor of the snapshots in between. So which model scored a prediction can be told from its N alone.

A model version is a frozen booster with a learner that began at a known N as a copy of the champion's. Commands:
`prepare` makes the challenger: the version's booster, a copy of the champion's learner, and the last examples folded
once more with the new booster's margin and leaves; from then on it is folded beside. `promote` makes it the champion.
`freeze` stops the champion's learner, `thaw` lets it go on. A command that expects another champion is ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from tidemill.core.blend import BlendWeights, blend, updated
from tidemill.core.records import Command, ExampleColumns, FeatureBatch, Float64s, Int64s, Scores, TopFeatures
from tidemill.core.roles import INITIAL, Roles
from tidemill.core.snapshot import ModelSnapshot, digest_of
from tidemill.core.spec import AppSpec
from tidemill.errors import InvariantError, ModelRefusedError
from tidemill.models.booster import Booster, BoosterOutputs
from tidemill.models.learner import ENGINE, Learner

EXPERTS = ("booster", "learner", "base_rate")
PRIOR_WEIGHT = 1.0  # the base rate starts at the declared default, which weighs as much as one example
EXPLAINED_MAX = 20  # positive decisions of a batch that name their top features: 12-23 us each

LoadBooster = Callable[[str], Booster]
History = Callable[[int, int], ExampleColumns]  # the examples at offsets [start, end) of the log


@dataclass(frozen=True, slots=True)
class Member:
    """A model version at N: its booster (None for INITIAL) and its learner."""

    version: str
    booster: Booster | None
    learner: Learner

    def outputs(self, features: FeatureBatch) -> BoosterOutputs | None:
        return None if self.booster is None else self.booster.outputs(features)

    def learn(self, examples: ExampleColumns, rows: Int64s) -> None:
        """The rows (positions) in their order."""
        if not len(rows):
            return
        features = FeatureBatch(
            examples.features.numeric[rows],
            tuple(tuple(column[row] for row in rows.tolist()) for column in examples.features.categories),
        )
        self.learner.learn(
            features, examples.label[rows], np.arange(len(rows)), self.outputs(features), self.version
        )  # fmt: skip


class Serving:
    """Scores rows and folds the log; one thread owns it. Fulfils `core.ports.Scorer`.

    ignored: commands that were not obeyed. missing: why a version's artifact could not be loaded; once it is promoted
    this object goes on with the version before, degraded, and makes no more snapshots: its state is no longer that of
    the others. A new object folds the log again.
    """

    def __init__(
        self,
        spec: AppSpec,
        feature_names: tuple[str, ...],
        category_names: tuple[str, ...],
        *,
        feature_digest: str,
        load: LoadBooster,
        history: History,
        snapshot: ModelSnapshot | None = None,
    ) -> None:
        """At N = 0 with a new learner, or at the N of `snapshot`.

        Raises:
            ConfigError: arguments of the learner that are not allowed.
            ModelRefusedError: the snapshot is broken, was made by another engine, of other features or arguments; or an
                artifact that it names cannot be loaded.
        """
        self._spec = spec
        self._names = (feature_names, category_names)
        self._feature_digest = feature_digest
        self._load = load
        self._history = history
        self._challenger: Member | None = None
        self._has_diverged = False
        self._roles = Roles()
        self.ignored = 0
        self.missing: dict[str, str] = {}
        if snapshot is None:
            self._n = self._learned = self._positives = 0
            self._champion = Member(INITIAL, None, self._learner(None))
            self._blend = BlendWeights.even(EXPERTS)
        else:
            self._refuse_unfit(snapshot)
            self._n, self._learned, self._positives = snapshot.n, snapshot.learned, snapshot.positives
            self._champion = self._member(snapshot.champion, snapshot.learners[0])
            if snapshot.challenger:
                self._challenger = self._member(snapshot.challenger, snapshot.learners[1])
            self._roles = Roles(snapshot.champion, snapshot.challenger, snapshot.parent, snapshot.is_frozen)
            self._blend = BlendWeights.from_text(snapshot.blend)
        self._next_multiple = self._multiple_after(self._n)

    @property
    def n(self) -> int:
        return self._n

    @property
    def learned(self) -> int:
        """Examples learned so far; amendments and flagged ones are passed over."""
        return self._learned

    @property
    def roles(self) -> Roles:
        """Who has which role at N."""
        return self._roles

    @property
    def is_complete(self) -> bool:
        """Whether every version that has a role is at hand, so that this state is that of the others."""
        has_challenger = self._challenger is not None
        return not self._has_diverged and has_challenger == bool(self._roles.challenger)

    @property
    def blend_weights(self) -> BlendWeights:
        return self._blend

    def score(self, features: FeatureBatch) -> Scores:
        """The probability of each row by each expert, and the blend.

        Until the first example is learned the learner says the declared default. The base rate is the share of
        positives learned, (positives + default * PRIOR_WEIGHT) / (learned + PRIOR_WEIGHT).
        """
        champion, count = self._champion, len(features)
        is_new = self._learned == 0
        outputs = champion.outputs(features)
        rate = (self._positives + self._spec.default_probability * PRIOR_WEIGHT) / (self._learned + PRIOR_WEIGHT)
        learner = (
            np.full(count, self._spec.default_probability)
            if is_new
            else champion.learner.score(features, outputs, champion.version)
        )
        base_rate = np.full(count, rate)
        booster = None if outputs is None else outputs.probability
        mixed = (
            learner
            if is_new and booster is None
            else blend(self._blend, {"booster": booster, "learner": learner, "base_rate": base_rate})
        )
        return Scores(
            learner=learner,
            base_rate=base_rate,
            booster=booster,
            blend=mixed,
            n=self._n,
            model_version=champion.version,
            is_degraded=(is_new and booster is None) or champion.version != self._roles.champion,
            top_features=self._explained(features, mixed),
        )

    def fold(
        self, examples: ExampleColumns, commands: Sequence[Command], offset_next: int
    ) -> tuple[ModelSnapshot, ...]:
        """Learn examples and obey commands in log order, and move N to `offset_next`; other offsets are holes.

        Returns:
            The snapshots that fell due: before the first record at or past a multiple of `snapshot_every`, the
            state under that multiple (the last one, when holes span several). It is the same whatever the batches.
        Raises:
            InvariantError: offsets before N, out of order or past `offset_next`; a label that is neither 0 nor 1.
        """
        self._refuse_bad_fold(examples, commands, offset_next)
        snapshots: list[ModelSnapshot] = []
        start = 0
        for command in commands:
            stop = int(np.searchsorted(examples.offset, command.offset))
            self._learn_between(examples, start, stop, snapshots)
            self._pass_multiple(command.offset, snapshots)
            self._obey(command)
            start = stop
        self._learn_between(examples, start, len(examples), snapshots)
        self._n = offset_next
        return tuple(snapshots)

    def snapshot(self) -> ModelSnapshot:
        """The state at N, frozen."""
        members = [self._champion, *([] if self._challenger is None else [self._challenger])]
        made = ModelSnapshot(
            n=self._n,
            learned=self._learned,
            positives=self._positives,
            champion=self._roles.champion,
            challenger=self._roles.challenger,
            parent=self._roles.parent,
            is_frozen=self._roles.is_frozen,
            blend=self._blend.to_text(),
            engine=ENGINE,
            arguments=self._spec.learner.arguments,
            feature_digest=self._feature_digest,
            learners=tuple(member.learner.save() for member in members),
            digest="",
        )
        return _with_digest(made)

    def digest(self) -> str:
        """BLAKE2b-128 in hex of all that is folded: weights, counters, roles, blend."""
        return self.snapshot().digest

    def _explained(self, features: FeatureBatch, mixed: Float64s) -> dict[int, TopFeatures]:
        if self._champion.booster is None:
            return {}
        rows = np.flatnonzero(mixed > self._spec.costs.threshold)[:EXPLAINED_MAX]
        return self._champion.booster.top_features(features, rows.tolist()) if len(rows) else {}

    # The fold ---------------------------------------------------------------------------------------------------

    def _learn_between(self, examples: ExampleColumns, start: int, stop: int, snapshots: list[ModelSnapshot]) -> None:
        """Learn the positions [start, stop), with the snapshots that fall due on the way."""
        while start < stop:
            cut = min(stop, int(np.searchsorted(examples.offset, self._next_multiple)))
            if cut == start:
                self._pass_multiple(int(examples.offset[start]), snapshots)
                continue
            self._learn(examples, start + np.flatnonzero(examples.is_learned[start:cut]))
            start = cut

    def _pass_multiple(self, offset: int, snapshots: list[ModelSnapshot]) -> None:
        """Before the record at `offset` is folded: the snapshot of the last multiple that it passes, if it does."""
        if offset < self._next_multiple:
            return
        self._n = offset - offset % self._spec.learner.snapshot_every
        self._next_multiple = self._multiple_after(offset)
        if self.is_complete:
            snapshots.append(self.snapshot())

    def _learn(self, examples: ExampleColumns, rows: Int64s) -> None:
        if not len(rows):
            return
        label = examples.label[rows]
        served = {"booster": examples.booster, "learner": examples.learner, "base_rate": examples.base_rate}
        self._blend = updated(self._blend, self._spec.blend, {k: v[rows] for k, v in served.items()}, label)
        if not self._roles.is_frozen:
            self._champion.learn(examples, rows)
        if self._challenger is not None:
            self._challenger.learn(examples, rows)
        self._learned += len(rows)
        self._positives += int(label.sum())

    def _obey(self, command: Command) -> None:
        roles = self._roles.after(command)
        if roles is None:
            self.ignored += 1
            return
        self._roles = roles
        if command.kind == "prepare":
            self._challenger = self._prepared(command)
        elif command.kind == "promote":
            self._has_diverged = self._has_diverged or self._challenger is None
            self._champion, self._challenger = self._challenger or self._champion, None

    def _prepared(self, command: Command) -> Member | None:
        """The learner begins as the champion's, and sees the last examples once more as this version shows them."""
        self.missing.pop(command.model_version, None)
        try:
            challenger = self._member(command.model_version, self._champion.learner.save())
        except ModelRefusedError as error:
            self.missing[command.model_version] = str(error)
            return None
        if challenger.booster is not None:
            start = max(0, command.offset - self._spec.learner.warm_offsets)
            last = self._history(start, command.offset)
            challenger.learn(last, np.flatnonzero(last.is_learned))
        return challenger

    def _member(self, version: str, learner: bytes) -> Member:
        booster = None if version == INITIAL else self._load(version)
        return Member(version, booster, self._learner(learner))

    def _learner(self, model: bytes | None) -> Learner:
        return Learner(self._spec.learner.arguments, *self._names, model=model)

    def _multiple_after(self, offset: int) -> int:
        return (offset // self._spec.learner.snapshot_every + 1) * self._spec.learner.snapshot_every

    def _refuse_bad_fold(self, examples: ExampleColumns, commands: Sequence[Command], offset_next: int) -> None:
        for offsets in (examples.offset.tolist(), [command.offset for command in commands]):
            if not all(before < after for before, after in pairwise([self._n - 1, *offsets, offset_next])):
                raise InvariantError(
                    "TM-9502",
                    f"examples log: cannot fold offsets {_ends(offsets)} up to {offset_next} into models at {self._n}: "
                    "each once and in order; this is a bug, please report it",
                )
        if not np.isin(examples.label[examples.is_learned], (0, 1)).all():
            raise InvariantError(
                "TM-9503",
                f"examples log: a label among offsets {_ends(examples.offset.tolist())} is neither 0 nor 1; "
                "this is a bug, please report it",
            )

    def _refuse_unfit(self, snapshot: ModelSnapshot) -> None:
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
            ("arguments", snapshot.arguments, self._spec.learner.arguments),
            ("feature digest", snapshot.feature_digest, self._feature_digest),
        ):
            if theirs != ours:
                raise ModelRefusedError(
                    "TM-5002",
                    f"{name}: made with {what} {theirs!r}, this worker has {ours!r}; "
                    "delete it to fold the examples log from its start, or put the former back",
                )


def _with_digest(snapshot: ModelSnapshot) -> ModelSnapshot:
    return replace(snapshot, digest=digest_of(snapshot))


def _ends(offsets: list[int]) -> str:
    return f"{offsets[0]}..{offsets[-1]}" if offsets else "(none)"
