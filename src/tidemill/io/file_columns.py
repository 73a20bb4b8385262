"""The values of a file's column as the type that its field has in a schema.

In: an Arrow column as a file gives it, text for CSV. Out: the column in the field's own type, times in ms. Invariant: a
value is converted without loss or refused with its row; nothing is rounded, cut or dropped in silence.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tidemill.io.avro_types import FieldType
from tidemill.io.dead_letters import Code

DAY_MS = 86_400_000
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UNITS_PER_MS = {"timestamp-micros": 1_000, "timestamp-nanos": 1_000_000, "time-micros": 1_000}
_WORDS = {"long": "a whole number", "int": "a whole number of 32 bits", "boolean": "true or false"}


class RowFault(ValueError):
    """The first value of a column that does not convert. `row`: its place in the column."""

    def __init__(self, row: int, code: Code, what: str) -> None:
        super().__init__(what)
        self.row, self.code, self.what = row, code, what


def convert(column: pa.Array, field: FieldType, target: pa.DataType) -> pa.Array:
    """The column as `target`, the Arrow type of `field` without logical types; times as int64 milliseconds.

    A NaN is how many tools write a missing number: null where the field may be null.

    Raises:
        RowFault: the first value that does not convert, or that is null although the field may not be.
    """
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_floating(column.type):
        column = _without_nan(column, field)
    if field.is_time:
        converted = times_ms(column, f"field {field.name}")
    elif field.kind == "boolean" and pa.types.is_string(column.type):
        converted = _booleans(column, field)
    else:
        _refuse_other_kinds(column, field)
        converted = _each(column, lambda part: part.cast(target), lambda value: _what(field, value))
    if pa.types.is_floating(converted.type):
        converted = _without_nan(converted, field)
        _refuse_infinite(converted, field)
    if field.symbols:
        _refuse_unknown_symbols(converted, field)
    if converted.null_count and not field.is_nullable:
        row = int(np.flatnonzero(converted.is_null().to_numpy(zero_copy_only=False))[0])
        _fail(row, Code.NO_VALUE, f"field {field.name} has no value, and its schema wants one")
    return converted


def times_ms(column: pa.Array, name: str) -> pa.Array:
    """Milliseconds since the epoch, UTC: of integers (which are milliseconds), ISO 8601 text, dates and timestamps."""
    kind = column.type
    if pa.types.is_timestamp(kind):
        units = {"s": (1_000, 1), "ms": (1, 1), "us": (1, 1_000), "ns": (1, 1_000_000)}
        times, per = units[kind.unit]
        return _floored(pc.multiply(column.cast(pa.int64()), times), per)
    if pa.types.is_date(kind):
        return pc.multiply(column.cast(pa.date32()).cast(pa.int32()).cast(pa.int64()), DAY_MS)
    if pa.types.is_string(kind):
        try:
            return column.cast(pa.int64())
        except pa.ArrowInvalid:
            pass
        values = []
        for row, text in enumerate(column.to_pylist()):
            try:
                values.append(None if text is None else _ms_of(text))
            except (ValueError, OverflowError):
                _fail(
                    row,
                    Code.OUT_OF_TYPE,
                    f"{name} is {text!r}, not a time; write ISO 8601 (UTC without a zone) or milliseconds since 1970",
                )
        return pa.array(values, pa.int64())
    return _each(column, lambda part: part.cast(pa.int64()), lambda value: f"{name} is {value!r}, not milliseconds")


def as_written(column: pa.Array, field: FieldType, target: pa.DataType) -> pa.Array:
    """Milliseconds in the unit of the field's logical type: the inverse of what the wire does when it reads."""
    if not field.is_time:
        return column
    if field.logical == "date":
        column = _floored(column, DAY_MS)
    else:
        column = pc.multiply(column, _UNITS_PER_MS.get(field.logical.removeprefix("local-"), 1))
    return column.cast(target)


def read_ms(column: pa.Array, field: FieldType) -> pa.Array:
    """Milliseconds of a time that stands in the unit of the field's logical type."""
    column = column.cast(pa.int64())
    if field.logical == "date":
        return pc.multiply(column, DAY_MS)
    return _floored(column, _UNITS_PER_MS.get(field.logical.removeprefix("local-"), 1))


def _ms_of(text: str) -> int:
    if text.lstrip("-").isdigit() and len(text) != 8:  # eight digits are a day in ISO's basic form
        return int(text)
    moment = datetime.fromisoformat(text)
    return (moment.replace(tzinfo=moment.tzinfo or UTC) - _EPOCH) // timedelta(milliseconds=1)


def _floored(column: pa.Array, per: int) -> pa.Array:
    """Arrow's division would go towards zero."""
    if per == 1:
        return column
    mask = column.is_null().to_numpy(zero_copy_only=False)
    return pa.array(column.fill_null(0).to_numpy() // per, mask=mask if column.null_count else None)


def _without_nan(column: pa.Array, field: FieldType) -> pa.Array:
    is_nan = pc.is_nan(column).fill_null(False)
    if field.is_nullable and is_nan.true_count:
        return pc.if_else(is_nan, pa.scalar(None, column.type), column)
    return column


def _booleans(column: pa.Array, field: FieldType) -> pa.Array:
    lowered = pc.utf8_lower(column)
    unknown = pc.invert(pc.is_in(lowered, pa.array(["true", "false", None], pa.string())))
    for row in np.flatnonzero(unknown.to_numpy(zero_copy_only=False)).tolist():
        _fail(row, Code.OUT_OF_TYPE, _what(field, column[row].as_py()))
    return pc.equal(lowered, "true")


def _refuse_other_kinds(column: pa.Array, field: FieldType) -> None:
    """What Arrow would cast although it means something else."""
    is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    kind = field.kind
    if kind in ("string", "enum"):
        fits = is_text or (kind == "string" and pa.types.is_integer(column.type))
    elif kind == "boolean":
        fits = pa.types.is_boolean(column.type)
    elif kind in ("bytes", "fixed") or field.is_nested:
        fits = not is_text
    else:
        fits = not pa.types.is_boolean(column.type) and not pa.types.is_temporal(column.type)
    if not fits and column.null_count < len(column):
        row = int(np.flatnonzero(column.is_valid().to_numpy(zero_copy_only=False))[0])
        _fail(row, Code.OUT_OF_TYPE, _what(field, column[row].as_py()))


def _each(column: pa.Array, cast: Callable[[pa.Array], pa.Array], what: Callable[[object], str]) -> pa.Array:
    """The cast of all, or a fault that names the first value without one."""
    try:
        return cast(column)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        for row in range(len(column)):
            try:
                cast(column.slice(row, 1))
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
                _fail(row, Code.OUT_OF_TYPE, what(column[row].as_py()))
        raise


def _refuse_infinite(column: pa.Array, field: FieldType) -> None:
    is_finite = pc.is_finite(column).fill_null(True)
    if is_finite.false_count:
        row = int(np.flatnonzero(~is_finite.to_numpy(zero_copy_only=False))[0])
        _fail(row, Code.NOT_FINITE, f"field {field.name} is {column[row].as_py()}; leave it empty where it is missing")


def _refuse_unknown_symbols(column: pa.Array, field: FieldType) -> None:
    is_known = pc.is_in(column, pa.array([*field.symbols, None], pa.string()))
    if is_known.false_count:
        row = int(np.flatnonzero(~is_known.to_numpy(zero_copy_only=False))[0])
        _fail(
            row,
            Code.OUT_OF_TYPE,
            f"field {field.name} is {column[row].as_py()!r}, which is none of {', '.join(field.symbols)}",
        )


def _what(field: FieldType, value: object) -> str:
    shown = f"{value!r}" if not isinstance(value, date) else str(value)
    return f"field {field.name} is {shown:.60}, not {_WORDS.get(field.kind, f'a {field.kind}')}"


def _fail(row: int, code: Code, what: str) -> NoReturn:
    raise RowFault(row, code, what)
