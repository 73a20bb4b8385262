"""A message of an input topic as the merge takes it.

In: messages of Kafka or of a file. Out: their times, and whether they are punctuations. Invariant: a record without a
value that is no valid punctuation is a record like any other; the wire makes a dead letter of it.
"""

from __future__ import annotations

from tidemill.core.merge import Offered
from tidemill.io.source import END_HEADER, PUNCTUATION_HEADER, Message, read_headers


def offered(message: Message, offset: int) -> Offered:
    """The record at `offset`, with its Kafka timestamp or its punctuation's time."""
    time, is_end = punctuation_of(message) if message.value() is None else (None, False)
    return Offered(message.timestamp()[1] if time is None else time, offset, message, time is not None, is_end)


def punctuation_of(message: Message) -> tuple[int | None, bool]:
    """(event time, is it the end) of a record without value; (None, False) when it is no valid punctuation."""
    headers = dict(read_headers(message) or ())
    text = headers.get(PUNCTUATION_HEADER)
    if message.key() is not None or not isinstance(text, bytes) or not text.isdigit() or len(text) > 15:
        return None, False
    return int(text), END_HEADER in headers
