"""Swap after swap under load: are the last ones like the first ones?

`--swaps` promotions in place, one every `--every-s` seconds, under requests at an even rate. The row of p99 compares
the requests of the last tenth of the swaps, a hundred of a thousand, with those of the first tenth, after `--warm-up`
swaps; the others what a replica's process holds: resident memory (`MiB` and ratio), open files and threads, the most of
any replica, as medians over the same two tenths. A leak would be a ratio above 1.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import time
from typing import Any

import numpy as np
import psutil

from benchmarks.deployed import Deployed, deployed, make_rows
from benchmarks.load import Clients, add_load_options, latencies_ms, p
from benchmarks.swap import Event, check, in_place, offline, p99_ratio, under_load

Row = dict[str, Any]
HELD = ("memory MiB", "files", "threads")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--swaps", type=int, default=1000)
    parser.add_argument("--every-s", type=float, default=0.6, help="seconds between two swaps (default 0.6)")
    parser.add_argument("--warm-up", type=int, default=20, help="swaps that do not count (default 20)")
    parser.add_argument("--versions", type=int, default=4, help="that take turns, 3 or more (default 4)")
    add_load_options(parser)


def run(options: argparse.Namespace) -> list[Row]:
    with deployed(versions=options.versions, device=options.device) as app:
        return asyncio.run(measure(app, options))


async def measure(app: Deployed, options: argparse.Namespace) -> list[Row]:
    rows = make_rows(64)
    expected = offline(app.store, app.versions, rows, options.device)
    held: list[tuple[float, ...]] = []
    replicas = list(app.replicas().values())
    async with Clients(app.url, rows) as clients:
        rate = await clients.rate(options)
        plan = [(1.0 + i * options.every_s, True) for i in range(options.warm_up + options.swaps)]
        started = time.perf_counter()
        with in_place(app, options.versions) as swap:
            await swap()  # which starts the process

            async def watched() -> Event:
                event = await swap()
                held.append(what_is_held(replicas))
                return event

            asked, events = await under_load(clients, rate, plan, watched)
        took = time.perf_counter() - started
        everything = list(clients.asked)
    tenth = max(1, options.swaps // 10)
    first, last = slice(options.warm_up, options.warm_up + tenth), slice(-tenth, None)
    # `p99_ratio` holds swaps against shams: the last against the first.
    ends = [*(Event(e.at) for e in events[first]), *events[last]]
    ratio, interval = p99_ratio(asked, ends, options.every_s, options.seed)
    app.serving.stop()
    result: list[Row] = [
        {
            "name": f"p99, last {tenth} swaps to first",
            "ratio": ratio,
            "interval": interval,
            "swaps": len(events),
            "requests": len(asked),
            "failed": sum(one.error is not None for one in asked),
            "p99 ms": p(latencies_ms(asked), 99),
            "seconds": took,
            **check(app, everything, expected),
        }
    ]
    table = np.array(held)
    for name, column in zip(HELD, table.T, strict=True):
        begin, end = float(np.median(column[first])), float(np.median(column[last]))
        result.append({"name": name, "ratio": end / begin, "first": begin, "last": end, "most": float(column.max())})
    return result


def what_is_held(replicas: list[psutil.Process]) -> tuple[float, ...]:
    """The most of any replica: resident memory in MiB, open files, sockets among them, and threads."""
    each = []
    for replica in replicas:
        with contextlib.suppress(psutil.NoSuchProcess):
            each.append((replica.memory_info().rss / 2**20, replica.num_fds(), replica.num_threads()))
    return tuple(float(value) for value in np.max(each, axis=0))
