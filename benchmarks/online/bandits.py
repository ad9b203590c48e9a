"""Regret of the bandits against equal shares, and against those of other libraries."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from scipy import special
from sklearn import datasets

from benchmarks.online.common import Row, row
from cltrain.online.bandits import UCB, EpsilonGreedy, LinearThompson, LinUCB, Policy, Thompson
from cltrain.online.simulator import Feedback, try_bandit
from cltrain.seeding import numpy_generator

OURS: dict[str, Policy] = {
    "Thompson": Thompson(),
    "UCB": UCB(),
    "ε-greedy": EpsilonGreedy(),
    "linear Thompson": LinearThompson(),
    "LinUCB": LinUCB(),
}
PEERS = ("Thompson", "UCB", "ε-greedy", "--bag", "--squarecb", "--epsilon")  # of which ours are the counterparts:
COUNTERPARTS = {
    "plain": ("Thompson", "UCB", "ε-greedy", "Thompson", "UCB", "ε-greedy"),
    "contextual": ("linear Thompson", "LinUCB", "LinUCB", "linear Thompson", "LinUCB", "LinUCB"),
}


def bandits(runs: int) -> Iterator[Row]:
    """Regret against equal shares, with labels an hour late on average and a tenth of them lost, at one decision a
    second."""
    late, seeds = Feedback(delay_s=3_600, lost=0.1), range(max(2, runs // 400))
    fixed = np.tile([0.10, 0.12, 0.16], (50_000, 1))
    for name, policy in OURS.items():
        if not policy.contextual:
            yield _regret(name, [try_bandit(policy, fixed, feedback=late, seed=s).ratio for s in seeds])
            continue
        ratios = []
        for seed in seeds:
            generator = numpy_generator(seed, "contexts")
            context = generator.normal(size=(20_000, 4))
            chances = special.expit(-1 + context @ generator.normal(size=(4, 3)) * 0.5)
            ratios.append(try_bandit(policy, chances, context, feedback=late, seed=seed).ratio)
        yield _regret(f"{name}, 4 features", ratios)


def _regret(name: str, ratios: list[float]) -> Row:
    name = f"regret of {name} against equal shares"
    return row(name, ratio=np.mean(ratios), bar="≤ 0.5", runs=len(ratios), interval=(min(ratios), max(ratios)))


def against_peers(python: str) -> Iterator[Row]:
    """Regret of ours against that of each rule of the libraries, both with their defaults, on the same decisions with
    labels an hour late on average and a tenth of them lost. `ratio` below 1 is for ours; its interval is by
    bootstrap over seeds."""
    late = Feedback(delay_s=3_600, lost=0.1)
    for name, every_s, chances, context in _replays():
        seeds = len(chances)
        uniform = (chances.max(-1) - chances.mean(-1)).sum(-1)
        kind, features = ("contextual", context) if context.shape[-1] else ("plain", [None] * seeds)
        ours = {
            rule: np.array(
                [
                    try_bandit(OURS[rule], c, x, every_s=every_s, feedback=late, seed=s).regret
                    for s, (c, x) in enumerate(zip(chances, features, strict=True))
                ]
            )
            for rule in dict.fromkeys(COUNTERPARTS[kind])
        }
        theirs = _theirs(python, every_s, chances, context, late)
        for rule, regret in [*ours.items(), *theirs.items()]:
            yield row(f"regret of {rule} against equal shares, {name}", ratio=(regret / uniform).mean(), runs=seeds)
        for rule, regret in theirs.items():
            mine = next(our for part, our in zip(PEERS, COUNTERPARTS[kind], strict=True) if part in rule)
            drawn = numpy_generator(0, "peers", name, rule).integers(0, seeds, (2, 2_000, seeds))
            ratios = ours[mine][drawn[0]].mean(1) / regret[drawn[1]].mean(1)
            interval = np.quantile(ratios, [0.025, 0.975])
            title = f"regret of {mine} against that of {rule}, {name}"
            yield row(title, None, ours[mine].mean() / regret.mean(), "≤ 1.2", seeds, interval)


def _replays(plain: int = 12, contextual: int = 4) -> Iterator[tuple[str, float, np.ndarray, np.ndarray]]:
    """Name, seconds between decisions, (S, N, A) chances of a reward, and (S, N, F) contexts. Without a context regret
    varies by far more from seed to seed."""
    for arms in ((0.10, 0.12, 0.16), (0.30, 0.31, 0.33, 0.35, 0.28)):
        chances = np.tile(arms, (plain, 10_000, 1))
        yield f"{len(arms)} arms", 3.0, chances, np.zeros((*chances.shape[:2], 0))
    generators = [numpy_generator(seed, "replays") for seed in range(contextual)]
    context = np.stack([g.normal(size=(10_000, 4)) for g in generators])
    slopes = np.stack([g.normal(size=(4, 3)) for g in generators])
    yield "3 arms, 4 features", 3.0, special.expit(-1 + context @ slopes * 0.5), context
    digits = datasets.load_digits()
    order = np.stack([g.permutation(np.tile(np.arange(len(digits.data)), 2))[:3_000] for g in generators])
    yield "10 digits by 64 pixels", 10.0, np.eye(10)[digits.target[order]], digits.data[order] / 16


def _theirs(
    python: str, every_s: float, chances: np.ndarray, context: np.ndarray, late: Feedback
) -> dict[str, np.ndarray]:
    delay = np.full(chances.shape[:2], np.inf)
    for seed, row_of in enumerate(delay):
        generator = numpy_generator(seed, "delays")
        arrivals = [late.arrival(0, generator) for _ in row_of]
        row_of[:] = [np.inf if at is None else max(1.0, at / 1e6 / every_s) for at in arrivals]
    with tempfile.TemporaryDirectory() as folder:
        replays = Path(folder, "replays.npz")
        np.savez(replays, chances=chances, context=context, delay=delay)
        command = [python, str(Path(__file__).parent / "peers" / "bandits.py"), str(replays)]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed: {done.stderr[-1_000:]}")
    if done.stderr:
        print(done.stderr.strip().splitlines()[-1])
    return {name: np.array(regrets) for name, regrets in json.loads(done.stdout).items()}
