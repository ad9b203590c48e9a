"""A version whose answers are not those of its golden batch gets no request."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from torch import Tensor, nn

from cltrain.assemble import open_store, run_loop
from cltrain.errors import ConflictError, ServingError
from cltrain.methods.finetune import Finetune
from cltrain.models.adapter import LoRA
from cltrain.records import ReportCard, Verdict
from cltrain.registry import Registry, Store
from cltrain.registry.deployment import Deployments
from cltrain.train.engines.plain import Plain
from cltrain.train.golden import device_kind, golden_of
from cltrain.train.predictor import Predictor
from cltrain.train.settings import Training
from cltrain.train.state import State, load_golden, save_state
from cltrain.train.update import train_update
from serve.http.schemas import PredictRow
from serve.resident import ResidentVersions, load
from serve.rollout import Canary
from serve.rollout.controller import Controller, begin
from serve.server import Server
from serve.settings import LogSettings, ServerSettings
from tests.serve.conftest import make_events


class Own(nn.Module):
    """A user's model, whose code is about to change."""

    bias = 0.0

    def __init__(self, num_numeric: int, num_outputs: int) -> None:
        super().__init__()
        self.layer = nn.Linear(num_numeric, num_outputs)

    def forward(self, numeric: Tensor, categorical: Tensor) -> Tensor:
        return self.layer(numeric) + self.bias


OWN = {"_target_": f"{__name__}.Own"}


def add_own(registry: Registry, seed: int, golden: bool = True, **more: Any) -> State:
    """Train and register one more version."""
    rows, schema = make_events("binary", rows=60, seed=seed)
    known = registry.version("1.0").challenger
    trained = train_update(
        rows,
        **{"parent": None, "model": OWN, **more},
        schema=schema,
        method=Finetune(),
        training=Training(epochs=1),
        cursor=known.cursor,
        seed=seed,
        engine=Plain(),
    )
    batch = golden_of(Predictor.of(trained.state)) if golden else None
    digest = save_state(trained.state, registry.store.storage, f"states/own-{seed}", batch)
    registry.register(
        dataclasses.replace(known, state=f"states/own-{seed}", weights_digest=digest, parameters=trained.parameters),
        ReportCard(comparisons=(), transfer=(), latency_ms=0.0, size_bytes=0),
        Verdict(accepted=True, reasons=()),
        round_index=seed,
        reason="test",
        compared_to=None,
        settings={},
    )
    return trained.state


@pytest.fixture
def server(registry: Registry, store: Store) -> Iterator[Server]:
    registry.promote("1.0", reason="first")
    log = LogSettings(flush_s=0.02)
    server = Server(ServerSettings(store=store.to_json(), model="binary", poll_s=600.0, evidence_s=600.0, log=log))
    yield server
    server.close()


def ask(server: Server) -> set[str]:
    return {server.predict([PredictRow(features={"distance": float(i)})])["version"] for i in range(40)}


def promote(server: Server, version: str) -> None:
    """It is taken up by the thread that follows the registry."""
    server.promote(version, "test", None)
    end = time.monotonic() + 30
    while server.resident.current is None or server.resident.current.version != version:
        assert time.monotonic() < end, server.resident.error
        time.sleep(0.01)


def test_a_version_whose_code_has_changed_gets_no_request(
    server: Server, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_own(registry, 5)
    version = registry.versions()[-1].version
    monkeypatch.setattr(Own, "bias", 0.5)
    deployments, controller = Deployments(registry), Controller(registry, replicas=1)
    begin(deployments, Canary(steps=(1.0,), min_samples=1, min_s=0.0), version, by="test", reason="try it")
    server.resident.refresh()
    server.recorder.publish()
    action = controller.look()
    assert action is not None
    assert action.do == "roll_back"
    assert "golden batch" in action.reason
    server.resident.refresh()
    assert ask(server) == {"binary:1.0"}
    with pytest.raises(ConflictError, match="golden batch"):
        server.promote(version, "try it", None)
    assert ask(server) == {"binary:1.0"}
    monkeypatch.setattr(Own, "bias", 0.0)
    promote(server, version)
    assert ask(server) == {f"binary:{version}"}


def test_a_version_from_before_there_were_golden_batches_is_served(
    server: Server, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    add_own(registry, 6, golden=False)
    monkeypatch.setattr(Own, "bias", 0.5)
    version = registry.versions()[-1].version
    promote(server, version)
    assert ask(server) == {f"binary:{version}"}
    monkeypatch.setattr(Own, "bias", float("nan"))
    with pytest.raises(ServingError, match="row of nulls"):
        load(registry.store.storage, registry.version(version))


def test_a_version_with_an_adapter_is_served(registry: Registry, store: Store) -> None:
    model = {"_target_": "cltrain.models.TabularNet", "hidden": [8], "embedding_dim": 2}
    parent = add_own(registry, 7, model=model)
    add_own(registry, 8, parent=parent, model=model, adapter=LoRA(rank=2))
    registry.promote(registry.versions()[-1].version, reason="small")
    resident = ResidentVersions(registry, poll_s=600.0)
    resident.refresh()
    assert resident.error is None
    assert resident.current is not None
    assert resident.current.version == registry.versions()[-1].version


@pytest.mark.parametrize("more", [(), ("adapter=lora", "adapter.rank=2", "recalibrate.every=null")])
def test_every_version_of_a_loop_is_made_with_one_and_can_be_served(
    small: Callable[..., dict[str, Any]], more: tuple[str, ...]
) -> None:
    settings = small("max_rounds=3", "window.bootstrap=2", *more)
    run_loop(settings)
    store = open_store(settings)
    versions = Registry(store, "default").versions()
    assert len(versions) > 1
    for record in versions:
        golden = load_golden(store.storage, record.state)
        assert golden is not None
        assert golden.device == device_kind()
        assert load(store.storage, record).version == record.version
    store.engine.dispose()
