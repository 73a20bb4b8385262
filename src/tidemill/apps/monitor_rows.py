"""Which rows of `metrics.v1` have to be written: those that differ from what the topic holds.

In: rows of windows, the topic as it is. Out: keyed values, null for a row that is no more. Invariant: once they are
written, the topic holds the rows that were given and nothing else of their windows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from tidemill.core.records import Output
from tidemill.core.validation import Validation, Window
from tidemill.core.validation_rows import WINDOWS, Row, key_of
from tidemill.io.wire import Encoder

METRICS_SCHEMA = "metrics.v1"


class _Part(NamedTuple):
    """Rows that change together: of a window, its slices or the rest."""

    window: str
    start: int
    is_sliced: bool


class PublishedRows:
    """The rows of the topic by key; one thread owns it."""

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self._encoder = Encoder(METRICS_SCHEMA)
        self._parts: dict[_Part, dict[bytes, bytes]] = {}
        self._unseen: set[_Part] = set()  # in the topic, and not given since the start

    def load(self, records: Iterable[tuple[bytes, bytes | None]]) -> None:
        """What the topic holds, oldest first."""
        for key, value in records:
            rows = self._parts.setdefault(_part_of(key), {})
            if value is None:
                rows.pop(key, None)
            else:
                rows[key] = value
        self._unseen = set(self._parts)

    def changes(self, validation: Validation, *, with_slices: bool) -> tuple[list[Output], list[Row]]:
        """What to write for the windows that have changed, and their rows without slices.

        The first time with slices, what the topic holds of windows that the fold has not met is taken back: it is of
        another log of the same name. The caller must write all of it, or end.
        """
        outputs: list[Output] = []
        seen: list[Row] = []
        for window in validation.changed_windows():
            rows = list(validation.window_rows(window))
            outputs += self._replace(_part(window, is_sliced=False), rows)
            seen += rows
        if with_slices:
            for window in validation.changed_slices():
                outputs += self._replace(_part(window, is_sliced=True), list(validation.slice_rows(window)))
            for part in sorted(self._unseen):
                outputs += self._replace(part, [])
        return outputs, seen

    def _replace(self, part: _Part, rows: Sequence[Row]) -> list[Output]:
        self._unseen.discard(part)
        before = self._parts.get(part, {})
        now = dict(zip(map(key_of, rows), self._encoder.encode(columns_of(rows)), strict=True)) if rows else {}
        self._parts[part] = now
        outputs = [Output(self._topic, key, value) for key, value in now.items() if before.get(key) != value]
        return outputs + [Output(self._topic, key, None) for key in before if key not in now]


def columns_of(rows: Sequence[Row]) -> Mapping[str, list[Any]]:
    """Rows as columns; at least one row."""
    return {name: [row[name] for row in rows] for name in rows[0]}


def _part(window: Window, *, is_sliced: bool) -> _Part:
    return _Part(window.name, window.number * (WINDOWS[window.name] or 0), is_sliced)


def _part_of(key: bytes) -> _Part:
    _, window, start, slice_ = key.decode().split("/", 3)
    return _Part(window, int(start), bool(slice_))
