"""Final average accuracy and forgetting on streams of MNIST: `python benchmarks/run.py streams --data DIR`.

Each task is a stateful update from the state that the last one left, through `train_update`, as in a round of the loop.
After each the model is tested on all tasks so far. `setups.py` says what is trained and holds the published figures;
`ratio` is accuracy by the published one, or by that of finetune where there is none, and `reached` says that it is
above the published figure or within one standard deviation of it (ours, where that is not published).

Every run that ends is kept in `--runs FILE`, and is not done again while its settings are the same.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from benchmarks.mnist import Digits, folder, load
from benchmarks.setups import GRIDS, SETUPS
from benchmarks.tasks import START, schema_of, tasks
from cltrain.methods import Method
from cltrain.records import Cursor
from cltrain.seeding import derive_seed
from cltrain.train.engines import Plain
from cltrain.train.predictor import Predictor
from cltrain.train.state import State
from cltrain.train.update import train_update

HELD_OUT = 10_000  # rows of the training set that stand in for the test set when a strength is chosen
CHOOSING_SEED = 1_000
SEEDS = (11, 12, 13)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One method on one stream. `strength` replaces that of the set-up (of DER, `alpha`: see `GRIDS`) when it is being
    chosen; then the test set is held out of the training set."""

    stream: str
    method: str
    seed: int
    strength: float | None = None

    @property
    def name(self) -> str:
        return f"{self.stream}/{self.method}/{self.seed}" + ("" if self.strength is None else f"/{self.strength:g}")

    def how(self) -> Method:
        method = SETUPS[self.stream].methods[self.method]
        return method if self.strength is None else replace(method, **{GRIDS[type(method)][0]: self.strength})

    def settings(self) -> str:
        """All that the result depends on beside the code."""
        setup = SETUPS[self.stream]
        return repr((setup.kind, setup.tasks, setup.padded, setup.model, setup.training_of(self.method), self.how()))


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", metavar="DIR", help="where MNIST is, or is to go (or CLTRAIN_MNIST)")
    parser.add_argument("--stream", nargs="+", choices=SETUPS, default=[n for n in SETUPS if n != "permuted10-wide"])
    parser.add_argument("--method", nargs="+", help="of each stream, those of these that it has (default: all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--runs", type=Path, default=Path(__file__).parent / "results" / "streams-runs.json")
    parser.add_argument("--choose", action="store_true", help="try a grid of strengths on held-out training rows")


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    place = folder(options.data)
    load(place)  # fetched and checked once, before the processes read it
    done: dict[str, dict[str, Any]] = json.loads(options.runs.read_text()) if options.runs.exists() else {}
    wanted = list(_chosen(options) if options.choose else _reported(options))
    waiting = [one for one in wanted if done.get(one.name, {}).get("settings") != one.settings()]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.processes, mp_context=spawn) as pool:
        running = {pool.submit(train, one, place, options.device): one for one in waiting}
        for number, future in enumerate(as_completed(running), 1):
            one = running[future]
            done[one.name] = {"settings": one.settings(), **future.result()}
            print(f"{number} of {len(waiting)}: {one.name}: {done[one.name]['accuracy']:.2f} %", flush=True)
            _write(options.runs, done)
    if options.choose:
        return [
            {"name": one.name, "ratio": done[one.name]["accuracy"] / 100, "strength": one.strength} for one in wanted
        ]
    return summary(done, options.stream)


def train(one: Run, place: Path, device: str) -> dict[str, Any]:
    """Train on every task in turn. Accuracies are in percent; `matrix[i][j]` is that on task j after task i."""
    torch.set_num_threads(1)
    setup, method, engine = SETUPS[one.stream], one.how(), Plain(device=torch.device(device))
    learned, tested = load(place)
    if one.strength is not None:
        split = len(learned.labels) - HELD_OUT
        tested = Digits(learned.pixels[split:], learned.labels[split:])
        learned = Digits(learned.pixels[:split], learned.labels[:split])
    state: State | None = None
    tests: list[pa.Table] = []
    matrix: list[list[float]] = []
    cpu_seconds = 0.0
    for number, (rows, test) in enumerate(tasks(setup.kind, setup.tasks, learned, tested, one.seed, setup.padded)):
        tests.append(test)
        started = time.process_time()
        state = train_update(
            rows,
            parent=state,
            schema=schema_of(rows),
            model=setup.model,
            method=method,
            training=setup.training_of(one.method),
            cursor=Cursor(until=START + timedelta(days=number + 1), files=()),
            seed=derive_seed(one.seed, "task", number),
            engine=engine,
        ).state
        cpu_seconds += time.process_time() - started
        matrix.append([accuracy(state, test) for test in tests])
    return {**measures(matrix), "cpu_seconds": cpu_seconds, "matrix": matrix}


def accuracy(state: State, test: pa.Table) -> float:
    """In percent."""
    scores = Predictor.of(state).score(test)
    return 100 * float((scores.predictions == scores.target).mean())


def measures(matrix: list[list[float]]) -> dict[str, float]:
    """Of the model after the last task: mean accuracy over all tasks; forgetting, how far it is below the best it was
    on a task before (Chaudhry et al. 2018); and backward transfer, how far it is above what it was when the task was
    new (Lopez-Paz and Ranzato 2017). The last two are means over all tasks but the last.

    >>> measures([[90.0], [95.0, 80.0], [70.0, 85.0, 60.0]])
    {'accuracy': 71.66666666666667, 'forgetting': 10.0, 'backward_transfer': -7.5}
    """
    last, earlier = matrix[-1], range(len(matrix) - 1)
    best = [max(row[task] for row in matrix[task:-1]) for task in earlier]
    return {
        "accuracy": statistics.mean(last),
        "forgetting": statistics.mean(best[task] - last[task] for task in earlier),
        "backward_transfer": statistics.mean(last[task] - matrix[task][task] for task in earlier),
    }


def summary(done: dict[str, dict[str, Any]], streams: Iterable[str]) -> list[dict[str, Any]]:
    """A row for each stream and method that has runs under its settings of now."""
    rows = []
    for stream in streams:
        setup, base = SETUPS[stream], None
        for method in setup.methods:
            runs = [
                found
                for name, found in done.items()
                if name.startswith(f"{stream}/{method}/")
                and name.count("/") == 2
                and found["settings"] == Run(stream=stream, method=method, seed=0).settings()
            ]
            if not runs:
                continue
            found = {key: [one[key] for one in runs] for key in ("accuracy", "forgetting", "backward_transfer")}
            mean, std = statistics.mean(found["accuracy"]), _std(found["accuracy"])
            base = mean if method == "finetune" else base
            published = setup.published.get(method)
            against = published.mean if published else base
            margin = std if published is None or published.std is None else published.std
            rows.append(
                {
                    "name": f"{stream} {method}",
                    "ratio": None if against is None else mean / against,
                    "accuracy": mean,
                    "std": std,
                    "published": published.mean if published else None,
                    "source": published.source if published else None,
                    "reached": None if published is None else bool(mean + margin >= published.mean),
                    "forgetting": statistics.mean(found["forgetting"]),
                    "forgetting_std": _std(found["forgetting"]),
                    "backward_transfer": statistics.mean(found["backward_transfer"]),
                    "seeds": len(runs),
                    "cpu_seconds": statistics.mean(one["cpu_seconds"] for one in runs),
                }
            )
    return rows


def _reported(options: argparse.Namespace) -> Iterable[Run]:
    """Seed by seed, so that every row has one run before any has two."""
    for seed, stream in product(options.seeds, options.stream):
        for method in SETUPS[stream].methods:
            if not options.method or method in options.method:
                yield Run(stream=stream, method=method, seed=seed)


def _chosen(options: argparse.Namespace) -> Iterable[Run]:
    for stream in options.stream:
        for method, settings in SETUPS[stream].methods.items():
            if type(settings) in GRIDS and (not options.method or method in options.method):
                for strength in GRIDS[type(settings)][1]:
                    yield Run(stream=stream, method=method, seed=CHOOSING_SEED, strength=strength)


def _std(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _write(path: Path, done: dict[str, Any]) -> None:
    """Beside its place, and then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(f".{os.getpid()}")
    beside.write_text(json.dumps(dict(sorted(done.items())), indent=1) + "\n")
    beside.rename(path)
