"""Examples, commands and a booster of tests that fold a log: examples at even offsets, commands between them.

In: nothing; a fixed seed. Out: columns by position. Invariant: what a booster says is a function of version and row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from tests.builders import a_category, a_field, a_group, a_spec
from tidemill.core.examples import outside
from tidemill.core.records import Command, ExampleColumns, FeatureBatch, TopFeatures
from tidemill.core.roles import INITIAL, OffsetRange
from tidemill.core.snapshot import ModelSnapshot
from tidemill.core.spec import AppSpec, LearnerSpec
from tidemill.errors import ModelRefusedError
from tidemill.models.booster import BoosterOutputs
from tidemill.models.replica import LogPart, NewestSnapshot, no_snapshot
from tidemill.models.serving import Serving

COUNT = 120  # examples, at even offsets: odd ones are markers
GENERATOR = np.random.default_rng(4)
FEATURES = FeatureBatch(
    GENERATOR.normal(size=(COUNT, 2)).astype(np.float32),
    (tuple(GENERATOR.choice(["a", "b", ""], COUNT).tolist()),),
)
IDS = [f"event {row}" for row in range(COUNT)]
LABEL = (FEATURES.numeric[:, 0] + GENERATOR.normal(size=COUNT) > 0).astype(np.float32)


def a_models_spec(snapshot_every: int = 1_000, warm_offsets: int = 40) -> AppSpec:
    spec = a_spec(a_group("event", [], a_field("x", "amount"), a_field("y", "amount"), a_category("c", "shop")))
    learner = LearnerSpec(
        arguments="--loss_function logistic --link logistic -b 12 -l 0.5",
        snapshot_every=snapshot_every,
        warm_offsets=warm_offsets,
    )
    return replace(spec, learner=learner)


def examples(start: int = 0, stop: int = COUNT) -> ExampleColumns:
    rows = slice(start, stop)
    served = np.linspace(0.1, 0.9, COUNT)[rows]
    return ExampleColumns(
        offset=np.arange(COUNT)[rows] * 2,
        features=FeatureBatch(FEATURES.numeric[rows], tuple(column[rows] for column in FEATURES.categories)),
        label=LABEL[rows],
        is_learned=(np.arange(COUNT) % 7 != 3)[rows],
        event_time=np.arange(COUNT)[rows],
        label_time=np.arange(COUNT)[rows] + 5,
        learner=served,
        booster=np.where(np.arange(COUNT) > 50, 0.6, np.nan)[rows],
        base_rate=np.full(COUNT, 0.4)[rows],
        blend=served,
    )


class ABooster:
    """Margins and leaves as a function of the version and the row."""

    def __init__(self, version: str) -> None:
        self.version = version

    def outputs(self, features: FeatureBatch) -> BoosterOutputs:
        margin = (features.numeric[:, 0] * (1 + len(self.version) % 3)).astype(np.float32)
        leaves = np.stack([features.numeric[:, 1] > 0, features.numeric[:, 0] > 1], axis=1).astype(np.int32)
        return BoosterOutputs(margin, 1 / (1 + np.exp(-margin.astype(np.float64))), leaves)

    def top_features(self, features: FeatureBatch, rows: list[int], count: int = 5) -> dict[int, TopFeatures]:
        return {row: TopFeatures(("x",), (float(features.numeric[row, 0]),)) for row in rows}


def command(offset: int, kind: str, version: str = "", expects: str = INITIAL) -> Command:
    return Command(offset, f"c{offset}", kind, expects, version, "a test", 0)


@dataclass
class Log:
    """Examples and commands by offset, of which nothing before `first` is kept; a range may have taught nothing."""

    commands: Sequence[Command] = ()
    untaught: Sequence[OffsetRange] = ()
    first: int = 0
    asked: list[tuple[int, int]] = field(default_factory=list)

    def first_offset(self) -> int:
        return self.first

    def parts(self, start: int, end: int) -> Iterator[LogPart]:
        self.asked.append((start, end))
        for at in range(start, end, 37):
            yield self.part(at, min(at + 37, end))

    def part(self, start: int, end: int) -> LogPart:
        found: ExampleColumns = examples(-(-start // 2), -(-end // 2))
        found = replace(found, is_learned=found.is_learned & outside(found.offset, self.untaught))
        return LogPart(found, [one for one in self.commands if start <= one.offset < end])


def a_serving(
    spec: AppSpec | None = None,
    *,
    lacks: tuple[str, ...] = (),
    log: Log | None = None,
    snapshot: ModelSnapshot | None = None,
    newest_snapshot: NewestSnapshot = no_snapshot,
) -> Serving:
    """`lacks`: versions that cannot be loaded."""

    def load(version: str) -> ABooster:
        if version in lacks:
            raise ModelRefusedError("TM-5011", f"{version} is cut")
        return ABooster(version)

    return Serving(
        spec or a_models_spec(),
        ("x", "y"),
        ("c",),
        feature_digest="f",
        load=load,
        history=log or Log(),
        snapshot=snapshot,
        newest_snapshot=newest_snapshot,
    )
