"""Which trials come next, what is on file, and how long the rest will take."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from cltrain.freshness.trial import run_trial, state_folder, trial_key
from cltrain.records import Json
from cltrain.storage import Storage

BATCH_S = 30.0  # Tune gives a second process no time to start where trials are shorter than its start
RESULT = ("cells", "rows", "seconds", "error")
LOST: Json = {"cells": None, "rows": None, "seconds": 0.0, "error": "its process was lost"}
ORPHAN = "the link before it failed"


@dataclass(frozen=True)
class TrialFiles:
    """A file in the store for each trial that has ended, named by all that it depends on: a measurement that was
    interrupted, or has more seeds, ages or history, need not repeat it."""

    storage: Storage

    def known(self, trials: Sequence[Json]) -> dict[int, Json]:
        there = set(self.storage.names("freshness/trials"))
        return {t["trial"]: self.storage.read_json(self._name(t)) for t in trials if self._name(t) in there}

    def run(self, work: Json, trial: Json) -> Json:
        """What the trial gives, or gave. Failures are not kept: they are tried again."""
        if self.storage.exists(self._name(trial)) and (trial["mode"] != "stateful" or self.has_state(trial["key"])):
            found: Json = self.storage.read_json(self._name(trial))
            return found
        found = run_trial(work, trial)
        if found["error"] is None:
            self.storage.write_json(self._name(trial), found)
        return found

    def has_state(self, key: str) -> bool:
        return self.storage.exists(f"{state_folder(key)}/state.json")

    def forget_states(self) -> None:
        """Once a measurement is complete, no chain goes on from where it is."""
        for name in self.storage.names("freshness/states"):
            self.storage.delete(name)

    def _name(self, trial: Json) -> str:
        return f"freshness/trials/{trial['key']}.json"


def run_batch(work: Json, batch: Json) -> Json:
    """Run the trials of a batch one after another, each of which is on file when it ends. Returns `results` in their
    order; a link whose parent failed is not run."""
    files, failed, results = TrialFiles(Storage(work["root"])), set(), []
    for trial in batch["trials"]:
        result = LOST | {"error": ORPHAN} if trial["parent"] in failed else files.run(work, trial)
        if result["error"] is not None:
            failed.add(trial["key"])
        results.append(result)
    return {"results": results}


def with_keys(trials: Sequence[Json], work: Json) -> list[Json]:
    """Trials with the keys of what they give; that of a link of a chain has all links before it in it."""
    found: list[Json] = []
    links: dict[tuple[int, int], str] = {}
    for trial in trials:
        parent = None if trial["parent"] is None else links[trial["seed"], trial["parent"]]
        keyed = trial | {"parent": parent}
        keyed["key"] = trial_key(work, keyed)
        if trial["mode"] == "stateful":
            links[trial["seed"], trial["boundary"]] = keyed["key"]
        found.append(keyed)
    return found


@dataclass(kw_only=True)
class Ledger:
    """Begins batches of trials in their order, a link of a chain after the link before it, and no more when `enough`
    says so of the results. A batch takes about `BATCH_S` seconds, as far as is known: the first ones have one trial.
    known: results on file, by number; ready: whether the state of a key is in the store; planned: how much work a trial
    is, by any measure."""

    trials: Sequence[Json]
    known: Mapping[int, Json] = field(default_factory=dict)
    ready: Callable[[str], bool] = lambda key: False
    enough: Callable[[Mapping[int, Json]], bool] = lambda results: False
    planned: Callable[[Json], float] = lambda trial: 1.0
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self.number_of = {trial["key"]: trial["trial"] for trial in self.trials}
        self.results: dict[int, Json] = dict(self.known)
        for number in self._to_repeat():
            self.results.pop(number, None)
        self.resumed = len(self.results)
        self.waiting = [trial for trial in self.trials if trial["trial"] not in self.results]
        self.failed: dict[int, str] = {}
        self.stopped = self.enough(self.results)
        self.over = self.stopped or not self.waiting
        self._running: dict[int, list[Json]] = {}
        self._batches = 0
        self._since, self._spent = math.nan, 0.0  # the first trial waits for its process to start

    def begin(self) -> Json | None:
        if self.over:
            return None
        room, taken, keys = self._room(), list[Json](), set[str]()
        for trial in self.waiting:
            if taken and room < self.planned(trial):
                break
            parent = trial["parent"]
            if parent is None or parent in keys or self.number_of[parent] in self.results:
                taken.append(trial)
                keys.add(trial["key"])
                room -= self.planned(trial)
        if not taken:
            return None
        self.waiting = [trial for trial in self.waiting if trial["key"] not in keys]
        self.over = not self.waiting
        self._running[self._batches] = taken
        self._batches += 1
        return {"trial": self._batches - 1, "trials": taken}

    def end(self, number: int, result: Json | None) -> Json:
        """Take what a batch gave; None if it was lost. Returns how many of its trials gave something."""
        taken = self._running.pop(number)
        results = result["results"] if result else [LOST] * len(taken)
        if math.isnan(self._since):
            self._since = self.clock()
        else:
            self._spent += sum(self.planned(trial) for trial in taken)
        for trial, found in zip(taken, results, strict=True):
            if found["error"] is None:
                self.results[trial["trial"]] = found
            else:
                self.failed[trial["trial"]] = found["error"]
                self._abandon(trial["key"])
        self.stopped = self.stopped or self.enough(self.results)
        self.over = self.stopped or not self.waiting
        return {"trial": number, "ended": sum(found["error"] is None for found in results)}

    def _room(self) -> float:
        """How much work is a batch: that of `BATCH_S`, or of a part of what is left, so that all end together."""
        seconds = sum(self.results[t["trial"]]["seconds"] for t in self.trials if t["trial"] in self.results)
        done = sum(self.planned(t) for t in self.trials if t["trial"] in self.results)
        left = sum(self.planned(t) for t in self.waiting)
        return min(BATCH_S * done / seconds, left / 4) if seconds else 0.0

    @property
    def interrupted(self) -> bool:
        """Whether trials were not begun or not waited for, though more were wanted."""
        return not self.stopped and bool(self.waiting or self._running)

    @property
    def seconds_left(self) -> float | None:
        """If all goes on as it went since the first trial ended; None before the second has."""
        if not self._spent:
            return None
        running = [trial for taken in self._running.values() for trial in taken]
        rest = sum(self.planned(trial) for trial in (*self.waiting, *running))
        return 0.0 if self.over and not self._running else (self.clock() - self._since) / self._spent * rest

    def _abandon(self, key: str) -> None:
        """What would go on from a link that failed cannot."""
        lost = {key}
        for trial in self.trials:  # parents come before their children
            if trial["parent"] in lost:
                lost.add(trial["key"])
                self.failed[trial["trial"]] = ORPHAN
        self.waiting = [trial for trial in self.waiting if trial["key"] not in lost]

    def _to_repeat(self) -> set[int]:
        """Links that ended, but whose state a later link needs and is not there."""
        needed: set[str] = set()
        repeated = set()
        for trial in reversed(self.trials):
            missing = trial["trial"] not in self.results
            if trial["key"] in needed and not missing and not self.ready(trial["key"]):
                repeated.add(trial["trial"])
                missing = True
            if missing and trial["parent"] is not None:
                needed.add(trial["parent"])
        return repeated
