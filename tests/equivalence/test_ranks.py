"""Two ranks, and three, do what one does. Within a tolerance, because sums are taken in another order: 1e-4 of a weight
(AdamW divides by the size of a gradient, so that rounding of a gradient near 0 shows), 1e-5 of the Fisher's largest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp

from cltrain.train.engines import Plain
from tests.equivalence.ranks import METHODS, rank_main, report, run

Reports = dict[int, list[dict[str, Any]]]
CASES = {2: [*METHODS, "stopping", "few"], 3: ["replay_ewc", "few"]}


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Reports:
    """By number of ranks, what each rank reports."""
    folder = str(tmp_path_factory.mktemp("ranks"))
    mp.spawn(rank_main, (CASES, folder), nprocs=max(CASES))
    return {w: [torch.load(Path(folder, f"{w}-{rank}.pt")) for rank in range(w)] for w in CASES}


@pytest.mark.parametrize(("world", "name"), [(w, n) for w, names in CASES.items() for n in names])
def test_ranks_match_one(reports: Reports, world: int, name: str) -> None:
    alone = report(run(name, Plain()))
    for rank, found in enumerate(reports[world]):
        for ours, theirs in zip(found[name], alone, strict=True):
            assert ours.keys() == theirs.keys()
            for key in ("rows", "replayed", "steps", "memory"):
                assert torch.equal(ours[key], theirs[key]), (rank, key)
            for key, value in ours.items():
                relative = 1e-5 if key.startswith("fisher/") else 1e-4
                error = (value - theirs[key]).abs().max().item() if value.numel() else 0.0
                assert error <= relative * max(
                    1.0 if key.startswith("weights/") else 0.0, theirs[key].abs().max().item()
                ), f"rank {rank} of {world}, {key}: {error}"


@pytest.mark.parametrize(("world", "name"), [(w, n) for w, names in CASES.items() for n in names])
def test_all_ranks_end_with_the_same_bits(reports: Reports, world: int, name: str) -> None:
    first, *others = (found[name] for found in reports[world])
    for other in others:
        for ours, theirs in zip(first, other, strict=True):
            assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


def test_stopping_early_is_tested() -> None:
    (trained,) = run("stopping", Plain())
    assert trained.steps < 30 * 5
