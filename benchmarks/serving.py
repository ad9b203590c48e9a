"""What answering through the application costs beside a bare Ray Serve deployment of the same model.

Both are deployed at once, behind the same proxy, with as many replicas, and take turns at clients that never pause; the
bare one reads JSON and calls the model, ours also validates, chooses the version, and logs every row. `ratio` is ours
over the bare one's in requests a second, the median of the turns, with the middle 80 % of them; p50 and p99 in ms and
as ratios stand beside it. `logging` is the CPU of this process for a logged row, by its writer thread too, over that of
answering the row, the least of five turns; `us a row` should be 5 at most.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import tempfile
from collections.abc import Callable
from datetime import datetime
from typing import Any

import numpy as np

from benchmarks import turns
from benchmarks.deployed import AT, BARE, MODEL, Deployed, add_versions, deployed, make_rows
from benchmarks.load import Asked, Clients, latencies_ms, p, per_second
from cltrain.registry import Registry, Store
from serve.http.schemas import PredictRequest
from serve.logs.prediction_log import Prediction, PredictionLog
from serve.logs.segments import new_id
from serve.server import Server
from serve.settings import LogSettings, ServerSettings

Row = dict[str, Any]
LOG_TURNS = 5


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--turns", type=int, default=10, help="of each (default 10)")
    parser.add_argument("--seconds", type=float, default=5.0, help="of a turn (default 5)")
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 8], help="clients that never pause (default 1 8)")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 32], help="of a request (default 1 32)")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--log-rows", type=int, default=50_000, help="to time the log with (default 50000)")


def run(options: argparse.Namespace) -> list[Row]:
    rows = [logging_cost(options.log_rows, each) for each in options.rows]
    with deployed(versions=1, replicas=options.replicas) as app:
        return asyncio.run(measure(app, options)) + rows


async def measure(app: Deployed, options: argparse.Namespace) -> list[Row]:
    await app.bare(app.versions[0])
    result = []
    async with Clients(app.url, make_rows(64)) as ours, Clients(app.url, make_rows(64), f"{BARE}/predict") as bare:
        for each in options.rows:
            for at_once in options.at_once:
                asked = await _in_turns([ours, bare], options.turns, options.seconds, at_once, each)
                result.append({"name": f"{each} row{'s' * (each > 1)}, {at_once} at once", **compare(*asked)})
    return result


async def _in_turns(
    clients: list[Clients], turns: int, seconds: float, at_once: int, rows_each: int
) -> list[list[list[Asked]]]:
    """What each of them asked in each turn, after one that does not count; every other turn goes the other way."""
    asked: list[list[list[Asked]]] = [[] for _ in clients]
    order = list(range(len(clients)))
    for turn in range(turns + 1):
        for i in order:
            found = await clients[i].closed_loop(seconds, at_once, rows_each)
            asked[i] += [found] if turn else []
        order.reverse()
    return asked


def compare(ours: list[list[Asked]], bare: list[list[Asked]]) -> Row:
    slower = [[1 / per_second(turn) for turn in side] for side in (ours, bare)]
    ratio, middle = turns.ratio(slower[1], slower[0])
    times = [latencies_ms([one for turn in side for one in turn]) for side in (ours, bare)]
    return {
        "ratio": ratio,
        "interval": middle,
        "requests/s": float(np.median([per_second(turn) for turn in ours])),
        "bare requests/s": float(np.median([per_second(turn) for turn in bare])),
        "p50 ms": p(times[0], 50),
        "p50 ratio": p(times[0], 50) / p(times[1], 50),
        "p99 ms": p(times[0], 99),
        "p99 ratio": p(times[0], 99) / p(times[1], 99),
        "failed": sum(one.error is not None for side in (ours, bare) for turn in side for one in turn),
    }


def logging_cost(count: int, rows_each: int) -> Row:
    """CPU microseconds a logged row, and of answering it in process, validation included."""
    features, now = make_rows(64), datetime.fromisoformat(AT)
    with tempfile.TemporaryDirectory() as folder:
        store = Store(root=folder)
        (version,) = add_versions(store, 1)
        Registry(store, MODEL).promote(version, reason="first")
        made = [
            Prediction(new_id(), f"q{i}", now, now, MODEL, version, 1, 0.5, "1", features[i % 64], 100, f"q{i}")
            for i in range(count)
        ]

        def logged() -> int:
            log = PredictionLog(store.storage, new_id(), LogSettings(capacity_rows=10 * count))
            for start in range(0, count, rows_each):
                log.log(made[start : start + rows_each])
            log.close()
            return log.shed + log.lost

        failed = logged()
        gc.freeze()  # these rows are all there at once only here: the collector would count them again and again
        per_row = min(_cpu(logged) for _ in range(LOG_TURNS)) / count  # what runs beside only ever adds to it
        gc.unfreeze()
        server = Server(ServerSettings(store=store.to_json(), model=MODEL, log=LogSettings(rate=0.0)))
        body = {
            "rows": [{"event_id": f"q{i}", "event_time": AT, "features": features[i % 64]} for i in range(rows_each)]
        }

        def answered() -> None:
            for _ in range(min(2000, count) // rows_each):
                server.predict(PredictRequest.model_validate(body).rows)

        answering = _cpu(answered) / (min(2000, count) // rows_each * rows_each)
        server.close()
        store.engine.dispose()
    return {
        "name": f"logging, {rows_each} row{'s' * (rows_each > 1)} a request",
        "ratio": per_row / answering,
        "us a row": 1e6 * per_row,
        "answer us a row": 1e6 * answering,
        "failed": failed,
    }


def _cpu(work: Callable[[], Any]) -> float:
    """Seconds of the CPU in all threads of this process."""
    started = os.times()
    work()
    ended = os.times()
    return ended.user + ended.system - started.user - started.system
