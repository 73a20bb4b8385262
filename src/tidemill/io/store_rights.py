"""What the user of `redis_url` may do, found out without changing anything.

In: a URL and an app's name. Out: for each need whether it is granted, and what is granted beyond it. Invariant: no key
comes or goes: what is written is the deletion of a key that nobody makes.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from tidemill.errors import ConfigError
from tidemill.io.redis_connection import Command, RedisConnection

_NEEDS: Mapping[str, tuple[Command, ...]] = {
    "connection": (("PING",),),
    "info": (("INFO", "server"),),
    "read": (("GET", "{prefix}doctor"), ("SCAN", 0, "MATCH", "{prefix}*", "COUNT", 1)),
    "write": (("DEL", "{prefix}doctor"),),
    "scripting": (("EVAL", "return redis.call('GET', KEYS[1])", 1, "{prefix}doctor"),),
}
_BEYOND: Mapping[str, Command] = {
    "keys of other apps": ("GET", "tm:{{of-no-app}}:doctor"),
    "commands of an administrator": ("CONFIG", "GET", "maxmemory-policy"),
}


class StoreProbe:
    """One connection that asks; `close` it."""

    def __init__(self, url: str, app: str) -> None:
        self._connection = RedisConnection(url, ())
        self._prefix = f"tm:{{{app}}}:"
        self.address = self._connection.address
        self.has_tls = urlsplit(url).scheme == "rediss"
        self.has_user = "@" in urlsplit(url).netloc

    def may(self, need: str) -> bool:
        """Whether the commands of this need are granted.

        Raises:
            UnavailableError: the store does not answer, or it refuses the password.
        """
        return all(self._is_granted(command) for command in _NEEDS[need])

    def granted_beyond(self) -> list[str]:
        """What the user may do that no part of Tidemill needs."""
        return [name for name, command in _BEYOND.items() if self._is_granted(command)]

    def close(self) -> None:
        self._connection.close()

    def _is_granted(self, command: Command) -> bool:
        words = tuple(one.format(prefix=self._prefix) if isinstance(one, str) else one for one in command)
        try:
            self._connection.run(words)
        except ConfigError:
            return False
        return True
