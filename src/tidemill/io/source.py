"""What the transport hands over to the wire: a message of Kafka and its place in the merged order.

In: cuts of the merge. Out: records and spans. Invariant: only the wire looks inside `message`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from tidemill.core.merge import Cut
from tidemill.core.records import Partition, Span


class Message(Protocol):
    """The part of `confluent_kafka.Message` that the wire reads."""

    def key(self) -> bytes | None: ...

    def value(self) -> bytes | None: ...

    def headers(self) -> list[tuple[str, bytes | None]] | None: ...

    def timestamp(self) -> tuple[int, int]: ...


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
