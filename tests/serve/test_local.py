"""Serving on a real Ray: swaps under traffic, as the loop does them."""

import json
import logging
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pytest

from cltrain.errors import ServingError
from cltrain.records import EVENT_TIME
from cltrain.registry import Registry, Store
from cltrain.train.predictor import Predictor
from serve.local import LocalServing, get_json
from serve.logs.feedback import join_feedback, read_feedback
from serve.logs.prediction_log import read_predictions
from serve.settings import LogSettings

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*")]
TOKEN = "a token of the tests"


@pytest.fixture
def serving(
    ray_session: object, store: Store, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> Iterator[LocalServing]:
    monkeypatch.setenv("CLTRAIN_ADMIN_TOKEN", TOKEN)
    registry.promote("1.0", reason="first")
    serving = LocalServing(port=0, requests_per_window=60, log=LogSettings(flush_s=0.1))
    serving.start(store, "binary")
    yield serving
    serving.stop()


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    headers = {"authorization": f"Bearer {TOKEN}", "content-type": "application/json"}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(url, json.dumps(body).encode(), headers), timeout=30) as answer:
        return json.loads(answer.read())


def test_swaps_under_traffic(
    serving: LocalServing, store: Store, registry: Registry, events: Callable[..., pa.Table], record_property: Any
) -> None:
    url = serving.url
    assert url is not None
    assert serving.confirm("1.0", 1) < 10
    rows = events()

    with serving.traffic(rows, seed=3) as traffic:
        time.sleep(1.0)
        epoch = registry.promote("1.1", reason="better", expected="1.0")
        confirm_s = serving.confirm("1.1", epoch)
        time.sleep(1.2)
    result = traffic.result
    record_property("swap", {**result, "confirm_s": confirm_s})
    print(result, confirm_s)
    assert confirm_s < 2
    assert (result["sent"], result["failed"], result["error"]) == (60, 0, None)
    assert result["by_version"].keys() == {"1.0", "1.1"}
    assert result["feedback"] == 60
    assert result["p50_ms"] <= result["p99_ms"]
    assert 0 < result["log_loss"] < 1

    with pytest.raises(ServingError, match=r"0 of 1 replicas follow the swap to 9\.9 .*binary:1\.1"):
        LocalServing.confirm(_impatient(serving), "9.9", 99)

    rolled_back = post(f"{url}/rollback", {"reason": "test"})
    assert rolled_back == {"version": "binary:1.0", "epoch": 3}
    rollback_s = serving.confirm("1.0", 3)
    assert rollback_s < 2
    assert get_json(url, "/versions", 5)["champion"] == "binary:1.0"

    clients, answers = _hammer(
        url, rows, seconds=2.0, swaps=lambda: [registry.promote(v, reason="flip") for v in ("1.1", "1.0")]
    )
    print("requests", len(answers), "by clients", clients)
    about = get_json(url, "/versions", 5)
    assert about["failed"] == 0
    serving.stop()

    logged = read_predictions(store.storage)
    assert logged.num_rows == 60 + len(answers)
    joined = join_feedback(logged, read_feedback(store.storage))
    assert joined["label"].null_count == 0 or len(answers) > 0
    offline = {v: Predictor.load(store.storage, registry.version(v).state) for v in ("1.0", "1.1")}
    by_id = {row["_event_id"]: row for row in rows.to_pylist()}
    for row in joined.to_pylist():
        (expected,) = offline[row["version"]].answer([by_id[row["event_id"]]])
        assert row["prediction"] == expected["probability"]
        if row["label_value"] is not None:
            assert row["label_value"] == by_id[row["event_id"]]["_label"]
    versions = {row["request_id"]: f"binary:{row['version']}" for row in logged.to_pylist()}
    assert all(versions[request_id] == version for request_id, version in answers)


def _impatient(serving: LocalServing) -> LocalServing:
    copy = LocalServing(confirm_timeout_s=0.1)
    copy.url = serving.url
    return copy


def _hammer(url: str, rows: pa.Table, seconds: float, swaps: Callable[[], Any]) -> tuple[int, list[tuple[str, str]]]:
    """Request ids with the version that answered, from 3 clients that never pause while versions are swapped."""
    events = rows.slice(0, 20).to_pylist()
    over = threading.Event()

    def client(number: int) -> list[tuple[str, str]]:
        seen = []
        while not over.is_set():
            row = events[(number + len(seen)) % len(events)]
            body = {
                "event_id": row["_event_id"],
                "event_time": row[EVENT_TIME].isoformat(),
                "features": {"distance": row["distance"], "carrier": row["carrier"]},
            }
            answer = post(f"{url}/predict", body)
            seen.append((answer["predictions"][0]["request_id"], answer["version"]))
        return seen

    with ThreadPoolExecutor(3) as pool:
        clients = [pool.submit(client, number) for number in range(3)]
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            swaps()
            time.sleep(0.3)
        over.set()
        return len(clients), [pair for one in clients for pair in one.result()]


def test_two_replicas_both_follow(ray_session: object, store: Store, registry: Registry) -> None:
    serving = LocalServing(port=0, replicas=2)
    serving.start(store, "binary")
    try:
        url = serving.url
        assert url is not None
        epoch = registry.promote("1.0", reason="first")
        assert serving.confirm("1.0", epoch) < 5
        found = {get_json(url, "/versions", 5)["replica"] for _ in range(40)}
        assert len(found) == 2
    finally:
        serving.stop()


def test_a_port_in_use_is_named_before_anything_starts(
    ray_session: object, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as taken, caplog.at_level(logging.ERROR):
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ServingError, match=rf"port {port} .* in use .*serve\.port=N"):
            LocalServing(port=port).start(store, "binary")
