"""Dark experience replay (Buzzega et al. 2020): on rows of the past, say what one said of them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.nn.functional as F
from torch import Tensor

from cltrain.errors import ConfigError
from cltrain.methods.base import OUTPUTS, Absorbed, Joined, MethodState
from cltrain.methods.replay import Replay
from cltrain.records import EVENT_ID


@dataclass(frozen=True, kw_only=True)
class DER(Replay):
    """The loss of the new rows gains `alpha` times the mean squared difference between the outputs for the rehearsed
    rows and those that the memory holds (eq. 5), and `beta` times the loss of their labels, which makes it DER++
    (eq. 6). Both are taken of the same draw, where the paper draws twice.

    The memory holds, in the column `_outputs`, what the model said of a row when it last learned from it, in
    mid-training. The rows of an update that the memory will keep are rehearsed once they were learned, as in the paper:
    that keeps the outputs near 0, and easy to keep (docs/experiments.md). A memory that asks the model which rows to
    keep does not know them in time.
    """

    ratio: float = 1.0
    alpha: float = 0.5
    beta: float = 0.0

    reads = frozenset({"outputs"})
    records = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("alpha", "beta"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"method.{name} must be 0 or more, not {getattr(self, name)}")

    @property
    def rehearsed_weight(self) -> float:  # type: ignore[override]
        return self.beta

    def terms(self, joined: Joined) -> dict[str, Tensor]:
        stored = joined.old.get("outputs")
        if stored is None or not joined.has_old or not self.alpha:
            return {}
        ours, known = joined.outputs[joined.fresh :], joined.old.get("outputs_known")
        if known is None and joined.even:
            return {"outputs": self.alpha * F.mse_loss(ours, stored)}
        distance = (ours - stored).square()
        if known is not None:  # a class that was not known then does not count
            distance = distance * known / known.mean(1, keepdim=True).clamp(min=1e-12)
        return {"outputs": self.alpha * joined.mean_old(distance.mean(1))}

    def staying(self, state: MethodState, rows: pa.Table) -> Tensor | None:
        if self.memory.sees:
            return None
        kept = self.memory.admit(state.memory, rows)
        place = pc.index_in(kept.column(EVENT_ID), value_set=rows.column(EVENT_ID).combine_chunks())
        return torch.tensor(np.asarray(place.drop_null()), dtype=torch.int64)

    def absorb(self, state: MethodState, absorbed: Absorbed) -> MethodState:
        said = dataclasses.replace(absorbed, rows=_with_outputs(absorbed.rows, absorbed))
        state = super().absorb(state, said)
        return dataclasses.replace(state, memory=_with_outputs(state.memory, absorbed))


@dataclass(frozen=True, kw_only=True)
class DERpp(DER):
    beta: float = 0.5


def _with_outputs(memory: pa.Table | None, absorbed: Absorbed) -> pa.Table | None:
    """The rows with outputs, list<float32>, where they have none yet."""
    if memory is None or not memory.num_rows:
        return memory
    lacking = np.ones(memory.num_rows, bool)
    held: list[pa.Array] = []
    if OUTPUTS in memory.column_names:
        lacking = np.asarray(pc.is_null(memory.column(OUTPUTS)))
        held = memory.column(OUTPUTS).drop_null().combine_chunks()
    if not lacking.any():
        return memory
    fresh = _said(memory.filter(pa.array(lacking)), absorbed)
    offsets = np.arange(0, fresh.size + 1, fresh.shape[1], dtype=np.int32)
    made = pa.ListArray.from_arrays(pa.array(offsets), pa.array(fresh.ravel(), pa.float32()))
    place = np.empty(memory.num_rows, np.int64)
    place[~lacking] = np.arange((~lacking).sum())
    place[lacking] = (~lacking).sum() + np.arange(lacking.sum())
    column = pa.concat_arrays([held, made] if len(held) else [made]).take(pa.array(place))
    if OUTPUTS in memory.column_names:
        return memory.set_column(memory.column_names.index(OUTPUTS), OUTPUTS, column)
    return memory.append_column(OUTPUTS, column)


def _said(rows: pa.Table, absorbed: Absorbed) -> np.ndarray:
    """(N, C): what was said of rows when they were trained on, and what is said now of those that were not."""
    if absorbed.said is None:
        return absorbed.outputs(rows).cpu().numpy()
    place = pc.index_in(rows.column(EVENT_ID), value_set=absorbed.rows.column(EVENT_ID).combine_chunks())
    found = absorbed.said.cpu().numpy()[np.asarray(pc.fill_null(place, 0))]
    silent = np.isnan(found).any(1) | np.asarray(pc.is_null(place))
    if silent.any():
        found[silent] = absorbed.outputs(rows.filter(pa.array(silent))).cpu().numpy()
    return found
