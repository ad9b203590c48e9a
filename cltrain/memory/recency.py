"""A sample of everything ever seen in which a row counts half as much when it is one half-life older."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import pyarrow as pa

from cltrain.clock import parse_duration
from cltrain.memory.base import Memory, See, keys_of, smallest
from cltrain.memory.stratified import times_of


@dataclass(frozen=True, kw_only=True)
class Recency(Memory):
    """Draws rows with weights that halve with every `half_life` of `_event_time`.

    Decay is forward (Cormode et al. 2009): a row weighs 2^(time / half_life), which never changes, so that only ratios
    count and memories of parts merge into that of the whole. It is sampling without replacement (Efraimidis and
    Spirakis 2006): where there is room for most rows of an age, the older ones get what is left.
    """

    half_life: str = "30d"

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_duration(self.half_life)

    def choose(self, candidates: pa.Table, room: int, see: See | None) -> np.ndarray:
        weights = forward_decay(times_of(candidates), parse_duration(self.half_life))
        return smallest(arrivals(keys_of(candidates), weights), room)


def forward_decay(times: np.ndarray, half_life: timedelta) -> np.ndarray:
    """Logarithms of the weights of rows at `times` (microseconds), (N,) nats."""
    return times / (half_life / timedelta(microseconds=1)) * np.log(2)


def arrivals(keys: np.ndarray, log_weights: np.ndarray) -> np.ndarray:
    """The logarithm of a waiting time for each row, exponential with its weight as the rate; the k that come first are
    a weighted sample without replacement (Efraimidis and Spirakis 2006, whose key is u^(1/w)). In logarithms no weight
    is too large or too small.

    >>> arrivals(np.array([0.5, 0.5]), np.array([0.0, 1000.0])).round(3).tolist()
    [-0.367, -1000.367]
    """
    with np.errstate(divide="ignore"):
        return np.log(-np.log1p(-keys)) - log_weights
