"""Records that nobody can use, to show what becomes of them: each must end as a dead letter.

In: how many, a seed, the span of event time, good records as bytes. Out: broken ones, spread evenly over time and over
all partitions. Invariant: a poison record has an event time inside the span, an id or airport that no flight has, and
the header `flights.poison` with its kind.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple

HEADER = "flights.poison"
KINDS = (
    "truncated",
    "unknown_schema",
    "invalid_utf8",
    "trailing_bytes",
    "null_key",
    "null_value",
    "deep_nesting",
    "nan",
)
LARGE_COUNT = 4  # a few are enough to show that memory holds: each is as large as a thousand others
LARGE_BYTES = 5_000_000
NESTING = 20_000  # far beyond what a recursive parser survives
POISON_AIRPORT = "POI"  # three letters like any, but no airport of New York
FRAME_BYTES = 10  # single-object encoding: C3 01 and the schema's fingerprint, then the body


class Poison(NamedTuple):
    time: int  # milliseconds since the epoch, UTC
    topic: str
    partition: int
    kind: str
    key: bytes | None
    value: bytes | None

    @property
    def headers(self) -> list[tuple[str, str | bytes | None]]:
        return [(HEADER, self.kind.encode())]


class Sample(NamedTuple):
    """A topic's good record with an id that no flight has; `not_a_number` is the same with NaN, if a field takes it."""

    partitions: int
    good: bytes
    not_a_number: bytes | None


def poison_id(topic: str) -> str:
    return f"poison-{topic}"


def make_poison(
    count: int, *, seed: int, first_time: int, last_time: int, samples: Mapping[str, Sample]
) -> tuple[Poison, ...]:
    """`count` poison records in time order; the same for the same arguments.

    Kinds and partitions take turns; NaN goes where a field can hold it.
    """
    draw = random.Random(seed)
    places = [(topic, number) for topic, sample in samples.items() for number in range(sample.partitions)]
    floats = [place for place in places if samples[place[0]].not_a_number is not None]
    kinds = _kinds(count, draw)
    step = (last_time - first_time) / max(count, 1)
    made = []
    for index, kind in enumerate(kinds):
        choices = floats if kind == "nan" else places
        topic, partition = choices[index % len(choices)]
        time = first_time + int((index + draw.random()) * step)
        value = _spoil(kind, samples[topic])
        key = None if kind == "null_key" else f"{poison_id(topic)}-{index}".encode()
        made.append(Poison(time, topic, partition, kind, key, value))
    return tuple(made)


def _kinds(count: int, draw: random.Random) -> Sequence[str]:
    """The kind of each: the large ones evenly between, the others in rounds of a new order each."""
    large = min(LARGE_COUNT, count // len(KINDS))
    kinds: list[str] = []
    while len(kinds) < count - large:
        kinds.extend(draw.sample(KINDS, len(KINDS)))
    kinds = kinds[: count - large]
    for index in range(large):
        kinds.insert((2 * index + 1) * count // (2 * large), "large")
    return kinds


def _spoil(kind: str, sample: Sample) -> bytes | None:
    """The value of a poison record, made of a good one."""
    good = sample.good
    frame, body = good[:FRAME_BYTES], good[FRAME_BYTES:]
    match kind:
        case "truncated":
            return good[: FRAME_BYTES + 2]  # ends inside the first text
        case "unknown_schema":
            return frame[:2] + bytes(8) + body  # a fingerprint of zeros is nobody's
        case "invalid_utf8":
            return frame + body[:1] + b"\xff" + body[2:]  # the first field is a text: its length, then its bytes
        case "trailing_bytes":
            return good + b"\x00trailing"
        case "null_key":
            return good  # the value is not what is wrong with it
        case "null_value":
            return None  # without the header of a punctuation
        case "deep_nesting":
            return b'{"id":' + b"[" * NESTING + b"]" * NESTING + b"}"
        case "nan":
            return sample.not_a_number
        case _:
            return frame + b"\xff" * LARGE_BYTES  # a length that never ends
