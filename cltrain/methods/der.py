"""Dark experience replay (Buzzega et al. 2020): on rows of the past, say what one said of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from cltrain.errors import ConfigError
from cltrain.methods.base import OUTPUTS, Absorbed, Joined, MethodState
from cltrain.methods.replay import Replay


@dataclass(frozen=True, kw_only=True)
class DER(Replay):
    """The loss of the new rows gains `alpha` times the mean squared difference between the outputs for the rehearsed
    rows and those that the memory holds (eq. 5), and `beta` times the loss of their labels, which makes it DER++
    (eq. 6). Both are taken of the same draw, where the paper draws twice.

    The memory holds what the model said of a row at the end of the update that brought it, in the column `_outputs`;
    the paper stores what it said in mid-training.
    """

    ratio: float = 1.0
    alpha: float = 0.5
    beta: float = 0.0

    reads = frozenset({"outputs"})

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("alpha", "beta"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"method.{name} must be 0 or more, not {getattr(self, name)}")

    @property
    def rehearsed_weight(self) -> float:  # type: ignore[override]
        return self.beta

    def terms(self, joined: Joined) -> dict[str, Tensor]:
        stored = joined.batch.extra.get("outputs")
        if stored is None or not joined.old_weight or not self.alpha:
            return {}
        stored = stored[joined.fresh :]
        ours = joined.outputs[joined.fresh :, : stored.shape[1]]
        known = torch.isfinite(stored)
        distance = torch.where(known, ours - stored, 0.0).square().sum(1) / known.sum(1).clamp(min=1)
        return {"outputs": self.alpha * joined.mean_old(distance)}

    def absorb(self, state: MethodState, absorbed: Absorbed) -> MethodState:
        state = super().absorb(state, absorbed)
        return dataclasses.replace(state, memory=_with_outputs(state.memory, absorbed))


@dataclass(frozen=True, kw_only=True)
class DERpp(DER):
    beta: float = 0.5


def _with_outputs(memory: pa.Table | None, absorbed: Absorbed) -> pa.Table | None:
    """The memory with outputs, list<float32>, for the rows that have none yet."""
    if memory is None or not memory.num_rows:
        return memory
    lacking = np.ones(memory.num_rows, bool)
    held: list[pa.Array] = []
    if OUTPUTS in memory.column_names:
        lacking = np.asarray(pc.is_null(memory.column(OUTPUTS)))
        held = memory.column(OUTPUTS).drop_null().combine_chunks()
    if not lacking.any():
        return memory
    fresh = absorbed.outputs(memory.filter(pa.array(lacking))).cpu().numpy()
    offsets = np.arange(0, fresh.size + 1, fresh.shape[1], dtype=np.int32)
    made = pa.ListArray.from_arrays(pa.array(offsets), pa.array(fresh.ravel(), pa.float32()))
    place = np.empty(memory.num_rows, np.int64)
    place[~lacking] = np.arange((~lacking).sum())
    place[lacking] = (~lacking).sum() + np.arange(lacking.sum())
    column = pa.concat_arrays([held, made] if len(held) else [made]).take(pa.array(place))
    if OUTPUTS in memory.column_names:
        return memory.set_column(memory.column_names.index(OUTPUTS), OUTPUTS, column)
    return memory.append_column(OUTPUTS, column)
