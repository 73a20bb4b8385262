"""A worker's transactions: the outputs of a commit and its input offsets, together.

In: outputs by the input partition that caused them. Out: one Kafka transaction, slices in the order of their
partitions, so that a replay of the outbox writes the same order. Invariant: offsets carry the store's incarnation as
metadata.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tidemill.apps.failpoints import failpoint
from tidemill.core.records import Output, Partition, Span
from tidemill.io.kafka_writer import TransactionalWriter
from tidemill.io.slices import mark_of


class Publishing:
    """Owns the transactional producer; the compute thread owns it. Fulfils `apps.cycle.Publisher`."""

    def __init__(
        self,
        *,
        client_settings: Mapping[str, Any],
        transactional_id: str,
        examples_topic: str,
        incarnation: Callable[[], str],
        on_example: Callable[[int], None],
    ) -> None:
        """`on_example` hears the offset of the last example of each transaction."""
        self._client_settings = client_settings
        self._transactional_id = transactional_id
        self._examples_topic = examples_topic
        self._incarnation = incarnation
        self._on_example = on_example
        self._writer: TransactionalWriter | None = None
        self.group_metadata: object = None  # taken by the polling thread with the batch in hand

    def renew(self) -> None:
        """A new producer with the same id: it fences the old one and ends its transaction."""
        if self._writer is not None:
            self._writer.abandon()
        self._writer = TransactionalWriter(self._client_settings, self._transactional_id, failpoint)
        self._writer.open()

    def publish(
        self,
        outputs: Mapping[Partition, Sequence[Output]],
        spans: Mapping[Partition, Span],
        slices: Mapping[Partition, bytes],
    ) -> None:
        """The outputs of one commit; `spans` and `slices` as the store has them."""
        incarnation = self._incarnation()
        offsets = {
            p: (span.next, offset_metadata(incarnation, span.start, span.next, slices[p])) for p, span in spans.items()
        }
        self.publish_at(outputs, offsets, self.group_metadata)

    def publish_at(
        self,
        outputs: Mapping[Partition, Sequence[Output]],
        offsets: Mapping[Partition, tuple[int, str]],
        group_metadata: object,
    ) -> None:
        assert self._writer is not None
        in_order = [output for partition in sorted(outputs) for output in outputs[partition]]
        last_offsets = self._writer.publish(in_order, offsets, group_metadata)
        if self._examples_topic in last_offsets:
            self._on_example(last_offsets[self._examples_topic])

    def close(self) -> None:
        if self._writer is not None:
            self._writer.abandon()
            self._writer = None


def offset_metadata(incarnation: str, start: int, next_: int, slice_: bytes) -> str:
    """What is committed beside an offset: the store it belongs to and, when a commit did not move the offset, a mark of
    its slice; else nobody could tell after a crash whether that slice was published."""
    if start < next_:
        return incarnation
    return f"{incarnation}/{mark_of(slice_)}"


def knows_of(metadata: str, sequel: str) -> bool:
    """Whether a store has applied the commit that the group's offset was last sent with.

    `sequel`: the mark of the last slice that moved no offset, as the store has it. A store that went back to a cut
    before such a commit stands at the right offset all the same.
    """
    mark = metadata.partition("/")[2]
    return mark in ("", sequel)


def is_published(metadata: str, offset: int | None, start: int, next_: int, slice_: bytes) -> bool:
    """Whether a slice of the outbox that moves no offset is already in Kafka."""
    incarnation = metadata.partition("/")[0]
    return start == next_ == offset and metadata == offset_metadata(incarnation, start, next_, slice_)
