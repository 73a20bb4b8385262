"""Predictions of a backtest as one Parquet file.

In: values as they would be published. Out: the columns of prediction.v1. Invariant: rows are in the order of the run.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import pyarrow as pa
from pyarrow import parquet

from tidemill.io.wire import decode

ROWS_MIN = 20_000  # of a row group; small ones are slow to read


class PredictionsFile:
    """Use it in a `with`; the file is whole at its end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._waiting: list[bytes] = []
        self._writer: parquet.ParquetWriter | None = None

    def __enter__(self) -> PredictionsFile:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._flush()
        if self._writer is not None:
            self._writer.close()

    def write(self, values: list[bytes]) -> None:
        self._waiting += values
        if len(self._waiting) >= ROWS_MIN:
            self._flush()

    def _flush(self) -> None:
        table = pa.Table.from_batches([decode("prediction.v1", self._waiting)])
        self._waiting = []
        if self._writer is None:
            self._writer = parquet.ParquetWriter(self._path, table.schema, compression="zstd")
        self._writer.write_table(table)
