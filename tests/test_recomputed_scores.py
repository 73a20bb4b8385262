"""D3 can turn red: scores that a resumed learner published, recomputed by a fresh fold of the log."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pylibvw
import pytest

from tests.campaign.judging import Replay, predictions_of, replay
from tidemill.core.records import ExampleColumns, FeatureBatch
from tidemill.core.snapshot import LearnerSnapshot
from tidemill.core.spec import LearnerSpec
from tidemill.models import learner as learner_module
from tidemill.models.learner import Learner

EXAMPLES, KILLED_AT, BATCH = 600, 300, 50
ARGUMENTS = "--loss_function logistic --link logistic -b 18 -l 0.3 --interactions cc"
NUMERIC, CATEGORIES = ("delay", "distance", "wind"), ("carrier", "origin")


def a_learner(snapshot: LearnerSnapshot | None = None) -> Learner:
    spec = LearnerSpec(arguments=ARGUMENTS, snapshot_every=10_000)
    return Learner(spec, NUMERIC, CATEGORIES, feature_digest="f", default_probability=0.2, snapshot=snapshot)


def some_features(count: int, seed: int) -> FeatureBatch:
    chance = np.random.default_rng(seed)
    numeric = chance.normal(5, 20, (count, len(NUMERIC))).astype(np.float32)
    numeric[chance.random(numeric.shape) < 0.1] = np.nan
    categories = tuple(tuple(f"{name}{chance.integers(9)}" for _ in range(count)) for name in CATEGORIES)
    return FeatureBatch(numeric, categories)


def the_log() -> ExampleColumns:
    """A hole, as of a transaction's marker, behind every example."""
    features = some_features(EXAMPLES, 1)
    label = (np.nan_to_num(features.numeric[:, 0]) > 8).astype(np.float32)
    return ExampleColumns(np.arange(EXAMPLES) * 2, features, label, np.ones(EXAMPLES, dtype=np.bool_))


def part(examples: ExampleColumns, start: int, stop: int) -> ExampleColumns:
    columns = tuple(column[start:stop] for column in examples.features.categories)
    return ExampleColumns(
        examples.offset[start:stop],
        FeatureBatch(examples.features.numeric[start:stop], columns),
        examples.label[start:stop],
        examples.is_learned[start:stop],
    )


def published(learner: Learner, seed: int) -> pa.RecordBatch:
    """What a worker publishes of a batch of events."""
    features = some_features(20, seed)
    scores = learner.score(features)
    rows = zip(*features.categories, strict=True)
    return pa.RecordBatch.from_pydict(
        {
            "id": [f"{seed}.{row}" for row in range(20)],
            "n": pa.array([scores.n] * 20, pa.int64()),
            "numeric": pa.array(features.numeric.tolist(), pa.list_(pa.float32())),
            "categories": pa.array([list(row) for row in rows], pa.list_(pa.string())),
            "learner": scores.learner,
            "blend": scores.blend,
        }
    )


def judged(*, folded_twice: bool = False) -> Replay:
    """A worker that was killed half way and resumed from its snapshot, judged by the log."""
    log = the_log()
    batches = []
    worker = a_learner()
    for start in range(0, EXAMPLES, BATCH):
        if start == KILLED_AT:
            worker = a_learner(worker.snapshot())
            if folded_twice:
                again = part(log, start - 1, start)
                worker.fold(ExampleColumns(again.offset + 1, again.features, again.label, again.is_learned), start * 2)
        batches.append(published(worker, start))
        worker.fold(part(log, start, start + BATCH), (start + BATCH) * 2)
    lots = ((part(log, start, start + 170), (start + 170) * 2) for start in range(0, EXAMPLES, 170))
    return replay(a_learner(), lots, predictions_of(batches))


def test_resumed_worker_publishes_what_a_fresh_fold_of_the_log_scores():
    found = judged()
    assert found.scores_compared == 20 * EXAMPLES // BATCH
    assert found.scores_wrong == 0, found.scores


def test_arguments_cut_beside_the_model_file_turn_it_red(monkeypatch: pytest.MonkeyPatch):
    def resumed(words: list[str], model: bytes) -> pylibvw.vw:
        return intact(["--quiet"], model)

    intact = learner_module._resumed
    monkeypatch.setattr(learner_module, "_resumed", resumed)
    found = judged()
    assert found.scores_wrong > 0
    assert f"at N = {KILLED_AT * 2 + BATCH * 2}" in found.scores[0]  # the first fold after resuming already differs


def test_example_folded_twice_turns_it_red(monkeypatch: pytest.MonkeyPatch):
    take_snapshot = Learner.snapshot

    def behind(self: Learner) -> LearnerSnapshot:  # N one behind what the weights hold
        taken = take_snapshot(self)
        values = {name: getattr(taken, name) for name in taken.__slots__}
        return LearnerSnapshot(**{**values, "n": taken.n - 1})

    monkeypatch.setattr(Learner, "snapshot", behind)
    found = judged(folded_twice=True)
    assert found.scores_wrong > 0
    assert f"at N = {KILLED_AT * 2}" in found.scores[0]
