"""Records and features as files, for a process that tries what they do to the native libraries.

In: records of a batch, or features of its events. Out: an Arrow file, and the equal values. Invariant: reading gives
the same bytes to the same library calls as the worker would.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from tidemill.core.records import FeatureBatch
from tidemill.io.source import UNREADABLE_HEADERS, SourceRecord, read_headers

_HEADERS = pa.list_(pa.struct([("name", pa.string()), ("content", pa.binary())]))
_RECORDS = pa.schema(
    [
        ("time", pa.int64()),
        ("topic_index", pa.int64()),
        ("partition", pa.int64()),
        ("offset", pa.int64()),
        ("key", pa.binary()),
        ("value", pa.binary()),
        ("headers", _HEADERS),
        ("timestamp_type", pa.int64()),
        ("timestamp", pa.int64()),
    ]
)


@dataclass(frozen=True, slots=True)
class StoredMessage:
    """Fulfils `io.source.Message`. stored_headers: None = unreadable, as those of the original."""

    stored_key: bytes | None
    stored_value: bytes | None
    stored_headers: list[tuple[str, bytes | None]] | None
    stored_timestamp: tuple[int, int]

    def key(self) -> bytes | None:
        return self.stored_key

    def value(self) -> bytes | None:
        return self.stored_value

    def headers(self) -> list[tuple[str, bytes | None]] | None:
        return UNREADABLE_HEADERS if self.stored_headers is None else self.stored_headers

    def timestamp(self) -> tuple[int, int]:
        return self.stored_timestamp


def write_records(path: Path, records: Sequence[SourceRecord]) -> None:
    """All records of a batch, in their order."""
    rows = [
        {
            "time": record.time,
            "topic_index": record.topic_index,
            "partition": record.partition,
            "offset": record.offset,
            "key": record.message.key(),
            "value": record.message.value(),
            "headers": None if headers is None else [{"name": name, "content": content} for name, content in headers],
            "timestamp_type": record.message.timestamp()[0],
            "timestamp": record.message.timestamp()[1],
        }
        for record, headers in ((record, read_headers(record.message)) for record in records)
    ]
    _write(path, pa.RecordBatch.from_pylist(rows, schema=_RECORDS))


def read_records(path: Path) -> list[SourceRecord]:
    """The inverse of `write_records`."""
    return [
        SourceRecord(
            row["time"],
            row["topic_index"],
            row["partition"],
            row["offset"],
            StoredMessage(
                row["key"],
                row["value"],
                None if row["headers"] is None else [(one["name"], one["content"]) for one in row["headers"]],
                (row["timestamp_type"], row["timestamp"]),
            ),
        )
        for row in _read(path).to_pylist()
    ]


def write_features(path: Path, features: FeatureBatch, ids: Sequence[str]) -> None:
    """What a scorer is given. Missing numbers stay the same bits: they travel as bytes."""
    numeric = np.ascontiguousarray(features.numeric, dtype=np.float32)
    columns = {
        "id": pa.array(list(ids), pa.string()),
        "numeric": pa.array([row.tobytes() for row in numeric], pa.binary()),
        **{f"category_{at}": pa.array(list(column), pa.string()) for at, column in enumerate(features.categories)},
    }
    _write(path, pa.RecordBatch.from_pydict(columns))


def read_features(path: Path) -> tuple[FeatureBatch, list[str]]:
    """The inverse of `write_features`."""
    found = _read(path)
    ids: list[str] = found.column("id").to_pylist()
    numeric = np.frombuffer(b"".join(found.column("numeric").to_pylist()), dtype=np.float32)
    categories = tuple(tuple(column.to_pylist()) for column in found.columns[2:])
    return FeatureBatch(numeric.reshape(len(ids), -1) if ids else numeric.reshape(0, 0), categories), ids


def rows_of(features: FeatureBatch, rows: Sequence[int]) -> FeatureBatch:
    """Some of the rows, in this order."""
    return FeatureBatch(
        features.numeric[list(rows)], tuple(tuple(column[row] for row in rows) for column in features.categories)
    )


def _write(path: Path, columns: pa.RecordBatch) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, columns.schema) as writer:
        writer.write_batch(columns)


def _read(path: Path) -> pa.RecordBatch:
    with pa.OSFile(str(path), "rb") as file:
        return pa.ipc.open_file(file).get_batch(0)
