"""Boosters of one app: trained on its columns and loaded for them.

In: an app and its feature plan. Out: trained and loaded boosters. Invariant: the trainer, the backtest, the monitor's
comparators and the workers name the app's columns in one place.
"""

from __future__ import annotations

from tidemill.core.features import FeaturePlan
from tidemill.core.manifest import Manifest
from tidemill.core.spec import AppSpec
from tidemill.models.booster import Booster
from tidemill.models.booster_training import OnRound, Trained, train_booster
from tidemill.models.training_examples import TrainingRows


def train_for(
    app: AppSpec,
    plan: FeaturePlan,
    rows: TrainingRows,
    *,
    features: tuple[str, ...] | None = None,
    holdout: TrainingRows | None = None,
    parent: str,
    cause: str,
    created: int,
    threads: int,
    on_round: OnRound | None = None,
) -> Trained:
    """See `train_booster`: as the app declares it, on its columns.

    Raises:
        ModelRefusedError: too few examples, or of one class only.
    """
    return train_booster(
        rows,
        app.booster,
        app=app.name,
        feature_digest=plan.digest,
        feature_names=plan.numeric_names,
        category_names=plan.category_names,
        features=features,
        holdout=holdout,
        parent=parent,
        cause=cause,
        created=created,
        threads=threads,
        on_round=on_round,
        monitor=app.monitor,
    )


def load_for(plan: FeaturePlan, model: bytes, manifest: Manifest) -> Booster:
    """A checked booster that reads the plan's columns.

    Raises:
        ModelRefusedError: it is not what its manifest promises, or was made of other features.
    """
    return Booster.load(
        model,
        manifest,
        feature_names=plan.numeric_names,
        category_names=plan.category_names,
        feature_digest=plan.digest,
    )
