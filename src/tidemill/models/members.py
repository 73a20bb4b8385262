"""A model version at N: a frozen booster and the learner that learns beside it.

In: features to judge, examples to learn. Out: probabilities by expert and their blend. Invariant: judging changes
nothing; the learner is a function of the examples learned, in their order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tidemill.core.blend import BlendWeights, blend
from tidemill.core.records import ExampleColumns, FeatureBatch, Float64s, Int64s
from tidemill.models.booster import Booster, BoosterOutputs
from tidemill.models.learner import Learner

EXPERTS = ("booster", "learner", "base_rate")


@dataclass(frozen=True, slots=True)
class Judged:
    """Probabilities by expert, shape (rows,), and their blend; booster is None where the version has none."""

    booster: Float64s | None
    learner: Float64s
    blend: Float64s


@dataclass(frozen=True, slots=True)
class Member:
    """A model version at N: its booster (None for `INITIAL`) and its learner."""

    version: str
    booster: Booster | None
    learner: Learner

    def outputs(self, features: FeatureBatch) -> BoosterOutputs | None:
        return None if self.booster is None else self.booster.outputs(features)

    def judge(
        self, features: FeatureBatch, weights: BlendWeights, base_rate: Float64s, *, learner_default: float | None
    ) -> Judged:
        """What the version says of each row. `learner_default`: in place of a learner that has learned nothing yet."""
        outputs = self.outputs(features)
        learner = (
            self.learner.score(features, outputs, self.version)
            if learner_default is None
            else np.full(len(features), learner_default)
        )
        booster = None if outputs is None else outputs.probability
        mixed = (
            learner
            if learner_default is not None and booster is None
            else blend(weights, {"booster": booster, "learner": learner, "base_rate": base_rate})
        )
        return Judged(booster, learner, mixed)

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
