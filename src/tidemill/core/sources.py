"""The records of one topic that feed features, and what is read of their fields.

In: positions, times and columns of a topic's records in a batch. Out: fields as numbers or texts, each read once.
Invariant: null and every NaN become the one NaN, because its bits are stored.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.core.records import Float64s, Int64s


@dataclass(frozen=True, slots=True)
class Source:
    """Records of one topic that feed features, with their places; columns None = no records.

    values: numeric fields read so far, and from the start the label under its name as a value.
    """

    position: Int64s
    time: Int64s
    partition: npt.NDArray[np.int32]
    offset: Int64s
    columns: pa.RecordBatch | None
    values: dict[str, Float64s] = field(default_factory=dict)

    def numbers(self, name: str) -> Float64s:
        if name not in self.values:
            self.values[name] = np.zeros(0) if self.columns is None else numbers_of(self.columns, name)
        return self.values[name]

    def texts(self, name: str) -> pa.Array:
        """A field as text, as a category has it; null where it is missing."""
        if self.columns is None:
            return pa.array([], pa.string())
        return self.columns.column(name).cast(pa.string())

    def instants(self, name: str) -> Int64s:
        """A field of milliseconds as int64, -1 where it is null."""
        if self.columns is None:
            return np.zeros(0, dtype=np.int64)
        filled = pc.fill_null(self.columns.column(name).cast(pa.int64()), -1)
        instants: Int64s = filled.to_numpy(zero_copy_only=False)
        return instants


def numbers_of(columns: pa.RecordBatch, name: str) -> Float64s:
    """A numeric field as float64, NaN where it is null."""
    values = columns.column(name).cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return np.where(np.isnan(values), np.nan, values)
