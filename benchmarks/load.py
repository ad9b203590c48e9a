"""Requests as clients send them: each at its moment whether or not the one before is answered, and timed from the
moment at which it was meant to go, so that a server that stalls is charged for all who would have come meanwhile
(Tene, "How NOT to measure latency")."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import numpy as np

from benchmarks.deployed import AT

HEADERS = {"content-type": "application/json"}


def add_load_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--load", type=float, default=0.5, help="share of the measured capacity (default 0.5)")
    parser.add_argument("--rate", type=float, help="requests a second, in place of --load")
    parser.add_argument("--capacity-s", type=float, default=10.0, help="to measure the capacity for (default 10)")
    parser.add_argument("--seed", type=int, default=0)


@dataclass(slots=True)
class Asked:
    """One request: `number` and `row` of it, the seconds (`time.perf_counter`) at which it was `due` and at which it
    was answered, and the answer; `error` is None when it was answered with 200."""

    number: int
    row: int
    due: float
    done: float = 0.0
    version: str = ""
    epoch: int = 0
    request_id: str = ""
    event_id: str = ""
    prediction: float = float("nan")
    error: str | None = None


@dataclass
class Clients:
    """`connections` to a server, shared out among four clients. Requests are of one row each, and of `rows` in turn.
    capacity: requests a second, once `rate` has measured it."""

    url: str
    rows: Sequence[dict[str, Any]]
    path: str = "/predict"
    connections: int = 32
    timeout_s: float = 60.0
    asked: list[Asked] = field(default_factory=list)
    capacity: float = float("nan")

    async def __aenter__(self) -> Clients:
        each = max(1, self.connections // 4)
        timeout = aiohttp.ClientTimeout(total=self.timeout_s)
        self._sessions = [
            aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=each)) for _ in range(4)
        ]
        self._features = [json.dumps(row) for row in self.rows]
        return self

    async def __aexit__(self, *_: object) -> None:
        for session in self._sessions:
            await session.close()

    async def open_loop(self, rate: float, requests: int, over: asyncio.Event | None = None) -> list[Asked]:
        """Send `requests` at least, evenly at `rate` a second, and more until it is `over`; returns when all are
        answered or have failed."""
        first, started = len(self.asked), time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for index in itertools.count():
                if index >= requests and (over is None or over.is_set()):
                    break
                due = started + index / rate
                if (wait := due - time.perf_counter()) > 0:
                    await asyncio.sleep(wait)
                group.create_task(self._ask(due))
        return self.asked[first:]

    async def closed_loop(self, seconds: float, at_once: int, rows_each: int = 1) -> list[Asked]:
        """As many as `at_once` clients get answered that never pause; each request has `rows_each` rows."""
        first, end = len(self.asked), time.perf_counter() + seconds

        async def client() -> None:
            while (now := time.perf_counter()) < end:
                await self._ask(now, rows_each)

        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(client())
        return self.asked[first:]

    async def rate(self, options: argparse.Namespace) -> float:
        """Requests a second that the options of `add_load_options` mean, after a warm-up."""
        await self.closed_loop(options.capacity_s / 2, at_once=16)
        self.capacity = per_second(await self.closed_loop(options.capacity_s, at_once=16))
        rate = float(options.rate or options.load * self.capacity)
        print(f"capacity {self.capacity:.0f}/s, at {rate:.0f}/s", flush=True)
        return rate

    async def _ask(self, due: float, rows_each: int = 1) -> None:
        number = len(self.asked)
        one = Asked(number, number % len(self.rows), due)
        self.asked.append(one)
        picked = [self._features[(one.row + i) % len(self.rows)] for i in range(rows_each)]
        rows = ",".join(
            f'{{"event_id":"q{number}-{i}","event_time":"{AT}","features":{features}}}'
            for i, features in enumerate(picked)
        )
        session = self._sessions[number % len(self._sessions)]
        try:
            async with session.post(self.url + self.path, data=f'{{"rows":[{rows}]}}', headers=HEADERS) as answer:
                raw = await answer.read()
                one.done = time.perf_counter()
                if answer.status != 200:
                    one.error = f"{answer.status}: {raw[:200].decode(errors='replace')}"
                    return
            body = json.loads(raw)
            one.version, one.epoch = body["version"], body["epoch"]
            (found, *_) = body["predictions"]
            one.prediction = found["probability"]
            one.request_id, one.event_id = found.get("request_id", ""), found.get("event_id", "")
        except (aiohttp.ClientError, TimeoutError) as error:
            one.done = time.perf_counter()
            one.error = f"{type(error).__name__}: {error}"


def latencies_ms(asked: Sequence[Asked]) -> np.ndarray:
    """(N,) milliseconds from the moment each was due."""
    return np.array([1e3 * (one.done - one.due) for one in asked])


def per_second(asked: Sequence[Asked]) -> float:
    """Answered requests a second."""
    answered = [one for one in asked if one.error is None]
    if not answered:
        raise RuntimeError(f"none of {len(asked)} requests was answered: {asked[0].error}")
    return len(answered) / (max(one.done for one in answered) - min(one.due for one in answered))


def p(values: np.ndarray, percent: float) -> float:
    return float(np.percentile(values, percent)) if len(values) else float("nan")
