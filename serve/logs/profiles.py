"""What was asked and answered, in mergeable numbers by window, version and arm: where rows are not kept, and for
metrics of a user's own, which a guardrail may hold a version to."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cltrain.clock import parse_duration
from cltrain.config import locate
from cltrain.data.served import feature_table
from cltrain.errors import StoreError
from cltrain.monitor.profile import CategoricalProfile, NumericProfile, Profile, profile_of
from cltrain.online.assignment import bucket
from cltrain.records import Json, to_json
from cltrain.storage import Storage

log = logging.getLogger(__name__)

FOLDER = "profiles"
WRITE_S = 5.0  # so much of a window is lost with its process at most
METRIC = "metric."
GROUPS, GROUP_SALT = 64, "groups"  # of units, whose spread says how sure a metric's mean is
LEAST_GROUPS = 16

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
        self._groups: dict[Key, dict[str, np.ndarray]] = {}
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
            table = self._table(some)
            found = profile_of(table)
            self._add_groups(key, some, table)
            self.latest[key] = self.latest[key] + found if key in self.latest else found
            self._unwritten.add(key)

    def write(self, now: bool = False) -> None:
        """Write what has changed, every `WRITE_S` seconds or `now`, and let go of windows that are over."""
        if not self._unwritten or not (now or time.monotonic() - self._written_at >= WRITE_S):
            return
        self._written_at = time.monotonic()
        for key in sorted(self._unwritten):
            groups = {name: sums.tolist() for name, sums in self._groups.get(key, {}).items()}
            about = key._asdict() | {"replica": self._replica, "seconds": self._window_s, "groups": groups}
            about["profile"] = to_json(self.latest[key])
            try:
                self._storage.write_json(_place(key, self._replica), about)
            except StoreError as error:
                self.error = str(error)
                return
            self._unwritten.discard(key)
        last = max((key.window for key in self.latest), default=0)
        self.latest = {key: profile for key, profile in self.latest.items() if key.window >= last - self._window_s}
        self._groups = {key: groups for key, groups in self._groups.items() if key in self.latest}

    def _add_groups(self, key: Key, rows: Sequence[Any], table: pa.Table) -> None:
        """Number and sum of each metric in each group of units."""
        if not self._metrics:
            return
        group = np.array([int(GROUPS * bucket(row.unit_id or row.request_id, GROUP_SALT)) for row in rows])
        held = self._groups.setdefault(key, {name: np.zeros((2, GROUPS)) for name in self._metrics})
        for name, sums in held.items():
            values = np.asarray(table[f"{METRIC}{name}"].to_numpy(), np.float64)
            known = np.isfinite(values)
            sums[0] += np.bincount(group[known], minlength=GROUPS)
            sums[1] += np.bincount(group[known], weights=values[known], minlength=GROUPS)

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


@dataclass(frozen=True)
class Shift:
    """Challenger minus champion in the mean of a metric, with its standard error; n: rows of the smaller arm; `level`
    is the champion's mean."""

    n: int
    difference: float
    error: float
    level: float


class MetricReader:
    """Follows metrics of `serve.log.metrics` over the windows of a roll-out that began at `since`; each file is read
    again only when it has changed. arm: the challenger's, or None where its rows are those that `version` answered."""

    def __init__(
        self, storage: Storage, model: str, names: Iterable[str], since: datetime, arm: str | None, version: str
    ) -> None:
        self._storage, self._folder, self._names = storage, f"{FOLDER}/{model}", tuple(names)
        self._since, self._arm, self._version = since.timestamp(), arm, version
        self._seen: dict[str, tuple[int, float]] = {}
        self._files: dict[str, tuple[int, bool, dict[str, np.ndarray]]] = {}
        self._warned = False

    def read(self) -> bool:
        """Whether there was anything new."""
        fresh = False
        for info in self._storage.infos(self._folder) if self._names else ():
            at = (info.size, info.changed)
            if info.name.rpartition("/")[2].startswith(".") or self._seen.get(info.name) == at:
                continue
            self._seen[info.name] = at
            said = self._storage.read_json(info.name)
            if said["window"] + said.get("seconds", 0) <= self._since:
                continue
            ours = said["version"] == self._version if self._arm is None else said["arm"] == self._arm
            groups = {name: np.array(sums) for name, sums in said.get("groups", {}).items() if name in self._names}
            self._files[info.name], fresh = (said["window"], ours, groups), True
        if fresh:
            self._warn()
        return fresh

    def contrasts(self) -> dict[str, Shift]:
        """By name, of those that both arms have."""
        found = {}
        for name in self._names:
            windows: dict[int, np.ndarray] = {}
            for window, ours, groups in self._files.values():
                if name in groups:  # of a swap the arms come one after the other
                    sums = windows.setdefault(0 if self._arm is None else window, np.zeros((2, 2, GROUPS)))
                    sums[int(ours)] += groups[name]
            if windows and (one := shift_of(np.array(list(windows.values())))) is not None:
                found[name] = one
        return found

    def _warn(self) -> None:
        logged = {name for _, _, groups in self._files.values() for name in groups}
        if (missing := sorted(set(self._names) - logged)) and not self._warned:
            self._warned = True
            log.warning(
                "rollout.guardrails.max_metric_shift names %s, which is not logged: add it to serve.log.metrics",
                ", ".join(missing),
            )


def shift_of(sums: np.ndarray) -> Shift | None:
    """How far the challenger's mean is from the champion's. sums: (windows, arms, 2, groups), number and total; the
    champion first. Arms are compared window by window, as the world changes with time, and the error is that of the
    delete-a-group jackknife (Kott 2001), so that rows of one unit may go together as they like; it is as if one group
    differed at least, since a metric that never varies in an arm may yet. None while an arm has units in fewer than 16
    of the groups."""
    count = sums[:, :, 0].sum(axis=(0, 2))
    groups = int((sums[:, :, 0] > 0).any(axis=0).sum(axis=1).min())
    if groups < LEAST_GROUPS:
        return None
    whole = sums.sum(axis=3, keepdims=True)
    difference = float(_difference(whole)[0])
    without = _difference(whole - sums)
    if not np.isfinite([difference, *without]).all():
        return None
    error = math.sqrt((GROUPS - 1) / GROUPS * float(np.square(without - without.mean()).sum()))
    error = max(error, abs(difference) / groups)
    return Shift(int(count.min()), difference, error, float(sums[:, 0, 1].sum() / count[0]))


def _difference(sums: np.ndarray) -> np.ndarray:
    """(G,) differences of means, from (windows, arms, 2, G)."""
    count, total = sums[:, :, 0], sums[:, :, 1]
    weight = count[:, 0] * count[:, 1] / np.maximum(count.sum(axis=1), 1.0)
    mean = total / np.maximum(count, 1.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return (weight * (mean[:, 1] - mean[:, 0])).sum(axis=0) / weight.sum(axis=0)


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
