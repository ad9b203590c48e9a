"""Source: a folder (or one file) of Parquet, on disk or in an object store."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Container, Iterator
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from cltrain.data.schema import Columns
from cltrain.errors import ConfigError, DataError
from cltrain.storage import filesystem_of

BATCH_ROWS = 65_536
BATCH_BYTES = 128 << 20  # of rows as they are in the file, uncompressed: fewer of them at once where they are wide
BUFFER_BYTES = 1 << 20
HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True, kw_only=True)
class ParquetSource(Columns):
    """Files ending in `.parquet` below `path`, each taken as immutable; new ones may come at any time. Folders named
    `column=value` add that column; files and folders that begin with `.` or `_` are left alone. The other settings say
    what the columns are."""

    path: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.path:
            raise ConfigError("data.path is not set: name the folder of Parquet files, data.path=DIR")

    @property
    def columns(self) -> Columns:
        return Columns(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Columns)})

    def prepare(self) -> None:
        """Nothing to make: the files are the user's."""

    def files(self) -> list[str]:
        """Paths relative to `path`, sorted; `""` where `path` is itself a file. Raises `DataError` that says what is
        there instead."""
        try:
            filesystem, base = self._root
            info = filesystem.get_file_info(base)
            if info.type == fs.FileType.NotFound:
                raise DataError(f"data.path={self.path}: there is no such folder or file")
            if info.type == fs.FileType.File:
                return [""]
            found = filesystem.get_file_info(fs.FileSelector(base, recursive=True))
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"data.path={self.path} cannot be read: {error}") from error
        names = sorted(i.path[len(base) :].lstrip("/") for i in found if i.type == fs.FileType.File)
        parquet = [n for n in names if n.lower().endswith(".parquet") and not any(map(_hidden, n.split("/")))]
        if not parquet:
            there = f"{len(names)} other file(s), such as {names[0]}" if names else "nothing at all"
            raise DataError(f"data.path={self.path}: the folder holds no .parquet file, but {there}")
        return parquet

    def locate(self, name: str) -> tuple[fs.FileSystem, str]:
        filesystem, base = self._root
        return filesystem, f"{base}/{name}" if name else base

    def schema(self, name: str) -> pa.Schema:
        filesystem, path = self.locate(name)
        with filesystem.open_input_file(path) as handle:
            schema = pq.ParquetFile(handle).schema_arrow
        for column, value in _folder_columns(name, schema.names).items():
            schema = schema.append(pa.field(column, value.type))
        return schema

    def read(
        self, name: str, columns: list[str] | None = None, parts: Container[int] | None = None
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Rows of one file in pieces, each with the number of its part: a run of row groups that can be read without
        the others, all of them unless `parts` says which. `columns` that the file lacks are left out. Raises `OSError`
        or `pyarrow.ArrowException` where the file is corrupt."""
        filesystem, path = self.locate(name)
        with filesystem.open_input_file(path) as handle:
            parquet = pq.ParquetFile(handle, buffer_size=BUFFER_BYTES)
            present = parquet.schema_arrow.names
            wanted = [c for c in columns if c in present] if columns is not None else present
            constants = _folder_columns(name, present)
            if columns is not None:
                constants = {c: v for c, v in constants.items() if c in columns}
            at_once = _rows_at_once(parquet.metadata)
            for part, groups in enumerate(_runs(parquet.metadata)):
                if parts is None or part in parts:
                    for batch in parquet.iter_batches(at_once, row_groups=groups, columns=wanted):
                        for column, value in constants.items():
                            batch = batch.append_column(column, pa.repeat(value, batch.num_rows))
                        yield part, batch

    @cached_property
    def _root(self) -> tuple[fs.FileSystem, str]:
        if "://" in self.path:
            return filesystem_of(self.path, "data.path")
        return fs.LocalFileSystem(), str(Path(self.path).expanduser().absolute())


def _hidden(part: str) -> bool:
    return part.startswith((".", "_")) and "=" not in part


def _rows_at_once(metadata: pq.FileMetaData) -> int:
    size = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    return max(1, min(BATCH_ROWS, BATCH_BYTES * metadata.num_rows // max(size, 1)))


def _runs(metadata: pq.FileMetaData) -> list[list[int]]:
    """Row groups, small ones together until they fill a batch."""
    runs: list[list[int]] = []
    rows = BATCH_ROWS
    for group in range(metadata.num_row_groups):
        if rows >= BATCH_ROWS:
            runs.append([])
            rows = 0
        runs[-1].append(group)
        rows += metadata.row_group(group).num_rows
    return runs


def _folder_columns(name: str, present: list[str]) -> dict[str, pa.Scalar]:
    """Columns that folders such as `region=eu` stand for, unless the file has them: whole numbers, dates or text.

    >>> _folder_columns("region=eu/day=2024-01-31/a.parquet", [])["day"].type
    DataType(date32[day])
    """
    pairs = (part.split("=", 1) for part in name.split("/")[:-1] if "=" in part)
    return {unquote(column): _folder_value(unquote(text)) for column, text in pairs if unquote(column) not in present}


def _folder_value(text: str) -> pa.Scalar:
    if text == HIVE_NULL:
        return pa.scalar(None, pa.null())
    if re.fullmatch(r"[+-]?\d{1,18}", text):
        return pa.scalar(int(text), pa.int64())
    try:
        return pa.scalar(date.fromisoformat(text))
    except ValueError:
        return pa.scalar(text)
