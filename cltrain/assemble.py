"""From settings to a loop that can run, and the job around it."""

from __future__ import annotations

import contextlib
import functools
import getpass
import io
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from cltrain.approval import AwaitingApprovalError
from cltrain.clock import to_us
from cltrain.config import build
from cltrain.data.encoder import outline
from cltrain.data.event_log import EventLog
from cltrain.data.snapshot import Snapshots
from cltrain.errors import ConfigError, StoreError, UpdateError
from cltrain.evaluate import PredictionCache, headline
from cltrain.evaluate.spread import COLD_S, Spread
from cltrain.handover import EarlierSnapshots, read_log, warn
from cltrain.loop import Loop
from cltrain.models.build import check_model, supports_incremental
from cltrain.parts import Timeline
from cltrain.records import Json, Kind, RunInfo, to_json
from cltrain.registry import Registry, RoundLog, Store
from cltrain.reviews import review_of_evaluation, write_card
from cltrain.search import Search, TrialLog, Trials, best, candidates, visits_of, with_settings
from cltrain.storage import Storage, digest_json
from cltrain.summary import summarise
from cltrain.tracking.base import Trackers
from cltrain.train.optimizer import make_optimizer
from cltrain.train.predictor import Predictor
from cltrain.trial import rows_of_trials, run_trial, search_work

log = logging.getLogger(__name__)

STRATEGY = [
    "data",
    "clock",
    "window",
    "snapshot",
    "contract",
    "trigger",
    "memory",
    "method",
    "model",
    "adapter",
    "train",
    "recalibrate",
    "evaluate",
    "gate",
    "seed",
]
LATEST = Path("store", "latest")


def run_info(settings: Mapping[str, Any], task: str, store: Store) -> RunInfo:
    """What trackers are told of a job."""
    return RunInfo(
        name=settings["name"],
        model=settings["model"]["name"],
        task=task,
        metric=headline(task),
        run_dir=settings["run_dir"],
        store=str(store.to_json()["root"]),
        settings=dict(settings),
    )


def open_store(settings: Mapping[str, Any], create: bool = True) -> Store:
    """The store of the settings. Without `store.root` its folder is named after the model and the strategy, so that the
    same command finds what it began and another one starts anew; `store/latest` names the one used last."""
    root = settings["store"]["root"]
    if root is None:
        digest = digest_json({key: settings[key] for key in STRATEGY})[:8]
        root = str(Path("store", f"{settings['model']['name']}-{digest}"))
    store = Store(root=str(root), url=settings["store"]["url"])
    if create:
        store.storage.require_writable()
        _ = store.engine
        Storage(LATEST.parent).write(LATEST.name, f"{store.to_json()['root']}\n".encode())
    return store


def latest_store() -> str:
    """The store that a command line means when it names none: `CLTRAIN_STORE`, or the one that a job used last."""
    if found := os.environ.get("CLTRAIN_STORE"):
        return found
    if LATEST.exists() and (named := LATEST.read_text().strip()):
        return named
    raise StoreError("no store is named and no job has run here: pass --store FOLDER")


def strategy_of(settings: Mapping[str, Any]) -> Json:
    """The settings that decide what a version is; those of cluster, serving and tracking do not."""
    return {key: settings[key] for key in (*STRATEGY, "approval", "rollout")}


@contextmanager
def running_loop(
    settings: Mapping[str, Any], event_log: EventLog | None = None, aside: bool = False
) -> Iterator[tuple[Loop, RunInfo]]:
    """A loop with everything that it needs, started in the order in which a mistake shows soonest: settings, store,
    data, and only then Ray, serving and the workers. `settings` are resolved and plain. `event_log` is that of
    `settings["data"]`, where it was read before; `aside` leaves `store/latest` what it is."""
    parts, event_log, store = _ready(settings, event_log, aside)
    name = settings["model"]["name"]
    registry = Registry(store, name)
    snapshots = EarlierSnapshots(event_log, registry, settings["data"], parts["snapshot"], settings["seed"])
    info = run_info(settings, parts["data"].task, store)
    serving, cluster = parts["serve"], parts["cluster"]
    about = {"job": settings["name"], "model": name, "store": info.store}
    with (
        contextlib.ExitStack() as last,
        cluster.session(serving.needs_ray, about) as dashboard,
        cluster.runner(store, settings["engine"]) as runner,
    ):
        if dashboard:
            log.warning("Ray dashboard: %s", dashboard)
        tracker = Trackers(parts["tracking"].values())
        serving.start(store, name, tracker.alert)
        try:
            yield (
                Loop(
                    log=event_log,
                    clock=parts["clock"],
                    windows=parts["window"],
                    snapshots=snapshots,
                    contract=parts["contract"],
                    trigger=parts["trigger"],
                    recalibrate=parts["recalibrate"],
                    stateful=parts["method"].stateful and supports_incremental(settings["model"]),
                    runner=runner,
                    evaluation=parts["evaluate"],
                    gate=parts["gate"],
                    approval=parts["approval"],
                    registry=registry,
                    rounds=RoundLog(store, name),
                    serving=serving,
                    rollout=parts["rollout"],
                    tracker=tracker,
                    settings=strategy_of(settings),
                    seed=settings["seed"],
                ),
                info,
            )
        finally:
            last.enter_context(contextlib.redirect_stdout(io.StringIO()))  # Ray prints there when actors go
            serving.stop()


def run_loop(settings: Mapping[str, Any]) -> Json:
    """The main job. Returns the summary, which is also in `summary.json` of the run folder."""
    with running_loop(settings) as (loop, info):
        loop.tracker.start(info, loop.rounds.finished())
        rounds = loop.run(settings["max_rounds"])
        held_out = [loop.snapshots.table(r.observation.holdout) for r in rounds if r.sound]
        summary = summarise(rounds, loop.registry, loop.log, held_out) | {"store": info.store, "run_dir": info.run_dir}
        if loop.awaiting:
            log.warning("%s", loop.awaiting)
            summary["awaiting"] = loop.awaiting.version
        loop.tracker.close(rounds, summary)
        return summary


def run_by_hand(settings: Mapping[str, Any], kind: Kind) -> Json:
    """One update because somebody asks for it, `jobs.update` and `jobs.recalibrate`: weighed, judged and rolled out
    like any other. `settings` has `base` and `reason` beside those of the loop."""
    with running_loop(settings) as (loop, info):
        loop.tracker.start(info, loop.rounds.finished())
        if kind == "stateless" and settings.get("transfer") is not None:
            if settings["transfer"] != "surgery":
                raise ConfigError(
                    f"transfer must be surgery, or null to train from scratch, not {settings['transfer']!r}"
                )
            kind = "surgery"
        reason = f"manual:{getpass.getuser()}: {settings['reason']}"
        about = {"store": info.store, "run_dir": info.run_dir}
        try:
            done = loop.by_hand(kind, str(settings["base"]), reason, settings.get("transfer_names"))
        except AwaitingApprovalError as error:
            log.warning("%s", error)
            return about | {"awaiting": error.version}
        loop.tracker.finished(done)
        if done.status == "failed":
            raise UpdateError(f"{kind} update: {done.decision.reason}")
        return to_json(done) | about


def run_evaluation(settings: Mapping[str, Any]) -> Json:
    """`jobs.evaluate`: a version against the champion (or against `against`) on the held-out rows of every window."""
    parts = {key: build(settings[key], key) for key in ("data", "snapshot", "contract", "evaluate", "cluster")}
    store = open_store(settings, create=False)
    registry = Registry(store, settings["model"]["name"])
    version, rival = (registry.version(str(settings[key])) for key in ("version", "against"))
    event_log = EventLog(parts["data"])
    snapshots = EarlierSnapshots(event_log, registry, settings["data"], parts["snapshot"], settings["seed"])
    rounds = [r for r in RoundLog(store, registry.model).finished() if r.sound]
    held_out = [(r.index, snapshots.table(r.observation.holdout)) for r in rounds]
    ours, theirs = (Predictor.load(store.storage, v.state) for v in (version, rival))
    pair = [(ours, version), (theirs, rival)][: 1 if version.version == rival.version else 2]
    cache = PredictionCache(storage=store.storage).of(*((p, f"{v.state} {v.weights_digest}") for p, v in pair))
    cluster = parts["cluster"]
    with contextlib.ExitStack() as until:

        @functools.cache
        def workers() -> Any:
            about = {"job": settings["name"], "model": registry.model, "store": str(store.to_json()["root"])}
            until.enter_context(cluster.session(False, about))
            return until.enter_context(cluster.runner(store, settings["engine"]))

        spread = Spread(
            workers=cluster.workers,
            start=workers,
            states=[(p, v.state) for p, v in pair],
            snapshots={r.index: r.observation.holdout.digest for r in rounds},
            worth_s=COLD_S,
        )
        card = parts["evaluate"].card(
            ours, theirs if len(pair) > 1 else None, held_out, settings["seed"], score=spread, cache=cache
        )
    verdict = build(settings["gate"], "gate").judge(card)
    against = rival.version if version.version != rival.version else None
    write_card(review_of_evaluation(registry, version.version, against, card, verdict), settings["run_dir"])
    return {"version": version.version, "against": rival.version, "card": to_json(card), "verdict": to_json(verdict)}


def run_search(settings: Mapping[str, Any]) -> Json:
    """`jobs.search`: trials of other settings on the rows known now, within a budget. The best ones train one stateless
    challenger, weighed, judged and rolled out like any other, whose reason names the record of the trials. A search
    that was interrupted goes on with the trials that it lacks."""
    search: Search = build(settings["search"], "search")
    space = search.checked(settings)
    parts, event_log, store = _ready(settings)
    parts["cluster"].require_room("search", search.cpus_per_trial, search.gpus_per_trial)
    name = settings["model"]["name"]
    Registry(store, name).version(str(settings["base"]))
    snapshots = Snapshots(event_log, store.storage, parts["snapshot"], settings["seed"])
    broken = [r.window for r in RoundLog(store, name).finished() if not r.sound]
    snapshots.excluded = tuple((to_us(w.start), to_us(w.end)) for w in broken)
    now = parts["clock"].now(event_log.end())
    known = snapshots.between("train", "train", now, parts["recalibrate"].since(now), now)
    work = search_work(search, space, settings, known.digest)
    rows = rows_of_trials(snapshots.table(known), space, settings, event_log.schema, search.validation_share)
    tried = TrialLog(store.storage, work)
    points = candidates(space, settings, search.max_trials, settings["seed"])
    visits = [visits_of(with_settings(settings, point), work["stateful"]) for point in points]
    trials = Trials(
        candidates=points,
        visits=visits,
        rows=rows,
        max_rows=search.max_rows,
        max_seconds=search.max_seconds,
        known=tried.known(),
    )
    place = {"root": str(store.to_json()["root"]), "threads": parts["cluster"].threads_per_worker}
    with parts["cluster"].session(True, {"job": settings["name"], "model": name, "store": place["root"]}):
        from cltrain.cluster.tune import run_trials

        run_trials(
            run_trial,
            work | place | {"device": "cuda" if search.gpus_per_trial else "cpu"},
            trials,
            tried.keep,
            trials=len(points),
            cpus=search.cpus_per_trial,
            gpus=search.gpus_per_trial,
        )
        winner = best(trials.table())
        about = {"model": name, "metric": headline(parts["data"].task), "best": winner["trial"]}
        record = about | {"search": to_json(search), "work": work, "trials": trials.table()}
        found = tried.finish(record)
        Storage(settings["run_dir"]).write_json("trials.json", record)
        chosen = with_settings(settings, winner["settings"] | {"store.root": place["root"]})
        reason = f"trial {winner['trial']} of {len(trials.table())} in {found}"
        return (
            run_by_hand(chosen | {"reason": reason}, "stateless") | about | {"search": found, "trials": trials.table()}
        )


def _ready(
    settings: Mapping[str, Any], event_log: EventLog | None = None, aside: bool = False
) -> tuple[dict[str, Any], EventLog, Store]:
    """Live parts, the log and the store of settings that can run."""
    keys = (*STRATEGY, "approval", "engine", "cluster", "serve", "rollout", "tracking")
    parts = {key: build(settings[key], key) for key in keys if key not in ("model", "seed")}
    name = settings["model"]["name"]
    if not name or "/" in name or ":" in name:
        raise ConfigError(f"model.name={name!r} must be a name without / and :")
    event_log = event_log or read_log(parts, settings, open_store(settings, create=False))
    check_model(settings["model"], outline(event_log.schema))
    parts["evaluate"].check(parts["data"].task, [f.name for f in event_log.schema.features])
    store = open_store(settings, create=not aside)
    if rounds := RoundLog(store, name).finished():
        warn(parts, event_log, rounds)
    else:
        _require_rounds(parts, event_log)
    _require_engine(parts)
    parts["serve"].check(parts["rollout"], parts["data"].task)
    return parts, event_log, store


def _require_rounds(parts: Mapping[str, Any], event_log: EventLog) -> None:
    """History that is too short to show anything is refused before anything is started."""
    timeline = Timeline(event_log, parts["clock"])
    if not parts["clock"].waits and len(list(_first_two(parts["window"].cut(timeline, None)))) < 2:
        first, last = event_log.first(), event_log.end()
        raise ConfigError(
            f"the events from {first} to {last} do not fill two windows, one to learn from and one to be tested on: "
            "make window.every (or window.rows), or window.bootstrap, smaller"
        )


def _require_engine(parts: Mapping[str, Any]) -> None:
    """What a method needs and the engine lacks is refused before anything is started."""
    method, engine, workers = parts["method"], parts["engine"], parts["cluster"].workers
    if lacking := sorted(method.needs - engine.offers):
        raise ConfigError(
            f"method={type(method).__name__} needs {', '.join(lacking)} of its engine, which engine="
            f"{type(engine).__name__} does not offer: use engine=ddp or engine=fsdp, or another method"
        )
    for kind, training in parts["train"].items():
        make_optimizer(nn.Linear(2, 2), training)
        if training.compile != "off" and "compile" not in engine.offers:
            raise ConfigError(f"train.{kind}.compile={training.compile} needs engine=ddp or engine=auto: set it to off")
    if engine.min_workers > workers:
        raise ConfigError(
            f"engine={type(engine).__name__} trains on a group of workers: set cluster.workers to {engine.min_workers} "
            "or more, or engine=auto"
        )


def _first_two(windows: Iterator[Any]) -> Iterator[Any]:
    for _, window in zip(range(2), windows, strict=False):
        yield window
