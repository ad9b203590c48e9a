"""The policy layer: what is done with a model's scores, in a small versioned document beside the model. It follows
immediate feedback and leaves the model as it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from cltrain.errors import ConfigError
from cltrain.online.assignment import bucket
from cltrain.online.interleave import Wins
from cltrain.seeding import numpy_generator


@dataclass(frozen=True, kw_only=True)
class Document:
    """Values of a policy, such as a threshold or re-ranking weights. Its version goes with every answer beside the
    model's; numbers are never used twice."""

    version: int
    values: Mapping[str, float]
    parent: int | None = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """low, high: what a value can never leave. step: by how much it moves at most in one adaptation."""

    low: float = 0.0
    high: float = 1.0
    step: float = 0.02

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ConfigError(f"limits.low must be below limits.high, not {self.low} and {self.high}")
        if not 0 < self.step <= self.high - self.low:
            raise ConfigError(f"limits.step must be above 0 and within the limits, not {self.step}")

    def bound(self, value: float, wanted: float) -> float:
        """As near to `wanted` as one step from `value` and the limits allow."""
        near = min(max(wanted, value - self.step), value + self.step)
        return min(max(near, self.low), self.high)


class Layer:
    """The documents that a policy layer has had, and which one is in force."""

    def __init__(self, values: Mapping[str, float], limits: Mapping[str, Limits]) -> None:
        if values.keys() != limits.keys():
            raise ConfigError(f"limits must name the policy's values: {sorted(values)}, not {sorted(limits)}")
        for name, value in values.items():
            if not limits[name].low <= value <= limits[name].high:
                raise ConfigError(f"{name} starts at {value}, outside its limits: {limits[name]}")
        self.limits = dict(limits)
        self.documents = [Document(version=1, values=dict(values), reason="start")]
        self.current = self.documents[0]

    def move(self, wanted: Mapping[str, float], reason: str) -> Document:
        """Put in force the document that is nearest to `wanted`, or the present one if that is what it is."""
        now = self.current.values
        values = {n: self.limits[n].bound(v, float(wanted.get(n, v))) for n, v in now.items()}
        if values != now:
            self.current = Document(
                version=self.documents[-1].version + 1, values=values, parent=self.current.version, reason=reason
            )
            self.documents.append(self.current)
        return self.current

    def rollback(self, version: int | None = None) -> Document:
        """Put an earlier document back in force, or the parent of the present one: whatever the model is."""
        wanted = self.current.parent if version is None else version
        found = [d for d in self.documents if d.version == wanted]
        if not found:
            known = ", ".join(str(d.version) for d in self.documents)
            raise ConfigError(f"there is no policy version {wanted} to go back to; there are: {known}")
        self.current = found[0]
        return self.current

    def state_dict(self) -> dict[str, Any]:
        return {"documents": [asdict(d) for d in self.documents], "current": self.current.version}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.documents = [Document(**document) for document in state["documents"]]
        self.rollback(state["current"])


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """A threshold that follows what its decisions earn. In a band around it the decision is drawn at random, the
    likelier the farther the score is above: as if the threshold were drawn from the band. Where scores are near the
    threshold both decisions are then seen, and cost little, being about equally good. Every so many rewards the
    threshold moves to where they earn the same.

    start, low, high, step: as of any value of a policy. band: half its width, in scores. every: rewards between
    adaptations. min_s: seconds between them at least, so that the threshold moves by one step a minute at most.
    memory_rows: the latest rewards that are looked at. caution: standard errors by which the two decisions must differ.
    reward_type: feedback whose number is what a decision earned. Without it a label says whether the decision was
    right, and a wrong one costs `false_positive_cost` or `false_negative_cost`.
    """

    start: float = 0.5
    low: float = 0.0
    high: float = 1.0
    step: float = 0.02
    band: float = 0.1
    every: int = 50
    min_s: float = 60.0
    memory_rows: int = 1_000
    caution: float = 1.0
    reward_type: str | None = None
    false_positive_cost: float = 1.0
    false_negative_cost: float = 1.0

    def __post_init__(self) -> None:
        if not self.band > 0:
            raise ConfigError(f"policy.band must be above 0, not {self.band}: both decisions must be seen")
        if not 1 <= self.every <= self.memory_rows:
            raise ConfigError(
                f"policy.every must be 1 or more and at most policy.memory_rows, not {self.every}, {self.memory_rows}"
            )
        for name in ("caution", "min_s", "false_positive_cost", "false_negative_cost"):
            if not 0 <= getattr(self, name) < np.inf:
                raise ConfigError(f"policy.{name} must be 0 or more, and finite, not {getattr(self, name)}")
        self.layer()

    def layer(self) -> Layer:
        return Layer({"threshold": self.start}, {"threshold": Limits(low=self.low, high=self.high, step=self.step)})

    def propensity(self, score: float, threshold: float) -> float:
        """Chance of the decision `above`."""
        return chance_above(score, threshold, self.band)

    def decide(self, decision_id: str, score: float, document: Document) -> tuple[bool, float]:
        """Whether the score counts as above the threshold, and the chance with which that was decided; the same for a
        request that is sent again."""
        chance = self.propensity(score, document.values["threshold"])
        return drawn_above(decision_id, chance, str(document.version))

    def wanted(self, rows: Sequence[Earned], threshold: float) -> tuple[float, str] | None:
        """Where `rows` say that the threshold should be, at most a step from `threshold` and within the limits, and
        why; None where they do not say that it should move."""
        gain, error = marginal_gain([r for r in rows if abs(r.score - threshold) <= self.band])
        if abs(gain) <= self.caution * error:
            return None
        share = min(1.0, abs(gain) / (2 * error)) if error else 1.0
        limits = Limits(low=self.low, high=self.high, step=self.step)
        value = limits.bound(threshold, threshold - float(np.sign(gain)) * self.step * share)
        return None if value == threshold else (value, f"above earns {gain:+.3g} ± {error:.2g} more")


def chance_above(score: float, threshold: float, band: float) -> float:
    """Chance of the decision `above`: grows from 0 to 1 over the band around the threshold, and jumps without one."""
    if band <= 0:
        return float(score >= threshold)
    return min(max((score - threshold + band) / (2 * band), 0.0), 1.0)


def drawn_above(decision_id: str, chance: float, version: str) -> tuple[bool, float]:
    """Whether the decision is `above`, and the chance with which it was made; the same each time."""
    above = bucket(decision_id, f"threshold/{version}") < chance
    return above, chance if above else 1 - chance


@dataclass(frozen=True, kw_only=True)
class Earned:
    """What a decision about a score earned. propensity: with which the decision that was made had been made."""

    decision_id: str
    score: float
    above: bool
    propensity: float
    reward: float


class ThresholdLearner:
    """Rewards in, documents out."""

    def __init__(self, settings: Threshold) -> None:
        self.settings = settings
        self.layer = settings.layer()
        self.rows: dict[str, Earned] = {}
        self.fresh = 0

    def learn(self, earned: Earned) -> Document:
        """The document in force after one more reward. A decision's second reward changes nothing."""
        if earned.decision_id not in self.rows:
            self.rows[earned.decision_id] = earned
            if len(self.rows) > self.settings.memory_rows:
                del self.rows[next(iter(self.rows))]
            self.fresh += 1
            if self.fresh >= self.settings.every:
                self.fresh = 0
                self._adapt()
        return self.layer.current

    def _adapt(self) -> None:
        found = self.settings.wanted(list(self.rows.values()), self.layer.current.values["threshold"])
        if found is not None:
            self.layer.move({"threshold": found[0]}, found[1])

    def state_dict(self) -> dict[str, Any]:
        return {
            "layer": self.layer.state_dict(),
            "rows": [asdict(row) for row in self.rows.values()],
            "fresh": self.fresh,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.layer.load_state_dict(state["layer"])
        self.rows = {row["decision_id"]: Earned(**row) for row in state["rows"]}
        self.fresh = state["fresh"]


def marginal_gain(rows: Sequence[Earned]) -> tuple[float, float]:
    """What `above` earns more than `below` near the threshold, and its standard error: a regression of the reward on
    the part of the decision that was drawn (Robinson 1988), which weights rows by how open their decision was. Without
    rows whose decision was open nothing is known, and the error is infinite."""
    above = np.array([row.above for row in rows], float)
    logged = np.array([row.propensity for row in rows])
    drawn = above - np.where(above > 0, logged, 1 - logged)
    open_ = drawn != 0
    drawn, reward = drawn[open_], np.array([row.reward for row in rows])[open_]
    if len(drawn) < 10:
        return 0.0, np.inf
    squares = float(drawn @ drawn)
    gain = float(drawn @ (reward - reward.mean())) / squares
    residual = reward - reward.mean() - gain * drawn
    return gain, float(np.sqrt(np.sum((drawn * residual) ** 2))) / squares


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Re-ranking weights that follow clicks: dueling bandit gradient descent (Yue & Joachims 2009). A candidate, a
    `reach` away in a random direction, is interleaved with the weights in force; after so many decided sessions the
    weights move a step towards it if users preferred it.

    start: of each feature that is added to the model's score. caution: standard errors by which the candidate must
    have won. session_s, click_type: what of the feedback on a list counts, as of `rollout=interleave`.
    """

    start: Mapping[str, float]
    low: float = -1.0
    high: float = 1.0
    step: float = 0.1
    reach: float = 0.3
    sessions: int = 100
    session_s: float = 1800.0
    click_type: str | None = None
    caution: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.start:
            raise ConfigError("policy.start is empty: name the features to weigh, such as policy.start.recency=0")
        if not self.reach > 0 or self.sessions < 1 or self.caution < 0:
            raise ConfigError("policy.reach must be above 0, policy.sessions 1 or more, and policy.caution 0 or more")
        if not 0 < self.session_s < np.inf:
            raise ConfigError(f"policy.session_s must be above 0 seconds, and finite, not {self.session_s}")
        self.layer()

    def layer(self) -> Layer:
        limits = Limits(low=self.low, high=self.high, step=self.step)
        return Layer(self.start, dict.fromkeys(self.start, limits))

    def towards(self, values: Mapping[str, float], duel: int, distance: float) -> dict[str, float]:
        """Weights that far from `values` in the direction of a duel, within the limits. Directions are uniform, and of
        the number of the duel, so that every process has the same."""
        drawn = numpy_generator(self.seed, "duel", duel).normal(size=len(self.start))
        drawn /= np.linalg.norm(drawn)
        return {
            name: float(np.clip(values[name] + distance * d, self.low, self.high))
            for name, d in zip(self.start, drawn, strict=True)
        }

    def verdict(self, wins: Wins) -> bool | None:
        """Whether users prefer the candidate (counted as the challenger); None while sessions are missing."""
        decided = wins.challenger + wins.champion
        if decided < self.sessions:
            return None
        whole = wins.weighed
        return bool(whole.net > self.caution * np.sqrt(whole.square))


class WeightsLearner:
    """Credits of interleaved sessions in, documents out. `candidate` has the weights to interleave with."""

    def __init__(self, settings: Weights) -> None:
        self.settings = settings
        self.layer = settings.layer()
        self.wins, self.duel = Wins(), 0

    @property
    def candidate(self) -> dict[str, float]:
        return self.settings.towards(self.layer.current.values, self.duel, self.settings.reach)

    def learn(self, credit: float) -> Document:
        """The document in force after one more session, by its credit: above 0 if the candidate has won it."""
        self.wins = self.wins.add(credit)
        won = self.settings.verdict(self.wins)
        if won is not None:
            if won:
                reason = f"won {self.wins.challenger} of {self.wins.challenger + self.wins.champion} sessions"
                wanted = self.settings.towards(self.layer.current.values, self.duel, self.settings.step)
                self.layer.move(wanted, reason)
            self.wins, self.duel = Wins(), self.duel + 1
        return self.layer.current

    def state_dict(self) -> dict[str, Any]:
        return {"layer": self.layer.state_dict(), "wins": asdict(self.wins), "duel": self.duel}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.layer.load_state_dict(state["layer"])
        self.wins, self.duel = Wins(**state["wins"]), state["duel"]
