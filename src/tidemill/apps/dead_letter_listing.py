"""What lies in the dead letter topics of an app, grouped so that a person can read it.

In: an app's settings. Out: one row per topic and code. Invariant: every record of the dead letter topics is counted in
exactly one row; a record without Tidemill's headers is counted under the code "unknown".
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from tidemill.config import Settings
from tidemill.io import kafka
from tidemill.io.kafka_reader import read_topic

UNKNOWN_CODE = "unknown"


class Letter(Protocol):
    """The part of a Kafka message that the listing reads."""

    def topic(self) -> str: ...

    def partition(self) -> int: ...

    def offset(self) -> int: ...

    def headers(self) -> list[tuple[str, bytes | None]] | None: ...


@dataclass(frozen=True, slots=True)
class DeadLetterGroup:
    """All letters of one dead letter topic with one code."""

    topic: str
    code: str
    count: int
    first: str  # [partition]@offset in the dead letter topic
    last: str
    example: str  # the message of the first one


def list_dead_letters(settings: Settings) -> list[DeadLetterGroup]:
    """Read all dead letter topics of the app's inputs.

    Raises:
        UnavailableError: TM-3010 no answer, TM-3011 a topic does not exist.
    """
    assert settings.bootstrap_servers is not None
    clients = kafka.client_settings(settings.bootstrap_servers, settings.kafka)
    letters = _letters(clients, [f"{topic.name}.dlq" for topic in settings.app.topics])
    return group_letters(letters)


def group_letters(letters: Iterable[Letter]) -> list[DeadLetterGroup]:
    """Groups by (topic, code), in that order."""
    groups: dict[tuple[str, str], DeadLetterGroup] = {}
    for letter in letters:
        headers = dict(letter.headers() or ())
        code = _text(headers.get("tidemill.dlq.code")) or UNKNOWN_CODE
        place = f"[{letter.partition()}]@{letter.offset()}"
        before = groups.get((letter.topic(), code))
        if before is None:
            example = _text(headers.get("__streams.errors.message"))
            groups[letter.topic(), code] = DeadLetterGroup(letter.topic(), code, 1, place, place, example)
        else:
            groups[letter.topic(), code] = DeadLetterGroup(
                before.topic, code, before.count + 1, before.first, place, before.example
            )
    return [groups[key] for key in sorted(groups)]


def _letters(clients: dict[str, Any], topics: list[str]) -> Iterator[Any]:
    for topic in topics:
        for messages in read_topic(clients, topic):
            yield from messages


def _text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "replace")
