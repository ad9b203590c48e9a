"""`jobs.freshness`: from settings to trials on a cluster, and to the value of fresh data."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

from cltrain.assemble import open_store, run_info
from cltrain.clock import to_us
from cltrain.config import build
from cltrain.data.encoder import outline
from cltrain.data.event_log import NEVER, EventLog
from cltrain.data.snapshot import Rule, Snapshots
from cltrain.errors import ConfigError, UpdateError
from cltrain.evaluate import headline
from cltrain.freshness.grid import Period, Plan, periods_of, planned
from cltrain.freshness.ledger import Ledger, TrialFiles, run_batch, with_keys
from cltrain.freshness.progress import TrialProgress
from cltrain.freshness.result import enough, summary_of
from cltrain.freshness.settings import Freshness
from cltrain.freshness.trial import slices_of, trainable_times
from cltrain.models.build import check_model, supports_incremental
from cltrain.records import Json
from cltrain.search import GROUPS
from cltrain.seeding import derive_seed
from cltrain.storage import Storage
from cltrain.tracking.base import Trackers
from cltrain.tracking.freshness import NAME, render
from cltrain.tracking.freshness import tables as tables_of

log = logging.getLogger(__name__)
KEYS = ("data", "clock", "snapshot", "memory", "method", "adapter", "train", "cluster", "freshness", "tracking")


def run_freshness(settings: Mapping[str, Any]) -> Json:
    """Train on windows of the past, evaluate on later ones, and say how often to update. A measurement that was
    interrupted goes on with the trials that it lacks. Returns the summary; `report.html` is in the run folder."""
    parts = {key: build(settings[key], key) for key in KEYS}
    asked: Freshness = parts["freshness"]
    modes = _modes(asked, parts["method"], settings)
    if parts["cluster"].workers:
        parts["cluster"].require_room("freshness", asked.cpus_per_trial, asked.gpus_per_trial)
    event_log = EventLog(parts["data"])
    check_model(settings["model"], outline(event_log.schema))
    first = event_log.first()
    assert first is not None  # an empty log is refused
    bounds = periods_of(asked, first, event_log.end(), parts["clock"].slack)
    store = open_store(settings)
    snapshots = Snapshots(event_log, store.storage, parts["snapshot"], settings["seed"])
    share = parts["snapshot"].holdout_share
    periods = []
    tables = []
    for index, start, end in bounds:
        rule = Rule(role="freshness", split="all", until=NEVER, start=to_us(start), end=to_us(end))
        frozen = snapshots.freeze(rule)
        table = snapshots.table(frozen)
        periods.append(Period(index, start, end, frozen.digest, frozen.rows, trainable_times(table, share)))
        tables.append(table)
    plan = planned(asked, periods, parts["snapshot"].max_rows, modes)
    place = {"root": str(store.to_json()["root"]), "threads": parts["cluster"].threads_per_worker}
    work: Json = {
        "settings": {key: settings[key] for key in GROUPS},
        "seed": derive_seed(settings["seed"], "freshness"),
        "eval_rows": asked.eval_rows,
        "slices": _slices(asked, event_log, tables),
        "holdout_share": share,
        "device": "cuda" if asked.gpus_per_trial else "cpu",
        **place,
    }
    trials = with_keys(plan.trials, work)
    files = TrialFiles(store.storage)
    ledger = Ledger(
        trials=trials,
        known=files.known(trials),
        ready=files.has_state,
        enough=enough(asked, plan, trials, settings["seed"]),
        planned=_visits(parts["train"]),
    )
    _run(asked, parts["cluster"], work, ledger, {"job": settings["name"], "store": place["root"]})
    if ledger.interrupted:
        raise UpdateError(
            f"interrupted: {len(ledger.results)} of {len(trials)} trials have ended and are on file; the same command "
            "goes on with the others"
        )
    if not ledger.results:
        raise UpdateError(f"none of {len(trials)} trials could be trained: {next(iter(ledger.failed.values()))}")
    if not ledger.failed and not ledger.waiting:
        files.forget_states()
    metric = headline(parts["data"].task)
    summary = summary_of(asked, plan, trials, ledger.results, metric, settings["seed"])
    if summary["curve"] is None:
        raise UpdateError(
            f"{len(ledger.failed)} of {len(trials)} trials failed, and too few windows are left: "
            f"{next(iter(ledger.failed.values()))}"
        )
    summary |= _about(settings, plan, periods, ledger) | {"store": place["root"], "run_dir": settings["run_dir"]}
    Storage(settings["run_dir"]).write(NAME, render(summary).encode())
    said = {key: summary[key] for key in ("recommended_every", "half_life", "cost", "trials")}
    info = run_info(settings, parts["data"].task, store)
    Trackers(parts["tracking"].values()).measured(info, tables_of(summary), said)
    return summary


def _run(asked: Freshness, cluster: Any, work: Json, ledger: Ledger, about: dict[str, str]) -> None:
    """In this process without workers, else on Ray Tune."""
    if ledger.over:
        return
    with TrialProgress(ledger) as progress:
        if not cluster.workers:
            while (batch := ledger.begin()) is not None:
                ledger.end(batch["trial"], run_batch(work, batch))
                progress.ended()
            return
        with cluster.session(True, about):
            from cltrain.cluster.tune import run_trials

            run_trials(
                run_batch,
                work,
                ledger,
                lambda _: progress.ended(),
                trials=len(ledger.waiting),
                cpus=asked.cpus_per_trial,
                gpus=asked.gpus_per_trial,
            )


def _modes(asked: Freshness, method: Any, settings: Mapping[str, Any]) -> list[str]:
    continues = method.stateful and supports_incremental(settings["model"])
    if asked.mode == "stateful" and not continues:
        raise ConfigError(
            "freshness.mode=stateful needs a method and a model that can be updated, and these train from scratch each "
            "time: set freshness.mode=stateless, or another method"
        )
    return [mode for mode in asked.modes if mode == "stateless" or continues]


def _slices(asked: Freshness, event_log: EventLog, tables: list[Any]) -> Json | None:
    if asked.slice_by is None:
        return None
    kinds = {feature.name: feature.kind for feature in event_log.schema.features}
    if kinds.get(asked.slice_by) not in ("categorical", "numeric"):
        usable = ", ".join(name for name, kind in kinds.items() if kind in ("categorical", "numeric"))
        raise ConfigError(f"freshness.slice_by={asked.slice_by} is no feature to slice by; there are: {usable}")
    return slices_of(tables, asked.slice_by, asked.max_slices)


def _visits(training: Mapping[str, Any]) -> Callable[[Json], float]:
    """How much work a trial is, about: visits of rows, and evaluations."""

    def visits(trial: Json) -> float:
        rows = trial["rows"]
        kind = "stateless" if trial["parent"] is None else "stateful"
        return float(training[kind].plan(rows)[1] * rows + 1_000)

    return visits


def _about(settings: Mapping[str, Any], plan: Plan, periods: list[Period], ledger: Ledger) -> Json:
    used = {trial["boundary"] for trial in plan.trials} | set(plan.windows)
    return {
        "model": settings["model"]["name"],
        "periods": [
            {"index": p.index, "start": p.start.isoformat(), "end": p.end.isoformat(), "rows": p.rows}
            for p in periods
            if p.index in used
        ],
        "trials": {
            "planned": len(plan.trials),
            "on_file": ledger.resumed,
            "failed": len(ledger.failed),
            "stopped_early": ledger.stopped,
        },
        "freshness": settings["freshness"],
    }
