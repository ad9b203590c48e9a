"""Team-draft interleaving against an A/B test by user."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.online.common import FIRST, LEVEL, POWER, Row, first_look, row
from cltrain.online.design import design_spread, information_needed
from cltrain.online.interleave import credit, preference_evidence, team_draft
from cltrain.online.sequential import half_width
from cltrain.online.simulator import World
from cltrain.seeding import numpy_generator


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
