"""The models of an app as a replicated state machine: champion, challenger, learners and blend at a known N.

In: features to score; examples and commands in the order of the log. Out: scores, snapshots. Invariant: everything that
scores depend on is a function of the folded prefix of the log (and the platform): not of what was scored, of batch
sizes, of time, nor of the snapshots in between. So which model scored a prediction can be told from its N and id alone.

A model version is a frozen booster with a learner that began at a known N as a copy of the champion's. `prepare` makes
the challenger: the version's booster, a copy of the champion's learner, and the last examples folded once more with the
new booster's margin and leaves; from then on it is folded, and scored, beside. What the other commands do stands in
`core/roles.py`. A command that expects another champion is ignored.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from zlib import crc32

import numpy as np
import numpy.typing as npt

from tidemill.core.blend import BlendWeights
from tidemill.core.records import Command, ExampleColumns, FeatureBatch, Float64s, Scores, TopFeatures
from tidemill.core.roles import Roles
from tidemill.core.snapshot import ModelSnapshot
from tidemill.core.spec import AppSpec
from tidemill.errors import InvariantError
from tidemill.models.replica import History, LoadBooster, Making, NewestSnapshot, Replica, no_snapshot

PRIOR_WEIGHT = 1.0  # the base rate starts at the declared default, which weighs as much as one example
EXPLAINED_MAX = 20  # positive decisions of a batch that name their top features: 12-23 us each
HASHES = 2**32  # values of the hash of an id

Mask = npt.NDArray[np.bool_]


class Serving:
    """Scores rows and folds the log; one thread owns it. Fulfils `core.ports.Scorer`.

    missing: why a version's artifact could not be loaded; once it is promoted this object goes on with the version
    before, degraded, and makes no more snapshots: its state is no longer that of the others. A new object folds the log
    again.
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
        newest_snapshot: NewestSnapshot = no_snapshot,
    ) -> None:
        """At N = 0 with a new learner, or at the N of `snapshot`.

        Args:
            history: the log once more, for what commands look back at.
            newest_snapshot: where an excision begins to fold again.
        Raises:
            ConfigError: arguments of the learner that are not allowed.
            ModelRefusedError: the snapshot is broken, was made by another engine, of other features or arguments; or an
                artifact that it names cannot be loaded.
        """
        self._spec = spec
        self._share = 0.0 if spec.retrain is None else spec.retrain.rollout.canary_share
        names = (feature_names, category_names)
        making = Making(spec, names, feature_digest, load, history, newest_snapshot)
        self._replica = Replica(making, snapshot=snapshot)
        self._n = 0 if snapshot is None else snapshot.n
        self._next_multiple = self._multiple_after(self._n)

    @property
    def n(self) -> int:
        return self._n

    @property
    def learned(self) -> int:
        """Examples learned so far; amendments, flagged and excised ones are passed over."""
        return self._replica.learned

    @property
    def ignored(self) -> int:
        """Commands that were not obeyed."""
        return self._replica.ignored

    @property
    def missing(self) -> dict[str, str]:
        return self._replica.missing

    @property
    def roles(self) -> Roles:
        """Who has which role at N."""
        return self._replica.roles

    @property
    def is_complete(self) -> bool:
        """Whether every version that has a role is at hand, so that this state is that of the others."""
        return self._replica.is_complete

    @property
    def blend_weights(self) -> BlendWeights:
        return self._replica.blend

    def score(self, features: FeatureBatch, ids: Sequence[str]) -> Scores:
        """The probability of each row by each expert, and the blend; the challenger's blend where there is one.

        Until the first example is learned the learner says the declared default. The base rate is the share of
        positives learned, (positives + default * PRIOR_WEIGHT) / (learned + PRIOR_WEIGHT).

        Args:
            ids: of the events, one per row; a fixed hash of them chooses the rows that a canary serves.
        """
        state, default = self._replica, self._spec.default_probability
        learner_default = default if state.learned == 0 else None
        rate = (state.positives + default * PRIOR_WEIGHT) / (state.learned + PRIOR_WEIGHT)
        base_rate = np.full(len(features), rate)
        mine = state.champion.judge(features, state.blend, base_rate, learner_default=learner_default)
        other: Float64s | None = None
        is_canary: Mask | None = None
        if state.challenger is not None:
            other = state.challenger.judge(features, state.blend, base_rate, learner_default=learner_default).blend
            if state.roles.is_canary:
                is_canary = _of_share(ids, self._share)
        served = mine.blend if other is None or is_canary is None else np.where(is_canary, other, mine.blend)
        return Scores(
            learner=mine.learner,
            base_rate=base_rate,
            booster=mine.booster,
            blend=mine.blend,
            n=self._n,
            model_version=state.champion.version,
            is_degraded=(learner_default is not None and mine.booster is None)
            or state.has_diverged
            or state.champion.version != state.roles.champion,
            top_features=self._explained(features, served, is_canary),
            other=other,
            other_version="" if state.challenger is None else state.challenger.version,
            is_canary=is_canary,
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
            ModelRefusedError: TM-5005, an excision that the log does not reach.
        """
        self._refuse_bad_fold(examples, commands, offset_next)
        snapshots: list[ModelSnapshot] = []
        start = 0
        for command in commands:
            stop = int(np.searchsorted(examples.offset, command.offset))
            self._learn_between(examples, start, stop, snapshots)
            self._pass_multiple(command.offset, snapshots)
            self._replica.obey(command)
            start = stop
        self._learn_between(examples, start, len(examples), snapshots)
        self._n = offset_next
        return tuple(snapshots)

    def snapshot(self) -> ModelSnapshot:
        """The state at N, frozen."""
        return self._replica.snapshot(self._n)

    def digest(self) -> str:
        """BLAKE2b-128 in hex of all that is folded: weights, counters, roles, blend."""
        return self.snapshot().digest

    def _explained(self, features: FeatureBatch, served: Float64s, is_canary: Mask | None) -> dict[int, TopFeatures]:
        """Few positive decisions, each by the booster of who served it."""
        rows = np.flatnonzero(served > self._spec.costs.threshold)[:EXPLAINED_MAX]
        of_canary = np.zeros(len(rows), dtype=np.bool_) if is_canary is None else is_canary[rows]
        found: dict[int, TopFeatures] = {}
        for member, mine in ((self._replica.champion, rows[~of_canary]), (self._replica.challenger, rows[of_canary])):
            if member is not None and member.booster is not None and len(mine):
                found.update(member.booster.top_features(features, mine.tolist()))
        return found

    def _learn_between(self, examples: ExampleColumns, start: int, stop: int, snapshots: list[ModelSnapshot]) -> None:
        """Learn the positions [start, stop), with the snapshots that fall due on the way."""
        while start < stop:
            cut = min(stop, int(np.searchsorted(examples.offset, self._next_multiple)))
            if cut == start:
                self._pass_multiple(int(examples.offset[start]), snapshots)
                continue
            self._replica.learn(examples, start, cut)
            start = cut

    def _pass_multiple(self, offset: int, snapshots: list[ModelSnapshot]) -> None:
        """Before the record at `offset` is folded: the snapshot of the last multiple that it passes, if it does."""
        if offset < self._next_multiple:
            return
        self._n = offset - offset % self._spec.learner.snapshot_every
        self._next_multiple = self._multiple_after(offset)
        if self.is_complete:
            snapshots.append(self.snapshot())

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


def _of_share(ids: Sequence[str], share: float) -> Mask:
    """The rows whose id falls into the share: the same ones in every worker and in every replay."""
    hashes = np.fromiter((crc32(id_.encode()) for id_ in ids), dtype=np.float64, count=len(ids))
    return hashes / HASHES < share


def _ends(offsets: list[int]) -> str:
    return f"{offsets[0]}..{offsets[-1]}" if offsets else "(none)"
