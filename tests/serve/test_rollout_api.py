"""/rollouts, /why and the limits, as a client sees them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from cltrain.registry import Registry, Store
from cltrain.registry.deployment import Deployments
from serve.http.limits import Bucket
from serve.rollout.controller import Controller

Serve = Callable[..., Any]
ROW = {"event_id": "a", "event_time": "2024-01-01T10:00:00Z", "features": {"distance": 900, "carrier": "UA"}}
CANARY = {"version": "1.1", "kind": "canary", "settings": {"steps": [0.5, 1.0]}, "reason": "approved"}


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def test_a_roll_out_is_started_seen_and_ended(serve_store: Serve, store: Store, registry: Registry) -> None:
    registry.promote("1.0", reason="first")
    client = serve_store(store)
    assert client.get("/rollouts").json() == {
        "epoch": 1,
        "roles": {"champion": "binary:1.0"},
        "shares": {"champion": 1.0},
        "running": None,
        "controller": None,
        "history": [],
    }
    started = client.post("/rollouts", json=CANARY)
    assert started.status_code == 200, started.text
    running = started.json()["running"]
    assert (running["version"], running["step"], running["status"], running["share"]) == (
        "binary:1.1",
        -1,
        "running",
        0.0,
    )
    assert client.post("/rollouts", json=CANARY).json()["epoch"] == 2, "the same again changes nothing"
    assert client.post("/rollouts", json={**CANARY, "kind": "shadow", "settings": {}}).status_code == 409
    controller = Controller(registry, replicas=1)

    def staged() -> bool:
        controller.look()
        return client.get("/rollouts").json()["running"]["step"] == 0

    until(staged)
    until(lambda: client.get("/versions").json()["epoch"] == 3)
    answers = [client.post("/predict", json={**ROW, "event_id": f"e{i}"}) for i in range(20)]
    assert {a.headers["x-cltrain-arm"] for a in answers} == {"champion", "challenger"}
    assert all(a.headers["x-cltrain-version"] == a.json()["version"] for a in answers)
    sticky = [client.post("/predict", json={**ROW, "event_id": f"e{i}", "unit_id": "u1"}).json() for i in range(5)]
    assert len({a["version"] for a in sticky}) == 1
    controller.look()
    assert client.get("/rollouts").json()["running"]["share"] == 0.5

    wrong = client.post("/rollouts/halt", json={"reason": "enough", "id": "another"})
    assert (wrong.status_code, "not another" in wrong.json()["detail"]) == (409, True)
    halted = client.post("/rollouts/halt", json={"reason": "enough"}).json()
    assert (halted["running"], halted["history"][0]["status"]) == (None, "stopped")
    assert client.post("/rollouts/halt", json={"reason": "enough"}).status_code == 409
    client.post("/rollouts", json=CANARY)
    assert client.post("/rollback", json={"reason": "stop it"}).json()["version"] == "binary:1.0"
    client.post("/rollouts", json=CANARY)
    promoted = client.post("/rollouts/promote", json={"reason": "now"}).json()
    assert (promoted["roles"]["champion"], promoted["history"][0]["status"]) == ("binary:1.1", "promoted")
    assert [one["status"] for one in promoted["history"]] == ["promoted", "stopped", "stopped"]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({**CANARY, "version": "9.9"}, 404, "no version"),
        ({**CANARY, "version": "1.0"}, 409, "champion already"),
        ({**CANARY, "kind": "blue"}, 422, "kind must be"),
        ({**CANARY, "settings": {"steps": [2.0]}}, 422, "rollout.steps"),
        ({**CANARY, "settings": {"guardrails": {"_target_": "os.getcwd"}}}, 422, "_target_"),
        ({**CANARY, "expected_epoch": 7}, 409, "epoch 1, not 7"),
        ({"version": "1.1"}, 422, "kind"),
    ],
)
def test_what_is_wrong_changes_nothing(
    serve_store: Serve, store: Store, registry: Registry, body: dict[str, Any], status: int, words: str
) -> None:
    registry.promote("1.0", reason="first")
    client = serve_store(store)
    answer = client.post("/rollouts", json=body)
    assert (answer.status_code, words in answer.json()["detail"]) == (status, True), answer.text
    assert Deployments(registry).epoch() == 1


def test_admin_routes_want_the_token(serve_store: Serve, store: Store, registry: Registry) -> None:
    registry.promote("1.0", reason="first")
    client = serve_store(store)
    for path, body in (("", CANARY), ("/halt", {"reason": "x"}), ("/promote", {"reason": "x"})):
        assert client.post(f"/rollouts{path}", json=body, headers={"authorization": "Bearer no"}).status_code == 401
    assert client.get("/rollouts", headers={"authorization": ""}).status_code == 200


def test_a_version_that_was_altered_is_not_rolled_out(serve_store: Serve, store: Store, registry: Registry) -> None:
    registry.promote("1.0", reason="first")
    client = serve_store(store)
    store.storage.write(f"{registry.version('1.1').state}/weights.safetensors", b"not these")
    answer = client.post("/rollouts", json=CANARY)
    assert (answer.status_code, "altered" in answer.json()["detail"]) == (409, True)
    assert client.get("/rollouts").json()["running"] is None


def test_why_tells_what_the_log_knows(serve_store: Serve, store: Store, registry: Registry) -> None:
    registry.promote("1.0", reason="first")
    client = serve_store(store)
    answer = client.post("/predict", json={**ROW, "unit_id": "u1"}).json()
    (asked,) = answer["predictions"]
    until(lambda: client.get(f"/why/{asked['request_id']}").status_code == 200)
    why = client.get(f"/why/{asked['request_id']}").json()
    assert why["features"] == ROW["features"]
    assert (why["version"], why["epoch"], why["arm"], why["unit_id"], why["propensity"]) == (
        "binary:1.0",
        1,
        "champion",
        "u1",
        1.0,
    )
    assert why["prediction"] == asked["probability"]
    unknown = client.get("/why/unknown")
    assert (unknown.status_code, "100% are logged" in unknown.json()["detail"]) == (404, True)


def test_bodies_and_rates_are_limited(serve_store: Serve, store: Store, registry: Registry) -> None:
    registry.promote("1.0", reason="first")
    client = serve_store(store, max_body_bytes=300, max_requests_per_s=5.0)
    assert client.post("/predict", json=ROW).status_code == 200
    assert client.post("/predict", json={**ROW, "event_id": "x" * 300}).status_code == 413

    async def chunks() -> Any:
        for _ in range(5):
            yield json.dumps(ROW).encode()

    streamed = client.post("/predict", content=chunks(), headers={"content-type": "application/json"})
    assert (streamed.status_code, "300 bytes" in streamed.json()["detail"]) == (413, True)
    refused = [client.post("/predict", json=ROW).status_code for _ in range(20)]
    assert 429 in refused
    assert client.get("/healthz").status_code == 200


def test_a_bucket_fills_again() -> None:
    now = 0.0
    bucket = Bucket(10.0, clock=lambda: now)
    assert [bucket.take() for _ in range(11)] == [True] * 10 + [False]
    now = 0.2
    assert [bucket.take() for _ in range(3)] == [True, True, False]
