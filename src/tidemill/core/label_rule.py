"""What the label of a record is, as declared.

In: the columns of a label topic and the rule. Out: 0 or 1 per row. Invariant: a function of the row alone.
"""

from __future__ import annotations

from math import ceil, floor

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.core.spec import Condition, LabelSpec


def label_values(spec: LabelSpec, columns: pa.RecordBatch) -> npt.NDArray[np.int8]:
    """1 where any condition of the label rule holds, else 0; shape (rows,). A null field satisfies no condition."""
    positive = np.zeros(columns.num_rows, dtype=bool)
    for condition in spec.positive_if_any:
        holds = _holds(condition, columns.column(condition.field))
        positive |= pc.fill_null(holds, False).to_numpy(zero_copy_only=False)
    return positive.astype(np.int8)


def _holds(condition: Condition, column: pa.Array) -> pa.Array:
    # Whole numbers are compared as such: a float64 does not hold the largest ones, and Arrow then refuses all.
    is_whole = pa.types.is_integer(column.type)
    if condition.above is not None:
        return pc.greater(column, floor(condition.above) if is_whole else condition.above)
    if condition.at_least is not None:
        return pc.greater_equal(column, ceil(condition.at_least) if is_whole else condition.at_least)
    if condition.below is not None:
        return pc.less(column, ceil(condition.below) if is_whole else condition.below)
    if condition.one_of is not None:
        return pc.is_in(column, value_set=pa.array(condition.one_of, column.type))
    return pc.equal(column, pa.scalar(condition.equals, column.type))
