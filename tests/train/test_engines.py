"""Every engine does what one process does. Measured: weights and optimizer within 1.2e-7 after 6 steps, in float32."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

from cltrain.errors import ConfigError
from cltrain.methods import AGEM
from cltrain.train.engines import AutoEngine, DDPEngine, DeepSpeed, DeepSpeedEngine, FSDPEngine, Plain
from cltrain.train.engines.fsdp import FSDP, units
from tests.train.engine_cases import OPTIMIZERS, loaded, rank_main, report, small, state, train

TOLERANCE = 1e-6
CASES = {  # the most ranks first: DeepSpeed wants the processes of a group to have the same past
    3: ["fsdp_units", "deepspeed3"],
    2: ["ddp", "fsdp_units", "deepspeed1", "deepspeed2", "deepspeed3"],
    1: ["fsdp", "deepspeed2"],
}
if importlib.util.find_spec("deepspeed") is None:
    CASES = {world: [name for name in names if "deepspeed" not in name] for world, names in CASES.items()}
PAIRS = [(world, name) for world, names in CASES.items() for name in names]


@pytest.fixture(scope="module")
def parent() -> dict[str, Any]:
    torch.set_num_threads(1)
    running = Plain().begin(small(), OPTIMIZERS["adamw"])
    train(running, Plain(), range(3))
    return state(running)


@pytest.fixture(scope="module")
def alone(parent: dict[str, Any]) -> dict[str, Any]:
    return report(Plain(), parent)


@pytest.fixture(scope="module")
def reports(parent: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, str], list[Any]]:
    """By number of ranks and engine, what each rank reports."""
    folder = tmp_path_factory.mktemp("ranks")
    torch.save(parent, folder / "parent.pt")
    mp.spawn(rank_main, (CASES, str(folder)), nprocs=max(CASES))
    ranks = {w: [torch.load(Path(folder, f"{w}-{rank}.pt")) for rank in range(w)] for w in CASES}
    return {(w, name): [found[name] | {"stdout": found["stdout"]} for found in ranks[w]] for w, name in PAIRS}


def difference(ours: Any, theirs: Any) -> float:
    """The largest, element by element; of nested dicts with the same keys."""
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        return max((difference(value, theirs[key]) for key, value in ours.items()), default=0.0)
    ours, theirs = torch.as_tensor(ours), torch.as_tensor(theirs)
    assert ours.shape == theirs.shape
    return (ours.double() - theirs.double()).abs().max().item() if ours.numel() else 0.0


@pytest.mark.parametrize(("world", "name"), PAIRS)
def test_ranks_do_what_one_process_does(reports: Any, alone: dict[str, Any], world: int, name: str) -> None:
    """Steps with a penalty and clipping, in parts or not, with each optimizer; the way there and back of whole tensors;
    the whole model, and gradients of one row in it; going on from a state that one process had, and with new rows."""
    found = reports[world, name][0]
    steps = ["losses", "third", "sixth", "seventh", "free", "adamw_plain", "sgd", "momentum", "momentum_sixth"]
    for key in [*steps, "whole", "outputs", "per_row", "moved_sixth", "grown_sixth"]:
        assert difference(found[key], alone[key]) <= TOLERANCE, key
    for key in ("initial", "round_trip", "any_order", "loaded_weights", "parameters", "training"):
        assert difference(found[key], alone[key]) == 0, key
    assert difference(found["parts"], alone["third"]) <= TOLERANCE
    assert difference(found["bf16"], alone["bf16"]) <= 1e-3


@pytest.mark.parametrize(("world", "name"), PAIRS)
def test_all_ranks_end_with_the_same_bits(reports: Any, world: int, name: str) -> None:
    first, *others = reports[world, name]
    for other in others:
        assert all(difference(value, other[key]) == 0 for key, value in first.items() if key != "stdout")


@pytest.mark.parametrize(("world", "name"), [(1, "plain"), *PAIRS])
def test_going_on_is_never_having_stopped_bit_for_bit(
    reports: Any, alone: dict[str, Any], world: int, name: str
) -> None:
    found = alone if name == "plain" else reports[world, name][0]
    assert difference(found["resumed"], found["third"]) == 0
    assert difference(found["resumed_sixth"], found["sixth"]) == 0
    for again in ("restored", "restored_again"):
        assert difference(found[again], found["third"]) == 0
        assert difference(found[f"{again}_sixth"], found["sixth"]) == 0


@pytest.mark.parametrize(("world", "name"), PAIRS)
def test_one_process_goes_on_from_what_ranks_had(reports: Any, alone: dict[str, Any], world: int, name: str) -> None:
    running = loaded(Plain(), reports[world, name][0]["third"])
    train(running, Plain(), range(3, 6))
    assert difference(state(running), alone["sixth"]) <= TOLERANCE


@pytest.mark.parametrize(("world", "name"), PAIRS)
def test_an_engine_leaves_nothing_behind(reports: Any, world: int, name: str) -> None:
    for found in reports[world, name]:
        assert found["freed"]
        assert found["groups"] == found["groups_before"]
        assert found["stdout"] == ""
        assert found["buffers"].tolist() == [(world - 1) / 2] * 2


def test_the_penalty_and_the_clipping_of_these_tests_matter(alone: dict[str, Any]) -> None:
    assert difference(alone["third"]["weights"], alone["free"]["weights"]) > 1e-3
    assert difference(alone["sixth"]["weights"], alone["third"]["weights"]) > 1e-3


class Blocks(nn.Module):
    """Two layers in a list, and a head whose weight is that of the table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(10, 4)
        self.body = nn.Module()
        self.body.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(2)])
        self.out = nn.Linear(4, 4)
        self.head = nn.Linear(4, 10)
        self.head.weight = self.table.weight


@pytest.mark.parametrize(("least", "expected"), [(0, []), (1, ["body.layers.0", "body.layers.1", "out"]), (21, [])])
def test_blocks_are_gathered_one_by_one(least: int, expected: list[str]) -> None:
    net = Blocks()
    names = {part: name for name, part in net.named_modules()}
    assert [names[unit] for unit in units(net, least)] == expected


def test_a_scalar_parameter_cannot_be_cut() -> None:
    net = nn.Linear(2, 2)
    net.scale = nn.Parameter(torch.tensor(1.0))
    with pytest.raises(ConfigError, match=r"cannot cut scale.*one element"):
        FSDP().begin(net, OPTIMIZERS["sgd"])


@pytest.mark.parametrize("settings", [DDPEngine(), FSDPEngine(), DeepSpeedEngine()])
def test_an_engine_of_several_processes_wants_a_group(settings: Any) -> None:
    with pytest.raises(ConfigError, match=r"engine=\w+ .* set cluster.workers to 1"):
        settings.here(torch.device("cpu"))
    assert AutoEngine().here(torch.device("cpu")) == Plain()


def test_ranges() -> None:
    with pytest.raises(ConfigError, match=r"engine.stage must be 1, 2 or 3, not 4"):
        DeepSpeedEngine(stage=4)
    with pytest.raises(ConfigError, match=r"engine.unit_elements must be 0 or more"):
        FSDPEngine(unit_elements=-1)


def test_without_deepspeed_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(ConfigError, match=r"cltrain\[deepspeed\]"):
        DeepSpeed().begin(small(), OPTIMIZERS["adamw"])


def test_flat_gradients_cannot_be_projected() -> None:
    assert AGEM.needs - DeepSpeed().offers == {"gradients"}
