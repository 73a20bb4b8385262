"""Small examples and boosters for tests.

In: a count, a seed. Out: examples in which two numbers and a category decide; a booster of a few trees.
Invariant: the same arguments give the same booster, which is trained once a process.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np

from tidemill.core.records import ExampleColumns, FeatureBatch
from tidemill.core.spec import BoosterSpec
from tidemill.models.booster import Booster
from tidemill.models.booster_training import Trained, train_booster
from tidemill.models.training_examples import TrainingExamples

NUMERIC, CATEGORIES = ("x", "y", "noise"), ("kind", "place")
DIGEST = "f1"
SPEC = BoosterSpec(rounds=12, max_depth=3, learning_rate=0.3, min_child_weight=2, leaf_trees=5)
SHAPE = {"feature_names": NUMERIC, "category_names": CATEGORIES, "feature_digest": DIGEST}


def some_examples(count: int, *, seed: int = 1, first_offset: int = 0) -> ExampleColumns:
    """Offsets are even; labels come 5 ms after their events, which are 10 ms apart."""
    source = np.random.default_rng(seed)
    numeric = source.normal(size=(count, len(NUMERIC))).astype(np.float32)
    numeric[source.random(numeric.shape) < 0.05] = np.nan
    kinds = source.choice(["red", "green", "blue", ""], count)
    places = source.choice([f"p{at}" for at in range(20)], count)
    odds = 2 * np.nan_to_num(numeric[:, 0]) - np.nan_to_num(numeric[:, 1]) + 2 * (kinds == "red") - 1
    label = (source.random(count) < 1 / (1 + np.exp(-odds))).astype(np.float32)
    time = (first_offset + np.arange(count)) * 10
    nothing = np.full(count, np.nan)
    return ExampleColumns(
        offset=2 * (first_offset + np.arange(count)),
        features=FeatureBatch(numeric, (tuple(kinds.tolist()), tuple(places.tolist()))),
        label=label,
        is_learned=np.ones(count, dtype=np.bool_),
        event_time=time,
        label_time=time + 5,
        learner=nothing,
        booster=nothing,
        base_rate=nothing,
        blend=nothing,
    )


def rows_of(features: FeatureBatch, rows: list[int]) -> FeatureBatch:
    return FeatureBatch(
        features.numeric[rows], tuple(tuple(column[row] for row in rows) for column in features.categories)
    )


def kept(*parts: ExampleColumns) -> TrainingExamples:
    examples = TrainingExamples(NUMERIC, CATEGORIES)
    for part in parts:
        examples.append(part)
    return examples


def trained_on(examples: TrainingExamples, spec: BoosterSpec = SPEC, **more: object) -> Trained:
    arguments = {"app": "shop", "parent": "", "cause": "a test", "created": 7, "threads": 1, **SHAPE, **more}
    return train_booster(examples.rows(), spec, **arguments)


@cache
def a_trained(seed: int = 1, **more: object) -> Trained:
    spec = replace(SPEC, **{name: value for name, value in more.items() if hasattr(SPEC, name)})
    other = {name: value for name, value in more.items() if not hasattr(SPEC, name)}
    return trained_on(kept(some_examples(600, seed=seed)), spec, **other)


def loaded(trained: Trained) -> Booster:
    return Booster.load(trained.model, trained.manifest, **SHAPE)
