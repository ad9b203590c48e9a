"""Trials on Ray Tune: actors that take one trial after another, since a new one costs seconds."""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import ray.tune
from ray.tune.search import Searcher

from cltrain.records import Json

ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the table of trials is ours
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


class Ledger(Protocol):
    """Says which trial comes next; see `cltrain.search.Trials`."""

    over: bool

    def begin(self) -> Json | None: ...
    def end(self, number: int, result: Json | None) -> Json: ...


class Suggest(Searcher):
    """Asks the ledger. What must survive is in the store, so nothing is saved here."""

    def __init__(self, ledger: Ledger, keep: Callable[[Json], None]) -> None:
        super().__init__()
        self._ledger, self._keep, self._numbers = ledger, keep, dict[str, int]()

    def suggest(self, trial_id: str) -> Any:
        trial = self._ledger.begin()
        if trial is None:
            return Searcher.FINISHED if self._ledger.over else None
        self._numbers[trial_id] = trial["trial"]
        return trial

    def on_trial_complete(self, trial_id: str, result: Json | None = None, error: bool = False) -> None:
        found = None if error or not result else json.loads(result["result"])
        self._keep(self._ledger.end(self._numbers.pop(trial_id), found))

    def __getstate__(self) -> Json:
        """Tune writes its searcher down to resume it, which we never ask for."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).write_text("")

    def restore(self, checkpoint_path: str) -> None:
        """Nothing was saved."""


class Actor(ray.tune.Trainable):
    def setup(self, config: Json, run: Callable[[Json, Json], Json], work: Json) -> None:  # type: ignore[override]
        self._run, self._work = run, work

    def step(self) -> Json:
        result = self._run(self._work, self.config)
        return {"result": json.dumps(result), "done": True}  # as text: Tune flattens what it passes on

    def reset_config(self, new_config: Json) -> bool:
        return True


def run_trials(
    run: Callable[[Json, Json], Json],
    work: Json,
    ledger: Ledger,
    keep: Callable[[Json], None],
    *,
    trials: int,
    cpus: float,
    gpus: float,
) -> None:
    """Call `run(work, trial)` on the cluster for each trial of the ledger, at most `trials`, as many at once as fit,
    and `keep` each line of its table."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    resources = {"CPU": cpus} | ({"GPU": gpus} if gpus else {})
    actor = ray.tune.with_parameters(Actor, run=run, work=work)
    suggest = Suggest(ledger, keep)
    with tempfile.TemporaryDirectory(prefix="cltrain-tune-") as folder, contextlib.redirect_stdout(io.StringIO()):
        ray.tune.Tuner(
            ray.tune.with_resources(actor, resources),
            tune_config=ray.tune.TuneConfig(
                search_alg=suggest, num_samples=trials, reuse_actors=True, trial_dirname_creator=_name
            ),
            run_config=ray.tune.RunConfig(
                name="trials",
                storage_path=folder,
                verbose=0,
                failure_config=ray.tune.FailureConfig(max_failures=1),
                checkpoint_config=ray.tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        ).fit()


def _name(trial: Any) -> str:
    return f"trial-{trial.config['trial']:03d}"
