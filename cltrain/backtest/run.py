"""The job around a backtest: strategies, trials on Ray Tune, the choice, and what is written of it."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from cltrain.assemble import open_store, run_info
from cltrain.backtest.ledger import Kept, Trials
from cltrain.backtest.replay import History, run_strategy
from cltrain.backtest.report import render, tables
from cltrain.backtest.searcher import make_searcher
from cltrain.backtest.settings import Backtest
from cltrain.backtest.strategy import Strategies, Strategy
from cltrain.backtest.verdict import Judgement
from cltrain.clock import parse_duration, to_us
from cltrain.config import build
from cltrain.data.encoder import outline
from cltrain.data.event_log import EventLog
from cltrain.errors import ConfigError
from cltrain.models.build import check_model
from cltrain.parts import Timeline
from cltrain.records import Json
from cltrain.seeding import derive_seed
from cltrain.storage import Storage, digest_json
from cltrain.tracking.base import Trackers
from cltrain.tracking.history import finite

log = logging.getLogger(__name__)

LEAST_PERIODS = 3  # of each part of history
CHOSEN = "chosen"


def run_backtest(settings: Mapping[str, Any], strategies: Strategies, write: Any = None) -> Json:
    """`jobs.backtest`: many strategies over the same history. `strategies` makes them; `write(strategy, about)` gives
    the text of the experiment that runs one. Returns the summary. Results of trials are kept in the store as they end,
    so that a backtest which was interrupted, or is given more to try, repeats none of them."""
    backtest = strategies.backtest
    parts = {key: build(settings[key], key) for key in ("data", "clock", "window", "cluster", "snapshot", "tracking")}
    if parts["clock"].waits:
        raise ConfigError("jobs.backtest takes its time from the data: set clock=data")
    event_log = EventLog(parts["data"])
    check_model(settings["model"], outline(event_log.schema))
    history = cut(settings, backtest, parts, event_log)
    parts["cluster"].require_room("backtest", backtest.cpus_per_trial, backtest.gpus_per_trial)
    fixed = _fixed(strategies)
    store = open_store(settings)
    files = sorted((file.name, file.digest) for file in event_log.files.values())
    work = {
        "history": asdict(history),
        "task": parts["data"].task,
        "engine": settings["engine"],
        "threads": parts["cluster"].threads_per_worker,
        "device": "cuda" if backtest.gpus_per_trial else "cpu",
    }
    judgement = Judgement(backtest, work["task"], history.ranked, settings["seed"])
    seed = derive_seed(settings["seed"], "backtest")
    searched = max(0, backtest.trials - len(fixed)) if strategies.space else 0
    kinds = len(backtest.objectives)
    trials = Trials(
        fixed=fixed,
        whole=("current", backtest.baseline),
        at=lambda number, point: strategies.at(f"strategy_{number:02d}", point),
        searcher=make_searcher(strategies.space, backtest.searcher, kinds, seed, searched) if searched else None,
        objectives=backtest.objectives,
        count=backtest.trials if strategies.space else len(fixed),
        generation=backtest.generation,
        kept=Kept(store.storage, work | {"files": digest_json(files)}, backtest.stop_margin),
        choose=judgement.choose,
        baseline=backtest.baseline,
        told=_Told(judgement.task, backtest, parts["cluster"].num_cpus),
    )
    started = time.perf_counter()
    scratch = tempfile.mkdtemp(prefix="cltrain-backtest-")
    try:
        with parts["cluster"].session(True, {"job": settings["name"], "store": str(store.to_json()["root"])}):
            from cltrain.cluster.tune import run_trials

            run_trials(
                run_strategy,
                work | {"stop_margin": backtest.stop_margin, "scratch": scratch, "cache_gib": backtest.cache_gib},
                trials,
                lambda line: None,
                trials=trials.total,
                cpus=backtest.cpus_per_trial,
                gpus=backtest.gpus_per_trial,
            )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    lines = trials.table()
    result = finite(judgement.judge(lines))
    result |= {
        "store": str(store.to_json()["root"]),
        "run_dir": settings["run_dir"],
        "history": asdict(history),
        "objectives": list(backtest.objectives),
        "baseline": backtest.baseline,
        "seconds": time.perf_counter() - started,
    }
    result = _written(result, lines, trials.strategies, settings, write)
    said = {key: result[key] for key in ("chosen", "tried", "luck", "confirmation", "seconds")}
    info = run_info(settings, work["task"], store)
    Trackers(parts["tracking"].values()).measured(info, tables(result, lines), said)
    return result


def cut(settings: Mapping[str, Any], backtest: Backtest, parts: Mapping[str, Any], event_log: EventLog) -> History:
    """Periods from the end of the first window of the present settings to the end of history."""
    timeline = Timeline(event_log, parts["clock"])
    first = next(iter(parts["window"].cut(timeline, None)), None)
    if first is None:
        raise ConfigError("history does not fill the first window: make window.every (or window.rows) smaller")
    begin, end = to_us(first.end), to_us(event_log.end())
    every = backtest.period or settings["window"].get("every")
    span = (end - begin) // 48 if every is None else parse_duration(every) // parse_duration("1ms") * 1000
    periods = int((end - begin) / max(1, span) + parts["clock"].slack)
    ranked = round(periods * (1 - backtest.confirm_share))
    if min(ranked, periods - ranked) < LEAST_PERIODS:
        raise ConfigError(
            f"history after the first window has {periods} periods of {every}, too few to rank strategies on the first "
            f"part and to confirm the choice on the last: make backtest.period or window.bootstrap smaller"
        )
    return History(begin_us=begin, period_us=span, periods=periods, ranked=ranked)


def _fixed(strategies: Strategies) -> list[Strategy]:
    """What is tried whatever the searcher says, the longest first, each once."""
    backtest = strategies.backtest
    found = [strategies.named(backtest.baseline), strategies.current]
    names = {strategy.name for strategy in found}
    for name, overrides in backtest.named.items():
        if name not in names:
            found.append(strategies.named(name, overrides))
    if backtest.iterations:
        found += strategies.one_by_one()
    seen: dict[str, Strategy] = {}
    for strategy in found:
        same = seen.setdefault(digest_json(strategy.settings), strategy)
        if same is not strategy and strategy.name in names:
            raise ConfigError(
                f"backtest.baseline={backtest.baseline} is what the present settings are: name another one"
            )
        if same is not strategy:
            log.warning("strategy %s is the same as %s and is tried once", strategy.name, same.name)
    return list(seen.values())


def _written(result: Json, lines: list[Json], made: list[Strategy], settings: Mapping[str, Any], write: Any) -> Json:
    chosen = next(s for s in made if s.name == result["chosen"])
    name = chosen.name if chosen.name.isidentifier() and chosen.name != "current" else CHOSEN
    storage = Storage(settings["run_dir"])
    said = [
        f"{chosen.name}, chosen by jobs.backtest of {result['tried']} strategies.",
        result["confirmation"]["verdict"],
    ]
    if write is not None:
        storage.write(f"experiment/{name}.yaml", write(chosen, said).encode())
        folder = os.path.abspath(settings["run_dir"])
        result["experiment"] = f"{folder}/experiment/{name}.yaml"
        result["command"] = f"python -m jobs.loop --config-dir {folder} +experiment={name}"
    storage.write_json("trials.json", {"trials": [{k: v for k, v in line.items() if k != "points"} for line in lines]})
    storage.write("report.html", render(result, lines).encode())
    return result


class _Told:
    """Says how far the trials are, and about how long the rest takes."""

    def __init__(self, task: str, backtest: Backtest, cpus: int | None) -> None:
        self._at_once = max(1, int((cpus or os.cpu_count() or 1) / backtest.cpus_per_trial))
        self._seconds: list[float] = []
        self._count = 0

    def __call__(self, line: Json, total: int) -> None:
        self._count += 1
        self._seconds.append(line["seconds"] or 0.0)
        if line["ranked"]:
            ranked = line["ranked"]
            came = f"loss {ranked['loss']:.4f}, {ranked['rows']:,} row visits, {ranked['updates']} updates"
        else:
            came = line["stopped"] or line["error"]
        left = sum(self._seconds) / len(self._seconds) * max(0, total - self._count) / self._at_once / 60
        log.warning("%d of %d, %s: %s; about %.0f min left", self._count, total, line["name"], came, left)
