"""The event log: immutable files of events, indexed by when they happened and when their labels became known."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs

from cltrain.clock import from_us, to_us
from cltrain.data.schema import Columns, Schema, event_table, infer_schema
from cltrain.errors import DataError, LabelError, SchemaError
from cltrain.records import EVENT_TIME, LABEL, LABEL_TIME
from cltrain.storage import digest_file

log = logging.getLogger(__name__)

NEVER = np.iinfo(np.int64).max
UNREADABLE = (OSError, pa.ArrowException)


class Source(Protocol):
    """Where files of events come from. A new source is a class with these names."""

    @property
    def columns(self) -> Columns: ...
    def prepare(self) -> None: ...
    def files(self) -> list[str]: ...
    def schema(self, name: str) -> pa.Schema: ...
    def read(self, name: str, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]: ...
    def locate(self, name: str) -> tuple[fs.FileSystem, str]: ...


@dataclass(frozen=True)
class LogFile:
    """One file of the log. Times are microseconds; rows without event time, and labels without label time, are bad."""

    name: str
    digest: str
    rows: int
    bad_rows: int
    first_us: int
    last_us: int
    first_visible_us: int
    last_visible_us: int


class EventLog:
    """All files that a source has, each read once for its times. `refresh` takes in new ones.

    A file that cannot be read, or that lacks a column, is set aside with its reason and never lost from sight:
    `set_aside` maps its name to the reason. Raises `DataError` when no file can be used.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.files: dict[str, LogFile] = {}
        self.set_aside: dict[str, str] = {}
        self.schema: Schema | None = None
        source.prepare()
        self.refresh()

    def refresh(self) -> list[str]:
        """Index files not seen before; returns their names."""
        names = self.source.files()
        new = [n for n in names if n not in self.files and n not in self.set_aside]
        if not names:
            raise DataError(f"data.path={getattr(self.source, 'path', '')}: the folder holds no .parquet file")
        first_error: Exception | None = None
        for name in new:
            try:
                self.files[name] = self._index(name)
            except (SchemaError, *UNREADABLE) as error:
                first_error = first_error or error
                self.set_aside[name] = " ".join(str(error).split())
                log.warning("set aside %s: %s", name or self.source.locate(name)[1], self.set_aside[name])
            except LabelError as error:
                raise LabelError(f"{name}: {error}") from error
        if not self.files and first_error is not None:
            if isinstance(first_error, SchemaError):
                raise first_error
            raise DataError(f"none of {len(names)} file(s) can be read; the first says: {first_error}") from first_error
        return [n for n in new if n in self.files]

    def _index(self, name: str) -> LogFile:
        columns = self.source.columns
        found = self.source.schema(name)
        if self.schema is None:
            self.schema = infer_schema(found, columns)
        else:
            self._extend_schema(name, found)
        wanted = [c for c in (columns.event_time, columns.label, columns.label_time, columns.event_id) if c]
        narrow = Schema(columns=columns, features=())
        rows = bad = 0
        events: list[np.ndarray] = []
        visible: list[np.ndarray] = []
        for batch in self.source.read(name, wanted):
            table = event_table(batch, narrow, name, rows)
            event_us, visible_us, good = row_times(table)
            rows += len(good)
            bad += int((~good).sum())
            events.append(event_us[good])
            visible.append(visible_us[good & (visible_us != NEVER)])
        filesystem, path = self.source.locate(name)
        event, seen = np.concatenate([*events, np.empty(0, np.int64)]), np.concatenate([*visible, np.empty(0, np.int64)])
        return LogFile(
            name=name,
            digest=digest_file(path, filesystem),
            rows=rows,
            bad_rows=bad,
            first_us=int(event.min()) if len(event) else NEVER,
            last_us=int(event.max()) if len(event) else -NEVER,
            first_visible_us=int(seen.min()) if len(seen) else NEVER,
            last_visible_us=int(seen.max()) if len(seen) else -NEVER,
        )

    def _extend_schema(self, name: str, found: pa.Schema) -> None:
        """A file must have every feature; a column that is new is left for the next training from scratch."""
        assert self.schema is not None
        lacking = [f.name for f in self.schema.features if not f.name.startswith("_") and f.name not in found.names]
        if lacking:
            raise SchemaError(f"{name} lacks column {', '.join(lacking)}; it has: {', '.join(found.names)}")
        known = {f.name for f in self.schema.features} | set(self.schema.ignored)
        extra = [f.name for f in infer_schema(found, self.source.columns).features if f.name not in known]
        if extra:
            log.warning("%s has columns that the first file lacks; they are not used: %s", name, ", ".join(extra))
            self.schema = Schema(
                columns=self.schema.columns, features=self.schema.features, ignored=(*self.schema.ignored, *extra)
            )

    def first(self) -> datetime | None:
        times = [f.first_us for f in self.files.values() if f.first_us != NEVER]
        return from_us(min(times)) if times else None

    def end(self) -> datetime:
        """The instant after the last event: the data clock's now."""
        times = [f.last_us for f in self.files.values() if f.last_us != -NEVER]
        return from_us(max(times) + 1) if times else from_us(0)

    def nth_after(self, start: datetime, rows: int, now: datetime | None = None) -> datetime | None:
        """The event time at which a window of at least `rows` events from `start` on can end, or None if there are
        not enough. Events of one instant are never parted."""
        times = np.sort(np.concatenate([np.empty(0, np.int64), *self._event_times(to_us(start))]))
        if now is not None:
            times = times[times < to_us(now)]
        if len(times) < rows:
            return None
        later = times[rows - 1 :][times[rows - 1 :] > times[rows - 1]]
        return from_us(later[0]) if len(later) else from_us(times[rows - 1] + 1)

    def count(self, start: datetime, end: datetime) -> int:
        """Events in `[start, end)`, with or without a label."""
        low, high = to_us(start), to_us(end)
        return sum(int((times < high).sum()) for times in self._event_times(low, high))

    @property
    def bad_rows(self) -> int:
        return sum(f.bad_rows for f in self.files.values())

    def _event_times(self, start_us: int, end_us: int = NEVER) -> Iterator[np.ndarray]:
        for file in self.files.values():
            if file.last_us >= start_us and file.first_us < end_us:
                for table in self.scan([file.name], features=False):
                    times, _, good = row_times(table)
                    yield times[good & (times >= start_us)]

    def scan(self, names: Iterable[str], features: bool = True) -> Iterator[pa.Table]:
        """Events of the named files, in order, in pieces, all of one form."""
        assert self.schema is not None
        schema = self.schema if features else Schema(columns=self.schema.columns, features=())
        roles = [schema.columns.event_time, schema.columns.label, schema.columns.label_time, schema.columns.event_id]
        wanted = [c for c in roles if c] + [f.name for f in schema.features]
        for name in names:
            first_row = 0
            for batch in self.source.read(name, wanted):
                yield event_table(batch, schema, name, first_row)
                first_row += batch.num_rows


def row_times(table: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Event time, time from which the row may be trained on (`NEVER` without a label), and whether the row is good:
    all (N,), int64 microseconds and bool."""
    event = _us(table.column(EVENT_TIME))
    label_time = _us(table.column(LABEL_TIME))
    labelled = np.asarray(pc.is_valid(table.column(LABEL)))
    bad = (event == NEVER) | (labelled & (label_time == NEVER))
    visible = np.where(labelled & ~bad, np.maximum(event, label_time), NEVER)
    return event, visible, ~bad


def _us(column: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(pc.fill_null(pc.cast(column, pa.int64()), NEVER))
