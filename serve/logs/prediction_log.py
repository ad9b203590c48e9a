"""The prediction log: what was asked, what was answered, by which version, and how long it took."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from cltrain.data.schema import TIMESTAMP
from cltrain.storage import Storage
from serve.logs.profiles import FOLDER as PROFILES
from serve.logs.profiles import Profiles
from serve.logs.segments import SegmentLog, read_segments
from serve.logs.strata import Strata, drawn
from serve.settings import LogSettings

FOLDER, SHADOW_FOLDER = "predictions", "shadow_predictions"
SCHEMA = pa.schema(
    [
        ("request_id", pa.string()),
        ("event_id", pa.string()),
        ("event_time", TIMESTAMP),
        ("time", TIMESTAMP),
        ("model", pa.string()),
        ("version", pa.string()),
        ("epoch", pa.int64()),
        ("prediction", pa.float64()),
        ("label_answer", pa.string()),
        ("features", pa.string()),
        ("latency_us", pa.int64()),
        ("unit_id", pa.string()),
        ("arm", pa.string()),
        ("experiment", pa.string()),
        ("propensity", pa.float64()),
        ("weight", pa.float64()),
        ("position", pa.int32()),
        ("snapshot", pa.string()),
        ("context", pa.list_(pa.float64())),
        ("policy_version", pa.string()),
        ("decision_propensity", pa.float64()),
        ("credit", pa.float64()),
    ]
)


class Prediction(NamedTuple):
    """One answered row. `prediction` is the probability of the positive class, of the class answered, or the value;
    `label_answer` the class answered, None for regression; `time` when the answer was made. `arm` is what the unit was
    given to, with a chance of `propensity`, by the roll-out `experiment`; `version` is what answered, which is the
    champion's where the arm could not. weight: one over the chance that the row had of being logged. position: place in
    an interleaved list, from 1 on; `arm` is then the team whose item it is (or `neither`), and `propensity` the chance
    of the whole list; items that were cut off have none. credit: what a click there says, above 0 for the challenger.
    snapshot: of the bandit that chose the arm, from `context`.
    policy_version: of the policy that made `label_answer` of the score, with a chance of `decision_propensity`, which
    is None where nothing was decided."""

    request_id: str
    event_id: str | None
    event_time: datetime
    time: datetime
    model: str
    version: str
    epoch: int
    prediction: float
    label_answer: str | None
    features: dict[str, Any]
    latency_us: int
    unit_id: str | None = None
    arm: str = "champion"
    experiment: str | None = None
    propensity: float = 1.0
    weight: float = 1.0
    position: int | None = None
    snapshot: str | None = None
    context: tuple[float, ...] | None = None
    policy_version: str | None = None
    decision_propensity: float | None = None
    credit: float | None = None


_FEATURES = Prediction._fields.index("features")


class PredictionLog(SegmentLog):
    """Segments below `predictions/`, or of a shadow's answers below `shadow_predictions/`. Which rows are logged is up
    to `Strata`; profiles, of live answers alone, see all rows."""

    def __init__(self, storage: Storage, replica: str, settings: LogSettings, folder: str = FOLDER) -> None:
        rate, rates = {"full": (1.0, {}), "profiles": (0.0, {})}.get(settings.keep, (settings.rate, settings.rates))
        self._strata = Strata(rate, rates)
        self.profiles: Profiles | None = None
        if folder == FOLDER and (settings.keep == "profiles" or settings.metrics):
            self.profiles = Profiles(storage, replica, settings.window, settings.metrics)
            self.also_expire = (PROFILES,)
        super().__init__(storage, folder, replica, SCHEMA, settings, _with_json_features)

    def log(self, rows: Sequence[Prediction]) -> None:
        """Log the rows that are picked; never waits."""
        kept = list(rows) if self.profiles is not None else self._picked(rows)
        if kept:
            self.offer(kept)

    def admit(self, rows: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        if self.profiles is None:
            return list(rows)
        found = [Prediction(*row) for row in rows]
        self.profiles.add(found)
        return list(self._picked(found))

    def after_write(self, closing: bool) -> None:
        if self.profiles is not None:
            self.profiles.write(now=closing)

    def _picked(self, rows: Sequence[Prediction]) -> list[Prediction]:
        if self._strata.all:
            return list(rows)
        chances = [self._strata.chance(row) for row in rows]
        return [
            row._replace(weight=1 / chance) for row, chance in zip(rows, chances, strict=True) if drawn(row, chance)
        ]


def read_predictions(storage: Storage, model: str | None = None, folder: str = FOLDER) -> pa.Table:
    """All logged predictions (`SCHEMA`), of one model if it is named, up to the last sync of each writer."""
    table = read_segments(storage, folder, SCHEMA)
    return table if model is None else table.filter(pc.equal(table["model"], model))


def _with_json_features(row: tuple[Any, ...]) -> tuple[Any, ...]:
    return (*row[:_FEATURES], _json(row[_FEATURES]), *row[_FEATURES + 1 :])


def _json(features: dict[str, Any]) -> str:
    try:
        return orjson.dumps(features).decode()
    except TypeError:  # a number of more than 64 bits, half of a surrogate pair
        return json.dumps(features, separators=(",", ":"))
