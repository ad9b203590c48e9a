"""The warm group: real Ray Train workers that take one update after another."""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from cltrain.assemble import open_store
from cltrain.cluster.local import LocalRunner
from cltrain.cluster.score import FOLDER
from cltrain.cluster.warm import WarmGroup
from cltrain.data.snapshot import read_rows
from cltrain.errors import UpdateError
from cltrain.evaluate.spread import Rows, ScoreRequest
from cltrain.records import UpdateRequest
from cltrain.storage import Storage
from cltrain.train.state import load_state
from tests.cluster.under_way import EVERY, of_many_steps, standing, train_workers, wait_for_steps

pytestmark = pytest.mark.ray


def test_two_workers_match_one_process_and_stay_warm(ray_session: None, request_of: tuple[UpdateRequest, str]) -> None:
    request, root = request_of
    group = WarmGroup(root=root, workers=2, cpus_per_worker=0.5)
    try:
        with pytest.raises(UpdateError, match="cannot read"):
            group.update(replace(request, number=1, parent="states/nowhere"))
        together = group.update(replace(request, number=2, seed=7))
        again = group.update(replace(request, number=3, seed=7))
        assert_workers_score_as_one_process_does(group, request)
        assert_a_killed_worker_costs_one_interval_at_most(group, replace(of_many_steps(request), number=4))
    finally:
        group.close()
    alone = LocalRunner(root=root).update(replace(request, number=6, seed=7))
    assert together.weights_digest == again.weights_digest
    assert (together.workers, alone.workers) == (2, 1)
    assert together.rows_trained == alone.rows_trained
    storage = open_store({"store": {"root": root, "url": None}, "model": {"name": "default"}}, create=False).storage
    ours, theirs = (load_state(storage, c.state) for c in (together, alone))
    for name, weight in theirs.weights.items():
        assert (ours.weights[name] - weight).abs().max() < 1e-4, name
    fisher = theirs.method.tensors["fisher"]
    assert all((ours.method.tensors["fisher"][n] - f).abs().max() < 1e-4 for n, f in fisher.items())
    assert ours.method.memory.equals(theirs.method.memory)


def assert_workers_score_as_one_process_does(group: WarmGroup, request: UpdateRequest) -> None:
    """Bit for bit, also where one of them is killed meanwhile: the command is done again."""
    assert request.parent is not None
    rows = read_rows(Storage(group.root), request.snapshot.digest).num_rows
    windows = tuple(Rows(window=i, snapshot=request.snapshot.digest, count=rows) for i in range(600))
    few, many = (ScoreRequest(state=request.parent, windows=windows[:count]) for count in (3, len(windows)))
    alone = LocalRunner(root=group.root).score(few)[0]
    with ThreadPoolExecutor(1) as threads:
        found = group.score(few)
        disturbed = threads.submit(group.score, many)
        time.sleep(0.3)
        os.kill(min(train_workers(os.getpid())), signal.SIGKILL)
        found |= disturbed.result(timeout=180)
    assert found.keys() == set(range(len(windows)))
    for column in ("predictions", "target", "losses"):
        assert all(np.array_equal(getattr(one, column), getattr(alone, column)) for one in found.values())
    assert not Storage(group.root).names(FOLDER)


def assert_a_killed_worker_costs_one_interval_at_most(group: WarmGroup, request: UpdateRequest) -> None:
    """kill -9 of one of two: the group restarts, goes on from the last checkpoint, and the bits are those of an update
    that nobody disturbed."""
    seen: list[int] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.005):
            if (found := standing(group.root)) and seen[-1:] != [found["numbers"]["steps"]]:
                seen.append(found["numbers"]["steps"])

    with ThreadPoolExecutor(2) as threads:
        disturbed = threads.submit(group.update, request)
        wait_for_steps(group.root, 3 * EVERY)
        victim = sorted(train_workers(os.getpid()))
        assert len(victim) == 2
        os.kill(victim[1], signal.SIGKILL)
        time.sleep(0.5)  # the other one is stuck by now
        left = standing(group.root)
        assert left is not None
        threads.submit(watch)
        try:
            ours = disturbed.result(timeout=180)
        finally:
            ended.set()
    undisturbed = group.update(replace(request, number=request.number + 1))
    assert left["world"] == 2
    before = left["numbers"]["steps"]
    assert seen[:2] == [before, before + EVERY], "it went on from there"
    assert seen == sorted(seen)
    assert before < ours.steps
    assert ours.weights_digest == undisturbed.weights_digest
    for same in ("workers", "steps", "rows_trained", "rows_replayed", "loss"):
        assert getattr(ours, same) == getattr(undisturbed, same)


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
