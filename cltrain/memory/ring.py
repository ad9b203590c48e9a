"""The latest rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from cltrain.memory.base import Memory, See
from cltrain.memory.class_balanced import balanced, label_groups
from cltrain.memory.stratified import times_of
from cltrain.records import LABEL


@dataclass(frozen=True, kw_only=True)
class Ring(Memory):
    """Keeps the latest rows by `_event_time`, and of the same time those that came last; the oldest remembered row is
    the first of the table. With `per_class` each class has a ring of its own (Chaudhry et al. 2019), of equal size but
    for what rare classes leave to the others; labels that are numbers of more than two values have one ring."""

    per_class: bool = True

    def choose(self, candidates: pa.Table, room: int, see: See | None) -> np.ndarray:
        one = np.zeros(candidates.num_rows, np.int64)
        groups = label_groups(candidates.column(LABEL), bins=1) if self.per_class else one
        return latest(groups, times_of(candidates), room)

    def arrange(self, candidates: pa.Table, order: np.ndarray) -> pa.Table:
        """In the order in which they came."""
        return super().arrange(candidates, np.sort(order))


def latest(groups: np.ndarray, times: np.ndarray, room: int) -> np.ndarray:
    """Indices of `room` rows in turns: the latest of each group, then the one before, and so on.

    >>> latest(np.array([0, 0, 0, 1]), np.array([3, 1, 3, 2]), 3).tolist()
    [2, 3, 0]
    """
    age = np.empty(len(times), np.int64)
    age[np.lexsort((np.arange(len(times)), times))[::-1]] = np.arange(len(times))
    return balanced(groups, age, room)
