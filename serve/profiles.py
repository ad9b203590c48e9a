"""What was asked and answered, in mergeable numbers by window, version and arm: where rows are not kept, and for
metrics of a user's own."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from cltrain.clock import parse_duration
from cltrain.config import locate
from cltrain.data.served import feature_table
from cltrain.errors import StoreError
from cltrain.monitor.profile import CategoricalProfile, NumericProfile, Profile, profile_of
from cltrain.records import Json, to_json
from cltrain.storage import Storage

log = logging.getLogger(__name__)

FOLDER = "profiles"
WRITE_S = 5.0  # so much of a window is lost with its process at most
METRIC = "metric."

Metric = Callable[[Any], float | bool | None]


class Key(NamedTuple):
    """`window` is where it starts, in seconds since 1970."""

    model: str
    window: int
    version: str
    arm: str


class Profiles:
    """Profiles of what one replica answered, written below `profiles/` while they grow. Columns are the features,
    `served.prediction`, `served.label`, `served.latency_ms`, and `metric.NAME` for each metric. One thread calls it.

    metrics: functions of a logged row, by name and place (`package.module.function`), that give a number, a truth value
    or None. One that fails counts as null, and `error` says why.
    """

    def __init__(self, storage: Storage, replica: str, window: str, metrics: Mapping[str, str]) -> None:
        self.error: str | None = None
        self.latest: dict[Key, Profile] = {}
        self._storage, self._replica = storage, replica
        self._window_s = max(1, round(parse_duration(window).total_seconds()))
        self._metrics: dict[str, Metric] = {
            name: locate(place, f"serve.log.metrics.{name}") for name, place in metrics.items()
        }
        self._unwritten: set[Key] = set()
        self._written_at = time.monotonic()

    def add(self, rows: Sequence[Any]) -> None:
        """Take in answered rows (`Prediction`)."""
        groups: dict[Key, list[Any]] = {}
        for row in rows:
            start = int(row.time.timestamp()) // self._window_s * self._window_s
            groups.setdefault(Key(row.model, start, row.version, row.arm), []).append(row)
        for key, some in groups.items():
            found = profile_of(self._table(some))
            self.latest[key] = self.latest[key] + found if key in self.latest else found
            self._unwritten.add(key)

    def write(self, now: bool = False) -> None:
        """Write what has changed, every `WRITE_S` seconds or `now`, and let go of windows that are over."""
        if not self._unwritten or not (now or time.monotonic() - self._written_at >= WRITE_S):
            return
        self._written_at = time.monotonic()
        for key in sorted(self._unwritten):
            about = key._asdict() | {"replica": self._replica, "profile": to_json(self.latest[key])}
            try:
                self._storage.write_json(_place(key, self._replica), about)
            except StoreError as error:
                self.error = str(error)
                return
            self._unwritten.discard(key)
        last = max((key.window for key in self.latest), default=0)
        self.latest = {key: profile for key, profile in self.latest.items() if key.window >= last - self._window_s}

    def _table(self, rows: Sequence[Any]) -> pa.Table:
        features = feature_table(pa.chunked_array([[json.dumps(row.features) for row in rows]]))
        columns: dict[str, Any] = {name: _plain(column) for name, column in features.items()}
        columns["served.prediction"] = pa.array([row.prediction for row in rows], pa.float64())
        columns["served.label"] = pa.array([row.label_answer for row in rows], pa.string())
        columns["served.latency_ms"] = pa.array([row.latency_us / 1e3 for row in rows], pa.float64())
        for name, metric in self._metrics.items():
            columns[f"{METRIC}{name}"] = pa.array([self._measured(name, metric, row) for row in rows], pa.float64())
        return pa.table(columns)

    def _measured(self, name: str, metric: Metric, row: Any) -> float | None:
        try:
            value = metric(row)
            return None if value is None else float(value)
        except Exception as error:  # a user's function must not stop the log
            if self.error is None:
                log.warning("serve.log.metrics.%s fails, which counts as null: %s", name, error)
            self.error = f"serve.log.metrics.{name}: {type(error).__name__}: {error}"
            return None


def _place(key: Key, replica: str) -> str:
    return f"{FOLDER}/{key.model}/{key.window:012d}/{key.version}-{key.arm}-{replica}.json"


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Numbers as floats and truth values as text, which is what a profile knows."""
    if pa.types.is_integer(column.type) or pa.types.is_null(column.type):
        return column.cast(pa.float64())
    return pc.cast(column, pa.string()) if pa.types.is_boolean(column.type) else column


def read_profiles(storage: Storage, model: str, since: datetime | None = None) -> dict[Key, Profile]:
    """Profiles of all replicas added up, by window, version and arm, oldest first."""
    found: dict[Key, Profile] = {}
    start = int(since.timestamp()) if since else 0
    for name in storage.names(f"{FOLDER}/{model}"):
        parts = name.split("/")
        if name.endswith(".json") and not parts[-1].startswith(".") and int(parts[-2]) >= start:
            said = storage.read_json(name)
            key, profile = Key(model, said["window"], said["version"], said["arm"]), profile_from(said["profile"])
            found[key] = found[key] + profile if key in found else profile
    return found


def profile_from(value: Json) -> Profile:
    return Profile(
        rows=value["rows"],
        numeric={name: NumericProfile(**one) for name, one in value["numeric"].items()},
        categorical={name: CategoricalProfile(**one) for name, one in value["categorical"].items()},
    )


def summary(profiles: Mapping[Key, Profile], names: Iterable[str] = ()) -> list[Json]:
    """One line for each window, version and arm: how many rows, and mean, deviation and number of each metric, and of
    further numeric columns."""
    lines = []
    for key, profile in sorted(profiles.items()):
        wanted = [n for n in profile.numeric if n.startswith((METRIC, "served.")) or n in set(names)]
        means = {name.removeprefix(METRIC): _mean(profile.numeric[name]) for name in wanted}
        about = {"window": datetime.fromtimestamp(key.window, UTC).isoformat(), "version": key.version, "arm": key.arm}
        lines.append(about | {"rows": profile.rows, "metrics": {n: m for n, m in means.items() if m is not None}})
    return lines


def _mean(column: NumericProfile) -> Json | None:
    n = column.rows - column.nulls
    if not n:
        return None
    mean = column.total / n
    return {"mean": mean, "deviation": math.sqrt(max(column.squares / n - mean * mean, 0.0)), "n": n}
