"""Snapshots of the store in an object store: parts first, the manifest last.

In: a cut's head and its keys page by page. Out: objects; and back. Invariant: a snapshot without its manifest does not
exist; a part whose bytes are not those of the manifest is refused before anything is restored from it.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import secrets
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from tidemill.core.records import Partition
from tidemill.errors import StateLostError, UnavailableError
from tidemill.io.cut_store import CutHead, Pair, PartitionCut
from tidemill.io.object_store import MISSING, UNREACHABLE, open_store

FORMAT = "tidemill.store.v1"
MANIFEST = "manifest.json"
PART_BYTES = 32 << 20  # before compression; bounds the memory of both directions
_ID = re.compile(r"(?P<ms>\d{15})-[0-9a-f]{8}")
_LENGTHS = struct.Struct(">II")


@dataclass(frozen=True, slots=True)
class Part:
    """One object of a snapshot: `size` bytes before compression, BLAKE2b-128 of what is stored."""

    name: str
    size: int
    digest: str


@dataclass(frozen=True, slots=True)
class StoreSnapshot:
    """A snapshot that is whole.

    id: sorts as they were taken, whatever the clocks said. head: its positions. log_ends: by output topic, where each
    partition's log stood just before the cut: what was published before is in the cut. open_rows: by partition of the
    event (or waiting label), the rows of the cut that were pending and waiting. keys: how many state keys and rows.
    """

    id: str
    taken_ms: int
    head: CutHead
    log_ends: Mapping[str, tuple[int, ...]]
    open_rows: Mapping[Partition, tuple[int, int]]
    keys: int
    parts: tuple[Part, ...]

    @property
    def size(self) -> int:
        """Bytes of state and rows."""
        return sum(part.size for part in self.parts)


@dataclass(frozen=True, slots=True)
class Descent:
    """What a restored store began with: `snapshot` (its id), of the store `incarnation`."""

    incarnation: str
    snapshot: str


class StoreSnapshots:
    """The snapshots of one app, and which store began with which of them."""

    def __init__(self, url_or_folder: str | Path, app: str) -> None:
        """`url_or_folder`: a folder, made when absent, or a URL such as s3://bucket/prefix."""
        self._store = open_store(url_or_folder)
        self._folder = f"{app}/"

    def new_id(self, taken_ms: int) -> str:
        """An id that sorts behind all that are there: when one of them was taken, a clock may have been ahead."""
        newest_ms = max((int(one["ms"]) for id_, _ in self._listed() if (one := _ID.fullmatch(id_))), default=-1)
        return f"{max(taken_ms, newest_ms + 1):015d}-{secrets.token_hex(4)}"

    def put_parts(self, id_: str, pages: Iterable[list[Pair]]) -> tuple[Part, ...]:
        """Write what the pages hold; it becomes a snapshot with `put_manifest` only."""
        parts: list[Part] = []
        chunks: list[bytes] = []
        size = 0
        for page in pages:
            for key, value in page:
                chunks += (_LENGTHS.pack(len(key), len(value)), key, value)
                size += _LENGTHS.size + len(key) + len(value)
            if size >= PART_BYTES:
                parts.append(self._put_part(id_, len(parts), chunks))
                chunks, size = [], 0
        if chunks:
            parts.append(self._put_part(id_, len(parts), chunks))
        return tuple(parts)

    def put_manifest(self, snapshot: StoreSnapshot) -> None:
        line = json.dumps({"format": FORMAT, **_as_json(snapshot)}, sort_keys=True).encode()
        self._put(f"{self._folder}{snapshot.id}/{MANIFEST}", line + b"\n" + _digest(line).encode())

    def put_descent(self, incarnation: str, descent: Descent) -> None:
        """Note what the store `incarnation` begins with; some hundred bytes that are kept for ever."""
        line = json.dumps(asdict(descent), sort_keys=True).encode()
        self._put(self._descent_path(incarnation), line + b"\n" + _digest(line).encode())

    def descent(self, incarnation: str) -> Descent | None:
        """What the store began with; None = not with a snapshot, or that is not known (any more)."""
        try:
            line, _, check = self._get(self._descent_path(incarnation)).partition(b"\n")
        except MISSING:
            return None
        return Descent(**json.loads(line)) if check.decode(errors="replace") == _digest(line) else None

    def ids(self) -> list[str]:
        """Of the snapshots that are whole, newest first."""
        return [id_ for id_, names in self._listed() if MANIFEST in names]

    def load(self, id_: str) -> StoreSnapshot:
        """The snapshot's manifest.

        Raises:
            StateLostError: TM-4115, there is none, or it is cut or changed.
        """
        path = f"{self._folder}{id_}/{MANIFEST}"
        try:
            line, _, check = self._get(path).partition(b"\n")
        except MISSING:
            known = ", ".join(self.ids()) or "none"
            raise StateLostError("TM-4115", f"there is no snapshot {id_}; there is {known}") from None
        if check.decode(errors="replace") != _digest(line):
            raise _broken(path, "it is cut or changed")
        values = json.loads(line)
        if values.pop("format", None) != FORMAT:
            raise _broken(path, f"it is not of format {FORMAT}")
        return _from_json(values)

    def pages(self, snapshot: StoreSnapshot) -> Iterator[list[Pair]]:
        """What `put_parts` was given, a part at a time.

        Raises:
            StateLostError: TM-4115, a part is missing, cut or changed.
        """
        for part in snapshot.parts:
            yield _unpack(self._get_part(snapshot.id, part))

    def check(self, snapshot: StoreSnapshot) -> None:
        """Read every part. Raises StateLostError as `pages`, before anything is touched."""
        for part in snapshot.parts:
            self._get_part(snapshot.id, part)

    def drop_old(self, kept: int, taken: str) -> list[str]:
        """Delete all but the `kept` newest, and what is left of older ones that never became whole; the ids.

        Args:
            taken: the snapshot that was put just now; it stays, whatever the others are called.
        """
        listed = self._listed()
        whole = [id_ for id_, names in listed if MANIFEST in names]
        wanted = {*whole[:kept], taken}
        dropped = []
        for id_, names in listed:
            # What is newer than the newest whole one may be in the making.
            if id_ in wanted or not whole or id_ > whole[0]:
                continue
            for name in sorted(names, key=lambda name: name != MANIFEST):  # first it ceases to be whole
                self._delete(f"{self._folder}{id_}/{name}")
            dropped.append(id_)
        return dropped

    def _descent_path(self, incarnation: str) -> str:
        return f"{self._folder}descents/{incarnation}/descent.json"  # one folder deeper than what is of a snapshot

    def _listed(self) -> list[tuple[str, list[str]]]:
        """(id, names of its objects), newest first."""
        found: dict[str, list[str]] = {}
        with _answered(self._folder):
            for page in self._store.list(prefix=self._folder):
                for meta in page:
                    id_, _, name = meta["path"].removeprefix(self._folder).partition("/")
                    if name and "/" not in name:
                        found.setdefault(id_, []).append(name)
        return sorted(found.items(), reverse=True)

    def _put_part(self, id_: str, number: int, chunks: list[bytes]) -> Part:
        raw = b"".join(chunks)
        data = pa.Codec("zstd").compress(raw, asbytes=True)
        part = Part(f"part-{number:05d}", len(raw), _digest(data))
        self._put(f"{self._folder}{id_}/{part.name}", data)
        return part

    def _get_part(self, id_: str, part: Part) -> bytes:
        path = f"{self._folder}{id_}/{part.name}"
        try:
            data = self._get(path)
        except MISSING:
            raise _broken(path, "it is missing") from None
        if _digest(data) != part.digest:
            raise _broken(path, "its bytes are cut or changed")
        raw: bytes = pa.Codec("zstd").decompress(data, part.size, asbytes=True)
        return raw

    def _put(self, path: str, data: bytes) -> None:
        with _answered(path):
            self._store.put(path, data, mode="create")

    def _get(self, path: str) -> bytes:
        with _answered(path):
            return bytes(self._store.get(path).bytes())

    def _delete(self, path: str) -> None:
        try:
            with _answered(path):
                self._store.delete(path)
        except MISSING:
            return  # another process was faster


@contextmanager
def _answered(path: str) -> Iterator[None]:
    """What is missing stays what it is; any other trouble of the object store is nobody's fault yet."""
    try:
        yield
    except MISSING:
        raise
    except UNREACHABLE as error:
        raise UnavailableError(
            "TM-3104", f"object store, {path}: {error}; see whether `object_store` can be reached, and its rights"
        ) from error


def _unpack(raw: bytes) -> list[Pair]:
    pairs = []
    at = 0
    while at < len(raw):
        key_size, value_size = _LENGTHS.unpack_from(raw, at)
        at += _LENGTHS.size
        pairs.append((raw[at : at + key_size], raw[at + key_size : at + key_size + value_size]))
        at += key_size + value_size
    return pairs


def _as_json(snapshot: StoreSnapshot) -> dict[str, Any]:
    head = snapshot.head
    return {
        "id": snapshot.id,
        "taken_ms": snapshot.taken_ms,
        "incarnation": head.incarnation,
        "lineage": sorted(head.lineage),
        "config_digest": head.config_digest,
        "features": head.features,
        "partitions": [
            {
                "topic": partition.topic,
                "number": partition.number,
                "record": dict(found.record),
                "slices": {at: base64.b64encode(slice_).decode() for at, slice_ in found.slices.items()},
                "open_rows": snapshot.open_rows.get(partition, (0, 0)),
            }
            for partition, found in sorted(head.partitions.items())
        ],
        "log_ends": {topic: list(ends) for topic, ends in snapshot.log_ends.items()},
        "keys": snapshot.keys,
        "parts": [asdict(part) for part in snapshot.parts],
    }


def _from_json(values: Mapping[str, Any]) -> StoreSnapshot:
    places = {Partition(one["topic"], one["number"]): one for one in values["partitions"]}
    head = CutHead(
        values["incarnation"],
        frozenset(values["lineage"]),
        values["config_digest"],
        values["features"],
        {
            place: PartitionCut(one["record"], {at: base64.b64decode(text) for at, text in one["slices"].items()})
            for place, one in places.items()
        },
    )
    return StoreSnapshot(
        values["id"],
        values["taken_ms"],
        head,
        {topic: tuple(ends) for topic, ends in values["log_ends"].items()},
        {place: (one["open_rows"][0], one["open_rows"][1]) for place, one in places.items()},
        values["keys"],
        tuple(Part(**part) for part in values["parts"]),
    )


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _broken(path: str, reason: str) -> StateLostError:
    return StateLostError(
        "TM-4115", f"snapshot {path}: {reason}; restore an older one (`tidemill snapshot --list`), or let the log do it"
    )
