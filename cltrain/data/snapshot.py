"""Snapshots: the exact rows of one set, as an immutable manifest named by its digest, not as a copy.

A manifest names the files with their digests and the rule that selects rows from them. Because files are immutable and
the rule is a pure function of a row, the same manifest gives the same rows for ever. The decoded rows are kept in a
memory-mapped Arrow IPC cache that can be deleted at any time.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from cltrain.clock import to_us
from cltrain.data.event_log import EventLog, LogFile, Part, row_times
from cltrain.data.holdout import is_held_out
from cltrain.data.row_index import write_index
from cltrain.data.schema import Schema, with_features
from cltrain.errors import ConfigError, DigestError, StoreError
from cltrain.records import EVENT_ID, EVENT_TIME, Cursor, Snapshot
from cltrain.seeding import hash_ids
from cltrain.storage import Storage, digest_json, read_arrow

log = logging.getLogger(__name__)

Split = Literal["train", "holdout", "all"]
DERIVED = ("row_count", "cut_off", "indexes")  # of a manifest, what its digest does not cover
CACHE_ROWS = 65_536
CACHE_BYTES = 256 << 20


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Which rows of which files. All times are microseconds; `start`, `end` bound the event time, `until` the time at
    which the label was known; `after` does so from below for files that were there before, and `seen` names those."""

    role: str
    split: Split
    until: int
    after: int | None = None
    seen: tuple[str, ...] = ()
    start: int | None = None
    end: int | None = None
    excluded: tuple[tuple[int, int], ...] = ()
    max_rows: int | None = None
    holdout_share: float = 0.1
    seed: int = 0

    def by_time(self, roles: pa.Table, seen: bool) -> np.ndarray:
        """(N,) bool for rows of a file that was (`seen`) or was not there at `after`."""
        event, visible, good = row_times(roles)
        keep = good & (visible < self.until)
        if seen and self.after is not None:
            keep &= visible >= self.after
        if self.start is not None:
            keep &= event >= self.start
        if self.end is not None:
            keep &= event < self.end
        for low, high in self.excluded:
            keep &= ~((event >= low) & (event < high))
        return keep

    def by_id(self, ids: pa.ChunkedArray) -> np.ndarray:
        """(N,) bool: on this side of the split."""
        if self.split == "all":
            return np.ones(len(ids), bool)
        held = is_held_out(ids, self.holdout_share)
        return held if self.split == "holdout" else ~held

    def may_hold(self, part: Part, seen: bool) -> bool:
        """False only if no row of the part can be kept."""
        if part.first_visible_us >= self.until:
            return False
        if seen and self.after is not None and part.last_visible_us < self.after:
            return False
        return (self.start is None or part.last_us >= self.start) and (self.end is None or part.first_us < self.end)


@dataclass(frozen=True, kw_only=True)
class SnapshotSettings:
    """`holdout_share` of all event ids is never trained on. `max_rows` caps a training set: a uniform sample is taken,
    chosen by a hash of the event id, so that it does not depend on order."""

    holdout_share: float = 0.1
    max_rows: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.holdout_share < 1:
            raise ConfigError(f"snapshot.holdout_share must be between 0 and 1, not {self.holdout_share}")
        if self.max_rows is not None and self.max_rows < 1:
            raise ConfigError(f"snapshot.max_rows must be 1 or more, not {self.max_rows}")


class Snapshots:
    """Freezes rules over an event log into manifests in `storage`, and decodes them into its `cache/`."""

    def __init__(self, log: EventLog, storage: Storage, settings: SnapshotSettings, seed: int = 0) -> None:
        self._log, self._storage, self._settings, self._seed = log, storage, settings, seed
        self.excluded: tuple[tuple[int, int], ...] = ()
        self._indexed: dict[str, str] = {}  # file: digest of the index of its rows

    def cursor(self, until: datetime) -> Cursor:
        """Where a version stands that had the chance to learn from all that was known before `until`."""
        return Cursor(until=until, files=tuple(sorted(self._log.files)))

    def fresh(self, role: str, split: Split, until: datetime, since: Cursor | None) -> Snapshot:
        """Rows whose labels became known before `until` and which `since` has not had: late labels are among them, and
        every row of a file that came after it."""
        return self.freeze(
            Rule(
                role=role,
                split=split,
                until=to_us(until),
                after=to_us(since.until) if since else None,
                seen=since.files if since else (),
                excluded=() if split == "all" else self.excluded,
                max_rows=self._settings.max_rows if split == "train" else None,
                holdout_share=self._settings.holdout_share,
                seed=self._seed,
            )
        )

    def between(
        self, role: str, split: Split, until: datetime, start: datetime | None, end: datetime | None = None
    ) -> Snapshot:
        """Rows with an event time in `[start, end)` whose labels were known before `until`."""
        return self.freeze(
            Rule(
                role=role,
                split=split,
                until=to_us(until),
                start=to_us(start) if start else None,
                end=to_us(end) if end else None,
                excluded=self.excluded,
                max_rows=self._settings.max_rows if split == "train" else None,
                holdout_share=self._settings.holdout_share,
                seed=self._seed,
            )
        )

    def freeze(self, rule: Rule) -> Snapshot:
        """Write the manifest, decode its rows into the cache, and count them. Of what is trained on, an index of each
        file's rows is kept, from which `cltrain rows` answers when the file is gone."""
        seen = set(rule.seen)
        files = [
            file
            for _, file in sorted(self._log.files.items())
            if any(rule.may_hold(part, file.name in seen) for part in file.parts)
        ]
        schema = self._log.schema
        manifest = {
            "rule": dataclasses.asdict(rule) | {"seen": sorted(seen & {f.name for f in files})},
            "files": [{"name": f.name, "digest": f.digest, "rows": f.rows} for f in files],
            "columns": dataclasses.asdict(schema.columns),
            "features": [dataclasses.asdict(f) for f in schema.features],
        }
        digest = digest_json(manifest)
        rows, late = self._decode(digest, rule, files, schema)
        name = f"snapshots/{digest}.json"
        if not self._storage.exists(name):
            derived: dict[str, Any] = {"row_count": rows, "cut_off": self._cut_off(digest, rule, rows)}
            if rule.split == "train":
                derived["indexes"] = [self._index(file) for file in files]
            self._storage.write_json(name, manifest | derived)
        return Snapshot(digest=digest, role=rule.role, rows=rows, late_rows=late)

    def _index(self, file: LogFile) -> str:
        if file.name not in self._indexed:
            self._indexed[file.name] = write_index(self._log, self._storage, file)
        return self._indexed[file.name]

    def _cut_off(self, digest: str, rule: Rule, rows: int) -> float | None:
        """Of a sample, the hash of an id up to which rows are in it; None where no row was left out."""
        if rule.max_rows is None or rows < rule.max_rows:
            return None
        return float(hash_ids(read_rows(self._storage, digest).column(EVENT_ID), salt=rule.seed).max())

    def _decode(self, digest: str, rule: Rule, files: list[LogFile], schema: Schema) -> tuple[int, int]:
        """Write the rows into the cache unless they are there; how many they are, and how many of them are late."""
        if (table := self._cached(digest)) is not None:
            return table.num_rows, _count_late(table, rule)
        tables = self._selected(rule, files, schema)
        if rule.max_rows is not None:
            tables = _sample(tables, rule.max_rows, rule.seed)
        rows = late = 0
        with (
            self._storage.writing(cache_name(digest)) as path,
            pa.OSFile(str(path), "wb") as sink,
            pa.ipc.new_file(sink, schema.arrow) as writer,
        ):
            for table in _in_batches(tables):
                writer.write_table(table, max_chunksize=CACHE_ROWS)
                rows += table.num_rows
                late += _count_late(table, rule)
        return rows, late

    def _selected(self, rule: Rule, files: list[LogFile], schema: Schema) -> Iterator[pa.Table]:
        """Rows are chosen by their columns with a role; the features of the others are never converted."""
        seen = set(rule.seen)
        for file in files:
            parts = [i for i, part in enumerate(file.parts) if rule.may_hold(part, file.name in seen)]
            for roles, batch in self._log.batches(file, parts, schema):
                kept = np.flatnonzero(rule.by_time(roles, file.name in seen))
                kept = kept[rule.by_id(roles.column(EVENT_ID).take(pa.array(kept)))]
                if len(kept):
                    index = pa.array(kept)
                    yield with_features(roles.take(index), batch.take(index), schema)

    def _cached(self, digest: str) -> pa.Table | None:
        """The decoded rows, unless they are not there or cannot be read."""
        if not self._storage.exists(cache_name(digest)):
            return None
        try:
            return read_rows(self._storage, digest)
        except (OSError, pa.ArrowException) as error:
            log.warning("%s is damaged and will be decoded again: %s", cache_name(digest), error)
            return None

    def table(self, snapshot: Snapshot) -> pa.Table:
        """Its rows, memory-mapped. Where the cache is gone they are decoded again from the recorded files; a file that
        was altered raises `DigestError`."""
        if (table := self._cached(snapshot.digest)) is not None:
            return table
        self.rebuild(snapshot.digest)
        return read_rows(self._storage, snapshot.digest)

    def forget(self, snapshot: Snapshot) -> None:
        """Drop its decoded rows; the manifest stays, and `table` decodes them again."""
        self._storage.delete(cache_name(snapshot.digest))

    def rebuild(self, digest: str) -> None:
        """Decode a snapshot again from its manifest, unless its rows are in the cache."""
        name = f"snapshots/{digest}.json"
        if not self._storage.exists(name):
            raise StoreError(f"there is no snapshot {digest[:12]} in {self._storage.root}")
        manifest = self._storage.read_json(name)
        files = []
        for recorded in manifest["files"]:
            found = self._log.files.get(recorded["name"])
            path = self._log.source.locate(recorded["name"])[1]
            if found is None:
                raise StoreError(
                    f"{path}, from which snapshot {digest[:12]} was made, is gone or cannot be read: restore it"
                )
            if found.digest != recorded["digest"]:
                raise DigestError(f"{path} is not the file that snapshot {digest[:12]} was made from: it was altered")
            files.append(found)
        rule = manifest["rule"]
        rule |= {"seen": tuple(rule["seen"]), "excluded": tuple(tuple(pair) for pair in rule["excluded"])}
        self._decode(digest, Rule(**rule), files, Schema.from_json(manifest["columns"], manifest["features"]))


def cache_name(digest: str) -> str:
    return f"cache/{digest}.arrow"


def read_rows(storage: Storage, digest: str) -> pa.Table:
    """The decoded rows of a snapshot, memory-mapped; what workers read."""
    return read_arrow(storage.local_copy(cache_name(digest)))


def _in_batches(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows in pieces of `CACHE_ROWS` or `CACHE_BYTES` or more, each in one run of memory."""
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        if sum(t.num_rows for t in held) >= CACHE_ROWS or sum(t.nbytes for t in held) >= CACHE_BYTES:
            yield pa.concat_tables(held).combine_chunks()
            held = []
    if held:
        yield pa.concat_tables(held).combine_chunks()


def _sample(tables: Iterable[pa.Table], rows: int, seed: int) -> Iterator[pa.Table]:
    """The `rows` rows whose ids have the smallest hashes, in their order. Holds at most twice as many and a batch."""
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        if sum(t.num_rows for t in held) > 2 * max(rows, CACHE_ROWS):
            held = [_smallest(pa.concat_tables(held), rows, seed)]
    if held:
        yield _smallest(pa.concat_tables(held), rows, seed)


def _smallest(table: pa.Table, rows: int, seed: int) -> pa.Table:
    order = np.argsort(hash_ids(table.column(EVENT_ID), salt=seed), kind="stable")[:rows]
    return table.take(pa.array(np.sort(order)))


def _count_late(table: pa.Table, rule: Rule) -> int:
    """Rows that happened before the time from which labels were asked for: their label came late."""
    if rule.after is None or not table.num_rows:
        return 0
    event = np.asarray(table.column(EVENT_TIME).cast(pa.int64()))
    return int((event < rule.after).sum())
