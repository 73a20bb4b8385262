"""An examples log of the shop that no worker had to write, and ticks that no monitor had to make.

In: a count, a seed. Out: examples as columns and as records; ticks and triggers. Invariant: the amount and the product
decide, so a booster has something to learn; labels come an hour after their events, which are a minute apart.
"""

from __future__ import annotations

import numpy as np

from tidemill.core.alerts import Alert
from tidemill.core.features import FeaturePlan
from tidemill.core.records import ExampleColumns, FeatureBatch
from tidemill.core.roles import INITIAL
from tidemill.core.ticks import Tick
from tidemill.io.wire import Encoder

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS
PRODUCTS = ("p0", "p1", "p2", "p3")


def shop_examples(plan: FeaturePlan, count: int, *, seed: int = 1, first_offset: int = 0) -> ExampleColumns:
    """Consecutive offsets."""
    source = np.random.Generator(np.random.PCG64(seed))
    numeric = source.normal(size=(count, len(plan.numeric_names))).astype(np.float32)
    products = source.choice(PRODUCTS, count)
    odds = 2 * numeric[:, 0] + 1.5 * (products == "p1") - 0.5
    offset = first_offset + np.arange(count)
    probability = np.full(count, 0.4)
    return ExampleColumns(
        offset=offset,
        features=FeatureBatch(numeric, (tuple(products.tolist()),)),
        label=(source.random(count) < 1 / (1 + np.exp(-odds))).astype(np.float32),
        is_learned=np.ones(count, dtype=np.bool_),
        event_time=offset * MINUTE_MS,
        label_time=offset * MINUTE_MS + HOUR_MS,
        learner=probability,
        booster=np.full(count, np.nan),
        base_rate=probability,
        blend=probability,
    )


def example_records(plan: FeaturePlan, examples: ExampleColumns) -> list[bytes]:
    """The same as records of the examples log."""
    count = len(examples)
    return Encoder("example.v1").encode(
        {
            "kind": ["example"] * count,
            "id": [str(offset) for offset in examples.offset.tolist()],
            "label": examples.label.astype(np.int32),
            "event_time": examples.event_time,
            "label_time": examples.label_time,
            "is_learned": [True] * count,
            "blend": examples.blend,
            "learner": examples.learner,
            "booster": [None] * count,
            "base_rate": examples.base_rate,
            "n": [0] * count,
            "model_version": [INITIAL] * count,
            "other": [None] * count,
            "other_version": [""] * count,
            "feature_digest": [plan.digest] * count,
            "numeric": examples.features.numeric,
            "categories": [[product] for product in examples.features.categories[0]],
            "flags": [[]] * count,
        }
    )


def a_trigger(time: int, subject: str = "schedule") -> Alert:
    return Alert(
        id=f"trigger/{subject}@{time}", key=f"trigger/{subject}", kind="trigger", event="opened", severity="info",
        time=time, opened=time, summary="A training is due.", action="", runbook="", champion=INITIAL,
        window_start=time - DAY_MS, window_end=time,
    )  # fmt: skip


def a_tick(time: int, *, examples_total: int, alerts: tuple[Alert, ...] = (), **more: object) -> Tick:
    """`more`: other fields than those of a quiet day without a booster."""
    given = {
        "offset_next": examples_total, "champion": INITIAL, "challenger": "", "events": 0, "examples": 0,
        "log_loss": None, "excess": None, "e_value": 1.0, "threshold": 365.0, "adwin": 0, "page_hinkley": 0, **more,
    }  # fmt: skip
    return Tick(time=time, examples_total=examples_total, alerts=alerts, **given)  # type: ignore[arg-type]
