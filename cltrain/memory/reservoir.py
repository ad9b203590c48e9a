"""A uniform sample of everything ever seen, of fixed size, by random keys."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from cltrain.errors import ConfigError, UpdateError
from cltrain.records import EVENT_ID
from cltrain.seeding import derive_seed, hash_ids

KEY = "_reservoir_key"


@dataclass(frozen=True, kw_only=True)
class Reservoir:
    """Keeps the `capacity_rows` rows with the smallest keys, where a row's key is a hash of its id and of `salt`.

    Every row of the past is kept with the same probability, whatever the order, and samples of parts merge into the
    sample of the whole (bottom-k sampling: Cohen and Kaplan 2007). A row that is offered twice is kept once. Both hold
    because a row has one key for the whole lineage: `salt` is a setting and not the seed of an update, and the hash is
    independent of those that choose the held-out rows and that cap a snapshot. A capacity that is raised on the way is
    filled with rows from then on.
    """

    capacity_rows: int = 20_000
    salt: int = 0

    def __post_init__(self) -> None:
        if self.capacity_rows < 0:
            raise ConfigError(f"memory.capacity_rows must be 0 or more, not {self.capacity_rows}")

    def admit(self, memory: pa.Table | None, rows: pa.Table) -> pa.Table:
        """Memory after event table `rows`, smallest keys first. It has the columns of both tables, null where one lacks
        them, and `_reservoir_key`. Raises `UpdateError` when a column changed its type."""
        keys = hash_ids(rows.column(EVENT_ID), salt=derive_seed(self.salt, "reservoir"))
        if memory is not None and 0 < self.capacity_rows <= memory.num_rows:
            kept = keys <= np.asarray(memory.column(KEY))[self.capacity_rows - 1]
            rows, keys = rows.filter(pa.array(kept)), keys[kept]
        fresh = rows.append_column(KEY, pa.array(keys, pa.float64()))
        return smallest(merge([fresh] if memory is None else [memory, fresh]), self.capacity_rows)


def merge(tables: list[pa.Table]) -> pa.Table:
    """Rows of all tables; of those with the same key the last one."""
    try:
        rows = pa.concat_tables(tables, promote_options="default")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise UpdateError(f"the rows do not fit the memory of their parent: {error}; recalibrate") from error
    keys = np.asarray(rows.column(KEY))
    order = np.lexsort((-np.arange(len(keys)), keys))
    last = np.ones(len(order), bool)
    last[1:] = np.diff(keys[order]) != 0
    return rows.take(pa.array(np.sort(order[last])))


def smallest(rows: pa.Table, count: int) -> pa.Table:
    """The `count` rows with the smallest keys, in the order of their keys."""
    order = np.argsort(np.asarray(rows.column(KEY)), kind="stable")[:count]
    return rows.take(pa.array(order)).combine_chunks()
