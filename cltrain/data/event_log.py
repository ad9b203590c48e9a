"""The event log: immutable files of events, indexed by when they happened and when their labels became known."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs

from cltrain.clock import from_us, to_us
from cltrain.data.schema import (
    Columns,
    Feature,
    Schema,
    event_roles,
    infer_schema,
    union,
    with_features,
)
from cltrain.data.values import examples, is_list, tensor_form, with_lengths
from cltrain.errors import DataError, DigestError, LabelError, SchemaError
from cltrain.records import EVENT_TIME, LABEL, LABEL_TIME
from cltrain.storage import digest_file

log = logging.getLogger(__name__)

NEVER = np.iinfo(np.int64).max
FIRST_US, LAST_US = to_us(from_us(0).replace(year=1000)), to_us(from_us(0).replace(year=9000))
UNREADABLE = (OSError, pa.ArrowException)
KEPT_PARTS = 16  # whose event times stay in memory


class Source(Protocol):
    """Where files of events come from. A new source is a class with these names. A file is read in parts, numbered from
    0, each of which can be read without the others."""

    @property
    def columns(self) -> Columns: ...
    def prepare(self) -> None: ...
    def files(self) -> list[str]: ...
    def schema(self, name: str) -> pa.Schema: ...
    def read(
        self, name: str, columns: list[str] | None = None, parts: Container[int] | None = None
    ) -> Iterator[tuple[int, pa.RecordBatch]]: ...
    def locate(self, name: str) -> tuple[fs.FileSystem, str]: ...


@dataclass
class Part:
    """A run of rows of a file: where it begins, how many rows, how many of them are events (with a time), and the
    extremes of event time and of the time from which rows may be trained on; microseconds, first above last where
    there is none."""

    first_row: int
    rows: int = 0
    events: int = 0
    first_us: int = NEVER
    last_us: int = -NEVER
    first_visible_us: int = NEVER
    last_visible_us: int = -NEVER

    def add(self, event: np.ndarray, visible: np.ndarray, good: np.ndarray) -> None:
        self.rows += len(good)
        self.events += int(good.sum())
        event, visible = event[good], visible[good & (visible != NEVER)]
        self.first_us = min(self.first_us, int(event.min(initial=NEVER)))
        self.last_us = max(self.last_us, int(event.max(initial=-NEVER)))
        self.first_visible_us = min(self.first_visible_us, int(visible.min(initial=NEVER)))
        self.last_visible_us = max(self.last_visible_us, int(visible.max(initial=-NEVER)))


@dataclass(frozen=True)
class LogFile:
    """One file of the log. Rows without event time, and labels without label time, are bad. `stamp` is its size and
    time of change when it was read."""

    name: str
    digest: str
    stamp: tuple[int, int]
    parts: tuple[Part, ...]

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)

    @property
    def bad_rows(self) -> int:
        return sum(part.rows - part.events for part in self.parts)


class EventLog:
    """All files that a source has, each read once for its times. `refresh` takes in new ones.

    The features are those of all files that are there at first, and the length of lists is that of the first of them; a
    file that lacks one has nulls there, and columns that come later are not used. A file that cannot be read, lacks a
    column with a role, or holds what its columns cannot hold is set aside and never lost from sight: `set_aside` maps
    its name to the reason, and it is tried again once it has changed. Raises `DataError` when there is no event,
    `LabelError` when labels do not fit the task.
    """

    def __init__(self, source: Source) -> None:
        self.source = source
        self.files: dict[str, LogFile] = {}
        self.set_aside: dict[str, str] = {}
        self._stamps: dict[str, tuple[int, int]] = {}
        self._lacking: set[str] = set()
        self._times = lru_cache(maxsize=KEPT_PARTS)(self._read_times)
        source.prepare()
        self.schema = self._first_schema(source.files())
        self._labels = _Labels(source.columns)
        self.refresh()
        self._labels.check()
        if self.first() is None:
            rows = sum(f.rows for f in self.files.values())
            raise DataError(
                f"{self._about()}: none of the {rows} row(s) in {len(self.files)} file(s) has a time in"
                f" data.event_time={source.columns.event_time}"
            )

    def refresh(self) -> list[str]:
        """Index files not seen before; returns their names."""
        starting = not self.files
        new = []
        for name in self.source.files():
            stamp = self._stamp(name)
            if name in self.files or (name in self.set_aside and self._stamps.get(name) == stamp):
                continue
            try:
                self.files[name] = self._index(name, stamp)
                self.set_aside.pop(name, None)
                new.append(name)
            except LabelError as error:
                if starting:
                    raise LabelError(f"{self._path(name)}: {error}") from error
                self._put_aside(name, stamp, error)
            except (SchemaError, *UNREADABLE) as error:
                self._put_aside(name, stamp, error)
        if not self.files:
            raise DataError(
                f"{self._about()}: none of {len(self.set_aside)} file(s) can be used; the first says: "
                f"{next(iter(self.set_aside.values()))}"
            )
        if bad := sum(self.files[name].bad_rows for name in new):
            log.warning("%d row(s) have no event time, or a label but no label time, and are not used", bad)
        return new

    def _first_schema(self, names: list[str]) -> Schema:
        found, reasons = {}, []
        for name in names:
            try:
                found[name] = self.source.schema(name)
            except UNREADABLE as error:
                reasons.append(_one_line(error))
        if not found:
            raise DataError(f"{self._about()}: none of {len(names)} file(s) can be read; the first says: {reasons[0]}")
        types = union(found.values())
        for i, field in enumerate(types):
            if is_list(field.type) and not tensor_form(field.type) and field.name not in self.source.columns.exclude:
                types = types.set(i, field.with_type(self._measured(field, found)))
        return infer_schema(types, self.source.columns)

    def _measured(self, field: pa.Field, files: Mapping[str, pa.Schema]) -> pa.DataType:
        """The type of a column of lists with the length that they have in the first rows where there are any."""
        for name, schema in files.items():
            with contextlib.suppress(*UNREADABLE):
                if field.name in schema.names and schema.field(field.name).type == field.type:
                    for _, batch in self.source.read(name, [field.name]):
                        found = with_lengths(field.type, batch.column(field.name))
                        if found != field.type:
                            return found
                        break
        return field.type

    def _index(self, name: str, stamp: tuple[int, int]) -> LogFile:
        found = self.source.schema(name)
        self._notice_columns(name, found)
        # Only a column whose type is not the usual one of its kind can hold what its kind cannot.
        doubtful = tuple(f for f in self.schema.features if f.name in found.names and not _certain(f, found))
        checked = Schema(columns=self.schema.columns, features=doubtful)
        parts: list[Part] = []
        rows = 0
        for number, batch in self.source.read(name, self.schema.wanted):
            roles = event_roles(batch, checked.columns, self._path(name), rows)
            with_features(roles, batch, checked)
            if number == len(parts):
                parts.append(Part(rows))
            parts[number].add(*row_times(roles))
            self._labels.look(roles, batch)
            rows += batch.num_rows
        if not parts:
            event_roles(found.empty_table(), checked.columns, self._path(name), 0)
        filesystem, path = self.source.locate(name)
        return LogFile(name, digest_file(path, filesystem), stamp, tuple(parts))

    def _notice_columns(self, name: str, found: pa.Schema) -> None:
        known = {f.name for f in self.schema.features} | {*self.schema.ignored, *self.schema.columns.roles}
        extra = tuple(n for n in found.names if n not in known and n not in self.schema.columns.exclude)
        lacking = [f.name for f in self.schema.features if f.name in self.schema.wanted and f.name not in found.names]
        if lacking and not self._lacking.issuperset(lacking):
            log.warning("%s lacks column %s, which counts as null there", self._path(name), ", ".join(lacking))
            self._lacking |= set(lacking)
        if extra:
            log.warning("%s has new columns, which are not used: %s", self._path(name), ", ".join(extra))
            ignored = (*self.schema.ignored, *extra)
            self.schema = Schema(columns=self.schema.columns, features=self.schema.features, ignored=ignored)

    def _put_aside(self, name: str, stamp: tuple[int, int], error: Exception) -> None:
        self.set_aside[name], self._stamps[name] = _one_line(error), stamp
        log.warning("set aside %s: %s", self._path(name), self.set_aside[name])

    def _stamp(self, name: str) -> tuple[int, int]:
        filesystem, path = self.source.locate(name)
        info = filesystem.get_file_info(path)
        return info.size or 0, info.mtime_ns or 0

    def _path(self, name: str) -> str:
        return name or self.source.locate(name)[1]

    def _about(self) -> str:
        return f"data.path={getattr(self.source, 'path', type(self.source).__name__)}"

    def first(self) -> datetime | None:
        times = [part.first_us for _, part in self._parts() if part.events]
        return from_us(min(times)) if times else None

    def end(self) -> datetime:
        """The instant after the last event: the data clock's now."""
        times = [part.last_us for _, part in self._parts() if part.events]
        return from_us(max(times) + 1) if times else from_us(0)

    def nth_after(self, start: datetime, rows: int, now: datetime | None = None) -> datetime | None:
        """The earliest end of a window from `start` on that holds at least `rows` events, all of them before `now`: the
        microsecond after the last of them. None if there are not enough. Events of one instant are never parted."""
        low, high = to_us(start), NEVER if now is None else to_us(now)
        times = np.empty(0, np.int64)
        for key, part in sorted(self._parts(), key=lambda item: item[1].first_us):
            if len(times) == rows and part.first_us >= times[-1]:
                break
            if part.last_us >= low and part.first_us < high:
                found = self._times(*key)
                found = found[(found >= low) & (found < high)]
                times = np.sort(np.concatenate([times, found]))[:rows]
        return from_us(times[-1] + 1) if len(times) == rows else None

    def count(self, start: datetime, end: datetime) -> int:
        """Events in `[start, end)`, with or without a label."""
        low, high, total = to_us(start), to_us(end), 0
        for key, part in self._parts():
            if low <= part.first_us and part.last_us < high:
                total += part.events
            elif part.last_us >= low and part.first_us < high:
                times = self._times(*key)
                total += int(((times >= low) & (times < high)).sum())
        return total

    def between(self, start: datetime, end: datetime) -> Iterator[pa.Table]:
        """Events in `[start, end)` in pieces, with or without a label. A label in them may have become known later."""
        low, high = to_us(start), to_us(end)
        for file in self.files.values():
            parts = [i for i, p in enumerate(file.parts) if p.events and p.last_us >= low and p.first_us < high]
            for roles, batch in self.batches(file, parts, self.schema):
                event, _, good = row_times(roles)
                index = pa.array(np.flatnonzero(good & (event >= low) & (event < high)))
                if len(index):
                    yield with_features(roles.take(index), batch.take(index), self.schema)

    @property
    def bad_rows(self) -> int:
        return sum(f.bad_rows for f in self.files.values())

    def _parts(self) -> Iterator[tuple[tuple[str, int], Part]]:
        return (((file.name, i), part) for file in self.files.values() for i, part in enumerate(file.parts))

    def _read_times(self, name: str, part: int) -> np.ndarray:
        narrow = Schema(columns=self.schema.columns, features=())
        read = (row_times(roles) for roles, _ in self.batches(self.files[name], [part], narrow))
        return np.concatenate([event[good] for event, _, good in read])

    def batches(self, file: LogFile, parts: Sequence[int], schema: Schema) -> Iterator[tuple[pa.Table, pa.RecordBatch]]:
        """Rows of the given parts of a file, in order: their columns with a role, as events, and all that `schema`
        needs, as they are in the file. Raises `DigestError` when the file is not the one that was read at first."""
        if not parts:
            return
        filesystem, path = self.source.locate(file.name)
        try:
            if self._stamp(file.name) != file.stamp and digest_file(path, filesystem) != file.digest:
                raise DigestError(
                    f"{path} was altered after it was read: files of events must stay as they are; add new ones"
                )
            number, row = -1, 0
            for part, batch in self.source.read(file.name, schema.wanted, parts):
                if part != number:
                    number, row = part, file.parts[part].first_row
                yield event_roles(batch, schema.columns, file.name, row), batch
                row += batch.num_rows
        except UNREADABLE as error:
            raise DataError(f"{path} could be read at first and cannot now: {_one_line(error)}") from error


class _Labels:
    """What labels were met, to say so when they cannot be what was meant."""

    def __init__(self, columns: Columns) -> None:
        self.columns, self.known, self.positive, self.held = columns, False, False, ""

    def look(self, roles: pa.Table, batch: pa.RecordBatch) -> None:
        if not self.known and roles.column(LABEL).null_count < len(roles):
            self.known, self.held = True, examples(pa.chunked_array([batch.column(self.columns.label)]))
        if self.columns.positive is not None and not self.positive:
            self.positive = bool(pc.any(pc.equal(roles.column(LABEL), 1.0)).as_py())

    def check(self) -> None:
        if not self.known:
            log.warning("no event has a label: data.label=%s is null everywhere", self.columns.label)
        elif self.columns.positive is not None and not self.positive:
            raise LabelError(
                f"no label equals data.positive={self.columns.positive}: "
                f"data.label={self.columns.label} holds {self.held}"
            )


def row_times(roles: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Event time, time from which the row may be trained on (`NEVER` without a label), and whether the row is good:
    all (N,), int64 microseconds and bool."""
    event = _us(roles.column(EVENT_TIME))
    label_time = _us(roles.column(LABEL_TIME))
    labelled = np.asarray(pc.is_valid(roles.column(LABEL)))
    good = (event >= FIRST_US) & (event < LAST_US) & ~(labelled & (label_time == NEVER))
    visible = np.where(labelled & good, np.maximum(event, label_time), NEVER)
    return event, visible, good


def _us(column: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(pc.fill_null(pc.cast(column, pa.int64()), NEVER))


def _certain(feature: Feature, found: pa.Schema) -> bool:
    return found.names.count(feature.name) == 1 and feature.fits(found.field(feature.name).type)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
