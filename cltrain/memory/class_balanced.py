"""The same number of rows of every class, however rare."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from cltrain.errors import ConfigError
from cltrain.memory.base import Memory, See, codes_of, keys_of
from cltrain.records import LABEL


@dataclass(frozen=True, kw_only=True)
class ClassBalanced(Memory):
    """Equal quotas for the classes of `_label`; what a rare class cannot fill goes to the others. Within a class every
    row of the past is kept with the same probability, and memories of parts merge into that of the whole.

    Labels that are numbers of more than `bins` values (regression) are cut at their quantiles into `bins` classes. The
    cuts are those of the rows of the moment, and move with them.
    """

    bins: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bins(self.bins)

    def choose(self, candidates: pa.Table, room: int, see: See | None) -> np.ndarray:
        return balanced(label_groups(candidates.column(LABEL), self.bins), keys_of(candidates), room)


def balanced(groups: np.ndarray, priorities: np.ndarray, room: int) -> np.ndarray:
    """Indices of `room` rows in turns: the first of each group, then the second of each, and so on, so that any
    beginning is balanced too. Within a group and within a turn the smallest priority comes first.

    >>> balanced(np.array([0, 0, 0, 1, 2, 2]), np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]), 5).tolist()
    [0, 3, 4, 1, 5]
    """
    order = np.lexsort((priorities, groups))
    _, first, counts = np.unique(groups[order], return_index=True, return_counts=True)
    turn = np.empty(len(groups), np.int64)
    turn[order] = np.arange(len(groups)) - np.repeat(first, counts)
    return np.lexsort((priorities, turn))[:room]


def label_groups(labels: pa.ChunkedArray, bins: int) -> np.ndarray:
    """The class of each label as a number, (N,) int; see `quantile_bins` for labels that are floats."""
    return quantile_bins(np.asarray(labels), bins) if pa.types.is_floating(labels.type) else codes_of(labels)


def quantile_bins(values: np.ndarray, bins: int) -> np.ndarray:
    """Which of `bins` parts of about equal size each of `values` falls into; its own value where there are not more
    than `bins` values, or 2.

    >>> quantile_bins(np.array([5.0, 1.0, 2.0, 9.0]), 2).tolist(), quantile_bins(np.array([0.0, 1.0, 1.0]), 1).tolist()
    ([1, 0, 0, 1], [0, 1, 1])
    """
    distinct = np.unique(values)
    if len(distinct) <= max(bins, 2):
        return np.searchsorted(distinct, values)
    return np.searchsorted(np.quantile(values, np.arange(1, bins) / bins), values, side="right")


def check_bins(bins: int) -> None:
    if bins < 1:
        raise ConfigError(f"memory.bins must be 1 or more, not {bins}")
