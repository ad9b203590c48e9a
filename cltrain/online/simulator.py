"""A small world whose truth is known: users with preferences, clicks, and feedback that comes late or never. To test
roll-outs on, and to try policies before they meet people."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from scipy import special

from cltrain.errors import ConfigError
from cltrain.online.bandits import Policy
from cltrain.online.learning import Bandit, Outcome
from cltrain.seeding import numpy_generator


@dataclass(frozen=True, kw_only=True)
class World:
    """Users who like items by what both are like.

    users, items, dimensions: how many, and of how many traits. appeal: logit of the chance that an item of no
    particular interest is liked. taste: how much preferences differ. patience: chance to look at the next place of a
    list (users look from the top). satisfaction: chance to leave after a click. activity: spread of how readily users
    click at all, in logits, which is what makes A/B tests of clicks slow.

    looks: `cascade` for users who go down a list until they leave it (Craswell et al. 2008); `position` for users who
    look at the k-th place with a chance of 1 / k, whatever they clicked (Joachims, Swaminathan & Schnabel 2017), for
    which patience and satisfaction are of no account.
    """

    users: int = 2_000
    items: int = 100
    dimensions: int = 8
    appeal: float = -2.0
    taste: float = 0.5
    patience: float = 0.9
    satisfaction: float = 0.5
    activity: float = 1.0
    looks: Literal["cascade", "position"] = "cascade"
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.users, self.items, self.dimensions) < 1:
            raise ConfigError("users, items and dimensions must be 1 or more")
        if not 0 < self.patience <= 1:
            raise ConfigError(f"patience must be above 0 and at most 1, not {self.patience}")
        if not 0 <= self.satisfaction <= 1:
            raise ConfigError(f"satisfaction must be between 0 and 1, not {self.satisfaction}")
        if self.taste < 0 or self.activity < 0:
            raise ConfigError("taste and activity must be 0 or more")
        if self.looks not in ("cascade", "position"):
            raise ConfigError(f"looks must be cascade or position, not {self.looks!r}")

    @cached_property
    def logits(self) -> np.ndarray:
        """(users, items) of the chance that a user clicks on an item that is looked at, but for their activity."""
        generator = numpy_generator(self.seed, "world")
        people = generator.normal(size=(self.users, self.dimensions))
        return self.appeal + self.taste * people @ generator.normal(size=(self.dimensions, self.items))

    @cached_property
    def moods(self) -> np.ndarray:
        """(users,) logits by which users click more often than others, whatever they see."""
        return self.activity * numpy_generator(self.seed, "moods").normal(size=self.users)

    def ranking(self, version: str, noise: float, length: int = 10) -> np.ndarray:
        """(users, length) items as a ranker shows them: by their logits, with an error for each user and item, normal
        with standard deviation `noise`. The same version ranks the same always."""
        error = numpy_generator(self.seed, "ranker", version).normal(size=self.logits.shape)
        return np.argsort(-(self.logits + noise * error), axis=1, kind="stable")[:, :length]

    def visits(self, sessions: int, generator: np.random.Generator) -> np.ndarray:
        """(sessions,) who comes."""
        return generator.integers(0, self.users, sessions)

    def clicks(self, users: np.ndarray, shown: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """(N, L) which of the items shown to each user are clicked: those that are looked at and liked."""
        liked = generator.random(shown.shape) < special.expit(
            self.logits[users[:, None], shown] + self.moods[users, None]
        )
        if self.looks == "position":
            return liked & (generator.random(shown.shape) < 1 / np.arange(1, shown.shape[1] + 1))
        goes_on = generator.random(shown.shape) < np.where(liked, 1 - self.satisfaction, 1.0) * self.patience
        looked = np.column_stack([np.ones(len(users), bool), np.cumprod(goes_on[:, :-1], axis=1)])
        return liked & (looked > 0)


@dataclass(frozen=True, kw_only=True)
class Feedback:
    """When labels arrive: after an exponential delay, or, for a share `lost`, never."""

    delay_s: float = 3_600.0
    lost: float = 0.1

    def __post_init__(self) -> None:
        if self.delay_s < 0 or not 0 <= self.lost < 1:
            raise ConfigError(f"delay_s must be 0 or more, and lost at least 0 and below 1: {self}")

    def arrival(self, decided_at: int, generator: np.random.Generator) -> int | None:
        """Microseconds at which the label of a decision arrives, or None."""
        lost, delay = generator.random() < self.lost, generator.exponential(self.delay_s)
        return None if lost else decided_at + round(delay * 1e6)


@dataclass
class InFlight:
    """Labels that are on their way."""

    _queue: list[tuple[int, int, Any]] = field(default_factory=list)
    _sent: int = 0

    def send(self, arrival: int | None, label: Any) -> None:
        if arrival is not None:
            heapq.heappush(self._queue, (arrival, self._sent, label))
            self._sent += 1

    def arrived(self, now: int) -> list[Any]:
        """Those that have arrived by `now`, in order of arrival, each once."""
        found = []
        while self._queue and self._queue[0][0] <= now:
            found.append(heapq.heappop(self._queue)[2])
        return found


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What a bandit lost against always choosing the best arm, and what equal shares would have lost, in expected
    reward. chosen: (A,) how often each arm was."""

    regret: float
    uniform: float
    chosen: np.ndarray
    labels: int

    @property
    def ratio(self) -> float:
        return self.regret / self.uniform


def try_bandit(
    policy: Policy,
    rewards: np.ndarray,
    context: np.ndarray | None = None,
    *,
    every_s: float = 1.0,
    publish: int = 50,
    feedback: Feedback | None = None,
    arms: Sequence[str] | None = None,
    seed: int = 0,
) -> Trial:
    """Let a policy choose among arms, one decision every `every_s` seconds. rewards: (N, A) chances of a reward of 1.
    context: (N, F) features that the policy sees. A snapshot is published every `publish` decisions, from the labels
    that have arrived by then.

    >>> from cltrain.online.bandits import Thompson
    >>> try_bandit(Thompson(), np.tile([0.1, 0.5], (2_000, 1))).ratio < 0.5
    True
    """
    feedback, names = feedback or Feedback(), tuple(arms or (f"arm-{i}" for i in range(rewards.shape[1])))
    generator = numpy_generator(seed, "bandit")
    bandit = Bandit(policy, names, 0 if context is None else context.shape[1])
    way, chosen, regret = InFlight(), np.zeros(len(names), int), 0.0
    snapshot = bandit.snapshot()
    for i, chances in enumerate(rewards):
        now = round((i + 1) * every_s * 1e6)
        if i % publish == 0:
            bandit.learn(way.arrived(now))
            snapshot = bandit.snapshot()
        features = () if context is None else tuple(context[i])
        choice = snapshot.choose(f"{seed}/{i}", features)
        arm = names.index(choice.arm)
        chosen[arm] += 1
        regret += chances.max() - chances[arm]
        reward = float(generator.random() < chances[arm])
        outcome = Outcome(decision_id=f"{seed}/{i}", decided_at=now, arm=choice.arm, reward=reward, context=features)
        way.send(feedback.arrival(now, generator), outcome)
    uniform = float((rewards.max(1) - rewards.mean(1)).sum())
    return Trial(regret=float(regret), uniform=uniform, chosen=chosen, labels=bandit.counts["learned"])
