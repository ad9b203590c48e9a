"""Several ranks, on any engine, do what one process does. Within a tolerance, because sums are taken in another order:
1e-4 of a weight (AdamW divides by the size of a gradient, so that rounding of a gradient near 0 shows), 1e-5 of the
Fisher's largest. Counts and the rows of the memory are the same."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp

from cltrain.errors import ConfigError
from cltrain.storage import Storage
from cltrain.train.engines import DeepSpeed, Plain
from cltrain.train.state import load_state, save_state
from tests.equivalence.ranks import METHODS, MOVES, child_of, parent_of, rank_main, report, run

Reports = dict[int, list[dict[str, Any]]]
ELEMENTWISE = [name for name in METHODS if name != "agem"]
CASES: dict[int, dict[str, list[str]]] = {  # the most ranks first: see tests/train/test_engines.py
    4: {"ddp": [MOVES, "few"], "fsdp_units": [MOVES, "few"], "deepspeed3": [MOVES, "few"]},
    2: {
        "ddp": [*METHODS, "stopping", "few", "sgd"],
        "fsdp_units": [*METHODS, "stopping", "few", "sgd"],
        "deepspeed1": [MOVES, "si"],
        "deepspeed2": [*ELEMENTWISE, "stopping", "few", "sgd"],
        "deepspeed3": [MOVES, "lwf", "derpp", "stopping", "sgd"],
    },
    1: {"fsdp": [MOVES], "deepspeed2": [MOVES]},
}
if importlib.util.find_spec("deepspeed") is None:
    CASES = {w: {e: names for e, names in engines.items() if "deepspeed" not in e} for w, engines in CASES.items()}
ENGINES = [(world, engine) for world, engines in CASES.items() for engine in engines]
RUNS = [(world, engine, name) for world, engine in ENGINES for name in CASES[world][engine]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the state of a parent that one process trained."""
    path = tmp_path_factory.mktemp("ranks")
    save_state(parent_of(METHODS[MOVES], Plain()).state, Storage(path), "alone")
    return path


@pytest.fixture(scope="module")
def reports(folder: Path) -> Reports:
    """By number of ranks, what each rank reports."""
    mp.spawn(rank_main, (CASES, str(folder)), nprocs=max(CASES))
    return {w: [torch.load(Path(folder, f"{w}-{rank}.pt")) for rank in range(w)] for w in CASES}


@pytest.fixture(scope="module")
def alone() -> dict[str, list[dict[str, torch.Tensor]]]:
    """What one process reports of each case."""
    return {name: report(run(name, Plain())) for name in dict.fromkeys(name for _, _, name in RUNS)}


def assert_close(found: list[dict[str, torch.Tensor]], expected: list[dict[str, torch.Tensor]]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for key in ("rows", "replayed", "steps", "memory", "parameters"):
            assert torch.equal(ours[key], theirs[key]), key
        for key, value in ours.items():
            relative = 1e-5 if key.startswith("fisher/") else 1e-4
            error = (value - theirs[key]).abs().max().item() if value.numel() else 0.0
            largest = max(1.0 if key.startswith("weights/") else 0.0, theirs[key].abs().max().item())
            assert error <= relative * largest, f"{key}: {error} of {largest}"


@pytest.mark.parametrize(("world", "engine", "name"), RUNS)
def test_ranks_match_one(reports: Reports, alone: dict[str, Any], world: int, engine: str, name: str) -> None:
    assert_close(reports[world][0][engine][name], alone[name])


@pytest.mark.parametrize(("world", "engine"), ENGINES)
def test_all_ranks_end_with_the_same_bits(reports: Reports, world: int, engine: str) -> None:
    first, *others = (found[engine] for found in reports[world])
    for other in others:
        for name, found in other.items():
            for ours, theirs in zip(first[name], found, strict=True):
                assert all(torch.equal(value, theirs[key]) for key, value in ours.items()), name


@pytest.mark.parametrize(("world", "engine"), ENGINES)
def test_a_version_moves_between_engines_and_numbers_of_ranks(
    reports: Reports, alone: dict[str, Any], folder: Path, world: int, engine: str
) -> None:
    """The child of a parent from elsewhere, through files: memory, Fisher and optimizer come along."""
    expected = alone[MOVES][1:]
    assert_close(reports[world][0][engine]["moved"], expected)
    parent = load_state(Storage(folder), f"{world}-{engine}")
    assert_close(report([child_of(parent, METHODS[MOVES], Plain())]), expected)


def test_stopping_early_is_tested() -> None:
    (trained,) = run("stopping", Plain())
    assert trained.steps < 30 * 5


def test_what_an_engine_cannot_is_refused_before_it_starts() -> None:
    with pytest.raises(ConfigError, match="AGEM needs gradients, which DeepSpeed lacks"):
        parent_of(METHODS["agem"], DeepSpeed())
