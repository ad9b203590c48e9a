"""What the benchmarks of serving send, and how they count it."""

from __future__ import annotations

import asyncio
import json
import time

import numpy as np
import pytest
from aiohttp import web

from benchmarks.load import Asked, Clients, latencies_ms
from benchmarks.swap import Event, p99_ratio, reactions, schedule


def test_a_stall_is_charged_to_all_who_would_have_come_meanwhile() -> None:
    seen = []

    async def answer(request: web.Request) -> web.Response:
        (row,) = json.loads(await request.text())["rows"]
        seen.append((row["event_id"], row["features"]))
        if len(seen) == 10:
            time.sleep(0.5)  # the whole server
        found = {"probability": 0.5, "request_id": "r", "event_id": row["event_id"]}
        return web.json_response({"version": "m:1.0", "epoch": 1, "predictions": [found]})

    async def measure() -> list[Asked]:
        app = web.Application()
        app.router.add_post("/predict", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        async with Clients(f"http://127.0.0.1:{port}", [{"x": 1.0}, {"x": 2.0}]) as clients:
            asked = await clients.open_loop(rate=100, requests=60)
        await runner.cleanup()
        return asked

    asked = asyncio.run(measure())
    assert sorted(seen)[:2] == [("q0-0", {"x": 1.0}), ("q1-0", {"x": 2.0})]
    assert {(one.error, one.version, one.epoch, one.prediction) for one in asked} == {(None, "m:1.0", 1, 0.5)}
    assert [one.event_id for one in asked] == [f"q{i}-0" for i in range(60)]
    slow = (latencies_ms(asked) > 100).sum()
    assert 30 <= slow <= 55  # half a second of a hundred a second, less the last tenth of it


def test_a_refused_connection_is_a_failure_and_not_an_end() -> None:
    async def measure() -> list[Asked]:
        async with Clients("http://127.0.0.1:1", [{"x": 1.0}]) as clients:
            return await clients.open_loop(rate=100, requests=3)

    assert all(one.error and one.error.startswith("Client") for one in asyncio.run(measure()))


def test_swaps_and_shams_alternate_at_random() -> None:
    plan = schedule(swaps=50, interval=1.0, seed=0)
    kinds = [real for _, real in plan]
    assert all(sorted(kinds[i : i + 2]) == [False, True] for i in range(0, 100, 2))
    assert 10 < sum(kinds[::2]) < 40
    assert np.allclose(np.diff([at for at, _ in plan]), 1.0)


@pytest.mark.parametrize(("slower", "low", "high"), [(1.0, 0.8, 1.25), (3.0, 2.4, 3.75)])
def test_the_p99_of_swaps_is_held_against_that_of_shams(slower: float, low: float, high: float) -> None:
    generator = np.random.default_rng(0)
    events = [Event(float(i), epoch=i % 2) for i in range(100)]
    asked = []
    for event in events:
        for due in event.at + np.arange(50) / 50:
            seconds = generator.exponential(0.01) * (slower if event.epoch else 1.0)
            asked.append(Asked(0, 0, due, due + seconds))
    ratio, (least, most) = p99_ratio(asked, events, window_s=1.0, seed=0, draws=200)
    assert least < ratio < most
    assert low < ratio < high
    assert (least <= 1.0 <= most) == (slower == 1.0)


def test_reactions_are_from_the_call_to_the_first_new_and_the_last_old_answer() -> None:
    def answered(done: float, epoch: int) -> Asked:
        return Asked(0, 0, done - 0.01, done, epoch=epoch)

    asked = [answered(1.0, 1), answered(2.1, 2), answered(2.2, 1), answered(2.3, 2), answered(4.05, 3)]
    new, old = reactions(asked, [Event(2.0, "1.1", 2), Event(4.0, "1.2", 3)])
    assert new == pytest.approx([100, 50])
    assert old == pytest.approx([200, 0])
