"""An app in memory: declaration, store and log, and workers that a test drives step by step.

In: records as a test lists them. Out: what store and log hold afterwards. Invariant: no clock, thread or server; only
Kafka and the model are stand-ins, and the store is `MemoryStore`; everything else is the product itself.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tests.builders import a_category, a_count, a_field, a_group, a_latest, a_mean, a_spec
from tests.memory_kafka import Inputs, MemoryLog
from tidemill.apps.claims import Claims
from tidemill.apps.cycle import Cycle, CycleReport
from tidemill.apps.publishing import Publishing
from tidemill.apps.roll_forward import RollForward
from tidemill.core.features import FeaturePlan
from tidemill.core.pipeline import Pipeline, Turn
from tidemill.core.records import Batch, ExampleColumns, FeatureBatch, Outcome, Partition, Scores
from tidemill.core.spec import AppSpec
from tidemill.io.codec import WireCodec
from tidemill.io.memory import MemoryBackend, MemoryStore
from tidemill.io.source import SourceRecord
from tidemill.io.wire import InputDecoder

HOUR_MS = 3_600_000
OUTPUTS = ("shop.predictions.v1", "shop.examples.v1", "shop.commits.v1")


def a_shop(**label: int) -> AppSpec:
    """The builders' app with one feature of each kind; `label` changes the label's windows."""
    by_shop = (
        a_count("readings_12h", "readings", 12 * HOUR_MS),
        a_mean("late_12h", "outcomes", "label", 12 * HOUR_MS, prior=0.5, prior_weight=1.0),
        a_latest("reading", "readings", "reading"),
    )
    spec = a_spec(
        a_group("event", [], a_field("amount", "amount"), a_category("shop", "shop")),
        a_group("by_shop", ["shop"], *by_shop),
    )
    return replace(spec, label=replace(spec.label, **label))


class ConstantScorer:
    """Answers the same for every event; `n` says how many examples it pretends to have folded."""

    def __init__(self, probability: float = 0.25, n: int = 0) -> None:
        self.probability = probability
        self.n = n

    def score(self, features: FeatureBatch, ids: Sequence[str]) -> Scores:
        same = np.full(len(features), self.probability)
        return Scores(learner=same, base_rate=same / 2, booster=None, blend=same, n=self.n, model_version="constant")

    def fold(self, examples: ExampleColumns, offset_next: int) -> None:
        self.n = offset_next


class App:
    """What workers of one app share: declaration, inputs, store and log."""

    def __init__(self, spec: AppSpec | None = None, partitions: int = 1, machinery: Machinery | None = None) -> None:
        self.machinery = machinery or Machinery(spec or a_shop())
        self.spec = self.machinery.spec
        self.inputs = Inputs(self.spec, partitions)
        self.backend = MemoryBackend()
        self.log = MemoryLog(inputs=self.inputs)

    @property
    def partitions(self) -> frozenset[Partition]:
        return frozenset(self.inputs.lanes)

    def digest(self) -> str:
        """Of the feature state."""
        return MemoryStore(self.backend).feature_digest()


class Machinery:
    """The stateless objects of an app; made once for many runs, for they take longer than a small run does."""

    def __init__(self, spec: AppSpec) -> None:
        self.spec = spec
        self.decoder = InputDecoder(spec)
        self.pipeline = Pipeline(spec, FeaturePlan(spec), WireCodec(spec, self.decoder))


class Worker:
    """One worker: claims, then runs the batches that the test cuts.

    Args:
        store: wraps the worker's store, to interfere with its calls.
        failpoint: hears the names that the cycle passes.
    """

    def __init__(
        self,
        app: App,
        *,
        slot: str = "0",
        scorer: ConstantScorer | None = None,
        store: Callable[[MemoryStore], Any] = lambda store: store,
        fold: Callable[[], None] = lambda: None,
        failpoint: Callable[[str], None] = lambda name: None,
        is_current: Callable[[], bool] = lambda: True,
    ) -> None:
        self.app = app
        self.slot = slot
        self.scorer = scorer or ConstantScorer()
        self.store = store(MemoryStore(app.backend, owner_slot=slot))
        self.positions: dict[Partition, int] = {}
        self.said: list[str] = []
        self._number = 0
        settings = {"log": app.log}
        pipeline = app.machinery.pipeline
        self.publishing = Publishing(
            client_settings=settings,
            transactional_id=f"worker.{slot}",
            examples_topic=pipeline.examples_topic,
            incarnation=lambda: self.store.incarnation or "",
            on_example=lambda offset: None,
        )
        self.roll_forward = RollForward(
            client_settings=settings,
            pipeline=pipeline,
            decoder=app.machinery.decoder,
            store=self.store,
            report=self.said.append,
        )
        self.claims = Claims(
            client_settings=settings,
            group="workers",
            commits_topic=pipeline.commits_topic,
            partitions_of_app=lambda: sorted(app.partitions),
            store=self.store,
            publishing=self.publishing,
            roll_forward=self.roll_forward,
            report=self.said.append,
        )
        self.cycle = Cycle(
            pipeline=pipeline,
            store=self.store,
            scorer=self.scorer,
            publisher=self.publishing,
            fold=fold,
            is_current=is_current,
            failpoint=failpoint,
        )

    def claim(self, *partitions: Partition) -> Worker:
        """All partitions unless some are named."""
        self.positions = self.claims.take(frozenset(partitions) or self.app.partitions, None)
        return self

    def left(self) -> list[SourceRecord]:
        """The records still to come, in merged order."""
        return self.app.inputs.merged(self.positions)

    def batch(self, records: Sequence[SourceRecord]) -> Batch:
        return self.app.machinery.decoder.decode(records, self.app.inputs.spans(records, self.positions))

    def turn(self, records: Sequence[SourceRecord] = (), group_watermark: int | None = None) -> Turn:
        batch = self.batch(records)
        watermark = self.group_watermark() if group_watermark is None else group_watermark
        return Turn(batch, watermark, frozenset(self.positions), f"worker.{self.slot}", self._number)

    def run(self, records: Sequence[SourceRecord] = (), group_watermark: int | None = None) -> list[CycleReport]:
        """One turn through the cycle; no records = settle what is due."""
        reports = self.cycle.run(self.turn(records, group_watermark))
        for report in reports:
            self._number += 1
            self.positions |= {place: span.next for place, span in report.outcome.commit.spans.items()}
        return reports

    def run_all(self, cuts: Sequence[int] = ()) -> Worker:
        """Everything that is left, cut before these places; then settle."""
        records = self.left()
        places = sorted({0, *(cut for cut in cuts if cut < len(records)), len(records)})
        for start, stop in itertools.pairwise(places):
            self.run(records[start:stop])
        self.run()
        return self

    def group_watermark(self) -> int:
        marks = self.store.marks()
        if len(marks) < len(self.app.partitions):
            return -1
        return min(mark.watermark for mark in marks.values())


def sum_of(reports: Sequence[CycleReport]) -> Counter[Outcome]:
    """The outcomes of all partitions together."""
    sums: Counter[Outcome] = Counter()
    for report in reports:
        for counter in report.outcome.outcomes.values():
            sums.update(counter)
    return sums


def row_states(backend: MemoryBackend) -> dict[str, bytes]:
    """Every row without its revision: replays count revisions anew."""
    return {id_: row[8:] for id_, row in backend.rows.items()}
