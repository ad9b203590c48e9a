"""The categories of a column: each has its index for as long as it stays."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cltrain.batch import UNKNOWN
from cltrain.data.schema import MAX_CATEGORIES

MISSING, FIRST = UNKNOWN + 1, UNKNOWN + 2  # index of null, and of the first category
FEW_ROWS = 64  # of which a look-up in a dict is faster than one in Arrow

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class CategoricalColumn:
    """Index `FIRST` + i for `categories[i]`; `MISSING` for null; `UNKNOWN` for all others.

    There is room for `max_categories`. `extensions` counts the updates since training from scratch, and `met[i]` is the
    last of them in which `categories[i]` came.
    """

    name: str
    categories: tuple[str, ...]
    max_categories: int = MAX_CATEGORIES
    extensions: int = 0
    met: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name in ("categories", "met"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if len(self.met) != len(self.categories):  # of a version from before they were counted
            object.__setattr__(self, "met", (0,) * len(self.categories))

    @cached_property
    def places(self) -> dict[str | None, int]:
        return {None: MISSING} | {value: i for i, value in enumerate(self.categories, FIRST)}

    @cached_property
    def values(self) -> pa.Array:
        return pa.array(self.categories, pa.string())

    @property
    def size(self) -> int:
        return FIRST + len(self.categories)

    def indices(self, column: pa.ChunkedArray) -> np.ndarray:
        """(N,) int64."""
        if len(column) <= FEW_ROWS:
            return np.array([self.places.get(value, UNKNOWN) for value in column.to_pylist()], np.int64)
        found = np.asarray(pc.fill_null(pc.index_in(column, value_set=self.values), UNKNOWN - FIRST)) + FIRST
        return np.where(np.asarray(pc.is_null(column)), MISSING, found)

    def extended(self, column: pa.ChunkedArray) -> CategoricalColumn:
        """With the new categories of `column`, most frequent first: at the end while there is room, and then in the
        place of those that have not been met for longest and are not in `column` (of those not met for equally long,
        the one that is last). What finds no place is unknown. Every other category keeps its index.

        >>> old = CategoricalColumn(name="k", categories=("a", "b"), max_categories=3)
        >>> old.extended(pa.chunked_array([["a", "c", "d", "d"]])).categories
        ('a', 'c', 'd')
        """
        now = self.extensions + 1
        present = set(pc.unique(column.drop_null()).to_pylist())
        categories = list(self.categories)
        met = [now if value in present else when for value, when in zip(categories, self.met, strict=True)]
        fresh = by_frequency(column, self.categories)
        room = max(0, self.max_categories - len(categories))
        gone = [i for i in sorted(range(len(met)), key=lambda i: (met[i], -i)) if met[i] < now]
        categories += fresh[:room]
        met += [now] * len(fresh[:room])
        for i, value in zip(gone, fresh[room:], strict=False):
            categories[i], met[i] = value, now
        _warn_of(self.name, len(fresh) - room - len(gone), self.max_categories)
        return replace(self, categories=tuple(categories), extensions=now, met=tuple(met))

    def reused(self, before: CategoricalColumn) -> tuple[int, ...]:
        """Indices that meant another category `before`."""
        pairs = zip(before.categories, self.categories, strict=False)
        return tuple(i for i, (was, now) in enumerate(pairs, FIRST) if was != now)


def fit_categories(name: str, column: pa.ChunkedArray, max_categories: int) -> CategoricalColumn:
    """The most frequent values of a column, most frequent first."""
    found = by_frequency(column)
    _warn_of(name, len(found) - max_categories, max_categories)
    return CategoricalColumn(name=name, categories=found[:max_categories], max_categories=max_categories)


def by_frequency(column: pa.ChunkedArray, but: Sequence[str] = ()) -> tuple[Any, ...]:
    """Values that are not null and not among `but`, most frequent first, and then in their order."""
    fresh = column.filter(pc.invert(pc.is_in(column, value_set=pa.array(but, pa.string())))) if but else column
    counts = pc.value_counts(fresh.drop_null())
    table = pa.table({"value": counts.field(0), "count": counts.field(1)})
    order = pc.sort_indices(table, [("count", "descending"), ("value", "ascending")])
    return tuple(table.column("value").take(order).to_pylist())


def _warn_of(name: str, many: int, room: int) -> None:
    if many > 0:
        log.warning(
            "%s: %d categories more than the %d that fit; the rare ones count as unknown (data.max_categories)",
            name,
            many,
            room,
        )
