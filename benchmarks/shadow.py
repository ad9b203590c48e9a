"""What a bad shadow costs live answers: one that takes `--slower` times as long as they do, and one whose process is
killed again and again.

Requests go out at an even rate and are timed from when they were due. Turns without a shadow and with one follow each
other at random; a turn counts from when its shadow has loaded. `ratio` is p99 of the requests of turns with a shadow
over that of those without, with its 95 % interval from resampling the turns; `turn ratio` is that of the median turn,
on which a stall of the machine in one turn has no weight. `shed` are copies that no shadow got.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import psutil

from benchmarks.deployed import MODEL, Deployed, add_versions, deployed, make_rows
from benchmarks.load import Asked, Clients, add_load_options, latencies_ms, p
from benchmarks.swap import Event, p99_ratio
from cltrain.registry.deployment import STAGING, Deployments
from serve.rollout.controller import begin, end
from serve.rollout.evidence import read_evidence
from serve.rollout.guardrails import Guardrails
from serve.rollout.machine import Action
from serve.rollout.releases import Shadow

KINDS = ("slow", "crashing")
ENDLESS = Shadow(min_samples=10**9, guardrails=Guardrails(min_samples=10**9))
LIVE_S = 0.005
Row = dict[str, Any]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--turns", type=int, default=8, help="of each kind, and as many without (default 8)")
    parser.add_argument("--turn-s", type=float, default=10.0, help="that a turn is measured for (default 10)")
    parser.add_argument("--slower", type=float, default=10.0, help="than live answers (default 10)")
    parser.add_argument("--kill-every-s", type=float, default=2.0, help="the crashing shadow (default 2)")
    add_load_options(parser)


def run(options: argparse.Namespace) -> list[Row]:
    live = {"_target_": "benchmarks.deployed.SlowNet", "sleep_s": LIVE_S}
    with deployed(versions=1, model=live, device=options.device) as app:
        slow = {"_target_": "benchmarks.deployed.SlowNet", "sleep_s": options.slower * LIVE_S}
        (version,) = add_versions(app.store, 1, first=1, **slow)
        return asyncio.run(measure(app, version, options))


async def measure(app: Deployed, version: str, options: argparse.Namespace) -> list[Row]:
    draw = np.random.default_rng(options.seed)
    kinds = [kind for _ in range(options.turns) for kind in draw.permutation(["none", *KINDS])]
    turns: list[tuple[str, Event]] = []
    counted = dict.fromkeys(KINDS, 0) | {f"{kind} crashes": 0 for kind in KINDS}
    over = asyncio.Event()
    async with Clients(app.url, make_rows(64)) as clients:
        rate = await clients.rate(options)
        load = asyncio.create_task(clients.open_loop(rate, 0, over))
        for kind in kinds:
            trial = await asyncio.to_thread(start, app, version) if kind != "none" else None
            killer = asyncio.create_task(kill(app, options.kill_every_s)) if kind == "crashing" else None
            await asyncio.sleep(1.0)
            turns.append((str(kind), Event(time.perf_counter(), epoch=int(kind != "none"))))
            await asyncio.sleep(options.turn_s)
            if killer is not None:
                killer.cancel()
            if trial is not None:
                seen = read_evidence(app.store.storage, trial).arm("challenger")
                counted[kind] += seen.shed
                counted[f"{kind} crashes"] += seen.crashes
                await asyncio.to_thread(end, Deployments(app.registry), Action("stop", "turn over"), by="benchmark")
            await asyncio.sleep(1.0)
        over.set()
        asked = await load
    rows = []
    for kind in KINDS:
        events = [event for name, event in turns if name in ("none", kind)]
        ratio, interval = p99_ratio(asked, events, options.turn_s, options.seed)
        beside, alone = (turn_p99(asked, events, options.turn_s, shadow) for shadow in (True, False))
        rows.append(
            {
                "name": f"{kind} shadow",
                "ratio": ratio,
                "interval": interval,
                "turn ratio": beside / alone,
                "turns": options.turns,
                "requests": len(asked),
                "failed": sum(one.error is not None for one in asked),
                "p50 ms": p(latencies_ms(asked), 50),
                "p99 ms": p(latencies_ms(asked), 99),
                "shed": counted[kind],
                "crashes": counted[f"{kind} crashes"],
            }
        )
    return rows


def turn_p99(asked: Sequence[Asked], events: Sequence[Event], turn_s: float, shadow: bool) -> float:
    """Milliseconds: the median, over the turns with a shadow or without, of the p99 of a turn's requests."""
    turns = [event.at for event in events if bool(event.epoch) == shadow]
    return float(
        np.median([p(latencies_ms([one for one in asked if at <= one.due < at + turn_s]), 99) for at in turns])
    )


def start(app: Deployed, version: str) -> str:
    """Begin a shadow that never ends by itself, and wait until every replica has it; its id."""
    deployments = Deployments(app.registry)
    trial = begin(deployments, ENDLESS, version, by="benchmark", reason="turn").roll_out
    assert trial is not None
    deadline = time.monotonic() + 60
    while (now := deployments.current().running) is None or now.step == STAGING:
        if time.monotonic() > deadline:
            raise RuntimeError(f"the shadow {MODEL}:{version} was not staged in a minute")
        time.sleep(0.05)
    return trial.id


async def kill(app: Deployed, every_s: float) -> None:
    """kill -9 what answers copies, in all replicas, again and again."""
    while True:
        for replica in app.replicas().values():
            for zygote in replica.children():
                with contextlib.suppress(psutil.Error):
                    if "serve.rollout.zygote" in " ".join(zygote.cmdline()):
                        for child in zygote.children():
                            child.kill()
        await asyncio.sleep(every_s)
