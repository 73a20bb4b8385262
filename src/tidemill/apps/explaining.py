"""Why a prediction was what it was: what each column added to the booster's margin, exactly.

In: an app's settings, an event's id. Out: the published prediction with exact Shapley values. Invariant: features are
those served, the model is the one that scored; nothing is computed from anything newer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from tidemill.apps.clients import clients_of
from tidemill.apps.models import booster_loader
from tidemill.config import Settings
from tidemill.core.features import FeaturePlan
from tidemill.core.records import FeatureBatch
from tidemill.core.topic_names import predictions_topic
from tidemill.errors import ConfigError, ModelRefusedError
from tidemill.io.kafka_reader import read_topic
from tidemill.io.wire import decode


@dataclass(frozen=True, slots=True)
class Explanation:
    """prediction: as published. contributions: log odds by column, the largest first; with the booster's bias they add
    up to its margin."""

    prediction: dict[str, Any]
    contributions: tuple[tuple[str, float | str, float], ...]  # (column, its value as served, what it added)


def explain(settings: Settings, event_id: str) -> Explanation:
    """The last prediction of an id; the predictions topic is read from its start (a second per million).

    Raises:
        ConfigError: TM-1065, no prediction has this id.
        ModelRefusedError: TM-5023, no booster scored it; or the booster is not at hand.
    """
    prediction = _published(settings, event_id)
    plan = FeaturePlan(settings.app)
    if prediction["booster"] is None:
        raise ModelRefusedError(
            "TM-5023",
            f"prediction {event_id} was scored by version {prediction['model_version']}, which has no booster",
        )
    booster = booster_loader(settings, plan)(prediction["model_version"])
    features = FeatureBatch(
        np.array([prediction["numeric"]], dtype=np.float32), tuple((value,) for value in prediction["categories"])
    )
    values = dict(zip(plan.numeric_names, prediction["numeric"], strict=True))
    values |= dict(zip(plan.category_names, prediction["categories"], strict=True))
    added = booster.exact_contributions(features, [0])[0].tolist()
    rows = [(name, values[name], one) for name, one in zip(booster.column_names, added, strict=True)]
    return Explanation(prediction, tuple(sorted(rows, key=lambda row: -abs(row[2]))))


def _published(settings: Settings, event_id: str) -> dict[str, Any]:
    clients = clients_of(settings)
    topic, key = predictions_topic(settings.app.name), event_id.encode()
    found: list[bytes] = []
    for messages in read_topic(clients, topic):
        found += [message.value() for message in messages if message.key() == key]
    if not found:
        raise ConfigError("TM-1065", f"{topic} holds no prediction with id {event_id!r}; is it the event's id?")
    rows: list[dict[str, Any]] = decode("prediction.v1", found[-1:]).to_pylist()
    return rows[0]
