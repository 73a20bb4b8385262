"""What the transport hands over to the wire: a message of Kafka and its place in the merged order.

In: cuts of the merge. Out: records and spans. Invariant: only the wire looks inside `message`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import methodcaller
from typing import NamedTuple, Protocol, cast

from tidemill.core.merge import Cut
from tidemill.core.records import Partition, Span


class Message(Protocol):
    """The part of `confluent_kafka.Message` that the wire reads."""

    def key(self) -> bytes | None: ...

    def value(self) -> bytes | None: ...

    def headers(self) -> list[tuple[str, bytes | None]] | None: ...

    def timestamp(self) -> tuple[int, int]: ...


class _ClientMessage(Message, Protocol):
    """A message of the client itself: the only kind whose `headers` raises."""

    def set_headers(self, headers: list[tuple[str, bytes | None]]) -> None: ...


Headers = tuple[tuple[str, bytes | None], ...]
UNREADABLE_HEADERS: list[tuple[str, bytes | None]] = []  # known by its identity; what a message answers that has such


# The client returns that list at the first time too, with an exception set. Calls through the C API check for it; those
# of the interpreter do so only until it has specialised them, after some calls (CALL_METHOD_DESCRIPTOR_NOARGS).
_ask_headers: Callable[[Message], list[tuple[str, bytes | None]] | None] = methodcaller("headers")


def read_headers(message: Message) -> Headers | None:
    """The headers, () when there are none; None when a name is not UTF-8: then the client gives none of them.

    Nothing else calls `Message.headers`. Asked a second time, the client would answer with the list that it had begun,
    a null pointer in the place of the name, and the process dies of SIGSEGV where that is touched.
    """
    try:
        headers = _ask_headers(message)
    except (SystemError, UnicodeDecodeError):
        cast(_ClientMessage, message).set_headers(UNREADABLE_HEADERS)
        return None
    return None if headers is UNREADABLE_HEADERS else tuple(headers or ())


class SourceRecord(NamedTuple):
    """One record of an input topic. `time`: the Kafka timestamp in ms as it is, however far ahead, of a
    punctuation the time that it tells; `topic_index`: position in `AppSpec.topics`."""

    time: int
    topic_index: int
    partition: int
    offset: int
    message: Message


def records_of(cut: Cut) -> list[SourceRecord]:
    """The entries of a cut as the wire takes them."""
    return [SourceRecord(e.stamp, e.topic_index, e.partition, e.offset, e.payload) for e in cut.entries]


def spans_of(cut: Cut, topic_names: Sequence[str]) -> dict[Partition, Span]:
    """The spans of a cut by partition; `topic_names` in the order of the declaration."""
    return {Partition(topic_names[index], number): span for (index, number), span in cut.spans.items()}


PUNCTUATION_HEADER = "tidemill.punctuation"  # its value: event time in ms, ASCII digits; key and value are null
END_HEADER = "tidemill.end"  # on a punctuation: no record follows in this partition, a bounded replay may close


@dataclass(frozen=True, slots=True)
class SourceBatch:
    """Records in merged order and the spans they cover, as polled in one generation of the group.

    epoch: grows whenever reading begins anew, after a claim; a batch of an earlier epoch has been overtaken.
    """

    records: list[SourceRecord]
    spans: dict[Partition, Span]
    generation: int
    epoch: int
    group_metadata: object
