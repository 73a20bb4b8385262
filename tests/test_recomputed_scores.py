"""D3 can turn red: scores that a resumed worker published, recomputed by a fresh fold of the log."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pylibvw
import pytest

from tests.boosters import CATEGORIES, NUMERIC, a_trained, loaded, some_examples
from tests.builders import a_category, a_field, a_group, a_spec
from tests.campaign.judging import Replay, predictions_of, replay
from tidemill.core.examples import between, rows
from tidemill.core.records import Command, ExampleColumns
from tidemill.core.roles import INITIAL
from tidemill.core.snapshot import ModelSnapshot
from tidemill.core.spec import AppSpec, LearnerSpec
from tidemill.models import learner as learner_module
from tidemill.models.replica import LogPart
from tidemill.models.serving import Serving

EXAMPLES, KILLED_AT, BATCH = (
    600,
    300,
    50,
)  # offsets are even: a hole, as of a transaction's marker, behind every example
LOG = replace(some_examples(EXAMPLES), learner=np.full(EXAMPLES, 0.3), base_rate=np.full(EXAMPLES, 0.25))
COMMANDS = [
    Command(201, "c1", "prepare", INITIAL, "m1", "a test", 0),
    Command(301, "c2", "promote", INITIAL, "m1", "a test", 0),
]


def an_app() -> AppSpec:
    columns = [a_field(name, "amount") for name in NUMERIC] + [a_category(name, "shop") for name in CATEGORIES]
    arguments = "--loss_function logistic --link logistic -b 18 -l 0.3 --interactions cc"
    learner = LearnerSpec(arguments=arguments, snapshot_every=10_000, warm_offsets=100)
    return replace(a_spec(a_group("event", [], *columns)), learner=learner)


class History:
    """The log once more; nobody looks back at its commands."""

    def first_offset(self) -> int:
        return 0

    def parts(self, start: int, end: int) -> Iterator[LogPart]:
        yield LogPart(between(LOG, start, end), [])


def a_serving(snapshot: ModelSnapshot | None = None) -> Serving:
    return Serving(
        an_app(),
        NUMERIC,
        CATEGORIES,
        feature_digest="f",
        load=lambda _version: loaded(a_trained()),
        history=History(),
        snapshot=snapshot,
    )


def commands(start: int, end: int) -> list[Command]:
    return [command for command in COMMANDS if start <= command.offset < end]


def published(serving: Serving, seed: int) -> pa.RecordBatch:
    """What a worker publishes of a batch of events."""
    features = some_examples(20, seed=1_000 + seed).features
    ids = [f"{seed}.{row}" for row in range(20)]
    scores = serving.score(features, ids)
    return pa.RecordBatch.from_pydict(
        {
            "id": ids,
            "n": pa.array([scores.n] * 20, pa.int64()),
            "numeric": pa.array(features.numeric.tolist(), pa.list_(pa.float32())),
            "categories": pa.array([list(row) for row in zip(*features.categories, strict=True)]),
            "learner": scores.learner,
            "blend": scores.blend,
        }
    )


def judged(at_the_kill: Callable[[Serving], Serving]) -> Replay:
    """A worker that was killed half way, what stood up in its place, judged by the log."""
    batches = []
    worker = a_serving()
    for start in range(0, EXAMPLES, BATCH):
        if start == KILLED_AT:
            worker = at_the_kill(worker)
        batches.append(published(worker, start))
        due = commands(start * 2, (start + BATCH) * 2)
        worker.fold(rows(LOG, start, start + BATCH), due, (start + BATCH) * 2)
    lots = []
    for start in range(0, EXAMPLES, 170):
        end = min(start + 170, EXAMPLES) * 2
        lots.append((between(LOG, start * 2, end), commands(start * 2, end), end))
    return replay(a_serving(), lots, predictions_of(batches))


def resumed(worker: Serving) -> Serving:
    return a_serving(worker.snapshot())


def test_resumed_worker_publishes_what_a_fresh_fold_of_the_log_scores() -> None:
    found = judged(resumed)
    assert found.scores_compared == 20 * EXAMPLES // BATCH
    assert found.scores_wrong == 0, found.scores


def test_arguments_cut_beside_the_model_file_turn_it_red(monkeypatch: pytest.MonkeyPatch) -> None:
    intact = learner_module._resumed

    def without_arguments(_words: list[str], model: bytes) -> pylibvw.vw:
        return intact(["--quiet"], model)

    def cut(worker: Serving) -> Serving:
        with monkeypatch.context() as patched:
            patched.setattr(learner_module, "_resumed", without_arguments)
            return resumed(worker)

    found = judged(cut)
    assert found.scores_wrong > 0
    assert f"at N = {KILLED_AT * 2 + BATCH * 2}" in found.scores[0]  # the first fold after resuming already differs


def test_example_folded_twice_turns_it_red() -> None:
    def folded_twice(worker: Serving) -> Serving:
        last: ExampleColumns = rows(LOG, KILLED_AT - 1, KILLED_AT)
        worker.fold(replace(last, offset=last.offset + 2), [], worker.n + 1)
        worker._n = KILLED_AT * 2  # as if nothing had been folded
        return resumed(worker)

    found = judged(folded_twice)
    assert found.scores_wrong > 0
    assert f"at N = {KILLED_AT * 2}" in found.scores[0]


def test_leaves_of_another_version_turn_it_red(monkeypatch: pytest.MonkeyPatch) -> None:
    def misnamed(worker: Serving) -> Serving:
        made = resumed(worker)
        made._replica.champion = replace(made._replica.champion, version="m2")
        return made

    assert judged(misnamed).scores_wrong > 0
