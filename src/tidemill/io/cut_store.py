"""The store while it is copied, and while a copy is put back: both whole or not at all.

In: an app's store. Out: every key of its state and rows as they were at one moment, with the positions of that moment;
or such a copy made the store. Invariant: workers commit on while a cut is read and nothing of that is in it; no worker
can claim a store that is half restored.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tidemill.core.records import Due, Partition
from tidemill.errors import FencedError, StateLostError, UnavailableError
from tidemill.io.commit_arguments import Argument, parse_partition, partition_name
from tidemill.io.redis_connection import RedisConnection
from tidemill.io.redis_store import LIFETIME_MS, keys_to_delete, load_script
from tidemill.io.store_answers import being_restored, store_not_empty

PAGE_KEYS = 1_000  # per script: 1 MB of 1 kB values, about a millisecond of the server
KINDS = (b"s:", b"r:")  # state and rows; everything else is in the head or follows from these

Pair = tuple[bytes, bytes]


@dataclass(frozen=True, slots=True)
class PartitionCut:
    """The store's record of one partition; `slices` are the fields of its outbox."""

    record: Mapping[str, str]
    slices: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def applied(self) -> int | None:
        """The next offset; None = nothing was applied yet."""
        return int(self.record["applied"]) if "applied" in self.record and "fresh" not in self.record else None


@dataclass(frozen=True, slots=True)
class CutHead:
    """What a cut is of: positions and outboxes of all partitions, configuration, and which store it was."""

    incarnation: str
    lineage: frozenset[str]
    config_digest: str
    features: str
    partitions: Mapping[Partition, PartitionCut]


class CutStore:
    """One thread owns it."""

    def __init__(self, url: str, app: str, *, lifetime_ms: int = LIFETIME_MS) -> None:
        self._app = app
        self._prefix = f"tm:{{{app}}}:"
        self._lifetime_ms = lifetime_ms
        scripts = {name: load_script(name) for name in ("cut", "restore")}
        self._connection = RedisConnection(url, list(scripts.values()))
        self._hashes = {name: hashlib.sha1(source.encode()).hexdigest() for name, source in scripts.items()}
        self._token = ""

    def close(self) -> None:
        self._connection.close()

    # The cut ---------------------------------------------------------------------------------------------------

    def begin(self) -> CutHead:
        """The moment of the cut.

        Raises:
            StateLostError: TM-4302, the store holds nothing of the app.
            UnavailableError: TM-4109, another cut is being taken, or features are being filled.
        """
        self._token = secrets.token_hex(8)
        answer = self._run("cut", "begin")
        if answer[0] == b"lost":
            raise StateLostError("TM-4302", f"the store holds nothing of app {self._app}, so there is nothing to keep")
        if answer[0] == b"busy":
            raise UnavailableError(
                "TM-4109",
                f"app {self._app}: another snapshot is being taken, or features are being filled; if that process is "
                f"dead, the next one can begin in {answer[1] / 1000:.0f} s",
            )
        _, incarnation, lineage, config, features, found = answer
        names = ("applied", "committed", "watermark", "lagging", "fresh")
        return CutHead(
            incarnation.decode(),
            frozenset(word.decode() for word in lineage),
            config.decode(),
            features.decode(),
            {
                parse_partition(name): PartitionCut(
                    {one: value.decode() for one, value in zip(names, record, strict=True) if value},
                    {at.decode(): slice_ for at, slice_ in zip(outbox[::2], outbox[1::2], strict=True)},
                )
                for name, *record, outbox in found
            },
        )

    def pages(self) -> Iterator[list[Pair]]:
        """Every (key without the app's prefix, value) of the cut, each key once.

        Raises:
            FencedError: TM-4113, the cut ended before it was read; what was yielded is of no use.
        """
        seen: set[bytes] = set()
        cursor = 0
        while True:
            cursor, keys = self._connection.run(("SCAN", cursor, "MATCH", f"{self._prefix}*", "COUNT", PAGE_KEYS))[0]
            yield from self._take(keys, seen)
            if int(cursor) == 0:
                break
        while True:  # what was deleted before the scan came to it
            cursor, kept = self._connection.run(("HSCAN", self._prefix + "cut:kept", cursor, "COUNT", PAGE_KEYS))[0]
            yield from self._take(list(kept), seen)
            if int(cursor) == 0:
                break

    def end(self) -> None:
        """Let commits go on without keeping anything. Raises FencedError as `pages`: the cut was not whole."""
        self._run("cut", "end")

    def abandon(self) -> None:
        """End the cut if it is still ours, whatever became of it."""
        try:
            self.end()
        except (FencedError, UnavailableError):
            return

    def _take(self, keys: Sequence[bytes], seen: set[bytes]) -> Iterator[list[Pair]]:
        start = len(self._prefix)
        wanted = [key for key in dict.fromkeys(keys) if key[start : start + 2] in KINDS and key not in seen]
        seen.update(wanted)
        for first in range(0, len(wanted), PAGE_KEYS):
            page = wanted[first : first + PAGE_KEYS]
            values = self._run("cut", "take", *page)[1:]
            yield [(key[start:], value) for key, value in zip(page, values, strict=True) if value is not None]

    # The way back ----------------------------------------------------------------------------------------------

    def begin_restore(self) -> None:
        """From here on nobody can claim. What an interrupted restore left is deleted.

        Raises:
            UnavailableError: TM-4108, another process restores.
            StateLostError: TM-4105, the store is not empty.
        """
        self._token = secrets.token_hex(8)
        answer = self._run("restore", "begin")
        if answer[0] == b"busy":
            raise being_restored(self._app)
        if answer[0] == b"not empty":
            if answer[1] == b"incarnation":
                raise StateLostError(
                    "TM-4114",
                    f"app {self._app}: the store is not lost; a restore would put it back to an older state. If you "
                    "want that, stop all workers and run `tidemill restore --replace`",
                )
            raise store_not_empty(self._app, parse_partition(answer[1]))
        for keys in keys_to_delete(self._connection, self._prefix):
            self._run("restore", "delete", *keys)

    def put(self, pairs: Iterable[Pair], due: Iterable[Due]) -> None:
        """Write keys as `pages` gave them, and the due entries of the rows among them."""
        prefix = self._prefix.encode()
        words = [word for key, value in pairs for word in (prefix + key, value)]
        if words:
            self._run("restore", "state", *words)
        by_partition: dict[Partition, list[Argument]] = {}
        for partition, id_, time in due:
            by_partition.setdefault(partition, []).extend((time, id_))
        for partition, entries in by_partition.items():
            self._run("restore", "due", partition_name(partition), *entries)

    def finish(self, head: CutHead, *, incarnation: str, earlier: frozenset[str], restored: Mapping[str, Any]) -> None:
        """Make it the app's store, under a new incarnation that descends from those of the cut and of `earlier`.

        Args:
            restored: what a roll-forward may rely on, see `RedisStore.restored`.
        """
        lineage = sorted({head.incarnation, *head.lineage, *earlier} - {""})
        words: list[Argument] = [incarnation, head.config_digest, head.features, json.dumps(restored, sort_keys=True)]
        words += [len(lineage), *lineage]
        for partition, found in head.partitions.items():
            words.append(partition_name(partition))
            for fields in (found.record, found.slices):
                words.append(len(fields))
                words += [word for pair in fields.items() for word in pair]
        self._run("restore", "finish", *words)

    def _run(self, script: str, step: str, *arguments: Argument) -> Any:
        fixed = (1, self._prefix, step, self._token, self._lifetime_ms)
        answer = self._connection.run(("EVALSHA", self._hashes[script], *fixed, *arguments))[0]
        if answer[0] == b"interrupted":
            what = "cut" if script == "cut" else "restore"
            raise FencedError(
                "TM-4113",
                f"app {self._app}: the {what} was interrupted: it was silent for more than "
                f"{self._lifetime_ms / 1000:.0f} s, the store was emptied, or features were filled; begin it again",
            )
        return answer
