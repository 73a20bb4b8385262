"""The store on Redis or Valkey: feature state, id rows and positions, changed by fenced, atomic scripts.

In: reads, commits, claims of one worker. Out: state, marks, what a claim found. Invariant: every write is one script
that makes all of its checks before its first write, so a commit applies as a whole or not at all.

Keys begin with `tm:{<app>}:`: `s:<key>` feature state, `r:<id>` rows, `due:<partition>` sorted set of ids by due time,
`p:<partition>` owner, applied, committed, watermark, lagging, fresh; `o:<partition>` outbox, `partitions`,
`incarnation`, `lineage`, `config`. The braces keep an app on one node: scripts name keys themselves.
"""

from __future__ import annotations

import hashlib
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.resources import files
from itertools import islice
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tidemill.core.ports import Applied, Conflict
from tidemill.core.records import Commit, Due, Mark, Partition, Reads, StateView
from tidemill.core.state import digest
from tidemill.errors import ConfigError, FencedError, InvariantError, UnavailableError
from tidemill.io.commit_arguments import (
    Argument,
    check_commit,
    commit_arguments,
    parse_partition,
    partition_name,
    unpack_outbox,
)
from tidemill.io.store_answers import (
    ClaimedPartition,
    ClaimView,
    fenced,
    lost_view,
    other_configuration,
    store_not_empty,
)

__all__ = ["ClaimView", "ClaimedPartition", "RedisStore", "load_script"]

CONNECT_DEADLINE_S = 2.0  # a server on the same network answers within milliseconds
ANSWER_DEADLINE_S = 15.0  # rides out a pause of 10 s (fail-over, snapshot); no Kafka transaction is open meanwhile
VERSION_MIN = (7, 0)  # the first one whose scripts state their flags, on which atomicity under maxmemory rests
SCAN_KEYS = 2_000  # per round trip; bounds the reply, not the result
SCRIPT_NAMES = ("claim", "commit", "marks", "positions", "published", "rebuild", "release", "start", "touch")
UNCLAIMED = "unclaimed"  # before the first claim; equals no token and no incarnation
# Replies that say "not now" rather than "never": a fail-over, a start, another script, replicas missing, a full disk.
_NOT_NOW = (
    "READONLY",
    "LOADING",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "BUSY",
    "NOREPLICAS",
    "MISCONF",
    "UNBLOCKED",
)
_NOT_NOW_ERRORS = (
    redis.exceptions.ReadOnlyError,
    redis.exceptions.MasterDownError,
    redis.exceptions.ClusterDownError,
    redis.exceptions.TryAgainError,
)

Command = tuple[Argument, ...]


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
        random_hex: Callable[[int], str] = secrets.token_hex,
    ) -> None:
        """Connects at the first call.

        Args:
            owner_slot: the stable part of the owner token; two processes never share one at a time.
            config_digest: of everything that workers of one app must have in common.
            random_hex: given a number of bytes, hex that no other claim ever had.
        """
        self._app = app
        self._prefix = f"tm:{{{app}}}:"
        self._owner_slot = owner_slot
        self._config_digest = config_digest
        self._random_hex = random_hex
        # No retry by the client: after a lost reply the result is unknown, and only a claim can find it out.
        self._client = redis.Redis.from_url(
            url,
            protocol=2,
            retry=Retry(NoBackoff(), 0),
            socket_connect_timeout=CONNECT_DEADLINE_S,
            socket_timeout=ANSWER_DEADLINE_S,
        )
        settings = self._client.connection_pool.connection_kwargs
        self._address = settings.get("path") or f"{settings.get('host')}:{settings.get('port')}"
        self._scripts = {name: load_script(name) for name in SCRIPT_NAMES}
        self._hashes = {name: hashlib.sha1(source.encode()).hexdigest() for name, source in self._scripts.items()}
        self._token = UNCLAIMED
        self._incarnation: str | None = None

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
        replies = iter(self._run(*commands))
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
            known.update(zip(missing, self._run(command)[0], strict=True))
        return StateView(tuple(state), tuple(rows), tuple((entry, known[entry.id]) for entry in due), marks)

    def commit(self, commit: Commit) -> Applied | Conflict:
        check_commit(commit)
        arguments = commit_arguments(commit, self._prefix, self._incarnation or UNCLAIMED, self._token)
        answer, marks = self._run(self._script("commit", *arguments), self._script("marks"))
        if answer[0] == b"conflict":
            ids = list(commit.read_set)
            return Conflict(tuple(ids[place] for place in answer[1:]))
        _raise_if_fenced(answer)
        return Applied(_parse_marks(marks))

    def mark_published(self, offsets_next: Mapping[Partition, int]) -> Mapping[Partition, Mark]:
        pairs = [word for partition, at in offsets_next.items() for word in (partition_name(partition), at)]
        _, marks = self._run(self._script("published", self._token, *pairs), self._script("marks"))
        return _parse_marks(marks)

    def marks(self) -> Mapping[Partition, Mark]:
        return _parse_marks(self._run(self._script("marks"))[0])

    def claim(self, partitions: Sequence[Partition], *, may_create: bool) -> ClaimView:
        """Own exactly these partitions from now on: a new token voids every script that was sent before, ours too.

        Args:
            may_create: nothing is committed in Kafka, so a store without incarnation is new rather than lost.
        Raises:
            ConfigError: TM-4104, the store belongs to workers of another configuration; nothing was claimed.
            UnavailableError: no answer.
        """
        self._incarnation = None
        self._token = f"{self._owner_slot}:{self._random_hex(8)}"
        created = self._random_hex(8) if may_create else ""
        names = [partition_name(partition) for partition in partitions]
        answer = self._run(self._script("claim", self._token, self._config_digest, created, *names))[0]
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
                    _number(applied), _number(committed), unpack_outbox(_pairs(outbox))
                )
                for name, applied, committed, outbox in found
            },
        )

    def open_rebuild(self, new_incarnation: str, *earlier: str) -> str:
        """Give a lost store an incarnation; the first worker's holds and is returned. Claim again afterwards.

        Args:
            earlier: the incarnations found in committed offsets; the new one descends from them.
        Raises:
            StateLostError: TM-4105, positions are left, so only a part of the store is gone.
        """
        answer = self._run(self._script("rebuild", new_incarnation, *filter(None, earlier)))[0]
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
        self._run(self._script("release", self._token, *map(partition_name, partitions)))

    def set_positions(self, offsets: Mapping[Partition, int]) -> None:
        """For `tidemill reset`: applied and committed move, owners are voided, unsent outputs are dropped."""
        self._run(self._script("positions", *(w for p, at in offsets.items() for w in (partition_name(p), at))))

    def set_config(self) -> None:
        """For `tidemill reset --config`: from now on the store belongs to workers of this configuration."""
        self._run(("SET", self._prefix + "config", self._config_digest))

    def feature_digest(self) -> str:
        """Of the whole feature state; only meaningful while nobody commits."""

        def items() -> Iterator[tuple[str, bytes]]:
            for keys in self._scan("s:"):
                for key, value in zip(keys, self._run(("MGET", *keys))[0], strict=True):
                    if value is not None:
                        yield key[len(self._prefix) + 2 :].decode(), value

        return digest(items())

    def row_counts(self) -> dict[int, int]:
        """Rows by their state (core.rows.RowState)."""
        counts: Counter[int] = Counter()
        for keys in self._scan("r:"):
            states = self._run(*(("GETRANGE", key, 8, 8) for key in keys))
            counts.update(state[0] for state in states if state)
        return dict(counts)

    def check_server(self) -> None:
        """Refuse a server that may forget.

        Raises:
            ConfigError: TM-4106, it evicts keys; TM-4107, it is older than 7.0.
        """
        info: dict[str, Any] = self._run(("INFO",))[0]
        version = str(info["redis_version"])  # Valkey states the Redis version that it is compatible with
        if tuple(int(part) for part in version.split(".")[:2]) < VERSION_MIN:
            raise ConfigError(
                "TM-4107",
                f"store at {self._address} is Redis {version}; Tidemill needs Redis 7.0 or Valkey 7.2, or later",
            )
        policy = info["maxmemory_policy"]
        if policy != "noeviction":
            raise ConfigError(
                "TM-4106",
                f"store at {self._address} has maxmemory-policy {policy}: it would forget state in silence; set "
                "`maxmemory-policy noeviction` in its configuration",
            )

    def wipe(self) -> None:
        """Delete every key of the app."""
        for keys in self._scan(""):
            self._run(("UNLINK", *keys))

    def close(self) -> None:
        self._client.close()

    def _key(self, kind: str, partition: Partition) -> str:
        return f"{self._prefix}{kind}:{partition_name(partition)}"

    def _get_many(self, kind: str, names: Sequence[str]) -> list[Command]:
        start = self._prefix + kind
        return [("MGET", *[start + name for name in names])] if names else []

    def _script(self, name: str, *arguments: Argument) -> Command:
        return ("EVALSHA", self._hashes[name], 1, self._prefix, *arguments)

    def _fenced(self, script: str, *arguments: Argument) -> None:
        answer = self._run(self._script(script, self._incarnation or UNCLAIMED, self._token, *arguments))[0]
        _raise_if_fenced(answer)

    def _scan(self, kind: str) -> Iterator[list[bytes]]:
        """The keys of a kind, each once, in lists of at most SCAN_KEYS."""
        found: set[bytes] = set()
        cursor = 0
        while True:
            cursor, keys = self._run(("SCAN", cursor, "MATCH", f"{self._prefix}{kind}*", "COUNT", SCAN_KEYS))[0]
            found.update(keys)
            if int(cursor) == 0:
                break
        rest = iter(found)
        while keys := list(islice(rest, SCAN_KEYS)):
            yield keys

    def _run(self, *commands: Command) -> list[Any]:
        """The replies to commands sent in one round trip.

        Raises:
            UnavailableError: TM-3101, no answer or not now, what was sent may have taken effect; TM-3102, the server is
                full, nothing took effect.
            InvariantError: TM-9102, the server refuses a command for good.
        """
        try:
            replies = self._send(commands)
            unknown = [
                place for place, reply in enumerate(replies) if isinstance(reply, redis.exceptions.NoScriptError)
            ]
            if unknown:  # a new server, or one that was restarted
                self._send([("SCRIPT LOAD", source) for source in self._scripts.values()])
                for place, reply in zip(unknown, self._send([commands[place] for place in unknown]), strict=True):
                    replies[place] = reply
            for reply in replies:
                if isinstance(reply, Exception):
                    raise reply
        except redis.exceptions.OutOfMemoryError as error:
            raise UnavailableError(
                "TM-3102",
                f"store at {self._address} is full (maxmemory): {error}; nothing was written; raise maxmemory, the "
                "worker goes on by itself",
            ) from error
        except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError, *_NOT_NOW_ERRORS, OSError) as error:
            raise self._unavailable(error) from error
        except redis.exceptions.RedisError as error:
            if str(error).startswith(_NOT_NOW):
                raise self._unavailable(error) from error
            raise InvariantError("TM-9102", f"store at {self._address} refused {commands[0][0]!s}: {error}") from error
        return replies

    def _send(self, commands: Sequence[Command]) -> list[Any]:
        pipeline = self._client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)  # type: ignore[no-untyped-call]
        replies: list[Any] = pipeline.execute(raise_on_error=False)
        return replies

    def _unavailable(self, error: Exception) -> UnavailableError:
        return UnavailableError(
            "TM-3101",
            f"store at {self._address} does not answer: {error}; what was sent may have taken effect, the worker "
            "claims its partitions again; see whether the server runs and whether redis_url names it",
        )


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
