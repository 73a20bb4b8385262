"""Tidemill's own records: columns to bytes, and back.

In: columns of one of the schemas under `schemas/tidemill`. Out: one value per row, and the inverse. Invariant: decoding
what was encoded gives the same columns; values in topics are framed, rows of the store begin with a state version.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyruhvro

from tidemill.core.records import Command, ExampleColumns, FeatureBatch, Float32s, Float64s, Int64s
from tidemill.errors import InvariantError, RecordError, StateLostError
from tidemill.io.dead_letters import Code
from tidemill.io.framing import HEADER_BYTES, fingerprint_text, header_of
from tidemill.resources import schema_text

ROW_SCHEMA = "row.v1"
ROW_PREFIX = b"\x01"  # version of the stored row; a new layout gets a new number and reads the old one


class Encoder:
    """Columns to bytes for one of Tidemill's schemas: framed for topics, with the state version for rows."""

    def __init__(self, schema_name: str) -> None:
        self._name = schema_name
        self._text = schema_text(schema_name)
        self._columns = _columns_of(schema_name)
        self._prefix = _prefix_of(schema_name)

    def encode(self, columns: pa.RecordBatch | Mapping[str, Any]) -> list[bytes]:
        """One value per row. Columns (Arrow, numpy, sequences) are found by name; a 2-D array becomes one list per row.

        Raises:
            InvariantError: a column is missing, has another type, or has a null where the schema has none.
        """
        try:
            arrays = [_as_array(columns[field.name], field.type) for field in self._columns]
            batch = pa.RecordBatch.from_arrays(arrays, schema=self._columns)
        except (KeyError, pa.ArrowException) as error:
            raise InvariantError("TM-9010", f"{self._name} cannot be encoded: {error}") from error
        if not batch.num_rows:
            return []
        for field, array in zip(self._columns, arrays, strict=True):
            if array.null_count and not field.nullable:
                raise InvariantError("TM-9011", f"{self._name}.{field.name} is null in {array.null_count} rows")
        bodies = pa.chunked_array(pyruhvro.serialize_record_batch(batch, self._text, 1)).to_pylist()
        prefix = self._prefix
        return [prefix + body for body in bodies]


class InputEncoder:
    """Columns of an input topic to framed Avro: for producers that write what Tidemill reads."""

    def __init__(self, schema: dict[str, object]) -> None:
        self._schema = json.dumps(schema)
        fields = schema["fields"]
        assert isinstance(fields, list)  # config.py lets only records through
        self._names = [one["name"] for one in fields]
        self._frame = pa.scalar(header_of(schema), pa.binary())

    def encode(self, columns: pa.RecordBatch) -> list[bytes]:
        """One framed record per row."""
        bodies = pyruhvro.serialize_record_batch(columns.select(self._names), self._schema, 1)[0]
        framed: list[bytes] = pc.binary_join_element_wise(self._frame, bodies, pa.scalar(b"", pa.binary())).to_pylist()
        return framed


def decode(schema_name: str, values: Sequence[bytes]) -> pa.RecordBatch:
    """The columns of consecutive values of one schema.

    Raises:
        RecordError: a value has another schema, or is not whole.
    """
    if not values:
        return pa.RecordBatch.from_pylist([], schema=_columns_of(schema_name))
    prefix = _prefix_of(schema_name)
    length = len(prefix)
    for value in values:
        if not value.startswith(prefix):
            raise RecordError(Code.UNKNOWN_SCHEMA, _foreign(schema_name, value))
    try:
        columns = pyruhvro.deserialize_array([value[length:] for value in values], schema_text(schema_name))
        columns.validate(full=True)
    except (ValueError, RuntimeError) as error:
        raise RecordError(
            Code.OUT_OF_TYPE, f"{len(values)} values of {schema_name}: {error}; the log or store holds foreign bytes"
        ) from error
    return columns


def decode_rows(tails: Sequence[bytes]) -> pa.RecordBatch:
    """The columns of row.v1, one row per stored tail."""
    return decode(ROW_SCHEMA, tails)


class FeatureShape(NamedTuple):
    """The features that a reader of the examples log expects: their digest, and the number of columns."""

    digest: str
    numeric: int
    categories: int


def decode_examples(
    values: Sequence[bytes], offsets: Sequence[int], expected: FeatureShape | None = None
) -> tuple[ExampleColumns, list[Command]]:
    """Consecutive records of the examples log: what the fold learns from, and the commands among them.

    Args:
        expected: examples of other features are not learned, their features are missing. None: all have the same.
    Raises:
        RecordError: a value is neither an example nor a command.
        StateLostError: examples of the same features with different numbers of them.
    """
    commands = decode_commands(values, offsets)
    if not commands:
        return examples_of(decode("example.v1", values), np.array(offsets, dtype=np.int64), expected), []
    of_commands = {command.offset for command in commands}
    rest = [(value, offset) for value, offset in zip(values, offsets, strict=True) if offset not in of_commands]
    at = np.array([offset for _, offset in rest], dtype=np.int64)
    return examples_of(decode("example.v1", [value for value, _ in rest]), at, expected), commands


def without_commands(values: Sequence[bytes]) -> list[bytes]:
    """The examples and amendments among values of the examples log."""
    prefix = _prefix_of("command.v1")
    return [value for value in values if not value.startswith(prefix)]


def decode_commands(values: Sequence[bytes], offsets: Sequence[int]) -> list[Command]:
    """The commands among consecutive records of the examples log; the rest is not looked at."""
    prefix = _prefix_of("command.v1")
    places = [(value, offset) for value, offset in zip(values, offsets, strict=True) if value.startswith(prefix)]
    rows = decode("command.v1", [value for value, _ in places]).to_pylist()
    return [Command(offset, **row) for (_, offset), row in zip(places, rows, strict=True)]


def examples_of(columns: pa.RecordBatch, offsets: Int64s, expected: FeatureShape | None) -> ExampleColumns:
    """Columns of example.v1 as `decode_examples` gives them."""
    is_learned = columns.column("is_learned").to_numpy(zero_copy_only=False)
    numeric, categories = columns.column("numeric"), columns.column("categories")
    numeric_lengths, category_lengths = (lists.value_lengths().to_numpy() for lists in (numeric, categories))
    if expected is None:
        widths = int(numeric_lengths.max(initial=0)), int(category_lengths.max(initial=0))
        has_features = (numeric_lengths > 0) | (category_lengths > 0)
    else:
        widths = expected.numeric, expected.categories
        is_ours = pc.equal(columns.column("feature_digest"), expected.digest).to_numpy(zero_copy_only=False)
        has_features = is_ours & ((numeric_lengths > 0) | (category_lengths > 0))
        is_learned = is_learned & is_ours
    for lengths, width in zip((numeric_lengths, category_lengths), widths, strict=True):
        if (lengths[has_features] != width).any():
            raise StateLostError(
                "TM-4110",
                f"examples log: examples with {lengths[has_features].min()} and with {width} features in one run; the "
                "declaration of the features changed under the log; give the app a new name, or `tidemill reset`",
            )
    at = None if has_features.all() else np.flatnonzero(has_features)
    return ExampleColumns(
        offset=offsets,
        features=FeatureBatch(matrix_of(numeric, at, widths[0]), text_columns_of(categories, at, widths[1])),
        label=columns.column("label").to_numpy().astype(np.float32),
        is_learned=is_learned,
        event_time=columns.column("event_time").to_numpy(),
        label_time=columns.column("label_time").to_numpy(),
        **{
            name: _probabilities(columns.column(name)) for name in ("learner", "booster", "base_rate", "blend", "other")
        },
        **{name: _few_texts(columns.column(name)) for name in ("model_version", "other_version")},
    )


def _probabilities(column: pa.Array) -> Float64s:
    """Null is NaN."""
    values: Float64s = column.to_numpy(zero_copy_only=False).astype(np.float64)
    return values


def _few_texts(column: pa.Array) -> tuple[str, ...]:
    """A column of few different strings, most often one."""
    encoded = column.dictionary_encode()
    texts = encoded.dictionary.to_pylist()
    if len(texts) == 1:
        return (texts[0],) * len(column)
    return tuple(np.array(texts, dtype=object)[encoded.indices.to_numpy()].tolist())


def matrix_of(lists: pa.ListArray, at: Int64s | None, width: int) -> Float32s:
    """(rows, width) float32; rows not in `at` (None: all are) are NaN."""
    if at is None:
        flat: Float32s = lists.flatten().to_numpy()
        return flat.reshape(len(lists), width)
    matrix = np.full((len(lists), width), np.nan, dtype=np.float32)
    matrix[at] = lists.take(pa.array(at)).flatten().to_numpy().reshape(len(at), width)
    return matrix


def text_columns_of(lists: pa.ListArray, at: Int64s | None, width: int) -> tuple[tuple[str, ...], ...]:
    """`width` columns of strings; rows not in `at` (None: all are) are "" in each."""
    if at is None:
        flat = lists.flatten().to_pylist()
        return tuple(tuple(flat[column::width]) for column in range(width))
    flat = lists.take(pa.array(at)).flatten().to_pylist()
    columns = np.full((width, len(lists)), "", dtype=object)
    for column in range(width):
        columns[column, at] = flat[column::width]
    return tuple(map(tuple, columns.tolist()))


def _as_array(column: Any, kind: pa.DataType) -> pa.Array:
    if isinstance(column, np.ndarray) and column.ndim == 2:
        offsets = np.arange(len(column) + 1, dtype=np.int32) * column.shape[1]
        column = pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.ascontiguousarray(column).reshape(-1)))
    if not isinstance(column, pa.Array):
        return pa.array(column, kind)
    return column if column.type == kind else column.cast(kind)


def _foreign(schema_name: str, value: bytes) -> str:
    begins = f"fingerprint {fingerprint_text(value)}" if value[:2] == b"\xc3\x01" else f"first bytes {value[:4].hex()}"
    return (
        f"a value is not {schema_name} but has {begins} and {len(value)} bytes (header: {HEADER_BYTES}); "
        "does another program write to this topic?"
    )


@cache
def _columns_of(schema_name: str) -> pa.Schema:
    return pyruhvro.avro_to_arrow_schema(schema_text(schema_name))


@cache
def _prefix_of(schema_name: str) -> bytes:
    return ROW_PREFIX if schema_name == ROW_SCHEMA else header_of(json.loads(schema_text(schema_name)))
