"""Replayed traffic: what is sent, when, and what is counted, against a server of a few lines."""

import asyncio
import math
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest
from aiohttp import web

from cltrain.config import build
from cltrain.errors import ConfigError, ServingError
from serve.local import LocalServing, NoServing, free_port
from serve.settings import LogSettings
from serve.traffic import Sent, Traffic, feedback_of, loss_of, other_rows, request_of, sample_rows, summarise

NOW = datetime(2024, 1, 1, tzinfo=UTC)


def test_the_sample_is_the_same_in_any_order(events: Callable[..., pa.Table]) -> None:
    rows = events()
    shuffled = rows.take(list(reversed(range(rows.num_rows))))
    picked = sample_rows(rows, 40, seed=1)
    assert len(picked) == 40
    assert picked == sample_rows(shuffled, 40, seed=1)
    assert picked != sample_rows(rows, 40, seed=2)
    assert len(sample_rows(rows, 1000, seed=1)) == rows.num_rows
    assert sample_rows(rows.slice(0, 0), 40, seed=1) == []


def test_more_rows_follow_that_were_not_in_the_sample(events: Callable[..., pa.Table]) -> None:
    rows = events(rows=100)
    first = {row["_event_id"] for row in sample_rows(rows, 30, seed=1)}
    then = [row["_event_id"] for row in other_rows(rows, 30, seed=1, most=50)]
    assert len(then) == len({*then} - first) == 50
    assert len(list(other_rows(rows, 30, seed=1, most=1000))) == 70


def test_a_request_holds_features_only_and_no_nan() -> None:
    row = {
        "_event_id": "a",
        "_event_time": NOW,
        "_label": 1.0,
        "_label_time": NOW,
        "_hour": 3.0,
        "x": math.nan,
        "c": "u",
    }
    (sent,) = request_of(row)["rows"]
    assert sent == {"event_id": "a", "event_time": "2024-01-01T00:00:00+00:00", "features": {"x": None, "c": "u"}}


@pytest.mark.parametrize(
    ("answer", "label", "loss"),
    [
        ({"probability": 0.8, "label": 1}, 1.0, -math.log(0.8)),
        ({"probability": 0.8, "label": 1}, 0.0, -math.log(0.2)),
        ({"probability": 0.0, "label": 0}, 1.0, -math.log(1e-7)),
        ({"probabilities": {"a": 0.9, "b": 0.1}, "label": "a"}, "b", -math.log(0.1)),
        ({"probabilities": {"a": 0.9, "b": 0.1}, "label": "a"}, "new", -math.log(1e-7)),
        ({"value": 2.0}, 5.0, 9.0),
    ],
)
def test_losses(answer: dict[str, Any], label: Any, loss: float) -> None:
    assert loss_of(answer, label) == pytest.approx(loss)


def test_the_summary_counts_what_was_answered() -> None:
    row = {"_event_id": "a", "_event_time": NOW, "_label": 1.0}
    sent = [
        Sent(row, 0.001 * i, "m:1.0" if i < 3 else "m:1.1", {"request_id": str(i), "probability": 0.5})
        for i in range(4)
    ]
    sent += [
        Sent(row, 0.5, error="500: no"),
        Sent({**row, "_label": None}, 0.004, "m:1.1", {"request_id": "5", "probability": 0.1}),
    ]
    result = summarise(sent, 4)
    assert result == {
        "sent": 6,
        "failed": 1,
        "feedback": 4,
        "by_version": {"1.0": 3, "1.1": 2},
        "p50_ms": 2.0,
        "p99_ms": pytest.approx(3.96),
        "log_loss": pytest.approx(math.log(2)),
        "error": "500: no",
    }
    assert [f["request_id"] for f in feedback_of(sent)] == ["0", "1", "2", "3"]
    assert feedback_of(sent)[0]["label_time"] == "2024-01-01T00:00:00+00:00"
    values = [Sent({**row, "_label": 3.0}, 0.1, "m:1.0", {"request_id": "0", "value": 1.0})]
    assert summarise(values, 0)["squared_error"] == 4.0
    assert summarise([], 0)["p99_ms"] is None


class Fake:
    """Answers /predict after a moment, and fails every `fail_every`th request."""

    def __init__(self) -> None:
        self.ready, self.version, self.fail_every = True, "m:1.0", 0
        self.times: list[float] = []
        self.labels: list[dict[str, Any]] = []

    async def readyz(self, _: web.Request) -> web.Response:
        return web.json_response({}, status=200 if self.ready else 503)

    async def predict(self, request: web.Request) -> web.Response:
        self.times.append(time.monotonic())
        if self.fail_every and len(self.times) % self.fail_every == 0:
            return web.Response(status=500, text="no")
        (row,) = (await request.json())["rows"]
        answer = {"request_id": f"r-{row['event_id']}", "event_id": row["event_id"], "probability": 0.5, "label": 1}
        return web.json_response({"version": self.version, "epoch": 1, "predictions": [answer]})

    async def feedback(self, request: web.Request) -> web.Response:
        rows = (await request.json())["rows"]
        self.labels += rows
        return web.json_response({"stored": len(rows), "duplicates": 0})


@pytest.fixture
def fake() -> Iterator[tuple[Fake, str]]:
    fake, port, loop = Fake(), free_port("127.0.0.1", 0), asyncio.new_event_loop()
    app = web.Application()
    app.add_routes(
        [web.get("/readyz", fake.readyz), web.post("/predict", fake.predict), web.post("/feedback", fake.feedback)]
    )
    runner = web.AppRunner(app, access_log=None)
    loop.run_until_complete(runner.setup())
    loop.run_until_complete(web.TCPSite(runner, "127.0.0.1", port).start())
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield fake, f"http://127.0.0.1:{port}"
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.run_until_complete(runner.cleanup())
    loop.close()


def traffic(url: str, rows: list[dict[str, Any]], spread_s: float = 0.2, **more: Any) -> Traffic:
    return Traffic(url=url, rows=rows, spread_s=spread_s, concurrency=2, timeout_s=5.0, **more)


def test_traffic_goes_on_beside_the_block_and_ends_after_it(
    fake: tuple[Fake, str], events: Callable[..., pa.Table]
) -> None:
    server, url = fake
    rows = sample_rows(events(), 30, 0)
    with traffic(url, rows) as replay:
        time.sleep(0.6)
        during, server.version = len(server.times), "m:1.1"
    assert during == 27
    assert (replay.result["sent"], replay.result["failed"], replay.result["feedback"]) == (30, 0, 30)
    assert replay.result["by_version"] == {"1.0": 27, "1.1": 3}
    assert server.times[26] - server.times[0] > 0.1
    assert {row["event_id"] for row in server.labels} == {row["_event_id"] for row in rows}
    assert 0.5 < replay.block_s < 1.0


def test_a_short_block_does_not_cut_the_sample_and_failures_are_counted(
    fake: tuple[Fake, str], events: Callable[..., pa.Table]
) -> None:
    server, url = fake
    server.fail_every = 3
    started = time.monotonic()
    with traffic(url, sample_rows(events(), 30, 0), spread_s=60.0) as replay:
        pass
    assert time.monotonic() - started < 5
    assert (replay.result["sent"], replay.result["failed"], replay.result["feedback"]) == (30, 10, 20)
    assert replay.result["error"] == "500: no"


def test_nothing_is_sent_to_a_server_without_a_champion(
    fake: tuple[Fake, str], events: Callable[..., pa.Table]
) -> None:
    server, url = fake
    server.ready = False
    rows = sample_rows(events(), 5, 0)
    with traffic(url, rows) as replay:
        pass
    assert (replay.result["sent"], replay.result["failed"], server.times) == (0, 0, [])
    with traffic(url, rows) as replay:
        server.ready = True
    assert replay.result["sent"] == 5


def test_an_error_in_the_block_ends_the_traffic_and_comes_out(
    fake: tuple[Fake, str], events: Callable[..., pa.Table]
) -> None:
    server, url = fake
    with pytest.raises(RuntimeError, match="update"), traffic(url, sample_rows(events(), 30, 0), spread_s=60.0):
        raise RuntimeError("update")
    assert len(server.times) < 30


def test_a_server_that_is_gone_fails_no_block(events: Callable[..., pa.Table]) -> None:
    port = free_port("127.0.0.1", 0)
    with traffic(f"http://127.0.0.1:{port}", sample_rows(events(), 5, 0)) as replay:
        pass
    assert replay.result["sent"] == 0


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("port", 70_000),
        ("replicas", 0),
        ("max_batch_rows", 0),
        ("max_ongoing_requests", 0),
        ("max_queued_requests", 0),
        ("concurrency", 0),
        ("poll_s", 0.0),
        ("timeout_s", 0.0),
        ("confirm_timeout_s", 0.0),
        ("num_cpus", -1.0),
        ("requests_per_window", -1),
    ],
)
def test_settings_name_what_is_wrong(setting: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"serve.{setting}"):
        LocalServing(**{setting: value})  # type: ignore[arg-type]


def test_the_groups_options_build_and_none_does_nothing(events: Callable[..., pa.Table]) -> None:
    local = build({"_target_": "serve.local.LocalServing", "log": {"_target_": "serve.settings.LogSettings"}}, "serve")
    assert local == LocalServing(log=LogSettings())
    with pytest.raises(ServingError, match="not started"):
        local.confirm("1.0", 1)
    local.stop()
    none = build({"_target_": "serve.local.NoServing"}, "serve")
    assert isinstance(none, NoServing)
    none.start(None, "m")  # type: ignore[arg-type]
    with none.traffic(events(), 0) as replay:
        pass
    assert (replay.result["sent"], none.confirm("1.0", 1), none.url) == (0, None, None)
    none.stop()
