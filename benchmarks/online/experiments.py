"""A/B tests: false alarms, power, guardrails, sample ratio, variance reduction, layers."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy import special, stats

from benchmarks.online.common import FIRST, LEVEL, POWER, Row, first_look, row
from cltrain.online.ab import difference
from cltrain.online.assignment import arm_of
from cltrain.online.design import design_spread, information_needed
from cltrain.online.moments import moments_of
from cltrain.online.sample_ratio import mismatch_evidence
from cltrain.online.sequential import half_width, horizon_half_width, rate_evidence, rate_excess
from cltrain.seeding import numpy_generator

HALVES = {"champion": 0.5, "challenger": 0.5}


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


def _wrong(events: np.ndarray, n: np.ndarray, rate: float) -> int:
    """In how many runs (R, N) the lower bound is above the rate at some time. No mixture is above the likelihood of the
    rate that was seen, so most looks need not be taken."""
    most = n * (special.rel_entr(events / n, rate) + special.rel_entr(1 - events / n, 1 - rate))
    run, look = np.nonzero((most >= -np.log(LEVEL)) & (events > n * rate))
    crossed = rate_evidence(events[run, look], n[look], rate) >= -np.log(LEVEL)
    return len(np.unique(run[crossed]))
