"""Files of an input topic: CSV, Avro and Parquet rows as the records that a producer would have sent.

In: a topic and the paths of its files. Out: times, keys and framed Avro values, chunk by chunk. Invariant: rows come in
the order of the files, which is the order of their times; a row that is no record is an error with its place, none is
left out.

Columns are found by the names of the schema's fields (or their aliases); others are passed over, as Avro's own schema
resolution does, and a field that a file lacks takes its default. Two more columns may stand in a file:
- `_time`: when the record came, ISO 8601 or milliseconds; needed unless the topic declares `time`, which then counts.
- `_key`: the record's key; without it the id, and for a topic without id the first field of its schema.
In CSV an empty cell is null, or the empty text where a text may not be null; logical times are ISO 8601 or ms.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple, cast

import fastavro
import numpy as np
import pyarrow as pa
from pyarrow import parquet

from tidemill.core.asking import TIME_LIMIT
from tidemill.core.records import Int64s
from tidemill.core.spec import TopicSpec
from tidemill.errors import ConfigError, RecordError
from tidemill.io.avro_types import FieldType, arrow_type, field_types, is_fit_for_bulk, plain
from tidemill.io.dead_letters import Code
from tidemill.io.file_columns import RowFault, as_written, convert, read_ms, times_ms
from tidemill.io.framing import header_of, parsed
from tidemill.io.outputs import InputEncoder
from tidemill.io.resolution import ReaderSchema, Resolution

TIME_COLUMN, KEY_COLUMN = "_time", "_key"
CHUNK_ROWS = 5_000
CODE_UNREADABLE, CODE_LACKING = "TM-1061", "TM-1062"
CODE_ORDER, CODE_NO_ROW = "TM-2051", "TM-2052"

_AVRO_HEADER = {
    "type": "record",
    "name": "Header",
    "fields": [
        {"name": "magic", "type": {"type": "fixed", "name": "Magic", "size": 4}},
        {"name": "meta", "type": {"type": "map", "values": "bytes"}},
        {"name": "sync", "type": {"type": "fixed", "name": "Sync", "size": 16}},
    ],
}


@dataclass(frozen=True, slots=True)
class FileChunk:
    """Consecutive records of a topic's files. time: shape (n,), ms, ascending within and across chunks."""

    time: Int64s
    keys: list[bytes]
    values: list[bytes]

    def __len__(self) -> int:
        return len(self.values)


class _Rows(NamedTuple):
    """Columns as a file gives them, and for each row its line, or its number where a file has no lines."""

    places: Sequence[int]
    columns: Mapping[str, pa.Array]


class _Format(NamedTuple):
    place: str  # what the number of a place counts
    read: Any  # (path, reader schema, names that are wanted) -> iterator of _Rows


def read_records(topic: TopicSpec, paths: Sequence[Path]) -> Iterator[FileChunk]:
    """The records of a topic's files, one file after another.

    Raises:
        ConfigError: TM-1061 a file cannot be read, TM-1062 it lacks a column, TM-1310 its schema does not fit.
        RecordError: TM-20nn a row is no record, TM-2051 it is out of order, TM-2052 it is broken; with file and line.
    """
    schema = _TopicSchema(topic)
    last = -1
    for path in paths:
        form = _FORMATS.get(path.suffix.lower())
        if form is None:
            known = ", ".join(sorted(_FORMATS))
            raise ConfigError(CODE_UNREADABLE, f"{path}: files end in {known}; convert it, or name it by its content")
        try:
            for rows in form.read(path, schema.reader, schema.wanted):
                if len(rows.places):
                    chunk = schema.chunk(path, form.place, rows, last)
                    last = int(chunk.time[-1])
                    yield chunk
        except (OSError, EOFError, UnicodeDecodeError, csv.Error, pa.ArrowInvalid) as error:
            raise ConfigError(CODE_UNREADABLE, f"{path}: cannot be read: {error}; is it whole, and UTF-8?") from error


class _TopicSchema:
    """Turns columns of files into records of one topic."""

    def __init__(self, topic: TopicSpec) -> None:
        self._topic = topic
        self.reader = ReaderSchema(topic.name, topic.schema)
        full = parsed(topic.schema)
        self._fields = field_types(full)
        for field in self._fields:
            if arrow_type(field, full) is None:
                raise ConfigError(
                    CODE_LACKING,
                    f"topic {topic.name}: field {field.name} is a union of many types or recursive; files cannot hold "
                    "it, publish such records with a producer of your own",
                )
        names = [name for field in self._fields for name in (field.name, *field.aliases)]
        self.wanted = frozenset([*names, TIME_COLUMN, KEY_COLUMN])
        self._encoder = InputEncoder(plain(full)) if is_fit_for_bulk(full) else _RowEncoder(full)

    def chunk(self, path: Path, place: str, rows: _Rows, last: int) -> FileChunk:
        """`last`: the time of the record before."""

        def where(row: int) -> str:
            return f"{path}:{rows.places[row]}" if place == "line" else f"{path}, {place} {rows.places[row]}"

        try:
            found = {field.name: self._column(path, field, rows) for field in self._fields}
            time = self._times(path, rows, found)
            keys = self._keys(rows, found)
        except RowFault as fault:
            raise RecordError(fault.code, f"{where(fault.row)}: {fault.what}; correct the row or take it out") from None
        before = np.concatenate([[last], time[:-1]])
        if (time < before).any():
            row = int(np.flatnonzero(time < before)[0])
            raise RecordError(
                CODE_ORDER,
                f"{where(row)}: its time {time[row]} is before {before[row]}, that of the record above it; a topic's "
                "files stand in the order of their times: sort them",
            )
        columns = [as_written(found[each.name], each, self.reader.raw_types[each.name]) for each in self._fields]
        batch = pa.RecordBatch.from_arrays(columns, names=[each.name for each in self._fields])
        return FileChunk(time, keys, self._encoder.encode(batch))

    def _column(self, path: Path, field: FieldType, rows: _Rows) -> pa.Array:
        """The column of a field, times in milliseconds."""
        target = self.reader.raw_types[field.name]
        name = next((name for name in (field.name, *field.aliases) if name in rows.columns), None)
        if name is not None:
            column = rows.columns[name]
            if pa.types.is_string(column.type) and field.kind == "string" and not field.is_nullable:
                column = column.fill_null("")
            return convert(column, field, target)
        if not field.has_default:
            raise ConfigError(
                CODE_LACKING,
                f"{path}: no column {field.name}, which topic {self._topic.name} wants; there is "
                f"{', '.join(rows.columns) or 'none that it knows'}; add the column, or give the field a default",
            )
        value = field.default
        if value is not None and field.kind in ("bytes", "fixed"):
            value = value.encode("latin-1")  # how Avro writes bytes in JSON
        default = pa.array([value], target)
        default = read_ms(default, field) if field.is_time else default
        return default.take(pa.array(np.zeros(len(rows.places), np.int64)))

    def _times(self, path: Path, rows: _Rows, found: Mapping[str, pa.Array]) -> Int64s:
        name = self._topic.time_field or TIME_COLUMN
        if name == TIME_COLUMN and name not in rows.columns:
            raise ConfigError(
                CODE_LACKING,
                f"{path}: nothing says when its records came: add a column {TIME_COLUMN} (ISO 8601 or milliseconds), "
                f"or declare `time: <field>` for topic {self._topic.name}",
            )
        column = found[name].cast(pa.int64()) if name in found else times_ms(rows.columns[name], name)
        time: Int64s = column.fill_null(-1).to_numpy()
        if time.min() < 0:
            row = int(np.flatnonzero(time < 0)[0])
            raise RowFault(row, Code.NO_TIME, f"{name} is empty or before 1970")
        if time.max() >= TIME_LIMIT:
            row = int(np.flatnonzero(time >= TIME_LIMIT)[0])
            what = f"{name} is {time[row]}, which in milliseconds is after the year 9999; are these microseconds?"
            raise RowFault(row, Code.OUT_OF_TYPE, what)
        return time

    def _keys(self, rows: _Rows, found: Mapping[str, pa.Array]) -> list[bytes]:
        if KEY_COLUMN in rows.columns:
            column = rows.columns[KEY_COLUMN]
        else:
            column = found[self._topic.id_field or self._fields[0].name]
        if pa.types.is_nested(column.type):
            return [b""] * len(column)
        text = column if pa.types.is_binary(column.type) else column.cast(pa.string())
        keys: list[bytes] = text.cast(pa.binary()).fill_null(b"").to_pylist()
        return keys


class _RowEncoder:
    """Row by row, for schemas that pyruhvro does not write."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._header = header_of(schema)
        self._schema = fastavro.parse_schema(plain(schema))

    def encode(self, columns: pa.RecordBatch) -> list[bytes]:
        values = []
        for row in columns.to_pylist(maps_as_pydicts="strict"):
            body = io.BytesIO()
            fastavro.schemaless_writer(body, self._schema, row)
            values.append(self._header + body.getvalue())
        return values


# The formats: columns of as many rows as a chunk has ------------------------------------------------------------------


def _read_csv(path: Path, reader: ReaderSchema, wanted: frozenset[str]) -> Iterator[_Rows]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file, strict=True)
        names = next(lines, [])
        if len(set(names)) < len(names):
            raise ConfigError(CODE_UNREADABLE, f"{path}:1: a column stands twice among {', '.join(names)}; rename one")
        columns = [at for at, name in enumerate(names) if name in wanted]
        places: list[int] = []
        cells: list[list[str]] = []
        line = lines.line_num + 1  # a cell may span lines: where the row begins
        for row in lines:
            if row:  # a blank line is no row
                if len(row) != len(names):
                    raise RecordError(
                        CODE_NO_ROW,
                        f"{path}:{line}: {len(row)} cells under {len(names)} names; is a comma or a quote missing?",
                    )
                places.append(line)
                cells.append(row)
            line = lines.line_num + 1
            if len(cells) == CHUNK_ROWS:
                yield _csv_rows(names, columns, places, cells)
                places, cells = [], []
        yield _csv_rows(names, columns, places, cells)


def _csv_rows(names: Sequence[str], columns: Sequence[int], places: list[int], cells: list[list[str]]) -> _Rows:
    return _Rows(places, {names[at]: pa.array([row[at] or None for row in cells], pa.string()) for at in columns})


def _read_parquet(path: Path, reader: ReaderSchema, wanted: frozenset[str]) -> Iterator[_Rows]:
    with parquet.ParquetFile(path) as file:
        names = [name for name in file.schema_arrow.names if name in wanted]
        first = 1
        for batch in file.iter_batches(CHUNK_ROWS, columns=names):
            yield _Rows(range(first, first + batch.num_rows), dict(zip(names, batch.columns, strict=True)))
            first += batch.num_rows


def _read_avro(path: Path, reader: ReaderSchema, wanted: frozenset[str]) -> Iterator[_Rows]:
    """The fields, and `_time` and `_key` where the file has them.

    fastavro turns logical types into Python's objects, as the file's schema says; so it is shown a schema without them.
    """
    with path.open("rb") as file:
        writer, replayed = _without_logical_types(path, file)
        Resolution(reader, writer)  # says what does not fit
        written = {each.name: each for each in field_types(writer)}
        extra = [name for name in (TIME_COLUMN, KEY_COLUMN) if name in written]
        target = dict(reader.plain)
        target["fields"] = [*target["fields"], *({"name": n, "type": plain(written[n].node)} for n in extra)]
        times = [(each, _time_type(each, written)) for each in reader.fields if each.is_time]
        types = reader.raw_types | {name: arrow_type(written[name], writer) for name in extra}
        records = fastavro.reader(replayed, target)
        first = 1
        while rows := list(_next_rows(path, records, first)):
            columns = {name: pa.array([row[name] for row in rows], kind) for name, kind in types.items()}
            columns.update({field.name: read_ms(columns[field.name], unit) for field, unit in times})
            if TIME_COLUMN in extra and written[TIME_COLUMN].is_time:
                columns[TIME_COLUMN] = read_ms(columns[TIME_COLUMN], written[TIME_COLUMN])
            yield _Rows(range(first, first + len(rows)), columns)
            first += len(rows)


def _next_rows(path: Path, records: Iterator[Any], first: int) -> Iterator[dict[str, Any]]:
    for place in range(first, first + CHUNK_ROWS):
        try:
            yield next(records)
        except StopIteration:
            return
        except (ValueError, LookupError, TypeError, fastavro.read.SchemaResolutionError) as error:
            raise RecordError(Code.NOT_RESOLVED, f"{path}, record {place}: {error}; correct the file") from error


def _time_type(field: FieldType, written: Mapping[str, FieldType]) -> FieldType:
    """Whose unit a time stands in: the writer's where it names one."""
    found = next((written[name] for name in (field.name, *field.aliases) if name in written), field)
    return found if found.is_time else field


def _without_logical_types(path: Path, file: BinaryIO) -> tuple[dict[str, Any], IO[bytes]]:
    """The schema that the file names, and the file with a schema of the same bytes and without logical types."""
    try:
        header: Any = fastavro.schemaless_reader(file, _AVRO_HEADER, None)
        writer = parsed(json.loads(header["meta"]["avro.schema"]))
    except (ValueError, LookupError, TypeError, EOFError, fastavro.schema.SchemaParseException) as error:
        raise ConfigError(CODE_UNREADABLE, f"{path}: is no Avro file of records: {error}") from error
    header["meta"]["avro.schema"] = json.dumps(plain(writer)).encode()
    head = io.BytesIO()
    fastavro.schemaless_writer(head, fastavro.parse_schema(_AVRO_HEADER), header)
    return writer, cast(IO[bytes], _Replayed(head.getvalue(), file))


class _Replayed:
    """A file that begins with other bytes than those that were read already."""

    def __init__(self, head: bytes, rest: BinaryIO) -> None:
        self._head, self._rest = io.BytesIO(head), rest

    def read(self, size: int = -1) -> bytes:
        found = self._head.read(size)
        return found + self._rest.read(size - len(found) if size >= 0 else -1)


_FORMATS: Mapping[str, _Format] = {
    ".csv": _Format("line", _read_csv),
    ".parquet": _Format("row", _read_parquet),
    ".avro": _Format("record", _read_avro),
}
