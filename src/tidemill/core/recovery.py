"""What a claim must do with one partition: the recovery table.

In: where the store stands, where the group's committed offset stands, which store wrote each, and the outbox.
Out: one action. Invariant: `decide` is total, and every action but `Stop` leads to applied == committed with each
output published once; where that cannot be shown from the arguments, the answer is `Stop`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StartNew:
    """Nobody has processed the partition: begin where the app's `start_from` says and record it with `set_start`."""


@dataclass(frozen=True, slots=True)
class Continue:
    """Store and group agree: read on from `offset`."""

    offset: int


@dataclass(frozen=True, slots=True)
class SendSlices:
    """The store applied these spans and the group does not know it: publish their slices, in this order, with the
    partition's offset in the same transaction. A span [n, n) holds outputs of a commit without input records."""

    spans: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class RollForward:
    """The store went back to an older cut: apply [start, end) again, deltas only; its outputs are published."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Rebuild:
    """The store knows nothing of the partition: as `RollForward`, from the beginning of the log."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Stop:
    """No rule explains what was found: publish nothing; the operator decides."""

    code: str
    message: str


Action = StartNew | Continue | SendSlices | RollForward | Rebuild | Stop


def decide(
    *,
    applied: int | None,
    committed: int | None,
    slices: Sequence[tuple[int, int]],
    store_incarnation: str | None,
    committed_incarnation: str | None,
    lineage: frozenset[str],
    log_start: int,
) -> Action:
    """Compare what the store applied with what the group committed, for one partition.

    Args:
        applied: the store's next offset; None = no record of the partition was ever applied.
        committed: the group's committed offset; None = there is none.
        slices: spans [start, next) of the outbox, in order.
        store_incarnation: None = the store was emptied.
        committed_incarnation: the one in the metadata of the committed offset; None = it has none, so it was not
            Tidemill that wrote it.
        lineage: earlier incarnations from whose log the present store was rebuilt.
        log_start: the first offset that the partition still holds.
    """
    is_ours = committed_incarnation is not None and committed_incarnation in {store_incarnation, *lineage}
    if store_incarnation is not None and committed_incarnation is not None and not is_ours:
        return Stop(
            "TM-4201",
            f"another store: offset {committed} was committed for store {committed_incarnation}, the one that answers "
            f"is {store_incarnation}; point redis_url at the store of this group, or restore it from a backup; if that "
            "store is lost, `tidemill reset --to committed` empties this one and the worker computes it from the log",
        )
    if applied is None:
        if committed is None:
            return StartNew()
        # An empty store and an offset of somebody else: nobody knows what was published behind it.
        return _set_by_hand(0, committed) if committed_incarnation is None else _rebuild(committed, log_start)
    if store_incarnation is None:
        return Stop(
            "TM-4205",
            f"the store holds offset {applied} but no incarnation: part of it was deleted; restore it from a backup, "
            "or empty it with `tidemill reset --to committed` and let the worker compute it from the log",
        )
    if committed is None or applied > committed:
        return _send(applied, committed, slices, has_metadata=is_ours, log_start=log_start)
    if applied == committed:
        return _continue(applied, slices, log_start)
    if not is_ours:
        return _set_by_hand(applied, committed)
    if log_start > applied:
        return _cut(applied, log_start)
    return RollForward(applied, committed)


def _rebuild(committed: int, log_start: int) -> Action:
    return Rebuild(0, committed) if log_start == 0 else _cut(0, log_start)


def _send(
    applied: int, committed: int | None, slices: Sequence[tuple[int, int]], *, has_metadata: bool, log_start: int
) -> Action:
    if committed is not None and not has_metadata:
        return _set_by_hand(applied, committed)
    unsent = tuple(span for span in slices if committed is None or span[1] > committed)
    # Without a committed offset nothing was ever published, so the slices must reach back to the first record.
    is_from_start = bool(unsent) and (unsent[0][0] == committed if committed is not None else unsent[0][0] <= log_start)
    if is_from_start and _tile(unsent, applied):
        return SendSlices(unsent)
    return Stop(
        "TM-4202",
        f"the store applied up to {applied} and the group committed {'nothing' if committed is None else committed}, "
        f"but the outbox holds {_show(slices)}: the group's offsets expired or were reset; `tidemill reset` moves both "
        "positions together",
    )


def _tile(spans: Sequence[tuple[int, int]], end: int) -> bool:
    """Whether the spans follow on each other and stop at `end`."""
    following = [*(start for start, _ in spans[1:]), end]
    return all(start <= next_ == then for (start, next_), then in zip(spans, following, strict=True))


def _continue(offset: int, slices: Sequence[tuple[int, int]], log_start: int) -> Action:
    # A commit without input records leaves the offset as it was; its slice is dropped as soon as it is published.
    unsent = tuple(span for span in slices if span == (offset, offset))
    if unsent:
        return SendSlices(unsent)
    if log_start > offset:
        return Stop(
            "TM-4206",
            f"records [{offset}, {log_start}) were deleted from the topic before they were processed; raise the "
            "topic's retention; `tidemill reset` accepts the loss and goes on from the first record left",
        )
    return Continue(offset)


def _set_by_hand(applied: int, committed: int) -> Stop:
    return Stop(
        "TM-4204",
        f"the group's offset {committed} was not written by Tidemill (no incarnation in its metadata) and the store "
        f"stands at {applied}: the offsets were reset by hand; `tidemill reset` moves both positions together",
    )


def _cut(start: int, log_start: int) -> Stop:
    return Stop(
        "TM-4203",
        f"the store must be rebuilt from offset {start} but the topic begins at {log_start}: the records between are "
        "gone and their state cannot be computed again; restore the store from a backup, or start a new app name",
    )


def _show(slices: Sequence[tuple[int, int]]) -> str:
    return ", ".join(f"[{start}, {next_})" for start, next_ in slices) or "no slices"
