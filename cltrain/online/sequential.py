"""Tests that may be read at any time and as often as one likes, without raising more false alarms for it.

Estimates of means are, over time, Brownian motion in their own information, 1 / error², whatever the arms' shares of
traffic were (as long as outcomes did not decide them). Two boundaries hold such a path for all times at once:

`always`   the normal mixture (Robbins 1970; asymptotic confidence sequences of Waudby-Smith, Arbour, Sinha, Kennedy &
           Ramdas 2024): valid for ever, tightest at an amount of information chosen beforehand;
`horizon`  the constant boundary of the reflection principle (O'Brien & Fleming's in continuous time): valid up to a
           horizon fixed beforehand, and nearly as powerful there as a test that is read once.

Rates of rare events have exact bounds of their own (Robbins' beta mixture), valid from the first event on.
Functions take numbers or arrays of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from scipy import optimize, special

Side = Literal["two", "lower", "upper"]
Numbers = Any  # a float, or a numpy array of them


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Holds the truth at all times at once, but for a share `level` of experiments. A one-sided interval has an
    infinite end. p: always-valid p-value of no effect: at or below a level just when the interval at it excludes 0."""

    estimate: float
    low: float
    high: float
    p: float = 1.0


def tuned(level: float, error: Numbers, side: Side = "two") -> Numbers:
    """The `spread` of the normal mixture whose bounds are tightest when the estimate's standard error is `error`
    (Waudby-Smith et al. 2024, appendix B.2; one side takes twice the level)."""
    log = -2 * np.log(level if side == "two" else min(2 * level, 1 - 1e-9))
    return error * np.sqrt(log + np.log1p(log))


def _boundary(error: Numbers, level: float, spread: Numbers, side: Side) -> Numbers:
    """At how many times `error` the mixture's martingale reaches 1 / level."""
    ratio = np.square(error / spread)  # of the mixture's information to the estimate's
    log_c = -np.log(level) + 0.5 * np.log1p(1 / ratio)
    if side == "two":
        return np.sqrt(2 * (1 + ratio) * log_c)
    # Half-normal mixture: exp(z² / 2) Φ(z) = c / 2, by Newton from where Φ is 1.
    aim = log_c - np.log(2)
    z = np.sqrt(np.maximum(2 * aim, 0.01))
    for _ in range(8):
        slope = z + np.exp(-0.5 * z * z - special.log_ndtr(z)) / np.sqrt(2 * np.pi)
        z = z - (0.5 * z * z + special.log_ndtr(z) - aim) / slope
    return z * np.sqrt(1 + ratio)


def half_width(error: Numbers, level: float, spread: Numbers, side: Side = "two") -> Numbers:
    """How far the bound of an estimate with standard error `error` is from it, at level `level`. spread: of the
    effects that the mixture expects, in the estimate's units: `tuned` gives it.

    >>> round(float(half_width(0.1, 0.05, tuned(0.05, 0.1))), 3)
    0.304
    """
    return error * _boundary(error, level, spread, side)


def evidence(estimate: Numbers, error: Numbers, spread: Numbers, side: Side = "two") -> Numbers:
    """Log of the e-value against no effect: its exponential is a martingale under the null, and reaches 1 / level
    in a share `level` of experiments at most (Ville 1939). side: `lower` for effects above 0, `upper` below."""
    information, prior = error**-2.0, spread**-2.0
    z = estimate * information / np.sqrt(information + prior)
    log = 0.5 * (np.log(prior) - np.log(information + prior)) + 0.5 * z * z
    return log if side == "two" else log + np.log(2) + special.log_ndtr(z if side == "lower" else -z)


def interval(estimate: float, error: float, level: float, spread: float, side: Side = "two") -> Interval:
    """The confidence sequence at this look. An estimate without a finite error has the whole line.

    >>> interval(1.0, float("inf"), 0.05, 1.0).low
    -inf
    """
    if not (0 < error < np.inf):
        return Interval(estimate=float(estimate), low=-np.inf, high=np.inf)
    half = float(half_width(error, level, spread, side))
    p = min(1.0, float(np.exp(-evidence(estimate, error, spread, side))))
    return _sided(estimate, half, p, side)


def horizon_half_width(error: Numbers, share: Numbers, level: float, side: Side = "two") -> Numbers:
    """How far the bound of the `horizon` boundary is when `share` of the horizon's information is there: z times the
    horizon's error / share, which is `error` / sqrt(share). A Brownian motion reaches c before time 1 with twice the
    chance of being beyond c at time 1 (reflection principle), so z is that of half the level a side."""
    return error / np.sqrt(share) * float(-special.ndtri(level / (4 if side == "two" else 2)))


def horizon_interval(estimate: float, error: float, share: float, level: float, side: Side = "two") -> Interval:
    """The interval of the `horizon` boundary when `share` of the horizon's information is there. Beyond the horizon it
    is as wide as at its end: what comes later is not covered by the level."""
    if not (0 < error < np.inf) or share <= 0:
        return Interval(estimate=float(estimate), low=-np.inf, high=np.inf)
    share = min(share, 1.0)
    z = float(estimate) / error * share**0.5
    tail = 2 * special.ndtr(-abs(z)) if side == "two" else special.ndtr(-z if side == "lower" else z)
    half = float(horizon_half_width(error, share, level, side))
    return _sided(estimate, half, min(1.0, 2 * float(tail)), side)


def _sided(estimate: float, half: float, p: float, side: Side) -> Interval:
    low = -np.inf if side == "upper" else float(estimate) - half
    high = np.inf if side == "lower" else float(estimate) + half
    return Interval(estimate=float(estimate), low=low, high=high, p=p)


def rate_bound(events: int, n: int, level: float, side: Literal["lower", "upper"]) -> float:
    """The lower or upper bound of a rate at all times at once, exact for any rate and any number of looks.

    The likelihood of each rate is held against its mean over a beta(1/2, 1/2) prior of the rates beyond it (Robbins
    1970; Howard et al. 2021): for the lower bound L, the chance that it is ever above the rate is at most `level`.

    >>> rate_bound(0, 0, 0.05, "lower"), rate_bound(0, 100, 0.05, "upper") < 0.06
    (0.0, True)
    """
    if side == "upper":
        return 1.0 - rate_bound(n - events, n, level, "lower")
    if not events:
        return 0.0
    rate, aim = events / n, -np.log(level)
    if rate_evidence(events, n, rate * (1 - 1e-12)) >= aim:
        return rate
    return float(optimize.brentq(lambda p: rate_evidence(events, n, p) - aim, 1e-300, rate * (1 - 1e-12), xtol=1e-12))


def rate_evidence(events: Numbers, n: Numbers, rate: Numbers) -> Numbers:
    """Log of the e-value against a rate of `rate` or less, which is above 0 and below 1."""
    a, b = events + 0.5, n - events + 0.5
    mixture = special.betaln(a, b) - special.betaln(0.5, 0.5)
    beyond = np.log(special.betaincc(a, b, rate)) - np.log(special.betaincc(0.5, 0.5, rate))
    return mixture + beyond - special.xlogy(events, rate) - special.xlog1py(n - events, -rate)


def rate_excess(events: int, n: int, base_events: int, base_n: int, level: float) -> float:
    """By how much a rate is above another's at least (negative: it may be below), at all times at once: the bound of a
    guardrail, such as the canary's error rate, or its share of slow answers, against the champion's.

    The difference of two exact bounds, each at half the level, so shares of traffic may change as they like. It is
    somewhat wide, for which there are no assumptions at all: from the first request on, for rates near 0.

    >>> rate_excess(15, 200, 5, 10_000, 0.01) > 0.01 > rate_excess(1, 200, 5, 10_000, 0.01)
    True
    """
    return rate_bound(events, n, level / 2, "lower") - rate_bound(base_events, base_n, level / 2, "upper")


def holm(p: dict[str, float], level: float) -> dict[str, bool]:
    """Which of several effects are found when the chance of any false one is `level` (Holm 1979). Always-valid
    p-values may be read like this at any time.

    >>> holm({"clicks": 0.02, "sales": 0.03, "time": 0.5}, 0.05)
    {'clicks': False, 'sales': False, 'time': False}
    """
    found, left = dict.fromkeys(p, False), len(p)
    for name in sorted(p, key=lambda name: p[name]):
        if p[name] > level / left:
            break
        found[name], left = True, left - 1
    return found
