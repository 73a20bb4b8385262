"""The feature state of one entity as bytes: how deltas merge into it, and the digest of many entities.

In: the bytes of an entity as stored (b"" = nothing yet) and one delta. Out: its new bytes; `commit.lua` does the same.
Invariant: deltas may be merged in any order and grouping, the bytes are the same.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from hashlib import blake2b
from operator import add

from tidemill.core.records import LatestDelta, PaneDelta

WORD_BYTES = 8  # every word is a big-endian int64, which Lua's struct and numpy both read
PANES = 12  # a window is read to a twelfth of its length
BUCKETS = 256  # of a distinct count: one byte of hash; 2 KB an entity, and exact enough up to some 500 values
LATEST_CAPACITY = 8  # the one that is read + 7 that a worker ahead by max_skew may have inserted meanwhile
ENTRY_HEAD = 4  # words of an entry before its values: time, topic index, partition, offset

_ENTRY_ORDER = struct.Struct(f">{ENTRY_HEAD}q")


def slot_count(pane_ms: int, ahead_ms: int) -> int:
    """Slots of a ring: a window, one pane begun, and those that a record may be ahead of an event that still reads.

    ahead_ms: what a worker may be ahead of the slowest other one, and a due time ahead of its record.
    """
    return PANES + -(-ahead_ms // pane_ms) + 1


def merge_pane(state: bytes, delta: PaneDelta) -> bytes:
    """Merge one delta into its slot; a newer pane takes the slot over, an older one comes too late and is dropped.

    Bytes beyond the end of `state` count as zeros.
    """
    layout = struct.Struct(f">{1 + len(delta.cells)}q")
    first = delta.word * WORD_BYTES
    last = first + layout.size
    tag, *cells = layout.unpack(state[first:last].ljust(layout.size, b"\0"))
    if tag > delta.tag:
        return state
    if tag < delta.tag:
        merged = list(delta.cells)
    elif delta.takes_max:
        merged = list(map(max, cells, delta.cells))
    else:
        merged = list(map(add, cells, delta.cells))
    return state[:first].ljust(first, b"\0") + layout.pack(delta.tag, *merged) + state[last:]


def merge_latest(state: bytes, delta: LatestDelta) -> bytes:
    """Insert one entry, newest first; an entry of the same record is there already, and the oldest fall off the end."""
    size = len(delta.entry)
    order = _ENTRY_ORDER.unpack_from(delta.entry)
    entries = [state[at : at + size] for at in range(0, len(state), size)]
    orders = [_ENTRY_ORDER.unpack_from(entry) for entry in entries]
    if order in orders:
        return state
    place = sum(other > order for other in orders)
    entries.insert(place, delta.entry)
    return b"".join(entries[: delta.capacity])


def digest(items: Iterable[tuple[str, bytes]]) -> str:
    """BLAKE2b-128 in hex over all entities, whatever their order.

    Zero words at the end of a value do not count, and an entity of zeros alone is as good as absent: a store may pad.
    """
    state = blake2b(digest_size=16)
    for key, value in sorted((key.encode(), value) for key, value in items):
        words = -(-len(value.rstrip(b"\0")) // WORD_BYTES)
        if words:
            content = value[: words * WORD_BYTES]
            state.update(struct.pack(">QQ", len(key), len(content)))
            state.update(key)
            state.update(content)
    return state.hexdigest()
