"""The ports of the core: what the other folders provide. Every implementation of `Store` runs its contract suite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from tidemill.core.labels import EventEntry
from tidemill.core.records import (
    Commit,
    DeadLetter,
    FeatureBatch,
    Mark,
    Output,
    Partition,
    Reads,
    Scores,
    StateView,
)
from tidemill.core.settlements import Labelled


@dataclass(frozen=True, slots=True)
class Applied:
    """The commit took effect; `marks` are those of all partitions of the app, other workers' included."""

    marks: Mapping[Partition, Mark]


@dataclass(frozen=True, slots=True)
class Conflict:
    """Nothing changed: these ids have another revision than was read."""

    ids: tuple[str, ...]


class Store(Protocol):
    """Feature state, id rows and positions, behind claims. Every write is fenced by incarnation and owner token."""

    def read(self, reads: Reads) -> StateView: ...

    def commit(self, commit: Commit) -> Applied | Conflict:
        """Check incarnation, owners, positions (`applied` == span.start), read set; then apply everything at once.

        Raises:
            FencedError: a partition has another owner or another position, or the incarnation changed.
            UnavailableError: no answer; the result is unknown.
        """
        ...

    def mark_published(self, offsets_next: Mapping[Partition, int]) -> Mapping[Partition, Mark]:
        """Record that the slices before these offsets are in Kafka; partitions this worker no longer owns are skipped.
        Returns the marks of all partitions."""
        ...

    def marks(self) -> Mapping[Partition, Mark]: ...


class Scorer(Protocol):
    """The champion model at a known N; one thread owns it."""

    @property
    def n(self) -> int:
        """The next offset of the examples log to fold."""
        ...

    def score(self, features: FeatureBatch, ids: Sequence[str]) -> Scores:
        """`ids`: of the events, one per row; they choose the rows that a challenger serves."""
        ...


class Codec(Protocol):
    """Columns to bytes and back; pure."""

    def encode(self, schema_name: str, columns: pa.RecordBatch) -> list[bytes]:
        """Framed records of one of Tidemill's schemas, one per row."""
        ...

    def encode_rows(self, served: pa.RecordBatch) -> list[bytes]: ...

    def decode_rows(self, tails: Sequence[bytes]) -> pa.RecordBatch:
        """The inverse of `encode_rows`, with the columns of `core.tables.SERVED`."""
        ...

    def input_schema(self, topic: str) -> pa.Schema:
        """The columns that good records of an input topic have."""
        ...

    def dead_letter(self, letter: DeadLetter) -> Output: ...

    def pack_slice(self, outputs: Sequence[Output]) -> bytes: ...


class Served(Protocol):
    """What was published of a range of events: a roll-forward uses it instead of scoring again."""

    @property
    def sources(self) -> frozenset[tuple[int, int, int]]:
        """(topic index, partition, offset) of every published prediction of the range."""
        ...

    @property
    def labelled(self) -> Labelled:
        """The labels that joined."""
        ...

    def columns(self, events: Sequence[EventEntry]) -> pa.RecordBatch:
        """Features and scores as served (core.tables.SERVED), one row per event."""
        ...
