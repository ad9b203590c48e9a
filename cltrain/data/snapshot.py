"""Snapshots: the exact rows of one set, as an immutable manifest named by its digest, not as a copy.

A manifest names the files with their digests and the rule that selects rows from them. Because files are immutable and
the rule is a pure function of a row, the same manifest gives the same rows for ever. The decoded rows are kept in a
memory-mapped Arrow IPC cache that can be deleted at any time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Literal

import numpy as np
import pyarrow as pa

from cltrain.clock import to_us
from cltrain.data.event_log import NEVER, EventLog, LogFile, row_times
from cltrain.data.holdout import is_held_out
from cltrain.errors import ConfigError, DigestError, StoreError
from cltrain.records import EVENT_ID, EVENT_TIME, Cursor, Snapshot
from cltrain.seeding import hash_ids
from cltrain.storage import Storage, digest_file, digest_json, read_arrow

Split = Literal["train", "holdout", "all"]
CACHE_ROWS = 65_536


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

    def select(self, table: pa.Table, seen: bool) -> np.ndarray:
        """(N,) bool for rows of a file that was (`seen`) or was not there at `after`."""
        event, visible, good = row_times(table)
        keep = good & (visible < self.until)
        if seen and self.after is not None:
            keep &= visible >= self.after
        if self.start is not None:
            keep &= event >= self.start
        if self.end is not None:
            keep &= event < self.end
        for low, high in self.excluded:
            keep &= ~((event >= low) & (event < high))
        if self.split != "all":
            held = is_held_out(table.column(EVENT_ID), self.holdout_share)
            keep &= held if self.split == "holdout" else ~held
        return keep


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
        """Write the manifest, decode its rows into the cache, and count them."""
        assert self._log.schema is not None
        seen = set(rule.seen)
        files = [f for f in sorted(self._log.files.values(), key=lambda f: f.name) if _may_hold(f, rule, f.name in seen)]
        manifest = {
            "rule": dataclasses.asdict(rule) | {"seen": sorted(seen & {f.name for f in files})},
            "files": [{"name": f.name, "digest": f.digest, "rows": f.rows} for f in files],
            "columns": dataclasses.asdict(self._log.schema.columns),
            "features": [dataclasses.asdict(f) for f in self._log.schema.features],
        }
        digest = digest_json(manifest)
        rows, late = self._decode(digest, rule, [f.name for f in files])
        name = f"snapshots/{digest}.json"
        if not self._storage.exists(name):
            self._storage.write_json(name, manifest | {"row_count": rows})
        return Snapshot(digest=digest, role=rule.role, rows=rows, late_rows=late)

    def _decode(self, digest: str, rule: Rule, names: list[str]) -> tuple[int, int]:
        if self._storage.exists(cache_name(digest)):
            table = read_rows(self._storage, digest)
            return table.num_rows, _count_late(table, rule)
        tables = list(self._selected(rule, names))
        if rule.max_rows is not None and sum(t.num_rows for t in tables) > rule.max_rows:
            tables = [_sample(pa.concat_tables(tables), rule.max_rows, rule.seed)]
        rows = late = 0
        with self._storage.writing(cache_name(digest)) as part, pa.OSFile(str(part), "wb") as sink:
            schema = tables[0].schema if tables else self._empty().schema
            with pa.ipc.new_file(sink, schema) as writer:
                for table in tables:
                    writer.write_table(table, max_chunksize=CACHE_ROWS)
                    rows += table.num_rows
                    late += _count_late(table, rule)
        return rows, late

    def _selected(self, rule: Rule, names: list[str]) -> Iterator[pa.Table]:
        seen = set(rule.seen)
        for name in names:
            for table in self._log.scan([name]):
                keep = rule.select(table, name in seen)
                if keep.any():
                    yield table.filter(pa.array(keep)).combine_chunks()

    def _empty(self) -> pa.Table:
        name = next(iter(self._log.files))
        return next(self._log.scan([name])).slice(0, 0)

    def table(self, snapshot: Snapshot) -> pa.Table:
        """Its rows, memory-mapped. Where the cache is gone they are decoded again from the recorded files; a file that
        was altered raises `DigestError`."""
        if not self._storage.exists(cache_name(snapshot.digest)):
            self.rebuild(snapshot.digest)
        return read_rows(self._storage, snapshot.digest)

    def rebuild(self, digest: str) -> None:
        name = f"snapshots/{digest}.json"
        if not self._storage.exists(name):
            raise StoreError(f"there is no snapshot {digest[:12]} in {self._storage.root}")
        manifest = self._storage.read_json(name)
        for file in manifest["files"]:
            filesystem, path = self._log.source.locate(file["name"])
            if digest_file(path, filesystem) != file["digest"]:
                raise DigestError(f"{path} is not the file that snapshot {digest[:12]} was made from: it was altered")
        rule = manifest["rule"]
        rule |= {"seen": tuple(rule["seen"]), "excluded": tuple(tuple(pair) for pair in rule["excluded"])}
        self._decode(digest, Rule(**rule), [f["name"] for f in manifest["files"]])


def cache_name(digest: str) -> str:
    return f"cache/{digest}.arrow"


def read_rows(storage: Storage, digest: str) -> pa.Table:
    """The decoded rows of a snapshot, memory-mapped; what workers read."""
    return read_arrow(storage.local_copy(cache_name(digest)))


def _may_hold(file: LogFile, rule: Rule, seen: bool) -> bool:
    first, last = file.first_us, file.last_us
    if file.first_visible_us >= rule.until or file.last_visible_us == -NEVER:
        return False
    if seen and rule.after is not None and file.last_visible_us < rule.after:
        return False
    return (rule.start is None or last >= rule.start) and (rule.end is None or first < rule.end)


def _sample(table: pa.Table, rows: int, seed: int) -> pa.Table:
    order = np.argsort(hash_ids(table.column(EVENT_ID), salt=seed), kind="stable")[:rows]
    return table.take(pa.array(np.sort(order)))


def _count_late(table: pa.Table, rule: Rule) -> int:
    """Rows that happened before the time from which labels were asked for: their label came late."""
    if rule.after is None or not table.num_rows:
        return 0
    event = np.asarray(table.column(EVENT_TIME).cast(pa.int64()))
    return int((event < rule.after).sum())
