"""Training is a function of the examples: split by time, the same bytes every time, on whatever threads."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from boosters import CATEGORIES, NUMERIC, SPEC, a_trained, kept, loaded, some_examples, trained_on

from tidemill.core.manifest import model_digest
from tidemill.core.metrics import log_loss
from tidemill.core.records import ExampleColumns, FeatureBatch
from tidemill.errors import ConfigError, ModelRefusedError
from tidemill.models.booster import ENGINE
from tidemill.models.booster_training import CODE_VERSION, EXAMPLES_MIN
from tidemill.models.training_examples import TrainingExamples

COUNT = 600
EXAMPLES = some_examples(COUNT)


def with_label(examples: ExampleColumns, label: np.ndarray) -> TrainingExamples:
    return kept(replace(examples, label=label.astype(np.float32)))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_same_examples_give_the_same_bytes_on_any_number_of_threads(threads: int) -> None:
    again = trained_on(kept(EXAMPLES), threads=threads)
    assert again == a_trained()


def test_same_examples_give_the_same_bytes_whatever_came_before_and_after_them() -> None:
    """Values that appear only outside of the range have codes of their own, which the model must not see."""
    before, after = some_examples(50, seed=3), some_examples(50, seed=4, first_offset=800)
    kinds = FeatureBatch(before.features.numeric, (("blue",) * 50, ("elsewhere",) * 50))
    middle = some_examples(COUNT, first_offset=100)
    among = kept(replace(before, features=kinds), middle, after)
    since, until = int(middle.label_time[0]), int(after.label_time[0])
    arguments = {"app": "shop", "parent": "", "cause": "a test", "created": 7}
    assert train(among.rows(since_ms=since, before_ms=until), **arguments) == trained_on(kept(middle))


def train(rows, **more):
    from boosters import SHAPE

    from tidemill.models.booster_training import train_booster

    return train_booster(rows, SPEC, threads=1, **SHAPE, **more)


def test_manifest_says_what_was_trained_on_what() -> None:
    trained = trained_on(kept(EXAMPLES), parent="m0", cause="an alert", created=99)
    manifest = trained.manifest
    assert (manifest.app, manifest.parent, manifest.cause, manifest.created) == ("shop", "m0", "an alert", 99)
    assert manifest.features == (*NUMERIC, *CATEGORIES) and manifest.category_features == CATEGORIES
    assert (manifest.offset_start, manifest.offset_next, manifest.examples) == (0, 2 * COUNT - 1, COUNT)
    assert (manifest.time_first, manifest.time_last) == (5, 10 * COUNT - 5)
    assert manifest.examples_digest == kept(EXAMPLES).rows().digest()
    assert manifest.model_digest == model_digest(trained.model)
    assert manifest.engine == ENGINE and manifest.parameters["max_depth"] == SPEC.max_depth
    assert 1 <= manifest.trees <= SPEC.rounds and manifest.leaf_trees == min(SPEC.leaf_trees, manifest.trees)
    assert "" not in manifest.vocabularies[0] and set(manifest.vocabularies[0]) == {"red", "green", "blue"}


def test_code_version_is_that_of_the_package() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert f"{project['name']} {project['version']}" == CODE_VERSION


def test_metrics_are_of_the_newest_by_label_time_and_of_trees_that_did_not_see_them() -> None:
    """The newest labels are turned round: trees that had seen them would do better than a coin."""
    delay = np.random.default_rng(5).permutation(COUNT) * 10  # label order has nothing to do with log order
    label_time = EXAMPLES.event_time + 100_000 + delay * 100
    is_newest = np.zeros(COUNT, dtype=np.bool_)
    is_newest[np.argsort(label_time)[-60:]] = True
    turned = replace(EXAMPLES, label_time=label_time, label=np.where(is_newest, 1 - EXAMPLES.label, EXAMPLES.label))
    straight = trained_on(kept(replace(EXAMPLES, label_time=label_time))).manifest.metrics
    metrics = trained_on(kept(turned)).manifest.metrics
    assert metrics["n"] == straight["n"] == 60
    assert metrics["base_rate"] == pytest.approx(turned.label[is_newest].mean())
    rate = float(turned.label[~is_newest].mean())
    assert metrics["constant_log_loss"] == pytest.approx(log_loss(np.full(60, rate), turned.label[is_newest]))
    assert straight["auc"] > 0.7 and straight["log_loss"] < straight["constant_log_loss"]
    assert metrics["auc"] < 0.4


def test_model_has_learned_from_the_newest_too() -> None:
    """A kind that only the newest examples have, always positive among them."""
    is_newest = np.arange(COUNT) >= COUNT - 60
    kinds = tuple("new" if new else kind for new, kind in zip(is_newest, EXAMPLES.features.categories[0], strict=True))
    features = FeatureBatch(EXAMPLES.features.numeric, (kinds, EXAMPLES.features.categories[1]))
    label = np.where(is_newest, 1, EXAMPLES.label)
    spec = replace(SPEC, column_share=1.0, rounds=40, early_stopping_rounds=40)
    booster = loaded(trained_on(kept(replace(EXAMPLES, features=features, label=label.astype(np.float32))), spec))
    assert "new" in booster.manifest.vocabularies[0]
    before = FeatureBatch(EXAMPLES.features.numeric, (("green",) * COUNT, EXAMPLES.features.categories[1]))
    after = FeatureBatch(EXAMPLES.features.numeric, (("new",) * COUNT, EXAMPLES.features.categories[1]))
    assert booster.probability(after).mean() > booster.probability(before).mean() + 0.1


def test_training_stops_when_the_newest_examples_gain_nothing() -> None:
    noise = np.random.default_rng(3).integers(0, 2, COUNT)
    heard: list[tuple[int, float]] = []
    spec = replace(SPEC, rounds=200, early_stopping_rounds=5)
    on_round = lambda at, loss: heard.append((at, loss))  # noqa: E731
    manifest = trained_on(with_label(EXAMPLES, noise), spec, on_round=on_round).manifest
    assert [at for at, _ in heard] == list(range(1, len(heard) + 1))
    assert manifest.trees == 1 + int(np.argmin([loss for _, loss in heard]))
    assert len(heard) == manifest.trees + 5 < 200
    assert manifest.metrics["log_loss"] == pytest.approx(min(loss for _, loss in heard), abs=1e-5)


def test_rare_values_are_missing_ones() -> None:
    manifest = a_trained(category_values_max=3).manifest
    counts = {value: EXAMPLES.features.categories[1].count(value) for value in set(EXAMPLES.features.categories[1])}
    most = sorted(counts, key=lambda value: (-counts[value], value))
    assert manifest.vocabularies[1] == tuple(most[:3])
    features = FeatureBatch(np.zeros((2, 3), dtype=np.float32), (("red", "red"), (most[5], "never seen")))
    margin = loaded(a_trained(category_values_max=3)).outputs(features).margin
    assert margin[0] == margin[1]


def test_column_without_any_value_and_infinite_numbers_are_trained_on() -> None:
    numeric = EXAMPLES.features.numeric.copy()
    numeric[:, 2] = np.nan
    numeric[::7, 0], numeric[1::7, 0] = np.inf, -np.inf
    features = FeatureBatch(numeric, (EXAMPLES.features.categories[0], ("",) * COUNT))
    trained = trained_on(kept(replace(EXAMPLES, features=features)))
    assert trained.manifest.vocabularies[1] == ()
    assert np.isfinite(loaded(trained).outputs(features).margin).all()


def test_some_columns_are_kept_in_the_order_of_the_app() -> None:
    manifest = a_trained(features=("place", "noise", "x")).manifest
    assert (manifest.features, manifest.category_features) == (("x", "noise", "place"), ("place",))
    assert len(manifest.vocabularies) == 1
    assert a_trained(features=("x",)).manifest.category_features == ()


@pytest.mark.parametrize("features", [(), ("x", "unheard of")])
def test_columns_that_there_are_not_are_a_mistake_of_the_configuration(features: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="TM-1056"):
        trained_on(kept(EXAMPLES), features=features)


@pytest.mark.parametrize("count", [0, 1, EXAMPLES_MIN - 1])
def test_few_examples_are_refused(count: int) -> None:
    with pytest.raises(ModelRefusedError, match=f"TM-5030.* {count};"):
        trained_on(kept(some_examples(count)))


def test_as_many_as_are_needed_are_enough() -> None:
    assert trained_on(kept(some_examples(EXAMPLES_MIN))).manifest.examples == EXAMPLES_MIN


@pytest.mark.parametrize("label", [0, 1])
def test_examples_of_one_class_are_refused_also_when_only_the_newest_differ(label: int) -> None:
    one_class = np.full(COUNT, label)
    mostly = np.where(np.arange(COUNT) < COUNT - 30, label, 1 - label)
    for labels in (one_class, mostly):
        with pytest.raises(ModelRefusedError, match="TM-5031"):
            trained_on(with_label(EXAMPLES, labels))


def test_newest_of_one_class_do_not_hinder() -> None:
    labels = np.where(np.arange(COUNT) < COUNT - 60, EXAMPLES.label, 0)
    metrics = trained_on(with_label(EXAMPLES, labels)).manifest.metrics
    assert (metrics["base_rate"], metrics["auc"]) == (0.0, 0.5)
