"""Bandits of Vowpal Wabbit and bayesianbandits on the replays of `benchmarks/run.py online`, in the environment of
requirements.txt: `python bandits.py REPLAYS.npz` prints JSON, the regrets of each
policy, one for each replay. What cannot be
imported is left out, and said on stderr.

There are R replays: `chances` (R, N, A) of a reward of 1, `context` (R, N, F), and when labels come: `delay` (R, N)
in decisions, infinite for those that are lost. A policy learns every 50 decisions from the labels that have come, as
ours does.
"""

from __future__ import annotations

import heapq
import json
import sys
import warnings
from collections.abc import Callable

import numpy as np

PUBLISH = 50


def play(policy, chances: np.ndarray, context: np.ndarray, delay: np.ndarray, rng: np.random.Generator) -> float:
    """Expected regret of `policy(context (B, F)) -> arms (B,), propensities (B,)` and `policy.learn`."""
    regret, way = 0.0, []
    for start in range(0, len(chances), PUBLISH):
        came = []
        while way and way[0][0] <= start:
            came.append(heapq.heappop(way)[1])
        if came:
            policy.learn(came)
        block = slice(start, start + PUBLISH)
        arms, propensity = policy.choose(context[block])
        for i, (arm, chance) in enumerate(zip(arms, propensity, strict=True), start):
            regret += chances[i].max() - chances[i, arm]
            reward = float(rng.random() < chances[i, arm])
            if np.isfinite(delay[i]):
                heapq.heappush(way, (i + delay[i], (i, context[i], int(arm), reward, float(chance))))
    return float(regret)


class VW:
    """Features of the context crossed with each action, as in Vowpal Wabbit's tutorials."""

    def __init__(self, options: str, arms: int, features: int, rng: np.random.Generator, seed: int) -> None:
        import vowpalwabbit

        self.arms, self.rng = arms, rng
        cross = "-q sa " if features else ""
        self.vw = vowpalwabbit.Workspace(f"--cb_explore_adf {cross}{options} --quiet --random_seed {seed + 1}")

    def text(self, context: np.ndarray, label: tuple[int, float, float] | None = None) -> list[str]:
        shared = "shared |s one " + " ".join(f"f{i}:{v:.6g}" for i, v in enumerate(context) if v)
        lines = [f"|a a{i}" for i in range(self.arms)]
        if label:
            arm, cost, chance = label
            lines[arm] = f"0:{cost}:{chance} {lines[arm]}"
        return [shared, *lines]

    def choose(self, contexts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        arms, chances = [], []
        for context in contexts:
            p = np.array(self.vw.predict(self.text(context)))
            p /= p.sum()
            arms.append(int(self.rng.choice(self.arms, p=p)))
            chances.append(p[arms[-1]])
        return np.array(arms), np.array(chances)

    def learn(self, labels: list) -> None:
        for _, context, arm, reward, chance in labels:
            self.vw.learn(self.text(context, (arm, -reward, chance)))


class Bayesian:
    """bayesianbandits' agents: a model for each arm, with an intercept."""

    def __init__(self, policy: str, learner: str, arms: int, features: int, seed: int) -> None:
        import bayesianbandits as bb

        policies = {
            "Thompson": bb.ThompsonSampling,
            "UCB": bb.UpperConfidenceBound,
            "ε-greedy": bb.EpsilonGreedy,
        }
        learners = {
            "beta": lambda: bb.DirichletClassifier({0.0: 1, 1.0: 1}, random_state=seed),
            "normal": lambda: bb.NormalRegressor(alpha=1.0, beta=1.0, random_state=seed),
            "normal inverse gamma": lambda: bb.NormalInverseGammaRegressor(random_state=seed),
        }
        functions = [None if learner != "beta" else (lambda p: p[..., 1])] * arms
        made = [
            bb.Arm(i, reward_function=f, learner=learners[learner]()) if f else bb.Arm(i, learner=learners[learner]())
            for i, f in enumerate(functions)
        ]
        self.features, self.arms = features, arms
        self.agent = (bb.ContextualAgent if features else bb.Agent)(made, policies[policy](), random_seed=seed)

    def choose(self, contexts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if self.features:
            arms = np.array(self.agent.pull(np.column_stack([np.ones(len(contexts)), contexts])))
        else:
            arms = np.array([self.agent.pull()[0] for _ in contexts])
        return arms, np.ones(len(arms))

    def learn(self, labels: list) -> None:
        for arm in range(self.arms):
            mine = [(context, reward) for _, context, a, reward, _ in labels if a == arm]
            if not mine:
                continue
            reward = np.array([r for _, r in mine])
            agent = self.agent.select_for_update(arm)
            if self.features:
                agent.update(np.array([[1.0, *context] for context, _ in mine]), reward)
            else:
                agent.update(reward)


def contenders(features: int) -> dict[str, Callable]:
    found: dict[str, Callable] = {}
    try:
        import vowpalwabbit  # noqa: F401

        for options in ("--epsilon 0.05", "--bag 5", "--squarecb"):
            found[f"VW {options}"] = lambda a, f, rng, seed, o=options: VW(o, a, f, rng, seed)
    except ImportError as error:
        print(f"left out: {error}", file=sys.stderr)
    try:
        import bayesianbandits  # noqa: F401

        for learner in ("normal", "normal inverse gamma") if features else ("beta",):
            for policy in ("Thompson", "UCB", "ε-greedy"):
                found[f"bayesianbandits {policy}, {learner}"] = lambda a, f, rng, seed, p=policy, n=learner: Bayesian(
                    p, n, a, f, seed
                )
    except ImportError as error:
        print(f"left out: {error}", file=sys.stderr)
    return found


def main() -> None:
    warnings.simplefilter("ignore")
    replay = np.load(sys.argv[1])
    chances, context, delay = replay["chances"], replay["context"], replay["delay"]  # one row of each for each seed
    found: dict[str, list[float]] = {}
    for seed in range(len(chances)):
        for name, make in contenders(context.shape[-1]).items():
            rng = np.random.default_rng(seed)
            policy = make(chances.shape[-1], context.shape[-1], rng, seed)
            found.setdefault(name, []).append(play(policy, chances[seed], context[seed], delay[seed], rng))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
