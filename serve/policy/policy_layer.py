"""The policy layer of binary models: what label a score becomes, in a small document of the desired state beside the
versions. It is swapped, adapted and rolled back by itself, and the model stays as it is.

Where a document has a band, decisions near the threshold are drawn, and logged with their chance; so the log can tell
what another threshold would have earned.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cltrain.data.encoder import Encoder
from cltrain.errors import ConfigError, ConflictError, DataError
from cltrain.online.off_policy import Estimate, Log, cross_fitted, doubly_robust, ips, snips
from cltrain.online.policy import Earned, Threshold, chance_above, drawn_above
from cltrain.records import Json
from cltrain.registry import Registry
from cltrain.registry.deployment import ADAPTER, Deployment, Deployments
from cltrain.storage import Storage
from serve.logs.feedback import FOLDER as FEEDBACK
from serve.logs.feedback import SCHEMA as FEEDBACK_SCHEMA
from serve.logs.feedback import FeedbackType
from serve.logs.prediction_log import FOLDER as PREDICTIONS
from serve.logs.prediction_log import SCHEMA
from serve.rollout.joined import LABEL as LABEL_SLOT
from serve.rollout.joined import Columns, Joined, NewRows, columns_of, rewards

LEAST_ROWS = 100  # decisions with a reward, of the log and of what it is worth, that tell anything
UNTOLD = 0.01  # share of decisions that had no chance in the log, at most
CAPACITY_ROWS = 200_000
WEEK_S = 7 * 86_400.0
BINARY = "binary"
_READ: tuple[str, ...] = (
    "request_id",
    "event_id",
    "time",
    "model",
    "version",
    "prediction",
    "label_answer",
    "unit_id",
    "weight",
)
_READ += ("policy_version", "decision_propensity")


@dataclass(frozen=True)
class ThresholdPolicy:
    """band: half the width of the scores around the threshold whose decisions are drawn; 0 draws none."""

    version: str
    threshold: float
    band: float = 0.0

    @classmethod
    def of(cls, deployment: Deployment) -> ThresholdPolicy | None:
        values = deployment.document.get("values")
        if deployment.policy is None or not values:
            return None
        return cls(deployment.policy, float(values["threshold"]), float(values.get("band", 0.0)))

    def decide(self, request_id: str, score: float) -> tuple[int, float]:
        """The label, and the chance with which it was decided; the same again for the same request."""
        above, chance = drawn_above(request_id, chance_above(score, self.threshold, self.band), self.version)
        return int(above), chance


@dataclass(frozen=True, kw_only=True)
class Reward:
    """What a decision earned: the number of `reward_type` feedback; or without a type, by the label, 0 for a decision
    that was right and minus its cost for one that was not."""

    reward_type: str | None = None
    false_positive_cost: float = 1.0
    false_negative_cost: float = 1.0

    def __post_init__(self) -> None:
        if self.reward_type not in (None, *get_args(FeedbackType)):
            types = ", ".join(get_args(FeedbackType))
            raise ConfigError(f"policy.reward_type must be {types}, or null for labels, not {self.reward_type!r}")
        for name in ("false_positive_cost", "false_negative_cost"):
            if not 0 <= getattr(self, name) < np.inf:
                raise ConfigError(f"policy.{name} must be 0 or more, and finite, not {getattr(self, name)}")

    @classmethod
    def of(cls, settings: Threshold) -> Reward:
        return cls(
            reward_type=settings.reward_type,
            false_positive_cost=settings.false_positive_cost,
            false_negative_cost=settings.false_negative_cost,
        )

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Reward:
        return cls(**document.get("reward", {}))


@dataclass(frozen=True)
class Decisions:
    """N decisions whose reward is known, oldest first, all (N,): scores, whether the label was 1, the chance with which
    that was decided, the policy's version (None: a half) and the reward."""

    ids: np.ndarray
    score: np.ndarray
    above: np.ndarray
    propensity: np.ndarray
    policy: np.ndarray
    reward: np.ndarray

    def __len__(self) -> int:
        return len(self.score)

    def last(self, rows: int) -> Decisions:
        return Decisions(**{name: values[-rows:] for name, values in vars(self).items()})


class DecisionLog:
    """Follows the decisions of the last week that the log has of a model's versions, and what they earned; the newest
    `CAPACITY_ROWS`. Rows that were only scored, as on `/rank`, are none."""

    def __init__(self, storage: Storage, model: str, reward: Reward) -> None:
        self._model, self._reward = model, reward
        after = time.time() - WEEK_S
        self._answers = NewRows(storage, PREDICTIONS, pa.schema([SCHEMA.field(name) for name in _READ]), after)
        self._feedback = NewRows(storage, FEEDBACK, FEEDBACK_SCHEMA, after)
        self._joined = Joined(CAPACITY_ROWS)
        kinds = {"id": object, "above": np.bool_, "propensity": np.float64, "policy": object, "version": object}
        self._rows = Columns(kinds)

    def read(self, version: str) -> Decisions:
        """Of one version of the model: scores of another are others. Raises `StoreError`."""
        for table in self._answers:
            self._add(table)
            if len(self._rows) > CAPACITY_ROWS:
                gone = np.arange(len(self._rows)) < len(self._rows) - CAPACITY_ROWS // 2
                self._joined.drop(gone)
                self._rows.keep(~gone)
        for table in self._feedback:
            self._joined.add_labels(table, self._reward.reward_type)
        rows, joined = self._rows, self._joined.rows
        earned = self._earned(rows["above"])
        kept = np.flatnonzero(np.isfinite(earned) & (rows["version"] == version))
        kept = kept[np.argsort(joined["at"][kept], kind="stable")]
        return Decisions(
            ids=rows["id"][kept],
            score=joined["score"][kept],
            above=rows["above"][kept],
            propensity=rows["propensity"][kept],
            policy=rows["policy"][kept],
            reward=earned[kept],
        )

    def _add(self, table: pa.Table) -> None:
        mine = pc.and_(pc.equal(table["model"], self._model), pc.is_valid(table["decision_propensity"]))
        table = table.filter(pc.fill_null(mine, False))
        count = table.num_rows
        if count:
            alike = {"ours": np.zeros(count, np.bool_), "epoch": np.zeros(count, np.int64)}
            self._joined.add_rows({**columns_of(table), **alike})
            found = {name: _objects(table[column]) for name, column in _TEXTS.items()}
            found |= {
                "above": np.asarray(pc.equal(table["label_answer"], "1")),
                "propensity": table["decision_propensity"].to_numpy(),
            }
            self._rows.append(found, count)

    def _earned(self, above: np.ndarray) -> np.ndarray:
        if self._reward.reward_type is not None:
            return rewards(self._joined.rows)
        label = self._joined.rows[f"value{LABEL_SLOT}"]
        known = (self._joined.rows[f"received{LABEL_SLOT}"] > 0) & np.isin(label, (0.0, 1.0))
        cost = np.where(above, self._reward.false_positive_cost, self._reward.false_negative_cost)
        return np.where(known, np.where(above == (label == 1), 0.0, -cost), np.nan)


_TEXTS = {"id": "request_id", "policy": "policy_version", "version": "version"}


def estimate(decisions: Decisions, threshold: float, band: float) -> Json:
    """What a policy would have earned a decision, by inverse propensities (`ips`), self-normalised (`snips`) and doubly
    robust (`dr`, the one to read), each with its 95 % interval; and what those in force earned (`logged`, a mean).
    `untold` is the share of its decisions that had no chance in the log. Raises `DataError` for fewer than two."""
    chosen = decisions.above.astype(int)
    chance = np.array([chance_above(score, threshold, band) for score in decisions.score.tolist()])
    target = np.column_stack([1 - chance, chance])
    log = Log(chosen=chosen, reward=decisions.reward, propensity=decisions.propensity, target=target)
    other = target[np.arange(len(chosen)), 1 - chosen]
    context = np.column_stack([decisions.score, decisions.score**2])
    predicted = cross_fitted(context, chosen, decisions.reward, 2)
    found: Json = {
        "n": len(decisions),
        "effective": log.effective,
        "untold": float(other[decisions.propensity >= 1].sum()) / len(decisions),
        "logged": float(decisions.reward.mean()),
        "dr": _shown(doubly_robust(log, predicted)),
        "ips": _shown(ips(log)),
    }
    if log.weights.sum() > 0:
        found["snips"] = _shown(snips(log))
    return found


def _shown(one: Estimate) -> Json:
    return {"value": one.value, "low": one.low, "high": one.high}


def problem_of(found: Json) -> str | None:
    """Why the log cannot tell what the policy would earn, or that it would earn less beyond doubt; None if it can."""
    if found["n"] < LEAST_ROWS:
        return f"the log has {found['n']} decisions of this version whose reward is known, and {LEAST_ROWS} are needed"
    if found["untold"] > UNTOLD:
        return (
            f"the log cannot tell: {found['untold']:.1%} of the decisions that it would make had no chance under the "
            "policies that were in force; put one in force whose band covers the scores in between"
        )
    if found["effective"] < LEAST_ROWS:
        return (
            f"the log cannot tell: it is worth {found['effective']:.0f} decisions of that policy, and {LEAST_ROWS} "
            "are needed"
        )
    if found["dr"]["high"] < found["logged"]:
        return (
            f"it would earn {found['dr']['value']:.4g} a decision ({found['dr']['low']:.4g} to "
            f"{found['dr']['high']:.4g}), less than the {found['logged']:.4g} of what was in force"
        )
    return None


def document_of(threshold: float, band: float, reward: Reward, found: Json | None = None) -> Json:
    """A document to be put in force. Raises `ConfigError`."""
    if not 0 <= threshold <= 1:
        raise ConfigError(f"policy.threshold is a probability between 0 and 1, not {threshold}")
    if not 0 <= band <= 0.5:
        raise ConfigError(f"policy.band must be between 0 (nothing is drawn) and 0.5, not {band}")
    document: Json = {"values": {"threshold": threshold, "band": band}, "reward": dict(vars(reward))}
    return document if found is None else {**document, "estimate": found}


def require_binary(registry: Registry, version: str) -> None:
    """Raise `ConfigError` for a version that answers no probability of one class."""
    about = registry.store.storage.read_json(f"{registry.version(version).state}/encoder.json")
    if (task := Encoder.from_json(about).task) != BINARY:
        raise ConfigError(f"a policy makes labels of a binary model's scores, and {registry.model} is {task}")


def propose(
    deployments: Deployments,
    log: DecisionLog,
    document: Json,
    *,
    by: str,
    reason: str,
    force: bool = False,
    expected_epoch: int | None = None,
) -> Deployment:
    """Put a document in force that the log speaks for, with its estimate. Raises `ConflictError` where it does not,
    unless `force`, and where somebody else was first."""
    now = deployments.current()
    if now.champion is None:
        raise ConflictError("there is no champion yet, so there is nothing to decide by")
    values = document["values"]
    found, problem = None, None
    try:
        found = estimate(log.read(now.champion), values["threshold"], values["band"])
        problem = problem_of(found)
    except DataError:
        problem = f"the log has no decisions of {now.champion} whose reward is known, and {LEAST_ROWS} are needed"
    if problem is not None and not force:
        raise ConflictError(f"the policy is not put in force: {problem}; send force=true to do it all the same")
    document = {**document, "estimate": found, **({"forced": problem} if problem else {})}
    return deployments.set_policy(document, expected_epoch=expected_epoch, by=by, reason=reason)


class Adapter:
    """Follows what decisions earn with the threshold, as `settings` say, in steps. While a roll-out runs it holds
    still, so that versions are compared under one policy; and while a document is held, as one that was rolled back
    to is. All that it knows is in the log and in the desired state."""

    def __init__(self, registry: Registry, settings: Threshold) -> None:
        self._registry, self._settings = registry, settings
        self._deployments, self._reward = Deployments(registry), Reward.of(settings)
        self._log = DecisionLog(registry.store.storage, registry.model, self._reward)
        self._tried: tuple[str | None, int] = (None, 0)  # rewards under the document in force at the last try

    def look(self, now: Deployment) -> Deployment | None:
        """What is in force now if that has changed. Raises `StoreError`, `ConflictError` where somebody was first."""
        if now.champion is None or now.running is not None or now.document.get("held"):
            return None
        policy, settings = ThresholdPolicy.of(now), self._settings
        if policy is None and now.policy is not None:  # one of another kind was put in force by hand: it stays
            return None
        if policy is None:
            require_binary(self._registry, now.champion)
            start = document_of(settings.start, settings.band, self._reward)
            return self._commit(start, now, "the policy layer starts")
        since = now.document.get("at")
        if since and (datetime.now(UTC) - datetime.fromisoformat(since)).total_seconds() < settings.min_s:
            return None
        decisions = self._log.read(now.champion)
        fresh = int((decisions.policy == policy.version).sum())
        tried = self._tried[1] if self._tried[0] == policy.version else 0
        if fresh - tried < settings.every:
            return None
        self._tried = policy.version, fresh
        found = settings.wanted(list(_earned(decisions.last(settings.memory_rows))), policy.threshold)
        if found is None:
            return None
        threshold, reason = found
        worth = estimate(decisions.last(settings.memory_rows), threshold, settings.band)
        return self._commit(document_of(threshold, settings.band, self._reward, worth), now, reason)

    def _commit(self, document: Json, now: Deployment, reason: str) -> Deployment:
        document |= {"at": datetime.now(UTC).isoformat()}
        return self._deployments.set_policy(document, expected_epoch=now.epoch, by=ADAPTER, reason=reason)


def _earned(decisions: Decisions) -> Iterator[Earned]:
    columns = (decisions.ids, decisions.score, decisions.above, decisions.propensity, decisions.reward)
    for id_, score, above, propensity, reward in zip(*(column.tolist() for column in columns), strict=True):
        yield Earned(decision_id=id_, score=score, above=above, propensity=propensity, reward=reward)


def _objects(column: pa.ChunkedArray) -> np.ndarray:
    found = np.empty(len(column), object)
    found[:] = column.to_pylist()
    return found
