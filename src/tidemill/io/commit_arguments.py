"""A commit as the flat arguments of `commit.lua`, and the checks that need no store.

In: a `Commit`. Out: the script's arguments, counts before what they count. Invariant: the order is the one in which the
script reads them; what the script cannot check without half a write is refused here.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from tidemill.core.records import Commit, Due, LatestDelta, PaneDelta, Partition, Span
from tidemill.errors import InvariantError

Argument = str | bytes | int

_START = struct.Struct(">q")
_PANES = struct.Struct(">III")  # first word, word after the last one, number of cells and whether they take the maximum
_TAKES_MAX = 1 << 16  # more than any number of cells
# word, tag, cells: big-endian, so that the packed deltas of a key sort by word
_DELTAS = [struct.Struct(f">Iq{count}q") for count in range(32)]


def partition_name(partition: Partition) -> str:
    """How keys and replies name a partition; topics have no colon."""
    return f"{partition.topic}:{partition.number}"


def parse_partition(name: bytes) -> Partition:
    topic, _, number = name.decode().rpartition(":")
    return Partition(topic, int(number))


def is_silent(span: Span) -> bool:
    """A span without offsets and without watermark: it asks for the owner's check and teaches nothing."""
    return span.start == span.next and span.watermark < 0


def stored_slice(span: Span, outputs: bytes | None) -> bytes | None:
    """What the outbox keeps of a span; None when there is nothing to publish and no offset to cover."""
    if span.start == span.next and not outputs:
        return None
    return _START.pack(span.start) + (outputs or b"")


def unpack_outbox(fields: Iterable[tuple[bytes, bytes]]) -> tuple[tuple[int, int, bytes], ...]:
    """(start, next, outputs) of every stored slice, in the order of the commits that made them."""
    in_order = []
    for field, value in fields:
        next_, _, sequel = field.partition(b":")
        in_order.append((int(next_), int(sequel or 0), value))
    in_order.sort()
    return tuple((_START.unpack_from(value)[0], next_, value[_START.size :]) for next_, _, value in in_order)


def check_commit(commit: Commit) -> None:
    """Refuse what no pipeline makes.

    Raises:
        InvariantError: TM-9101, outputs without a span, a span that runs backwards, a row without revision.
    """
    stray = commit.slices.keys() - commit.spans.keys()
    backwards = [partition for partition, span in commit.spans.items() if span.next < span.start]
    bare = [id_ for id_, row in commit.rows.items() if row is not None and len(row) < 8]
    if stray or backwards or bare:
        raise InvariantError(
            "TM-9101",
            f"commit refused: outputs without span {[str(p) for p in stray]}, spans that run backwards "
            f"{[str(p) for p in backwards]}, rows without revision {bare[:5]}; this is a bug, please report it",
        )


def commit_arguments(commit: Commit, prefix: str, incarnation: str, token: str) -> list[Argument]:
    """The arguments of `commit.lua` after its key; `prefix` begins every key of the app."""
    rows = prefix + "r:"
    arguments: list[Argument] = [incarnation, token, len(commit.spans)]
    for partition, span in commit.spans.items():
        arguments += (
            partition_name(partition),
            span.start,
            span.next,
            "" if is_silent(span) else span.watermark,
            int(span.is_lagging),
            stored_slice(span, commit.slices.get(partition)) or b"",
        )
    revisions = commit.read_set.values()
    arguments += (len(commit.read_set), struct.pack(f">{len(revisions)}Q", *revisions))
    arguments += [rows + id_ for id_ in commit.read_set]
    written = [(id_, row) for id_, row in commit.rows.items() if row is not None]
    arguments.append(len(written))
    for id_, row in written:
        arguments.append(rows + id_)
        arguments.append(row)
    deleted = [rows + id_ for id_, row in commit.rows.items() if row is None]
    arguments.append(len(deleted))
    arguments += deleted
    _add_due(arguments, commit.due_remove, with_time=False)
    _add_due(arguments, commit.due_add, with_time=True)
    _add_panes(arguments, commit.pane_deltas, prefix + "s:")
    _add_latest(arguments, commit.latest_deltas, prefix + "s:")
    return arguments


def _add_due(arguments: list[Argument], entries: tuple[Due, ...], *, with_time: bool) -> None:
    by_partition: dict[Partition, list[Argument]] = {}
    for partition, id_, time in entries:
        members = by_partition.get(partition)
        if members is None:
            members = by_partition[partition] = []
        if with_time:
            members.append(time)
        members.append(id_)
    arguments.append(len(by_partition))
    for partition, members in by_partition.items():
        arguments += (partition_name(partition), len(members) >> with_time)
        arguments += members


def _add_panes(arguments: list[Argument], deltas: tuple[PaneDelta, ...], prefix: str) -> None:
    groups: dict[int, dict[str, list[bytes]]] = {}  # by shape: number of cells and whether they add up; then by key
    cell_count, is_maximum, pack = -1, False, _DELTAS[0].pack
    by_key: dict[str, list[bytes]] = {}
    for key, word, tag, cells, takes_max in deltas:
        if len(cells) != cell_count or takes_max is not is_maximum:
            cell_count, is_maximum = len(cells), takes_max
            pack = _DELTAS[cell_count].pack
            by_key = groups.setdefault(cell_count + takes_max * _TAKES_MAX, {})
        of_key = by_key.get(key)
        if of_key is None:
            by_key[key] = [pack(word, tag, *cells)]
        else:
            of_key.append(pack(word, tag, *cells))
    arguments.append(sum(map(len, groups.values())))
    for shape, by_key in groups.items():
        for key, of_key in by_key.items():
            of_key.sort()
            low, high = (int.from_bytes(packed[:4], "big") for packed in (of_key[0], of_key[-1]))
            # A slot is its tag and its cells; the script reads and writes the words from the first slot to the last.
            arguments.append(prefix + key)
            arguments.append(_PANES.pack(low, high + 1 + shape % _TAKES_MAX, shape) + b"".join(of_key))


def _add_latest(arguments: list[Argument], deltas: tuple[LatestDelta, ...], prefix: str) -> None:
    by_key: dict[str, list[LatestDelta]] = {}
    for delta in deltas:
        by_key.setdefault(delta.key, []).append(delta)
    arguments.append(len(by_key))
    for key, of_key in by_key.items():
        entries = b"".join(delta.entry for delta in of_key)
        arguments += (prefix + key, of_key[0].capacity, len(of_key[0].entry), entries)
