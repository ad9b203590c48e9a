"""Source: a folder (or one file) of Parquet, on disk or in an object store."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from cltrain.data.schema import Columns
from cltrain.errors import ConfigError, DataError


@dataclass(frozen=True, kw_only=True)
class ParquetSource(Columns):
    """Files ending in `.parquet` below `path`, each taken as immutable; new ones may come at any time. The other settings
    say what the columns are."""

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
        """Paths relative to `path`, sorted. Raises `DataError` when the folder is not there."""
        filesystem, base = self._root()
        info = filesystem.get_file_info(base)
        if info.type == fs.FileType.File:
            return [""]
        if info.type == fs.FileType.NotFound:
            raise DataError(f"data.path={self.path}: there is no such folder or file")
        found = filesystem.get_file_info(fs.FileSelector(base, recursive=True))
        names = [i.path[len(base) :].lstrip("/") for i in found if i.type == fs.FileType.File and i.size]
        return sorted(n for n in names if n.endswith(".parquet") and not n.rsplit("/", 1)[-1].startswith((".", "_")))

    def locate(self, name: str) -> tuple[fs.FileSystem, str]:
        filesystem, base = self._root()
        return filesystem, f"{base}/{name}" if name else base

    def schema(self, name: str) -> pa.Schema:
        filesystem, path = self.locate(name)
        with filesystem.open_input_file(path) as handle:
            return pq.ParquetFile(handle).schema_arrow

    def read(self, name: str, columns: list[str] | None = None, batch_rows: int = 65_536) -> Iterator[pa.RecordBatch]:
        """Rows of one file in pieces; `columns` that the file lacks are left out. Raises `OSError` or
        `pyarrow.ArrowInvalid` where the file is corrupt."""
        filesystem, path = self.locate(name)
        with filesystem.open_input_file(path) as handle:
            parquet = pq.ParquetFile(handle)
            present = parquet.schema_arrow.names
            wanted = [c for c in columns if c in present] if columns is not None else present
            yield from parquet.iter_batches(batch_size=batch_rows, columns=wanted)

    def _root(self) -> tuple[fs.FileSystem, str]:
        if "://" in self.path:
            filesystem, base = fs.FileSystem.from_uri(self.path)
            return filesystem, base.rstrip("/")
        return fs.LocalFileSystem(), str(Path(self.path).absolute())
