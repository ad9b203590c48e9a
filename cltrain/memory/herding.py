"""Rows whose mean, as the model sees them, is that of their class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cltrain.memory.base import Memory, See, keys_of
from cltrain.memory.class_balanced import balanced, check_bins, label_groups
from cltrain.records import LABEL

STANDS_FOR = "_stands_for"
BLOCK = 2_048  # rows among which one is picked


@dataclass(frozen=True, kw_only=True)
class Herding(Memory):
    """iCaRL's exemplars (Rebuffi et al. 2017): in each class the row is picked next that brings the mean of the picked
    embeddings, each of length 1, closest to the mean of the class. Quotas and `bins` are those of `ClassBalanced`.

    A remembered row counts in the mean of its class for the rows that it stands for (column `_stands_for`): those seen
    so far, shared out evenly. So a class that comes again has the mean of its whole past, and not that of the latest
    rows; for a class that does not, nothing differs from the paper. A class of more than 2,048 rows is cut into parts
    by chance, and picks come from each part in turn, which makes the time of a pick independent of the number of rows
    (Mirzasoleiman et al. 2015).
    """

    bins: int = 10
    sees: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bins(self.bins)

    def choose(self, candidates: pa.Table, room: int, see: See | None) -> np.ndarray:
        assert see is not None
        groups = label_groups(candidates.column(LABEL), self.bins)
        return herded(see(candidates).embeddings, stands_for(candidates), groups, keys_of(candidates), room)

    def admit(self, memory: pa.Table | None, rows: pa.Table, see: See | None = None) -> pa.Table:
        return super().admit(memory, rows.append_column(STANDS_FOR, pa.array(np.ones(rows.num_rows))), see)

    def arrange(self, candidates: pa.Table, order: np.ndarray) -> pa.Table:
        groups = label_groups(candidates.column(LABEL), self.bins)
        shares = pa.array(shared_out(stands_for(candidates), groups, order), pa.float64())
        kept = super().arrange(candidates, order)
        return kept.set_column(kept.column_names.index(STANDS_FOR), STANDS_FOR, shares)


def stands_for(table: pa.Table) -> np.ndarray:
    """How many rows of the past each row stands for, (N,) float64: 1 where another kind of memory did not count."""
    return np.asarray(pc.fill_null(table.column(STANDS_FOR), 1.0))


def shared_out(weights: np.ndarray, groups: np.ndarray, order: np.ndarray) -> np.ndarray:
    """The weight of all rows of a group, in equal parts, for those of its rows that are in `order`.

    >>> shared_out(np.array([1.0, 2.0, 3.0]), np.array([0, 0, 1]), np.array([2, 1])).tolist()
    [3.0, 3.0]
    """
    total, count = np.bincount(groups, weights), np.bincount(groups[order])
    return total[groups[order]] / count[groups[order]]


def herded(embeddings: np.ndarray, weights: np.ndarray, groups: np.ndarray, keys: np.ndarray, room: int) -> np.ndarray:
    """Indices of `room` rows in turns: the first pick of each group, then the second, and so on."""
    points = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    by_key = np.argsort(keys, kind="stable")
    quotas = np.bincount(groups[balanced(groups, keys, room)], minlength=int(groups.max()) + 1)
    picks = []
    for group, quota in enumerate(quotas):
        members = by_key[groups[by_key] == group]
        picks.append(members[herd(points[members], weights[members], int(quota))])
    picked, turn = np.concatenate(picks), np.concatenate([np.arange(len(pick)) for pick in picks])
    return picked[np.lexsort((keys[picked], turn))]


def herd(points: np.ndarray, weights: np.ndarray, count: int, block: int = BLOCK) -> np.ndarray:
    """Indices of `count` of the `points` (N, D), one after another: pick k minimises the distance of the weighted mean
    of all points to the mean of the k that are picked, among the points of part k of the ceil(N / block) parts.

    >>> herd(np.array([[0.0], [1.0], [3.0], [5.0]]), np.ones(4), 2).tolist()
    [2, 1]
    """
    if count >= len(points):
        return np.arange(len(points))
    parts = -(-len(points) // block)
    held = [np.ascontiguousarray(points[part::parts]) for part in range(parts)]
    length = [(part**2).sum(axis=1) / 2 for part in held]
    mean, total = weights @ points / weights.sum(), np.zeros(points.shape[1])
    picks = np.empty(count, np.int64)
    for pick in range(count):
        part = pick % parts
        wanted = ((pick + 1) * mean - total).astype(points.dtype)
        best = int(np.argmin(length[part] - held[part] @ wanted))
        total += held[part][best]
        length[part][best] = np.inf
        picks[pick] = part + best * parts
    return picks
