"""What a change of version costs the requests that are under way, at half of what the replicas can do and more.

Requests go out at an even rate and are timed from when they were due. While they do, versions are promoted in place,
mixed at random with shams: moments just like it at which nothing is promoted. Another process than that of the clients
promotes, as in life: its work is no delay of theirs. `ratio` is p99 of the requests due in the
`--window-s` seconds after a swap over that after a sham, with its 95 % interval from resampling the moments. Each swap
loads a version that no replica holds. `asked to new` and `asked to old` are ms from the call that promotes to the first
answer of the new version and to the last one of the old, loading included, which takes `load ms` where nothing else
runs.

Then the log is read, and each answer held against it: version, epoch, its one row in the log and what the version
answers offline must agree; `failed`, `answered twice` and `disagree` count those where something is wrong. The rows
below are Ray Serve's own ways with the bare deployment of the same model: a redeploy, and a `reconfigure` that loads.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from benchmarks.deployed import BARE, Deployed, deployed, load_seconds, make_rows, offline
from benchmarks.load import Asked, Clients, add_load_options, latencies_ms, p
from cltrain.registry import Registry, Store
from serve.logs.prediction_log import read_predictions
from serve.settings import LogSettings

SETTLE_S = 2.0
Row = dict[str, Any]


@dataclass
class Event:
    """A moment at which a version was promoted, or would have been: `version` and `epoch` are of a swap."""

    at: float
    version: str = ""
    epoch: int = 0
    done: float = 0.0


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--swaps", type=int, default=200, help="and as many shams (default 200)")
    parser.add_argument("--requests", type=int, default=100_000, help="at least (default 100000)")
    parser.add_argument("--window-s", type=float, default=1.0, help="after a swap or sham (default 1)")
    parser.add_argument("--versions", type=int, default=4, help="that take turns, 3 or more (default 4)")
    parser.add_argument("--contrast", type=int, default=3, help="swaps by each of Serve's own ways (default 3)")
    parser.add_argument("--contrast-s", type=float, default=30.0, help="between two of them (default 30)")
    add_load_options(parser)


def run(options: argparse.Namespace) -> list[Row]:
    with deployed(versions=options.versions, device=options.device, log=LogSettings(capacity_rows=1_000_000)) as app:
        return asyncio.run(measure(app, options))


async def measure(app: Deployed, options: argparse.Namespace) -> list[Row]:
    rows = make_rows(64)
    expected = offline(app.store, app.versions, rows, options.device)
    load_s = load_seconds(app.store, app.versions, options.device)
    async with Clients(app.url, rows) as clients:
        rate = await clients.rate(options)
        interval = max(options.requests / rate / (2 * options.swaps), options.window_s + 0.5)
        print(f"a swap or a sham every {interval:.2f} s", flush=True)
        with in_place(app, options.versions) as swap:
            await swap()  # which starts the process
            asked, events = await under_load(clients, rate, schedule(options.swaps, interval, options.seed), swap)
        everything = list(clients.asked)
    swaps = [event for event in events if event.epoch]
    ratio, interval_of = p99_ratio(asked, events, options.window_s, options.seed)
    new, old = reactions(asked, swaps)
    result: Row = {
        "name": "in place",
        "ratio": ratio,
        "interval": interval_of,
        "swaps": len(swaps),
        "requests": len(asked),
        "failed": sum(one.error is not None for one in asked),
        "p50 ms": p(latencies_ms(asked), 50),
        "p99 ms": p(latencies_ms(asked), 99),
        "load": rate / clients.capacity,
        "load ms": 1e3 * load_s,
        "asked to new ms": p(new, 50),
        "asked to old ms": p(old, 50),
        "asked to old, worst ms": p(old, 100),
    }
    contrast = [
        await contrasted(app, rows, rate, options, name, in_place=name == "reconfigure")
        for name in ("redeploy", "reconfigure")
        if options.contrast
    ]
    app.serving.stop()
    return [{**result, **check(app, everything, expected)}, *contrast]


def schedule(swaps: int, interval: float, seed: int) -> list[tuple[float, bool]]:
    """Seconds from the start at which a swap (True) or a sham is due: one of each in every pair, in random order."""
    generator = np.random.default_rng(seed)
    kinds = [kind for _ in range(swaps) for kind in generator.permutation([True, False])]
    return [(SETTLE_S + i * interval, bool(kind)) for i, kind in enumerate(kinds)]


@contextmanager
def in_place(app: Deployed, versions: int) -> Iterator[Callable[[], Awaitable[Event]]]:
    """Promotes the version that has been away for longest, in another process."""
    turn = iter(range(1, 10**9))
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as promoter:

        async def swap() -> Event:
            version = app.versions[next(turn) % versions]
            asked = promoter.submit(promote, app.store.to_json(), app.registry.model, version)
            return await asyncio.wrap_future(asked)

        yield swap


def promote(store: dict[str, str], model: str, version: str) -> Event:
    """Promote in this process; `time.perf_counter` is the same in all processes of a machine."""
    registry = _registry(store["root"], store["url"], model)
    event = Event(time.perf_counter(), version=version)
    event.epoch = registry.promote(version, reason="swap")
    event.done = time.perf_counter()
    return event


@cache
def _registry(root: str, url: str, model: str) -> Registry:
    return Registry(Store(root=root, url=url), model)


async def under_load(
    clients: Clients, rate: float, plan: Sequence[tuple[float, bool]], swap: Callable[[], Awaitable[Event]]
) -> tuple[list[Asked], list[Event]]:
    """Requests at `rate` for as long as the plan lasts, and what was done meanwhile. A swap that takes longer than the
    plan has room for puts off those after it."""
    interval = (plan[-1][0] - plan[0][0]) / max(1, len(plan) - 1) + SETTLE_S
    over = asyncio.Event()
    load = asyncio.create_task(clients.open_loop(rate, int(rate * (plan[-1][0] + interval)), over))
    started, events = time.perf_counter(), []
    for at, real in plan:
        started = max(started, time.perf_counter() - at)
        await asyncio.sleep(max(0.0, started + at - time.perf_counter()))
        events.append(await swap() if real else Event(time.perf_counter()))
        if real and (late := time.perf_counter() - events[-1].at - interval) > 0:
            started += late + interval
    await asyncio.sleep(interval)
    over.set()
    return await load, events


def p99_ratio(
    asked: Sequence[Asked], events: Sequence[Event], window_s: float, seed: int, draws: int = 1000
) -> tuple[float, list[float]]:
    """p99 of the requests due in the windows of swaps over those of shams, and its 95 % interval from a bootstrap over
    the windows: what one swap does to its requests is one observation."""
    due, ms = np.array([one.due for one in asked]), latencies_ms(asked)
    windows = {True: [], False: []}  # type: dict[bool, list[np.ndarray]]
    for event in events:
        windows[bool(event.epoch)].append(ms[(due >= event.at) & (due < event.at + window_s)])
    real, sham = windows[True], windows[False]
    generator = np.random.default_rng(seed)

    def drawn(parts: list[np.ndarray]) -> float:
        return p(np.concatenate([parts[i] for i in generator.integers(0, len(parts), len(parts))]), 99)

    ratios = [drawn(real) / drawn(sham) for _ in range(draws)]
    low, high = np.percentile(ratios, [2.5, 97.5])
    return p(np.concatenate(real), 99) / p(np.concatenate(sham), 99), [float(low), float(high)]


def reactions(asked: Sequence[Asked], swaps: Sequence[Event]) -> tuple[np.ndarray, np.ndarray]:
    """Milliseconds from each call to promote to the first answer at its epoch or later, and to the last answer at an
    earlier one, 0 if there was none after the call."""
    answered = [one for one in asked if one.error is None]
    done, epoch = np.array([one.done for one in answered]), np.array([one.epoch for one in answered])
    new = [1e3 * (done[epoch >= swap.epoch].min() - swap.at) for swap in swaps if (epoch >= swap.epoch).any()]
    old = [1e3 * max(0.0, done[epoch < swap.epoch].max() - swap.at) for swap in swaps if (epoch < swap.epoch).any()]
    return np.array(new), np.array(old)


def check(app: Deployed, asked: Sequence[Asked], expected: dict[str, list[float]]) -> Row:
    """Hold every answer against the registry, the log, which must be complete, and the version offline."""
    log = read_predictions(app.store.storage).select(["request_id", "event_id", "version", "epoch", "prediction"])
    logged = {row["request_id"]: row for row in log.to_pylist()}
    epochs = {time["epoch"]: time["version"] for time in app.registry.served()}
    wrong = 0
    for one in asked:
        if one.error is not None:
            continue
        version, row = one.version.rpartition(":")[2], logged.get(one.request_id)
        wrong += not (
            row is not None
            and (row["version"], row["epoch"], row["prediction"]) == (version, one.epoch, one.prediction)
            and row["event_id"] == one.event_id == f"q{one.number}-0"
            and epochs[one.epoch] == version
            and expected[version][one.row] == one.prediction
        )
    twice = sum(count - 1 for count in Counter(log["event_id"].to_pylist()).values())
    return {"answered twice": twice, "checked": len(asked), "disagree": wrong}


async def contrasted(
    app: Deployed, rows: list[Row], rate: float, options: argparse.Namespace, name: str, in_place: bool
) -> Row:
    """Swap the bare deployment, by `serve.run`, under the same load; `in_place` by what `reconfigure` does."""
    state = {app.state(version): number for number, version in enumerate(app.versions)}
    turn = iter(range(1, 10**9))
    await app.bare(app.versions[0], in_place)

    async def swap() -> Event:
        version = app.versions[next(turn) % len(app.versions)]
        event = Event(time.perf_counter(), version=version, epoch=1)
        await app.bare(version, in_place)
        event.done = time.perf_counter()
        return event

    async with Clients(app.url, rows, path=f"{BARE}/predict") as clients:
        await clients.closed_loop(options.capacity_s / 2, at_once=16)
        plan = schedule(options.contrast, options.contrast_s, options.seed)
        asked, events = await under_load(clients, rate, plan, swap)
    new, old = [], []
    for event in (event for event in events if event.epoch):
        wanted = app.state(event.version)
        after = [one for one in asked if one.error is None and event.at < one.done < event.at + options.contrast_s]
        new += [1e3 * (one.done - event.at) for one in after if one.version == wanted][:1]
        old += [1e3 * (one.done - event.at) for one in after if one.version in state and one.version != wanted][-1:]
    ratio, interval = p99_ratio(asked, events, options.contrast_s, options.seed)
    return {
        "name": f"Ray Serve's {name}",
        "ratio": ratio,
        "interval": interval,
        "swaps": options.contrast,
        "requests": len(asked),
        "failed": sum(one.error is not None for one in asked),
        "p50 ms": p(latencies_ms(asked), 50),
        "p99 ms": p(latencies_ms(asked), 99),
        "asked to new ms": p(np.array(new), 50),
        "asked to old ms": p(np.array(old), 50),
        "asked to old, worst ms": p(np.array(old), 100),
    }
