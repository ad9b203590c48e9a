"""Rows that leave no other row far away, as the model sees them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from cltrain.errors import ConfigError
from cltrain.memory.base import Memory, See, keys_of

Nearest = Callable[[np.ndarray, np.ndarray], np.ndarray]
POOL = 2_048  # farthest rows that are looked at before all distances are brought up to date


@dataclass(frozen=True, kw_only=True)
class Diverse(Memory):
    """Greedy k-centre over embeddings (Sener and Savarese 2018; Gonzalez 1985): the row that is farthest from all
    chosen ones is chosen next, so that no row is farther from the memory than twice what is possible. Distances are
    found by faiss, on the GPU where there is one. Outliers are kept first, and dense regions get few rows."""

    sees: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if importlib.util.find_spec("faiss") is None:
            raise ConfigError("memory=diverse needs faiss: pip install 'cltrain[cpu]', or 'cltrain[gpu]' with CUDA")

    def choose(self, candidates: pa.Table, room: int, see: See | None) -> np.ndarray:
        assert see is not None
        return farthest(see(candidates).embeddings, keys_of(candidates), room, nearest)


def nearest(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """Squared distance from each of `points` (N, D) to the closest of `centres` (K, D); (N,) float32."""
    import faiss

    index: Any = faiss.IndexFlatL2(points.shape[1])
    if faiss.get_num_gpus() > 0:
        index = faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)
    index.add(centres)
    return index.search(points, 1)[0][:, 0]


def farthest(embeddings: np.ndarray, keys: np.ndarray, room: int, nearest: Nearest, pool: int = POOL) -> np.ndarray:
    """Indices of `room` rows: the one with the smallest key, and then always the one that is farthest from all before.

    It is exact, and yet the distances of all rows are computed for many choices at once: they only ever shrink, so
    while the farthest row of the `pool` is as far away as any row outside was at the start, it is the farthest of all.
    """
    points = np.ascontiguousarray(embeddings - embeddings.mean(axis=0), np.float32)
    distance = np.full(len(points), np.inf, np.float32)
    chosen = [int(np.argmin(keys))]
    fresh = chosen
    while len(chosen) < min(room, len(points)):
        distance = np.minimum(distance, nearest(points, points[fresh]).clip(0))
        distance[chosen] = -1
        order = np.argsort(-distance, kind="stable")
        near, rest = order[:pool], order[pool:]
        fresh = near[_farthest_in(points[near], distance[near], distance[rest[0]] if len(rest) else 0)].tolist()
        chosen += fresh
    return np.asarray(chosen[:room])


def _farthest_in(points: np.ndarray, distance: np.ndarray, bound: float) -> list[int]:
    """Choices in order, as long as they are no closer than `bound`. Distances below 0 are those of chosen rows."""
    norms = (points**2).sum(axis=1)
    best, found = int(np.argmax(distance)), list[int]()
    while not found or distance[best] >= max(bound, 0):
        found.append(best)
        from_best = norms + norms[best] - 2 * (points @ points[best])
        distance = np.minimum(distance, from_best.clip(0))
        distance[best] = -1
        best = int(np.argmax(distance))
    return found
