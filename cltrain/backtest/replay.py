"""One trial: the loop itself over recorded history, with the settings of a strategy. Settings in, figures out."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from cltrain.assemble import running_loop
from cltrain.clock import from_us, to_us
from cltrain.config import build
from cltrain.data.event_log import EventLog
from cltrain.errors import ConfigError, UpdateError
from cltrain.evaluate.metrics import MetricSums, total
from cltrain.loop import Loop
from cltrain.observe import event_us, prequential_name
from cltrain.parts import Clock
from cltrain.records import Json, Round
from cltrain.storage import read_arrow
from cltrain.tracking.base import Tracker
from cltrain.train.predictor import Predictor, Scores


@dataclass(frozen=True, kw_only=True)
class History:
    """How history is cut: `periods` periods of `period_us` from `begin_us` on, the first `ranked` of which are what
    strategies are ranked by, and the others what the choice is confirmed by."""

    begin_us: int
    period_us: int
    periods: int
    ranked: int

    @property
    def split_us(self) -> int:
        return self.begin_us + self.ranked * self.period_us


@dataclass(kw_only=True)
class Until:
    """A clock that stops at `end_us`, for what must not see the last part of history."""

    clock: Clock
    end_us: int
    slack: float = 0.0
    waits: bool = False

    def now(self, data_end: datetime) -> datetime:
        return min(self.clock.now(data_end), from_us(self.end_us))

    def wait(self) -> bool:
        return False


class GivenUpError(Exception):
    """The strategy costs more than another one and is clearly worse."""


class Judge(Tracker):
    """Ends a trial once one of `bars` is better by `margin`, a share of its loss, on the very same windows, for no more
    row visits and updates. bars: of an earlier strategy its name and `Progress.points`; the first quarter of the ranked
    part decides nothing."""

    def __init__(self, bars: Sequence[Json], margin: float | None, history: History) -> None:
        self._bars = [(bar["name"], {point[0]: point for point in bar["points"]}) for bar in bars]
        self._margin = margin
        self._from = history.begin_us + history.ranked * history.period_us // 4
        self._until = history.split_us
        self.progress = Progress()

    def finished(self, round_: Round) -> None:
        self.progress.add(round_)
        end, rows, loss, trained, updates = self.progress.points[-1]
        if self._margin is None or not self._from <= end <= self._until or not rows:
            return
        for name, points in self._bars:
            other = points.get(end)
            if other and other[1] == rows and other[3] <= trained and other[4] <= updates:
                theirs = other[2] / rows
                if loss / rows > theirs * (1 + self._margin):
                    raise GivenUpError(
                        f"at {from_us(int(end)):%Y-%m-%d} its loss was {loss / rows:.4g}, and {theirs:.4g} that of "
                        f"{name}, which costs no more"
                    )


class Progress:
    """points: after each round the end of its window, rows predicted, sum of their losses, row visits and updates so
    far."""

    def __init__(self) -> None:
        self.points: list[list[float]] = []

    def add(self, round_: Round) -> None:
        _, rows, loss, trained, updates = self.points[-1] if self.points else (0, 0, 0.0, 0, 0)
        seen = round_.observation.prequential
        mean = seen.get("squared_error", seen.get("log_loss", 0.0))
        self.points.append(
            [
                to_us(round_.window.end),
                rows + seen.get("rows", 0),
                loss + mean * seen.get("rows", 0),
                trained + sum(v["rows_trained"] for v in round_.versions),
                updates + (len(round_.versions) if round_.index else 0),
            ]
        )


def run_strategy(work: Mapping[str, Any], trial: Mapping[str, Any]) -> Json:
    """`work`: what the trials share: data and engine settings, threads, device, task, history, stop_margin, scratch (a
    folder) and cache_gib. `trial`: `plan`, as JSON: settings of a job, `whole` (the last part of history too)
    and bars. Returns figures of the ranked part and, with `whole`, of all; or `stopped` or `error`, why there are none.
    """
    plan = json.loads(trial["plan"])
    started = time.perf_counter()
    os.makedirs(work["scratch"], exist_ok=True)
    folder = tempfile.mkdtemp(prefix="trial-", dir=work["scratch"])
    result: Json = {"ranked": None, "all": None, "periods": None, "points": [], "stopped": None, "error": None}
    try:
        _share_snapshots(folder, work["scratch"], work["cache_gib"])
        result |= _replayed(work, plan, folder)
    except (ConfigError, UpdateError) as error:  # what would be the same again; a store that fails is not
        result["error"] = str(error)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return result | {"seconds": round(time.perf_counter() - started, 3)}


def _replayed(work: Mapping[str, Any], plan: Json, folder: str) -> Json:
    history = History(**work["history"])
    settings = plan["settings"] | {
        "name": "backtest",
        "max_rounds": None,
        "run_dir": folder,
        "store": {"root": folder, "url": None},
        "engine": work["engine"],
        "cluster": {
            "_target_": "cltrain.cluster.Cluster",
            "workers": 0,
            "threads_per_worker": work["threads"],
            "gpus_per_worker": 1.0 if work["device"] == "cuda" else 0.0,
        },
        "serve": {"_target_": "serve.local.NoServing"},
        "rollout": {"_target_": "serve.rollout.Swap"},
        "tracking": {},
        "approval": {"_target_": "cltrain.approval.Approval"},  # nobody is asked about history
    }
    judge = Judge(plan["bars"], work["stop_margin"], history)
    log = _event_log(json.dumps(settings["data"], sort_keys=True))
    with running_loop(settings, event_log=log, aside=True) as (loop, _):
        if not plan["whole"]:
            loop.clock = Until(clock=loop.clock, end_us=history.split_us)
        loop.tracker = judge
        try:
            rounds = loop.run()
        except GivenUpError as why:
            return {"stopped": str(why), "points": judge.progress.points}
        ranked = [r for r in rounds if to_us(r.window.end) <= history.split_us]
        periods = by_period(loop, rounds, work["task"], history, plan["whole"])
        rows, losses = (sum(periods[key][: history.ranked]) for key in ("rows", "losses"))
        return {
            "ranked": figures(loop, ranked, work["task"]) | {"loss": losses / rows if rows else None},
            "all": figures(loop, rounds, work["task"]) if plan["whole"] else None,
            "periods": periods,
            "points": [point for point in judge.progress.points if point[0] <= history.split_us],
        }


def figures(loop: Loop, rounds: Sequence[Round], task: str) -> Json:
    """What the strategy came to after `rounds`: retention of the champion of then on the held-out rows of all windows,
    and cost. The first model, which every strategy has, counts among the row visits and not among the updates."""
    storage = loop.registry.store.storage
    versions = [(r, v) for r in rounds for v in r.versions]
    fired = [r for r in rounds if r.versions]
    last = rounds.index(fired[-1]) + 1 if fired else 0
    retention: Json = {}
    if rounds and (champion := rounds[-1].champion):
        predictor = Predictor.load(storage, loop.registry.version(champion).state)
        held_out = [loop.snapshots.table(r.observation.holdout) for r in rounds if r.sound]
        retention = total(task, [MetricSums.of(predictor.score(rows)) for rows in held_out if rows.num_rows]).values()
    return {
        "retention": retention,
        "rounds": len(rounds),
        "updates": sum(r.index > 0 for r, _ in versions),
        "rejected": sum(not v["accepted"] for r, v in versions if r.index > 0),
        "failed": sum(r.status == "failed" for r in rounds),
        "rows": sum(v["rows_trained"] for _, v in versions),
        "rows_replayed": sum(v["rows_replayed"] for _, v in versions),
        "work": sum(v["rows_trained"] * v["parameters"] for _, v in versions),
        "labels": sum(r.observation.labelled for r in rounds[:last]),
        "train_seconds": sum(v["seconds"] for _, v in versions),
    }


def by_period(loop: Loop, rounds: Sequence[Round], task: str, history: History, whole: bool) -> Json:
    """Metrics of each period of event time, of the champion of each row's moment before it was trained on, and the sum
    of the losses. Rows of the ranked part whose labels came after its end count in no period, for any strategy."""
    storage = loop.registry.store.storage
    count = history.periods if whole else history.ranked
    parts: list[list[Scores]] = [[] for _ in range(count)]
    for r in rounds:
        name = prequential_name(loop.registry.model, r.index)
        if not storage.exists(name):
            continue
        table = read_arrow(storage.local_copy(name))
        place = (event_us(table) - history.begin_us) // history.period_us
        late = to_us(r.window.end) > history.split_us
        columns = [np.asarray(table.column(c)) for c in ("prediction", "target", "loss")]
        for period in np.unique(place):
            if (history.ranked if late else 0) <= period < (count if late else min(count, history.ranked)):
                chosen = place == period
                parts[period].append(Scores(task, *(column[chosen] for column in columns)))
    return {
        "rows": [sum(len(scores.losses) for scores in found) for found in parts],
        "losses": [float(sum(scores.losses.sum() for scores in found)) for found in parts],
        "metrics": [total(task, [MetricSums.of(scores) for scores in found]).values() for found in parts],
    }


@lru_cache(maxsize=1)
def _event_log(data: str) -> EventLog:
    return EventLog(build(json.loads(data), "data"))


def _share_snapshots(folder: str, scratch: str, cache_gib: float) -> None:
    """Let the store in `folder` find the decoded rows of all trials of this process: a snapshot is named by its rule,
    so what one trial has decoded another one reads."""
    shared = Path(scratch, f"rows-{os.getpid()}")
    if shared.exists() and sum(f.stat().st_size for f in shared.rglob("*") if f.is_file()) > cache_gib * 2**30:
        shutil.rmtree(shared)
    shared.mkdir(exist_ok=True)
    os.symlink(shared, Path(folder, "cache"))
