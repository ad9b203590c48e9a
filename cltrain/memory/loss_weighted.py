"""More of the rows that the model finds hard."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa

from cltrain.errors import ConfigError
from cltrain.memory.base import Memory, See, keys_of, smallest
from cltrain.memory.recency import arrivals

TINY = 1e-300


@dataclass(frozen=True, kw_only=True)
class LossWeighted(Memory):
    """Draws rows with weights that are their loss, or the model's uncertainty, to the `power`; 0 is a reservoir.

    Old and new rows are weighed afresh by the model of now each time, so that their weights compare; a row that was
    dropped when it was easy does not come back when it is hard. Sampling as by Efraimidis and Spirakis (2006).
    """

    by: Literal["loss", "uncertainty"] = "loss"
    power: float = 1.0
    sees: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.by not in ("loss", "uncertainty"):
            raise ConfigError(f"memory.by must be loss or uncertainty, not {self.by}")
        if not 0 <= self.power <= 10:
            raise ConfigError(f"memory.power must be between 0 and 10, not {self.power}")

    def choose(self, candidates: pa.Table, room: int, see: See | None) -> np.ndarray:
        assert see is not None
        seen = see(candidates)
        values = seen.losses if self.by == "loss" else seen.uncertainty
        return smallest(arrivals(keys_of(candidates), log_weights(values, self.power)), room)


def log_weights(values: np.ndarray, power: float) -> np.ndarray:
    """Logarithm of `values` to the `power`; a value of 0 is next to nothing and keeps its chance among its like."""
    return power * np.log(np.maximum(values.astype(np.float64), TINY))
