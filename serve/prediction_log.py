"""The prediction log: what was asked, what was answered, by which version, and how long it took."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from cltrain.data.schema import TIMESTAMP
from cltrain.storage import Storage
from serve.segments import SegmentLog, read_segments
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
    ]
)


class Prediction(NamedTuple):
    """One answered row. `prediction` is the probability of the positive class, of the class answered, or the value;
    `label_answer` the class answered, None for regression; `time` when the answer was made. `arm` is what the unit was
    given to, with a chance of `propensity`, by the roll-out `experiment`; `version` is what answered, which is the
    champion's where the arm could not."""

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


class PredictionLog(SegmentLog):
    """Segments below `predictions/`, or of a shadow's answers below `shadow_predictions/`. A row is logged if the hash
    of its request id falls below `rate`, so a shadow's with the live one."""

    def __init__(self, storage: Storage, replica: str, settings: LogSettings, folder: str = FOLDER) -> None:
        super().__init__(storage, folder, replica, SCHEMA, settings, _with_json_features)
        self._rate = settings.rate

    def sampled(self, request_id: str) -> bool:
        if self._rate in (0.0, 1.0):
            return bool(self._rate)
        digest = hashlib.blake2b(request_id.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") < self._rate * 2.0**64

    def log(self, rows: Sequence[Prediction]) -> None:
        """Log the rows that the rate picks; never waits."""
        kept = [row for row in rows if self.sampled(row.request_id)]
        if kept:
            self.offer(kept)


def read_predictions(storage: Storage, model: str | None = None, folder: str = FOLDER) -> pa.Table:
    """All logged predictions (`SCHEMA`), of one model if it is named, up to the last sync of each writer."""
    table = read_segments(storage, folder, SCHEMA)
    return table if model is None else table.filter(pc.equal(table["model"], model))


def _with_json_features(row: tuple[Any, ...]) -> tuple[Any, ...]:
    prediction = Prediction(*row)
    return prediction._replace(features=json.dumps(prediction.features, separators=(",", ":")))  # type: ignore[arg-type]
