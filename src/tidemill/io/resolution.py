"""From the bytes of one writer's schema to the columns of the reader's.

In: bodies of Avro values that one schema wrote. Out: Arrow columns as the reader declares them, and the faults of the
bodies that have none. Invariant: a body is either a row or a fault; the bulk and the single path give the same rows.

The bulk path is pyruhvro (0.2 µs a row). It lets trailing bytes, NaN and overlong ints through and does not say which
row is bad, so every body ends in a number that only a body of exact length leaves in its place, `int` is read as `long`
(the same bytes), and whatever looks odd goes to the judge. Schemas beyond pyruhvro take the single path: judge, then
fastavro.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import fastavro
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyruhvro

from tidemill.errors import ConfigError
from tidemill.io.avro_types import FieldType, arrow_type, field_types, is_fit_for_bulk, plain, with_wide_ints
from tidemill.io.dead_letters import Code
from tidemill.io.framing import header_of, parsed
from tidemill.io.judge import Fault, Judge

_END = "tidemill_end"
# Random, so that no producer can leave it behind a body by accident or on purpose.
_END_VALUE = int.from_bytes(os.urandom(8), "big") | 1 << 63
_END_BYTES = bytes(0x80 | (_END_VALUE >> shift & 0x7F) for shift in range(0, 63, 7)) + b"\x01"
_END_LONG = (_END_VALUE >> 1) ^ -(_END_VALUE & 1)

_PROMOTIONS = {
    "int": {"int", "long", "float", "double"},
    "long": {"long", "float", "double"},
    "float": {"float", "double"},
    "string": {"string", "bytes"},
    "bytes": {"string", "bytes"},
}
_MILLISECONDS = {"timestamp-micros": 1_000, "timestamp-nanos": 1_000_000, "time-micros": 1_000}
_DAY_MS = 86_400_000


class ReaderSchema:
    """The columns that an input topic is read as. A field without an Arrow form (recursive, union of many) has none."""

    def __init__(self, topic: str, schema: Mapping[str, Any]) -> None:
        self.topic = topic
        self.schema = parsed(schema)
        self.plain = plain(self.schema)
        self.fields = [each for each in field_types(self.schema) if arrow_type(each, self.schema) is not None]
        self.raw_types = {each.name: arrow_type(each, self.schema) for each in self.fields}
        self.arrow = pa.schema(
            [
                pa.field(each.name, pa.int64() if each.is_time else self.raw_types[each.name], each.is_nullable)
                for each in self.fields
            ]
        )


class Resolution:
    """Reads the bodies of one writer's schema.

    Raises:
        ConfigError: TM-1310, the reader's schema cannot read what this writer wrote.
    """

    def __init__(self, reader: ReaderSchema, writer: Mapping[str, Any]) -> None:
        self.header = header_of(writer)
        schema = parsed(writer)
        self._reader = reader
        self._judge = Judge(schema)
        self._writer_plain = plain(schema)
        self._writer_parsed = fastavro.parse_schema(json.loads(json.dumps(self._writer_plain)))
        # A topic's records are one thing, whatever its writers call them; fields are matched by name.
        named = {**reader.plain, "aliases": [*reader.plain.get("aliases", ()), schema["name"]]}
        self._reader_parsed = fastavro.parse_schema(json.loads(json.dumps(named)))
        written = {each.name: each for each in field_types(schema)}
        self._sources = [(each, self._source(each, written, schema)) for each in reader.fields]
        self._written_types = {name: arrow_type(each, schema) for name, each in written.items()}
        self._written_names = list(written)
        self.is_bulk = is_fit_for_bulk(schema) and all(self._is_direct(each, source) for each, source in self._sources)
        bulk = with_wide_ints(self._writer_plain)
        bulk["fields"] = [*bulk["fields"], {"name": _END, "type": "long"}]
        self._bulk_text = json.dumps(bulk)

    def read(self, bodies: Sequence[bytes]) -> tuple[pa.RecordBatch, list[int], dict[int, Fault]]:
        """Rows of the sound bodies, their places in `bodies` (ascending), and the faults of the others."""
        return self._read_bulk(bodies) if self.is_bulk else self._read_singly(bodies)

    def check_is_told_from(self, other: Resolution | None) -> None:
        """Two schemas with one fingerprint must mean the same: it does not cover the unit of a time.

        Raises:
            ConfigError: TM-1317.
        """
        for (field, ours), (_, theirs) in zip(self._sources, other._sources if other else (), strict=False):
            if field.is_time and ours is not None and theirs is not None and ours.logical != theirs.logical:
                raise ConfigError(
                    "TM-1317",
                    f"topic {self._reader.topic}: field {ours.name} is written as {ours.logical or 'a plain number'} "
                    f"and as {theirs.logical or 'a plain number'} under one fingerprint, so nobody can tell the two "
                    "apart; give the field of the new schema another name, and the reader's an alias",
                )

    def _source(
        self, field: FieldType, written: Mapping[str, FieldType], schema: Mapping[str, Any]
    ) -> FieldType | None:
        """The writer's field that a reader's field is read from; None = its default."""
        found = next((written[name] for name in (field.name, *field.aliases) if name in written), None)
        if found is None:
            if not field.has_default:
                raise self._unreadable(field, schema, "the writer does not have it and it has no default")
        elif "other" not in (found.kind, field.kind) and field.kind not in _PROMOTIONS.get(found.kind, {found.kind}):
            raise self._unreadable(field, schema, f"written as {found.kind}, read as {field.kind}")
        return found

    def _unreadable(self, field: FieldType, schema: Mapping[str, Any], why: str) -> ConfigError:
        return ConfigError(
            "TM-1310",
            f"topic {self._reader.topic}: field {field.name} of schema {schema['name']} cannot be read: {why}; "
            "give the field a default or an alias, or keep its type",
        )

    def _is_direct(self, field: FieldType, source: FieldType | None) -> bool:
        """Whether a column of the writer becomes one of the reader by a cast."""
        if source is None or not field.is_nested:
            return True
        is_same = self._written_types[source.name] == self._reader.raw_types[field.name]
        return is_same and plain(source.node) == plain(field.node)

    def _read_bulk(self, bodies: Sequence[bytes]) -> tuple[pa.RecordBatch, list[int], dict[int, Fault]]:
        closed = [body + _END_BYTES for body in bodies]
        faults: dict[int, Fault] = {}
        try:
            raw = self._decode(closed)
        except Exception:
            for row in self._find_refused(closed, 0):
                fault = self._judge.find_fault(bodies[row])
                if fault is None:  # the bulk decoder cannot read what is sound: only the single path can be trusted
                    return self._read_singly(bodies)
                faults[row] = fault
            kept = [row for row in range(len(bodies)) if row not in faults]
            raw = self._decode([closed[row] for row in kept])
        else:
            kept = list(range(len(bodies)))
        for row in self._find_odd(raw):
            fault = self._judge.find_fault(bodies[kept[row]])
            if fault is not None:
                faults[kept[row]] = fault
        columns, unresolved = self._columns(raw)
        for row, fault in unresolved.items():
            faults.setdefault(kept[row], fault)
        if faults:
            sound = [row for row, place in enumerate(kept) if place not in faults]
            columns = [column.take(pa.array(sound, pa.int64())) for column in columns]
            kept = [kept[row] for row in sound]
        return pa.RecordBatch.from_arrays(columns, schema=self._reader.arrow), kept, faults

    def _decode(self, closed: Sequence[bytes]) -> pa.RecordBatch:
        """Raises some Exception when any body is refused."""
        try:
            raw = pyruhvro.deserialize_array(closed, self._bulk_text)
        except Exception:
            raise
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # a panic of Rust; it is no Exception
                raise
            raise ValueError(str(error)) from error
        raw.validate(full=True)  # strings are UTF-8
        return raw

    def _find_refused(self, closed: Sequence[bytes], first: int) -> list[int]:
        """Halve until the bodies that the decoder refuses are alone; their places."""
        try:
            self._decode(closed)
        except Exception:
            if len(closed) == 1:
                return [first]
            middle = len(closed) // 2
            return [
                *self._find_refused(closed[:middle], first),
                *self._find_refused(closed[middle:], first + middle),
            ]
        return []

    def _find_odd(self, raw: pa.RecordBatch) -> list[int]:
        """Rows that the judge has to look at: another length than their body, not finite, or an int beyond 32 bits."""
        odd = raw.column(len(self._written_names)).to_numpy() != _END_LONG
        for index, name in enumerate(self._written_names):
            column, kind = raw.column(index), self._written_types[name]
            if pa.types.is_floating(kind):
                odd |= ~_values(column, 0.0, np.isfinite)
            elif pa.types.is_int32(kind):
                odd |= _values(column, 0, _is_wide)
            elif pa.types.is_nested(kind) and _has_odd_leaf(column, kind):
                odd[:] = True
        return np.flatnonzero(odd).tolist()

    def _columns(self, raw: pa.RecordBatch) -> tuple[list[pa.Array], dict[int, Fault]]:
        """The reader's columns, and rows that its schema has no place for."""
        columns: list[pa.Array] = []
        faults: dict[int, Fault] = {}
        for field, source in self._sources:
            target = self._reader.raw_types[field.name]
            if source is None:
                column = _default(field, target, raw.num_rows)
            else:
                column = raw.column(self._written_names.index(source.name))
                if column.null_count and not field.is_nullable:
                    for row in np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False)).tolist():
                        faults.setdefault(
                            row, Fault(Code.NOT_RESOLVED, f"field {field.name} is null, which is not allowed")
                        )
                    column = column.fill_null(_zero(column.type)) if not field.is_nested else column
                if source.symbols and not set(source.symbols) <= set(field.symbols):
                    column, unknown = _known_symbols(column, field)
                    for row, symbol in unknown:
                        what = f"field {field.name} has symbol {symbol!r}; known: {', '.join(field.symbols)}"
                        faults.setdefault(row, Fault(Code.NOT_RESOLVED, what))
                if column.type != target:
                    column = column.cast(target, safe=False)
            columns.append(_to_milliseconds(column, field, source))
        return columns, faults

    def _read_singly(self, bodies: Sequence[bytes]) -> tuple[pa.RecordBatch, list[int], dict[int, Fault]]:
        rows: list[dict[str, Any]] = []
        kept: list[int] = []
        faults: dict[int, Fault] = {}
        for place, body in enumerate(bodies):
            fault = self._judge.find_fault(body)
            if fault is None:
                try:
                    row = fastavro.schemaless_reader(io.BytesIO(body), self._writer_parsed, self._reader_parsed)
                except (ValueError, LookupError, TypeError, fastavro.read.SchemaResolutionError) as error:
                    fault = Fault(Code.NOT_RESOLVED, f"does not fit the reader's schema: {error}")
            if fault is None:
                assert isinstance(row, dict)
                rows.append(row)
                kept.append(place)
            else:
                faults[place] = fault
        columns = []
        for field, source in self._sources:
            column = pa.array([row[field.name] for row in rows], self._reader.raw_types[field.name])
            columns.append(_to_milliseconds(column, field, source))
        return pa.RecordBatch.from_arrays(columns, schema=self._reader.arrow), kept, faults


def _values(column: pa.Array, instead_of_null: float, test: Any) -> npt.NDArray[np.bool_]:
    filled = column.fill_null(instead_of_null) if column.null_count else column
    result: npt.NDArray[np.bool_] = test(filled.to_numpy())
    return result


def _is_wide(numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    result: npt.NDArray[np.bool_] = numbers != numbers.astype(np.int32)
    return result


def _has_odd_leaf(column: pa.Array, kind: pa.DataType) -> bool:
    if pa.types.is_list(kind):
        return _has_odd_leaf(column.flatten(), kind.value_type)
    if pa.types.is_map(kind):
        return _has_odd_leaf(column.items, kind.item_type)
    if pa.types.is_struct(kind):
        children = zip(column.flatten(), kind, strict=True)
        return any(_has_odd_leaf(child, field.type) for child, field in children)
    if pa.types.is_floating(kind):
        return not _values(column, 0.0, np.isfinite).all()
    return pa.types.is_int32(kind) and bool(_values(column, 0, _is_wide).any())


def _default(field: FieldType, target: pa.DataType, count: int) -> pa.Array:
    value = field.default
    if value is not None and field.kind in ("bytes", "fixed"):
        value = value.encode("latin-1")  # how Avro writes bytes in JSON
    return pa.array([value], target).take(pa.array(np.zeros(count, np.int64)))


def _zero(kind: pa.DataType) -> Any:
    return pa.scalar("" if pa.types.is_string(kind) else b"" if pa.types.is_binary(kind) else 0).cast(kind)


def _known_symbols(column: pa.Array, field: FieldType) -> tuple[pa.Array, list[tuple[int, str]]]:
    """Symbols that only the writer knows become the reader's default, or faults (row, symbol)."""
    is_known = pc.or_kleene(column.is_null(), pc.is_in(column, value_set=pa.array(field.symbols, pa.string())))
    if field.symbol_default is not None:
        return pc.if_else(is_known, column, pa.scalar(field.symbol_default)), []
    rows = np.flatnonzero(~is_known.to_numpy(zero_copy_only=False)).tolist()
    return column, [(row, column[row].as_py()) for row in rows]


def _to_milliseconds(column: pa.Array, field: FieldType, source: FieldType | None) -> pa.Array:
    """Values are in the unit of the writer, where it names one."""
    if not field.is_time:
        return column
    column = column.cast(pa.int64())
    logical = source.logical if source is not None and source.is_time else field.logical
    if logical == "date":
        return pc.multiply(column, _DAY_MS)
    unit = _MILLISECONDS.get(logical.removeprefix("local-"), 1)
    if unit == 1:
        return column
    # Floor, also before 1970: Arrow's division would go towards zero.
    mask = column.is_null().to_numpy(zero_copy_only=False)
    return pa.array(column.fill_null(0).to_numpy() // unit, mask=mask if column.null_count else None)
