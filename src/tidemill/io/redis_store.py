"""The store on Redis or Valkey: feature state, id rows and positions, changed by fenced, atomic scripts.

In: reads, commits, claims of one worker. Out: state, marks, what a claim found. Invariant: every write is one script
that makes all of its checks before its first write, so a commit applies as a whole or not at all.

Keys begin with `tm:{<app>}:`: `s:<key>` feature state, `r:<id>` rows, `due:<partition>` sorted set of ids by due time,
`p:<partition>` owner, applied, committed, watermark, lagging, fresh, tried, tried_at, sequel; `o:<partition>` outbox,
`partitions`, `incarnation`, `lineage`, `config`, `features`; `filling` and `filled` while a fill goes on; of
io/cut_store.py `cut`, `cut:kept`, `restoring`, `restored`. The braces keep an app on one node: scripts name keys
themselves.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any

from tidemill.core.ports import Applied, Conflict
from tidemill.core.records import Commit, Due, Mark, Partition, Reads, StateView
from tidemill.core.state import digest
from tidemill.errors import ConfigError, FencedError, StateLostError
from tidemill.io.commit_arguments import (
    Argument,
    check_commit,
    commit_arguments,
    parse_partition,
    partition_name,
    unpack_outbox,
)
from tidemill.io.redis_connection import Command, RedisConnection
from tidemill.io.store_answers import (
    ClaimedPartition,
    ClaimView,
    being_restored,
    fenced,
    lost_view,
    other_configuration,
    store_not_empty,
)

__all__ = ["ClaimView", "ClaimedPartition", "RedisStore", "keys_to_delete", "load_script"]

VERSION_MIN = (7, 0)  # the first one whose scripts state their flags, on which atomicity under maxmemory rests
SCRIPT_NAMES = ("claim", "commit", "empty", "marks", "positions", "published", "rebuild", "release", "start", "touch")
LIFETIME_MS = 60_000  # without a sign of life for so long, who copies, restores or empties is taken for dead
UNCLAIMED = "unclaimed"  # before the first claim; equals no token and no incarnation


def load_script(name: str) -> str:
    """The source of one of the scripts beside this module."""
    return files("tidemill.io").joinpath(f"{name}.lua").read_text()


class RedisStore:
    """Fulfils `core.ports.Store`, and what claims need besides. One thread owns it."""

    def __init__(
        self,
        url: str,
        app: str,
        *,
        owner_slot: str,
        config_digest: str,
        features: str = "",
        random_hex: Callable[[int], str] = secrets.token_hex,
        failpoint: Callable[[str], None] = lambda name: None,
    ) -> None:
        """Connects at the first call.

        Args:
            owner_slot: the stable part of the owner token; two processes never share one at a time.
            config_digest: of everything that workers of one app must have in common.
            features: what the state belongs to (core.feature_versions); "" = not stated.
            random_hex: given a number of bytes, hex that no other claim ever had.
            failpoint: hears "F3" once a commit's script has run, before its reply is looked at.
        """
        self._app = app
        self._prefix = f"tm:{{{app}}}:"
        self._owner_slot = owner_slot
        self._config_digest = config_digest
        self._features = features
        self._random_hex = random_hex
        self._failpoint = failpoint
        scripts = {name: load_script(name) for name in SCRIPT_NAMES}
        self._connection = RedisConnection(url, list(scripts.values()))
        self._hashes = {name: hashlib.sha1(source.encode()).hexdigest() for name, source in scripts.items()}
        self._token = UNCLAIMED
        self._incarnation: str | None = None
        self._evicted: int | None = None  # keys, by the server's count at the last check

    @property
    def incarnation(self) -> str | None:
        """The store's incarnation at the last claim; None = not claimed yet, or the store was lost."""
        return self._incarnation

    def read(self, reads: Reads) -> StateView:
        """One round trip, and a second one when rows are due that `reads.ids` does not name."""
        # Marks first: a row newer than its mark counts as unpublished and is asked for again, never the reverse.
        commands: list[Command] = [self._script("marks")]
        commands += [
            (
                "ZRANGEBYSCORE",
                self._key("due", p),
                "-inf",
                f"({reads.due_before}",
                "WITHSCORES",
                "LIMIT",
                0,
                reads.due_limit,
            )
            for p in reads.due_partitions
        ]
        commands += self._get_many("s:", reads.state_keys)
        commands += self._get_many("r:", reads.ids)
        replies = iter(self._connection.run(*commands))
        marks = _parse_marks(next(replies))
        listed = [
            Due(partition, id_.decode(), int(time))
            for partition in reads.due_partitions
            for id_, time in _pairs(next(replies))
        ]
        listed.sort(key=lambda entry: (entry.time, entry.partition, entry.id))
        due = listed[: reads.due_limit]
        state = next(replies) if reads.state_keys else ()
        rows = next(replies) if reads.ids else ()
        known = dict(zip(reads.ids, rows, strict=True))
        missing = [entry.id for entry in due if entry.id not in known]
        for command in self._get_many("r:", missing):
            known.update(zip(missing, self._connection.run(command)[0], strict=True))
        return StateView(tuple(state), tuple(rows), tuple((entry, known[entry.id]) for entry in due), marks)

    def commit(self, commit: Commit) -> Applied | Conflict:
        check_commit(commit)
        arguments = commit_arguments(commit, self._prefix, self._incarnation or UNCLAIMED, self._token)
        answer, marks = self._connection.run(self._script("commit", *arguments), self._script("marks"))
        self._failpoint("F3")
        if answer[0] == b"conflict":
            ids = list(commit.read_set)
            return Conflict(tuple(ids[place] for place in answer[1:]))
        _raise_if_fenced(answer)
        return Applied(_parse_marks(marks))

    def mark_published(self, offsets_next: Mapping[Partition, int]) -> Mapping[Partition, Mark]:
        pairs = [word for partition, at in offsets_next.items() for word in (partition_name(partition), at)]
        _, marks = self._connection.run(self._script("published", self._token, *pairs), self._script("marks"))
        return _parse_marks(marks)

    def marks(self) -> Mapping[Partition, Mark]:
        return _parse_marks(self._connection.run(self._script("marks"))[0])

    def claim(self, partitions: Sequence[Partition], *, may_create: bool) -> ClaimView:
        """Own exactly these partitions from now on: a new token voids every script that was sent before, ours too.

        Args:
            may_create: nothing is committed in Kafka, so a store without incarnation is new rather than lost.
        Raises:
            ConfigError: TM-4104, the store belongs to workers of another configuration; nothing was claimed.
            UnavailableError: TM-4108, somebody restores or empties it; no answer.
        """
        self._incarnation = None
        self._token = f"{self._owner_slot}:{self._random_hex(8)}"
        created = self._random_hex(8) if may_create else ""
        names = [partition_name(partition) for partition in partitions]
        stated = (self._config_digest, created, self._features)
        answer = self._on_whole_store("claim", self._token, *stated, *names)
        if answer[0] == b"other configuration":
            raise other_configuration(self._app, ours=self._config_digest, found=answer[1].decode())
        if answer[0] == b"lost":
            return lost_view(tuple(partitions))
        _, incarnation, lineage, found = answer
        self._incarnation = incarnation.decode()
        return ClaimView(
            self._incarnation,
            frozenset(each.decode() for each in lineage),
            {
                parse_partition(name): ClaimedPartition(
                    _number(applied), _number(committed), unpack_outbox(_pairs(outbox)), attempts, sequel.decode()
                )
                for name, applied, committed, outbox, attempts, sequel in found
            },
        )

    def open_rebuild(self, new_incarnation: str, *earlier: str) -> str:
        """Give a lost store an incarnation; the first worker's holds and is returned. Claim again afterwards.

        Args:
            earlier: the incarnations found in committed offsets; the new one descends from them.
        Raises:
            StateLostError: TM-4105, positions are left, so only a part of the store is gone.
            UnavailableError: TM-4108, somebody restores or empties it.
        """
        answer = self._on_whole_store("rebuild", new_incarnation, *filter(None, earlier))
        if answer[0] == b"not empty":
            raise store_not_empty(self._app, parse_partition(answer[1]))
        return str(answer[1].decode())

    def set_start(self, partition: Partition, offset: int) -> None:
        """Record where a claimed partition without progress begins; until its first commit a claim finds it as new.

        Raises:
            FencedError: it is not ours, or it has progress.
        """
        self._fenced("start", partition_name(partition), offset)

    def touch(self, marks: Mapping[Partition, Mark]) -> None:
        """Show watermark (it only rises) and lag of claimed partitions; the other fields of the marks are not used.

        Raises:
            FencedError: one of them is not ours; none was changed.
        """
        words: list[Argument] = []
        for partition, mark in marks.items():
            words += (partition_name(partition), mark.watermark, int(mark.is_lagging))
        self._fenced("touch", *words)

    def release(self, partitions: Sequence[Partition]) -> None:
        """Give partitions back; those that are not ours stay as they are."""
        self._connection.run(self._script("release", self._token, *map(partition_name, partitions)))

    def set_positions(self, offsets: Mapping[Partition, int]) -> None:
        """For `tidemill reset`: applied and committed move, owners are voided, unsent outputs are dropped."""
        self._connection.run(
            self._script("positions", *(w for p, at in offsets.items() for w in (partition_name(p), at)))
        )

    def set_config(self) -> None:
        """For `tidemill reset --config`: from now on the store belongs to workers of this configuration."""
        values = {"config": self._config_digest, **({"features": self._features} if self._features else {})}
        words = [word for name, value in values.items() for word in (self._prefix + name, value)]
        self._connection.run(("DEL", self._prefix + "filling"), ("MSET", *words))

    def mark_loaded(self, version: str) -> None:
        """Tell who waits for it that this slot has the model version at hand."""
        self._connection.run(("SADD", f"{self._prefix}loaded:{version}", self._owner_slot))

    def loaded_slots(self, version: str) -> frozenset[str]:
        """The slots that said so."""
        return frozenset(
            slot.decode() for slot in self._connection.run(("SMEMBERS", f"{self._prefix}loaded:{version}"))[0]
        )

    def forget_loaded(self, version: str) -> None:
        """Before a version is prepared anew: what was said of an earlier time does not count."""
        self._connection.run(("DEL", f"{self._prefix}loaded:{version}"))

    def restored(self) -> Mapping[str, Any]:
        """Of which cut this store was restored, as `apps.restoring` wrote it; empty = of none."""
        found = self._connection.run(("GET", self._prefix + "restored"))[0]
        values: dict[str, Any] = {} if found is None else json.loads(found)
        return values

    def feature_digest(self) -> str:
        """Of the whole feature state; only meaningful while nobody commits."""

        def items() -> Iterator[tuple[str, bytes]]:
            for keys in self._connection.scan(f"{self._prefix}s:*"):
                for key, value in zip(keys, self._connection.run(("MGET", *keys))[0], strict=True):
                    if value is not None:
                        yield key[len(self._prefix) + 2 :].decode(), value

        return digest(items())

    def row_counts(self) -> dict[int, int]:
        """Rows by their state (core.rows.RowState)."""
        counts: Counter[int] = Counter()
        for keys in self._connection.scan(f"{self._prefix}r:*"):
            states = self._connection.run(*(("GETRANGE", key, 8, 8) for key in keys))
            counts.update(state[0] for state in states if state)
        return dict(counts)

    def check_server(self) -> None:
        """Refuse a server that may forget, or has forgotten since the first check.

        Raises:
            ConfigError: TM-4106, it evicts keys; TM-4107, it is older than 7.0.
            StateLostError: TM-4140, it has evicted keys meanwhile.
        """
        address = self._connection.address
        info: dict[str, Any] = self._connection.run(("INFO",))[0]
        version = str(info["redis_version"])  # Valkey states the Redis version that it is compatible with
        if tuple(int(part) for part in version.split(".")[:2]) < VERSION_MIN:
            raise ConfigError(
                "TM-4107",
                f"store at {address} is Redis {version}; Tidemill needs Redis 7.0 or Valkey 7.2, or later",
            )
        evicted, before = int(info["evicted_keys"]), self._evicted
        self._evicted = evicted
        if before is not None and evicted > before:
            raise StateLostError(
                "TM-4140",
                f"store at {address} has evicted {evicted - before} keys: state of {self._app} may have holes; set "
                "`maxmemory-policy noeviction`, give it more memory, then stop all workers and run `tidemill reset "
                "--to committed`: the log fills the store again",
            )
        policy = info["maxmemory_policy"]
        if policy != "noeviction":
            raise ConfigError(
                "TM-4106",
                f"store at {address} has maxmemory-policy {policy}: it would forget state in silence; set "
                "`maxmemory-policy noeviction` in its configuration",
            )

    def wipe(self) -> None:
        """Delete every key of the app. Nobody can claim meanwhile; the next claim deletes what a stop on the way left.

        Raises:
            UnavailableError: TM-4108, somebody else restores or empties it, or we were silent for too long.
        """
        token = self._random_hex(8)
        self._empty("begin", token)
        for keys in keys_to_delete(self._connection, self._prefix):
            self._empty("delete", token, *keys)
        self._empty("end", token)

    def _on_whole_store(self, script: str, *arguments: Argument) -> Any:
        """The answer of a script; first what is left by who was stopped while he emptied or restored it is deleted."""
        answer = self._connection.run(self._script(script, *arguments))[0]
        if answer[0] == b"unfinished":
            self.wipe()
            answer = self._connection.run(self._script(script, *arguments))[0]
            if answer[0] == b"unfinished":  # somebody has begun meanwhile
                raise being_restored(self._app)
        return answer

    def _empty(self, step: str, token: str, *keys: bytes) -> None:
        answer = self._connection.run(self._script("empty", step, token, LIFETIME_MS, *keys))[0]
        if answer[0] in (b"busy", b"interrupted"):
            raise being_restored(self._app)

    def close(self) -> None:
        self._connection.close()

    def _key(self, kind: str, partition: Partition) -> str:
        return f"{self._prefix}{kind}:{partition_name(partition)}"

    def _get_many(self, kind: str, names: Sequence[str]) -> list[Command]:
        start = self._prefix + kind
        return [("MGET", *[start + name for name in names])] if names else []

    def _script(self, name: str, *arguments: Argument) -> Command:
        return ("EVALSHA", self._hashes[name], 1, self._prefix, *arguments)

    def _fenced(self, script: str, *arguments: Argument) -> None:
        answer = self._connection.run(self._script(script, self._incarnation or UNCLAIMED, self._token, *arguments))[0]
        _raise_if_fenced(answer)


def keys_to_delete(connection: RedisConnection, prefix: str) -> Iterator[list[bytes]]:
    """The app's keys, but those that say that its store is being emptied or restored: they are the last to go."""
    held = {f"{prefix}restoring".encode(), f"{prefix}unfinished".encode()}
    for keys in connection.scan(f"{prefix}*"):
        if found := [key for key in keys if key not in held]:
            yield found


def _raise_if_fenced(answer: Sequence[bytes]) -> None:
    """Raises FencedError."""
    if answer[0] == b"fenced":
        check, name, expected, found = (word.decode() for word in answer[1:])
        partition = parse_partition(answer[2]) if name else None
        error: FencedError = fenced(check, partition, expected=expected, found=found)
        raise error


def _parse_marks(reply: Sequence[bytes]) -> dict[Partition, Mark]:
    return {
        parse_partition(name): Mark(owner.decode(), int(applied), int(committed), int(watermark), lagging == b"1")
        for name, owner, applied, committed, watermark, lagging in zip(*[iter(reply)] * 6, strict=True)
    }


def _pairs(flat: Sequence[bytes]) -> list[tuple[bytes, bytes]]:
    return list(zip(flat[::2], flat[1::2], strict=True))


def _number(word: bytes) -> int | None:
    return int(word) if word else None
