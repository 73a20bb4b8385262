"""What an app published, as columns: predictions in the order of their N, examples, origins of dead letters.

In: the output topics. Out: columns. Invariant: numbers are kept as they were published, bit by bit; a null probability
is the one NaN that numpy makes of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.apps.dead_letters import KafkaMessage, letter_of
from tidemill.core.records import FeatureBatch, Float32s, Float64s, Int64s, Partition
from tidemill.core.topic_names import dead_letter_topic
from tidemill.io.outputs import decode, decode_commands, examples_of, matrix_of, without_commands
from tidemill.io.wire import FeatureShape
from tidemill.models.replica import LogPart

SCORES = ("blend", "learner", "booster", "base_rate", "other")
TEXTS = ("model_version", "other_version")
KEPT = (
    "id", "event_time", "topic", "partition", "offset", "decision", "n", "feature_digest", "numeric", "categories",
    "flags", *SCORES, *TEXTS,
)  # fmt: skip


@dataclass(frozen=True)
class Predictions:
    """Published predictions, sorted by N."""

    table: pa.RecordBatch

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @cached_property
    def n(self) -> Int64s:
        return self.numbers("n")

    @cached_property
    def ids(self) -> list[str]:
        ids: list[str] = self.table.column("id").to_pylist()
        return ids

    def numbers(self, name: str) -> Any:
        """A column as numpy has it; null is NaN."""
        return self.table.column(name).to_numpy(zero_copy_only=False)

    def texts(self, name: str) -> list[str]:
        texts: list[str] = self.table.column(name).to_pylist()
        return texts

    def chosen(self, is_chosen: Any) -> Predictions:
        return Predictions(self.table.filter(pa.array(is_chosen)))

    def features(self, start: int, end: int) -> FeatureBatch:
        """Features as served, of rows with the same numbers of them."""
        rows = self.table.slice(start, end - start)
        texts = rows.column("categories").flatten().to_pylist()
        width = len(texts) // (end - start)
        numeric = rows.column("numeric")
        return FeatureBatch(
            matrix_of(numeric, None, len(numeric.flatten()) // (end - start)),
            tuple(tuple(texts[column::width]) for column in range(width)),
        )


def read_predictions(batches: Iterable[Sequence[KafkaMessage]]) -> Predictions:
    """All predictions of the topic."""
    tables = [decode("prediction.v1", [m.value() or b"" for m in messages]).select(KEPT) for messages in batches]
    if not tables:
        return Predictions(decode("prediction.v1", []).select(KEPT))
    table = pa.Table.from_batches(tables).combine_chunks()
    order = np.argsort(table.column("n").to_numpy(), kind="stable")
    return Predictions(table.take(pa.array(order)).combine_chunks().to_batches()[0])


@dataclass(frozen=True)
class ExampleLot:
    """A run of the examples log: what the fold takes, and the same records with everything that they carry.

    table: examples and amendments, one row each, in the order of `part.examples`. next: behind the last record.
    """

    part: LogPart
    table: pa.RecordBatch
    next: int


def read_examples(batches: Iterable[Sequence[KafkaMessage]], expected: FeatureShape) -> Iterator[ExampleLot]:
    """The log in its order."""
    for messages in batches:
        values, offsets = [m.value() or b"" for m in messages], [m.offset() for m in messages]
        commands = decode_commands(values, offsets)
        of_commands = {command.offset for command in commands}
        at = np.array([offset for offset in offsets if offset not in of_commands], dtype=np.int64)
        table = decode("example.v1", without_commands(values) if commands else values)
        yield ExampleLot(LogPart(examples_of(table, at, expected), commands), table, offsets[-1] + 1)


def letter_origins(
    batches: Iterable[Sequence[KafkaMessage]], topic: str, app: str
) -> tuple[dict[Partition, list[int]], list[str]]:
    """Offsets of the records that became dead letters of an app, by partition; places of letters that do not say so."""
    origins: dict[Partition, list[int]] = {}
    unnamed = []
    for letter in (letter_of(message) for messages in batches for message in messages):
        if not letter.is_of(app):
            continue
        if letter.origin is not None and letter.origin.partition.topic == topic:
            origins.setdefault(letter.origin.partition, []).append(letter.origin.offset)
        else:
            unnamed.append(f"{dead_letter_topic(topic)}@{letter.place.offset}")
    return origins, unnamed


def same_floats(one: Float64s, other: Float64s) -> Any:
    """Where two columns are equal bit by bit."""
    return np.ascontiguousarray(one).view(np.int64) == np.ascontiguousarray(other).view(np.int64)


def same_rows(one: Float32s, other: Float32s) -> Any:
    """Where two matrices of the same shape have equal rows, bit by bit."""
    return (np.ascontiguousarray(one).view(np.int32) == np.ascontiguousarray(other).view(np.int32)).all(axis=1)


def same_lists(one: pa.ListArray, other: pa.ListArray) -> Any:
    """Where two columns of lists of strings are equal, row by row."""
    lengths = one.value_lengths().to_numpy() == other.value_lengths().to_numpy()
    if not lengths.all():
        left, right = one.to_pylist(), other.to_pylist()
        return np.array([mine == theirs for mine, theirs in zip(left, right, strict=True)], dtype=np.bool_)
    flat = pc.equal(one.flatten(), other.flatten()).to_numpy(zero_copy_only=False)
    widths = one.value_lengths().to_numpy()
    wrong = np.repeat(np.arange(len(one)), widths)[~flat.astype(np.bool_)]
    is_same = np.ones(len(one), dtype=np.bool_)
    is_same[wrong] = False
    return is_same
