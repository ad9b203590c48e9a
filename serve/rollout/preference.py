"""What clicks say of two rankings that people saw in one list: who won each unit's session."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cltrain.errors import ConfigError
from cltrain.online.interleave import Wins
from cltrain.online.moments import moments_of
from cltrain.records import Json
from cltrain.registry import Registry
from cltrain.registry.base import CHALLENGER, CHAMPION
from cltrain.storage import Storage
from serve.logs.feedback import FOLDER as FEEDBACK
from serve.logs.feedback import SCHEMA as FEEDBACK_SCHEMA
from serve.logs.feedback import join_feedback
from serve.logs.prediction_log import FOLDER as PREDICTIONS
from serve.logs.prediction_log import SCHEMA
from serve.rollout.joined import NewRows
from serve.rollout.outcomes import REWARD, Outcomes, Period

INTERLEAVE = "interleave"
SETTLED_AFTER = timedelta(hours=1)  # by which the log of every replica has come to the store
REWARDED_WITHIN = timedelta(days=7)
_READ = (
    "request_id",
    "event_id",
    "unit_id",
    "time",
    "model",
    "arm",
    "experiment",
    "policy_version",
    "position",
    "credit",
)


@dataclass(frozen=True)
class Preference(Outcomes):
    """Units by who won their session, of those whose session is over; `open` are those whose is not."""

    wins: Wins = field(default_factory=Wins)
    open: int = 0
    level: float = 0.05

    def to_json(self) -> Json:
        found = self.wins.preference(self.level)
        shown = {**vars(self.wins), "open": self.open, **vars(found)}
        return {**super().to_json(), "preference": shown}


class PreferenceReader:
    """Follows the interleaved lists whose rows have `value` in `column`, such as the id of a roll-out in `experiment`,
    from the logs alone: whoever reads them finds the same. since: when the first can have been shown.

    A click is feedback of `click_type` (None: of any but `reward_type`) with a number above 0 on the request id of an
    item. The session of a unit is what it does within `session_s` seconds of its first list; what comes later is of no
    account, so that a unit counts once, with a credit that is never taken back, as the sequential test asks for.
    Rewards are what `reward_type` says within `REWARDED_WITHIN` of the first list: a unit's sum for each team.
    """

    def __init__(
        self,
        storage: Storage,
        model: str,
        column: str,
        value: str,
        since: datetime,
        *,
        session_s: float,
        click_type: str | None = None,
        reward_type: str | None = None,
        level: float = 0.05,
    ) -> None:
        self._model, self._column, self._value, self._level = model, column, value, level
        self._session, self._click_type, self._reward_type = timedelta(seconds=session_s), click_type, reward_type
        columns = pa.schema([SCHEMA.field(name) for name in _READ])
        self._answers = NewRows(storage, PREDICTIONS, columns, since.timestamp())
        self._feedback = NewRows(storage, FEEDBACK, FEEDBACK_SCHEMA, since.timestamp())
        self._rows, self._labels = columns.empty_table(), FEEDBACK_SCHEMA.empty_table()
        self._settled_units = pa.chunked_array([], pa.string())
        self._settled = _Credits()

    def read(self, now: datetime) -> Preference:
        """What is known at `now`. Raises `StoreError` where the logs cannot be read."""
        for table in self._answers:
            self._add(table)
        self._labels = pa.concat_tables([self._labels, *self._feedback])
        units = self._units()
        since = np.datetime64(now.replace(tzinfo=None), "us") - units.first
        over = np.asarray(since >= np.timedelta64(self._session))
        found = self._settled + units.credits(over)
        self._settle(units, since, now)
        periods = (found.period(),) if self._reward_type else ()
        return Preference(periods, wins=found.wins, open=int((~over).sum()), level=self._level)

    def _add(self, table: pa.Table) -> None:
        mine = pc.and_(pc.equal(table["model"], self._model), pc.equal(table[self._column], self._value))
        mine = pc.and_(pc.fill_null(mine, False), pc.is_valid(table["position"]))
        if self._column != "experiment":  # whose lists are drafted from versions, under whichever policy
            mine = pc.and_(mine, pc.is_null(table["experiment"]))
        known = pc.is_in(table["unit_id"], value_set=self._settled_units)
        self._rows = pa.concat_tables([self._rows, table.filter(pc.and_(mine, pc.invert(known)))])

    def _units(self) -> _Units:
        """Credits and rewards of the units that are held."""
        rows = self._rows.combine_chunks()
        first = rows.group_by("unit_id").aggregate([("time", "min")])
        rows = rows.append_column(
            "first", first["time_min"].take(pc.index_in(rows["unit_id"], value_set=first["unit_id"]))
        )
        is_reward = pc.equal(self._labels["type"], self._reward_type or "")
        is_click = (
            pc.invert(is_reward) if self._click_type is None else pc.equal(self._labels["type"], self._click_type)
        )
        clicked = _joined(rows, self._labels.filter(is_click), self._session)
        said = pc.if_else(pc.fill_null(pc.greater(clicked["label_value"], 0.0), False), credits_of(clicked), 0.0)
        credits = (
            pa.table({"unit_id": clicked["unit_id"], "credit": said}).group_by("unit_id").aggregate([("credit", "sum")])
        )
        place = pc.index_in(first["unit_id"], value_set=credits["unit_id"])
        credit = pc.fill_null(credits["credit_sum"].take(place), 0.0).to_numpy()
        rewarded = _joined(rows, self._labels.filter(is_reward), REWARDED_WITHIN)
        totals = _by_team(rewarded, ["unit_id"], rewarded["label_value"])
        place = pc.index_in(first["unit_id"], value_set=totals["unit_id"])
        ours, theirs = (totals[f"{name}_sum"].take(place).to_numpy() for name in ("ours", "theirs"))
        return _Units(first["unit_id"], first["time_min"].to_numpy().astype("datetime64[us]"), credit, ours, theirs)

    def _settle(self, units: _Units, since: np.ndarray, now: datetime) -> None:
        """Forget the rows of units for which nothing can come any more, and keep what they say."""
        kept = max(self._session, REWARDED_WITHIN if self._reward_type else timedelta(0)) + SETTLED_AFTER
        done = np.asarray(since >= np.timedelta64(kept))
        if done.any():
            self._settled += units.credits(done)
            gone = units.names.filter(pa.array(done))
            self._settled_units = pa.chunked_array([*self._settled_units.chunks, *gone.chunks], pa.string())
            self._rows = self._rows.filter(pc.invert(pc.is_in(self._rows["unit_id"], value_set=gone)))
        fresh = pc.greater(self._labels["received_at"], pa.scalar(now - kept, self._labels["received_at"].type))
        held = pc.is_in(self._labels["request_id"], value_set=self._rows["request_id"])
        self._labels = self._labels.filter(pc.or_(fresh, held)).combine_chunks()


@dataclass(frozen=True)
class _Credits:
    """Sessions that are over, and (N,) totals of rewards."""

    wins: Wins = field(default_factory=Wins)
    ours: np.ndarray = field(default_factory=lambda: np.empty(0))
    theirs: np.ndarray = field(default_factory=lambda: np.empty(0))

    def __add__(self, other: _Credits) -> _Credits:
        totals = (np.concatenate(pair) for pair in ((self.ours, other.ours), (self.theirs, other.theirs)))
        return _Credits(self.wins + other.wins, *totals)

    def period(self) -> Period:
        """All units count, those without a reward among them: the totals of two teams are then as good as
        independent."""
        totals = {CHAMPION: self.theirs, CHALLENGER: self.ours}
        moments = {arm: {REWARD: moments_of(values)} for arm, values in totals.items() if len(values)}
        return Period(exposed={arm: len(values) for arm, values in totals.items()}, moments=moments)


@dataclass(frozen=True)
class _Units:
    """N units, all (N,): names, when their first list was shown, their credits so far, and rewards."""

    names: pa.ChunkedArray
    first: np.ndarray
    credit: np.ndarray
    ours: np.ndarray
    theirs: np.ndarray

    def credits(self, which: np.ndarray) -> _Credits:
        return _Credits(Wins.of(self.credit[which]), self.ours[which], self.theirs[which])


def _joined(rows: pa.Table, labels: pa.Table, within: timedelta) -> pa.Table:
    """Rows that were shown within a time of the unit's first, with the labels that came within it."""
    end = pc.add(rows["first"], pa.scalar(within, pa.duration("us")))
    rows = rows.append_column("end", end)
    place = pc.index_in(labels["request_id"], value_set=rows["request_id"])
    labels, place = labels.filter(pc.is_valid(place)), pc.drop_null(place)
    in_time = pc.less(labels["received_at"], end.take(place))
    return join_feedback(rows.filter(pc.less(rows["time"], end)), labels.filter(in_time))


def credits_of(rows: pa.Table) -> pa.ChunkedArray:
    """What a click on each row says; lists that were logged without credits weigh all items alike."""
    alike = pc.if_else(pc.equal(rows["arm"], CHALLENGER), 1.0, pc.if_else(pc.equal(rows["arm"], CHAMPION), -1.0, 0.0))
    return pc.coalesce(rows["credit"], alike)


def _by_team(joined: pa.Table, keys: list[str], value: pa.ChunkedArray) -> pa.Table:
    """Sums of `value` over the items of each team."""
    value = pc.fill_null(value.cast(pa.float64()), 0.0)
    for name, arm in (("ours", CHALLENGER), ("theirs", CHAMPION)):
        joined = joined.append_column(name, pc.if_else(pc.equal(joined["arm"], arm), value, 0.0))
    return joined.group_by(keys).aggregate([("ours", "sum"), ("theirs", "sum")])


def require_one_score(registry: Registry, version: str, setting: str = "rollout=interleave") -> None:
    """Raise `ConfigError` for a version whose answers cannot be sorted."""
    about = registry.store.storage.read_json(f"{registry.version(version).state}/state.json")
    require_task(about["schema"]["columns"]["task"], setting)


def require_task(task: str, setting: str = "rollout=interleave") -> None:
    if task == "multiclass":
        instead = ": use rollout=canary or rollout=ab" if setting.startswith("rollout") else ""
        raise ConfigError(f"{setting} compares rankings, and a multiclass model has no one score to rank by{instead}")
