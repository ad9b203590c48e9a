"""What every memory is: rows of the past as an Arrow table, and a rule that says which of them to keep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cltrain.errors import ConfigError, UpdateError
from cltrain.records import EVENT_ID
from cltrain.seeding import derive_seed, hash_ids

KEY = "_reservoir_key"


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the model makes of rows, in their order: `losses` (N,) of their labels, `uncertainty` (N,) in [0, 1], and
    `embeddings` (N, D) float32, the inputs of its last linear layer."""

    losses: np.ndarray
    uncertainty: np.ndarray
    embeddings: np.ndarray


See = Callable[[pa.Table], Seen]


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Keeps at most `capacity_rows` rows, and of them no more than fit into `capacity_bytes` bytes of Arrow data.

    A memory is its rows as events with the column `_reservoir_key`: a hash of the row's id and of `salt`, uniform in
    [0, 1). All chance comes from that key, so every rank remembers the same, and a row has the same luck in every
    update of a lineage. A kind of memory answers `choose`; `sees` says that it asks the model about the rows, which is
    the model of now for old and new rows alike.
    """

    capacity_rows: int = 20_000
    capacity_bytes: int | None = None
    salt: int = 0
    sees: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.capacity_rows < 0:
            raise ConfigError(f"memory.capacity_rows must be 0 or more, not {self.capacity_rows}")
        if self.capacity_bytes is not None and self.capacity_bytes < 0:
            raise ConfigError(f"memory.capacity_bytes must be 0 or more, or null for any, not {self.capacity_bytes}")

    def choose(self, candidates: pa.Table, room: int, see: See | None) -> np.ndarray:
        """Indices of at most `room` of the candidates, the best first: when bytes are short, the last ones go. The
        candidates are the rows of the memory and then the new ones; `see` is there if the memory `sees`."""
        raise NotImplementedError

    def arrange(self, candidates: pa.Table, order: np.ndarray) -> pa.Table:
        """The chosen rows as they are to be remembered, in buffers of their own."""
        return taken(candidates, order)

    def admit(self, memory: pa.Table | None, rows: pa.Table, see: See | None = None) -> pa.Table:
        """Memory after event table `rows`; neither table is altered. It has the columns of both, null where one lacks
        them. A row that is offered twice is kept once, as it was the last time. The model is not asked while there is
        room for all. Raises `UpdateError` when a column changed its type, or when `see` is needed and missing."""
        if self.sees and see is None:
            raise UpdateError(f"{type(self).__name__} keeps rows by what the model makes of them: pass `see` to admit")
        keys = hash_ids(rows.column(EVENT_ID), salt=derive_seed(self.salt, "reservoir"))
        fresh = rows.append_column(KEY, pa.array(keys, pa.float64()))
        offered = united([fresh] if memory is None else [memory, fresh])
        last = last_of_each(keys_of(offered))
        candidates = offered if len(last) == offered.num_rows else taken(offered, last)
        order = self._best(candidates, see)
        if memory is not None and candidates is offered and not self.sees and _as_before(order, memory, offered):
            return memory
        return self.arrange(candidates, order)

    def _best(self, candidates: pa.Table, see: See | None) -> np.ndarray:
        """The chosen rows, by both limits."""
        limit = self.capacity_bytes
        if limit is None or (sizes := row_bytes(candidates)).sum() <= limit:
            return self._chosen(candidates, self.capacity_rows, see)
        room = min(self.capacity_rows, candidates.num_rows - 1, int(limit / sizes.min()))
        order = self._chosen(candidates, room, see)
        return order[: np.searchsorted(np.cumsum(sizes[order]), limit, side="right")]

    def _chosen(self, candidates: pa.Table, room: int, see: See | None) -> np.ndarray:
        if room == 0 or (self.sees and candidates.num_rows <= room):
            return smallest(keys_of(candidates), room)
        return self.choose(candidates, room, see)


def _as_before(order: np.ndarray, memory: pa.Table, offered: pa.Table) -> bool:
    return np.array_equal(order, np.arange(memory.num_rows)) and offered.schema.equals(memory.schema)


def smallest(priorities: np.ndarray, room: int) -> np.ndarray:
    """Indices of the `room` smallest priorities, in their order."""
    return np.argsort(priorities, kind="stable")[:room]


def last_of_each(keys: np.ndarray) -> np.ndarray:
    """Indices of the last row of each key, in the order of the rows.

    >>> last_of_each(np.array([0.5, 0.1, 0.5])).tolist()
    [1, 2]
    """
    _, place = np.unique(keys[::-1], return_index=True)
    return np.sort(len(keys) - 1 - place)


def keys_of(table: pa.Table) -> np.ndarray:
    return np.asarray(table.column(KEY))


def codes_of(column: pa.ChunkedArray) -> np.ndarray:
    """A number for each distinct value, (N,) int; null is a value."""
    return np.asarray(column.combine_chunks().dictionary_encode("encode").indices)


def united(tables: list[pa.Table]) -> pa.Table:
    """All rows of the tables, without copies. Raises `UpdateError` when a column has another type."""
    try:
        return pa.concat_tables(tables, promote_options="default")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise UpdateError(f"the rows do not fit the memory of their parent: {error}; recalibrate") from error


def taken(table: pa.Table, order: np.ndarray) -> pa.Table:
    """Copies of the rows at `order`, in that order."""
    if table.num_rows > 2 * len(order):  # `take` joins the chunks of a whole window first, `filter` does not
        wanted = np.zeros(table.num_rows, bool)
        wanted[order] = True
        table, order = table.filter(pa.array(wanted)), (np.cumsum(wanted) - 1)[order]
    return table.take(pa.array(order)).combine_chunks()


def row_bytes(table: pa.Table) -> np.ndarray:
    """Bytes of each row in Arrow buffers, (N,) float64. In columns other than numbers, texts and flat lists all rows
    count the same."""
    total = np.zeros(table.num_rows)
    for column in table.columns:
        type_ = column.type
        if pa.types.is_string(type_) or pa.types.is_binary(type_):
            total += np.asarray(pc.fill_null(pc.binary_length(column), 0)) + 4
        elif pa.types.is_large_string(type_) or pa.types.is_large_binary(type_):
            total += np.asarray(pc.fill_null(pc.binary_length(column), 0)) + 8
        elif pa.types.is_list(type_) and pa.types.is_primitive(type_.value_type):
            lengths = np.asarray(pc.fill_null(pc.list_value_length(column), 0))
            total += lengths * (type_.value_type.bit_width / 8) + 4
        elif table.num_rows:
            total += column.nbytes / table.num_rows
    return total
