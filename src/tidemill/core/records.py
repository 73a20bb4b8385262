"""The values that travel: partitions, batches as columns, outputs, and the one commit of a batch.

Everything is read-only after it is made. Times are milliseconds since the epoch, UTC.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Int64s = npt.NDArray[np.int64]
Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]


class Partition(NamedTuple):
    """One partition of an input topic."""

    topic: str
    number: int

    def __str__(self) -> str:
        return f"{self.topic}[{self.number}]"


class Kind(IntEnum):
    """What a record of a batch is, once decoded."""

    EVENT = 0
    LABEL = 1
    CONTEXT = 2
    PUNCTUATION = 3
    DEAD_LETTER = 4


class Outcome(IntEnum):
    """What became of a record (`commits.v1` counts them by `name.lower()`); every input record has exactly one.

    The last three resolve an outcome that was left open: they belong to no input record of their own, and are counted
    in the commit of the partition that holds the row.
    """

    PREDICTION = 0
    EVENT_DUPLICATE = 1
    EVENT_DEAD_LETTER = 2
    EXAMPLE = 3
    AMENDMENT = 4
    LABEL_DUPLICATE = 5
    ORPHAN = 6
    LABEL_DEAD_LETTER = 7
    WAITING = 8
    STATE = 9
    CONTEXT_DEAD_LETTER = 10
    PUNCTUATION = 11
    EXPIRED = 12  # a prediction whose label never came
    WAITING_JOINED = 13  # a label that came before its event, joined by it
    WAITING_ORPHANED = 14  # a label whose event never came


class Span(NamedTuple):
    """The offsets [start, next) of one partition in a batch, and what the batch teaches about the partition.

    Holes (transaction markers, aborted records) lie inside a span; spans of successive batches tile the partition. A
    span [n, n) with watermark -1 teaches nothing: owner and position are checked, watermark and lag stay as they were.
    """

    start: int
    next: int
    watermark: int  # largest Kafka timestamp or punctuation up to `next`, capped by nothing; -1 = none yet
    is_lagging: bool  # the partition held records at or after `next` when the batch was cut


class DeadLetter(NamedTuple):
    """A record that cannot be processed, with its original bytes. headers: None = they could not be read."""

    partition: Partition
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] | None
    timestamp: int
    code: str  # TM-2xxx
    message: str
    stage: str  # "decode", "rules" or "score"


@dataclass(frozen=True, slots=True)
class TopicRecords:
    """The good records of one topic in a batch, in merged order.

    row_index: their positions in the batch, ascending, shape (n,).
    columns: n rows, the fields of the reader's schema with their Arrow types (enums and strings as string, logical
        times as int64 milliseconds, nested fields untouched).
    """

    topic: str
    row_index: Int64s
    columns: pa.RecordBatch


@dataclass(frozen=True, slots=True)
class Batch:
    """Records processed together, in merged order (time; role context < label < event < punctuation; topic; partition;
    offset). Arrays have one entry per record."""

    spans: Mapping[Partition, Span]
    time: Int64s
    kind: npt.NDArray[np.int8]
    topic_index: npt.NDArray[np.int16]  # position of the topic in AppSpec.topics
    partition: npt.NDArray[np.int32]
    offset: Int64s
    records: Mapping[str, TopicRecords]  # by topic name; a topic without good records may be absent
    dead_letters: tuple[tuple[int, DeadLetter], ...] = ()  # (position in the batch, letter)

    def __len__(self) -> int:
        return len(self.time)


class Output(NamedTuple):
    """One record to publish. `timestamp` None lets Kafka stamp it."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...] = ()
    timestamp: int | None = None


class PaneDelta(NamedTuple):
    """Merge `cells` into one slot of one entity.

    The state of an entity is a string of big-endian int64 words. A slot starts at `word` and holds [tag, cells...],
    tag 0 = empty; of a pane it is pane + 1. Merge: slot tag < delta tag: the delta replaces the slot; equal: cells add
    up, or the larger stays where `takes_max`; greater: the delta is dropped. A slot without cells so keeps the largest
    tag. A slot takes all of its deltas with the same `takes_max`.
    """

    key: str  # <group>:v<n>:<entity>, without the app's prefix
    word: int
    tag: int
    cells: tuple[int, ...]
    takes_max: bool = False


class LatestDelta(NamedTuple):
    """Insert one entry into the entity's `capacity` latest ones.

    An entry is 4 + m big-endian int64 words [time, topic index, partition, offset, values...]; the state of an entity
    is its entries, newest first by (time, topic index, partition, offset), without doubles, at most `capacity`.
    """

    key: str
    capacity: int
    entry: bytes


class Due(NamedTuple):
    """Look at row `id` again once the group watermark is past `time`; indexed under the partition that made the row."""

    partition: Partition
    id: str
    time: int


@dataclass(frozen=True, slots=True)
class Commit:
    """All effects of one batch on the store, applied as one or not at all.

    read_set: revision of every row that was read, 0 = absent. rows: new bytes (they start with the new revision as
    8 bytes big-endian), None = delete. slices: packed outputs by the input partition that caused them.
    """

    spans: Mapping[Partition, Span]
    read_set: Mapping[str, int] = field(default_factory=dict)
    rows: Mapping[str, bytes | None] = field(default_factory=dict)
    due_add: tuple[Due, ...] = ()
    due_remove: tuple[Due, ...] = ()
    pane_deltas: tuple[PaneDelta, ...] = ()
    latest_deltas: tuple[LatestDelta, ...] = ()
    slices: Mapping[Partition, bytes] = field(default_factory=dict)


class Mark(NamedTuple):
    """What the store knows of one partition's progress."""

    owner: str  # token, "" = never claimed
    applied: int  # next offset to apply, -1 = none yet
    committed: int  # next offset known to be published, -1 = none yet
    watermark: int  # -1 = none yet
    is_lagging: bool


@dataclass(frozen=True, slots=True)
class Reads:
    """What one batch needs of the store, read in one round trip (two when rows are due)."""

    state_keys: tuple[str, ...]
    ids: tuple[str, ...]
    due_partitions: tuple[Partition, ...] = ()
    due_before: int = -1  # rows due strictly before this event time
    due_limit: int = 2_000


@dataclass(frozen=True, slots=True)
class StateView:
    """The answer to `Reads`, same order; None = absent. `due` are (due entry, row) pairs, oldest first."""

    state: tuple[bytes | None, ...]
    rows: tuple[bytes | None, ...]
    due: tuple[tuple[Due, bytes | None], ...] = ()
    marks: Mapping[Partition, Mark] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FeatureBatch:
    """Features of the events of a batch as served: numeric (rows, F) float32 with NaN = missing; categories C columns
    of strings, "" = missing."""

    numeric: Float32s
    categories: tuple[tuple[str, ...], ...]  # C columns, each with `rows` strings

    def __len__(self) -> int:
        return len(self.numeric)


class TopFeatures(NamedTuple):
    """The columns that moved one score most, by size of their contribution to the booster's margin."""

    names: tuple[str, ...]
    contributions: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Scores:
    """Probabilities of the positive class, shape (rows,); None = that expert is absent. `n`: the examples folded.

    learner, base_rate, booster, blend are the champion's. other: the blend of the challenger, with the same weights.
    is_canary: the rows that the challenger serves, shape (rows,) bool; None = none.
    """

    learner: Float64s
    base_rate: Float64s
    booster: Float64s | None
    blend: Float64s
    n: int  # next offset of the examples log to fold
    model_version: str  # the champion at n
    is_degraded: bool = False  # nothing has been learned yet, or the champion is not at hand: a fallback answered
    top_features: Mapping[int, TopFeatures] = field(default_factory=dict)  # by row, for few positive decisions
    other: Float64s | None = None  # None = there is no challenger, or it is not at hand
    other_version: str = ""  # the challenger at n, when `other` is given
    is_canary: npt.NDArray[np.bool_] | None = None

    @property
    def served(self) -> Float64s:
        """The blend that is served: the challenger's in canary rows."""
        if self.is_canary is None or self.other is None:
            return self.blend
        return np.where(self.is_canary, self.other, self.blend)


@dataclass(frozen=True, slots=True)
class ExampleColumns:
    """Consecutive records of the examples log as columns, in log order. Commands are not here.

    features, learner, booster, base_rate, blend: as served, NaN where that expert was absent. is_learned is False for
    amendments, flagged examples and those of other features: the fold passes them over. blend was served by
    model_version, other is what other_version would have served ("" and NaN: there was no other). The last three may be
    left out, and are then NaN and "" in every row.
    """

    offset: Int64s
    features: FeatureBatch
    label: Float32s  # 0 or 1
    is_learned: npt.NDArray[np.bool_]
    event_time: Int64s
    label_time: Int64s
    learner: Float64s
    booster: Float64s
    base_rate: Float64s
    blend: Float64s
    other: Float64s = field(default_factory=lambda: np.empty(0))
    model_version: tuple[str, ...] = ()
    other_version: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        count = len(self.offset)
        if not len(self.other):
            object.__setattr__(self, "other", np.full(count, np.nan))
        for name in ("model_version", "other_version"):
            if not getattr(self, name):
                object.__setattr__(self, name, ("",) * count)

    def __len__(self) -> int:
        return len(self.offset)


class Command(NamedTuple):
    """A change of model in the examples log, at its offset.

    kind: see `core.roles`; another one is ignored. expects: the champion that it was made for; a fold that finds
    another ignores the command. model_version: whom it is about; of "excise" the offsets "<from>-<to>" of the examples
    log. cause: an alert's id, or a person. time: when it was issued, ms.
    """

    offset: int
    id: str
    kind: str
    expects: str
    model_version: str
    cause: str
    time: int
