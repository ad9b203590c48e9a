"""Two rankers in one list: each user compares them, so far fewer sessions are needed than when users are split."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

import numpy as np
from scipy import optimize, special

from cltrain.errors import ConfigError
from cltrain.online.sequential import Interval

Item = TypeVar("Item", bound=Hashable)
Team = Literal["champion", "challenger", "neither"]

PRIOR = 5.0


@dataclass(frozen=True, kw_only=True)
class Interleaved(Generic[Item]):
    """What a user is shown, and whose each place is. Both are logged with the request."""

    items: tuple[Item, ...]
    teams: tuple[Team, ...]

    @property
    def propensity(self) -> float:
        """Chance of this very list with these teams: one fair coin for each turn in which the captains differed."""
        return 0.5 ** ((len(self.teams) - self.teams.count("neither") + 1) // 2)


def team_draft(
    champion: Sequence[Item], challenger: Sequence[Item], length: int, generator: np.random.Generator
) -> Interleaved[Item]:
    """Two rankings drafted into one list, as captains pick teams: in each turn a fair coin says who picks first, and
    each adds the best of its items that is not there yet (Radlinski, Kurup & Joachims 2008). Where both would pick the
    same item it is shown for neither, and its clicks are of no account: given to a team by the coin they would only be
    noise, and the more of it the more alike the rankings are.

    Rankers that are equally good win equally often. Rankings are of unique items, best first; a list is shorter than
    `length` if both are exhausted.
    """
    if length < 1:
        raise ConfigError(f"length must be 1 or more, not {length}")
    items: list[Item] = []
    teams: list[Team] = []
    shown: set[Item] = set()
    places = {"champion": 0, "challenger": 0}
    rankings: dict[Team, Sequence[Item]] = {"champion": champion, "challenger": challenger}
    while len(items) < length:
        picks: dict[Team, Item] = {}
        for team, ranking in rankings.items():
            while places[team] < len(ranking) and ranking[places[team]] in shown:
                places[team] += 1
            if places[team] < len(ranking):
                picks[team] = ranking[places[team]]
        if not picks:
            break
        drafted: list[tuple[Team, Item]] = list(picks.items())
        if len(set(picks.values())) < len(picks):
            drafted = [("neither", champion[places["champion"]])]
        elif generator.random() < 0.5:
            drafted.reverse()
        for team, item in drafted[: length - len(items)]:
            items.append(item)
            teams.append(team)
            shown.add(item)
    return Interleaved(items=tuple(items), teams=tuple(teams))


def credit(shown: Interleaved[Any], clicked: Collection[Hashable]) -> int:
    """1 if the challenger's items got more of the session's clicks, -1 if the champion's did, 0 for a tie.

    >>> credit(Interleaved(items=("x", "y"), teams=("champion", "challenger")), {"y"})
    1
    """
    teams = [team for item, team in zip(shown.items, shown.teams, strict=True) if item in clicked]
    return int(np.sign(teams.count("challenger") - teams.count("champion")))


@dataclass(frozen=True, kw_only=True)
class Wins:
    """Sessions by who won them; ties say nothing of who is better and are only counted. Where users come back, add up
    each user's credits and count users, since the sessions of one user are alike."""

    challenger: int = 0
    champion: int = 0
    ties: int = 0

    def add(self, credit: int) -> Wins:
        return Wins(
            challenger=self.challenger + (credit > 0),
            champion=self.champion + (credit < 0),
            ties=self.ties + (credit == 0),
        )

    def preference(self, level: float = 0.05) -> Interval:
        """The share of decided sessions that the challenger wins, which is 0.5 for equal rankers, with bounds for all
        times at once: a sequential sign test. It may be read after every session; the challenger is better once `low`
        is above 0.5, worse once `high` is below."""
        wins, n = self.challenger, self.challenger + self.champion
        if not n:
            return Interval(estimate=0.5, low=0.0, high=1.0)
        share, aim = wins / n, -np.log(level)

        def beyond(p: float) -> float:
            return float(sign_evidence(wins, n, p)) - aim

        low = optimize.brentq(beyond, 1e-12, share, xtol=1e-9) if wins else 0.0
        high = optimize.brentq(beyond, share, 1 - 1e-12, xtol=1e-9) if wins < n else 1.0
        p = min(1.0, float(np.exp(-sign_evidence(wins, n, 0.5))))
        return Interval(estimate=share, low=low, high=high, p=p)


def sign_evidence(wins: np.ndarray | int, n: np.ndarray | int, p: float = 0.5) -> np.ndarray:
    """Log of the e-value against a preference of `p`: the likelihood against its mean over a beta(5, 5) prior."""
    mixture = special.betaln(wins + PRIOR, n - wins + PRIOR) - special.betaln(PRIOR, PRIOR)
    return mixture - special.xlogy(wins, p) - special.xlog1py(n - wins, -p)
