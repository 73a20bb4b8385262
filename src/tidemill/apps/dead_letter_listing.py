"""What lies in the dead letter topics of an app, grouped so that a person can read it.

In: an app's settings. Out: one row per topic and code. Invariant: every record of the dead letter topics is counted in
exactly one row; a record without Tidemill's headers is counted under the code "unknown".
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from tidemill.apps.clients import clients_of
from tidemill.apps.dead_letters import KafkaMessage, letter_of
from tidemill.apps.redriving import redriven_ids
from tidemill.config import Settings
from tidemill.core.topic_names import dead_letter_topic
from tidemill.io.kafka_reader import read_topic


@dataclass(frozen=True, slots=True)
class DeadLetterGroup:
    """All letters of one dead letter topic with one code."""

    topic: str
    code: str
    count: int
    first: str  # [partition]@offset in the dead letter topic
    last: str
    example: str  # the message of the first one
    redriven: int = 0  # how many of them were sent again


def list_dead_letters(settings: Settings) -> list[DeadLetterGroup]:
    """Read all dead letter topics of the app's inputs.

    Raises:
        UnavailableError: TM-3010 no answer, TM-3011 a topic does not exist.
    """
    assert settings.bootstrap_servers is not None
    clients = clients_of(settings)
    letters = _letters(clients, [dead_letter_topic(topic.name) for topic in settings.app.topics])
    return group_letters(letters, settings.app.name, redriven_ids(settings))


def group_letters(
    messages: Iterable[KafkaMessage], app: str, redriven: Collection[str] = frozenset()
) -> list[DeadLetterGroup]:
    """Groups of an app by (topic, code), in that order; `redriven`: the ids of letters that were sent again."""
    groups: dict[tuple[str, str], DeadLetterGroup] = {}
    for letter in (one for one in map(letter_of, messages) if one.is_of(app)):
        topic, at = letter.place.partition.topic, f"[{letter.place.partition.number}]@{letter.place.offset}"
        before = groups.get((topic, letter.code), DeadLetterGroup(topic, letter.code, 0, at, at, letter.message))
        is_redriven = letter.origin is not None and letter.id in redriven
        groups[topic, letter.code] = replace(
            before, count=before.count + 1, last=at, redriven=before.redriven + is_redriven
        )
    return [groups[key] for key in sorted(groups)]


def _letters(clients: dict[str, Any], topics: list[str]) -> Iterator[Any]:
    for topic in topics:
        for messages in read_topic(clients, topic):
            yield from messages
