"""A uniform sample of everything ever seen, of fixed size, by random keys."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from cltrain.memory.base import KEY, Memory, See, keys_of, smallest

__all__ = ["KEY", "Reservoir"]


@dataclass(frozen=True, kw_only=True)
class Reservoir(Memory):
    """Keeps the `capacity_rows` rows with the smallest keys, where a row's key is a hash of its id and of `salt`.

    Every row of the past is kept with the same probability, whatever the order, and samples of parts merge into the
    sample of the whole (bottom-k sampling: Cohen and Kaplan 2007). A row that is offered twice is kept once. Both hold
    because a row has one key for the whole lineage: `salt` is a setting and not the seed of an update, and the hash is
    independent of those that choose the held-out rows and that cap a snapshot. A capacity that is raised on the way is
    filled with rows from then on.
    """

    def choose(self, candidates: pa.Table, room: int, see: See | None) -> np.ndarray:
        return smallest(keys_of(candidates), room)
