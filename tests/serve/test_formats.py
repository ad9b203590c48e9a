"""Arrow, ranking, metrics and schema: the other ways to ask, and what can be asked."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from prometheus_client.parser import text_string_to_metric_families

from cltrain.records import LABEL
from cltrain.registry import Registry, Store
from serve.http.arrow_api import ARROW
from serve.logs.prediction_log import read_predictions
from serve.settings import LogSettings

Serve = Callable[..., Any]
HEADERS = {"content-type": ARROW}


def stream(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=7 if len(table) < 100 else None)
    return bytes(sink.getvalue())


def follow(client: Any, version: str) -> None:
    end = time.monotonic() + 10
    while client.server.resident.current is None or client.server.resident.current.version != version:
        assert time.monotonic() < end, "it did not follow"
        time.sleep(0.01)


def as_json(table: pa.Table) -> dict[str, Any]:
    rows = table.to_pylist()
    names = ("distance", "carrier")
    asked = [{"event_id": r["_event_id"], "event_time": r["_event_time"].isoformat()} for r in rows]
    return {"rows": [a | {"features": {n: r[n] for n in names}} for a, r in zip(asked, rows, strict=True)]}


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_arrow_says_what_json_says(
    serve_store: Serve, store: Store, events: Callable[..., pa.Table], task: str
) -> None:
    Registry(store, task).promote("1.1", reason="first")
    client = serve_store(store, task)
    table = events(task, 20)
    answer = client.post("/predict", content=stream(table), headers=HEADERS)
    assert (answer.status_code, answer.headers["content-type"]) == (200, ARROW)
    found = pa.ipc.open_stream(answer.content).read_all()
    assert found.schema.metadata == {b"version": f"{task}:1.1".encode(), b"epoch": b"1", b"arm": b"champion"}
    assert answer.headers["x-cltrain-version"] == f"{task}:1.1"
    expected = client.post("/predict", json=as_json(table)).json()["predictions"]
    for ours, theirs in zip(found.to_pylist(maps_as_pydicts="strict"), expected, strict=True):
        assert ours.pop("request_id") != theirs.pop("request_id")
        assert ours == theirs
    client.server.predictions.close()
    logged = read_predictions(store.storage)
    assert logged["features"].to_pylist()[:20] == logged["features"].to_pylist()[20:]
    assert LABEL not in logged["features"][0].as_py()


def test_arrow_that_is_none(serve_store: Serve, store: Store, registry: Registry) -> None:
    registry.promote("1.0", reason="first")
    client = serve_store(store, max_batch_rows=10)

    def ask(table: pa.Table | bytes) -> tuple[int, str]:
        body = table if isinstance(table, bytes) else stream(table)
        answer = client.post("/predict", content=body, headers=HEADERS)
        return answer.status_code, answer.json()["detail"] if answer.status_code != 200 else ""

    assert ask(b"no stream") == (422, ask(b"no stream")[1])
    good = stream(pa.table({"distance": [1.0, np.nan], "carrier": ["UA", None]}))
    assert ask(good)[0] == 200
    for end in range(0, len(good) - 9, 37):
        assert ask(good[:end])[0] in (200, 422)
    assert ask(pa.table({"distance": pa.array([], pa.float64())})) == (422, "the stream has no row")
    assert ask(pa.table({"distance": np.arange(11.0)}))[0] == 413
    assert ask(pa.table({"x": pa.nulls(1_000_000)}))[0] == 413
    assert "distance" in ask(pa.table({"distance": [datetime(2024, 1, 1, tzinfo=UTC)]}))[1]
    assert ask(pa.table({"distance": ["far"]}))[0] == 422
    assert client.server.failed == 0


def test_candidates_come_back_best_first(serve_store: Serve, store: Store, registry: Registry) -> None:
    registry.promote("1.1", reason="first")
    client = serve_store(store)
    items = [{"item_id": f"i{d}", "features": {"distance": d}} for d in (900, 100, 2000, 500)]
    body = {"features": {"carrier": "UA", "distance": 5}, "items": items, "event_time": "2024-01-01T10:00:00Z"}
    answer = client.post("/rank", json=body)
    found = answer.json()["ranking"]
    assert [one["item_id"] for one in found] == ["i2000", "i900", "i500", "i100"]
    rows = [{"features": {"carrier": "UA", **i["features"]}, "event_time": body["event_time"]} for i in items]
    scores = [one["probability"] for one in client.post("/predict", json={"rows": rows}).json()["predictions"]]
    assert sorted(scores, reverse=True) == [one["score"] for one in found]
    assert answer.headers["x-cltrain-version"] == answer.json()["version"] == "binary:1.1"
    assert [one["item_id"] for one in client.post("/rank", json=body | {"top": 2}).json()["ranking"]] == [
        "i2000",
        "i900",
    ]
    twice = client.post("/rank", json={"items": [items[0], items[0]]})
    assert (twice.status_code, "twice" in twice.json()["detail"]) == (422, True)
    clicked = {"rows": [{"request_id": found[1]["request_id"], "label": 1, "type": "implicit"}]}
    assert client.post("/feedback", json=clicked).json() == {"stored": 1, "duplicates": 0}


def test_a_multiclass_model_does_not_rank(serve_store: Serve, store: Store) -> None:
    Registry(store, "multiclass").promote("1.0", reason="first")
    answer = serve_store(store, "multiclass").post("/rank", json={"items": [{"item_id": "a"}]})
    assert (answer.status_code, "multiclass" in answer.json()["detail"]) == (422, True)


def scraped(client: Any) -> dict[tuple[str, ...], float]:
    page = client.get("/metrics")
    assert page.headers["content-type"].startswith("text/plain")
    samples = [s for family in text_string_to_metric_families(page.text) for s in family.samples]
    return {(s.name, *(f"{k}={v}" for k, v in sorted(s.labels.items()))): s.value for s in samples}


def test_metrics_by_version_with_as_many_series_as_versions(
    serve_store: Serve, store: Store, registry: Registry
) -> None:
    registry.promote("1.0", reason="first")
    client = serve_store(store, log=LogSettings(flush_s=0.01, metrics={"odd": "serve.scores.chosen"}))
    for _ in range(3):
        client.post("/predict", json={"rows": [{"features": {"distance": 100}}] * 2})
    client.post("/predict", json={"rows": []})
    client.get("/no/such/route/1")
    found = scraped(client)
    by = ("arm=champion", "role=champion", "version=1.0")
    assert found["cltrain_requests_total", *by] == 3
    assert found["cltrain_rows_total", *by] == 6
    assert found["cltrain_answer_seconds_count", *by] == 3
    assert found["cltrain_http_responses_total", "route=/predict", "status=200"] == 3
    assert found["cltrain_http_responses_total", "route=/predict", "status=422"] == 1
    assert found["cltrain_http_responses_total", "route=other", "status=404"] == 1
    assert found["cltrain_ready",] == found["cltrain_epoch",] == 1
    assert {"cltrain_shadow_shed_total", "cltrain_failures_total"} <= {key[0] for key in found}
    assert ("cltrain_log_waiting_rows", "log=predictions") in found
    registry.promote("1.1", reason="next")
    follow(client, "1.1")
    client.post("/predict", json={"features": {"distance": 100}})
    assert ("cltrain_requests_total", "arm=champion", "role=champion", "version=1.1") in scraped(client)
    client.server.resident._loaded.pop("1.0")
    assert not [key for key in scraped(client) if "version=1.0" in key and key[0].startswith("cltrain_requests")]


def test_the_schema_has_an_example_that_is_answered(serve_store: Serve, store: Store, registry: Registry) -> None:
    client = serve_store(store)
    assert client.get("/schema").status_code == 503
    assert client.get("/openapi.json").status_code == 200
    registry.promote("1.0", reason="first")
    follow(client, "1.0")
    told = client.get("/schema").json()
    assert (told["version"], told["task"]) == ("binary:1.0", "binary")
    assert set(told["features"]) == {"distance", "carrier"}
    assert set(told["features"]["carrier"]["known"]) == {"AA", "DL", "UA"}
    assert client.post("/predict", json=told["example"]).status_code == 200
    document = client.get("/openapi.json").json()
    content = document["paths"]["/predict"]["post"]["requestBody"]["content"]
    assert ARROW in content
    assert content["application/json"]["example"] == {"rows": [told["example"]]}


def test_numbers_too_large_for_a_float(serve_store: Serve, store: Store, registry: Registry) -> None:
    registry.promote("1.0", reason="first")
    client, large = serve_store(store), 10**400
    statuses = [
        client.post("/feedback", json={"rows": [{"event_id": "a", "label": large}]}).status_code,
        client.post("/predict", json={"features": {"distance": large}}).status_code,
        client.post("/rank", json={"items": [{"item_id": "a", "features": {"distance": large}}]}).status_code,
    ]
    assert statuses == [422, 422, 422]


def test_windows_of_profiles(serve_store: Serve, store: Store, registry: Registry) -> None:
    registry.promote("1.0", reason="first")
    client = serve_store(store, log=LogSettings(keep="profiles", flush_s=0.01))
    client.post("/predict", json={"features": {"distance": 100}})
    client.server.predictions.close()
    (line,) = client.get("/profiles").json()
    assert (line["version"], line["rows"]) == ("1.0", 1)
    assert client.get("/profiles", params={"hours": -1}).status_code == 422
