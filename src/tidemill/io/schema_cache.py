"""Writers' schemas by the header of a record: asked of the registry once, kept on disk, shown with their age.

In: topics and headers. Out: schemas, or why there is none. Invariant: an id or a fingerprint means one schema for
ever, so what was found once is never asked again; only the registry's own word makes a header unknown.

A registry that is away changes nothing for schemas that are known. For the others `if_unreachable` decides: wait, which
keeps order and loses nothing, or dead_letter, which keeps the stream moving.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

from tidemill.errors import ConfigError, UnavailableError
from tidemill.io.framing import CONFLUENT_HEADER_BYTES, fingerprint_text, header_of
from tidemill.io.schema_registry import NotAvroError, SchemaRegistry

UNKNOWN_S = 30.0  # how long the registry's "I do not know it" is believed
ASK_AGAIN_S = 0.5  # a registry of several nodes may learn of an id a moment after its producer
AWAY_S = 1.0  # how long a registry that did not answer is left alone; also the pace of a worker that waits
UNKNOWN_MAX = 10_000

IfUnreachable = Literal["wait", "dead_letter"]
_Answer = TypeVar("_Answer")


class SchemaCache:
    """Fulfils `io.wire.Schemas`; `find` is for the compute thread, `refresh` for a thread of its own.

    Args:
        topics: whose subjects `refresh` reads; a subject is `<topic>-value`.
        folder: of this registry's schemas; made when needed.
        report: gets a line when the registry goes away and when it is back.
    """

    def __init__(
        self,
        registry: SchemaRegistry,
        *,
        topics: Sequence[str],
        folder: Path,
        if_unreachable: IfUnreachable,
        report: Callable[[str], None],
        now_s: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._registry = registry
        self._topics = topics
        self._folder = folder / hashlib.blake2b(registry.name.encode(), digest_size=6).hexdigest()
        self._if_unreachable = if_unreachable
        self._report = report
        self._now_s = now_s
        self._sleep = sleep
        self._lock = threading.Lock()
        self._known: dict[bytes, dict[str, Any]] = {}
        self._unknown: dict[bytes, tuple[float, str]] = {}  # until when, why
        self._listed: dict[str, float] = {}  # when a topic's subject was last read
        self._seen: dict[str, set[int]] = {}  # its versions
        self._asked_again = -ASK_AGAIN_S * 20
        self._away: tuple[float, UnavailableError] | None = None  # when it last did not answer
        self._answered = now_s()
        self.is_waiting = False  # a record waits for the registry to come back
        self._load()

    @property
    def age_s(self) -> float:
        """Seconds since the registry last answered, or since the start."""
        return self._now_s() - self._answered

    @property
    def count(self) -> int:
        """Headers whose schema is known."""
        return len(self._known)

    def find(self, topic: str, header: bytes) -> Mapping[str, Any] | str:
        """The schema that wrote a value with this header, or why there is none.

        Raises:
            UnavailableError: TM-3060, it is not known here and the registry is away; only where that means to wait.
            ConfigError: TM-1315, the registry refuses our credentials.
        """
        found = self._known.get(header)
        if found is not None:
            return found
        until, why = self._unknown.get(header, (0.0, ""))
        if why and self._now_s() < until:
            return why
        try:
            return self._ask(topic, header)
        except UnavailableError as error:
            if self._if_unreachable == "dead_letter":
                return f"{name_of(header)} is not in the cache, and {error.message}"
            self.is_waiting = True
            self._sleep(AWAY_S)  # the worker discards its batch and begins it again at once
            raise

    def refresh(self) -> None:
        """Read what is new in the subjects of the topics, ahead of its first record. Errors as `find`."""
        for topic in self._topics:
            self._list(topic)

    def keep_fresh(self, every_s: float) -> Callable[[], None]:
        """Refresh in a thread, now and every `every_s` seconds; what ends that."""
        stop = threading.Event()

        def run() -> None:
            while True:
                with contextlib.suppress(UnavailableError):  # `_asked` has said so; age_s grows
                    try:
                        self.refresh()
                    except ConfigError as error:
                        self._report(str(error))
                if stop.wait(every_s):
                    return

        thread = threading.Thread(target=run, name="schemas", daemon=True)
        thread.start()

        def end() -> None:
            stop.set()
            thread.join(timeout=5.0)

        return end

    def _ask(self, topic: str, header: bytes) -> Mapping[str, Any] | str:
        if self._away is not None and self._now_s() < self._away[0] + AWAY_S:
            raise self._away[1]
        if len(header) != CONFLUENT_HEADER_BYTES:
            return self._by_fingerprint(topic, header)
        schema_id = int.from_bytes(header[1:], "big")
        why = f"{name_of(header)} is not in the schema registry {self._registry.name}"
        try:
            found = self._asked(lambda: self._registry.by_id(schema_id))
            if found is None and self._now_s() > self._asked_again + 20 * ASK_AGAIN_S:
                self._asked_again = self._now_s()
                self._sleep(ASK_AGAIN_S)
                found = self._asked(lambda: self._registry.by_id(schema_id))
        except NotAvroError as error:
            found, why = None, str(error)
        if found is None:
            return self._remember_unknown(header, why)
        self._remember(header, found)
        return found

    def _by_fingerprint(self, topic: str, header: bytes) -> Mapping[str, Any] | str:
        """A registry knows no fingerprints: read the topic's versions, and compute them."""
        if self._now_s() > self._listed.get(topic, -UNKNOWN_S) + ASK_AGAIN_S:
            self._list(topic)
        found = self._known.get(header)
        if found is not None:
            return found
        return self._remember_unknown(header, f"{name_of(header)} is in no version of {subject_of(topic)}")

    def _list(self, topic: str) -> None:
        """Learn the versions of a topic's subject that were not seen so far."""
        seen = self._seen.setdefault(topic, set())
        for version in self._asked(lambda: self._registry.versions(subject_of(topic), without=frozenset(seen))):
            seen.add(version.version)
            if version.schema is not None:
                self._remember(confluent_header(version.id), version.schema)
                # What is no Avro has no fingerprint; asked for by its id, it says why.
                with contextlib.suppress(Exception):
                    self._remember(header_of(version.schema), version.schema)
        self._listed[topic] = self._now_s()

    def _asked(self, request: Callable[[], _Answer]) -> _Answer:
        """The answer; says when the registry goes away and when it is back."""
        try:
            answer = request()
        except UnavailableError as error:
            if self._away is None:
                self._report(f"{error.message}; {self.count} schemas are known and go on being read")
            self._away = (self._now_s(), error)
            raise
        if self._away is not None:
            self._report(f"schema registry {self._registry.name} answers again, after {self.age_s:.0f} s")
        self._away = None
        self.is_waiting = False
        self._answered = self._now_s()
        return answer

    def _remember(self, header: bytes, schema: dict[str, Any]) -> None:
        with self._lock:
            if header in self._known:
                return
            self._known[header] = schema
            self._unknown.pop(header, None)
        path = self._folder / f"{header.hex()}.json"
        partial = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            partial.write_text(json.dumps(schema), encoding="utf-8")
            partial.replace(path)
        except OSError as error:  # it serves only a start while the registry is away
            self._report(f"schemas cannot be kept in {self._folder}: {error}")

    def _remember_unknown(self, header: bytes, why: str) -> str:
        if len(self._unknown) >= UNKNOWN_MAX:
            self._unknown.clear()
        self._unknown[header] = (self._now_s() + UNKNOWN_S, why)
        return why

    def _load(self) -> None:
        """What earlier workers learned; a file that cannot be read is asked for again."""
        for path in self._folder.glob("*.json"):
            with contextlib.suppress(OSError, ValueError):
                schema = json.loads(path.read_text(encoding="utf-8"))
                if isinstance(schema, dict):
                    self._known[bytes.fromhex(path.stem)] = schema


def subject_of(topic: str) -> str:
    """Under which name the schemas of a topic's values are registered."""
    return f"{topic}-value"


def confluent_header(schema_id: int) -> bytes:
    """The five bytes in front of a value that a registry's client wrote."""
    return b"\x00" + schema_id.to_bytes(4, "big")


def name_of(header: bytes) -> str:
    """A header's schema in words."""
    if len(header) == CONFLUENT_HEADER_BYTES:
        return f"schema id {int.from_bytes(header[1:], 'big')}"
    return f"schema {fingerprint_text(header)}"
