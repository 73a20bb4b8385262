"""The booster: a frozen XGBoost model that scores batches.

In: the model's bytes with its manifest; features as served. Out: margins, probabilities, leaves, contributions.
Invariant: outputs are a function of the model and the row, bit by bit the same in any batch; no byte reaches XGBoost
before its digest is checked.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xgboost

from tidemill.core.manifest import Manifest, model_digest
from tidemill.core.records import FeatureBatch, Float32s, Float64s, TopFeatures
from tidemill.errors import ModelRefusedError

ENGINE = f"xgboost {xgboost.__version__}"
TOP_FEATURES = 5  # named in a prediction: what a person reads
NUMERIC_MAX = 1e30  # clips infinity, which XGBoost refuses with the whole batch; a threshold beyond it is still finite


@dataclass(frozen=True, slots=True)
class BoosterOutputs:
    """Of one batch. margin: log odds, (rows,). probability: 1 / (1 + exp(-margin)), (rows,). leaves: the index of the
    leaf in each of the first trees, (rows, leaf_trees)."""

    margin: Float32s
    probability: Float64s
    leaves: npt.NDArray[np.int32]


class Booster:
    """One loaded version; `load` makes it. One thread owns it."""

    def __init__(self, engine: xgboost.Booster, manifest: Manifest, columns: _ColumnCodes) -> None:
        self._engine = engine
        self._columns = columns
        self.manifest = manifest
        self.version = manifest.version
        self.column_names = manifest.features

    @classmethod
    def load(
        cls,
        model: bytes,
        manifest: Manifest,
        *,
        feature_names: tuple[str, ...],
        category_names: tuple[str, ...],
        feature_digest: str,
    ) -> Booster:
        """Check, then parse.

        Args:
            feature_names, category_names, feature_digest: the app's columns, as its `FeaturePlan` has them.
        Raises:
            ModelRefusedError: TM-5011 the bytes are not those of the manifest; TM-5012 made of other features; TM-5013
                of an XGBoost that ours need not understand; TM-5017 the bytes are those that the manifest promises, but
                no model, or not of its columns and trees.
        """
        name = f"model {manifest.version}"
        if model_digest(model) != manifest.model_digest:
            raise ModelRefusedError(
                "TM-5011", f"{name}: its {len(model)} bytes are not those of its manifest; fetch or train it again"
            )
        _refuse_other_features(name, manifest, feature_names, category_names, feature_digest)
        if not _is_readable(manifest.engine):
            raise ModelRefusedError(
                "TM-5013",
                f"{name}: made by {manifest.engine}, here is {ENGINE}; train it again, or install one not older "
                "and of the same major version",
            )
        engine = xgboost.Booster()
        try:
            engine.load_model(bytearray(model))
            found = (engine.num_features(), engine.num_boosted_rounds())
        except xgboost.core.XGBoostError as error:
            reason = str(error).partition("\n")[0]  # a native stack trace follows
            raise ModelRefusedError("TM-5017", f"{name}: XGBoost cannot read it: {reason}; train it again") from error
        if found != (len(manifest.features), manifest.trees):
            raise ModelRefusedError(
                "TM-5017",
                f"{name}: it has (columns, trees) {found}, its manifest {(len(manifest.features), manifest.trees)}; "
                "train it again",
            )
        engine.set_param({"nthread": 1})  # a worker has threads of its own, and one is fastest for small batches
        return cls(engine, manifest, _ColumnCodes(manifest, feature_names, category_names))

    def outputs(self, features: FeatureBatch) -> BoosterOutputs:
        """Margin, probability and leaves of every row."""
        matrix = self._matrix(features)
        margin = self._margin(matrix, len(features))
        return BoosterOutputs(margin, _probability(margin), self._leaves(matrix, len(features)))

    def probability(self, features: FeatureBatch) -> Float64s:
        """The same as that of `outputs`, without the leaves."""
        return _probability(self._margin(self._matrix(features), len(features)))

    def contributions(self, features: FeatureBatch, rows: Sequence[int]) -> Float32s:
        """What each column adds to the margin, approximate (Saabas): (len(rows), columns), without the bias."""
        return self._contributions(features, rows, is_approximate=True)

    def exact_contributions(self, features: FeatureBatch, rows: Sequence[int]) -> Float32s:
        """The same as exact Shapley values of the trees, at about thirty times the cost."""
        return self._contributions(features, rows, is_approximate=False)

    def top_features(
        self, features: FeatureBatch, rows: Sequence[int], count: int = TOP_FEATURES
    ) -> dict[int, TopFeatures]:
        """The columns with the largest approximate contributions, by row; the largest first."""
        found = self.contributions(features, rows)
        order = np.argsort(-np.abs(found), axis=1, kind="stable")[:, :count]
        return {
            row: TopFeatures(tuple(self.column_names[at] for at in best), tuple(each[best].tolist()))
            for row, each, best in zip(rows, found, order, strict=True)
        }

    def _matrix(self, features: FeatureBatch) -> xgboost.DMatrix:
        return xgboost.DMatrix(
            self._columns.matrix(features), feature_types=self._columns.types, enable_categorical=True, nthread=1
        )

    def _margin(self, matrix: xgboost.DMatrix, rows: int) -> Float32s:
        if not rows:
            return np.empty(0, dtype=np.float32)
        return np.asarray(self._engine.predict(matrix, output_margin=True), dtype=np.float32)

    def _leaves(self, matrix: xgboost.DMatrix, rows: int) -> npt.NDArray[np.int32]:
        trees = self.manifest.leaf_trees
        if not rows or not trees:
            return np.empty((rows, trees), dtype=np.int32)
        leaves = self._engine.predict(matrix, pred_leaf=True, iteration_range=(0, trees))
        return np.asarray(leaves, dtype=np.int32).reshape(rows, trees)

    def _contributions(self, features: FeatureBatch, rows: Sequence[int], *, is_approximate: bool) -> Float32s:
        if not len(rows):
            return np.empty((0, len(self.column_names)), dtype=np.float32)
        chosen = FeatureBatch(
            features.numeric[list(rows)], tuple(tuple(column[row] for row in rows) for column in features.categories)
        )
        found = self._engine.predict(self._matrix(chosen), pred_contribs=True, approx_contribs=is_approximate)
        return np.asarray(found[:, :-1], dtype=np.float32)  # the last one is the bias


class _ColumnCodes:
    """The app's columns as the booster's matrix: numbers, then categories as codes of a vocabulary; NaN = unknown."""

    def __init__(self, manifest: Manifest, feature_names: tuple[str, ...], category_names: tuple[str, ...]) -> None:
        numeric = [feature_names.index(name) for name in _numeric_of(manifest)]
        self._numeric: list[int] | slice = slice(None) if numeric == [*range(len(feature_names))] else numeric
        self._categories = [category_names.index(name) for name in manifest.category_features]
        self._codes = [
            _Codes((value, float(code)) for code, value in enumerate(values)) for values in manifest.vocabularies
        ]
        self.types = ["q"] * len(numeric) + ["c"] * len(self._categories)

    def matrix(self, features: FeatureBatch) -> Float32s:
        """(rows, columns) float32."""
        numeric = len(self.types) - len(self._categories)
        matrix = np.empty((len(features), len(self.types)), dtype=np.float32)
        np.clip(features.numeric[:, self._numeric], -NUMERIC_MAX, NUMERIC_MAX, out=matrix[:, :numeric])  # NaN stays
        for at, (column, codes) in enumerate(zip(self._categories, self._codes, strict=True), start=numeric):
            matrix[:, at] = list(map(codes.__getitem__, features.categories[column]))
        return matrix


class _Codes(dict[str, float]):
    """Value to code; an unknown one is not remembered."""

    def __missing__(self, value: str) -> float:
        return float("nan")


def _numeric_of(manifest: Manifest) -> tuple[str, ...]:
    return manifest.features[: len(manifest.features) - len(manifest.category_features)]


def _refuse_other_features(
    name: str,
    manifest: Manifest,
    feature_names: tuple[str, ...],
    category_names: tuple[str, ...],
    feature_digest: str,
) -> None:
    if manifest.feature_digest != feature_digest:
        raise ModelRefusedError(
            "TM-5012",
            f"{name}: made of features {manifest.feature_digest}, declared are {feature_digest}; train it again",
        )
    others = {*_numeric_of(manifest)}.difference(feature_names) | {*manifest.category_features}.difference(
        category_names
    )
    if others:
        raise ModelRefusedError(
            "TM-5012", f"{name}: it reads columns that are not declared: {', '.join(sorted(others))}; train it again"
        )


def _is_readable(engine: str) -> bool:
    """A newer XGBoost reads the models of an older one; a major version may score them otherwise."""
    theirs, ours = _numbers_of(engine), _numbers_of(ENGINE)
    return theirs is not None and ours is not None and theirs[0] == ours[0] and theirs <= ours


def _numbers_of(engine: str) -> tuple[int, ...] | None:
    found = re.fullmatch(r"xgboost (\d+)\.(\d+)\.(\d+).*", engine)
    return None if found is None else tuple(int(number) for number in found.groups())


def _probability(margin: Float32s) -> Float64s:
    """In float64; both are functions of the number alone, wherever it stands in the array."""
    return np.asarray(1 / (1 + np.exp(-margin.astype(np.float64))), dtype=np.float64)
