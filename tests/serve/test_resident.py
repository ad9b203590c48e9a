"""Following the registry, and what keeps a version from being served."""

import sqlite3
import threading
import time
from collections.abc import Iterator

import pytest
import torch

from cltrain.registry import Registry, Store
from cltrain.registry.deployment import Deployment, Deployments
from cltrain.train.predictor import Predictor
from cltrain.train.state import State
from serve.resident import MAX_PAUSE_S, ResidentVersions
from tests.serve.conftest import add_version


@pytest.fixture
def resident(registry: Registry) -> Iterator[ResidentVersions]:
    registry.promote("1.0", reason="first")
    resident = ResidentVersions(registry, poll_s=0.02)
    resident.refresh()
    yield resident
    resident.stop()


def serves(resident: ResidentVersions) -> tuple[str, int] | None:
    return (resident.current.version, resident.current.epoch) if resident.current else None


def wait_for(resident: ResidentVersions, wanted: tuple[str, int], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while serves(resident) != wanted or resident.error:
        assert time.monotonic() < end, (serves(resident), resident.error)
        time.sleep(0.01)


def test_champion_and_previous_are_resident_and_a_rollback_loads_nothing(
    resident: ResidentVersions, registry: Registry
) -> None:
    assert serves(resident) == ("1.0", 1)
    assert not resident.refresh()
    first = resident.resident()["1.0"]
    registry.promote("1.1", reason="better")
    assert resident.refresh()
    assert (serves(resident), resident.resident().keys()) == (("1.1", 2), {"1.0", "1.1"})
    registry.rollback(reason="worse")
    assert resident.refresh()
    assert (serves(resident), resident.resident()["1.0"]) == (("1.0", 3), first)


def test_a_new_process_has_the_previous_champion_too(registry: Registry) -> None:
    registry.promote("1.0", reason="first")
    registry.promote("1.1", reason="better")
    resident = ResidentVersions(registry, poll_s=1)
    resident.refresh()
    assert resident.resident().keys() == {"1.0", "1.1"}


@pytest.mark.parametrize("file", ["weights.safetensors", "encoder.json", "state.json", "registered"])
def test_a_version_that_is_not_the_registered_one_leaves_the_old_one_serving(
    resident: ResidentVersions, registry: Registry, store: Store, file: str
) -> None:
    good, bad = registry.version("1.0").state, registry.version("1.1").state
    if file == "registered":  # whole and consistent, but another model's weights
        for name in store.storage.names(good):
            store.storage.write(name.replace(good, bad), store.storage.read(name))
    else:
        name = f"{bad}/{file}"
        kept = store.storage.read(name)
        store.storage.write(name, b"{}" if file == "state.json" else kept[:-1] + bytes([kept[-1] ^ 1]))
    registry.promote("1.1", reason="better")
    assert not resident.refresh()
    assert serves(resident) == ("1.0", 1)
    assert resident.registry_epoch == 2
    assert resident.error
    assert file == "state.json" or resident.error.startswith("DigestError")
    assert resident.resident().keys() == {"1.0"}
    if file not in ("registered",):  # mended, it is taken up without anybody asking
        store.storage.write(name, kept)
        resident.start()
        wait_for(resident, ("1.1", 2))


def test_whoever_is_answered_meanwhile_waits_for_a_piece_of_the_loading_only(
    resident: ResidentVersions, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    rests: list[float] = []
    monkeypatch.setattr("serve.resident.time.sleep", rests.append)
    registry.promote("1.1", reason="better")
    assert resident.refresh()
    assert len(rests) > 5
    assert max(rests) <= MAX_PAUSE_S


def test_a_version_that_answers_nan_is_not_served(
    resident: ResidentVersions, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    of = Predictor.of

    def broken(state: State, device: torch.device) -> Predictor:
        predictor = of(state, device)
        with torch.no_grad():
            for parameter in predictor.model.parameters():
                parameter.fill_(float("nan"))
        return predictor

    monkeypatch.setattr(Predictor, "of", broken)
    registry.promote("1.1", reason="better")
    assert not resident.refresh()
    assert serves(resident) == ("1.0", 1)
    assert "is not served" in str(resident.error)


def test_beside_a_champion_that_is_broken_a_new_process_serves_the_previous_one(
    registry: Registry, store: Store
) -> None:
    registry.promote("1.0", reason="first")
    registry.promote("1.1", reason="better")
    store.storage.write(f"{registry.version('1.1').state}/weights.safetensors", b"broken")
    resident = ResidentVersions(registry, poll_s=1)
    assert resident.refresh()
    assert serves(resident) == ("1.0", 1)
    assert "DigestError" in str(resident.error)


@pytest.mark.parametrize("may", [False, True])
def test_a_challenger_that_reads_what_requests_need_not_have(store: Store, registry: Registry, may: bool) -> None:
    add_version(store, "binary", "binary", 5, wind=[float(i % 7) for i in range(300)])
    registry.promote("1.0", reason="first")
    both = Deployment(roles={"champion": "1.0", "challenger": "2.0"}, shares={"champion": 0.5, "challenger": 0.5})
    Deployments(registry).commit(both, expected_epoch=1, reason="a canary")
    resident = ResidentVersions(registry, poll_s=1, new_features=may)
    resident.refresh()
    assert resident.current is not None
    assert ("challenger" in resident.current.arms) == may
    assert may or "reads wind, which requests to the champion need not have" in resident.problems["2.0"]


def test_a_locked_database_stops_nothing(resident: ResidentVersions, registry: Registry, store: Store) -> None:
    resident.start()
    lock = sqlite3.connect(store.storage.path("registry.db"), isolation_level=None)
    lock.execute("BEGIN EXCLUSIVE")
    time.sleep(0.3)
    assert serves(resident) == ("1.0", 1)
    lock.execute("ROLLBACK")
    lock.close()
    registry.promote("1.1", reason="better")
    wait_for(resident, ("1.1", 2))


def test_a_registry_that_fails_is_reported_and_asked_again(
    resident: ResidentVersions, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    resident.start()
    with monkeypatch.context() as patch:
        patch.setattr(Deployments, "epoch", lambda _: 1 / 0)
        time.sleep(0.2)
        assert "ZeroDivisionError" in str(resident.error)
        assert serves(resident) == ("1.0", 1)
    registry.promote("1.1", reason="better")
    wait_for(resident, ("1.1", 2))


def test_version_and_epoch_always_belong_together(resident: ResidentVersions, registry: Registry) -> None:
    resident.start()
    seen: set[tuple[str, int]] = set()
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            seen.add(serves(resident) or ("", 0))
            time.sleep(0.0005)

    watcher = threading.Thread(target=watch)
    watcher.start()
    last = ("1.0", 1)
    for number in range(30):
        version = "1.1" if number % 2 == 0 else "1.0"
        last = (version, registry.promote(version, reason="flip"))
        if number % 5 == 0:
            wait_for(resident, last)
        time.sleep(0.01)
    wait_for(resident, last)
    over.set()
    watcher.join()
    truth = {(move["new"], move["epoch"]) for move in registry.moves() if move["alias"] == "champion"}
    assert len(seen) > 3
    assert seen <= truth
