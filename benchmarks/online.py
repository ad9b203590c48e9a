"""The statistics of online tests, by simulation: false alarms, power, what variance reduction, interleaving, bandits
and off-policy estimates are worth. Every row is a count over seeded runs; `ratio` is against what the row's name says,
and `bar` is what it must be.

With `--peers PYTHON`, of an environment with `peers/requirements.txt`, bandits of Vowpal Wabbit and bayesianbandits
play the same replays. Five to ten minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from scipy import special, stats
from sklearn import datasets

from cltrain.online import off_policy
from cltrain.online.ab import difference
from cltrain.online.assignment import arm_of
from cltrain.online.bandits import UCB, EpsilonGreedy, LinearThompson, LinUCB, Policy, Thompson
from cltrain.online.design import design_spread, information_needed
from cltrain.online.interleave import credit, preference_evidence, team_draft
from cltrain.online.moments import moments_of
from cltrain.online.policy import Earned, Threshold, ThresholdLearner
from cltrain.online.sample_ratio import mismatch_evidence
from cltrain.online.sequential import half_width, horizon_half_width, rate_evidence, rate_excess
from cltrain.online.simulator import Feedback, World, try_bandit
from cltrain.seeding import numpy_generator

LEVEL, POWER, FIRST = 0.05, 0.8, 100
HALVES = {"champion": 0.5, "challenger": 0.5}
Row = dict[str, Any]


def row(name: str, value: Any = None, ratio: Any = None, bar: str = "", runs: int = 0, interval: Any = None) -> Row:
    found = {"name": name, "value": value, "ratio": ratio, "interval": interval}
    numbers = {
        key: np.asarray(v).tolist() if not isinstance(v, str) else v for key, v in found.items() if v is not None
    }
    return {**numbers, **({"bar": bar} if bar else {}), "runs": runs}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--runs", type=int, default=2_000, help="simulated tests a row")
    parser.add_argument("--only", choices=sorted([*PARTS, "peers"]), help="one part")
    parser.add_argument("--peers", metavar="PYTHON", help="a Python that has vowpalwabbit or bayesianbandits, or both")


def run(options: argparse.Namespace) -> list[Row]:
    parts = [options.only] if options.only else list(PARTS)
    rows = [row for name in parts if name != "peers" for row in PARTS[name](options.runs)]
    if options.peers and options.only in (None, "peers"):
        rows += peers(options.peers)
    elif options.only in (None, "peers"):
        print("bandits of other libraries are left out: --peers PYTHON of an environment that has them")
    return rows


def paths(name: str, metric: str, effect: float, units: int, runs: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(R, units) differences of means and their standard errors after every unit, by blocks of runs. Units get an
    arm by the toss of a coin."""
    for block, start in enumerate(range(0, runs, 100)):
        generator = numpy_generator(0, "online", name, metric, block)
        shape = (min(100, runs - start), units)
        arm = generator.random(shape) < 0.5
        if metric == "normal":
            value = generator.normal(size=shape)
        elif metric == "lognormal":
            value = generator.lognormal(size=shape)
        else:
            value = (generator.random(shape) < float(metric.split()[1])).astype(float)
        value = value + effect * arm
        sides = []
        for side in (~arm, arm):
            n = side.cumsum(1)
            mean = (value * side).cumsum(1) / np.maximum(n, 1)
            square = (value**2 * side).cumsum(1) / np.maximum(n, 1)
            variance = np.maximum(square - mean**2, 0) * n / np.maximum(n - 1, 1)
            sides.append((n, mean, np.where(n >= FIRST, variance / np.maximum(n, 1), np.inf)))
        error = np.sqrt(sides[0][2] + sides[1][2])
        yield sides[1][1] - sides[0][1], np.where(error > 0, error, np.inf)


def first_look(crossed: np.ndarray) -> np.ndarray:
    """(R,) how many units were there when the boundary was first reached; infinite if it never was."""
    return np.where(crossed.any(1), crossed.argmax(1) + 1.0, np.inf)


def stops(name: str, metric: str, effect: float, units: int, runs: int, spread: float) -> dict[str, np.ndarray]:
    share = np.arange(1, units + 1) / units
    found: dict[str, list[np.ndarray]] = {"always": [], "horizon": [], "z": []}
    for estimate, error in paths(name, metric, effect, units, runs):
        known = np.isfinite(error)
        safe = np.where(known, error, 1.0)
        found["always"].append(first_look(known & (abs(estimate) > half_width(safe, LEVEL, spread))))
        found["horizon"].append(first_look(known & (abs(estimate) > horizon_half_width(safe, share, LEVEL))))
        found["z"].append(first_look(known & (abs(estimate) > special.ndtri(1 - LEVEL / 2) * safe)))
    return {test: np.concatenate(parts) for test, parts in found.items()}


def false_alarms(runs: int) -> Iterator[Row]:
    """A/A tests of 10,000 units with a look after every unit."""
    units = 10_000
    for metric, deviation in (("normal", 1.0), ("rate 0.1", 0.3), ("rate 0.01", 0.0995), ("lognormal", 2.161)):
        spread = design_spread(deviation * (4 * information_needed(LEVEL, POWER, "once") / units) ** 0.5, LEVEL, POWER)
        for test, when in stops("a/a", metric, 0.0, units, runs, spread).items():
            rate = float(np.isfinite(when).mean())
            bar = "> 0.30" if test == "z" else "≤ 0.05"
            label = "z test, re-read" if test == "z" else test
            yield row(f"A/A {metric}: {label}", rate, rate / LEVEL, bar, runs)


def power(runs: int) -> Iterator[Row]:
    """Tests at the effect they were designed for; the ratio of power is to that of a test that is read once."""
    once = 5_000
    effect = (4 * information_needed(LEVEL, POWER, "once") / once) ** 0.5
    spread = design_spread(effect, LEVEL, POWER)
    for test in ("horizon", "always"):
        planned = round(once * information_needed(LEVEL, POWER, test) / information_needed(LEVEL, POWER, "once"))
        for where, units in (("same n", once), ("planned n", planned)):
            when = stops("power", "normal", effect, units, runs, spread)[test]
            found = float(np.isfinite(when).mean())
            name = f"power of {test}, {where}"
            bar = {"horizon same n": "≥ 0.85", "always same n": ""}.get(f"{test} {where}", "≥ 1")
            yield row(f"{name} ({units} units)", found, found / POWER, bar, runs)
            if where == "planned n":
                median = float(np.median(when))
                yield row(f"median stop of {test}, planned n, in units", median, median / once, runs=runs)


def guardrails(runs: int) -> Iterator[Row]:
    """Exact bounds of rates, looked at after every request; and how soon a canary with 2 % errors is caught."""
    n = np.arange(1, 10_001)
    for rate in (0.001, 0.01, 0.1):
        above = below = 0
        for block in range(0, runs, 200):
            generator = numpy_generator(0, "rates", rate, block)
            events = (generator.random((min(200, runs - block), len(n))) < rate).cumsum(1)
            above += _wrong(events, n, rate)
            below += _wrong(n - events, n, 1 - rate)
        for side, count in (("lower", above), ("upper", below)):
            yield row(
                f"{side} bound of a rate of {rate:g} is wrong", count / runs, count / runs / LEVEL, "≤ 0.05", runs
            )
    caught = []
    for seed in range(200):
        generator = numpy_generator(0, "canary", seed)
        errors, base = (generator.random(3_000) < 0.02).cumsum(), generator.binomial(3_000 * 19, 0.001)
        looks = range(20, 3_000, 20)
        caught.append(next((k for k in looks if rate_excess(int(errors[k - 1]), k, base, 57_000, 0.01) > 0.002), 3_000))
    name = "canary requests until 2 % errors are caught (0.1 % live, margin 0.2 %, level 0.01)"
    yield row(name, np.median(caught), runs=200, interval=np.quantile(caught, [0.05, 0.95]))


def _wrong(events: np.ndarray, n: np.ndarray, rate: float) -> int:
    """In how many runs (R, N) the lower bound is above the rate at some time. No mixture is above the likelihood of the
    rate that was seen, so most looks need not be taken."""
    most = n * (special.rel_entr(events / n, rate) + special.rel_entr(1 - events / n, 1 - rate))
    run, look = np.nonzero((most >= -np.log(LEVEL)) & (events > n * rate))
    crossed = rate_evidence(events[run, look], n[look], rate) >= -np.log(LEVEL)
    return len(np.unique(run[crossed]))


def sample_ratio(runs: int) -> Iterator[Row]:
    """Up to 20,000 units, looked at after every 10, at level 0.001; chi-square read once beside it."""
    level, units = 0.001, np.arange(10, 20_001, 10)
    for name, share, times in (("even", 0.5, 5 * runs), ("52/48", 0.52, runs)):
        found, once = [], 0
        for block in range(0, times, 500):
            generator = numpy_generator(0, "ratio", name, block)
            one = generator.binomial(10, share, (min(500, times - block), len(units))).cumsum(1).astype(float)
            log = mismatch_evidence(np.stack([one, units - one], -1), np.array([0.5, 0.5]))
            found.append(first_look(log >= -np.log(level)) * 10)
            once += int((2 * special.ndtr(-abs(one[:, -1] - 10_000) / 5_000**0.5) <= level).sum())
        when = np.concatenate(found)
        rate, bar = float(np.isfinite(when).mean()), "≤ 0.001" if name == "even" else "≥ 0.9"
        yield row(f"sample-ratio alarm, {name}: always-valid", rate, bar=bar, runs=times)
        yield row(f"sample-ratio alarm, {name}: chi-square, read once", once / times, runs=times)
        if name != "even":
            yield row(f"sample-ratio alarm, {name}: median units", np.median(when), runs=times)


def cuped(runs: int) -> Iterator[Row]:
    """The variance that is taken away from the difference of two arms of 500, as a ratio to the correlation squared."""
    for rho in (0.3, 0.5, 0.8):
        generator = numpy_generator(0, "cuped", rho)
        plain, adjusted, wrong = [], [], 0
        for _ in range(runs):
            x = generator.normal(size=(2, 500))
            y = rho * x + (1 - rho**2) ** 0.5 * generator.normal(size=(2, 500))
            plain.append(y[1].mean() - y[0].mean())
            estimate, error = difference([moments_of(y[0], x[0])], [moments_of(y[1], x[1])])
            adjusted.append(estimate)
            wrong += abs(estimate) > 1.96 * error
        cut = 1 - np.var(adjusted) / np.var(plain)
        yield row(f"variance reduction at correlation {rho}, against its square", cut, cut / rho**2, "≥ 0.9", runs)
        yield row(f"its 95 % interval misses, correlation {rho}", wrong / runs, runs=runs)


def interleaving(runs: int) -> Iterator[Row]:
    """Team-draft against an A/B test by user: both with their always-valid test at the same level, read again and
    again; `ratio` is that of the users by whom 80 % of the tests have found the better ranker, over worlds. The A/B
    test knows the size of the effect beforehand, and goes by clicks or by whether a session had any; where users come
    back, by CUPED too, with as many visits before."""
    for looks in ("cascade", "position"):
        yield from _equal_rankers(looks, max(2, runs // 200))
    worlds = range(max(3, runs // 250))
    for looks, visits, noise in product(("cascade", "position"), (1, 10), (0.0, 0.6)):
        found = [
            _against_ab(World(users=6_000 if visits == 1 else 2_000, looks=looks, seed=s), noise, visits)
            for s in worlds
        ]
        users = [one.pop("team-draft") for one in found]
        where = f"{looks}, {visits} visit{'s' * (visits > 1)} each, ranker noise {noise} against 1"
        for metric in found[0]:
            ratios = np.log([one[metric] / few for one, few in zip(found, users, strict=True)])
            half = stats.t.ppf(0.975, len(ratios) - 1) * ratios.std(ddof=1) / len(ratios) ** 0.5
            yield row(
                f"{'team-draft' if 'sign' in metric else 'A/B'} by {metric} against team-draft: users; {where}",
                np.mean(users),
                np.exp(ratios.mean()),
                "≥ 10" if "CUPED" not in metric and "sign" not in metric else "",
                len(ratios),
                np.exp(ratios.mean() + half * np.array([-1, 1])),
            )


def _equal_rankers(looks: str, pairs: int) -> Iterator[Row]:
    users, found = 8_000, {"equally good rankers": [], "clicks without regard to what is shown": []}
    for pair, (name, credits) in product(range(pairs), found.items()):
        taste = 0.5 if name == "equally good rankers" else 0.0  # without tastes all items are equally good
        world = World(users=users, looks=looks, taste=taste, seed=pair)
        rankings = [world.ranking(side, 1.0, world.items) for side in ("one", "other")]
        credits.append(_credits(world, *rankings, 1, numpy_generator(pair, "equal", looks, name)))
    for name, parts in found.items():
        credits = np.concatenate(parts)
        decided, spread = (credits != 0).sum(), 1.96 * 0.5
        won = float((credits > 0).sum() / decided)
        limits = (won - spread / decided**0.5, won + spread / decided**0.5)
        yield row(f"{name}, {looks}: share of sessions won", won, None, "0.48 to 0.52", int(decided), limits)
        share, half = 0.5 + 0.5 * credits.sum() / abs(credits).sum(), spread * np.square(credits).sum() ** 0.5
        limits = (share - half / abs(credits).sum(), share + half / abs(credits).sum())
        yield row(f"{name}, {looks}: share of credit won", share, None, "0.48 to 0.52", int(decided), limits)
        tests = credits[: len(credits) // 400 * 400].reshape(-1, 400)
        alarms = np.isfinite(_decided(tests)).mean()
        yield row(f"{name}, {looks}: false alarms in 400 sessions", alarms, alarms / LEVEL, "≤ 0.05", len(tests))


def _against_ab(world: World, noise: float, visits: int, tests: int = 250) -> dict[str, float]:
    """Users that each test needs, drawn again and again from those of the world."""
    generator = numpy_generator(world.seed, "against", world.looks, noise, visits)
    rankings = [world.ranking("a", 1.0, world.items), world.ranking("b", noise, world.items)]
    credits = _credits(world, *rankings, visits, generator)
    few = 8 * information_needed(LEVEL, POWER, "always") * credits.var() / credits.mean() ** 2
    found = {
        name: _by_80(lambda shape, c=c: _decided(generator.choice(c, shape), +1), tests, few)  # type: ignore[misc]
        for name, c in {"team-draft": credits, "the sign of each user's credit": np.sign(credits)}.items()
    }
    who = np.repeat(np.arange(world.users), visits * (20 if visits == 1 else 5))
    clicks = [world.clicks(who, ranking[who, :10], generator) for ranking in (rankings[0], *rankings)]
    for metric in ("clicks", "sessions with a click"):
        value = [(c.sum(1) if metric == "clicks" else c.any(1)).reshape(-1, visits).mean(1) for c in clicks]
        found[metric] = _users_of_ab(value[1], value[2], generator, tests)
        if visits > 1:
            slope = np.cov(value[0], value[1])[0, 1] / value[0].var()
            other = generator.permutation(len(value[0]) // 5 * 5)  # another draw of who is in which arm
            residual = [v - slope * (value[0] - value[0].mean()) for v in value[1:]]
            found[f"{metric}, CUPED"] = _users_of_ab(residual[0], residual[1][other], generator, tests)
    return found


def _users_of_ab(a: np.ndarray, b: np.ndarray, generator: np.random.Generator, tests: int) -> float:
    effect = b.mean() - a.mean()
    variance = 2 * (a.var() + b.var())  # of a difference between two halves of one user
    planned = information_needed(LEVEL, POWER, "always") * variance / effect**2
    spread, step = design_spread(effect, LEVEL, POWER), max(1, round(planned / 1_000))

    def stops(shape: tuple[int, int]) -> np.ndarray:
        shape = (shape[0], shape[1] // (2 * step), step)
        sums = [[(generator.choice(side, shape) ** k).sum(-1).cumsum(1) for k in (1, 2)] for side in (a, b)]
        n = step * np.arange(1, shape[1] + 1)
        means, squares = ([sums[side][k] / n for side in (0, 1)] for k in (0, 1))
        error = np.sqrt(sum(np.maximum(q - m**2, 1e-12) for m, q in zip(means, squares, strict=True)) / n)
        right = (n >= FIRST) & (means[1] - means[0] > half_width(error, LEVEL, spread))
        return first_look(right) * 2 * step

    return _by_80(stops, tests, 2.5 * planned)


def _by_80(stops: Any, tests: int, most: float) -> float:
    """Users by whom 80 % of the tests have ended."""
    when = np.concatenate([stops((25, int(most))) for _ in range(tests // 25)])
    return float(np.sort(when)[int(POWER * len(when))])


def _decided(credits: np.ndarray, sign: int = 0) -> np.ndarray:
    """(R,) after how many of the credits (R, N) the test has found a difference, or one of that sign."""
    net = credits.cumsum(1)
    right = (preference_evidence(net, np.square(credits).cumsum(1)) >= -np.log(LEVEL)) & (sign * net >= 0)
    return first_look(right)


def _credits(world: World, a: np.ndarray, b: np.ndarray, visits: int, generator: np.random.Generator) -> np.ndarray:
    """(users,) credits of each user's visits together."""
    who = np.repeat(np.arange(world.users), visits)
    a, b = a.tolist(), b.tolist()  # type: ignore[assignment]
    drafts = [team_draft(a[user], b[user], 10, generator) for user in who]
    clicks = world.clicks(who, np.array([draft.items for draft in drafts]), generator)
    clicked = [
        set(np.array(draft.items)[c].tolist()) if c.any() else () for draft, c in zip(drafts, clicks, strict=True)
    ]
    each = np.array([credit(draft, one) for draft, one in zip(drafts, clicked, strict=True)])
    return each.reshape(world.users, visits).sum(1)


def bandits(runs: int) -> Iterator[Row]:
    """Regret against equal shares, with labels an hour late on average and a tenth of them lost, at one decision a
    second."""
    late, seeds = Feedback(delay_s=3_600, lost=0.1), range(max(2, runs // 400))
    fixed = np.tile([0.10, 0.12, 0.16], (50_000, 1))
    plain: dict[str, Policy] = {"Thompson": Thompson(), "UCB": UCB(), "ε-greedy": EpsilonGreedy()}
    for name, policy in plain.items():
        yield _regret(name, [try_bandit(policy, fixed, feedback=late, seed=s).ratio for s in seeds])
    linear: dict[str, Policy] = {"linear Thompson": LinearThompson(), "LinUCB": LinUCB()}
    for name, policy in linear.items():
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


def peers(python: str) -> Iterator[Row]:
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


def off_policy_coverage(runs: int) -> Iterator[Row]:
    """How often 95 % intervals cover the truth: 2,000 logged decisions of a bandit-like policy, three arms, a model of
    the reward that is linear where the truth is not."""
    runs = max(500, runs // 4)
    slopes = np.array([[0.8, 0.0, -0.5], [-0.3, 0.6, 0.0], [0.0, -0.6, 0.6]])
    many = numpy_generator(0, "truth").normal(size=(2_000_000, 3)) @ slopes.T
    truth = float((_target(many) * special.expit(many - 1)).sum(1).mean())
    covered: dict[str, list[bool]] = {}
    width: dict[str, list[float]] = {}
    for seed in range(runs):
        generator = numpy_generator(seed, "off-policy")
        context = generator.normal(size=(2_000, 3))
        scores = context @ slopes.T
        chances, target = special.expit(scores - 1), _target(scores)
        logging = 0.1 / 3 + 0.9 * special.softmax(scores[:, ::-1] * 0.7, axis=1)
        chosen = (generator.random((2_000, 1)) > logging.cumsum(1)).sum(1)
        rows = np.arange(2_000)
        reward = (generator.random(2_000) < chances[rows, chosen]).astype(float)
        log = off_policy.Log(chosen=chosen, reward=reward, propensity=logging[rows, chosen], target=target)
        predicted = off_policy.cross_fitted(context, chosen, reward, 3)
        for name, estimate in {
            "IPS": off_policy.ips(log),
            "SNIPS": off_policy.snips(log),
            "direct": off_policy.direct(log, predicted),
            "doubly robust": off_policy.doubly_robust(log, predicted),
        }.items():
            covered.setdefault(name, []).append(estimate.low <= truth <= estimate.high)
            width.setdefault(name, []).append(estimate.high - estimate.low)
    for name, hits in covered.items():
        bar = "0.93 to 0.97" if name == "doubly robust" else ""
        ratio = np.mean(width[name]) / np.mean(width["IPS"])
        yield row(f"coverage of {name}; ratio of widths to IPS", np.mean(hits), ratio, bar, runs)


def _target(scores: np.ndarray) -> np.ndarray:
    return 0.02 / 3 + 0.98 * special.softmax(3 * scores, axis=1)


def layers(runs: int) -> Iterator[Row]:
    """Two experiments on the same units: how often their assignments look dependent, and what a large effect of the one
    does to the estimate of the other."""
    times, dependent, moved = max(20, runs // 10), 0, []
    for seed in range(times):
        units = [f"user-{i}" for i in range(2_000)]
        one, two = (np.array([arm_of(u, f"{s}/{seed}", HALVES) == "challenger" for u in units]) for s in ("a", "b"))
        table = [[(one & two).sum(), (one & ~two).sum()], [(~one & two).sum(), (~one & ~two).sum()]]
        dependent += stats.chi2_contingency(table, correction=False).pvalue < LEVEL
        value = 1.0 * two + numpy_generator(seed, "layers").normal(size=2_000)
        moved.append(value[one].mean() - value[~one].mean())
    mean, half = np.mean(moved), 1.96 * np.std(moved) / times**0.5
    yield row("layers that look dependent", dependent / times, dependent / times / LEVEL, runs=times)
    name = "effect that leaks from one layer into the other"
    yield row(name, mean, bar="0 in the interval", runs=times, interval=(mean - half, mean + half))


def thresholds(runs: int) -> Iterator[Row]:
    """Value, 2,000 decisions after the cost of a mistake went from 1 to 4, against that of the best threshold, by which
    nothing is lost. Scores are chances of a gain of 1."""
    ratios, places = [], []
    for seed in range(max(10, runs // 50)):
        generator, learner = numpy_generator(seed, "threshold"), ThresholdLearner(Threshold())
        document = learner.layer.current
        for i in range(3_000):
            score, cost = generator.random(), 1.0 if i < 1_000 else 4.0
            above, chance = learner.settings.decide(f"{seed}/{i}", score, document)
            reward = (1.0 if generator.random() < score else -cost) if above else 0.0
            document = learner.learn(
                Earned(decision_id=str(i), score=score, above=above, propensity=chance, reward=reward)
            )
        places.append(document.values["threshold"])
        ratios.append(_value(places[-1]) / _value(0.8))
    left = _value(0.5) / _value(0.8)
    name = f"threshold 2,000 decisions after a change of cost (best 0.8; left alone, the ratio is {left:.2f})"
    yield row(name, np.mean(places), np.mean(ratios), "≥ 0.9", len(places), np.quantile(places, [0.05, 0.95]))


def _value(threshold: float) -> float:
    return (1 - threshold**2) / 2 - 4 * (1 - threshold) ** 2 / 2


PARTS = {
    "false_alarms": false_alarms,
    "power": power,
    "guardrails": guardrails,
    "sample_ratio": sample_ratio,
    "cuped": cuped,
    "interleaving": interleaving,
    "bandits": bandits,
    "off_policy": off_policy_coverage,
    "layers": layers,
    "thresholds": thresholds,
}
