"""Kill -9: of a replica, of Serve's controller, of whoever promotes, and of a whole head, all at once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from benchmarks.deployed import MODEL, Deployed, add_versions, make_rows, post, processes
from benchmarks.load import Asked, Clients
from cltrain.registry import Registry, Store
from cltrain.registry.deployment import Deployments
from serve.local import LocalServing, get_json
from serve.logs.feedback import read_feedback
from serve.logs.prediction_log import read_predictions
from serve.settings import LogSettings

ROOT = Path(__file__).resolve().parents[2]
SLOW = {"_target_": "benchmarks.deployed.SlowNet", "hidden": [8], "sleep_s": 0.05}
ignore_ray = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*")


@pytest.fixture(scope="module")
def app(ray_session: object, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    """Two replicas that take 50 ms to answer a request; 1.0 was champion at first and is not any more."""
    store = Store(root=str(tmp_path_factory.mktemp("kill") / "store"))
    versions = add_versions(store, 3, rows=100, **SLOW)
    registry = Registry(store, MODEL)
    registry.promote(versions[0], reason="first")
    serving = LocalServing(port=0, replicas=2, log=LogSettings(flush_s=0.05))
    serving.start(store, MODEL)
    try:
        serving.confirm(versions[1], registry.promote(versions[1], reason="after the deployment"))
        yield Deployed(store, registry, serving, versions)
    finally:
        serving.stop()
        store.engine.dispose()


async def _hammer(
    app: Deployed, strike: Callable[[Clients], Any], over: Callable[[], bool]
) -> tuple[list[Asked], set[str]]:
    """Eight clients that never pause, the last answers' labels as feedback, and `strike` in between, until `over`; all
    that was asked, and the events whose feedback was acknowledged."""
    acknowledged: set[str] = set()
    stopped = asyncio.Event()
    async with Clients(app.url, make_rows(8)) as clients:

        async def send_labels() -> None:
            known = 0
            while not stopped.is_set():
                await asyncio.sleep(0.05)
                answered = [one for one in clients.asked if one.event_id]
                rows = [{"event_id": one.event_id, "label": 1} for one in answered[known:]]
                known = len(answered)
                if rows:
                    done = await asyncio.to_thread(post, f"{app.url}/feedback", {"rows": rows})
                    assert sum(done.values()) == len(rows)
                    acknowledged.update(row["event_id"] for row in rows)

        async def ask() -> None:
            end = time.monotonic() + 40
            while not stopped.is_set():
                await clients.closed_loop(0.5, at_once=8)
                if over() or time.monotonic() > end:
                    stopped.set()

        async with asyncio.TaskGroup() as group:
            group.create_task(ask())
            group.create_task(send_labels())
            await asyncio.sleep(0.5)
            await asyncio.to_thread(strike, clients)
    return clients.asked, acknowledged


@pytest.mark.ray
@ignore_ray
def test_a_replica_is_killed_with_requests_in_flight(
    app: Deployed, record_property: Callable[[str, Any], None]
) -> None:
    before = app.replicas()
    assert len(before) == 2
    in_flight: list[int] = []

    def strike(clients: Clients) -> None:
        in_flight.append(sum(not one.done for one in clients.asked))
        os.kill(next(iter(before)), signal.SIGKILL)

    def restarted() -> bool:
        return len(_loggers(app)) == 3  # the two of before, and the new one, which has answered

    asked, acknowledged = asyncio.run(_hammer(app, strike, restarted))
    record_property("requests", len(asked))
    assert in_flight[0] >= 4
    assert [one.error for one in asked if one.error] == []
    assert len({one.event_id for one in asked}) == len(asked)
    assert {(one.version, one.epoch) for one in asked} == {(f"{MODEL}:{app.versions[1]}", 2)}

    assert len(_loggers(app)) == 3
    assert set(read_predictions(app.store.storage)["version"].to_pylist()) == {app.versions[1]}
    labelled = set(read_feedback(app.store.storage)["event_id"].to_pylist())
    assert acknowledged
    assert acknowledged <= labelled


def _loggers(app: Deployed) -> set[str]:
    """The replicas that have logged an answer."""
    names = app.store.storage.names("predictions")
    return {name.partition("-")[0] for name in names if name.endswith(".arrow")}


@pytest.mark.ray
@ignore_ray
def test_serves_controller_is_killed_and_versions_still_change(app: Deployed) -> None:
    (controller,) = processes("ServeController")
    replicas = app.replicas().keys()

    def strike(_: Clients) -> None:
        controller.kill()
        app.serving.confirm(app.versions[2], app.registry.promote(app.versions[2], reason="without a controller"))

    def restarted() -> bool:
        return bool(processes("ServeController"))

    asked, _ = asyncio.run(_hammer(app, strike, restarted))
    assert [one.error for one in asked if one.error] == []
    epochs = [one.epoch for one in sorted(asked, key=lambda one: one.done)]
    assert (epochs[0], epochs[-1]) == (2, 3)
    assert app.replicas().keys() == replicas


PROMOTER = """
import os, signal, sys
from sqlalchemy import event
from cltrain.registry import Store
from serve.server import Server
from serve.settings import ServerSettings

def die(*_, **__): os.kill(os.getpid(), signal.SIGKILL)

root, model, version = sys.argv[1:4]
for moment in sys.argv[4:]:
    if (child := os.fork()) == 0:
        server = Server(ServerSettings(store=Store(root=f"{root}/{moment}").to_json(), model=model))
        if moment == "staged":
            server.registry.promote = die
        elif moment == "committing":
            event.listen(server.registry.store.engine, "commit", die)
        else:
            server.resident.wake = die
        server.promote(version, "killed on the way", None)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    print(moment, os.WIFSIGNALED(status), flush=True)
"""


def test_a_promoter_is_killed_and_the_promotion_is_done_or_undone(template: Path, tmp_path: Path) -> None:
    moments = {"staged": ("1.0", 1), "committing": ("1.0", 1), "committed": ("1.1", 2)}
    for moment in moments:
        shutil.copytree(template, tmp_path / moment)
        store = Store(root=str(tmp_path / moment))
        Registry(store, "binary").promote("1.0", reason="first")
        store.engine.dispose()
    code = [sys.executable, "-c", textwrap.dedent(PROMOTER), str(tmp_path), "binary", "1.1", *moments]
    done = subprocess.run(code, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [word for moment in moments for word in (moment, "True")]

    for moment, (champion, epoch) in moments.items():
        store = Store(root=str(tmp_path / moment))
        registry = Registry(store, "binary")
        now = Deployments(registry).current()
        assert (now.champion, now.epoch) == (champion, epoch), moment
        assert registry.verify_audit().intact
        registry.promote("1.1", reason="again")  # nothing is locked, and doing it again is done once
        now = Deployments(registry).current()
        assert (now.champion, now.epoch >= epoch) == ("1.1", True)
        store.engine.dispose()


@pytest.mark.slow
@pytest.mark.ray
def test_a_whole_head_is_killed_and_the_registry_says_what_serves(
    store: Store, registry: Registry, tmp_path: Path
) -> None:
    registry.promote("1.0", reason="first")
    settings = ("model.name=binary", "serve.port=0", "cluster.num_cpus=1", "cluster.dashboard=false")
    told = [
        sys.executable,
        "-m",
        "jobs.serve",
        f"store.root={store.root}",
        f"hydra.run.dir={tmp_path / 'run'}",
        *settings,
    ]
    url, job = _served(told)
    try:
        label = {"rows": [{"event_id": "e1", "label": 1}]}
        assert post(f"{url}/feedback", label) == {"stored": 1, "duplicates": 0}
        epoch = registry.promote("1.1", reason="after the deployment")
    finally:
        _kill_all(job)
    url, job = _served(told)
    try:
        first = get_json(url, "/versions", 5)
        assert (first["champion"], first["epoch"]) == ("binary:1.1", epoch)
        assert post(f"{url}/feedback", label) == {"stored": 0, "duplicates": 1}
    finally:
        _kill_all(job)
    assert read_feedback(store.storage)["event_id"].to_pylist() == ["e1"]


def _served(told: list[str]) -> tuple[str, subprocess.Popen[str]]:
    """The address of a job that serves, and its process."""
    env = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    job = subprocess.Popen(told, stdout=subprocess.PIPE, cwd=ROOT, text=True, env=env)
    assert job.stdout is not None
    line = job.stdout.readline()
    assert " at http://" in line, line
    return line.partition(" at ")[2].partition(";")[0], job


def _kill_all(job: subprocess.Popen[str]) -> None:
    """The job, the head that it started and all of its workers, without a word of farewell."""
    everyone = [*psutil.Process(job.pid).children(recursive=True), psutil.Process(job.pid)]
    for process in everyone:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(everyone, timeout=10)
    with job:
        pass
