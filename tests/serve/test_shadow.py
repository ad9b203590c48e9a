"""A shadow in a process of its own: what it is given, what it costs, and what it reports."""

from __future__ import annotations

import io
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pytest

from cltrain.records import EVENT_TIME
from cltrain.registry import Registry, Store
from cltrain.registry.deployment import Deployments
from serve.http.schemas import PredictRow
from serve.logs.prediction_log import SHADOW_FOLDER, read_predictions
from serve.rollout import Shadow
from serve.rollout.controller import Controller, begin
from serve.rollout.evidence import Counters
from serve.rollout.guardrails import Guardrails
from serve.rollout.shadow_worker import answer_copies
from serve.server import Server
from serve.settings import LogSettings, ServerSettings

KIND = Shadow(min_samples=30, min_s=0.0, guardrails=Guardrails(sustain_s=0.0, max_score_shift=None))


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


@pytest.fixture
def server(store: Store, registry: Registry) -> Iterator[Server]:
    registry.promote("1.0", reason="first")
    told = ServerSettings(
        store=store.to_json(),
        model="binary",
        poll_s=600.0,
        evidence_s=600.0,
        shadow_capacity=20,
        log=LogSettings(flush_s=0.02),
    )
    server = Server(told)
    yield server
    server.close()


def counters(server: Server) -> Counters:
    return server.recorder._sheets[-1].arm("challenger")


def test_a_shadow_is_compared_shed_and_started_again_while_live_answers_go_on(
    server: Server, store: Store, registry: Registry, events: Callable[..., pa.Table]
) -> None:
    rows = [
        PredictRow(event_id=r["_event_id"], features={k: r[k] for k in ("distance", "carrier")})
        for r in events(rows=200).to_pylist()
    ]
    alone = [server.predict([row])["predictions"][0]["probability"] for row in rows[:40]]
    deployments, controller = Deployments(registry), Controller(registry, replicas=1)
    begin(deployments, KIND, "1.1", by="test", reason="try")

    def look() -> Any:
        server.resident.refresh()
        server.recorder.publish()
        return controller.look()

    assert look().do == "hold"
    until(lambda: server.shadow._process is not None and server.shadow._process.staged)
    assert look().to == 0
    server.resident.refresh()

    answers = [server.predict([row]) for row in rows[:15]]
    until(lambda: counters(server).compared == 15)
    assert [a["predictions"][0]["probability"] for a in answers] == alone[:15], "the client's answer is the champion's"
    assert {(a["arm"], a["version"]) for a in answers} == {("champion", "binary:1.0")}

    process = server.shadow._process
    assert process is not None
    assert process._child is not None
    pid = process._child.pid
    assert os.sched_getscheduler(pid) == os.SCHED_IDLE
    os.kill(pid, signal.SIGSTOP)  # as slow as can be
    started = time.perf_counter()
    assert len([server.predict([row]) for row in rows[:60]]) == 60
    assert time.perf_counter() - started < 5
    assert counters(server).shed >= 60 - 20 - 1
    os.kill(pid, signal.SIGKILL)
    until(lambda: counters(server).crashes == 1 and bool(process._ready))
    shed = counters(server).shed
    assert [server.predict([row])["predictions"][0]["probability"] for row in rows[:20]] == alone[:20]
    until(lambda: counters(server).compared == 35)
    assert counters(server).shed == shed

    assert look().do == "promote"
    trial = deployments.trials()[-1]
    assert (trial.status, registry.champion().version) == ("promoted", "1.1")  # type: ignore[union-attr]
    assert trial.evidence["challenger"]["agreement"] == pytest.approx(
        counters(server).agreed / counters(server).compared
    )
    assert "agrees with the champion" in trial.reason
    server.resident.refresh()
    assert server.shadow._process is None
    until(lambda: read_predictions(store.storage, "binary", SHADOW_FOLDER).num_rows >= 30)
    live = {row["request_id"]: row for row in read_predictions(store.storage, "binary").to_pylist()}
    for row in read_predictions(store.storage, "binary", SHADOW_FOLDER).to_pylist():
        assert (row["version"], row["arm"]) == ("1.1", "shadow")
        assert live[row["request_id"]]["version"] == "1.0"


def talk(store: Store, *messages: Any) -> list[Any]:
    """What the process says to messages, without one."""
    told = {"store": store.to_json(), "model": "binary", "version": "1.1", "device": "cpu", "again": False}
    source, sink = io.BytesIO("".join(f"{json.dumps(m)}\n" for m in (told, *messages)).encode()), io.BytesIO()
    answer_copies(source, sink)
    return [json.loads(line) for line in sink.getvalue().splitlines()]


def test_a_copy_that_has_waited_too_long_is_shed(
    store: Store, registry: Registry, events: Callable[..., pa.Table]
) -> None:
    registry.promote("1.0", reason="first")
    told = ServerSettings(store=store.to_json(), model="binary", poll_s=600.0, evidence_s=600.0, shadow_max_age_s=1e-9)
    server, controller = Server(told), Controller(registry, replicas=1)
    begin(Deployments(registry), KIND, "1.1", by="test", reason="try")
    server.resident.refresh()
    until(lambda: server.shadow._process is not None and server.shadow._process.staged)
    server.recorder.publish()
    action = controller.look()
    assert action is not None
    assert action.to == 0
    server.resident.refresh()
    for row in events(rows=5).to_pylist():
        server.predict([PredictRow(event_id=row["_event_id"], features={"distance": row["distance"]})])
    until(lambda: counters(server).shed == 5)
    assert counters(server).compared == 0
    server.close()


def test_a_shadow_that_cannot_be_loaded_says_why(store: Store, registry: Registry) -> None:
    def asked(*distances: Any) -> list[list[dict[str, Any]]]:
        return [[{EVENT_TIME: "2024-01-01T00:00:00+00:00", "distance": one}] for one in distances]

    hello, three, one, (failed, *others) = talk(store, asked(500, 900, 1300), asked(900), asked("far", 900, "near"))
    assert hello["problem"] is None
    assert [(len(said["answers"]), said["alone"], said["error"]) for said in three] == [
        (1, True, None),
        (1, False, None),
        (1, False, None),
    ]
    assert three[1]["answers"][0]["probability"] == pytest.approx(one[0]["answers"][0]["probability"], abs=1e-6)
    assert (failed["answers"], "DataError" in failed["error"]) == (None, True)
    assert [(said["answers"] is None, said["alone"]) for said in others] == [(False, True), (True, True)]
    store.storage.write(f"{registry.version('1.1').state}/weights.safetensors", b"altered")
    (hello,) = talk(store)
    assert hello["problem"].startswith("DigestError")
