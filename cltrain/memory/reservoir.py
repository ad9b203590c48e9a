"""A uniform sample of everything ever seen, of fixed size, by random keys."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from cltrain.errors import ConfigError
from cltrain.records import EVENT_ID
from cltrain.seeding import hash_ids

KEY = "_key"


@dataclass(frozen=True, kw_only=True)
class Reservoir:
    """Keeps the `capacity_rows` rows with the smallest keys, where a row's key is a hash of its id.

    Every row of the past is kept with the same probability, whatever the order, and samples of parts merge into the
    sample of the whole (bottom-k sampling: Cohen and Kaplan 2007). A row that is offered twice is kept once.
    """

    capacity_rows: int = 20_000

    def __post_init__(self) -> None:
        if self.capacity_rows < 0:
            raise ConfigError(f"memory.capacity_rows must be 0 or more, not {self.capacity_rows}")

    def admit(self, memory: pa.Table | None, rows: pa.Table, seed: int) -> pa.Table:
        """Memory after `rows`; both tables keep their columns, null where a table lacks one."""
        fresh = with_keys(rows, seed)
        if memory is None:
            return smallest(fresh, self.capacity_rows)
        if self.capacity_rows and memory.num_rows >= self.capacity_rows:
            limit = float(np.asarray(memory.column(KEY)).max())
            fresh = fresh.filter(pa.array(np.asarray(fresh.column(KEY)) < limit))
        return smallest(merge(memory, fresh), self.capacity_rows)


def with_keys(rows: pa.Table, seed: int) -> pa.Table:
    if KEY in rows.column_names:
        return rows
    return rows.append_column(KEY, pa.array(hash_ids(rows.column(EVENT_ID), salt=seed), pa.float64()))


def merge(a: pa.Table, b: pa.Table) -> pa.Table:
    """Rows of both; one of each id, the later one."""
    both = pa.concat_tables([a, b], promote_options="default")
    keys = np.asarray(both.column(KEY))
    order = np.lexsort((-np.arange(len(keys)), keys))
    first = np.ones(len(order), bool)
    first[1:] = np.diff(keys[order]) != 0
    return both.take(pa.array(np.sort(order[first])))


def smallest(rows: pa.Table, count: int) -> pa.Table:
    """The `count` rows with the smallest keys, in the order of their keys."""
    order = np.argsort(np.asarray(rows.column(KEY)), kind="stable")[:count]
    return rows.take(pa.array(order)).combine_chunks()
