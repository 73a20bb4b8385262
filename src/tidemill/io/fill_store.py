"""The store while features are filled: new state beside the old, then one switch.

In: state and rows of the new declaration. Out: nothing a worker of the old one sees, until the switch shows all of it
at once. Invariant: between `begin` and `switch` no commit took effect, or the switch is refused.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice

from tidemill.core.rows import RowState
from tidemill.errors import FencedError
from tidemill.io.commit_arguments import Argument
from tidemill.io.redis_connection import RedisConnection
from tidemill.io.redis_store import load_script

CHUNK = 500  # keys per script: about 200 kB, under a millisecond


class FillStore:
    """One thread owns it."""

    def __init__(self, url: str, app: str) -> None:
        script = load_script("fill")
        self._prefix = f"tm:{{{app}}}:"
        self._connection = RedisConnection(url, [script])
        self._hash = hashlib.sha1(script.encode()).hexdigest()
        self._token = ""

    def in_force(self) -> tuple[str | None, str | None]:
        """The digest of the configuration and the declared features; None = no worker has claimed yet."""
        found = self._connection.run(("MGET", self._prefix + "config", self._prefix + "features"))[0]
        config, features = (None if each is None else each.decode() for each in found)
        return config, features

    def begin(self) -> None:
        """The store stands still from here on; a worker that claims ends this fill, and so does another fill."""
        self._token = secrets.token_hex(8)
        self._run("begin")

    def put_state(self, state: Mapping[str, bytes]) -> None:
        """Raises FencedError: a worker has claimed, or another fill has begun."""
        self._put("state", state)

    def put_rows(self, rows: Mapping[str, bytes]) -> None:
        """Keep new bytes of rows for the switch. Raises FencedError as `put_state`."""
        self._put("rows", rows)

    def switch(self, config_digest: str, features: str) -> None:
        """Rows, configuration and features change at once. Raises FencedError as `put_state`; then nothing changed."""
        self._run("switch", config_digest, features)

    def pending_rows(self) -> Iterator[tuple[str, bytes]]:
        """Predictions that wait for their label: id and row."""
        start = len(self._prefix) + 2
        for keys in self._connection.scan(f"{self._prefix}r:*"):
            for key, row in zip(keys, self._connection.run(("MGET", *keys))[0], strict=True):
                if row is not None and row[8] == RowState.PENDING:
                    yield key[start:].decode(), row

    def delete_state(self, is_wanted: Callable[[str], bool]) -> int:
        """How many keys were deleted."""
        start, deleted = len(self._prefix) + 2, 0
        for keys in self._connection.scan(f"{self._prefix}s:*"):
            wanted = [key for key in keys if is_wanted(key[start:].decode())]
            if wanted:
                self._connection.run(("UNLINK", *wanted))
            deleted += len(wanted)
        return deleted

    def close(self) -> None:
        self._connection.close()

    def _put(self, step: str, values: Mapping[str, bytes]) -> None:
        for chunk in _chunks(values.items()):
            self._run(step, *(word for pair in chunk for word in pair))

    def _run(self, step: str, *arguments: Argument) -> None:
        answer = self._connection.run(("EVALSHA", self._hash, 1, self._prefix, step, self._token, *arguments))[0]
        if answer[0] == b"interrupted":
            raise FencedError(
                "TM-4112",
                "the fill was interrupted: a worker claimed partitions, or another fill began; the former "
                "configuration is in force; stop all workers and run `tidemill features fill` again",
            )


def _chunks(pairs: Iterable[tuple[str, bytes]]) -> Iterator[list[tuple[str, bytes]]]:
    rest = iter(pairs)
    while chunk := list(islice(rest, CHUNK)):
        yield chunk
