"""No row is far from the memory."""

from __future__ import annotations

import importlib.util
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cltrain.errors import ConfigError
from cltrain.memory import Diverse
from cltrain.memory.base import KEY
from cltrain.memory.diverse import farthest, nearest
from tests.memory.made import admitted, numbers, rows, see

faiss = pytest.importorskip("faiss")


def radius(points: np.ndarray, chosen: Any) -> float:
    return float(np.linalg.norm(points[:, None] - points[list(chosen)][None], axis=2).min(axis=1).max())


def greedy(points: np.ndarray, keys: np.ndarray, room: int) -> list[int]:
    chosen = [int(np.argmin(keys))]
    while len(chosen) < room:
        chosen.append(int(np.argmax(np.linalg.norm(points[:, None] - points[chosen][None], axis=2).min(axis=1))))
    return chosen


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31), st.integers(2, 4))
def test_its_radius_is_at_most_twice_the_best_one(seed: int, room: int) -> None:
    generator = np.random.default_rng(seed)
    points, keys = generator.normal(size=(14, 2)).astype(np.float32), generator.random(14)
    best = min(radius(points, chosen) for chosen in combinations(range(14), room))
    assert radius(points, farthest(points, keys, room, nearest)) <= 2 * best + 1e-5


@pytest.mark.parametrize("pool", [1, 7, 50, 1_000])
def test_it_is_greedy_whatever_the_pool(pool: int) -> None:
    generator = np.random.default_rng(0)
    points, keys = (generator.normal(size=(400, 5)) + 10).astype(np.float32), generator.random(400)
    assert farthest(points, keys, 120, nearest, pool).tolist() == greedy(points, keys, 120)


def test_its_radius_is_smaller_than_that_of_draws() -> None:
    generator = np.random.default_rng(1)
    points = (generator.normal(size=(2_000, 8)) * (generator.random((2_000, 1)) < 0.1)).astype(np.float32)
    ours = radius(points, farthest(points, generator.random(2_000), 100, nearest))
    assert ours < 0.8 * min(radius(points, generator.choice(2_000, 100, replace=False)) for _ in range(10))


@pytest.mark.parametrize("pool", [3, 100])
def test_rows_that_are_the_same_are_kept_where_there_is_room(pool: int) -> None:
    points = np.repeat(np.eye(3, dtype=np.float32), 10, axis=0)
    order = farthest(points, np.arange(30) / 30, 25, nearest, pool).tolist()
    assert len(set(order)) == 25
    assert {i // 10 for i in order[:3]} == {0, 1, 2}


def test_rows_offered_again_change_nothing() -> None:
    memory = Diverse(capacity_rows=30)
    kept = admitted(memory, [rows(0, 100), rows(100, 300)])
    assert sorted(numbers(memory.admit(kept, rows(100, 300), see))) == sorted(numbers(kept))
    assert kept.column(KEY)[0].as_py() == min(kept.column(KEY).to_pylist()), "the row with the smallest key comes first"


def test_distances_are_found_on_the_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU is pretended: the index goes to it and gives the same distances."""
    moved = []
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
    monkeypatch.setattr(faiss, "StandardGpuResources", lambda: "resources", raising=False)
    monkeypatch.setattr(
        faiss, "index_cpu_to_gpu", lambda where, device, index: moved.append((where, device)) or index, raising=False
    )
    points = np.array([[0.0, 0.0], [3.0, 4.0], [1.0, 0.0]], np.float32)
    assert nearest(points, points[[0, 2]]).tolist() == [0.0, 20.0, 0.0]
    assert moved == [("resources", 0)]


def test_without_faiss_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"needs faiss: pip install 'cltrain\[cpu\]', or 'cltrain\[gpu\]'"):
        Diverse()
