"""Two rankers in one list: each user compares them, so far fewer sessions are needed than when users are split."""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Literal, TypeVar

import numpy as np

from cltrain.errors import ConfigError
from cltrain.online.sequential import Interval, Numbers

Item = TypeVar("Item", bound=Hashable)
Team = Literal["champion", "challenger", "neither"]

PRIOR = 10.0  # in squared credits: with about as many, the test is at its sharpest
TYPICAL = 4.0  # of what places are apart, so that weights are around 1
GRAIN = 1_024  # weights are whole multiples of one over this: their sums are exact, in whichever order


@dataclass(frozen=True, kw_only=True)
class Interleaved(Generic[Item]):
    """What a user is shown, whose each place is, and what a click there weighs: 1 without weights."""

    items: tuple[Item, ...]
    teams: tuple[Team, ...]
    weights: tuple[float, ...] = ()

    @property
    def propensity(self) -> float:
        """Chance of this very list with these teams: one fair coin for each turn in which the captains differed."""
        return 0.5 ** ((len(self.teams) - self.teams.count("neither") + 1) // 2)

    @property
    def credits(self) -> tuple[float, ...]:
        """What a click on each item says: its weight, below 0 for the champion's and 0 for what is nobody's."""
        sign = {"challenger": 1.0, "champion": -1.0, "neither": 0.0}
        weights = self.weights or (1.0,) * len(self.items)
        return tuple(sign[team] * weight for team, weight in zip(self.teams, weights, strict=True))


def team_draft(
    champion: Sequence[Item], challenger: Sequence[Item], length: int, generator: np.random.Generator
) -> Interleaved[Item]:
    """Two rankings drafted into one list, as captains pick teams: in each turn a fair coin says who picks first, and
    each adds the best of its items that is not there yet (Radlinski, Kurup & Joachims 2008). Where both would pick the
    same item, or one has none left, it is shown for neither, and its clicks are of no account: given to a team they
    would be noise, or a gift.

    A turn's coin decides the order of its two items and nothing else. So any weight that does not depend on the coins
    leaves rankers even whose users click without looking, and rankers that are equally good win equally often. The
    weight of both items of a turn is how far apart the two rankings have them, after the rank differences of Radlinski
    & Craswell (2013): the logarithm of the ratio of their places in the one, plus that in the other, over `TYPICAL`.
    Near ties are mostly noise.

    Rankings are of unique items, best first, and go on beyond `length` for the weights to be told from the places; a
    list is shorter than `length` if both are exhausted.
    """
    if length < 1:
        raise ConfigError(f"length must be 1 or more, not {length}")
    items: list[Item] = []
    teams: list[Team] = []
    weights: list[float] = []
    shown: set[Item] = set()
    ours, theirs = ({item: i for i, item in enumerate(ranking, 1)} for ranking in (champion, challenger))
    place = {"champion": 0, "challenger": 0}
    rankings: dict[Team, Sequence[Item]] = {"champion": champion, "challenger": challenger}
    while len(items) < length:
        picks: dict[Team, Item] = {}
        for team, ranking in rankings.items():
            while place[team] < len(ranking) and ranking[place[team]] in shown:
                place[team] += 1
            if place[team] < len(ranking):
                picks[team] = ranking[place[team]]
        if not picks:
            break
        drafted: list[tuple[Team, Item]] = list(picks.items())
        weight = 0.0
        if len(set(picks.values())) < 2:
            drafted = [("neither", drafted[0][1])]
        else:
            first, second = picks["champion"], picks["challenger"]
            apart = _apart(first, second, ours) + _apart(second, first, theirs)
            weight = round(apart / TYPICAL * GRAIN) / GRAIN
            if generator.random() < 0.5:
                drafted.reverse()
        for team, item in drafted[: length - len(items)]:
            items.append(item)
            teams.append(team)
            weights.append(weight)
            shown.add(item)
    return Interleaved(items=tuple(items), teams=tuple(teams), weights=tuple(weights))


def _apart(first: Hashable, second: Hashable, places: Mapping[Any, int]) -> float:
    """Logarithm of the ratio of the second's place to the first's; what a ranking leaves out is behind its last."""
    last = len(places) + 1
    return math.log(places.get(second, last) / places.get(first, last))


def credit(shown: Interleaved[Any], clicked: Collection[Hashable]) -> float:
    """What a session says: the weights of the clicked items of the challenger, less those of the champion's. It is
    above 0 where the challenger won, and symmetric about 0 for rankers that are equally good.

    >>> credit(Interleaved(items=("x", "y"), teams=("champion", "challenger")), {"y"})
    1.0
    """
    return sum((one for item, one in zip(shown.items, shown.credits, strict=True) if item in clicked), 0.0)


@dataclass(frozen=True, kw_only=True)
class Wins:
    """Sessions by who won them, and by how much. Ties say nothing of who is better and are only counted. Where users
    come back, add up each user's credits and count users, since the sessions of one user are alike.

    net, size, square: sums of the credits, of their sizes and of their squares; left out, all credits were 1 or -1."""

    challenger: int = 0
    champion: int = 0
    ties: int = 0
    net: float = 0.0
    size: float = 0.0
    square: float = 0.0

    @classmethod
    def of(cls, credits: np.ndarray) -> Wins:
        """Of (N,) credits."""
        return cls(
            challenger=int((credits > 0).sum()),
            champion=int((credits < 0).sum()),
            ties=int((credits == 0).sum()),
            net=float(credits.sum()),
            size=float(np.abs(credits).sum()),
            square=float(np.square(credits).sum()),
        )

    def __add__(self, other: Wins) -> Wins:
        ours, theirs = self.weighed, other.weighed
        return Wins(**{name: count + getattr(theirs, name) for name, count in vars(ours).items()})

    def add(self, credit: float) -> Wins:
        return self + Wins.of(np.array([credit]))

    @property
    def weighed(self) -> Wins:
        """With sums, from the counts if need be."""
        if self.square:
            return self
        decided = float(self.challenger + self.champion)
        return replace(self, net=float(self.challenger - self.champion), size=decided, square=decided)

    def preference(self, level: float = 0.05) -> Interval:
        """The share of all credit that went to the challenger, which is 0.5 for equal rankers, with bounds for all
        times at once. It may be read after every session; the challenger is better once `low` is above 0.5, worse once
        `high` is below.

        Given their sizes, credits are sub-Gaussian with those as scales, around any mean (Hoeffding 1963), so the
        normal mixture of Robbins (1970) over self-normalized sums (de la Peña, Klass & Lai 2004) is exact from the
        first session on, whatever the sizes."""
        whole = self.weighed
        net, size, square = whole.net, whole.size, whole.square
        if not size:
            return Interval(estimate=0.5, low=0.0, high=1.0)
        share, all_ = 0.5 + 0.5 * net / size, square + PRIOR
        half = 0.5 * math.sqrt(all_ * (math.log(all_ / PRIOR) - 2 * math.log(level))) / size
        p = min(1.0, math.exp(-float(preference_evidence(net, square))))
        return Interval(estimate=share, low=max(0.0, share - half), high=min(1.0, share + half), p=p)


def preference_evidence(net: Numbers, square: Numbers) -> Numbers:
    """Log of the e-value against equal rankers, of the sum of credits and the sum of their squares. Its exponential is
    a supermartingale for credits that are symmetric about 0, and so reaches 1 / level in a share `level` of
    comparisons at most (Ville 1939)."""
    return 0.5 * (np.square(net) / (square + PRIOR) - np.log1p(square / PRIOR))
