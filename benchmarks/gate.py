"""How often the gate errs, and what poisoned windows come to: `python benchmarks/run.py gate`.

`simulated` rows: gates on made losses of a binary task, of which the truth is known. `rate` is the share of challengers
that are promoted, out of `--gates`; `ratio` is `rate` by what it should be: by the level for a challenger that must not
pass (worse by the margin; equal, beside a rule of superiority), by 1 for one that should.

`stream` rows: made tables of `--weeks` windows that drift in known ways, trained with the default stateful strategy
from the settings of the main job, for each of `--seeds`. Windows of sound rows tell how often an update is accepted;
then the last window comes poisoned (`poison.py`) and is quarantined by the contract, rejected by the gate, or promoted.
`ratio` is the share that ended as it should.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from benchmarks.poison import DRIFTS, POISONS, START, STREAMS, Stream
from cltrain.config import CONF, build, register_defaults
from cltrain.data.contract import Contract
from cltrain.data.holdout import is_held_out
from cltrain.data.shape import Shape
from cltrain.evaluate import Evaluation
from cltrain.evaluate.bootstrap import paired_interval
from cltrain.evaluate.checks import Checks
from cltrain.gate import Better, NonInferiority, Rules
from cltrain.records import EVENT_ID, LABEL, Comparison, Cursor, ReportCard, Verdict
from cltrain.seeding import derive_seed, numpy_generator
from cltrain.train.engines import Plain
from cltrain.train.predictor import Predictor
from cltrain.train.state import State
from cltrain.train.update import train_update

LEVEL = 0.05
MARGIN = 0.02
CHAMPION_NOISE = 0.8  # standard deviation by which its log-odds miss the true ones
INHERITED = 0.9  # correlation of the misses of a challenger, which is an update of it, with those of the champion
HISTORY = 4


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--gates", type=int, default=1_000)
    parser.add_argument("--rows", type=int, nargs="+", default=[500, 2_000, 10_000])
    parser.add_argument("--seeds", type=int, nargs="*", default=[100, 101, 102, 103, 104])
    parser.add_argument("--weeks", type=int, default=5)
    parser.add_argument("--streams", nargs="*", choices=STREAMS, default=list(STREAMS))
    parser.add_argument("--drifts", nargs="*", choices=DRIFTS, default=["none", "slow", "fast", "covariates"])


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    rows = [row for count in options.rows for row in simulated(count, options.gates)]
    for name in options.streams:
        for drift in options.drifts:
            rows += streamed(replace(STREAMS[name], drift=drift), options.seeds, options.weeks)
    return rows


def simulated(rows: int, gates: int) -> Iterator[dict[str, Any]]:
    """Of a challenger of each quality, how often the default gate and a rule of superiority promote it."""
    default, better = NonInferiority(), Rules(rules={"better": Better()})
    cases: tuple[tuple[str, Callable[[ReportCard], Verdict], float, float, float], ...] = (
        ("default gate, worse by the margin", default.judge, 1 + MARGIN, 1.0, LEVEL),
        ("default gate, worse on the past by the margin", default.judge, 1.0, 1.1, LEVEL),
        ("default gate, equal", default.judge, 1.0, 1.0, 1.0),
        ("default gate, better by 2 %", default.judge, 0.98, 1.0, 1.0),
        ("superiority, equal", better.judge, 1.0, 1.0, LEVEL),
        ("superiority, better by 2 %", better.judge, 0.98, 1.0, 1.0),
    )
    for name, judge, window, past, wanted in cases:
        generator = numpy_generator(rows, name)
        promoted = 0
        for _ in range(gates):
            compared = [compared_on("window", rows, window, generator), compared_on("past", rows, past, generator)]
            card = ReportCard(comparisons=tuple(compared), transfer=(), latency_ms=1.0, size_bytes=1)
            promoted += judge(card).accepted
        rate = promoted / gates
        yield {"name": f"simulated {name}, {rows} rows", "ratio": rate / wanted, "rate": rate, "gates": gates}


def compared_on(name: str, rows: int, quality: float, generator: np.random.Generator) -> Comparison:
    """Of a champion, and of a challenger whose expected log loss is `quality` times its, on `rows` rows. From 1,000
    rows on the interval is the closed form, which the loop uses from 10,000 on: the bootstrap would take an hour."""
    odds = 1.5 * generator.normal(size=rows)
    hit = generator.random(rows) < _sigmoid(odds)
    miss, own = generator.normal(size=(2, rows))
    theirs = _losses(odds + CHAMPION_NOISE * miss, hit)
    ours = _losses(odds + noise_of(quality) * (INHERITED * miss + (1 - INHERITED**2) ** 0.5 * own), hit)
    difference, low, high = paired_interval(ours, theirs, generator, LEVEL, normal_rows=1_000)
    champion, challenger = {"log_loss": float(theirs.mean())}, {"log_loss": float(ours.mean())}
    return Comparison(
        name=name, rows=rows, challenger=challenger, champion=champion, difference=difference, low=low, high=high
    )


@cache
def noise_of(quality: float) -> float:
    """The noise of log-odds at which the expected loss is `quality` times that of the champion, by bisection."""
    generator = np.random.default_rng(0)
    odds, noise = 1.5 * generator.normal(size=400_000), generator.normal(size=400_000)
    truth = _sigmoid(odds)

    def expected(spread: float) -> float:
        p = _sigmoid(odds + spread * noise)
        return float(-(truth * np.log(p) + (1 - truth) * np.log(1 - p)).mean())

    wanted, low, high = quality * expected(CHAMPION_NOISE), 0.0, 4.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if expected(middle) < wanted else (low, middle)
    return (low + high) / 2


@dataclass
class Line:
    """A champion and what it has seen: the loop in memory, with the parts of the main job's settings."""

    stream: Stream
    seed: int

    def __post_init__(self) -> None:
        settings = main_job()
        self.model = settings["model"]
        self.method, self.train = build(settings["method"], "method"), build(settings["train"], "train")
        self.contract, self.gate = Contract(), NonInferiority()
        self.evaluation = Evaluation(resamples=500, checks=Checks(importance_rows=0))
        self.champion: State | None = None
        self.held_out: list[tuple[int, pa.Table]] = []
        self.shapes: list[Shape] = []
        self.pending: list[pa.Table] = []

    def offer(self, number: int, table: pa.Table, keep: bool = True) -> tuple[str, tuple[str, ...]]:
        """One round: what becomes of the window, and why. With `keep` false nothing of it stays."""
        shape = self.contract.shape([table], table.column(LABEL), self.stream.task)
        before = sum(self.shapes[-HISTORY:], Shape()) if self.shapes else None
        if problems := self.contract.breaches(shape, before):
            return "quarantined", problems
        held = is_held_out(table.column(EVENT_ID), 0.1)
        rows, held_out = table.filter(pa.array(~held)), [*self.held_out, (number, table.filter(pa.array(held)))]
        challenger = self._update(pa.concat_tables([*self.pending, rows]), number)
        verdict = self._judge(challenger, held_out) if self.champion else None
        accepted = verdict is None or verdict.accepted
        if keep:
            self.held_out, self.shapes = held_out, [*self.shapes, shape]
            self.pending = [] if accepted else [*self.pending, rows]
            self.champion = challenger if accepted else self.champion
        return ("promoted" if accepted else "rejected"), verdict.reasons if verdict else ()

    def _update(self, rows: pa.Table, number: int) -> State:
        return train_update(
            rows,
            parent=self.champion,
            schema=self.stream.schema,
            model=self.model,
            method=self.method,
            training=self.train["stateful" if self.champion else "stateless"],
            cursor=Cursor(until=START + timedelta(days=1_000), files=()),
            seed=derive_seed(self.seed, number),
            engine=Plain(),
            checkpoints=None,
            adapter=None,
            transfer=None,
        ).state

    def _judge(self, challenger: State, held_out: list[tuple[int, pa.Table]]) -> Verdict:
        assert self.champion is not None
        ours, theirs = Predictor.of(challenger), Predictor.of(self.champion)
        card = self.evaluation.card(ours, theirs, held_out, self.seed)
        return self.gate.judge(replace(card, champion_latency_ms=None))


def streamed(stream: Stream, seeds: list[int], weeks: int) -> Iterator[dict[str, Any]]:
    """Sound windows, and then each poison in the place of the last one."""
    ends: dict[str, Counter[str]] = {name: Counter() for name in ("sound", *POISONS)}
    whys: dict[str, Counter[str]] = {name: Counter() for name in ends}
    for seed in seeds:
        line = Line(stream, seed)
        for number in range(weeks):
            table = stream.week(number, seed)
            if number == weeks - 1:
                for name, poison in POISONS.items():
                    if name == "class dropped" and stream.task == "regression":
                        continue
                    bad = poison(table, stream.task, np.random.default_rng((seed, 99)))
                    _count(*line.offer(number, bad, keep=False), ends[name], whys[name])
            end = line.offer(number, table)
            if number:
                _count(*end, ends["sound"], whys["sound"])
    for name, found in ends.items():
        if total := sum(found.values()):
            right = found["promoted"] if name == "sound" else total - found["promoted"]
            yield {
                "name": f"stream {stream.name}, drift {stream.drift}, {name}",
                "ratio": right / total,
                **{end: found[end] for end in ("quarantined", "rejected", "promoted")},
                "why": ", ".join(f"{why} {count}" for why, count in whys[name].most_common()),
            }


def _count(end: str, reasons: tuple[str, ...], ends: Counter[str], whys: Counter[str]) -> None:
    ends[end] += 1
    if end == "quarantined":
        whys["contract"] += 1
    elif end == "rejected":
        for reason in reasons:
            if "refused" in reason:
                whys["labels" if "look like noise" in reason else reason.split(":")[0]] += 1


@cache
def main_job() -> dict[str, Any]:
    """The settings of the main job, as they are without overrides."""
    from hydra import compose, initialize_config_dir

    from jobs.entry import plain

    register_defaults()
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        return plain(compose(config_name="loop"))


def _sigmoid(odds: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-odds)))


def _losses(odds: np.ndarray, hit: np.ndarray) -> np.ndarray:
    return np.asarray(np.logaddexp(0, np.where(hit, -odds, odds)))
