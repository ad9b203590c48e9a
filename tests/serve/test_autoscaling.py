"""More replicas while there is more to do, in the middle of a canary: no request fails, and no stand-in is judged."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pytest

from benchmarks.deployed import post
from cltrain.errors import ConfigError
from cltrain.registry import Registry, Store
from cltrain.registry.deployment import Deployments
from serve.control import read_note
from serve.local import LocalServing, get_json
from serve.proxy import ENVIRONMENT
from serve.resident import ResidentVersions
from serve.rollout.controller import Controller, begin, end
from serve.rollout.guardrails import Guardrails
from serve.rollout.machine import Action
from serve.rollout.releases import Canary
from serve.server import Server
from serve.settings import ServerSettings

LENIENT = Guardrails(max_p99_ratio=None, max_score_shift=None, max_repeat_rate=None)
CANARY = Canary(steps=(0.5, 1.0), min_samples=1_000_000, guardrails=LENIENT)


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*")
def test_load_in_mid_canary_brings_a_replica_that_takes_part(
    ray_session: object,
    store: Store,
    registry: Registry,
    events: Callable[..., pa.Table],
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, Any], None],
) -> None:
    monkeypatch.setitem(ENVIRONMENT, "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S", "0.5")  # and not 10
    registry.promote("1.0", reason="first")
    deployments = Deployments(registry)
    serving = LocalServing(port=0, max_replicas=2, target_ongoing_requests=0.5, upscale_delay_s=0.5)
    rows = [{k: row[k] for k in ("distance", "carrier")} for row in events().to_pylist()]
    over = threading.Event()

    def client(number: int) -> list[dict[str, Any]]:
        answers: list[dict[str, Any]] = []
        while not over.is_set():
            body = {"rows": [{"features": rows[(number + len(answers)) % len(rows)]}]}
            answers.append(post(f"{serving.url}/predict", body))
        return answers

    serving.start(store, "binary")
    started = time.monotonic()
    try:
        begin(deployments, CANARY, "1.1", by="test", reason="try it")
        with ThreadPoolExecutor(4) as pool:
            clients = [pool.submit(client, number) for number in range(4)]
            try:
                deadline = started + 90
                while (note := read_note(store.storage, "binary")) is None or note.replicas < 2:
                    assert time.monotonic() < deadline, "no replica was added"
                    time.sleep(0.1)
                record_property("scaled_s", time.monotonic() - started)
                seen: dict[str, Any] = {}
                while len(seen) < 2:
                    assert time.monotonic() < deadline, "the second replica answers nobody"
                    one = get_json(str(serving.url), "/versions", 10)
                    seen[one["replica"]] = {held["version"] for held in one["resident"]}
                done = end(deployments, Action("promote", "enough"), by="test")
                record_property("confirm_s", serving.confirm("1.1", done.epoch))
            finally:
                over.set()
            answers = [answer for one in clients for answer in one.result()]
    finally:
        serving.stop()
    assert list(seen.values()) == [{"binary:1.0", "binary:1.1"}] * 2
    assert not any(answer.get("stands_in") for answer in answers)
    in_canary = [a for a in answers if a["epoch"] < done.epoch]
    assert {(a["arm"], a["version"]) for a in in_canary} == {
        ("champion", "binary:1.0"),
        ("challenger", "binary:1.1"),
    }


def test_a_replica_that_starts_in_mid_canary_and_cannot_load_it_ends_it(
    store: Store, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.promote("1.0", reason="first")
    settings = ServerSettings(store=store.to_json(), model="binary", poll_s=600.0, evidence_s=600.0)
    first, controller, deployments = Server(settings), Controller(registry, replicas=1), Deployments(registry)
    begin(deployments, CANARY, "1.1", by="test", reason="try it")

    def look() -> str:
        for server in servers:
            server.resident.refresh()
            server.recorder.publish()
        action = controller.look()
        return action.do if action else "over"

    servers = [first]
    try:
        assert look() == "step"
        assert look() == "hold"
        load = ResidentVersions._load

        def broken(self: ResidentVersions, record: Any) -> Any:
            if record.version == "1.1":
                raise OSError("no space left on this machine")
            return load(self, record)

        monkeypatch.setattr(ResidentVersions, "_load", broken)
        servers.append(Server(settings))
        assert look() == "roll_back"
        assert "no space left on this machine" in deployments.trials()[-1].reason
    finally:
        for server in servers:
            server.close()


def test_replicas_that_serve_says_are_there_must_have_it(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    from serve.control import Control

    counted = iter([1, 2, 4, 0, 3])
    monkeypatch.setattr("serve.control.live_replicas", lambda: next(counted))
    control = Control(store=registry.store.to_json(), model="binary", replicas=2)
    control.close()
    found = []
    for _ in range(5):
        control._count()
        found.append(control._replicas)
    assert found == [2, 2, 4, 4, 3]


def test_settings_of_autoscaling_are_checked() -> None:
    assert LocalServing(replicas=2)._autoscaling() is None
    with pytest.raises(ConfigError, match=r"serve\.max_replicas must be serve\.replicas=2 or more"):
        LocalServing(replicas=2, max_replicas=1)
    with pytest.raises(ConfigError, match=r"serve\.target_ongoing_requests"):
        LocalServing(target_ongoing_requests=0.0)
    with pytest.raises(ConfigError, match=r"serve\.upscale_delay_s"):
        LocalServing(upscale_delay_s=-1.0)
