"""A bandit over versions: its one owner joins decisions with their rewards, learns, and publishes snapshots; replicas
read those and choose by them.

Both are written to the store, the owner's state before the snapshot that it makes. An owner that starts again takes its
state and reads the logs of the roll-out anew: decisions that it had learned from are known by their ids, and the others
are learned from now. Two owners learn the same from the same logs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cltrain.data.encoder import Encoder, request_table
from cltrain.errors import ConfigError
from cltrain.online.bandits import Policy
from cltrain.online.learning import Bandit, Outcome, Snapshot
from cltrain.online.off_policy import Estimate, Log, cross_fitted, doubly_robust, ips, snips
from cltrain.records import Json
from cltrain.registry.base import CHALLENGER, CHAMPION
from cltrain.registry.deployment import Trial
from cltrain.storage import Storage
from serve.logs.feedback import FOLDER as FEEDBACK
from serve.logs.feedback import SCHEMA as FEEDBACK_SCHEMA
from serve.logs.prediction_log import FOLDER as PREDICTIONS
from serve.logs.prediction_log import SCHEMA
from serve.rollout.joined import Columns, Joined, NewRows, all_binary, columns_of, losses, rewards
from serve.rollout.outcomes import LOSS, REWARD, Contrast, Outcomes
from serve.settings import LogSettings

BANDIT = "bandit"
FOLDER = "bandits"
MAX_LOSS = 5.0  # nats, of one label: a reward that has no bound is learned from by its outliers
FEW_CATEGORIES = 20  # of a column that is part of a context that nobody has named
CAPACITY_ROWS = 2_000_000  # decisions that are held at once; of more the oldest half wait for their label no longer
_READ: tuple[str, ...] = (
    "request_id",
    "event_id",
    "time",
    "model",
    "experiment",
    "prediction",
    "label_answer",
    "unit_id",
    "weight",
)
_READ += ("arm", "propensity", "snapshot", "context")


def snapshot_place(roll_out: str) -> str:
    return f"{FOLDER}/{roll_out}/snapshot.json"


def state_place(roll_out: str) -> str:
    return f"{FOLDER}/{roll_out}/state.json"


def with_floor(policy: Policy, min_share: float, arms: int) -> Policy:
    """A policy that explores so much that each of its arms has a chance of `min_share` at least."""
    return dataclasses.replace(policy, explore=max(policy.explore, min_share * arms))  # type: ignore[type-var]


class ContextReader:
    """Features of a request as the numbers that a bandit learns from: numbers standardised as the champion's encoder
    does it, and one number a category. Without names it is all numbers, and categories where there are few."""

    def __init__(self, encoder: Encoder, names: Sequence[str] = ()) -> None:
        require_features(encoder, names)
        numeric, categorical = encoder.numeric, encoder.categorical
        small = {c.name for c in categorical if c.size <= FEW_CATEGORIES}
        wanted = set(names) or {c.name for c in numeric} | small
        self._encoder = dataclasses.replace(
            encoder,
            numeric=tuple(c for c in numeric if c.name in wanted),
            categorical=tuple(c for c in categorical if c.name in wanted),
            tensors=(),
            texts=(),
        )

    def __call__(self, row: Mapping[str, Any]) -> tuple[float, ...]:
        """Raises `DataError` for a value that is not of its feature's kind."""
        inputs = self._encoder(request_table([dict(row)], self._encoder)).inputs
        found = inputs["numeric"][0].tolist()
        for column, index in zip(self._encoder.categorical, inputs["categorical"][0].tolist(), strict=True):
            found += [float(place == index) for place in range(column.size)]
        return tuple(found)


def require_features(encoder: Encoder, names: Sequence[str]) -> None:
    """Raise `ConfigError` for names that are no numbers or categories of the champion, or where there are none."""
    have = [*(c.name for c in encoder.numeric), *(c.name for c in encoder.categorical)]
    if unknown := sorted(set(names) - set(have)):
        raise ConfigError(f"rollout.features: the champion reads no {unknown[0]}; it reads: {', '.join(have)}")
    if not have:
        raise ConfigError("the champion reads neither numbers nor categories: choose a policy without context")


def require_log(log: LogSettings, setting: str = "rollout=bandit") -> None:
    """Raise `ConfigError` for a log from which nothing could be learned, or of some arms more than of others."""
    if log.keep == "profiles":
        raise ConfigError(f"{setting} learns from logged answers: set serve.log.keep=full")
    if log.keep == "sampled" and (log.rates or not log.rate):
        raise ConfigError(
            f"{setting} learns from logged answers, which must be logged alike: set serve.log.keep=full, or leave "
            "serve.log.rates empty and serve.log.rate above 0"
        )


@dataclass(frozen=True)
class Chooser:
    """How a replica chooses: by a snapshot, which stays for the whole of a request."""

    snapshot: Snapshot
    context: Callable[[Mapping[str, Any]], tuple[float, ...]] | None = None

    @classmethod
    def start(cls, policy: Policy, arms: Sequence[str], encoder: Encoder, features: Sequence[str]) -> Chooser:
        """Before anything is learned: all arms alike. Raises `ConfigError` for features that are not there."""
        if not policy.contextual:
            return cls(Bandit(policy, arms).snapshot())
        reader = ContextReader(encoder, features)
        return cls(Bandit(policy, arms, features=len(reader({}))).snapshot(), reader)

    def read(self, storage: Storage, roll_out: str) -> Chooser:
        """By the snapshot that was published last; itself where that is no other, or is not there yet. Raises
        `StoreError`, `ConfigError` or `DataError`."""
        place = snapshot_place(roll_out)
        if not storage.exists(place):
            return self
        value = storage.read_json(place)
        if value["version"] == self.snapshot.version:
            return self
        return dataclasses.replace(self, snapshot=Snapshot.from_json(self.snapshot.policy, value))


@dataclass(frozen=True)
class Weighed:
    """Values of N labelled decisions, (N,) each: the index of the arm, the value, the chance with which the arm was
    chosen; and (N, F) contexts. A mean of what an arm got would be wrong: a bandit gives an arm more when it does well,
    and other contexts than the rest."""

    arms: tuple[str, ...]
    chosen: np.ndarray
    value: np.ndarray
    propensity: np.ndarray
    context: np.ndarray

    @cached_property
    def counts(self) -> Mapping[str, int]:
        found = np.bincount(self.chosen, minlength=len(self.arms))
        return dict(zip(self.arms, found.tolist(), strict=True))

    @cached_property
    def _predicted(self) -> np.ndarray:
        return cross_fitted(self.context, self.chosen, self.value, len(self.arms))

    def _log(self, arm: str) -> Log:
        target = np.zeros((len(self.chosen), len(self.arms)))
        target[:, self.arms.index(arm)] = 1.0
        return Log(chosen=self.chosen, reward=self.value, propensity=self.propensity, target=target)

    def estimates(self, arm: str) -> dict[str, Estimate]:
        """What the arm would have got had it answered everything, by inverse propensities (ips), self-normalised
        (snips), and augmented by a model of the value (aipw); none before it has two labels."""
        if self.counts[arm] < 2:
            return {}
        log = self._log(arm)
        return {"ips": ips(log), "snips": snips(log), "aipw": doubly_robust(log, self._predicted)}

    def contrast(self, ours: str) -> Contrast | None:
        """An arm less the champion, by augmented inverse propensities; `n` is the smaller of the two numbers of
        decisions that the log is worth."""
        if min(self.counts[ours], self.counts[CHAMPION]) < 2:
            return None
        logs = [self._log(arm) for arm in (ours, CHAMPION)]
        error = self.value - self._predicted[np.arange(len(self.chosen)), self.chosen]
        scores = [self._predicted[:, log.target[0].argmax()] + log.weights * error for log in logs]
        difference = scores[0] - scores[1]
        return Contrast(
            n=int(min(log.effective for log in logs)),
            difference=float(difference.mean()),
            error=float(difference.std(ddof=1)) / math.sqrt(len(difference)),
            level=float(scores[1].mean()),
        )


@dataclass(frozen=True)
class BanditOutcomes(Outcomes):
    """best: chance that each arm has the highest mean reward; chances: of being chosen, where no context decides;
    labelled: decisions that were learned from; decided: all. weighed: what they got, by metric. ours: the arm that
    `contrast` holds against the champion."""

    arms: tuple[str, ...] = ()
    best: Mapping[str, float] = field(default_factory=dict)
    chances: Mapping[str, float] = field(default_factory=dict)
    decided: Mapping[str, int] = field(default_factory=dict)
    weighed: Mapping[str, Weighed] = field(default_factory=dict)
    learned: Mapping[str, int] = field(default_factory=dict)
    snapshot: str | None = None
    earns: str = LOSS
    ours: str = CHALLENGER

    @property
    def labelled(self) -> Mapping[str, int]:
        return self.weighed[self.earns].counts if self.earns in self.weighed else dict.fromkeys(self.arms, 0)

    def of(self, arm: str) -> BanditOutcomes:
        return dataclasses.replace(self, ours=arm)

    def contrast(self, metric: str) -> Contrast | None:
        found = self.weighed.get(metric)
        return found.contrast(self.ours) if found is not None else None

    def to_json(self) -> Json:
        shown: Json = {}
        for arm in self.arms:
            found = self.weighed[self.earns].estimates(arm) if self.earns in self.weighed else {}
            shown[arm] = {
                "decisions": self.decided.get(arm, 0),
                "labelled": self.labelled.get(arm, 0),
                "chance": self.chances.get(arm),
                "best": self.best.get(arm),
                self.earns: {name: vars(one) for name, one in found.items()},
            }
        about = {"snapshot": self.snapshot, "arms": shown, "learned": dict(self.learned)}
        return {**super().to_json(), "bandit": about}


class Owner:
    """The one that learns. `update` is called again and again by the controller.

    policy: with its floor. reward_type: feedback whose number is the reward; without it the reward is minus the loss of
    the label, down to -`max_loss`.
    """

    def __init__(
        self,
        storage: Storage,
        model: str,
        trial: Trial,
        *,
        policy: Policy,
        arms: Sequence[str],
        reward_type: str | None = None,
        max_loss: float | None = None,
        label_horizon: str = "7d",
    ) -> None:
        self.bandit: Bandit | None = None
        self.refused = 0
        self._storage, self._model, self._trial = storage, model, trial
        self._policy, self._arms = policy, tuple(arms)
        self._reward_type, self._max_loss, self._horizon = reward_type, max_loss, label_horizon
        after = trial.started_at.timestamp()
        self._answers = NewRows(storage, PREDICTIONS, pa.schema([SCHEMA.field(name) for name in _READ]), after)
        self._feedback = NewRows(storage, FEEDBACK, FEEDBACK_SCHEMA, after)
        self._joined = Joined(CAPACITY_ROWS)
        self._ids: list[str] = []
        self._contexts: list[tuple[float, ...]] = []
        self._decisions = Columns({"arm": np.int64, "propensity": np.float64, "known": np.bool_})
        self._published: str | None = None

    def update(self) -> BanditOutcomes:
        """Take in what the logs have gained, publish a snapshot if it taught something, and say how things stand.
        Raises `StoreError`; nothing is lost then."""
        for table in self._answers:
            self._add(table)
        for table in self._feedback:
            self._joined.add_labels(table, self._reward_type)
        if (bandit := self._made()) is None:
            return BanditOutcomes(arms=self._arms)
        rows = self._joined.rows
        values = {LOSS: losses(rows, all_binary(rows))}
        if self._reward_type is not None:
            values[REWARD] = rewards(rows)
        earns = LOSS if self._reward_type is None else REWARD
        if self._learn(bandit, -np.minimum(values[LOSS], self._bounds()) if earns == LOSS else values[REWARD]):
            self._storage.write_json(state_place(self._trial.id), bandit.state_dict())
        snapshot = bandit.snapshot()
        if snapshot.version != self._published:
            self._storage.write_json(snapshot_place(self._trial.id), snapshot.to_json())
            self._published = snapshot.version
        chances = [] if self._policy.contextual else snapshot.propensities().tolist()
        return BanditOutcomes(
            arms=self._arms,
            best=dict(zip(self._arms, snapshot.best().tolist(), strict=True)),
            chances=dict(zip(self._arms, chances, strict=False)),
            decided=self._by_arm(self._decisions["arm"]),
            weighed={name: self._weighed(found, bandit) for name, found in values.items()},
            learned={**bandit.counts, "refused": self.refused},
            snapshot=snapshot.version,
            earns=earns,
        )

    def _add(self, table: pa.Table) -> None:
        mine = pc.and_(pc.equal(table["model"], self._model), pc.equal(table["experiment"], self._trial.id))
        mine = pc.and_(pc.fill_null(mine, False), pc.is_valid(table["snapshot"]))
        table = table.filter(pc.and_(mine, pc.is_in(table["arm"], pa.array(self._arms))))
        count = table.num_rows
        if not count:
            return
        alike = {"ours": np.zeros(count, np.bool_), "epoch": np.zeros(count, np.int64)}
        self._joined.add_rows({**columns_of(table), **alike})
        ids = table["request_id"].to_pylist()
        self._ids += ids
        if self._policy.contextual:
            self._contexts += [tuple(one or ()) for one in table["context"].to_pylist()]
        arms = pc.index_in(table["arm"], pa.array(self._arms)).to_numpy()
        found = {"arm": arms, "propensity": table["propensity"].to_numpy(), "known": self._seen(ids)}
        self._decisions.append(found, count)
        if (extra := len(self._ids) - CAPACITY_ROWS) > 0:
            self._forget(extra + CAPACITY_ROWS // 2)

    def _forget(self, count: int) -> None:
        gone = np.arange(len(self._ids)) < count
        self._joined.drop(gone)
        self._decisions.keep(~gone)
        self._ids, self._contexts = self._ids[count:], self._contexts[count:]

    def _seen(self, ids: Sequence[str]) -> np.ndarray:
        return np.array([self.bandit is not None and id_ in self.bandit.seen for id_ in ids], bool)

    def _made(self) -> Bandit | None:
        """The bandit, as soon as it is known how many features a context has."""
        if self.bandit is None:
            if self._policy.contextual and not self._contexts:
                return None
            bandit = Bandit(self._policy, self._arms, len(self._contexts[0]) if self._contexts else 0, self._horizon)
            place = state_place(self._trial.id)
            if self._storage.exists(place):
                bandit.load_state_dict(self._storage.read_json(place))
            self.bandit = bandit
            self._decisions["known"][:] = self._seen(self._ids)
        return self.bandit

    def _bounds(self) -> np.ndarray | float:
        """(N,) largest losses: a squared error has the unit of the label, so no bound fits all."""
        if self._max_loss is not None:
            return self._max_loss
        return np.where(self._joined.rows["answer"] == 0, np.inf, MAX_LOSS)

    def _learn(self, bandit: Bandit, values: np.ndarray) -> int:
        """How many decisions were learned from; `values` (N,) are NaN for those without a reward."""
        new = np.flatnonzero(~self._decisions["known"] & np.isfinite(values))
        outcomes = [
            Outcome(
                decision_id=self._ids[i],
                decided_at=int(self._joined.rows["at"][i]),
                arm=self._arms[self._decisions["arm"][i]],
                reward=float(values[i]),
                context=self._contexts[i] if self._contexts else (),
            )
            for i in new.tolist()
        ]
        usable = [one for one in outcomes if bandit.can_use(one)]
        self.refused += len(outcomes) - len(usable)
        learned = bandit.learn(sorted(usable, key=lambda one: (one.decided_at, one.decision_id)))
        self._decisions["known"][new] = True
        return learned

    def _weighed(self, values: np.ndarray, bandit: Bandit) -> Weighed:
        kept = np.flatnonzero(np.isfinite(values))
        width = bandit.sums.moment.shape[1] - 1
        if width:
            kept = np.array([i for i in kept.tolist() if len(self._contexts[i]) == width], np.int64)
        context = np.array([self._contexts[i] for i in kept.tolist()] if width else [], float).reshape(len(kept), width)
        decisions = self._decisions
        return Weighed(self._arms, decisions["arm"][kept], values[kept], decisions["propensity"][kept], context)

    def _by_arm(self, arms: np.ndarray) -> dict[str, int]:
        return dict(zip(self._arms, np.bincount(arms, minlength=len(self._arms)).tolist(), strict=True))
