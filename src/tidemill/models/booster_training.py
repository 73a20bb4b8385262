"""Train a booster on examples, split by time.

In: examples, how to train. Out: the model's bytes with its manifest. Invariant: a function of its arguments: the same
examples give the same bytes; rounds and metrics come of the newest examples, from trees that did not see them.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import xgboost

from tidemill.core.drift.reference import reference_of
from tidemill.core.loop_spec import MonitorSpec
from tidemill.core.manifest import Manifest, model_digest
from tidemill.core.metrics import auc, log_loss
from tidemill.core.records import Float32s, Float64s
from tidemill.core.spec import BoosterSpec
from tidemill.errors import ConfigError, ModelRefusedError
from tidemill.models.booster import ENGINE, NUMERIC_MAX
from tidemill.models.training_examples import TrainingRows

EXAMPLES_MIN = 200  # below it the newest tenth is too few to stop by
SEED = 1
CODE_VERSION = "tidemill 0.1.0"  # pyproject.toml; a test compares them

OnRound = Callable[[int, float], None]


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """What the trees of the older examples said of examples that they had not seen.

    is_newest: which of the rows were held back, (rows,). newest, holdout: probabilities, in the order of those rows.
    base_rate: the share of positives among the older ones.
    """

    is_newest: npt.NDArray[np.bool_]
    newest: Float64s
    holdout: Float64s
    base_rate: float


@dataclass(frozen=True, slots=True)
class Trained:
    """model: XGBoost's UBJSON."""

    model: bytes
    manifest: Manifest
    judged: Judged = field(compare=False, repr=False)


def train_booster(
    rows: TrainingRows,
    spec: BoosterSpec,
    *,
    app: str,
    feature_digest: str,
    feature_names: tuple[str, ...],
    category_names: tuple[str, ...],
    features: tuple[str, ...] | None = None,
    holdout: TrainingRows | None = None,
    parent: str,
    cause: str,
    created: int,
    threads: int,
    on_round: OnRound | None = None,
    monitor: MonitorSpec | None = None,
) -> Trained:
    """Find how many trees the newest examples want, then grow as many on all.

    The older examples are trained on until the loss on the newest, by label time, no longer falls: that gives the
    number of trees and the manifest's metrics. The model is then trained anew with the newest among the rest: under
    drift they tell most (three months of the example, each after a training: log loss .4805 without, .4783 with).

    Args:
        rows: at least EXAMPLES_MIN, of both classes.
        features: the columns to use; None = all.
        holdout: of the same log as `rows` and none of them: only judged on.
        created: ms, as the caller tells time.
        threads: changes nothing but the time. More than there are idle cores cost a multiple of it: they wait spinning.
        on_round: hears the round and its log loss on the newest examples.
        monitor: the ticks and the window that the manifest's reference is made for; None = the default's.
    Raises:
        ConfigError: TM-1056, `features` names a column that there is not, or none at all.
        ModelRefusedError: TM-5030 too few examples; TM-5031 one class only.
    """
    newest_count = max(1, round(len(rows) * spec.validation_share))
    is_newest = np.zeros(len(rows), dtype=np.bool_)
    is_newest[np.argsort(rows.label_time, kind="stable")[len(rows) - newest_count :]] = True
    _refuse_unfit(rows, ~is_newest)
    columns = _Columns.of(rows, spec, feature_names, category_names, features)
    parameters = _parameters(spec, threads)
    older = columns.binned(rows, ~is_newest, spec.max_bin, threads, reference=None)
    newest = columns.binned(rows, is_newest, spec.max_bin, threads, reference=older)
    judged = xgboost.train(
        parameters,
        older,
        num_boost_round=spec.rounds,
        evals=[(newest, "newest")],
        early_stopping_rounds=spec.early_stopping_rounds,
        verbose_eval=False,
        callbacks=[] if on_round is None else [_Rounds(on_round)],
    )
    trees = judged.best_iteration + 1
    probability = judged.predict(newest, iteration_range=(0, trees)).astype(np.float64)
    held_out = np.empty(0)
    if holdout is not None and len(holdout):
        are_all = np.ones(len(holdout), dtype=np.bool_)
        unseen = columns.binned(holdout, are_all, spec.max_bin, threads, reference=older)
        held_out = judged.predict(unseen, iteration_range=(0, trees)).astype(np.float64)
        del unseen
    seen_probability = np.full(len(rows), np.nan)
    seen_probability[~is_newest] = judged.predict(older, iteration_range=(0, trees))
    del older, newest  # before the next copy is made
    everything = columns.binned(rows, np.ones(len(rows), dtype=np.bool_), spec.max_bin, threads, reference=None)
    model = bytes(xgboost.train(parameters, everything, num_boost_round=trees, verbose_eval=False).save_raw("ubj"))
    out_of_sample = np.full(len(rows), np.nan)
    out_of_sample[is_newest] = probability
    reference = reference_of(
        rows.numeric,
        rows.codes,
        rows.label,
        out_of_sample,
        rows.label_time,
        numeric_names=feature_names,
        category_names=category_names,
        vocabularies=rows.vocabularies,
        seen_probability=seen_probability,
        spec=monitor or MonitorSpec(),
    )
    label, rate = rows.label[is_newest], float(rows.label[~is_newest].mean())
    manifest = Manifest(
        app=app,
        parent=parent,
        feature_digest=feature_digest,
        features=columns.names,
        category_features=columns.category_names,
        vocabularies=columns.vocabularies,
        leaf_trees=min(spec.leaf_trees, trees),
        trees=trees,
        parameters={name: value for name, value in asdict(spec).items()},
        engine=ENGINE,
        platform=f"{platform.machine()} {platform.libc_ver()[0]} {platform.libc_ver()[1]}",
        code_version=CODE_VERSION,
        offset_start=int(rows.offset.min()),
        offset_next=int(rows.offset.max()) + 1,
        examples=len(rows),
        examples_digest=rows.digest(),
        time_first=int(rows.label_time.min()),
        time_last=int(rows.label_time.max()),
        metrics={
            "n": float(len(label)),
            "log_loss": log_loss(probability, label),
            "auc": _finite(auc(probability, label)),
            "base_rate": float(label.mean()),
            "constant_log_loss": log_loss(np.full(len(label), rate), label),
        },
        cause=cause,
        created=created,
        model_digest=model_digest(model),
        reference=reference.to_json(),
    )
    return Trained(model, manifest, Judged(is_newest, probability, held_out, rate))


@dataclass(frozen=True, slots=True)
class _Columns:
    """Which columns of the app the booster reads, and how it writes their categories."""

    names: tuple[str, ...]
    category_names: tuple[str, ...]
    vocabularies: tuple[tuple[str, ...], ...]
    numeric: list[int]
    categories: list[int]
    code_maps: tuple[Float32s, ...]  # from the code of the examples to that of the model, NaN = not kept

    @staticmethod
    def of(
        rows: TrainingRows,
        spec: BoosterSpec,
        feature_names: tuple[str, ...],
        category_names: tuple[str, ...],
        features: tuple[str, ...] | None,
    ) -> _Columns:
        known = {*feature_names, *category_names}
        used = known if features is None else set(features)
        if not used or not used <= known:
            raise ConfigError(
                "TM-1056",
                f"a booster cannot be trained on columns {sorted(used - known)}: name some of "
                f"{', '.join(sorted(known))}",
            )
        numeric = [at for at, name in enumerate(feature_names) if name in used]
        categories = [at for at, name in enumerate(category_names) if name in used]
        vocabularies, maps = [], []
        for at in categories:
            counts = np.bincount(rows.codes[:, at], minlength=len(rows.vocabularies[at]))
            values = rows.vocabularies[at]
            # The most frequent ones, then by text, so that codes are a function of these rows. Empty is missing.
            kept = [code for code in np.flatnonzero(counts).tolist() if values[code]]
            kept = sorted(kept, key=lambda code: (-counts[code], values[code]))[: spec.category_values_max]
            code_map = np.full(len(counts), np.nan, dtype=np.float32)
            code_map[kept] = np.arange(len(kept))
            vocabularies.append(tuple(values[code] for code in kept))
            maps.append(code_map)
        chosen = tuple(category_names[at] for at in categories)
        names = (*(feature_names[at] for at in numeric), *chosen)
        return _Columns(names, chosen, tuple(vocabularies), numeric, categories, tuple(maps))

    def binned(
        self,
        rows: TrainingRows,
        is_chosen: npt.NDArray[np.bool_],
        max_bin: int,
        threads: int,
        *,
        reference: xgboost.DMatrix | None,
    ) -> xgboost.QuantileDMatrix:
        """Chosen rows as XGBoost trains on them; `reference` lends its thresholds."""
        numeric = len(self.numeric)
        matrix = np.empty((np.count_nonzero(is_chosen), len(self.names)), dtype=np.float32)
        for at, column in enumerate(self.numeric):  # by column: no second copy of the whole
            matrix[:, at] = rows.numeric[is_chosen, column]
        np.clip(matrix[:, :numeric], -NUMERIC_MAX, NUMERIC_MAX, out=matrix[:, :numeric])
        for at, (column, code_map) in enumerate(zip(self.categories, self.code_maps, strict=True), start=numeric):
            matrix[:, at] = code_map[rows.codes[is_chosen, column]]
        return xgboost.QuantileDMatrix(
            matrix,
            rows.label[is_chosen],
            weight=None if rows.weight is None else rows.weight[is_chosen],
            feature_types=["q"] * numeric + ["c"] * len(self.categories),
            enable_categorical=True,
            max_bin=max_bin,
            nthread=threads,
            ref=reference,
        )


class _Rounds(xgboost.callback.TrainingCallback):  # type: ignore[misc, unused-ignore]
    def __init__(self, on_round: OnRound) -> None:
        super().__init__()
        self._on_round = on_round

    def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
        self._on_round(epoch + 1, float(evals_log["newest"]["logloss"][-1]))
        return False


def _parameters(spec: BoosterSpec, threads: int) -> dict[str, Any]:
    return {
        "objective": "binary:logistic",
        "eval_metric": "logloss",
        "tree_method": "hist",
        "max_depth": spec.max_depth,
        "eta": spec.learning_rate,
        "subsample": spec.subsample,
        "colsample_bytree": spec.column_share,
        "min_child_weight": spec.min_child_weight,
        "max_bin": spec.max_bin,
        "seed": SEED,
        "nthread": threads,
    }


def _refuse_unfit(rows: TrainingRows, is_older: npt.NDArray[np.bool_]) -> None:
    if len(rows) < EXAMPLES_MIN:
        raise ModelRefusedError(
            "TM-5030",
            f"a booster needs at least {EXAMPLES_MIN} labelled examples, the range holds {len(rows)}; wait for more "
            "labels or widen the range",
        )
    older = rows.label[is_older]
    if older.min() == older.max():
        raise ModelRefusedError(
            "TM-5031",
            f"all {len(older)} examples before the newest {len(rows) - len(older)} are "
            f"{'positive' if older[0] else 'negative'}: there is nothing to tell apart; widen the range",
        )


def _finite(value: float) -> float:
    """JSON knows no NaN: an AUC without both classes is that of a coin."""
    return value if value == value else 0.5
