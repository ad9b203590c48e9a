"""Which rows a file holds and when, small enough to keep for ever: the question which versions a row is in must be
answered when the file is long gone."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from cltrain.data.event_log import EventLog, LogFile, row_times
from cltrain.data.schema import Columns, Schema
from cltrain.records import EVENT_ID
from cltrain.seeding import hash_ids
from cltrain.storage import Storage, digest_json, write_arrow


def index_name(digest: str) -> str:
    """Where an index is."""
    return f"rows/{digest}.arrow"


def index_digest(file: LogFile, columns: Columns) -> str:
    """Names the index of a file: what is in it depends on the columns with a role and, where rows have no id, on the
    name of the file too."""
    roles = (columns.event_id, columns.event_time, columns.label_time, columns.label, columns.task, columns.positive)
    return digest_json([file.digest, file.name, roles])


def keys_of(ids: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """(N,) float64 in [0, 1) that stand for event ids: 53 bits, so that of a billion rows one has the key of another id
    in one of ten million questions."""
    return hash_ids(ids, salt=0x1D5)


def row_index(keys: np.ndarray, event_us: np.ndarray, visible_us: np.ndarray) -> pa.Table:
    """24 bytes a row, sorted by key; the times are those of `row_times`."""
    order = np.argsort(keys, kind="stable")
    columns = {"key": keys, "event_us": event_us, "visible_us": visible_us}
    return pa.table({name: column[order] for name, column in columns.items()})


def write_index(log: EventLog, storage: Storage, file: LogFile) -> str:
    """Index all rows of a file, unless that was done; returns the digest. Reads its columns with a role alone."""
    digest = index_digest(file, log.schema.columns)
    if storage.exists(index_name(digest)):
        return digest
    narrow = Schema(columns=log.schema.columns, features=())
    found = [
        (keys_of(roles.column(EVENT_ID)), *row_times(roles)[:2])
        for roles, _ in log.batches(file, range(len(file.parts)), narrow)
    ]
    empty = (np.empty(0), np.empty(0, np.int64), np.empty(0, np.int64))
    table = row_index(*(np.concatenate(column) for column in zip(empty, *found, strict=True)))
    with storage.writing(index_name(digest)) as path:
        write_arrow(path, table)
    return digest
