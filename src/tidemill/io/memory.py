"""The store in dictionaries: the same answers as `RedisStore`, for backtests and tests.

In: reads, commits, claims. Out: state, marks, what a claim found. Invariant: what the contract suite asserts of one
store holds for the other. Several `MemoryStore` objects on one `MemoryBackend` are workers of one app.
"""

from __future__ import annotations

import secrets
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tidemill.core.ports import Applied, Conflict
from tidemill.core.records import Commit, Due, Mark, Partition, Reads, Span, StateView
from tidemill.core.rows import revision_of
from tidemill.core.state import digest, merge_latest, merge_pane
from tidemill.io.commit_arguments import check_commit, is_silent
from tidemill.io.slices import mark_of
from tidemill.io.store_answers import (
    ClaimedPartition,
    ClaimView,
    fenced,
    lost_view,
    other_configuration,
    store_not_empty,
)


@dataclass(slots=True)
class _PartitionRecord:
    owner: str = ""
    applied: int | None = None
    committed: int | None = None
    watermark: int = -1
    is_lagging: bool = False
    is_fresh: bool = False  # a start was recorded and nothing applied since
    tried: int = 0
    tried_at: int | str | None = ""  # "" = not claimed since it was given back
    sequel: str = ""  # the mark of the last slice that moved no offset
    outbox: list[tuple[int, int, bytes]] = field(default_factory=list)

    def mark(self) -> Mark:
        applied = -1 if self.applied is None else self.applied
        committed = -1 if self.committed is None else self.committed
        return Mark(self.owner, applied, committed, self.watermark, self.is_lagging)


@dataclass(slots=True)
class MemoryBackend:
    """What a server would hold for one app."""

    incarnation: str | None = None
    config_digest: str | None = None
    lineage: set[str] = field(default_factory=set)
    partitions: dict[Partition, _PartitionRecord] = field(default_factory=lambda: defaultdict(_PartitionRecord))
    state: dict[str, bytes] = field(default_factory=dict)
    rows: dict[str, bytes] = field(default_factory=dict)
    due: dict[Partition, dict[str, int]] = field(default_factory=lambda: defaultdict(dict))


class MemoryStore:
    """Fulfils `core.ports.Store`, and what claims need besides; the methods mean what those of `RedisStore` mean."""

    def __init__(
        self,
        backend: MemoryBackend,
        app: str = "memory",
        *,
        owner_slot: str = "0",
        config_digest: str = "",
        random_hex: Callable[[int], str] = secrets.token_hex,
    ) -> None:
        self._backend = backend
        self._app = app
        self._owner_slot = owner_slot
        self._config_digest = config_digest
        self._random_hex = random_hex
        self._token = "unclaimed"
        self._incarnation: str | None = None

    @property
    def incarnation(self) -> str | None:
        return self._incarnation

    def read(self, reads: Reads) -> StateView:
        backend = self._backend
        listed = [
            Due(partition, id_, time)
            for partition in reads.due_partitions
            for id_, time in backend.due[partition].items()
            if time < reads.due_before
        ]
        listed.sort(key=lambda entry: (entry.time, entry.partition, entry.id))
        return StateView(
            tuple(backend.state.get(key) for key in reads.state_keys),
            tuple(backend.rows.get(id_) for id_ in reads.ids),
            tuple((entry, backend.rows.get(entry.id)) for entry in listed[: reads.due_limit]),
            self.marks(),
        )

    def commit(self, commit: Commit) -> Applied | Conflict:
        check_commit(commit)
        backend = self._backend
        self._check_incarnation()
        for partition, span in commit.spans.items():
            self._check_owner(partition)
            applied = backend.partitions[partition].applied
            if applied != span.start:
                raise fenced("position", partition, expected=str(span.start), found=_text(applied))
        contested = [id_ for id_, seen in commit.read_set.items() if revision_of(backend.rows.get(id_)) != seen]
        if contested:
            return Conflict(tuple(contested))
        for id_, row in commit.rows.items():
            if row is None:
                backend.rows.pop(id_, None)
            else:
                backend.rows[id_] = row
        for due in commit.due_remove:
            backend.due[due.partition].pop(due.id, None)
        for due in commit.due_add:
            backend.due[due.partition][due.id] = due.time
        for pane in commit.pane_deltas:
            backend.state[pane.key] = merge_pane(backend.state.get(pane.key, b""), pane)
        for latest in commit.latest_deltas:
            backend.state[latest.key] = merge_latest(backend.state.get(latest.key, b""), latest)
        for partition, span in commit.spans.items():
            _advance(backend.partitions[partition], span, commit.slices.get(partition, b""))
        return Applied(self.marks())

    def mark_published(self, offsets_next: Mapping[Partition, int]) -> Mapping[Partition, Mark]:
        for partition, published in offsets_next.items():
            record = self._backend.partitions.get(partition)
            if record is not None and record.owner == self._token:
                record.outbox = [kept for kept in record.outbox if kept[1] > published]
                record.committed = published if record.committed is None else max(record.committed, published)
        return self.marks()

    def marks(self) -> Mapping[Partition, Mark]:
        return {partition: record.mark() for partition, record in self._backend.partitions.items()}

    def claim(self, partitions: Sequence[Partition], *, may_create: bool) -> ClaimView:
        backend = self._backend
        self._incarnation = None
        self._token = f"{self._owner_slot}:{self._random_hex(8)}"
        created = self._random_hex(8) if may_create else None
        if backend.config_digest not in (None, self._config_digest):
            raise other_configuration(self._app, ours=self._config_digest, found=str(backend.config_digest))
        if backend.incarnation is None and created is None:
            return lost_view(tuple(partitions))
        backend.incarnation = self._incarnation = backend.incarnation or created
        backend.config_digest = self._config_digest
        found = {}
        for partition in partitions:
            record = backend.partitions[partition]
            if record.tried_at == record.applied:
                record.tried += 1
            else:
                is_left_behind = record.owner != "" and record.owner.partition(":")[0] != self._owner_slot
                record.tried = 2 if is_left_behind else 1
            record.tried_at = record.applied
            record.owner = self._token
            applied = None if record.is_fresh else record.applied
            found[partition] = ClaimedPartition(
                applied, record.committed, tuple(record.outbox), record.tried, record.sequel
            )
        return ClaimView(self._incarnation, frozenset(backend.lineage), found)

    def open_rebuild(self, new_incarnation: str, *earlier: str) -> str:
        backend = self._backend
        if backend.incarnation is None:
            for partition, record in backend.partitions.items():
                if record.applied is not None:
                    raise store_not_empty(self._app, partition)
            backend.incarnation = new_incarnation
            backend.lineage.update(filter(None, earlier))
        return backend.incarnation

    def set_start(self, partition: Partition, offset: int) -> None:
        self._check_incarnation()
        self._check_owner(partition)
        record = self._backend.partitions[partition]
        if record.applied is not None and not record.is_fresh:
            raise fenced("position", partition, expected="", found=str(record.applied))
        record.applied = record.committed = record.tried_at = offset
        record.is_fresh = True

    def touch(self, marks: Mapping[Partition, Mark]) -> None:
        self._check_incarnation()
        for partition in marks:
            self._check_owner(partition)
        for partition, mark in marks.items():
            record = self._backend.partitions[partition]
            record.watermark = max(record.watermark, mark.watermark)
            record.is_lagging = mark.is_lagging

    def release(self, partitions: Sequence[Partition]) -> None:
        for partition in partitions:
            record = self._backend.partitions.get(partition)
            if record is not None and record.owner == self._token:
                record.owner, record.tried_at = "", ""

    def set_positions(self, offsets: Mapping[Partition, int]) -> None:
        for partition, offset in offsets.items():
            record = self._backend.partitions[partition]
            record.applied = record.committed = offset
            record.owner, record.is_fresh, record.outbox, record.tried_at = "", False, [], ""

    def set_config(self) -> None:
        self._backend.config_digest = self._config_digest

    def feature_digest(self) -> str:
        return digest(self._backend.state.items())

    def row_counts(self) -> dict[int, int]:
        return dict(Counter(row[8] for row in self._backend.rows.values() if len(row) > 8))

    def check_server(self) -> None:
        """A dictionary forgets nothing while the process lives."""

    def wipe(self) -> None:
        empty = MemoryBackend()
        for name in MemoryBackend.__slots__:
            setattr(self._backend, name, getattr(empty, name))

    def close(self) -> None:
        """There is no connection."""

    def _check_incarnation(self) -> None:
        found = self._backend.incarnation
        if self._incarnation is None or found != self._incarnation:
            raise fenced("incarnation", None, expected=self._incarnation or "unclaimed", found=found or "")

    def _check_owner(self, partition: Partition) -> None:
        record = self._backend.partitions.get(partition)
        found = "" if record is None else record.owner
        if found != self._token:
            raise fenced("owner", partition, expected=self._token, found=found)


def _advance(record: _PartitionRecord, span: Span, outputs: bytes) -> None:
    committed = -1 if record.committed is None else record.committed
    # A slice without offsets is not shown by `committed`: it goes when it is marked, or when later ones were.
    record.outbox = [
        kept for kept in record.outbox if kept[1] > committed or (kept[1] == committed and kept[0] == kept[1])
    ]
    record.applied = span.next
    if not is_silent(span):
        record.is_lagging = span.is_lagging
        record.watermark = max(record.watermark, span.watermark)
    if span.start < span.next or outputs:
        record.outbox.append((span.start, span.next, outputs))
        record.sequel = mark_of(outputs) if span.start == span.next else record.sequel
        record.is_fresh = False


def _text(number: int | None) -> str:
    return "" if number is None else str(number)
