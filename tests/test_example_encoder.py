"""The encoder: one feature or token per column whatever the values, hashes that are the same everywhere."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tidemill.core.records import FeatureBatch
from tidemill.errors import InvariantError
from tidemill.models import example_encoder
from tidemill.models.booster import BoosterOutputs
from tidemill.models.example_encoder import (
    NUMERIC_MAX,
    ExampleEncoder,
    Features,
    LeafTokens,
    Tokens,
    feature_hash,
    margin_features,
)
from tidemill.models.learner import Learner

NUMERIC_NAMES = tuple(f"number_{at}" for at in range(6))
CATEGORY_NAMES = ("colour", "size")
ARGUMENTS = "--loss_function logistic --link logistic -b 14"

NASTY = st.text(st.sampled_from("|:' \n\t\r\0\u2028\u00a0\x1b,#ab01") | st.characters(), max_size=12)
NUMBERS = st.floats(width=32) | st.sampled_from([0.0, -0.0, float("nan"), float("inf"), -float("inf"), 1e-38, 3e38])
CONSTANT = 128  # Vowpal Wabbit's own namespace


def an_encoder() -> ExampleEncoder:
    return ExampleEncoder(NUMERIC_NAMES, CATEGORY_NAMES)


def some_features(count: int) -> FeatureBatch:
    random = np.random.default_rng(7)
    numeric = random.normal(size=(count, 6)).astype(np.float32)
    numeric[random.random(numeric.shape) < 0.2] = np.nan
    return FeatureBatch(numeric, tuple(tuple(random.choice(["a", "b", ""], count).tolist()) for _ in CATEGORY_NAMES))


def encoded(
    encoder: ExampleEncoder, features: FeatureBatch, rows: npt.NDArray[np.intp] | None = None
) -> list[tuple[Features, Tokens]]:
    return list(zip(*encoder.encode(features, rows), strict=True))


class Recorded:
    """Takes a row as Vowpal Wabbit sees it, once set up."""

    def __init__(self) -> None:
        self.learner = Learner(ARGUMENTS, NUMERIC_NAMES, CATEGORY_NAMES)

    def namespaces(self, features: FeatureBatch, outputs: BoosterOutputs | None) -> dict[int, list[tuple[int, float]]]:
        (row,) = self.learner._rows(features, None, outputs, "m1")
        example = self.learner._unlabelled
        self.learner._fill(example, row)
        seen = {}
        for namespace in (example.namespace(at) for at in range(example.num_namespaces())):
            places = range(example.num_features_in(namespace))
            seen[namespace] = [(example.feature(namespace, i), example.feature_weight(namespace, i)) for i in places]
        self.learner._empty(example, row)
        assert example.num_namespaces() == 0, "the next row would inherit something"
        assert not any(example.num_features_in(ord(name)) for name in "ncmt")
        return seen


RECORDED = Recorded()


def weights(features: list[tuple[int, float]]) -> list[float]:
    return [weight for _, weight in features]


@settings(max_examples=200, deadline=None)
@given(st.lists(NUMBERS, min_size=6, max_size=6), NASTY, NASTY, NUMBERS)
def test_no_value_forges_a_feature(numbers: list[float], colour: str, size: str, margin: float) -> None:
    """The engine sees one token per category and leaf, one number or token per numeric column, whatever the values."""
    numeric = np.array([numbers], dtype=np.float32)
    outputs = BoosterOutputs(np.array([margin], dtype=np.float32), np.array([0.5]), np.array([[3, 0, 3]], np.int32))
    seen = RECORDED.namespaces(FeatureBatch(numeric, ((colour,), (size,))), outputs)

    assert set(seen) <= {ord("n"), ord("c"), ord("m"), ord("t"), CONSTANT}
    assert weights(seen[ord("c")]) == [1.0, 1.0]
    assert weights(seen[ord("t")]) == [1.0, 1.0, 1.0]
    clipped = np.clip(numeric[0], -NUMERIC_MAX, NUMERIC_MAX).tolist()
    expected = [1.0 if value != value else value for value in clipped if value != 0]
    assert weights(seen.get(ord("n"), [])) == expected, "float32 comes through bit for bit"
    said = float(np.clip(np.float32(margin), -NUMERIC_MAX, NUMERIC_MAX))
    assert weights(seen.get(ord("m"), [])) == ([said] if said and said == said else [])
    assert len(seen[CONSTANT]) == 1


def test_row_without_a_booster_has_neither_margin_nor_leaves() -> None:
    seen = RECORDED.namespaces(some_features(1), None)
    assert set(seen) == {ord("n"), ord("c"), CONSTANT}


@given(NASTY, NASTY)
def test_different_values_are_different_features(one: str, other: str) -> None:
    # 32 bits: among the values that hypothesis finds an equal hash is a defect, not bad luck.
    assert (feature_hash("category", "a", one) == feature_hash("category", "a", other)) == (one == other)


def test_name_and_value_do_not_run_into_each_other() -> None:
    hashes = {feature_hash("category", "a", "b=c"), feature_hash("category", "a=b", "c"), feature_hash("numeric", "a")}
    hashes |= {feature_hash("missing", "a"), feature_hash("category", "a"), feature_hash("category", "", "a")}
    assert len(hashes) == 6


def test_hashes_are_the_same_on_every_machine() -> None:
    assert feature_hash("category", "colour", "grün|\n") == 4_222_269_368
    assert next(LeafTokens("m1").encode(np.array([[5]], dtype=np.int32))) == [3_388_222_706]
    assert [hash for [(hash, _)] in margin_features(np.zeros(1, dtype=np.float32))] == [366_049_082]


def test_leaf_is_told_by_version_tree_and_number() -> None:
    leaves = np.array([[1, 1], [1, 2], [2, 1], [1, 1]], dtype=np.int32)
    tokens = list(LeafTokens("m1").encode(leaves))
    others = list(LeafTokens("m11").encode(leaves))
    assert tokens[0] == tokens[3]
    assert len({token for row in (*tokens, *others) for token in row}) == 8


def test_order_in_which_leaves_come_changes_no_token() -> None:
    leaves = np.random.default_rng(1).integers(0, 60, (50, 4)).astype(np.int32)
    forwards = list(LeafTokens("m1").encode(leaves))
    turned = LeafTokens("m1")
    narrow = list(turned.encode(leaves[:, :2]))
    backwards = list(turned.encode(leaves[::-1]))
    assert backwards[::-1] == forwards
    assert narrow == [row[:2] for row in forwards]


def test_row_is_encoded_by_itself() -> None:
    features = some_features(60)
    together = encoded(an_encoder(), features)
    encoder = an_encoder()
    for rows in (np.array([5]), np.array([59, 0, 31]), np.array([], dtype=np.intp)):
        assert repr(encoded(encoder, features, rows)) == repr([together[at] for at in rows.tolist()])


def test_missing_number_is_a_token_of_its_column() -> None:
    numeric = np.array([[np.nan, 2, np.nan, 0, 5, 6], [1, 2, 3, 4, 5, np.nan]], dtype=np.float32)
    first, second = an_encoder().encode(FeatureBatch(numeric, (("a", "a"), ("", ""))))[0]
    hashes = [feature_hash("numeric", name) for name in NUMERIC_NAMES]
    missing = [feature_hash("missing", name) for name in NUMERIC_NAMES]
    assert first == [missing[0], (hashes[1], 2.0), missing[2], (hashes[3], 0.0), (hashes[4], 5.0), (hashes[5], 6.0)]
    assert second[4:] == [(hashes[4], 5.0), missing[5]]


def test_app_without_categories_or_without_numbers_has_rows_all_the_same() -> None:
    numbers = FeatureBatch(np.ones((3, 6), dtype=np.float32), ())
    assert list(ExampleEncoder(NUMERIC_NAMES, ()).encode(numbers)[1]) == [[], [], []]
    words = FeatureBatch(np.ones((3, 0), dtype=np.float32), (("a",) * 3, ("",) * 3))
    assert list(ExampleEncoder((), CATEGORY_NAMES).encode(words)[0]) == [[], [], []]


def test_full_cache_changes_no_hash(monkeypatch: pytest.MonkeyPatch) -> None:
    features = some_features(200)
    expected = encoded(an_encoder(), features)
    monkeypatch.setattr(example_encoder, "CACHED_VALUES_MAX", 2)
    encoder = an_encoder()
    assert repr(encoded(encoder, features)) == repr(expected)
    assert max(len(known) for known in encoder._tokens) <= 2


def test_rows_of_other_columns_are_refused() -> None:
    features = some_features(2)
    for wrong in (FeatureBatch(features.numeric[:, :5], features.categories), FeatureBatch(features.numeric, ())):
        with pytest.raises(InvariantError, match="TM-9501"):
            an_encoder().encode(wrong)
