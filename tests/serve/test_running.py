"""An application whose driver was killed with kill -9: what it still does alone, and a loop that finds it running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from benchmarks.deployed import post, processes
from cltrain.assemble import run_loop
from cltrain.errors import ConfigError, ServingError
from cltrain.registry import Registry, RoundLog, Store
from cltrain.registry.deployment import Deployments, Trial
from serve.local import get_json
from serve.rollout.controller import begin
from serve.rollout.guardrails import Guardrails
from serve.rollout.releases import Canary
from serve.running import RunningServing
from tests.conftest import overrides_of_table, write_table
from tests.serve import told

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*")]
QUALITY = Guardrails(sustain_s=0.0, max_p99_ratio=None, max_score_shift=None, max_repeat_rate=None)
CANARY = Canary(steps=(0.5,), min_samples=100, min_s=3.0, guardrails=QUALITY)


@dataclass(frozen=True)
class Orphan:
    """The application and the store that it serves; the driver that started it is dead."""

    url: str
    store: Store
    registry: Registry
    settings: Callable[..., dict[str, Any]]
    rows: pa.Table

    @property
    def deployments(self) -> Deployments:
        return Deployments(self.registry)

    def trial(self) -> Trial:
        found = self.deployments.current().roll_out
        assert found is not None
        return found

    def other(self) -> str:
        """A version that is not the champion and was not taken back."""
        champion = self.registry.champion()
        return next(
            v.version
            for v in self.registry.versions()
            if v.version != getattr(champion, "version", "") and self.deployments.refused(v.version) is None
        )


@pytest.fixture(scope="module")
def orphan(
    ray_session: str, settings_of: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Orphan]:
    import ray
    from ray import serve

    folder = tmp_path_factory.mktemp("orphan")
    rows, model = write_table(folder / "events"), f"m{uuid.uuid4().hex}"

    def settings(*overrides: str) -> dict[str, Any]:
        return settings_of(
            *overrides_of_table(folder / "events"),
            "data.time_features=false",
            "tracking=files",
            "cluster.workers=0",
            f"store.root={folder / 'store'}",
            f"model.name={model}",
            "train.stateless.min_steps=60",
            "window.bootstrap=2",
            "gate.floor=10",
            *overrides,
        ) | {"run_dir": str(folder / "run")}

    run_loop(settings("serve=none", "max_rounds=3"))
    store = Store(root=str(folder / "store"))
    told_of = [f"store.root={store.root}", f"hydra.run.dir={folder / 'serve'}", "serve.port=0"]
    told_of += [f"cluster.address={ray.get_runtime_context().gcs_address}", f"serve.alert={told.__name__}.write"]
    told_of += ["serve.log.flush_s=0.05"]
    env = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    driver = subprocess.Popen(
        [sys.executable, "-m", "jobs.serve", *told_of], stdout=subprocess.PIPE, cwd=ROOT, text=True, env=env
    )
    try:
        assert driver.stdout is not None
        line = driver.stdout.readline()
        assert " at http://" in line, line
        driver.send_signal(signal.SIGKILL)
        with driver:
            pass
        yield Orphan(line.partition(" at ")[2].partition(";")[0], store, Registry(store, model), settings, rows)
    finally:
        driver.kill()
        serve.shutdown()
        store.engine.dispose()
        told.place(model).unlink(missing_ok=True)


@contextmanager
def users(on: Orphan, is_right: Callable[[str], bool]) -> Iterator[list[str]]:
    """Two clients that never pause, and their labels: what an arm answers is right, or it is not. Errors, which are
    what the block gets."""
    over, errors = threading.Event(), list[str]()
    rows = [{name: row[name] for name in ("x", "z", "shop")} for row in on.rows.slice(0, 500).to_pylist()]

    def client(number: int) -> None:
        labels: list[dict[str, Any]] = []
        count = number
        while not over.is_set():
            count += 2
            try:
                answer = post(f"{on.url}/predict", {"rows": [{"features": rows[count % len(rows)]}]})
                (one,) = answer["predictions"]
                label = one["label"] if is_right(answer["arm"]) else 1 - one["label"]
                labels.append({"request_id": one["request_id"], "label": label})
                if len(labels) == 20:
                    post(f"{on.url}/feedback", {"rows": labels})
                    labels = []
            except OSError as error:
                errors.append(str(error))

    with ThreadPoolExecutor(2) as pool:
        clients = [pool.submit(client, number) for number in range(2)]
        try:
            yield errors
        finally:
            over.set()
        for one in clients:
            one.result()


def ended(on: Orphan, seconds: float = 60.0) -> Trial:
    end = time.monotonic() + seconds
    while (trial := on.trial()).status == "running":
        assert time.monotonic() < end, get_json(on.url, "/rollouts", 10)
        time.sleep(0.05)
    return trial


def stepped(on: Orphan, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while on.trial().step < 0:
        assert time.monotonic() < end, get_json(on.url, "/rollouts", 10)
        time.sleep(0.02)


def controllers() -> set[int]:
    return {process.pid for process in processes("ServeReplica:controller-of-cltrain")}


def test_guardrails_act_when_the_driver_is_dead(orphan: Orphan) -> None:
    """A canary that is always wrong."""
    champion, bad = orphan.registry.champion(), orphan.other()
    assert champion is not None
    begin(orphan.deployments, CANARY, bad, by="test", reason="try it")
    with users(orphan, lambda arm: arm == "champion") as errors:
        trial = ended(orphan)
    assert (trial.status, trial.version) == ("rolled_back", bad)
    assert "loss increase" in trial.reason
    assert errors == []
    shown = get_json(orphan.url, "/rollouts", 10)
    assert (shown["controller"]["alive"], shown["controller"]["error"], shown["controller"]["replicas"]) == (
        True,
        None,
        1,
    )
    assert orphan.registry.champion() == champion
    end = time.monotonic() + 10
    while not (file := told.place(orphan.registry.model)).exists():
        assert time.monotonic() < end, "nobody was told"
        time.sleep(0.05)
    assert file.read_text().startswith(f"{orphan.registry.model}:{bad} was rolled back. canary: loss increase")


def test_the_controller_is_killed_in_mid_canary_and_another_one_ends_it(orphan: Orphan) -> None:
    version = orphan.other()
    begin(orphan.deployments, CANARY, version, by="test", reason="try it")
    with users(orphan, lambda _: True) as errors:
        stepped(orphan)
        (before,) = controllers()
        os.kill(before, signal.SIGKILL)
        trial = ended(orphan)
    assert (trial.status, trial.step) == ("promoted", 0)
    assert errors == []
    deadline = time.monotonic() + 30
    while (champion := orphan.registry.champion()) is None or champion.stage != "production-validated":
        assert time.monotonic() < deadline, champion
        time.sleep(0.1)
    assert champion.version == version
    assert controllers() - {before}


def test_a_loop_finds_it_running_and_its_users_decide(orphan: Orphan) -> None:
    canary = ["rollout=canary", "rollout.steps=[0.5]", "rollout.min_samples=50", "rollout.min_s=0.5"]
    canary += ["rollout.guardrails.max_p99_ratio=null", "rollout.guardrails.max_score_shift=null"]
    settings = orphan.settings("serve=running", f"serve.url={orphan.url}/", *canary, "max_rounds=4")
    with users(orphan, lambda _: True) as errors:
        run_loop(settings)
    assert errors == []
    last = RoundLog(orphan.store, orphan.registry.model).finished()[-1]
    assert last.roll_out is not None
    assert (last.roll_out.kind, last.roll_out.status) == ("canary", "promoted")
    assert last.roll_out.confirm_s is not None
    assert last.roll_out.evidence["challenger"]["requests"] >= 50
    assert last.served["sent"] == 0, "nothing is replayed"
    assert get_json(orphan.url, "/versions", 10)["champion"] == f"{orphan.registry.model}:{last.roll_out.version}"


def test_what_is_not_the_application_of_this_store_is_refused(orphan: Orphan, tmp_path: Path) -> None:
    quick = RunningServing(url=orphan.url, timeout_s=0.1)
    with pytest.raises(ServingError, match=r"answers for the model m.*, and the loop is of other: start `python -m"):
        quick.start(orphan.store, "other")
    with pytest.raises(ServingError, match=r"no application acts on the roll-outs of .*jobs\.serve store\.root="):
        quick.start(Store(root=str(tmp_path)), orphan.registry.model)
    with pytest.raises(ServingError, match=r"127\.0\.0\.1:1 does not answer as it should .*serve\.url"):
        RunningServing(url="http://127.0.0.1:1", timeout_s=0.1).start(orphan.store, orphan.registry.model)
    quick.start(orphan.store, orphan.registry.model)
    quick.stop()


def test_settings_of_what_runs_are_checked() -> None:
    for url in ("127.0.0.1:8000", "https://ranker", "http://ranker/path"):
        with pytest.raises(ConfigError, match=r"serve\.url must be like http://127\.0\.0\.1:8000"):
            RunningServing(url=url)
    for name in ("timeout_s", "confirm_timeout_s"):
        with pytest.raises(ConfigError, match=rf"serve\.{name}"):
            RunningServing(**{name: 0.0})
