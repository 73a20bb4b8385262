"""The letters of an app's dead letter topics, one by one: to show, to export, to send again.

In: an app's settings and a selection. Out: letters with their original record. Invariant: key, value and headers are
those of the original record, byte for byte; what Tidemill put behind them is parsed and taken off.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from tidemill.apps.clients import clients_of
from tidemill.config import Settings
from tidemill.core.records import Partition
from tidemill.core.spec import TopicSpec
from tidemill.core.topic_names import dead_letter_topic
from tidemill.errors import ConfigError
from tidemill.io.dead_letters import TRUNCATED_HEADER
from tidemill.io.framing import HEADER_BYTES, fingerprint_text, header_of
from tidemill.io.kafka_reader import read_topic
from tidemill.io.leading_fields import leading_fields
from tidemill.io.source import Headers, read_headers

UNKNOWN_CODE = "unknown"
SHOWN_BYTES = 64  # of a value that cannot be decoded
_FIRST_HEADER = "__streams.errors.exception"  # the first of those that Tidemill puts behind the original ones
_PLACE = re.compile(r"(?P<topic>.+)\[(?P<number>\d+)\]@(?P<offset>\d+)")


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where a record stands or stood; the id of a letter is the place of its original."""

    partition: Partition
    offset: int

    def __str__(self) -> str:
        return f"{self.partition}@{self.offset}"


@dataclass(frozen=True, slots=True)
class Letter:
    """One record of a dead letter topic. `origin` None, `app` empty: it has not the headers that Tidemill gives."""

    place: Place
    origin: Place | None
    app: str
    code: str
    stage: str
    message: str
    key: bytes | None
    value: bytes | None
    headers: Headers
    timestamp: int  # ms, of the original
    is_truncated: bool

    @property
    def id(self) -> str:
        return str(self.origin or self.place)

    def is_of(self, app: str) -> bool:
        """Several apps may read a topic; what nobody has signed concerns each."""
        return self.app in ("", app)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which letters a command is about; an empty part leaves the choice to the others."""

    codes: frozenset[str] = frozenset()
    topics: frozenset[str] = frozenset()  # of the originals
    ids: frozenset[str] = frozenset()

    def has(self, letter: Letter) -> bool:
        return (
            (not self.codes or letter.code in self.codes)
            and (not self.topics or letter.place.partition.topic.removesuffix(".dlq") in self.topics)
            and (not self.ids or letter.id in self.ids)
        )


class KafkaMessage(Protocol):
    """The part of a message that is read here."""

    def topic(self) -> str: ...

    def partition(self) -> int: ...

    def offset(self) -> int: ...

    def key(self) -> bytes | None: ...

    def value(self) -> bytes | None: ...

    def headers(self) -> list[tuple[str, bytes | None]] | None: ...

    def timestamp(self) -> tuple[int, int]: ...


def parse_place(text: str) -> Place:
    """`orders[0]@15` as people and messages write it.

    Raises:
        ConfigError: TM-1071, it is written otherwise.
    """
    found = _PLACE.fullmatch(text)
    if found is None:
        raise ConfigError(
            "TM-1071", f"{text!r} is no place of a record; write it as `tidemill dlq show` does: topic[0]@15"
        )
    return Place(Partition(found["topic"], int(found["number"])), int(found["offset"]))


def select_letters(settings: Settings, selection: Selection) -> Iterator[Letter]:
    """The letters of the app's inputs, topic after topic, in the order of their logs.

    Raises:
        ConfigError: TM-1072, a topic that the app does not read.
        UnavailableError: TM-3010 no answer, TM-3011 a topic does not exist.
    """
    assert settings.bootstrap_servers is not None
    known = [topic.name for topic in settings.app.topics]
    for name in sorted(selection.topics):
        if name not in known:
            raise ConfigError(
                "TM-1072", f"app {settings.app.name} does not read topic {name}; it reads {', '.join(known)}"
            )
    clients = clients_of(settings)
    for name in known:
        if not selection.topics or name in selection.topics:
            for messages in read_topic(clients, dead_letter_topic(name)):
                letters = (letter_of(message) for message in messages)
                yield from (one for one in letters if one.is_of(settings.app.name) and selection.has(one))


def letter_of(message: KafkaMessage) -> Letter:
    """A record of a dead letter topic, taken apart."""
    headers = read_headers(message) or ()
    starts = [at for at, (name, _) in enumerate(headers) if name == _FIRST_HEADER]
    at = starts[-1] if starts else len(headers)
    ours = dict(headers[at:])
    return Letter(
        place=Place(Partition(message.topic(), message.partition()), message.offset()),
        origin=_origin(ours),
        app=_text(ours, "tidemill.dlq.app"),
        code=_text(ours, "tidemill.dlq.code") or UNKNOWN_CODE,
        stage=_text(ours, "tidemill.dlq.stage"),
        message=_text(ours, "__streams.errors.message"),
        key=message.key(),
        value=message.value(),
        headers=headers[:at],
        timestamp=message.timestamp()[1],
        is_truncated=TRUNCATED_HEADER in ours,
    )


def as_json(letter: Letter) -> dict[str, Any]:
    """Everything of a letter; bytes as base64. `letter_from_json` is the inverse."""
    return {
        "id": letter.id,
        "place": str(letter.place),
        "origin": None if letter.origin is None else str(letter.origin),
        "app": letter.app,
        "code": letter.code,
        "stage": letter.stage,
        "message": letter.message,
        "timestamp": letter.timestamp,
        "is_truncated": letter.is_truncated,
        "key": _encoded(letter.key),
        "value": _encoded(letter.value),
        "headers": [[name, _encoded(content)] for name, content in letter.headers],
    }


def letter_from_json(value: Mapping[str, Any]) -> Letter:
    """What `as_json` was given."""
    return Letter(
        place=parse_place(value["place"]),
        origin=None if value["origin"] is None else parse_place(value["origin"]),
        app=value["app"],
        code=value["code"],
        stage=value["stage"],
        message=value["message"],
        key=_decoded(value["key"]),
        value=_decoded(value["value"]),
        headers=tuple((name, _decoded(content)) for name, content in value["headers"]),
        timestamp=value["timestamp"],
        is_truncated=value["is_truncated"],
    )


@dataclass(frozen=True, slots=True)
class Reading:
    """What people can see of a value: who wrote it, the fields up to the first broken one, the first bytes."""

    schema: str
    fields: Mapping[str, Any]
    fault: str
    first_bytes: str


def read_value(letter: Letter, topic: TopicSpec) -> Reading:
    """Decode as much as can be; nothing of it is needed to send the letter again."""
    value = letter.value or b""
    first_bytes = value[:SHOWN_BYTES].hex(" ") + (" ..." if len(value) > SHOWN_BYTES else "")
    for schema in (topic.schema, *topic.writers):
        if header_of(schema) == value[:HEADER_BYTES]:
            fields, fault = leading_fields(schema, value[HEADER_BYTES:])
            name = f"{schema['name']} {fingerprint_text(value[:HEADER_BYTES])}"
            return Reading(name, fields, "" if fault is None else fault.what, first_bytes)
    return Reading("unknown", {}, "", first_bytes)


def topic_of(letter: Letter, topics: Sequence[TopicSpec]) -> TopicSpec:
    """The input whose dead letter topic holds the letter."""
    return next(topic for topic in topics if dead_letter_topic(topic.name) == letter.place.partition.topic)


def _origin(headers: Mapping[str, bytes | None]) -> Place | None:
    topic = _text(headers, "__streams.errors.topic")
    number, offset = (_text(headers, f"__streams.errors.{name}") for name in ("partition", "offset"))
    if not topic or not number.isdigit() or not offset.isdigit():
        return None
    return Place(Partition(topic, int(number)), int(offset))


def _text(headers: Mapping[str, bytes | None], name: str) -> str:
    return (headers.get(name) or b"").decode("utf-8", "replace")


def _encoded(content: bytes | None) -> str | None:
    return None if content is None else base64.b64encode(content).decode()


def _decoded(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text)
