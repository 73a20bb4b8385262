"""The outputs of workers as the monitor reads them: predictions and examples with their features, commits by row.

In: values of a log with their offsets. Out: columns in log order. Invariant: every record is in exactly one of the
columns that are returned, whatever the features were when it was written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.core.records import Command, ExampleColumns, FeatureBatch, Int64s
from tidemill.core.validation import PredictionColumns
from tidemill.io.outputs import FeatureShape, decode, decode_commands, examples_of, matrix_of, text_columns_of


class MonitoredExamples(NamedTuple):
    """A piece of the examples log. ours: as the fold sees it, examples of other features are not learned. whole: as
    they were learned when they were served."""

    ours: ExampleColumns
    whole: ExampleColumns
    commands: tuple[Command, ...]


class MonitoredPredictions(NamedTuple):
    """A piece of a partition of predictions. columns: all of them; offset, features: only of those with our features,
    which are the rows `at` of the columns."""

    columns: PredictionColumns
    at: npt.NDArray[np.intp]
    offset: Int64s
    features: FeatureBatch


def monitored_examples(values: Sequence[bytes], offsets: Sequence[int], expected: FeatureShape) -> MonitoredExamples:
    """Consecutive records of the examples log.

    Raises:
        RecordError: a value is neither an example nor a command.
        StateLostError: TM-4110, examples of one features' digest differ in their number of features.
    """
    commands = tuple(decode_commands(values, offsets))
    of_commands = {command.offset for command in commands}
    rest = [index for index, offset in enumerate(offsets) if offset not in of_commands]
    columns = decode("example.v1", [values[index] for index in rest])
    at = np.array([offsets[index] for index in rest], dtype=np.int64)
    ours = examples_of(columns, at, expected)
    is_one = columns.num_rows == 0 or pc.all(pc.equal(columns.column("feature_digest"), expected.digest)).as_py()
    return MonitoredExamples(ours, ours if is_one else examples_of(columns, at, None), commands)


def monitored_predictions(
    values: Sequence[bytes], offsets: Sequence[int], expected: FeatureShape
) -> MonitoredPredictions:
    """Consecutive records of a partition of predictions.

    Raises:
        RecordError: a value is no prediction.
    """
    columns = decode("prediction.v1", values)
    numeric, categories = columns.column("numeric"), columns.column("categories")
    is_ours = (
        pc.equal(columns.column("feature_digest"), expected.digest).to_numpy(zero_copy_only=False)
        & (numeric.value_lengths().to_numpy() == expected.numeric)
        & (categories.value_lengths().to_numpy() == expected.categories)
    )
    at = np.flatnonzero(is_ours)
    chosen = columns if len(at) == columns.num_rows else columns.take(pa.array(at))
    features = FeatureBatch(
        matrix_of(chosen.column("numeric"), None, expected.numeric),
        text_columns_of(chosen.column("categories"), None, expected.categories),
    )
    return MonitoredPredictions(prediction_columns(columns), at, np.array(offsets, dtype=np.int64)[at], features)


def prediction_columns(columns: pa.RecordBatch) -> PredictionColumns:
    """What the validation needs of prediction.v1."""
    flags = columns.column("flags")
    return PredictionColumns(
        event_time=columns.column("event_time").to_numpy(),
        blend=columns.column("blend").to_numpy(),
        is_alarm=columns.column("decision").to_numpy(zero_copy_only=False),
        is_degraded=_has(flags, "degraded"),
        is_outlier=_has(flags, "outlier"),
    )


def _has(flags: pa.ListArray, flag: str) -> npt.NDArray[np.bool_]:
    """Which lists hold the flag."""
    found = np.zeros(len(flags), dtype=np.bool_)
    at = pc.list_parent_indices(flags).filter(pc.equal(pc.list_flatten(flags), flag))
    found[at.to_numpy(zero_copy_only=False)] = True
    return found
