"""Re-ranking weights: features that are added to a model's scores on `/rank`, in a document of the desired state beside
the versions. They follow clicks by duels: other weights are interleaved with those in force, and a step is taken
towards them if people preferred what they ranked. The model stays as it is.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, get_args

import numpy as np
from scipy import special

from cltrain.errors import ConfigError, DataError
from cltrain.online.policy import Weights
from cltrain.records import Json
from cltrain.registry import Registry
from cltrain.registry.deployment import Deployment, Deployments
from serve.logs.feedback import FeedbackType
from serve.rollout.preference import PreferenceReader, require_one_score

log = logging.getLogger(__name__)

DUEL = "duel"


@dataclass(frozen=True)
class WeightsPolicy:
    """Weights by feature: those in force, and those that they are interleaved with while it `duels`."""

    version: str
    weights: Mapping[str, float]
    candidate: Mapping[str, float]
    duels: bool = True

    @classmethod
    def of(cls, deployment: Deployment) -> WeightsPolicy | None:
        """What is in force, if it is weights."""
        document = deployment.document
        if deployment.policy is None or "weights" not in document:
            return None
        candidate = document.get("candidate") or document["weights"]
        duels = "candidate" in document and not document.get("held")
        return cls(deployment.policy, document["weights"], candidate, duels)


def blended(
    answers: Sequence[Mapping[str, Any]], features: Sequence[Mapping[str, Any]], weights: Mapping[str, float]
) -> np.ndarray:
    """(N,) scores of the candidates of one list: the model's, as log-odds where it is a probability, and each feature
    times its weight. Both are standardised within the list, so that a weight says what a standard deviation of the
    feature counts in those of the model's score, whatever their units. A feature that is missing counts as the mean.
    Raises `DataError` for one that is no number."""
    scores = np.array([one.get("probability", one.get("value")) for one in answers], np.float64)
    if "probability" in answers[0]:
        scores = special.logit(np.clip(scores, 1e-9, 1 - 1e-9))
    total = _standardised(scores)
    for name, weight in weights.items():
        values = [_number(row.get(name), name, i) for i, row in enumerate(features)]
        total = total + weight * _standardised(np.array(values))
    return total


def _standardised(values: np.ndarray) -> np.ndarray:
    known = np.isfinite(values)
    if len(np.unique(values[known])) < 2:
        return np.zeros(len(values))
    with np.errstate(all="ignore"):  # of numbers that are near the largest there are
        found = (values - values[known].mean()) / values[known].std()
    return np.where(np.isfinite(found), found, 0.0)


def _number(value: Any, name: str, row: int) -> float:
    if value is None:
        return np.nan
    if not isinstance(value, bool | int | float):
        raise DataError(f"items[{row}].features.{name} must be a number, since policy.start weighs it: not {value!r}")
    try:
        return float(value)
    except OverflowError as error:
        raise DataError(f"items[{row}].features.{name} must be a number of 64 bits") from error


def require_click_type(click_type: str | None) -> None:
    """Raise `ConfigError` for a type that feedback cannot have."""
    if click_type not in (None, *get_args(FeedbackType)):
        types = ", ".join(get_args(FeedbackType))
        raise ConfigError(f"policy.click_type must be {types}, or null for any, not {click_type!r}")


class WeightsAdapter:
    """Ends a duel once enough sessions have a winner, and begins the next, as `settings` say. While a roll-out runs it
    holds still, and while a document is held, as one that was rolled back to is. All that it knows is in the log and
    in the desired state."""

    def __init__(self, registry: Registry, settings: Weights) -> None:
        require_click_type(settings.click_type)
        self._registry, self._settings, self._deployments = registry, settings, Deployments(registry)
        self._followed: str | None = None
        self._reader: PreferenceReader | None = None

    def look(self, now: Deployment) -> Deployment | None:
        """What is in force now if that has changed. Raises `StoreError`, `ConflictError` where somebody was first."""
        if now.champion is None or now.running is not None or now.document.get("held"):
            return None
        policy = WeightsPolicy.of(now)
        if now.policy is None:
            require_one_score(self._registry, now.champion, "serve.policy=weights")
            return self._begin(now, dict(self._settings.start), 0, "the policy layer starts")
        if policy is None:  # a policy of another kind was put in force by hand: it stays
            return None
        if policy.weights.keys() != self._settings.start.keys():
            if not policy.duels:  # put in force by hand
                return None
            return self._begin(now, dict(self._settings.start), 0, "other features are weighed")
        duel = now.document.get(DUEL, 0)
        if not policy.duels:
            return self._begin(now, dict(policy.weights), duel, "a duel begins")
        wins = self._reader_of(now).read(datetime.now(UTC)).wins
        won = self._settings.verdict(wins)
        if won is None:
            return None
        values = dict(policy.weights)
        if won:
            values = self._settings.towards(values, duel, self._settings.step)
        decided = wins.challenger + wins.champion
        return self._begin(now, values, duel + 1, f"the others won {wins.challenger} of {decided} sessions")

    def _begin(self, now: Deployment, values: dict[str, float], duel: int, reason: str) -> Deployment:
        candidate = self._settings.towards(values, duel, self._settings.reach)
        at = datetime.now(UTC).isoformat()
        document: Json = {"weights": values, "candidate": candidate, DUEL: duel, "at": at}
        return self._deployments.set_policy(document, expected_epoch=now.epoch, by="policy", reason=reason)

    def _reader_of(self, now: Deployment) -> PreferenceReader:
        if self._reader is None or self._followed != now.policy:
            assert now.policy is not None
            self._followed = now.policy
            self._reader = PreferenceReader(
                self._registry.store.storage,
                self._registry.model,
                "policy_version",
                now.policy,
                datetime.fromisoformat(now.document["at"]),
                session_s=self._settings.session_s,
                click_type=self._settings.click_type,
            )
        return self._reader
