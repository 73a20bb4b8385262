"""What a finished run must have left behind: exactly once (by the verifier), D1, D2, D3.

In: a stream whose workers have stopped. Out: findings, none = nothing wrong. Invariant: the models that judge are
fresh; they have seen the examples log from its first record and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from tests.campaign.stream import Stream
from tests.verify import Report, verify
from tidemill.apps.folding import ExampleHistory
from tidemill.apps.models import booster_loader
from tidemill.core.examples import between, no_examples
from tidemill.core.features import FeaturePlan
from tidemill.core.records import Command, ExampleColumns, FeatureBatch
from tidemill.io.kafka_reader import LogReader, read_topic
from tidemill.io.outputs import decode, decode_examples
from tidemill.models.serving import Serving

READ_RECORDS_MAX = 20_000
TEXTS_KEPT = 3


@dataclass(frozen=True, slots=True)
class Predictions:
    """Published predictions in the order of their N."""

    ids: Sequence[str]
    n: np.ndarray
    features: FeatureBatch
    learner: np.ndarray
    blend: np.ndarray

    def __len__(self) -> int:
        return len(self.n)


@dataclass(slots=True)
class Replay:
    """What a fresh fold of the examples log says of a run."""

    scores: list[str] = field(default_factory=list)  # D3, first differences in words
    scores_wrong: int = 0
    scores_compared: int = 0
    digests: dict[int, str] = field(default_factory=dict)  # D2: the fresh models' digest at these N


def examples_end(stream: Stream) -> int:
    """The next offset behind the examples log, markers included."""
    reader = LogReader(stream.clients, f"{stream.name}.examples.v1", 0)
    try:
        return reader.end_offset()
    finally:
        reader.close()


def read_examples(stream: Stream) -> Iterator[tuple[ExampleColumns, list[Command], int]]:
    """The committed examples and commands in log order, each lot with the next offset."""
    reader = LogReader(stream.clients, f"{stream.name}.examples.v1", 0)
    end = reader.end_offset()
    reader.seek(0)
    while reader.position < end:
        messages = reader.read(until_offset=end, timeout_s=1.0, max_records=READ_RECORDS_MAX)
        if messages:
            examples, commands = decode_examples([m.value() for m in messages], [m.offset() for m in messages])
            yield examples, commands, messages[-1].offset() + 1
    reader.close()


def read_predictions(stream: Stream) -> Predictions:
    """All committed predictions."""
    return predictions_of(
        [
            decode("prediction.v1", [m.value() for m in messages])
            for messages in read_topic(stream.clients, f"{stream.name}.predictions.v1")
        ]
    )


def predictions_of(batches: Sequence[pa.RecordBatch]) -> Predictions:
    """Columns of prediction.v1, sorted by N."""
    table = pa.Table.from_batches(batches).sort_by("n").combine_chunks()
    values = table.column("categories").combine_chunks().flatten().to_pylist()
    columns = len(values) // max(1, len(table))
    return Predictions(
        ids=table.column("id").to_pylist(),
        n=table.column("n").to_numpy(),
        features=FeatureBatch(
            table.column("numeric").combine_chunks().flatten().to_numpy().reshape(len(table), -1),
            tuple(tuple(values[column::columns]) for column in range(columns)),
        ),
        learner=table.column("learner").to_numpy(zero_copy_only=False),
        blend=table.column("blend").to_numpy(),
    )


def fresh_models(stream: Stream) -> Serving:
    """At N = 0, from the declaration, the registry and the log alone."""
    app, plan = stream.settings.app, FeaturePlan(stream.settings.app)
    return Serving(
        app,
        plan.numeric_names,
        plan.category_names,
        feature_digest=plan.digest,
        load=booster_loader(stream.settings, plan),
        history=ExampleHistory(stream.clients, f"{app.name}.examples.v1"),
    )


def replay(
    models: Serving,
    lots: Iterable[tuple[ExampleColumns, Sequence[Command], int]],
    predictions: Predictions,
    *,
    digests_at: Iterable[int] = (),
) -> Replay:
    """Fold the log once; at each N that a prediction names score it again and compare bit by bit.

    Args:
        lots: examples and commands in log order, each with the next offset.
        digests_at: every N whose digest is wanted.
    """
    found = Replay()
    stops = sorted({*np.unique(predictions.n).tolist(), *digests_at})
    wanted = set(digests_at)
    following = iter(lots)
    examples, commands, behind = no_examples(), list[Command](), 0  # behind: the next offset after the lot in hand
    for stop in stops:
        while models.n < stop:
            if models.n >= behind:
                lot = next(following, None)
                if lot is None:  # markers are all that is left of the log
                    models.fold(no_examples(), [], stop)
                    break
                examples, commands, behind = lot[0], list(lot[1]), lot[2]
            start, target = models.n, min(stop, behind)
            due = [command for command in commands if start <= command.offset < target]
            models.fold(between(examples, start, target), due, target)
        if stop in wanted:
            found.digests[stop] = models.digest()
        _compare(models, predictions, stop, found)
    return found


def _compare(models: Serving, predictions: Predictions, n: int, found: Replay) -> None:
    start, end = np.searchsorted(predictions.n, [n, n + 1]).tolist()
    if start == end:
        return
    features = FeatureBatch(
        predictions.features.numeric[start:end],
        tuple(column[start:end] for column in predictions.features.categories),
    )
    scores = models.score(features, predictions.ids[start:end])
    for name, again, published in (
        ("learner", scores.learner, predictions.learner[start:end]),
        ("blend", scores.served, predictions.blend[start:end]),
    ):
        for row in np.flatnonzero(again.view(np.int64) != published.view(np.int64)).tolist():
            found.scores_wrong += 1
            if len(found.scores) < TEXTS_KEPT:
                text = (
                    f"{predictions.ids[start + row]} at N = {n}: {name} {published[row]!r}, recomputed {again[row]!r}"
                )
                found.scores.append(text)
    found.scores_compared += end - start


def verify_stream(
    stream: Stream, *, settings: Mapping[str, str] | None = None, sample: int = 1_000, order: str = "auto"
) -> Report:
    """The independent verifier on the stream's topics; `order` as it takes it."""
    return verify(
        stream.servers.bootstrap_servers,
        stream.name,
        stream.config,
        until=stream.until,
        sample=sample,
        order=order,
        kafka=settings,
    )
