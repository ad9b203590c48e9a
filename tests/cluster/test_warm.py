"""The warm group: real Ray Train workers that take one update after another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cltrain.assemble import open_store, run_loop
from cltrain.cluster.local import LocalRunner
from cltrain.cluster.warm import WarmGroup
from cltrain.errors import UpdateError
from cltrain.records import UpdateRequest
from cltrain.registry import Registry
from cltrain.train.state import load_state

pytestmark = pytest.mark.ray


@pytest.fixture
def request_of(small: Callable[..., dict[str, Any]]) -> tuple[UpdateRequest, str]:
    """The request of a stateful update from version 1.0, and the root of its store."""
    settings = small("max_rounds=2", "window.bootstrap=2")
    run_loop(settings)
    store = open_store(settings)
    made = Registry(store, "default").version("1.1").challenger
    parts = {key: settings[key] for key in ("model", "method", "train")}
    request = UpdateRequest(
        number=2,
        kind="stateful",
        parent=made.parent,
        snapshot=made.snapshot,
        cursor=made.cursor,
        seed=made.seed,
        task="binary",
        settings=parts,
    )
    return request, str(Path(store.root).absolute())


def test_two_workers_match_one_process_and_stay_warm(ray_session: None, request_of: tuple[UpdateRequest, str]) -> None:
    request, root = request_of
    group = WarmGroup(root=root, workers=2, cpus_per_worker=0.5)
    try:
        with pytest.raises(UpdateError, match="cannot read"):
            group.update(replace(request, number=1, parent="states/nowhere"))
        together = group.update(replace(request, number=2, seed=7))
        again = group.update(replace(request, number=3, seed=7))
    finally:
        group.close()
    alone = LocalRunner(root=root).update(replace(request, number=4, seed=7))
    assert together.weights_digest == again.weights_digest
    assert together.rows_trained == alone.rows_trained
    storage = open_store({"store": {"root": root, "url": None}, "model": {"name": "default"}}, create=False).storage
    ours, theirs = (load_state(storage, c.state) for c in (together, alone))
    for name, weight in theirs.weights.items():
        assert (ours.weights[name] - weight).abs().max() < 1e-4, name
    fisher = theirs.method.tensors["fisher"]
    assert all((ours.method.tensors["fisher"][n] - f).abs().max() < 1e-4 for n, f in fisher.items())
    assert ours.method.memory.equals(theirs.method.memory)


def test_an_idle_group_lets_go_and_the_next_update_starts_it_again(
    ray_session: None, request_of: tuple[UpdateRequest, str]
) -> None:
    request, root = request_of
    group = WarmGroup(root=root, workers=1, cpus_per_worker=0.5, idle_s=0.5)
    try:
        first = group.update(replace(request, number=2))
        assert group._fit is not None
        group._fit.result(timeout=30)
        second = group.update(replace(request, number=3))
    finally:
        group.close()
    assert first.weights_digest == second.weights_digest == LocalRunner(root=root).update(request).weights_digest
