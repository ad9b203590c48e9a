"""A search on a small table, with Ray Tune."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cltrain.assemble import open_store, run_loop, run_search
from cltrain.config import build
from cltrain.data.event_log import EventLog
from cltrain.data.holdout import is_held_out
from cltrain.data.snapshot import Snapshots
from cltrain.errors import ConfigError, StoreError
from cltrain.records import EVENT_ID, EVENT_TIME, LABEL
from cltrain.registry import Registry
from cltrain.search import GROUPS
from cltrain.trial import by_time, run_trial, sample

Small = Callable[..., dict[str, Any]]
SPACE = "{train.stateless.learning_rate: {low: 1e-5, high: 1e-2, log: true}, model.hidden: [[16], [64, 32]]}"
LOOP = ["max_rounds=3", "window.bootstrap=2", "train.stateless.epochs=2", "train.stateless.min_steps=1"]


@pytest.mark.ray
def test_a_search_makes_its_best_trial_a_challenger(ray_session: str, small: Small, tmp_path: Path) -> None:
    run_loop(small(*LOOP))
    settings = small(*LOOP, f"search.space={SPACE}", "search.max_rows=25000", "search.max_trials=50", job="search")
    settings["train"]["stateless"]["learning_rate"] = 1e-5  # so that there is something to find
    summary = run_search(settings)

    trials = summary["trials"]
    assert 0.95 * 25_000 <= sum(trial["rows"] for trial in trials) <= 1.05 * 25_000
    assert all(trial["score"] < 1 and trial["error"] is None for trial in trials)
    winner = min(trials, key=lambda trial: trial["score"])
    assert summary["best"] == winner["trial"] > 0
    assert json.loads((tmp_path / "run" / "trials.json").read_text())["trials"] == trials

    store = open_store(settings)
    registry = Registry(store, "default")
    version = registry.version(summary["versions"][0]["version"])
    assert (version.version, version.kind) == ("2.0", "stateless")
    made_with = registry.settings(version.version)
    assert made_with["train"]["stateless"]["learning_rate"] == winner["settings"]["train.stateless.learning_rate"]
    assert made_with["model"]["hidden"] == winner["settings"]["model.hidden"]
    assert summary["search"] in version.reason, "the version leads to its trials"
    record = store.storage.read_json(summary["search"])
    assert record["trials"] == trials
    assert record["work"]["snapshot"] == version.snapshot_digest, "tried and trained on the same rows"

    again = run_search(settings | {"run_dir": str(tmp_path / "again")})
    assert (again["trials"], again["search"]) == (trials, summary["search"]), "nothing is tried twice"
    kept = store.storage.names(summary["search"].partition("/")[0])
    lines = [name for name in kept if name.count("/") == 2]
    assert len(lines) == len(trials)
    for name in lines[3:]:
        store.storage.delete(name)
    resumed = run_search(settings | {"run_dir": str(tmp_path / "resumed")})
    assert [{**t, "seconds": 0} for t in resumed["trials"]] == [{**t, "seconds": 0} for t in trials], "the same again"


def test_what_is_wrong_is_said_before_anything_starts(small: Small) -> None:
    with pytest.raises(StoreError, match="has no version 'champion'"):
        run_search(small(job="search"))
    run_loop(small(*LOOP))
    with pytest.raises(ConfigError, match=r"search.space: model.hidden=\[0\] cannot be"):
        run_search(small("search.space={model.hidden: [[16], [0]]}", job="search"))
    with pytest.raises(ConfigError, match="does not pay for one trial"):
        run_search(small("search.max_rows=100", job="search"))
    with pytest.raises(ConfigError, match=r"search\.cpus_per_trial must be 2 or less"):
        run_search(small("search.cpus_per_trial=3", "cluster.num_cpus=2", job="search"))
    with pytest.raises(ConfigError, match=r"search\.gpus_per_trial must be \d or less"):
        run_search(small("search.gpus_per_trial=99", job="search"))


def test_validation_rows_are_the_newest_and_never_held_out(small: Small) -> None:
    settings = small(*LOOP)
    run_loop(settings)
    store = open_store(settings)
    snapshot = Registry(store, "default").version("1.0").challenger.snapshot
    log = EventLog(build(settings["data"], "data"))
    rows = Snapshots(log, store.storage, build(settings["snapshot"], "snapshot")).table(snapshot)
    shuffled = rows.take(pa.array(np.random.default_rng(0).permutation(rows.num_rows)))
    first, newest = by_time(shuffled, 0.2)
    assert newest.num_rows == round(0.2 * rows.num_rows)
    assert max(first.column(EVENT_TIME).to_pylist()) <= min(newest.column(EVENT_TIME).to_pylist())
    assert sorted(first.column(EVENT_ID).to_pylist() + newest.column(EVENT_ID).to_pylist()) == sorted(
        rows.column(EVENT_ID).to_pylist()
    )
    assert not is_held_out(newest.column(EVENT_ID), settings["snapshot"]["holdout_share"]).any()
    assert newest.column(LABEL).null_count == 0
    assert by_time(rows, 0.2)[1].equals(newest)
    some = sample(first, 100)
    assert some.num_rows == 100
    place = [first.column(EVENT_ID).to_pylist().index(i) for i in some.column(EVENT_ID).to_pylist()]
    assert place == sorted(place)
    assert 0.35 < np.mean(place) / first.num_rows < 0.65, "of all times"

    work = {
        "root": store.storage.root,
        "snapshot": snapshot.digest,
        "validation_share": 0.2,
        "settings": {key: settings[key] for key in GROUPS},
        "stateful": True,
        "seed": 1,
        "threads": 1,
        "device": "cpu",
    }
    trial = {"trial": 0, "settings": {"method.parts.ewc.strength": 0.0}, "of_rows": 500}
    weak, again = run_trial(work, trial), run_trial(work, trial)
    strong = run_trial(work, {**trial, "settings": {"method.parts.ewc.strength": 1e6}})
    assert weak["score"] == again["score"] != strong["score"], "the method is felt"
    assert run_trial({**work, "stateful": False}, trial)["rows"] < weak["rows"]
    failed = run_trial(work, {**trial, "settings": {"train.stateless.learning_rate": 1e30}})
    assert failed["score"] is None
    assert "finite" in failed["error"]
