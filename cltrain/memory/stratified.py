"""The same number of rows for every value of a column, or of every window of time."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import pyarrow as pa

from cltrain.clock import parse_duration
from cltrain.errors import ConfigError
from cltrain.memory.base import Memory, See, codes_of, keys_of
from cltrain.memory.class_balanced import balanced
from cltrain.records import EVENT_TIME


@dataclass(frozen=True, kw_only=True)
class Stratified(Memory):
    """Equal quotas for the values of column `by`, null among them; what a rare value cannot fill goes to the others.
    With `by` "window" they are for the stretches of `_event_time` that are `every` long, counted from 1970, so that the
    oldest stretch has as many rows as the latest. Memories of parts merge into that of the whole."""

    by: str = "window"
    every: str = "7d"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.by:
            raise ConfigError("memory.by is not set: name a column, memory.by=COLUMN, or memory.by=window")
        parse_duration(self.every)

    def choose(self, candidates: pa.Table, room: int, see: See | None) -> np.ndarray:
        return balanced(self._strata(candidates), keys_of(candidates), room)

    def _strata(self, candidates: pa.Table) -> np.ndarray:
        if self.by == "window":
            return windows(times_of(candidates), parse_duration(self.every))
        if self.by not in candidates.column_names:
            raise ConfigError(f"memory.by={self.by}: no such column; there are: {', '.join(candidates.column_names)}")
        return codes_of(candidates.column(self.by))


def windows(times: np.ndarray, every: timedelta) -> np.ndarray:
    """Which stretch of time each of `times` (microseconds) is in, (N,) int64."""
    return times // (every // timedelta(microseconds=1))


def times_of(table: pa.Table) -> np.ndarray:
    """Event times in microseconds since 1970, (N,) int64."""
    return np.asarray(table.column(EVENT_TIME).cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()))
