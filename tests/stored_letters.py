"""Dead letters as Kafka would give them back."""

from __future__ import annotations

from typing import NamedTuple

from tidemill.core.records import Output


class StoredLetter(NamedTuple):
    """A record of a dead letter topic as Kafka would give it."""

    output: Output
    at: int

    def topic(self) -> str:
        return self.output.topic

    def partition(self) -> int:
        return 0

    def offset(self) -> int:
        return self.at

    def key(self) -> bytes | None:
        return self.output.key

    def value(self) -> bytes | None:
        return self.output.value

    def headers(self) -> list[tuple[str, bytes | None]] | None:
        return list(self.output.headers)

    def timestamp(self) -> tuple[int, int]:
        return (1, self.output.timestamp or 0)
