"""Append-only logs as Arrow IPC stream segments: one writer thread, synced by group, readable up to the last sync."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa

from cltrain.clock import parse_duration
from cltrain.errors import StoreError
from cltrain.storage import Storage
from serve.settings import LogSettings

log = logging.getLogger(__name__)

Row = tuple[Any, ...]


def new_id() -> str:
    """32 hex digits that sort by the time they were made (UUID version 7, RFC 9562)."""
    tail = int.from_bytes(os.urandom(10), "big")
    return f"{time.time_ns() // 1_000_000:012x}7{tail >> 68:03x}{0x8 | (tail >> 60) & 0x3:x}{tail & (1 << 60) - 1:015x}"


class SegmentLog:
    """Rows go to `<folder>/<replica>-<n>.arrow`. A local store is written in place; for a remote one a segment grows in
    a spool folder on this machine and is uploaded when it ends, or by the next process here if this one dies.

    `offer` never waits and sheds what does not fit; `append` gives a future that is done when the rows are on disk.
    A write that fails loses its rows to the log, is counted, and starts a new segment: serving goes on.
    """

    also_expire: tuple[str, ...] = ()  # folders that `retain` counts for too

    def __init__(
        self,
        storage: Storage,
        folder: str,
        replica: str,
        schema: pa.Schema,
        settings: LogSettings,
        encode: Callable[[Row], Row] = lambda row: row,
    ) -> None:
        self.written = self.shed = self.lost = 0
        self.error: str | None = None
        self._storage, self._folder, self._replica = storage, folder, replica
        self._schema, self._settings, self._encode = schema, settings, encode
        self._segment: _Segment | None = None
        self._number = 0
        self._unsent: list[Path] = []
        self._items: list[tuple[Sequence[Row], Future[int] | None]] = []
        self._waiting_rows = 0
        self._urgent = self._closing = False
        self._wake = threading.Condition()
        if not storage.is_local:
            self._unsent = _abandoned(self._place(""))
        self._thread = threading.Thread(target=self._run, name=f"cltrain-{folder}", daemon=True)
        self._thread.start()

    def offer(self, rows: Sequence[Row]) -> bool:
        """Take the rows if there is room, else shed and count them."""
        with self._wake:
            if self._closing or self._waiting_rows + len(rows) > self._settings.capacity_rows:
                self.shed += len(rows)
                return False
            self._items.append((rows, None))
            self._waiting_rows += len(rows)
            return True

    def append(self, rows: Sequence[Row]) -> Future[int]:
        """How many of the rows were new, once they are on disk; raises `StoreError` when they could not be written."""
        done: Future[int] = Future()
        with self._wake:
            if self._closing or self._waiting_rows + len(rows) > self._settings.capacity_rows:
                self.shed += len(rows)
                done.set_exception(StoreError(f"the {self._folder} log is full or closed: try again"))
                return done
            self._items.append((rows, done))
            self._waiting_rows += len(rows)
            self._urgent = True
            self._wake.notify()
        return done

    def close(self) -> None:
        """Write what waits, end the segment and upload it. Safe to call twice."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    @property
    def waiting_rows(self) -> int:
        return self._waiting_rows

    def counts(self) -> dict[str, Any]:
        return {"written": self.written, "shed": self.shed, "lost": self.lost, "error": self.error}

    def admit(self, rows: Sequence[Row]) -> list[Row]:
        """Which rows to write; called by the writer thread alone. Rows of a write that fails are given to `forget`."""
        return list(rows)

    def forget(self, rows: Sequence[Row]) -> None:
        """The rows that were admitted last could not be written."""

    def after_write(self, closing: bool) -> None:
        """Called by the writer thread after each write, and every `flush_s` seconds."""

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._closing or self._urgent, timeout=self._settings.flush_s)
                items, self._items = self._items, []
                self._waiting_rows, self._urgent, closing = 0, False, self._closing
            self._commit(items)
            self.after_write(closing)
            if self._segment is not None and (closing or self._segment.is_over(self._settings)):
                self._rotate()
                self._expire()
            if self._unsent and (closing or items):
                self._upload()
            if closing:
                return

    def _commit(self, items: list[tuple[Sequence[Row], Future[int] | None]]) -> None:
        admitted = [self.admit(rows) for rows, _ in items]
        fresh = [row for rows in admitted for row in rows]
        error: Exception | None = None
        if fresh:
            try:
                self._write(fresh)
                self.written += len(fresh)
            except Exception as caught:  # whatever it was, the thread goes on: it is the only one that writes
                error = caught
                self.lost += len(fresh)
                self.error = f"{type(caught).__name__}: {caught}"
                log.error("the %s log lost %d rows: %s", self._folder, len(fresh), self.error)
                self.forget(fresh)
                self._abandon()
        for rows, (_, done) in zip(admitted, items, strict=True):
            if done is None:
                continue
            if error is None:
                done.set_result(len(rows))
            else:
                done.set_exception(StoreError(f"cannot write the {self._folder} log: {error}; check free space"))

    def _write(self, rows: list[Row]) -> None:
        columns = zip(*(self._encode(row) for row in rows), strict=True)
        arrays = [pa.array(column, field.type) for column, field in zip(columns, self._schema, strict=True)]
        batch = pa.RecordBatch.from_arrays(arrays, schema=self._schema)
        if self._segment is None:
            self._number += 1
            self._segment = _Segment(self._place(f"{self._replica}-{self._number:06d}.arrow"), self._schema)
        self._segment.write(batch)

    def _abandon(self) -> None:
        """After a write that failed nothing more can be read behind it: what comes next goes to a new segment."""
        segment, self._segment = self._segment, None
        if segment is not None:
            segment.drop()
            if not self._storage.is_local:
                self._unsent.append(segment.path)

    def _rotate(self) -> None:
        segment, self._segment = self._segment, None
        assert segment is not None
        try:
            segment.close()
        except OSError as error:
            self.error = f"{type(error).__name__}: {error}"
        if not self._storage.is_local:
            self._unsent.append(segment.path)

    def _expire(self) -> None:
        """Delete what is older than `retain`, of any replica."""
        if self._settings.retain is None:
            return
        oldest = time.time() - parse_duration(self._settings.retain).total_seconds()
        try:
            for folder in (self._folder, *self.also_expire):
                for info in self._storage.infos(folder):
                    if info.changed < oldest:
                        self._storage.delete(info.name)
        except StoreError as error:
            self.error = str(error)

    def _upload(self) -> None:
        for path in list(self._unsent):
            try:
                with self._storage.writing(f"{self._folder}/{path.name}") as part:
                    shutil.copyfile(path, part)
            except (StoreError, OSError) as error:
                self.error = f"{type(error).__name__}: {error}"
                log.warning("segment %s is kept here and sent later: %s", path, error)
                return
            self._unsent.remove(path)
            path.unlink(missing_ok=True)

    def _place(self, name: str) -> Path:
        if self._storage.is_local:
            return Path(self._storage.path(f"{self._folder}/{name}"))
        key = hashlib.blake2b(self._storage.root.encode(), digest_size=8).hexdigest()
        return Path(os.environ.get("TMPDIR", "/tmp"), "cltrain-spool", key, self._folder, name)


class _Segment:
    """A growing file, locked while its writer lives."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.rows, self.started = path, 0, time.monotonic()
        self._file: BinaryIO = open(path, "xb")  # noqa: SIM115
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._writer = pa.ipc.new_stream(self._file, schema)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def write(self, batch: pa.RecordBatch) -> None:
        self._writer.write_batch(batch)
        self._sync()
        self.rows += batch.num_rows

    def is_over(self, settings: LogSettings) -> bool:
        return self.rows >= settings.rotate_rows or time.monotonic() - self.started >= settings.rotate_s

    def close(self) -> None:
        with self._file:
            self._writer.close()
            self._sync()

    def drop(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()

    def _sync(self) -> None:
        self._file.flush()
        os.fdatasync(self._file.fileno())


def read_segments(storage: Storage, folder: str, schema: pa.Schema, last: int | None = None) -> pa.Table:
    """All whole batches of all segments below `folder`, oldest segment first, or of the `last` segments.

    The unfinished tail that a killed writer leaves, or that a live one is about to finish, is not there yet.
    """
    names = [name for name in storage.names(folder) if name.endswith(".arrow") and not Path(name).name.startswith(".")]
    batches = [batch for name in names[-last if last else 0 :] for batch in read_segment(storage, name, schema)]
    return pa.Table.from_batches(batches, schema)


def read_segment(storage: Storage, name: str, schema: pa.Schema) -> list[pa.RecordBatch]:
    """All whole batches of one segment."""
    return [_with_schema(batch, schema) for batch in _whole_batches(storage, name)]


def _with_schema(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Columns that a segment does not have, since it was written before there were any, are null."""
    if batch.schema.equals(schema):
        return batch
    have = set(batch.schema.names)
    columns = [batch[f.name] if f.name in have else pa.nulls(batch.num_rows, f.type) for f in schema]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _whole_batches(storage: Storage, name: str) -> list[pa.RecordBatch]:
    batches: list[pa.RecordBatch] = []
    with pa.OSFile(str(storage.local_copy(name))) as source:
        try:
            for batch in pa.ipc.open_stream(source):
                batches.append(batch)
        except (pa.ArrowInvalid, OSError) as error:
            log.debug("%s ends in an unfinished batch: %s", name, error)
    return batches


def _abandoned(folder: Path) -> list[Path]:
    """Segments in the spool whose writer is dead: nobody holds their lock."""
    found = []
    for path in sorted(folder.glob("*.arrow")):
        with open(path, "rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            found.append(path)
    return found
