"""A world for the pure monitor, day by day: a model that is right, unless a day is told otherwise.

In: what a day is to be like. Out: ticks and the story of their alerts. Invariant: a fixed seed, so a day is the same
in every run.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from builders import a_category, a_group, a_spec

from tidemill.core.drift.reference import Reference, reference_of
from tidemill.core.loop_spec import DAY_MS, MonitorSpec, RetrainSpec, RolloutSpec, TriggerSpec
from tidemill.core.records import Command, ExampleColumns, FeatureBatch
from tidemill.core.roles import INITIAL
from tidemill.core.surveillance import Surveillance
from tidemill.core.ticks import Tick

MONITOR = MonitorSpec(window_ms=3 * DAY_MS, reference_ticks=8, quiet_ms=4 * DAY_MS, cooldown_ms=2 * DAY_MS)
ROLLOUT = RolloutSpec(examples_min=200, examples_max=9_000, canary_examples=900, probation_examples=600)
RETRAIN = RetrainSpec(
    any_of=(TriggerSpec(kind="alert", alert_kind="concept"),), examples_min=500, cooldown_ms=DAY_MS, rollout=ROLLOUT
)
SHOPS = ("a", "b", "c", "d")
NUMERIC, CATEGORIES = ("amount", "age"), ("shop",)
APP = replace(
    a_spec(a_group("shop", ["shop"], a_category("shop", "shop"))),
    monitor=MONITOR,
    retrain=RETRAIN,
)
ROWS = 300  # of a day
WAIT_MS = APP.label.wait_ms


def some_features(random: np.random.Generator, rows: int = ROWS) -> FeatureBatch:
    numeric = random.normal(size=(rows, 2)).astype(np.float32)
    return FeatureBatch(numeric, (tuple(np.array(SHOPS)[random.integers(0, 4, rows)].tolist()),))


def said_of(features: FeatureBatch) -> np.ndarray:
    return 1 / (1 + np.exp(-1.5 * features.numeric[:, 0].astype(np.float64)))


def a_reference(days: int = 40) -> Reference:
    random = np.random.Generator(np.random.PCG64(1))
    features = some_features(random, rows := days * ROWS)
    said = said_of(features)
    codes = np.array([SHOPS.index(shop) for shop in features.categories[0]])[:, None]
    return reference_of(
        features.numeric,
        codes,
        (random.random(rows) < said).astype(np.float32),
        said,
        np.repeat(np.arange(days) * DAY_MS, ROWS),
        numeric_names=NUMERIC,
        category_names=CATEGORIES,
        vocabularies=[SHOPS],
        spec=MONITOR,
    )


REFERENCE = a_reference()


class Watch:
    """A world in which the model is right, unless a day is told otherwise."""

    def __init__(self, app=APP, champion: str = "v1", **given) -> None:
        self.random = np.random.Generator(np.random.PCG64(5))
        self.of = Surveillance(app, NUMERIC, CATEGORIES, reference_of={"v1": REFERENCE}.get, **given)
        self.offset, self.champion, self.now = 0, INITIAL, 0
        self.ticks: list[Tick] = []
        if champion != INITIAL:
            self.command("prepare", champion)
            self.command("promote", champion)
            self.champion = champion

    def command(self, kind: str, version: str, cause: str = "test") -> None:
        command = Command(self.offset, f"c{self.offset}", kind, self.champion, version, cause, 0)
        self.offset += 1
        self.of.fold_examples(an_example_batch(0), [command], self.offset)

    def day(
        self,
        features: FeatureBatch | None = None,
        *,
        truth=None,
        is_degraded=False,
        dead_letters: int = 0,
        events: int = ROWS,
        label=None,
        **columns,
    ) -> Tick:
        """One tick with examples of all its predictions. truth: probability of a positive; columns: of the examples."""
        features = some_features(self.random, events) if features is None else features
        said = said_of(features)
        rows = len(features)
        if label is None:
            label = (self.random.random(rows) < (said if truth is None else truth(said, features))).astype(np.float32)
        times = self.now + np.linspace(0, DAY_MS - WAIT_MS, rows).astype(np.int64)
        self.of.fold_predictions(times, columns.get("blend", said), np.full(rows, is_degraded), features)
        examples = ExampleColumns(
            **{
                "offset": self.offset + np.arange(rows),
                "features": features,
                "label": label,
                "is_learned": np.ones(rows, dtype=np.bool_),
                "event_time": times,
                "label_time": times + 1_000,
                "learner": said,
                "booster": said,
                "base_rate": np.full(rows, 0.5),
                "blend": said,
                "model_version": (self.champion,) * rows,
                **{name: value(said) if callable(value) else value for name, value in columns.items()},
            }
        )
        self.offset += rows
        self.of.fold_examples(examples, [], self.offset)
        self.of.fold_records({"events": rows, "outcomes": rows, "readings": 10}, dead_letters)
        return self.close()

    def close(self) -> Tick:
        self.now += DAY_MS
        self.ticks.append(self.of.close(self.now))
        return self.ticks[-1]

    def days(self, count: int, **given) -> list[Tick]:
        return [self.day(**given) for _ in range(count)]

    def story(self, key: str = "") -> list[tuple[int, str, str]]:
        """(day, key, event) of all alert records."""
        return [
            (record.time // DAY_MS, record.key, record.event)
            for tick in self.ticks
            for record in tick.alerts
            if record.key.startswith(key)
        ]

    def events(self, key: str) -> list[str]:
        return [event for _, _, event in self.story(key)]


def an_example_batch(rows: int, **columns) -> ExampleColumns:
    """Examples of day 0 with the probability one half, each labelled at once."""
    nothing = np.full(rows, 0.5)
    numeric = np.zeros((rows, 2), dtype=np.float32)
    return ExampleColumns(
        **{
            "offset": np.arange(rows),
            "features": FeatureBatch(numeric, (("a",) * rows,)),
            "label": np.zeros(rows, dtype=np.float32),
            "is_learned": np.ones(rows, dtype=np.bool_),
            "event_time": np.arange(rows),
            "label_time": np.arange(rows) + 1,
            "learner": nothing,
            "booster": nothing,
            "base_rate": nothing,
            "blend": nothing,
            **columns,
        }
    )
