"""The application in this process, as a client sees it."""

import hashlib
import json
import time
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
import torch

from cltrain.records import EVENT_TIME
from cltrain.registry import Registry, Store
from cltrain.train.predictor import Predictor
from serve.logs.feedback import join_feedback, read_feedback
from serve.logs.prediction_log import read_predictions
from serve.settings import LogSettings

Serve = Callable[..., Any]
ROW = {"event_id": "a", "event_time": "2024-01-01T10:00:00Z", "features": {"distance": 900, "carrier": "UA"}}


def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def test_without_a_champion_it_lives_but_is_not_ready(serve_store: Serve, store: Store, registry: Registry) -> None:
    client = serve_store(store)
    assert client.get("/healthz").json()["alive"] is True
    assert client.get("/readyz").status_code == client.post("/predict", json=ROW).status_code == 503
    assert "no champion" in client.post("/predict", json=ROW).json()["detail"]
    assert client.get("/versions").json()["champion"] is None
    registry.promote("1.0", reason="first")
    until(lambda: client.get("/readyz").status_code == 200)
    assert client.get("/readyz").json() == {"version": "binary:1.0", "epoch": 1}


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_online_answers_equal_offline_ones(
    serve_store: Serve, store: Store, events: Callable[..., pa.Table], task: str
) -> None:
    registry = Registry(store, task)
    registry.promote("1.1", reason="first")
    client = serve_store(store, task)
    rows = events(task, 20).to_pylist()
    body = {
        "rows": [
            {
                "event_id": r["_event_id"],
                "event_time": r[EVENT_TIME].isoformat(),
                "features": {k: r[k] for k in ("distance", "carrier")},
            }
            for r in rows
        ]
    }
    answer = client.post("/predict", json=body)
    predictor = Predictor.load(store.storage, registry.version("1.1").state)
    found = [{k: v for k, v in p.items() if k not in ("request_id", "event_id")} for p in answer.json()["predictions"]]
    assert found == predictor.answer(rows)
    assert answer.json()["version"] == answer.headers["x-cltrain-version"] == f"{task}:1.1"
    assert answer.json()["epoch"] == int(answer.headers["x-cltrain-epoch"]) == 1
    assert [p["event_id"] for p in answer.json()["predictions"]] == [r["_event_id"] for r in rows]


def test_one_row_may_come_without_rows_and_without_ids(serve_store: Serve, store: Store, registry: Registry) -> None:
    registry.promote("1.0", reason="first")
    client = serve_store(store)
    (answer,) = client.post("/predict", json={"features": {"carrier": None, "unknown": True}}).json()["predictions"]
    assert answer["event_id"] is None
    assert len(answer["request_id"]) == 32


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"rows": []}, "rows"),
        ({"rows": [{"event_id": "a"}]}, "rows[0].features: Field required"),
        ({"features": {"distance": "far"}}, "rows[0].features.distance must be a number, not 'far'"),
        ({"features": {"distance": 10**400}}, "rows[0].features.distance must be a number"),
        ({"features": {"distance": [1]}}, "rows[0].features.distance must be a number, not a list"),
        (
            {"features": {"distance": [[1], ["a"]]}},
            "must be a finite number, a text, true or false, a list of finite numbers, or null",
        ),
        ({"features": {"distance": {}}, "evnt_id": "a"}, "rows[0].evnt_id"),
        ({"features": {}, "event_time": "noon"}, "rows[0].event_time"),
        ({"features": {}, "event_time": "0001-01-01T00:00:00+10:00"}, "rows[0].event_time: is too far"),
        ({"features": {"carrier": "\ud800"}}, "rows[0].features.carrier: must be"),
        ({"features": {}, "event_id": ""}, "rows[0].event_id"),
        ({"features": {}, "event_id": "x" * 201}, "rows[0].event_id"),
        ([1], "the body"),
    ],
)
def test_bad_rows_get_422_and_a_sentence(
    serve_store: Serve, store: Store, registry: Registry, body: object, words: str
) -> None:
    registry.promote("1.0", reason="first")
    client = serve_store(store)
    answer = client.post("/predict", content=json.dumps(body), headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert words in answer.json()["detail"]
    assert client.get("/versions").json()["failed"] == 0


def test_no_json_and_not_a_number_get_422(serve_store: Serve, store: Store, registry: Registry) -> None:
    registry.promote("1.0", reason="first")
    client = serve_store(store)
    for text in ("{", '{"features": {"distance": NaN}}', '{"features": {"distance": Infinity}}'):
        answer = client.post("/predict", content=text, headers={"content-type": "application/json"})
        assert answer.status_code == 422, text


def test_too_many_rows_get_413(serve_store: Serve, store: Store, registry: Registry) -> None:
    registry.promote("1.0", reason="first")
    client = serve_store(store, max_batch_rows=2)
    assert client.post("/predict", json={"rows": [ROW] * 2}).status_code == 200
    refused = client.post("/predict", json={"rows": [ROW] * 3})
    assert (refused.status_code, "2 of one request" in refused.json()["detail"]) == (413, True)
    assert client.post("/feedback", json={"rows": [{"event_id": "a", "label": 1}] * 3}).status_code == 413


def test_what_was_answered_is_in_the_log_and_meets_its_label(
    serve_store: Serve, store: Store, registry: Registry
) -> None:
    registry.promote("1.0", reason="first")
    client = serve_store(store)
    answer = client.post("/predict", json={"rows": [ROW, {**ROW, "event_id": "b"}]}).json()
    ids = [p["request_id"] for p in answer["predictions"]]
    sent = client.post(
        "/feedback", json={"rows": [{"request_id": ids[0], "label": True}, {"event_id": "b", "label": 0}]}
    )
    assert sent.json() == {"stored": 2, "duplicates": 0}
    until(lambda: read_predictions(store.storage).num_rows == 2)
    joined = join_feedback(read_predictions(store.storage, "binary"), read_feedback(store.storage)).to_pylist()
    assert [row["request_id"] for row in joined] == ids
    assert [row["label_value"] for row in joined] == [1.0, 0.0]
    assert {(row["model"], row["version"], row["epoch"]) for row in joined} == {("binary", "1.0", 1)}
    assert joined[0]["prediction"] == answer["predictions"][0]["probability"]
    assert joined[0]["features"] == '{"distance":900,"carrier":"UA"}'
    assert joined[0]["event_time"].isoformat() == "2024-01-01T10:00:00+00:00"
    assert joined[0]["latency_us"] > 0
    assert read_predictions(store.storage, "another").num_rows == 0


def test_feedback_is_on_disk_when_it_is_answered_and_is_stored_once(serve_store: Serve, store: Store) -> None:
    client = serve_store(store)
    rows = {"rows": [{"event_id": "a", "label": 1, "type": t} for t in ("system", "explicit", "implicit", "human")]}
    assert client.post("/feedback", json=rows).json() == {"stored": 4, "duplicates": 0}
    assert read_feedback(store.storage).column("type").to_pylist() == ["system", "explicit", "implicit", "human"]
    assert client.post("/feedback", json=rows).json() == {"stored": 0, "duplicates": 4}
    assert client.post("/feedback", json={"rows": [{"event_id": "a", "label": 0}] * 2}).json() == {
        "stored": 1,
        "duplicates": 1,
    }
    assert client.get("/versions").json()["feedback_log"]["duplicates"] == 5
    assert client.post("/feedback", json={"rows": [{"label": 0}]}).status_code == 422
    for label in ("[0]", '"\\ud800"', "NaN"):
        text = f'{{"rows": [{{"event_id": "a", "label": {label}}}]}}'
        refused = client.post("/feedback", content=text, headers={"content-type": "application/json"})
        assert refused.json()["detail"] == "rows[0].label: must be a finite number, a text, true or false"


def test_admin_routes_want_the_token(serve_store: Serve, store: Store, registry: Registry) -> None:
    registry.promote("1.0", reason="first")
    body = {"version": "1.1", "reason": "better"}
    closed = serve_store(store, admin_token_sha256=None)
    answer = closed.post("/promote", json=body)
    assert (answer.status_code, "CLTRAIN_ADMIN_TOKEN" in answer.json()["detail"]) == (403, True)
    client = serve_store(store, admin_token_sha256=hashlib.sha256(b"secret").hexdigest())
    for header in ("", "Bearer wrong", "Basic secret"):
        assert client.post("/rollback", json={"reason": "?"}, headers={"authorization": header}).status_code == 401
    assert registry.champion().version == "1.0"  # type: ignore[union-attr]
    assert client.post("/promote", json=body, headers={"authorization": "Bearer secret"}).status_code == 200
    assert registry.champion().version == "1.1"  # type: ignore[union-attr]


def test_promote_and_rollback(serve_store: Serve, store: Store, registry: Registry) -> None:
    registry.promote("1.0", reason="first")
    client = serve_store(store)
    assert client.post("/rollback", json={"reason": "?"}).status_code == 404
    assert client.post("/promote", json={"version": "9.9", "reason": "?"}).status_code == 404
    stale = client.post("/promote", json={"version": "1.1", "reason": "?", "expected": "0.9"})
    assert (stale.status_code, registry.epoch()) == (409, 1)
    done = client.post("/promote", json={"version": "binary:1.1", "reason": "better"})
    assert done.json() == {"version": "binary:1.1", "epoch": 2}
    until(lambda: client.post("/predict", json=ROW).json()["version"] == "binary:1.1")
    assert client.post("/rollback", json={"reason": "worse"}).json() == {"version": "binary:1.0", "epoch": 3}
    until(lambda: client.post("/predict", json=ROW).json()["epoch"] == 3)
    about = client.get("/versions").json()
    assert {r["version"] for r in about["resident"]} == {"binary:1.0", "binary:1.1"}
    assert registry.moves()[-1]["reason"] == "worse"


def test_a_version_that_was_altered_is_not_promoted(serve_store: Serve, store: Store, registry: Registry) -> None:
    registry.promote("1.0", reason="first")
    client = serve_store(store)
    store.storage.write(f"{registry.version('1.1').state}/weights.safetensors", b"not these")
    answer = client.post("/promote", json={"version": "1.1", "reason": "better"})
    assert (answer.status_code, registry.epoch()) == (409, 1)
    assert "altered" in answer.json()["detail"]


def test_a_model_that_answers_nan_fails_the_request(serve_store: Serve, store: Store, registry: Registry) -> None:
    registry.promote("1.0", reason="first")
    client = serve_store(store)
    with torch.no_grad():
        for parameter in client.server.resident.current.predictor.model.parameters():
            parameter.fill_(float("nan"))
    answer = client.post("/predict", json=ROW)
    assert (answer.status_code, "finite" in answer.json()["detail"]) == (500, True)
    assert (client.get("/versions").json()["failed"], client.get("/versions").json()["served"]) == (1, {})


def test_a_full_log_refuses_feedback_and_sheds_predictions(
    serve_store: Serve, store: Store, registry: Registry
) -> None:
    registry.promote("1.0", reason="first")
    client = serve_store(store, log=LogSettings(capacity_rows=1, flush_s=0.01))
    assert client.post("/predict", json={"rows": [ROW, ROW]}).status_code == 200
    assert client.get("/versions").json()["predictions_log"]["shed"] == 2
    refused = client.post("/feedback", json={"rows": [{"event_id": x, "label": 1} for x in "ab"]})
    assert (refused.status_code, "full" in refused.json()["detail"]) == (503, True)


def test_the_console_and_the_api_description(serve_store: Serve, store: Store) -> None:
    client = serve_store(store)
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    assert "http://" not in page.text
    assert "https://" not in page.text
    api = client.get("/openapi.json").json()
    assert {"/predict", "/feedback", "/versions", "/healthz", "/readyz", "/promote", "/rollback"} <= set(api["paths"])
    assert {"/rollouts", "/rollouts/halt", "/rollouts/promote", "/why/{request_id}"} <= set(api["paths"])
    assert api["components"]["schemas"]["PredictRequest"]["examples"]
