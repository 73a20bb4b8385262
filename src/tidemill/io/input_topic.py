"""One input topic: the schema by which it is read, and those by which it may be written.

In: a declaration, and headers of records. Out: for each header a `Resolution`, or the fault of all its records.
Invariant: a header that can be read stays readable; a stranger's schema may make dead letters, never an error.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from tidemill.core.spec import TopicSpec
from tidemill.errors import ConfigError
from tidemill.io.dead_letters import Code
from tidemill.io.framing import CONFLUENT_HEADER_BYTES, CONFLUENT_MAGIC, HEADER_BYTES, MAGIC, fingerprint_text
from tidemill.io.judge import Fault
from tidemill.io.resolution import ReaderSchema, Resolution


class Schemas(Protocol):
    """Where schemas are looked up that the app does not declare."""

    def find(self, topic: str, header: bytes) -> Mapping[str, Any] | str:
        """The schema that wrote a value with this header, or why there is none, in words.

        Raises:
            UnavailableError: nobody can say yet; the batch has to be decoded again.
        """


class InputTopic:
    """One input topic and what its records may be written with.

    Raises:
        ConfigError: TM-1310 the reader's schema cannot read a declared writer's; TM-1317 two writers look the same.
    """

    def __init__(self, spec: TopicSpec, writers: Sequence[Mapping[str, Any]], schemas: Schemas | None) -> None:
        self.spec = spec
        self.reader = ReaderSchema(spec.name, spec.schema)
        self.refusing = [rule for rule in spec.rules if rule.otherwise == "dead_letter"]
        declared = (spec.schema, *spec.writers, *writers)
        self.resolutions: dict[bytes, Resolution] = {}
        for one in declared:
            resolution = Resolution(self.reader, one)
            resolution.check_is_told_from(self.resolutions.get(resolution.header))
            self.resolutions[resolution.header] = resolution
        self._schemas = schemas
        self._unreadable: dict[bytes, Fault] = {}  # headers of schemas that the reader's cannot read

    def learn(self, header: bytes) -> Fault | None:
        """Look up what wrote this header; None when it can be read from now on. Raises as `Schemas.find`."""
        if header in self._unreadable:
            return self._unreadable[header]
        if self._schemas is None:
            return self._unknown(header)
        found = self._schemas.find(self.spec.name, header)
        if isinstance(found, str):
            return Fault(Code.UNKNOWN_SCHEMA, f"was written with a schema that nobody knows: {found}")
        try:
            self.resolutions[header] = Resolution(self.reader, found)
        except ConfigError as error:
            self._unreadable[header] = Fault(Code.NOT_RESOLVED, f"was written with another schema: {error.message}")
        except Exception as error:  # what a registry holds is a stranger's: no text of it may stop the stream
            what = f"was written with what is no Avro schema: {type(error).__name__} {error}"
            self._unreadable[header] = Fault(Code.UNKNOWN_SCHEMA, what[:1_000])
        return self._unreadable.get(header)

    def _unknown(self, header: bytes) -> Fault:
        if header[:1] == CONFLUENT_MAGIC:
            return Fault(
                Code.CONFLUENT_FRAMED,
                "begins with 00, the framing of a schema registry, and the app declares none; write "
                "`schema_registry:`, or send Avro single objects (C3 01)",
            )
        known = ", ".join(fingerprint_text(each) for each in self.resolutions if each[:2] == MAGIC)
        return Fault(Code.UNKNOWN_SCHEMA, f"was written with schema {fingerprint_text(header)}; known here: {known}")


def header_in(value: bytes) -> bytes | None:
    """What names the writer's schema; None where nothing does."""
    if value[:1] == CONFLUENT_MAGIC:
        return value[:CONFLUENT_HEADER_BYTES] if len(value) >= CONFLUENT_HEADER_BYTES else None
    return value[:HEADER_BYTES] if value[:2] == MAGIC and len(value) >= HEADER_BYTES else None
