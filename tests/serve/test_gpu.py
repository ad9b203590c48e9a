"""Versions that answer on a GPU: what is refused without one, the way of the rows there and back, and a swap on one."""

from __future__ import annotations

import gc
import threading
from datetime import UTC, datetime
from typing import Any

import pytest
import torch

from cltrain.errors import ConfigError, ServingError
from cltrain.records import EVENT_TIME
from cltrain.registry import Registry, Store
from cltrain.train.predictor import Predictor
from serve.local import LocalServing
from serve.resident import ResidentVersions
from serve.server import Server
from serve.settings import ServerSettings

ROWS = [{EVENT_TIME: datetime(2024, 1, 1, tzinfo=UTC), "distance": d, "carrier": "UA"} for d in (200, 900, 1500)]


def test_rows_go_to_the_device_and_answers_come_back(store: Store, registry: Registry) -> None:
    here = Predictor.load(store.storage, registry.version("1.0").state)
    there = Predictor.of(here.state, torch.device("cpu", 0))  # which is another than `cpu`, as a GPU is
    assert there.device != here.device
    assert there.answer(ROWS) == here.answer(ROWS)


@pytest.mark.parametrize("share", [-0.5, 1.5])
def test_a_share_that_cannot_be_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match=r"serve\.num_gpus must be between 0 and 1"):
        LocalServing(num_gpus=share)


@pytest.mark.ray
def test_more_gpus_than_ray_has_are_refused_before_anything_starts(ray_session: object, store: Store) -> None:
    with pytest.raises(ConfigError, match=r"serve\.num_gpus=1 wants 99 GPUs in all"):
        LocalServing(port=0, num_gpus=1, replicas=99).start(store, "binary")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_replica_without_the_gpu_says_what_to_do(store: Store) -> None:
    with pytest.raises(ServingError, match="build of torch for CUDA"):
        Server(ServerSettings(store=store.to_json(), model="binary", device="cuda"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_swap_on_a_gpu_stops_no_answers_and_gives_the_memory_back(store: Store, registry: Registry) -> None:
    expected = {v: Predictor.load(store.storage, registry.version(v).state).answer(ROWS) for v in ("1.0", "1.1")}
    registry.promote("1.0", reason="first")
    resident = ResidentVersions(registry, poll_s=600.0, device=torch.device("cuda"))
    resident.refresh()
    over, seen, wrong = threading.Event(), set[str](), []

    def stream() -> None:
        while not over.is_set():
            served = resident.current
            assert served is not None
            answers: list[Any] = served.predictor.answer(ROWS)
            seen.add(served.version)
            for ours, theirs in zip(answers, expected[served.version], strict=True):
                if ours["probability"] != pytest.approx(theirs["probability"], abs=1e-4):
                    wrong.append((served.version, ours, theirs))

    thread = threading.Thread(target=stream)
    thread.start()
    held = []
    for turn in range(20):
        registry.promote(("1.1", "1.0")[turn % 2], reason="swap")
        resident.refresh()
        resident.refresh()
        gc.collect()
        held.append(torch.cuda.memory_allocated())
    over.set()
    thread.join()
    assert (seen, wrong) == ({"1.0", "1.1"}, [])
    assert max(held[-5:]) <= 1.1 * max(held[:5]), "versions that went away have given their memory back"
