"""Rows scored by workers: the bits of one process, whatever the number of workers, and nothing left behind."""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from cltrain.assemble import open_store, run_evaluation, run_loop
from cltrain.cluster import Cluster
from cltrain.cluster.execute import obey
from cltrain.cluster.local import LocalRunner
from cltrain.cluster.score import FOLDER, gather, score_payload
from cltrain.data.snapshot import read_rows
from cltrain.errors import UpdateError
from cltrain.evaluate.spread import Rows, ScoreRequest
from cltrain.records import Json, UpdateRequest, to_json
from cltrain.registry import Registry, Store
from cltrain.storage import Storage
from cltrain.train.predictor import Predictor


@pytest.fixture
def asked(request_of: tuple[UpdateRequest, str], monkeypatch: pytest.MonkeyPatch) -> tuple[ScoreRequest, str]:
    """Rows of two windows, of the second one not the first: blocks are small, so that there are many."""
    update, root = request_of
    monkeypatch.setattr("cltrain.evaluate.spread.BLOCK_ROWS", 32)
    monkeypatch.setattr("cltrain.batch.PASS_BYTES", 1)
    known = read_rows(Storage(root), update.snapshot.digest).num_rows
    assert update.parent is not None
    rows = (
        Rows(window=3, snapshot=update.snapshot.digest, count=known),
        Rows(window=4, snapshot=update.snapshot.digest, count=150, start=64),
    )
    return ScoreRequest(state=update.parent, windows=rows), root


@pytest.mark.parametrize("world", [1, 2, 3, 40])
def test_any_number_of_workers_gives_the_bits_of_one_process(asked: tuple[ScoreRequest, str], world: int) -> None:
    request, root = asked
    storage = Storage(root)
    payload = score_payload(request, root, threads=1)
    found = gather(storage, request, [obey(payload, rank, world) for rank in range(world)])
    whole = LocalRunner(root=root).score(request)
    rows = read_rows(storage, request.windows[0].snapshot)
    plain = Predictor.load(storage, request.state).score(rows)
    for column in ("predictions", "target", "losses"):
        assert np.array_equal(getattr(found[3], column), getattr(plain, column)), "bit by bit"
        assert all(np.array_equal(getattr(found[i], column), getattr(whole[i], column)) for i in (3, 4))
    assert (found[3].task, len(found[4])) == ("binary", 150 - 64)
    assert not storage.names(FOLDER)
    assert not Path(root, FOLDER).exists() or not list(Path(root, FOLDER).iterdir())


def test_doing_it_again_gives_the_same_and_a_lost_share_is_noticed(asked: tuple[ScoreRequest, str]) -> None:
    request, root = asked
    storage = Storage(root)
    payload = score_payload(request, root, threads=1)
    obey(payload, 0, 3)  # by a worker that was lost; the group comes back smaller
    results = [obey(payload, rank, 2) for rank in range(2)]
    assert [obey(payload, rank, 2) for rank in range(2)] == results
    with pytest.raises(UpdateError, match="left out rows of window 3"):
        gather(storage, request, results[1:])
    results[1] = obey(payload, 1, 2)
    assert len(gather(storage, request, results)[3]) == request.windows[0].count


def test_rows_that_are_not_those_of_the_driver_are_refused(asked: tuple[ScoreRequest, str]) -> None:
    request, root = asked
    wrong = Rows(window=3, snapshot=request.windows[0].snapshot, count=100_000)
    with pytest.raises(UpdateError, match=r"100000 rows of snapshot .* are to be scored"):
        LocalRunner(root=root).score(ScoreRequest(state=request.state, windows=(wrong,)))


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> list[ScoreRequest]:
    """Two workers of this process, and a clock by which scoring takes so long that they are asked; what they were."""
    monkeypatch.setattr("cltrain.evaluate.spread.time", SimpleNamespace(perf_counter=itertools.count(1, 100).__next__))
    monkeypatch.setattr(LocalRunner, "workers", 2)
    seen: list[ScoreRequest] = []
    score = LocalRunner.score
    monkeypatch.setattr(LocalRunner, "score", lambda self, request: (seen.append(request), score(self, request))[1])
    return seen


def cards(settings: dict[str, Any]) -> list[Json]:
    """Of all versions, without what a stopwatch measured."""
    registry = Registry(open_store(settings), "default")
    found = [to_json(registry.card(version.version)) for version in registry.versions()]
    return [{name: part for name, part in card.items() if not name.endswith("latency_ms")} for card in found]


def test_a_loop_has_the_same_cards_with_workers(
    small: Callable[..., dict[str, Any]], tmp_path: Path, slow: list[ScoreRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, alone = (small("max_rounds=5", f"store.root={tmp_path / name}") for name in ("shared", "alone"))
    run_loop(shared)
    assert slow
    assert {rows.window for request in slow for rows in request.windows} >= {3, 4}
    asked = len(slow)
    monkeypatch.setattr(LocalRunner, "workers", 1)
    run_loop(alone)
    assert len(slow) == asked, "one worker is no help"
    assert cards(shared) == cards(alone)


def test_the_evaluation_job_starts_workers_only_for_much(
    small: Callable[..., dict[str, Any]], tmp_path: Path, slow: list[ScoreRequest], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalRunner, "workers", 1)
    run_loop(small("max_rounds=5"))
    settings = small("version=1.1", "against=1.0", job="evaluate")
    here = run_evaluation(settings)
    assert not slow
    started: list[str] = []

    @contextlib.contextmanager
    def runner(self: Cluster, store: Store, engine: Json | None = None) -> Iterator[LocalRunner]:
        started.append("workers")
        yield LocalRunner(root=str(store.to_json()["root"]))
        started.append("gone")

    monkeypatch.setattr(Cluster, "session", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(Cluster, "runner", runner)
    two = settings | {"cluster": settings["cluster"] | {"workers": 2}}
    assert run_evaluation(two)["card"]["transfer"] == here["card"]["transfer"], "all of it is known: nobody is asked"
    assert not started
    shutil.rmtree(tmp_path / "store" / "cache" / "predictions")
    there = run_evaluation(two)
    assert started == ["workers", "gone"]
    assert {request.state for request in slow} == {
        v.state for v in Registry(open_store(settings), "default").versions()[:2]
    }
    assert there["card"]["comparisons"] == here["card"]["comparisons"]
    assert there["card"]["transfer"] == here["card"]["transfer"]
