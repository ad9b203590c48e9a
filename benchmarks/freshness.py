"""Whether `jobs.freshness` finds a decay that is known: `python benchmarks/run.py freshness`.

A linear rule turns as an AR(1) process, `w[t] = phi w[t-1] + sqrt(1 - phi^2) noise`, so that least squares on the rows
of `length` periods loses `2 p mean(phi^j) (1 - phi^age)` more squared error at an age than at age 0, j from 1 to
`length`: a half-life of `ln 2 / -ln phi` periods, exactly. Least squares takes the place of the trainer; the analysis
is that of the job. `ratio` is the share of runs by the level of the interval, or by what is asked for.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hydra import compose, initialize_config_dir

from cltrain.config import CONF, register_defaults
from cltrain.freshness.cadence import advised, choices
from cltrain.freshness.curve import half_life
from cltrain.freshness.result import Panel, measured
from cltrain.freshness.settings import Freshness
from cltrain.freshness_job import run_freshness
from jobs.entry import plain

SETTINGS = Freshness(lengths=(4,), draws=1_000)


@dataclass(frozen=True, kw_only=True)
class Stream:
    """windows: that are evaluated; features: p; rows: of a period; drift: variance of a weight, 0 for a stream that
    stands still."""

    windows: int = 60
    features: int = 8
    phi: float = 0.85
    rows: int = 400
    noise: float = 1.0
    drift: float = 1.0

    @property
    def half_life(self) -> float:
        return math.log(2) / -math.log(self.phi)

    def weights(self, periods: int, generator: np.random.Generator) -> np.ndarray:
        """(periods, p)."""
        w = np.empty((periods, self.features))
        w[0] = generator.normal(size=self.features)
        for t in range(1, periods):
            w[t] = self.phi * w[t - 1] + math.sqrt(1 - self.phi**2) * generator.normal(size=self.features)
        return w * math.sqrt(self.drift)

    def lost(self, ages: np.ndarray, length: int) -> np.ndarray:
        """Expected squared error above that at age 0, (K,)."""
        kept = np.mean([self.phi**j for j in range(1, length + 1)])
        return 2 * self.features * self.drift * kept * (1 - self.phi**ages)


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--trained", type=int, default=0, help="runs of the whole job, with a linear model, as well")


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    usual, short = Stream(), Stream(windows=32)
    rows = [covered(f"coverage, {s.windows} windows", s, options.runs, options.seed) for s in (usual, short)]
    many = Stream(windows=120, features=64)
    close = [
        abs(found / many.half_life - 1) <= 0.15
        for r in range(options.runs)
        if (found := _life(many, options.seed + r).periods) is not None
    ]
    rows.append(_share("half-life within 15 %, 120 windows of 64 features", sum(close), options.runs, 1.0))
    still = replace(usual, drift=0.0)
    slowest = [recommended(still, options.seed + r) == "28d" for r in range(options.runs)]
    rows.append(_share("slowest cadence where nothing drifts", sum(slowest), options.runs, 1.0))
    if options.trained:
        rows.append(trained(options.trained, options.seed))
    return rows


def trained(runs: int, seed: int) -> dict[str, Any]:
    """The job itself, in this process, on a table of the stream: stateless trainings of a linear model."""
    stream, ages, inside = Stream(windows=30, features=4, phi=0.7), (0, 1, 2, 4), []
    truth = stream.lost(np.array(ages), 1)[1:]
    for r in range(runs):
        with tempfile.TemporaryDirectory(prefix="cltrain-freshness-") as folder:
            write_table(Path(folder, "events"), stream, stream.windows + max(ages) + 1, seed + r)
            curve = run_freshness(_job(folder, stream, ages))["curve"][1:]
        inside.append([p["low"] <= t <= p["high"] for p, t in zip(curve, truth, strict=True)])
        print(
            f"trained {r}: " + ", ".join(f"{p['loss_delta']:.2f} of {t:.2f}" for p, t in zip(curve, truth, strict=True))
        )
    share = float(np.mean(inside))
    return {"name": "coverage, by the job itself", "ratio": share / 0.95, "curve": share, "runs": runs}


def write_table(folder: Path, stream: Stream, periods: int, seed: int) -> None:
    """Events at even times, a file a week; labels are known at once."""
    generator = np.random.default_rng(seed)
    weights = stream.weights(periods, generator)
    folder.mkdir(parents=True)
    for t in range(periods):
        x = generator.normal(size=(stream.rows, stream.features))
        y = x @ weights[t] + stream.noise * generator.normal(size=stream.rows)
        times = np.datetime64("2024-01-01", "s") + (np.arange(stream.rows) * 7 * 86_400 // stream.rows + t * 7 * 86_400)
        columns = {"when": times, "y": y} | {f"x{i}": x[:, i] for i in range(stream.features)}
        pq.write_table(pa.table(columns), folder / f"week-{t:03d}.parquet")


def _job(folder: str, stream: Stream, ages: tuple[int, ...]) -> dict[str, Any]:
    register_defaults()
    overrides = [
        "data=parquet", f"data.path={folder}/events", "data.event_time=when", "data.label=y", "data.task=regression",
        "data.time_features=false", "cluster.workers=0", f"store.root={folder}/store", "model.hidden=[]",
        f"freshness.ages={list(ages)}", "freshness.lengths=[1]", "freshness.seeds=1", "freshness.mode=stateless",
        f"freshness.windows={stream.windows}", "train.stateless.learning_rate=0.03", "train.stateless.min_steps=200",
    ]  # fmt: skip
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        return plain(compose("freshness", overrides=overrides)) | {"run_dir": folder}


def covered(name: str, stream: Stream, runs: int, seed: int) -> dict[str, Any]:
    """Of all points of the curve and of the half-life, the share of intervals that hold the truth."""
    ages = np.array(SETTINGS.ages)
    truth = stream.lost(ages, SETTINGS.lengths[0])[1:]
    points, lives, determined, worst = [], [], 0, np.zeros(len(truth))
    for r in range(runs):
        curve = measured(SETTINGS, panel_of(stream, seed + r), SETTINGS.lengths[0], seed + r)
        low, high = np.quantile(curve.draws[:, 1:], [0.025, 0.975], axis=0)
        inside = (low <= truth) & (truth <= high)
        points.append(inside.mean())
        worst += inside / runs
        life = half_life(curve.lost, curve.decay, curve.draws, curve.ages, curve.level)
        determined += life.periods is not None
        low_life, high_life = life.low or 0.0, life.high or math.inf
        lives.append(low_life <= stream.half_life <= high_life)
    return {
        "name": name,
        "ratio": float(np.mean(points)) / SETTINGS.level,
        "curve": float(np.mean(points)),
        "worst_age": float(worst.min()),
        "half_life": float(np.mean(lives)),
        "determined": determined / runs,
        "runs": runs,
    }


def panel_of(stream: Stream, seed: int) -> Panel:
    """Losses of least squares on the rows of each training window, on rows of later periods."""
    generator = np.random.default_rng(seed)
    length, ages, p = SETTINGS.lengths[0], SETTINGS.ages, stream.features
    periods = stream.windows + max(ages) + length
    weights = stream.weights(periods, generator)
    x = generator.normal(size=(periods, stream.rows, p))
    y = np.einsum("trp,tp->tr", x, weights) + stream.noise * generator.normal(size=(periods, stream.rows))
    squares, products = np.einsum("trp,trq->tpq", x, x), np.einsum("trp,tr->tp", x, y)
    models = {
        b: np.linalg.solve(squares[b - length : b].sum(0), products[b - length : b].sum(0))
        for b in range(length, periods)
    }
    windows = range(length + max(ages), periods)
    losses = [[float(np.square(y[e] - x[e] @ models[e - age]).mean()) for age in ages] for e in windows]
    return Panel(tuple(windows), ages, np.array(losses))


def recommended(stream: Stream, seed: int) -> str:
    curve = measured(SETTINGS, panel_of(stream, seed), SETTINGS.lengths[0], seed)
    cadences = choices(SETTINGS.every, curve.ages, None)
    return str(advised(curve, cadences, cost=0.0, value=None)["recommended_every"])


def _life(stream: Stream, seed: int) -> Any:
    curve = measured(SETTINGS, panel_of(stream, seed), SETTINGS.lengths[0], seed)
    return half_life(curve.lost, curve.decay, curve.draws, curve.ages, curve.level)


def _share(name: str, count: int, runs: int, asked: float) -> dict[str, Any]:
    return {"name": name, "ratio": count / runs / asked, "share": count / runs, "runs": runs}
