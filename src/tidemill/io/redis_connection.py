"""One connection to Redis or Valkey: commands in one round trip, and what their failures mean.

In: commands. Out: replies. Invariant: nothing is sent a second time by itself, except to a server that answered that it
does not know a script: after a lost reply the result is unknown, and only a claim can find it out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tidemill.errors import ConfigError, InvariantError, UnavailableError
from tidemill.io.commit_arguments import Argument

CONNECT_DEADLINE_S = 2.0  # a server on the same network answers within milliseconds
ANSWER_DEADLINE_S = 15.0  # rides out a pause of 10 s (fail-over, snapshot); no Kafka transaction is open meanwhile
SCAN_KEYS = 2_000  # per round trip; bounds the reply, not the result
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


class RedisConnection:
    """Connects at the first call. One thread owns it."""

    def __init__(self, url: str, sources: Sequence[str], *, answer_deadline_s: float | None = None) -> None:
        """`sources`: the scripts that commands may call by their hash.

        Raises:
            ConfigError: TM-1080, the URL cannot be read.
        """
        self._sources = tuple(sources)
        try:
            self._client = redis.Redis.from_url(
                url,
                protocol=2,
                retry=Retry(NoBackoff(), 0),
                socket_connect_timeout=CONNECT_DEADLINE_S,
                socket_timeout=ANSWER_DEADLINE_S if answer_deadline_s is None else answer_deadline_s,
            )
            pool = self._client.connection_pool
            pool.connection_class(**pool.connection_kwargs)  # an option that nobody knows would show at the first call
        except (ValueError, TypeError):
            # What it says quotes the URL, and with it a part of the password.
            raise ConfigError(
                "TM-1080",
                "redis_url cannot be read; write redis://, rediss:// or unix://, then user:password@host:port/0, and "
                "options that exist; in a password %2F stands for /, %40 for @, %3A for :, %23 for #, %3F for ?",
            ) from None
        settings = self._client.connection_pool.connection_kwargs
        self.address = settings.get("path") or f"{settings.get('host')}:{settings.get('port')}"

    def close(self) -> None:
        self._client.close()

    def scan(self, pattern: str) -> Iterator[list[bytes]]:
        """The keys that match, each once, in lists of at most SCAN_KEYS."""
        found: set[bytes] = set()
        cursor = 0
        while True:
            cursor, keys = self.run(("SCAN", cursor, "MATCH", pattern, "COUNT", SCAN_KEYS))[0]
            found.update(keys)
            if int(cursor) == 0:
                break
        rest = iter(found)
        while keys := list(islice(rest, SCAN_KEYS)):
            yield keys

    def run(self, *commands: Command) -> list[Any]:
        """The replies to commands sent in one round trip.

        Raises:
            UnavailableError: TM-3101, no answer or not now, what was sent may have taken effect; TM-3102, the server is
                full, nothing took effect.
            ConfigError: TM-3103, its user may not run a command.
            InvariantError: TM-9102, the server refuses a command for good.
        """
        try:
            replies = self._send(commands)
            unknown = [
                place for place, reply in enumerate(replies) if isinstance(reply, redis.exceptions.NoScriptError)
            ]
            if unknown:  # a new server, or one that was restarted
                self._send([("SCRIPT LOAD", source) for source in self._sources])
                for place, reply in zip(unknown, self._send([commands[place] for place in unknown]), strict=True):
                    replies[place] = reply
            for reply in replies:
                if isinstance(reply, Exception):
                    raise reply
        except redis.exceptions.OutOfMemoryError as error:
            raise UnavailableError(
                "TM-3102",
                f"store at {self.address} is full (maxmemory): {error}; nothing was written; raise maxmemory, the "
                "worker goes on by itself",
            ) from error
        except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError, *_NOT_NOW_ERRORS, OSError) as error:
            raise self._unavailable(error) from error
        except redis.exceptions.RedisError as error:
            if isinstance(error, redis.exceptions.NoPermissionError) or "ACL failure in script" in str(error):
                raise ConfigError(
                    "TM-3103",
                    f"store at {self.address} does not let its user run {commands[0][0]!s}: {error}; grant what "
                    "docs/own-servers.md lists, `tidemill doctor --acls` says what is missing",
                ) from error
            if str(error).startswith(_NOT_NOW):
                raise self._unavailable(error) from error
            raise InvariantError("TM-9102", f"store at {self.address} refused {commands[0][0]!s}: {error}") from error
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
            f"store at {self.address} does not answer: {error}; what was sent may have taken effect, the worker "
            "claims its partitions again; see whether the server runs and whether redis_url names it",
        )
