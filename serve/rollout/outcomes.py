"""What became of the answers of a roll-out: losses and rewards of those whose label has come, unit by unit, by arm.

The log may hold a sample of the answers, at rates that differ (`serve.log.rates`), so each row counts with its `weight`
(Horvitz & Thompson 1952), and errors are those of sums over units, which are drawn whole.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cltrain.data.schema import TIMESTAMP
from cltrain.online.ab import difference
from cltrain.online.moments import Moments, ratio_moments
from cltrain.records import Json
from cltrain.registry.base import CHALLENGER, CHAMPION
from cltrain.storage import Storage
from serve.logs.feedback import FOLDER as FEEDBACK
from serve.logs.feedback import SCHEMA as FEEDBACK_SCHEMA
from serve.logs.prediction_log import FOLDER, SCHEMA, SHADOW_FOLDER
from serve.logs.profiles import MetricReader, Shift
from serve.rollout.joined import Deadline, Joined, NewRows, all_binary, columns_of, losses, rewards

log = logging.getLogger(__name__)

LOSS, REWARD = "loss", "reward"
ARMS = (CHAMPION, CHALLENGER)
NO_COVARIATE, PRE_PERIOD = "none", "pre_period"
PRE_PERIOD_LENGTH = timedelta(days=28)
CAPACITY_ROWS = 2_000_000  # about 400 bytes each, with their labels
STRIDE = np.int64(0x1E3779B97F4A7C15)
_READ: tuple[str, ...] = ("request_id", "event_id", "time", "model", "version", "epoch", "prediction", "label_answer")
_READ += ("unit_id", "arm", "weight", "propensity")

_Parts = dict[str, np.ndarray]


@dataclass(frozen=True)
class Contrast:
    """Challenger minus champion in a mean, with its standard error; `level` is the champion's mean, `n` the units of
    the smaller arm, or those with pairs."""

    n: int
    difference: float
    error: float
    level: float


@dataclass(frozen=True)
class Period:
    """Rows answered at one epoch, so with the same shares: units exposed to each arm, and moments by arm and metric.

    exposed: where arms are logged at different rates, the units of that part of traffic which is logged at all of them,
    so that the numbers compare as the shares do."""

    exposed: Mapping[str, int]
    moments: Mapping[str, Mapping[str, Moments]]


@dataclass(frozen=True)
class Outcomes:
    """Metrics are `loss` (nats, or squared units of the label, a row) and `reward` (the sum of a unit's numeric
    labels of the type that the guardrails name). paired: losses of a shadow less those of the live answers
    to the same rows. shifts: of the metrics of `serve.log.metrics` that a guardrail names."""

    periods: tuple[Period, ...] = ()
    paired: Moments = field(default_factory=Moments)
    paired_level: float = 0.0
    shifts: Mapping[str, Shift] = field(default_factory=dict)

    def contrast(self, metric: str) -> Contrast | None:
        """Only rows of one period are compared with each other: shares and the world change together."""
        if metric == LOSS and self.paired.n > 1:
            return Contrast(
                self.paired.n, self.paired.y, math.sqrt(self.paired.variance / self.paired.n), self.paired_level
            )
        base, arm = ([p.moments.get(name, {}).get(metric, Moments()) for p in self.periods] for name in ARMS)
        n = min(sum(m.n for m in base), sum(m.n for m in arm))
        if not n:
            return None
        estimate, error = difference(base, arm)
        level = sum(m.n * m.y for m in base) / sum(m.n for m in base)
        return Contrast(n, estimate, error, level) if math.isfinite(error) else None

    def to_json(self) -> Json:
        found = {metric: self.contrast(metric) for metric in (LOSS, REWARD)}
        return {metric: vars(one) for metric, one in {**found, **self.shifts}.items() if one is not None}


def read_outcomes(storage: Storage, model: str, **about: Any) -> Outcomes:
    """All there is to know now; `about` is as of `OutcomeReader`."""
    return OutcomeReader(storage, model, **about).read()


class OutcomeReader:
    """Follows the outcomes of the rows answered since `since`. A row belongs to the challenger if its unit was given to
    it, even where the champion stood in; of a swap, if the version answered it. Of an A/B test only what was answered
    while units were split counts, and not while replicas loaded the version. Each `read` takes in what the logs have
    got since the last one: late labels and corrections find the rows of before.

    covariate: what takes variance out of an A/B test's metrics (CUPED): `pre_period`, the metric of the same unit in
    the 28 days before, of labels that were known before `since`; or the name of a numeric feature, as the unit's first
    row of the period has it, which no version can have changed; or `none`. Units that lack it count with its mean.
    metrics: of `serve.log.metrics`, to be compared too.
    capacity_rows: held at once; of more, the oldest half count as they are, whatever labels they get later.
    budget_s: after so many seconds a `read` goes on the next time, and says until then what the last whole one said.
    """

    def __init__(
        self,
        storage: Storage,
        model: str,
        *,
        version: str,
        since: datetime,
        reward_type: str | None,
        kind: str,
        covariate: str = NO_COVARIATE,
        metrics: Iterable[str] = (),
        capacity_rows: int = CAPACITY_ROWS,
        budget_s: float = math.inf,
    ) -> None:
        self._model, self._version, self._since, self._reward_type = model, version, since, reward_type
        self._covariate, self._capacity_rows, self._budget_s = covariate, capacity_rows, budget_s
        self._is_swap, self._is_shadow, self._is_split = kind == "swap", kind == "shadow", kind == "ab"
        self._feature = covariate if covariate not in (NO_COVARIATE, PRE_PERIOD) else None
        first = since - PRE_PERIOD_LENGTH if covariate == PRE_PERIOD else since
        columns = pa.schema([SCHEMA.field(name) for name in (*_READ, *(["features"] if self._feature else []))])
        self._answers = NewRows(storage, FOLDER, columns, first.timestamp())
        self._copies = NewRows(storage, SHADOW_FOLDER, columns, since.timestamp())
        self._feedback = NewRows(storage, FEEDBACK, FEEDBACK_SCHEMA)
        self._live, self._shadow, self._before = (Joined(capacity_rows) for _ in range(3))
        self._live_sums, self._before_sums = _nothing(), _nothing()
        self._metrics = MetricReader(storage, model, metrics, since, None if self._is_swap else CHALLENGER, version)
        self._behind, self._warned = True, False
        self._last = Outcomes()

    def read(self) -> Outcomes:
        """Of what was answered and labelled up to now. Raises `StoreError` where the logs cannot be read."""
        fresh, deadline = self._behind, Deadline(self._budget_s)
        self._behind = True
        for _ in self._new():
            self._settle()
            fresh = True
            if deadline.passed():
                return self._last
        self._behind = False
        if self._metrics.read() or fresh:
            found = self._paired() if self._is_shadow else Outcomes(tuple(self._periods()))
            self._last = replace(found, shifts=self._metrics.contrasts())
        return self._last

    def _new(self) -> Iterator[None]:
        """Take in segment by segment what is new. In the order in which they were written, so that
        labels find their rows where more has waited than is held at once."""
        logs = [(self._answers, self._add_answers), (self._feedback, self._add_labels)]
        logs += [(self._copies, self._add_copies)] if self._is_shadow else []
        waiting = [(info.changed, number, info) for number, (rows, _) in enumerate(logs) for info in rows.pending()]
        for _, number, info in sorted(waiting):
            rows, add = logs[number]
            table = rows.take(info)
            if table.num_rows:
                add(table)
                yield

    def _add_answers(self, table: pa.Table) -> None:
        mine, now = self._is_mine(table), self._from(table, self._since)
        counts = pc.and_(mine, now)
        if self._is_split:
            counts = pc.and_(counts, pc.less(table["propensity"], 1.0))
        self._add(self._live, table.filter(counts))
        if self._covariate == PRE_PERIOD:
            before = pc.and_(pc.invert(now), self._from(table, self._since - PRE_PERIOD_LENGTH))
            self._add(self._before, table.filter(pc.and_(mine, before)))

    def _add_copies(self, table: pa.Table) -> None:
        mine = pc.and_(self._is_mine(table), pc.equal(table["version"], self._version))
        self._add(self._shadow, table.filter(pc.and_(mine, self._from(table, self._since))))

    def _add_labels(self, table: pa.Table) -> None:
        self._live.add_labels(table, self._reward_type)
        if self._is_shadow:
            self._shadow.add_labels(table, self._reward_type)
        if self._covariate == PRE_PERIOD:
            known = pc.less(table["label_time"], pa.scalar(self._since, TIMESTAMP))
            self._before.add_labels(table.filter(known), self._reward_type)

    def _is_mine(self, table: pa.Table) -> pa.ChunkedArray:
        return pc.equal(table["model"], self._model)

    def _from(self, table: pa.Table, start: datetime) -> pa.ChunkedArray:
        return pc.greater_equal(table["time"], pa.scalar(start, TIMESTAMP))

    def _add(self, to: Joined, table: pa.Table) -> None:
        if not table.num_rows:
            return
        feature = _feature(table["features"], self._feature) if self._feature else None
        arm, wanted = ("version", self._version) if self._is_swap else ("arm", CHALLENGER)
        is_pooled = self._is_swap or to is self._before  # of a swap the arms come one after the other
        to.add_rows(
            {
                **columns_of(table, feature),
                "ours": np.asarray(pc.fill_null(pc.equal(table[arm], wanted), False)) & (to is not self._before),
                "epoch": np.zeros(table.num_rows, np.int64) if is_pooled else np.asarray(table["epoch"]),
            }
        )

    def _settle(self) -> None:
        """Of rows beyond the capacity keep what they add up to."""
        for joined, name in ((self._live, "_live_sums"), (self._before, "_before_sums")):
            count = len(joined.rows)
            if count <= self._capacity_rows:
                continue
            if not self._warned:
                self._warned = True
                log.warning(
                    "%s has more than %d answers under trial: labels that come later are not counted for the oldest of "
                    "them; a lower serve.log.rate leaves more time",
                    self._model,
                    self._capacity_rows,
                )
            gone = np.arange(count) < count - self._capacity_rows // 2
            parts, copies = self._parts(joined), None
            if self._is_shadow and joined is self._live:
                parts, live, copies = self._pairs()
                gone_parts = gone[live]
            else:
                gone_parts = gone
            held: _Parts = getattr(self, name)
            setattr(self, name, _by_unit(_joined(held, {n: values[gone_parts] for n, values in parts.items()})))
            if copies is not None:
                late = np.arange(len(self._shadow.rows)) < len(self._shadow.rows) - self._capacity_rows // 2
                late[copies[gone_parts]] = True
                self._shadow.drop(late)
            joined.drop(gone)

    def _parts(self, joined: Joined) -> _Parts:
        """What each row adds to the sums of its unit."""
        rows, binary = joined.rows, self._binary()
        loss, reward, weight = losses(rows, binary), rewards(rows), rows["weight"]
        has_loss, has_reward = np.isfinite(loss), np.isfinite(reward)
        return {
            **{name: rows[name] for name in ("epoch", "ours", "unit", "weight", "draw", "feature")},
            "at": np.where(np.isnan(rows["feature"]), np.iinfo(np.int64).max, rows["at"]),
            "loss": np.where(has_loss, weight * loss, 0.0),
            "loss_rows": np.where(has_loss, weight, 0.0),
            "reward": np.where(has_reward, weight * reward, 0.0),
            "reward_weight": np.where(has_reward, weight, np.inf),
        }

    def _pairs(self) -> tuple[_Parts, np.ndarray, np.ndarray]:
        """Of the rows that both have answered: what each pair adds, and its places among the live rows and the copies.
        `loss` is the difference and `reward` the live loss. A pair is in the log where both are, and so at the lower of
        two rates."""
        copies, live = self._live.request_places().find(self._shadow.rows["request"])
        binary = self._binary()
        mine, theirs = losses(self._shadow.rows, binary)[copies], losses(self._live.rows, binary)[live]
        whole = np.isfinite(mine + theirs)
        copies, live, mine, theirs = copies[whole], live[whole], mine[whole], theirs[whole]
        weight = np.maximum(self._live.rows["weight"][live], self._shadow.rows["weight"][copies])
        parts = {name: values[live] for name, values in self._parts(self._live).items()}
        pairs = {"loss": weight * (mine - theirs), "loss_rows": weight, "reward": weight * theirs, "weight": weight}
        alike = {"epoch": np.zeros(len(live), np.int64), "ours": np.zeros(len(live), bool)}
        return {**parts, **pairs, **alike}, live, copies

    def _binary(self) -> bool:
        return all(all_binary(joined.rows) for joined in (self._live, self._shadow, self._before))

    def _paired(self) -> Outcomes:
        found = _by_unit(_joined(self._live_sums, self._pairs()[0]))
        rows = float(found["loss_rows"].sum())
        level = float(found["reward"].sum()) / rows if rows else 0.0
        return Outcomes(paired=ratio_moments(found["loss"], found["loss_rows"]), paired_level=level)

    def _periods(self) -> Iterator[Period]:
        found = _by_unit(_joined(self._live_sums, self._parts(self._live)))
        before = None
        if self._covariate == PRE_PERIOD:
            before = _by_unit(_joined(self._before_sums, self._parts(self._before)))
        for epoch in np.unique(found["epoch"]):
            here = {name: values[found["epoch"] == epoch] for name, values in found.items()}
            yield self._period(here, before)

    def _period(self, units: _Parts, before: _Parts | None) -> Period:
        # Whoever is drawn for the lowest of the rates is in the log whatever the arm is: a sample of all traffic.
        common = units["draw"] < 1 / units["weight"].max()
        arms = {arm: units["ours"] == (arm == CHALLENGER) for arm in ARMS}
        moments: dict[str, dict[str, Moments]] = {arm: {} for arm in ARMS}
        for metric, weights in ((LOSS, "loss_rows"), (REWARD, "reward_weight")):
            count = np.where(np.isfinite(units[weights]), units[weights], 0.0)
            seen = {arm: (count > 0) & here for arm, here in arms.items()}
            covariate = self._of_units(units, before, metric, weights)
            known = covariate is not None and all(covariate[1][some].sum() > 0 for some in seen.values())
            for arm, some in seen.items():
                if some.any():
                    of = None if covariate is None or not known else (covariate[0][some], covariate[1][some])
                    moments[arm][metric] = ratio_moments(units[metric][some], count[some], of)
        return Period({arm: int((here & common).sum()) for arm, here in arms.items()}, moments)

    def _of_units(
        self, units: _Parts, before: _Parts | None, metric: str, weights: str
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Numerator and denominator of each unit's covariate, both 0 where it has none."""
        if self._feature is not None:
            known = np.isfinite(units["feature"])
            weight = np.where(known, units["weight"], 0.0)
            return weight * np.where(known, units["feature"], 0.0), weight
        if before is None or not len(before["unit"]):
            return None
        place = np.minimum(np.searchsorted(before["unit"], units["unit"]), len(before["unit"]) - 1)
        count = np.where(np.isfinite(before[weights]), before[weights], 0.0)[place]
        same = before["unit"][place] == units["unit"]
        return np.where(same, before[metric][place], 0.0), np.where(same, count, 0.0)


def _nothing() -> _Parts:
    kinds = {"epoch": np.int64, "ours": np.bool_, "unit": np.int64, "at": np.int64}
    sums = ("weight", "draw", "feature", "loss", "loss_rows", "reward", "reward_weight")
    return {name: np.empty(0, kind) for name, kind in {**kinds, **dict.fromkeys(sums, np.float64)}.items()}


def _joined(one: _Parts, other: _Parts) -> _Parts:
    return {name: np.concatenate((one[name], other[name])) for name in one}


def _by_unit(parts: _Parts) -> _Parts:
    """One line for each unit of an arm and an epoch, by unit where there is one of each. Its feature is that of the
    first row that has one; its weight is the lowest of its rows, since it is in the log if any of them is."""
    if not len(parts["unit"]):
        return parts
    # Hashes stay as good as different when something is added: one number to sort by, and not three.
    arms = 2 * (parts["epoch"] - parts["epoch"].min()) + parts["ours"]
    key = parts["unit"] + arms * STRIDE
    order = np.lexsort((parts["at"], key)) if np.isfinite(parts["feature"]).any() else np.argsort(key)
    key = key[order]
    first = np.flatnonzero(np.concatenate(([True], key[1:] != key[:-1])))
    found = {name: values[order[first]] for name, values in parts.items()}
    for name in ("loss", "loss_rows", "reward"):
        found[name] = np.add.reduceat(parts[name][order], first)
    for name in ("weight", "reward_weight"):
        found[name] = np.minimum.reduceat(parts[name][order], first)
    return found


def _feature(texts: pa.ChunkedArray, name: str) -> np.ndarray:
    """(N,) values of one feature in rows of JSON, NaN where it is no number."""

    def number(text: str | None) -> float:
        value = json.loads(text or "{}").get(name)
        return float(value) if isinstance(value, int | float) and math.isfinite(value) else math.nan

    return np.array([number(text) for text in texts.to_pylist()], np.float64)
