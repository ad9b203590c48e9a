"""A bandit that learns from labels which come late, twice or never, and publishes snapshots that routers read."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, cast

import numpy as np

from cltrain.clock import parse_duration
from cltrain.errors import ConfigError, DataError
from cltrain.online.assignment import bucket
from cltrain.online.bandits import Policy, best_chances
from cltrain.online.posterior import Sums
from cltrain.storage import digest_json


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What is logged with a decision: which arm, with which chance, by which snapshot."""

    arm: str
    propensity: float
    policy_version: str


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A labelled decision. decided_at: microseconds since 1970. context: the features that the choice was made on."""

    decision_id: str
    decided_at: int
    arm: str
    reward: float
    context: tuple[float, ...] = ()


@dataclass(frozen=True)
class Snapshot:
    """A policy with what it knew at a moment. It never changes, so any number of routers may read it."""

    policy: Policy
    arms: tuple[str, ...]
    sums: Sums

    @cached_property
    def version(self) -> str:
        return digest_json([_settings(self.policy), _arrays(self.arms, self.sums)])[:16]

    @cached_property
    def _fixed(self) -> np.ndarray:
        return self._with_floor(self.policy.chances(self.sums, np.ones(1)))

    def propensities(self, context: Sequence[float] = ()) -> np.ndarray:
        """(A,) chances of the arms, which add up to 1 and are `explore / A` at least. Raises `DataError` for a context
        that is not of the features the bandit has."""
        if not self.policy.contextual:
            return self._fixed
        return self._with_floor(self.policy.chances(self.sums, _vector(context, self.sums)))

    def _with_floor(self, chances: np.ndarray) -> np.ndarray:
        explore = self.policy.explore
        return explore / len(self.arms) + (1 - explore) * chances

    def choose(self, decision_id: str, context: Sequence[float] = ()) -> Choice:
        """The arm of a decision: the same for the same id and snapshot."""
        chances = self.propensities(context)
        place = np.searchsorted(np.cumsum(chances), bucket(decision_id, self.version), side="right")
        arm = min(int(place), len(self.arms) - 1)
        return Choice(arm=self.arms[arm], propensity=float(chances[arm]), policy_version=self.version)

    def best(self) -> np.ndarray:
        """(A,) posterior chance that each arm has the highest mean reward."""
        return best_chances(self.sums)

    def to_json(self) -> dict[str, Any]:
        return {"version": self.version, "policy": _settings(self.policy), **_arrays(self.arms, self.sums)}

    @classmethod
    def from_json(cls, policy: Policy, value: Mapping[str, Any]) -> Snapshot:
        """What `to_json` wrote. Raises `ConfigError` if it is of another policy, `DataError` if it was altered."""
        if value["policy"] != _settings(policy):
            raise ConfigError(f"the snapshot is of {value['policy']}, not of {_settings(policy)}")
        found = cls(policy, tuple(value["arms"]), _sums(value))
        if found.version != value["version"]:
            raise DataError(f"the snapshot {value['version']} was altered: it is {found.version}")
        return found


class Bandit:
    """The one owner of what a bandit knows: outcomes in, snapshots out.

    Each decision counts once, whatever comes twice. Outcomes are known by their decision's id for `label_horizon`
    before the latest decision of all outcomes; those of earlier decisions are refused, so ids need not be kept for
    ever. Decisions without a label need nothing: they are not waited for. With a half-life, an outcome counts by the
    age of its decision and not of its label, and the order of arrival does not matter.
    """

    def __init__(self, policy: Policy, arms: Sequence[str], features: int = 0, label_horizon: str = "7d") -> None:
        if len(arms) < 2 or len(set(arms)) < len(arms):
            raise ConfigError(f"a bandit needs two arms or more, each once, not {list(arms)}")
        if policy.contextual and not features:
            raise ConfigError(f"{type(policy).__name__} learns from features: say how many there are")
        self.policy, self.arms = policy, tuple(arms)
        self.sums = Sums.empty(len(arms), features if policy.contextual else 0)
        self.horizon = _us(label_horizon)
        self.latest = 0
        self.seen: OrderedDict[str, int] = OrderedDict()  # in order of arrival
        self.counts = {"learned": 0, "repeated": 0, "too_late": 0, "other_arms": 0}

    def learn(self, outcomes: Iterable[Outcome]) -> int:
        """Take in outcomes and return how many were new. Raises `DataError` for a reward or context that cannot be
        used, before anything is taken in."""
        outcomes = list(outcomes)
        vectors = [_vector(o.context if self.policy.contextual else (), self.sums) for o in outcomes]
        for outcome in outcomes:
            _check_reward(outcome, self.policy)
        self._advance(max((o.decided_at for o in outcomes), default=self.latest))
        before = self.counts["learned"]
        gram, moment, square = (array.copy() for array in (self.sums.gram, self.sums.moment, self.sums.square))
        for outcome, x in zip(outcomes, vectors, strict=True):
            self.counts[kind := self._kind(outcome)] += 1
            if kind == "learned":
                self.seen[outcome.decision_id] = outcome.decided_at
                arm, weight = self.arms.index(outcome.arm), self._discount(self.latest - outcome.decided_at)
                gram[arm] += weight * np.outer(x, x)
                moment[arm] += weight * outcome.reward * x
                square[arm] += weight * outcome.reward**2
        self.sums = Sums(gram=gram, moment=moment, square=square)
        return self.counts["learned"] - before

    def can_use(self, outcome: Outcome) -> bool:
        """Whether `learn` takes the outcome's reward and context."""
        try:
            _vector(outcome.context if self.policy.contextual else (), self.sums)
            _check_reward(outcome, self.policy)
        except DataError:
            return False
        return True

    def _kind(self, outcome: Outcome) -> str:
        if outcome.decided_at < self.latest - self.horizon:
            return "too_late"
        if outcome.decision_id in self.seen:
            return "repeated"
        return "learned" if outcome.arm in self.arms else "other_arms"

    def _advance(self, latest: int) -> None:
        if latest <= self.latest:
            return
        discount = self._discount(latest - self.latest) if self.latest else 1.0
        sums, self.latest = self.sums, latest
        self.sums = Sums(gram=sums.gram * discount, moment=sums.moment * discount, square=sums.square * discount)
        while self.seen and next(iter(self.seen.values())) < latest - self.horizon:
            self.seen.popitem(last=False)

    def _discount(self, age: int) -> float:
        return 1.0 if self.policy.half_life is None else 0.5 ** (age / _us(self.policy.half_life))

    def snapshot(self) -> Snapshot:
        return Snapshot(self.policy, self.arms, self.sums)

    def replace_arms(self, arms: Sequence[str]) -> None:
        """Go on with other arms: what is known of those that stay is kept, and new ones start with nothing."""
        fresh = Bandit(self.policy, arms, self.sums.moment.shape[1] - 1)
        for i, arm in enumerate(arms):
            if arm in self.arms:
                j = self.arms.index(arm)
                for name in ("gram", "moment", "square"):
                    getattr(fresh.sums, name)[i] = getattr(self.sums, name)[j]
        self.arms, self.sums = fresh.arms, fresh.sums

    def state_dict(self) -> dict[str, Any]:
        return {
            "policy": _settings(self.policy),
            **_arrays(self.arms, self.sums),
            "latest": self.latest,
            "seen": list(self.seen.items()),
            "counts": dict(self.counts),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on as if there had been no stop. Raises `ConfigError` if the state is of another policy."""
        if state["policy"] != _settings(self.policy):
            raise ConfigError(f"the bandit's state is of {state['policy']}, not of {_settings(self.policy)}")
        self.arms = tuple(state["arms"])
        self.sums = _sums(state)
        self.latest, self.counts = state["latest"], dict(state["counts"])
        self.seen = OrderedDict(state["seen"])


def _check_reward(outcome: Outcome, policy: Policy) -> None:
    low, high = (0.0, 1.0) if getattr(policy, "reward", None) == "binary" else (-np.inf, np.inf)
    if not (np.isfinite(outcome.reward) and low <= outcome.reward <= high):
        raise DataError(
            f"the reward of {outcome.decision_id} is {outcome.reward}: it must be between 0 and 1, or"
            " policy.reward=numeric and finite"
        )


def _vector(context: Sequence[float], sums: Sums) -> np.ndarray:
    vector = np.array([1.0, *context])
    if len(vector) != sums.moment.shape[1] or not np.isfinite(vector).all():
        raise DataError(f"a context must be {sums.moment.shape[1] - 1} finite numbers, not {list(context)}")
    return vector


def _us(duration: str) -> int:
    return round(parse_duration(duration).total_seconds() * 1e6)


def _settings(policy: Policy) -> dict[str, Any]:
    return {"name": type(policy).__name__, **asdict(cast(Any, policy))}


def _arrays(arms: Sequence[str], sums: Sums) -> dict[str, Any]:
    return {"arms": list(arms), **{name: getattr(sums, name).tolist() for name in ("gram", "moment", "square")}}


def _sums(value: Mapping[str, Any]) -> Sums:
    return Sums(**{name: np.array(value[name], np.float64) for name in ("gram", "moment", "square")})
