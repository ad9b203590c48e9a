"""The indexes of all files' rows as one: small ones are merged into larger ones, as a log-structured merge tree does
(O'Neil et al. 1996), so that a row is looked for in tens of blobs and not in as many as there are files.

The index of a file stays as it is; a merged one is made of those and can be deleted: the smaller ones are used then.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from sqlalchemy import func, insert, select, update
from sqlalchemy.orm import Session

from cltrain.registry.store import Store
from cltrain.registry.tables import RowIndexRow
from cltrain.storage import digest_json, read_arrow, write_arrow

WAYS = 16  # blobs of about one size that are merged
LARGEST = 1 << 25  # rows of a blob that is merged from others
MOST = 4096  # blobs that are merged at once
MERGED = "rows/merged"


@dataclass(frozen=True)
class Hit:
    """A row with the key that was asked for: the index that it is in, and its times in microseconds."""

    index: str
    event_us: int
    visible_us: int


def find(store: Store, key: float) -> list[Hit]:
    """All rows with a key, in all files that are indexed. Raises `StoreError` where an index is gone."""
    with store.reading() as session:
        segments = list(session.scalars(select(RowIndexRow.segment).distinct()))
    if lost := [s for s in segments if s.startswith(MERGED) and not store.storage.exists(s)]:
        _fall_back(store, lost)
        return find(store, key)
    found: list[tuple[str, int, int, int]] = []
    for segment in segments:
        table = read_arrow(store.storage.local_copy(segment))
        keys = table.column("key").to_numpy()
        low, high = (int(np.searchsorted(keys, key, side)) for side in ("left", "right"))
        if low < high:
            rows = table.slice(low, high - low).to_pylist()
            found += [(segment, row.get("index", 0), row["event_us"], row["visible_us"]) for row in rows]
    with store.reading() as session:
        return sorted(
            (Hit(_name(session, segment, number), event, visible) for segment, number, event, visible in found),
            key=lambda hit: (hit.event_us, hit.index),
        )


def add_indexes(store: Store, rows: Mapping[str, int]) -> None:
    """Take in indexes of files, by their digests, with the number of their rows; then merge what is due."""
    with store.reading() as session:
        known = set(session.scalars(select(RowIndexRow.digest).where(RowIndexRow.digest.in_(rows))))
    if known.issuperset(rows):
        return
    with store.writing() as session:
        known = set(session.scalars(select(RowIndexRow.digest).where(RowIndexRow.digest.in_(rows))))
        new = [{"digest": d, "rows": n, "segment": own_name(d)} for d, n in rows.items() if d not in known]
        if new:
            session.execute(insert(RowIndexRow), new)
    while due := _due(store):
        _merge(store, due)


def _name(session: Session, segment: str, number: int) -> str:
    """Digest of the index that a row is from."""
    if not segment.startswith(MERGED):
        return segment.removeprefix("rows/").removesuffix(".arrow")
    found = session.get(RowIndexRow, number)
    assert found is not None
    return found.digest


def own_name(digest: str) -> str:
    """Where the index of one file is."""
    return f"rows/{digest}.arrow"


def _due(store: Store) -> list[str]:
    """Blobs to be merged into one, of about one size; none while there are few of each size."""
    size = func.sum(RowIndexRow.rows)
    with store.reading() as session:
        sizes = session.execute(select(RowIndexRow.segment, size).group_by(RowIndexRow.segment).order_by(size)).all()
    tiers: dict[int, list[str]] = defaultdict(list)
    total: dict[int, int] = defaultdict(int)
    for segment, rows in sizes:
        tier = int(math.log(max(int(rows), 1), WAYS))
        if total[tier] + rows <= LARGEST and len(tiers[tier]) < MOST:
            tiers[tier].append(segment)
            total[tier] += rows
    return next((segments for segments in tiers.values() if len(segments) >= WAYS), [])


def _merge(store: Store, segments: list[str]) -> None:
    with store.reading() as session:
        named = session.execute(select(RowIndexRow.segment, RowIndexRow.id).where(RowIndexRow.segment.in_(segments)))
        ids = {segment: number for segment, number in named}
    tables = []
    for segment in segments:
        table = read_arrow(store.storage.local_copy(segment))
        if "index" not in table.column_names:
            table = table.append_column("index", pa.array(np.full(table.num_rows, ids[segment], np.int32)))
        tables.append(table)
    whole = pa.concat_tables(tables)
    order = pa.array(np.argsort(whole.column("key").to_numpy(), kind="stable"))
    merged = f"{MERGED}/{digest_json(sorted(segments))}.arrow"
    with store.storage.writing(merged) as path:
        write_arrow(path, whole.take(order).combine_chunks())
    with store.writing() as session:
        now = set(session.scalars(select(RowIndexRow.segment).where(RowIndexRow.segment.in_([*segments, merged]))))
        mine = now.issuperset(segments)  # else another process has merged them meanwhile
        if mine:
            here = RowIndexRow.segment.in_(segments)
            session.execute(update(RowIndexRow).where(here).values(segment=merged))
    if not mine and merged not in now:
        store.storage.delete(merged)
    for segment in segments if mine else ():
        if segment.startswith(MERGED):
            store.storage.delete(segment)


def _fall_back(store: Store, lost: list[str]) -> None:
    with store.writing() as session:
        for row in session.scalars(select(RowIndexRow).where(RowIndexRow.segment.in_(lost))):
            row.segment = own_name(row.digest)
    while due := _due(store):
        _merge(store, due)
