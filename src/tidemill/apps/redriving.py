"""Send dead letters again: to the topic they came from, each at most once, at a bounded rate.

In: letters. Out: their original records in the original topic and partition, and what was done with each. Invariant: a
record and the note that it was sent again are one transaction, and a later redrive reads the notes after it has fenced
off the former ones; so a letter is sent again once, however often the command is given, stopped, or run twice at once.

The id of a letter is the place of its original. A record that fails again is another record with another place: its
letter can be sent again too. Notes stand in `<app>.redrives.v1`, compacted, by id.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

from tidemill.apps.clients import clients_of
from tidemill.apps.dead_letters import Letter, Selection, select_letters
from tidemill.apps.topics import COMPACTED_CONFIG
from tidemill.config import Settings
from tidemill.core.records import Output
from tidemill.core.topic_names import dead_letter_topic, redrives_topic
from tidemill.errors import UnavailableError
from tidemill.io import kafka
from tidemill.io.kafka_reader import read_topic
from tidemill.io.kafka_writer import TransactionalWriter, group_metadata

REDRIVE_HEADER = "tidemill.redrive"  # on a record that was sent again: the place of its original
TRANSACTION_RECORDS_MAX = 100  # small, so that the rate holds within a second and a stop loses little

NO_ORIGIN = "has no original place: Tidemill did not write it"
OTHER_TOPIC = "names another topic than the one whose dead letter it is"
TRUNCATED = "was cut when it became a dead letter: its producer has to send it again"
NO_PARTITION = "comes from a partition that its topic no longer has"


@dataclass(slots=True)
class RedriveReport:
    """What became of the selected letters. Ids of those sent; `refused`: why, and how many; `already`: sent before."""

    sent: list[str] = field(default_factory=list)
    already: int = 0
    refused: Counter[str] = field(default_factory=Counter)


class Sink(Protocol):
    """Where redriven records go."""

    def open(self) -> set[str]:
        """Fence off former redrives; the ids that were sent again so far."""
        ...

    def send(self, letters: Sequence[Letter]) -> None:
        """The records and their notes, together or not at all."""
        ...


def redrive(
    settings: Settings, selection: Selection, *, rate_max: float, report: Callable[[str], None]
) -> RedriveReport:
    """Send the selected letters again, at most `rate_max` a second.

    Raises:
        FencedError: TM-4010, another redrive of this app has begun.
        UnavailableError: no answer; give the command again, nothing is sent twice.
    """
    letters = select_letters(settings, selection)
    sink = KafkaSink(settings)
    try:
        done = sink.open()
        return send_again(letters, done, partition_counts(settings), sink, rate_max=rate_max, report=report)
    finally:
        sink.close()


def plan_redrive(settings: Settings, selection: Selection) -> RedriveReport:
    """What `redrive` would do now; nothing is written, no topic made."""
    plan = RedriveReport()
    done = redriven_ids(settings)
    for letter in _to_send(select_letters(settings, selection), done, partition_counts(settings), plan):
        plan.sent.append(letter.id)
    return plan


def partition_counts(settings: Settings) -> dict[str, int]:
    return kafka.partition_counts(clients_of(settings), [topic.name for topic in settings.app.topics])


def send_again(
    letters: Iterable[Letter],
    done: set[str],
    counts: dict[str, int],
    sink: Sink,
    *,
    rate_max: float,
    report: Callable[[str], None],
    now: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> RedriveReport:
    """The letters that are not in `done`, in their order; `counts`: partitions by input topic."""
    found = RedriveReport()
    chosen = _to_send(letters, done, counts, found)
    size = max(1, min(TRANSACTION_RECORDS_MAX, int(rate_max)))
    started = now()
    while part := list(islice(chosen, size)):
        # The pause comes first, so what was sent never exceeds the rate times the time by more than one part.
        sleep(max(0.0, started + len(found.sent) / rate_max - now()))
        sink.send(part)
        found.sent.extend(letter.id for letter in part)
        report(f"{len(found.sent):,} sent again, up to {part[-1].id}")
    return found


def redriven_ids(settings: Settings) -> set[str]:
    """The ids of the letters that were sent again."""
    try:
        return {
            (message.key() or b"").decode()
            for messages in read_topic(clients_of(settings), redrives_topic(settings.app.name))
            for message in messages
        }
    except UnavailableError as error:
        if error.code != "TM-3011":
            raise
        return set()  # nobody has sent any yet, so there is no topic


def record_of(letter: Letter) -> Output:
    """The original record, with the note of where it stood."""
    headers = tuple(each for each in letter.headers if each[0] != REDRIVE_HEADER)
    assert letter.origin is not None
    timestamp = letter.timestamp if letter.timestamp >= 0 else None
    note = (REDRIVE_HEADER, letter.id.encode())
    return Output(letter.origin.partition.topic, letter.key, letter.value, (*headers, note), timestamp)


class KafkaSink:
    """Fulfils `Sink`; one thread owns it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._topic = redrives_topic(settings.app.name)
        self._clients = clients_of(settings)
        self._writer: TransactionalWriter | None = None

    def open(self) -> set[str]:
        """Raises: UnavailableError."""
        kafka.ensure_topics(self._clients, {self._topic: 1}, COMPACTED_CONFIG)
        self._writer = TransactionalWriter(self._clients, f"tidemill.{self._settings.app.name}.redrive")
        self._writer.open()
        self._metadata = group_metadata(self._clients, f"tidemill.{self._settings.app.name}.redrive")
        return redriven_ids(self._settings)

    def send(self, letters: Sequence[Letter]) -> None:
        """Raises: FencedError, UnavailableError."""
        assert self._writer is not None
        outputs: list[Output] = []
        partitions: list[int | None] = []
        for letter in letters:
            assert letter.origin is not None
            outputs += (record_of(letter), Output(self._topic, letter.id.encode(), _note(letter)))
            partitions += (letter.origin.partition.number, 0)
        self._writer.publish(outputs, {}, self._metadata, partitions=partitions)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.abandon()


def _to_send(
    letters: Iterable[Letter], done: set[str], counts: dict[str, int], found: RedriveReport
) -> Iterator[Letter]:
    """The letters to send; counts the others in `found`."""
    taken = set(done)
    for letter in letters:
        reason = refusal(letter, counts)
        if reason:
            found.refused[reason] += 1
        elif letter.id in taken:
            found.already += 1
        else:
            taken.add(letter.id)
            yield letter


def refusal(letter: Letter, counts: dict[str, int]) -> str:
    """Why a letter cannot be sent again; "" = it can."""
    if letter.origin is None:
        return NO_ORIGIN
    topic, number = letter.origin.partition
    if dead_letter_topic(topic) != letter.place.partition.topic:
        return OTHER_TOPIC
    if letter.is_truncated:
        return TRUNCATED
    return "" if number < counts.get(topic, 0) else NO_PARTITION


def _note(letter: Letter) -> bytes:
    return json.dumps({"letter": str(letter.place), "code": letter.code}, sort_keys=True).encode()
