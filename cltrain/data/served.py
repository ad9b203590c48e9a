"""Rows as serving has logged them, read from segments: Arrow IPC streams that may still grow and may lack their end."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import json as pj

from cltrain.errors import StoreError
from cltrain.storage import BlobInfo, Storage


def segments(storage: Storage, folder: str) -> list[BlobInfo]:
    """Segments below `folder`, by name; those that are still being copied there are left out."""
    return [
        info
        for info in storage.infos(folder)
        if info.name.endswith(".arrow") and not info.name.rpartition("/")[2].startswith(".")
    ]


def read_batches(storage: Storage, name: str, first: int = 0, count: int | None = None) -> Iterator[pa.RecordBatch]:
    """Whole batches of one segment from the `first` on, `count` at most, as views of the page cache. Raises
    `StoreError` when it is not there."""
    path = storage.local_copy(name)
    if path.stat().st_size == 0:
        return
    with pa.memory_map(str(path)) as source:
        try:
            for number, batch in enumerate(pa.ipc.open_stream(source)):
                if count is not None and number >= first + count:
                    return
                if number >= first:
                    yield batch
        except (pa.ArrowInvalid, OSError):  # the tail of a killed writer, or of one that is about to finish it
            return


def read_rows(storage: Storage, name: str, first: int, count: int, columns: pa.Schema) -> pa.Table:
    """The rows of `count` batches with the given columns; one that the segment lacks is null there. Raises
    `StoreError` when the segment has become shorter."""
    batches = list(read_batches(storage, name, first, count))
    if len(batches) < count:
        raise StoreError(f"{storage.path(name)} has {first + len(batches)} batches and had {first + count}")
    return pa.Table.from_batches([with_columns(batch, columns) for batch in batches], columns)


def with_columns(batch: pa.RecordBatch, columns: pa.Schema) -> pa.RecordBatch:
    have = set(batch.schema.names)
    arrays = [batch[f.name] if f.name in have else pa.nulls(batch.num_rows, f.type) for f in columns]
    return pa.RecordBatch.from_arrays(arrays, schema=columns)


def feature_table(texts: pa.ChunkedArray) -> dict[str, pa.ChunkedArray | pa.Array]:
    """Columns of rows that are JSON objects, null where a row has no value. Text stays text, even of a date, and a
    column of both text and numbers becomes text.

    >>> feature_table(pa.chunked_array([['{"a":1,"day":"2024-01-01"}', '{"a":2.5}']]))["a"].to_pylist()
    [1.0, 2.5]
    """
    lines = "\n".join(texts.to_pylist()).encode()
    options = pj.ReadOptions(use_threads=False, block_size=len(lines) + 1)
    try:
        found = pj.read_json(pa.BufferReader(lines), read_options=options)
        dates = {f.name: pa.string() for f in found.schema if pa.types.is_timestamp(f.type)}
        if dates:
            parse = pj.ParseOptions(explicit_schema=pa.schema(dates))
            found = pj.read_json(pa.BufferReader(lines), read_options=options, parse_options=parse)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return _column_by_column([json.loads(line) for line in texts.to_pylist()])
    return {name: found[name] for name in found.column_names}


def unified(tables: list[pa.Table]) -> pa.Table:
    """One table of all, whose columns have the type that holds all values; of text and something else, text."""
    kinds: dict[str, set[pa.DataType]] = {}
    for table in tables:
        for field in table.schema:
            if not pa.types.is_null(field.type):
                kinds.setdefault(field.name, set()).add(field.type)
    mixed = {name for name, types in kinds.items() if len(types) > 1 and not all(map(_is_number, types))}
    return pa.concat_tables([_as_text(table, mixed) for table in tables], promote_options="permissive")


def _is_number(type_: pa.DataType) -> bool:
    return pa.types.is_integer(type_) or pa.types.is_floating(type_)


def _as_text(table: pa.Table, names: set[str]) -> pa.Table:
    for i, field in enumerate(table.schema):
        if field.name in names and not pa.types.is_string(field.type):
            column = table.column(i)
            scalar = not pa.types.is_nested(field.type)
            text = pc.cast(column, pa.string()) if scalar else pa.array([_text(v) for v in column.to_pylist()])
            table = table.set_column(i, field.name, text)
    return table


def _column_by_column(rows: list[dict[str, Any]]) -> dict[str, pa.Array]:
    found = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values = [row.get(name) for row in rows]
        try:
            found[name] = pa.array(values)
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
            found[name] = pa.array([_text(value) for value in values], pa.string())
    return found


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value)
