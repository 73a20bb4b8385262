"""Why a record cannot be read, and the dead letter that says so.

In: a record and its fault. Out: a `DeadLetter`, and the record to publish for one. Invariant: key, value, headers and
timestamp of the original are untouched; where the producer's limit forces a cut, or headers are unreadable, a header
tells what is missing.
"""

from __future__ import annotations

from enum import StrEnum

from tidemill.core.records import DeadLetter, Output
from tidemill.core.topic_names import dead_letter_topic

OUTPUT_BYTES_MAX = 16 * 1024 * 1024  # message.max.bytes of the producer and of the topics that Tidemill makes
TRUNCATED_HEADER = "tidemill.dlq.truncated"  # what of the original is not in the letter; once for each such part
ENVELOPE_BYTES = 64 * 1024  # room for headers and Kafka's own framing


class Code(StrEnum):
    """The codes of unreadable records; stable, the same in logs and dead letters. `SENTENCES` tells each in words."""

    NO_VALUE = "TM-2001"
    NO_KEY = "TM-2002"
    TOO_LARGE = "TM-2003"
    NOT_FRAMED = "TM-2004"
    UNKNOWN_SCHEMA = "TM-2005"
    NOT_FINITE = "TM-2006"
    CUT_OFF = "TM-2007"
    BYTES_LEFT = "TM-2008"
    NOT_UTF8 = "TM-2009"
    OUT_OF_TYPE = "TM-2010"
    TOO_DEEP = "TM-2011"
    NO_ID = "TM-2012"
    NO_TIME = "TM-2013"
    BAD_PUNCTUATION = "TM-2014"
    NOT_RESOLVED = "TM-2015"
    CONFLUENT_FRAMED = "TM-2016"
    RULE = "TM-2017"
    TEXT_TOO_LONG = "TM-2018"
    TOO_MANY_ITEMS = "TM-2019"
    BAD_HEADERS = "TM-2020"
    KILLS_DECODING = "TM-2030"
    KILLS_SCORING = "TM-2031"


KILLING_CODES = frozenset({Code.KILLS_DECODING, Code.KILLS_SCORING})  # nobody may touch these records again

SENTENCES: dict[Code, str] = {
    Code.NO_VALUE: "The value is null and the record is no punctuation.",
    Code.NO_KEY: "The key is null: records of one entity would lose their order.",
    Code.TOO_LARGE: "The value is larger than the limit.",
    Code.NOT_FRAMED: "The value does not begin with C3 01, the mark of an Avro single object.",
    Code.UNKNOWN_SCHEMA: "The fingerprint of the writer's schema is not known.",
    Code.NOT_FINITE: "A number is NaN or infinite.",
    Code.CUT_OFF: "The value ends within a field.",
    Code.BYTES_LEFT: "Bytes are left behind the last field.",
    Code.NOT_UTF8: "A string is not UTF-8.",
    Code.OUT_OF_TYPE: "A value is outside its Avro type.",
    Code.TOO_DEEP: "The value claims a depth or a count that no record has.",
    Code.NO_ID: "The id of the event is null or empty.",
    Code.NO_TIME: "The record has no event time.",
    Code.BAD_PUNCTUATION: "The punctuation has no time, or has a key or a value.",
    Code.NOT_RESOLVED: "The value is sound, but the reader's schema has no place for it.",
    Code.CONFLUENT_FRAMED: "The value is framed for a schema registry, and the app declares none.",
    Code.RULE: "The record breaks an entry rule of its topic.",
    Code.TEXT_TOO_LONG: "An id, an entity or a category is longer than the limit.",
    Code.TOO_MANY_ITEMS: "Arrays and maps hold more items than the limit.",
    Code.BAD_HEADERS: "The value is null and the name of a header is not UTF-8: it might be a punctuation.",
    Code.KILLS_DECODING: "The process that decodes the record dies of it.",
    Code.KILLS_SCORING: "The process that scores the event dies of it.",
}


def dead_letter_output(letter: DeadLetter, app: str) -> Output:
    """The record of `<topic>.dlq`: the original with the headers of KIP-1034 and Tidemill's own behind its headers.

    Several apps may read one topic, each with dead letters of its own.
    """
    value = letter.value
    headers = [
        *(letter.headers or ()),
        ("__streams.errors.exception", b"tidemill.errors.RecordError"),
        ("__streams.errors.message", letter.message.encode()),
        ("__streams.errors.stacktrace", f"tidemill.errors.RecordError: {letter.code} {letter.message}".encode()),
        ("__streams.errors.topic", letter.partition.topic.encode()),
        ("__streams.errors.partition", str(letter.partition.number).encode()),
        ("__streams.errors.offset", str(letter.offset).encode()),
        ("tidemill.dlq.app", app.encode()),
        ("tidemill.dlq.code", letter.code.encode()),
        ("tidemill.dlq.stage", letter.stage.encode()),
    ]
    if letter.headers is None:
        headers.append((TRUNCATED_HEADER, b"all headers of the original: the name of one is not UTF-8"))
    taken = sum(len(name) + len(content or b"") for name, content in headers) + len(letter.key or b"")
    room = max(OUTPUT_BYTES_MAX - ENVELOPE_BYTES - taken, 0)
    if value is not None and len(value) > room:
        headers.append((TRUNCATED_HEADER, f"{room} of {len(value)} bytes".encode()))
        value = value[:room]
    timestamp = letter.timestamp if letter.timestamp >= 0 else None
    return Output(dead_letter_topic(letter.partition.topic), letter.key, value, tuple(headers), timestamp)
