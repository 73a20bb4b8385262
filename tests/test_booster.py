"""A loaded booster: exact whatever the batch, and refused before XGBoost sees what was not checked."""

from __future__ import annotations

import resource
from dataclasses import replace

import numpy as np
import pytest
import xgboost
from boosters import CATEGORIES, NUMERIC, SHAPE, SPEC, a_trained, kept, loaded, rows_of, some_examples, trained_on
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.core.manifest import Manifest, model_digest
from tidemill.core.records import FeatureBatch
from tidemill.errors import ModelRefusedError
from tidemill.models import booster as booster_module
from tidemill.models.booster import ENGINE, Booster

FEATURES = some_examples(700, seed=9).features
BOOSTER = loaded(a_trained())
WHOLE = BOOSTER.outputs(FEATURES)


@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.integers(0, 699), min_size=1, max_size=130))
def test_row_has_the_same_bits_in_any_batch(rows: list[int]) -> None:
    found = BOOSTER.outputs(rows_of(FEATURES, rows))
    assert found.margin.tobytes() == WHOLE.margin[rows].tobytes()
    assert found.probability.tobytes() == WHOLE.probability[rows].tobytes()
    assert found.leaves.tobytes() == WHOLE.leaves[rows].tobytes()
    assert BOOSTER.probability(rows_of(FEATURES, rows)).tobytes() == WHOLE.probability[rows].tobytes()


def test_every_row_alone_has_the_bits_that_it_has_among_all() -> None:
    alone = [BOOSTER.outputs(rows_of(FEATURES, [row])) for row in range(len(FEATURES))]
    assert np.concatenate([one.margin for one in alone]).tobytes() == WHOLE.margin.tobytes()
    assert np.concatenate([one.probability for one in alone]).tobytes() == WHOLE.probability.tobytes()
    assert np.concatenate([one.leaves for one in alone]).tobytes() == WHOLE.leaves.tobytes()


def test_outputs_have_the_promised_shapes_and_types() -> None:
    assert (WHOLE.margin.dtype, WHOLE.margin.shape) == (np.float32, (700,))
    assert (WHOLE.probability.dtype, WHOLE.probability.shape) == (np.float64, (700,))
    assert (WHOLE.leaves.dtype, WHOLE.leaves.shape) == (np.int32, (700, SPEC.leaf_trees))
    assert np.array_equal(WHOLE.probability, 1 / (1 + np.exp(-WHOLE.margin.astype(np.float64))))


@pytest.mark.parametrize(("leaf_trees", "expected"), [(0, 0), (3, 3), (1_000, BOOSTER.manifest.trees)])
def test_leaves_are_of_the_first_trees_as_far_as_there_are_any(leaf_trees: int, expected: int) -> None:
    found = loaded(a_trained(leaf_trees=leaf_trees)).outputs(FEATURES)
    assert found.leaves.shape == (700, expected)
    common = min(expected, SPEC.leaf_trees)
    assert np.array_equal(found.leaves[:, :common], WHOLE.leaves[:, :common])


def test_batch_without_rows_has_outputs_without_rows() -> None:
    nothing = rows_of(FEATURES, [])
    found = BOOSTER.outputs(nothing)
    assert (found.margin.shape, found.probability.shape, found.leaves.shape) == ((0,), (0,), (0, SPEC.leaf_trees))
    assert BOOSTER.contributions(FEATURES, []).shape == (0, 5)
    assert BOOSTER.top_features(FEATURES, []) == {}


def test_outputs_are_those_of_the_trainers_engine() -> None:
    """Our way to the matrix, against a DMatrix made by hand from the manifest."""
    trained = a_trained()
    engine = xgboost.Booster()
    engine.load_model(bytearray(trained.model))
    columns = [FEATURES.numeric[:, at] for at in range(3)]
    for values, column in zip(trained.manifest.vocabularies, FEATURES.categories, strict=True):
        columns.append(np.array([values.index(value) if value in values else np.nan for value in column]))
    matrix = xgboost.DMatrix(
        np.stack(columns, axis=1).astype(np.float32), feature_types=["q"] * 3 + ["c"] * 2, enable_categorical=True
    )
    assert np.array_equal(engine.predict(matrix, output_margin=True), WHOLE.margin)
    assert np.array_equal(engine.predict(matrix, pred_leaf=True)[:, : SPEC.leaf_trees], WHOLE.leaves)


@pytest.mark.parametrize("value", ["", "never seen", "p0\x00", "\ud800"])
def test_unknown_category_is_a_missing_one(value: str) -> None:
    unknown = FeatureBatch(FEATURES.numeric, (FEATURES.categories[0], (value,) * 700))
    missing = FeatureBatch(FEATURES.numeric, (FEATURES.categories[0], ("",) * 700))
    assert np.array_equal(BOOSTER.outputs(unknown).margin, BOOSTER.outputs(missing).margin)


def test_infinity_is_a_very_large_number_and_breaks_no_batch() -> None:
    numeric = FEATURES.numeric.copy()
    numeric[0, 0], numeric[1, 0], numeric[2, 0] = np.inf, -np.inf, np.finfo(np.float32).max
    found = BOOSTER.outputs(FeatureBatch(numeric, FEATURES.categories))
    assert np.array_equal(found.margin[3:], WHOLE.margin[3:]) and np.isfinite(found.margin).all()
    numeric[0, 0], numeric[1, 0], numeric[2, 0] = 1e9, -1e9, 1e9
    assert np.array_equal(BOOSTER.outputs(FeatureBatch(numeric, FEATURES.categories)).margin, found.margin)


def test_contributions_and_bias_add_up_to_the_margin() -> None:
    rows = [5, 0, 699, 5]
    for contributions in (BOOSTER.contributions(FEATURES, rows), BOOSTER.exact_contributions(FEATURES, rows)):
        assert (contributions.dtype, contributions.shape) == (np.float32, (4, 5))
        bias = WHOLE.margin[rows] - contributions.sum(axis=1)
        assert np.ptp(bias) < 1e-4
    assert not np.array_equal(BOOSTER.contributions(FEATURES, rows), BOOSTER.exact_contributions(FEATURES, rows))


def test_contributions_of_a_row_are_the_same_in_any_batch() -> None:
    together = BOOSTER.contributions(FEATURES, range(700))
    for row in (0, 63, 64, 699):
        assert np.array_equal(BOOSTER.contributions(FEATURES, [row])[0], together[row])


def test_top_features_are_the_largest_contributions_by_size() -> None:
    contributions = BOOSTER.contributions(FEATURES, [3, 8])
    found = BOOSTER.top_features(FEATURES, [3, 8], 2)
    assert list(found) == [3, 8]
    for (names, values), row in zip(found.values(), contributions, strict=True):
        by_size = sorted(zip(BOOSTER.column_names, row.tolist(), strict=True), key=lambda one: -abs(one[1]))
        assert list(zip(names, values, strict=True)) == by_size[:2]
    assert all(len(top.names) == 5 for top in BOOSTER.top_features(FEATURES, [3, 8]).values())


def test_booster_of_some_columns_reads_no_others() -> None:
    some = loaded(a_trained(features=("place", "x")))
    assert some.column_names == ("x", "place")
    numeric = FEATURES.numeric.copy()
    numeric[:, 1:] = 7
    changed = FeatureBatch(numeric, (("other",) * 700, FEATURES.categories[1]))
    assert np.array_equal(some.outputs(changed).margin, some.outputs(FEATURES).margin)
    assert some.contributions(FEATURES, [0]).shape == (1, 2)
    assert not np.array_equal(BOOSTER.outputs(changed).margin, WHOLE.margin)


def test_columns_are_found_by_name_wherever_the_app_has_them() -> None:
    trained = a_trained()
    turned = Booster.load(
        trained.model,
        trained.manifest,
        feature_names=("new", *reversed(NUMERIC)),
        category_names=tuple(reversed(CATEGORIES)),
        feature_digest="f1",
    )
    numeric = np.concatenate([np.zeros((700, 1), dtype=np.float32), FEATURES.numeric[:, ::-1]], axis=1)
    features = FeatureBatch(numeric, tuple(reversed(FEATURES.categories)))
    assert np.array_equal(turned.outputs(features).margin, WHOLE.margin)


def test_many_batches_take_no_more_memory() -> None:
    """XGBoost caches predictions by matrix: a matrix must not outlive its batch."""
    for _ in range(100):
        BOOSTER.outputs(FEATURES)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(600):
        BOOSTER.outputs(FEATURES)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 4_000  # kB; 600 kept matrices are 20 MB


# Refused before it is parsed -------------------------------------------------------------------------------------


@pytest.fixture
def no_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever reaches XGBoost fails the test."""

    class Engine:
        def __init__(self) -> None:
            raise AssertionError("XGBoost was asked to parse what should have been refused")

    monkeypatch.setattr(booster_module.xgboost, "Booster", Engine)


@pytest.mark.usefixtures("no_parser")
@pytest.mark.parametrize("change", [lambda m: m[:-1], lambda m: m + b"\0", lambda m: b"", lambda m: b"\1" + m[1:]])
def test_bytes_that_are_not_those_of_the_manifest_never_reach_the_parser(change) -> None:
    trained = a_trained()
    with pytest.raises(ModelRefusedError, match="TM-5011") as refused:
        loaded(replace(trained, model=change(trained.model)))
    assert trained.manifest.version in str(refused.value)


@pytest.mark.usefixtures("no_parser")
@pytest.mark.parametrize(
    "change",
    [
        {"feature_digest": "f2"},
        {"feature_names": ("x", "y")},
        {"category_names": ("kind",)},
        {"feature_names": (*NUMERIC, "kind"), "category_names": ("place",)},  # no longer a category
    ],
)
def test_model_of_other_features_is_refused(change) -> None:
    trained = a_trained()
    with pytest.raises(ModelRefusedError, match="TM-5012"):
        Booster.load(trained.model, trained.manifest, **{**SHAPE, **change})


@pytest.mark.usefixtures("no_parser")
@pytest.mark.parametrize("engine", ["xgboost 2.9.9", "xgboost 99.0.0", "xgboost 3.999.0", "lightgbm 3.2.0", ""])
def test_model_of_an_engine_that_ours_need_not_read_is_refused(engine: str) -> None:
    trained = a_trained()
    with pytest.raises(ModelRefusedError, match="TM-5013"):
        loaded(replace(trained, manifest=replace(trained.manifest, engine=engine)))


def test_model_of_an_older_engine_of_the_same_major_version_is_read() -> None:
    trained = a_trained()
    assert trained.manifest.engine == ENGINE
    major = ENGINE.split(".")[0]
    assert loaded(replace(trained, manifest=replace(trained.manifest, engine=f"{major}.0.0"))).column_names


def test_promised_bytes_that_are_no_model_are_refused_too() -> None:
    trained = a_trained()
    for model in (b"{}", b"no model", trained.model[: len(trained.model) // 2]):
        manifest = replace(trained.manifest, model_digest=model_digest(model))
        with pytest.raises(ModelRefusedError, match="TM-5017") as refused:
            loaded(replace(trained, model=model, manifest=manifest))
        assert "\n" not in str(refused.value)


def test_model_with_other_columns_or_trees_than_its_manifest_is_refused() -> None:
    trained, other = a_trained(), a_trained(features=("x", "place"))
    manifest = replace(trained.manifest, model_digest=model_digest(other.model))
    with pytest.raises(ModelRefusedError, match="TM-5017"):
        loaded(replace(other, manifest=manifest))
    with pytest.raises(ModelRefusedError, match="TM-5017"):
        loaded(replace(trained, manifest=replace(trained.manifest, trees=trained.manifest.trees + 1)))


# The manifest ----------------------------------------------------------------------------------------------------

MANIFEST = a_trained().manifest


def test_manifest_survives_the_way_to_bytes_and_back_and_keeps_its_name() -> None:
    again = Manifest.from_bytes(MANIFEST.to_bytes(), "m")
    assert again == MANIFEST
    assert again.version == MANIFEST.version == BOOSTER.version
    assert len(MANIFEST.version) == 13


@pytest.mark.parametrize(
    "change", [{"cause": "another"}, {"created": 8}, {"model_digest": "0"}, {"vocabularies": (("a",), ("b",))}]
)
def test_name_of_a_version_is_a_digest_of_all_that_is_said_of_it(change) -> None:
    assert replace(MANIFEST, **change).version != MANIFEST.version


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"trees":', b'"trees": '),  # another form
        (b'"app":"shop"', b'"app":"shop","app":"shop"'),
        (b'"app":"shop"', b'"app":7'),
        (b'"app":"shop",', b""),
        (b'"app":"shop"', b'"app":"shop","more":1'),
        (b"tidemill.booster.v1", b"tidemill.booster.v2"),
        (b'"created":7', b'"created":true'),
        (b'"created":7', b'"created":7.0'),
        (b'["kind","place"]', b'"kind"'),
        (b'["kind","place"]', b'["place","kind"]'),
        (b'"leaf_trees":5', b'"leaf_trees":500'),
        (b'"n":60.0', b'"n":NaN'),
        (b'"n":60.0', b'"n":"60"'),
        (b'"x","y","noise"', b'"x","x","noise"'),
    ],
)
def test_manifest_of_another_form_is_refused(old: bytes, new: bytes) -> None:
    data = MANIFEST.to_bytes()
    assert old in data
    with pytest.raises(ModelRefusedError, match="TM-5010"):
        Manifest.from_bytes(data.replace(old, new, 1), "m")


@given(st.binary(max_size=60) | st.just(b"[" * 100_000) | st.sampled_from([b"null", b"[]", b"{}", b'"x"', b"1e999"]))
def test_any_bytes_are_a_manifest_or_refused(data: bytes) -> None:
    with pytest.raises(ModelRefusedError, match="TM-5010"):
        Manifest.from_bytes(data, "m")


def test_trained_again_is_the_same_version() -> None:
    assert trained_on(kept(some_examples(600))).manifest.version == BOOSTER.version
