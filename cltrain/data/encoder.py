"""From events to tensors: the vocabulary and the normalisation of a version, which travel with it.

Statistics are fixed by the training from scratch that starts a major; the vocabulary (and the classes of a multiclass
label) grows with each update, and no category ever changes its index.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from cltrain.batch import UNKNOWN, Batch, InputSpec
from cltrain.data.schema import HOUR, WEEKDAY, Feature, FeatureKind, Schema, feature_column
from cltrain.data.values import text_of
from cltrain.errors import UpdateError
from cltrain.records import EVENT_TIME, LABEL

MISSING, FIRST = UNKNOWN + 1, UNKNOWN + 2  # index of null, and of the first category
BINS = 12
MAX_CATEGORIES = 20_000
FEW_ROWS = 64  # of which a look-up in a dict is faster than one in Arrow
IDENTIFIER_SHARE = 0.5

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class NumericColumn:
    """Standardised as (x - mean) / std and clipped to `[low, high]`, the range met in training widened by one std;
    `edges` are quantiles of the standardised values, for a piecewise-linear encoding. `nullable`: nulls were met."""

    name: str
    mean: float
    std: float
    low: float
    high: float
    edges: tuple[float, ...]
    nullable: bool


@dataclass(frozen=True, kw_only=True)
class CategoricalColumn:
    """Index `FIRST` + i for `categories[i]`; `MISSING` for null; `UNKNOWN` for all others."""

    name: str
    categories: tuple[str, ...]

    @cached_property
    def places(self) -> dict[str | None, int]:
        return {None: MISSING} | {value: i for i, value in enumerate(self.categories, FIRST)}

    @cached_property
    def values(self) -> pa.Array:
        return pa.array(self.categories, pa.string())

    @property
    def size(self) -> int:
        return FIRST + len(self.categories)


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """Pure function from event tables to `Batch`: `inputs["numeric"]` (B, F) float32, one column a number and then one
    a nullable number (1.0 where it was null); `inputs["categorical"]` (B, C) int64 indices."""

    task: str
    numeric: tuple[NumericColumn, ...]
    categorical: tuple[CategoricalColumn, ...]
    classes: tuple[str, ...] = ()
    target_mean: float = 0.0
    target_std: float = 1.0

    @property
    def num_outputs(self) -> int:
        return len(self.classes) if self.task == "multiclass" else 1

    @property
    def spec(self) -> InputSpec:
        return InputSpec(
            num_columns=len(self.numeric),
            num_indicators=sum(c.nullable for c in self.numeric),
            edges=tuple(c.edges for c in self.numeric),
            cardinalities=tuple(c.size for c in self.categorical),
            num_outputs=self.num_outputs,
        )

    def __call__(self, table: pa.Table) -> Batch:
        """Encode events; rows without a label get target 0 and weight 0. Columns that are missing count as null."""
        rows = table.num_rows
        numeric = np.zeros((rows, self.spec.num_numeric), np.float32)
        indicator = len(self.numeric)
        for i, column in enumerate(self.numeric):
            values, null = _numbers(table, column.name)
            with np.errstate(over="ignore"):
                scaled = np.clip((values - column.mean) / column.std, column.low, column.high)
            numeric[:, i] = np.where(null, 0.0, scaled)
            if column.nullable:
                numeric[:, indicator] = null
                indicator += 1
        categorical = np.zeros((rows, len(self.categorical)), np.int64)
        for i, cat in enumerate(self.categorical):
            categorical[:, i] = _indices(table, cat)
        target, weight = self._targets(table)
        return Batch(
            {"numeric": torch.from_numpy(numeric), "categorical": torch.from_numpy(categorical)},
            torch.from_numpy(target),
            torch.from_numpy(weight),
        )

    def _targets(self, table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
        if LABEL not in table.column_names:
            return np.zeros(table.num_rows, np.float32), np.zeros(table.num_rows, np.float32)
        column = table.column(LABEL)
        weight = np.asarray(pc.is_valid(column)).astype(np.float32)
        if self.task == "multiclass":
            found = pc.index_in(column, value_set=pa.array(self.classes, pa.string()))
            return np.asarray(pc.fill_null(found, len(self.classes))).astype(np.int64), weight
        values = np.asarray(pc.fill_null(column, 0.0))
        return ((values - self.target_mean) / self.target_std).astype(np.float32), weight

    def extended(self, table: pa.Table) -> Encoder:
        """The same encoder with the categories and classes of `table` added at the end, most frequent first."""
        columns = tuple(
            dataclasses.replace(c, categories=c.categories + _new_values(table.column(c.name), c.categories))
            if c.name in table.column_names
            else c
            for c in self.categorical
        )
        classes = self.classes
        if self.task == "multiclass":
            classes += _new_values(table.column(LABEL), classes)
        return dataclasses.replace(self, categorical=columns, classes=classes)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Encoder:
        columns = {
            "numeric": tuple(NumericColumn(**{**c, "edges": tuple(c["edges"])}) for c in value["numeric"]),
            "categorical": tuple(
                CategoricalColumn(**{**c, "categories": tuple(c["categories"])}) for c in value["categorical"]
            ),
            "classes": tuple(value["classes"]),
        }
        return cls(**{**value, **columns})


def fit_encoder(table: pa.Table, schema: Schema) -> Encoder:
    """Learn vocabulary and statistics from the rows of a training from scratch. Numeric columns that never vary are
    left out. Raises `UpdateError` when there is nothing to learn from or to tell apart: later rows may be better."""
    task, name = schema.columns.task, schema.columns.label
    label = table.column(LABEL).drop_null()
    if not len(label):
        raise UpdateError("there is no labelled row to learn from")
    classes = tuple(sorted(pc.unique(label).to_pylist(), key=_natural)) if task != "regression" else ()
    if len(classes) == 1:
        raise UpdateError(
            f"data.label={name} holds only {classes[0]} in these {len(label)} rows: give it a longer window"
        )
    numeric = tuple(c for n in schema.names("numeric") if (c := _fit_numeric(table, n)) is not None)
    categorical = tuple(
        CategoricalColumn(name=n, categories=_new_values(table.column(n), ())) for n in schema.names("categorical")
    )
    for column in categorical:
        if len(column.categories) > IDENTIFIER_SHARE * table.num_rows > IDENTIFIER_SHARE * FEW_ROWS:
            log.warning("%s differs in most rows and teaches little: data.exclude='[%s]'", column.name, column.name)
    if not numeric and not categorical:
        raise UpdateError(f"no column varies in these {table.num_rows} rows: there is nothing to learn from")
    if task == "multiclass":
        return Encoder(task=task, numeric=numeric, categorical=categorical, classes=classes)
    mean, std = _moments(np.asarray(label)) if task == "regression" else (0.0, 1.0)
    return Encoder(task=task, numeric=numeric, categorical=categorical, target_mean=mean, target_std=std)


def request_table(rows: Sequence[dict[str, Any]], encoder: Encoder) -> pa.Table:
    """Events from requests (one dict of features a row); features that are absent are null, strangers are ignored."""
    times = pa.array([row.get(EVENT_TIME) for row in rows], pa.timestamp("us", tz="UTC"))
    columns: dict[str, pa.Array] = {}
    features = [Feature(name=c.name, kind="numeric") for c in encoder.numeric]
    features += [Feature(name=c.name, kind="categorical") for c in encoder.categorical]
    for feature in features:
        if feature.name in (HOUR, WEEKDAY):
            columns[feature.name] = feature_column(pa.table({}), feature, times)
        else:
            columns[feature.name] = _request_column([row.get(feature.name) for row in rows], feature.kind)
    return pa.table(columns)


def _request_column(values: Iterable[Any], kind: FeatureKind) -> pa.Array:
    if kind == "numeric":
        return pa.array([None if v is None else float(v) for v in values], pa.float64())
    return pa.array([None if v is None else text_of(v) for v in values], pa.string())


def _numbers(table: pa.Table, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Values (N,) float64 and where they are null or not finite (N,) bool."""
    if name not in table.column_names:
        return np.zeros(table.num_rows), np.ones(table.num_rows, bool)
    values = np.asarray(pc.fill_null(table.column(name), np.nan), dtype=np.float64)
    null = ~np.isfinite(values)
    return np.where(null, 0.0, values), null


def _indices(table: pa.Table, column: CategoricalColumn) -> np.ndarray:
    """(N,) int64."""
    if column.name not in table.column_names:
        return np.full(table.num_rows, MISSING)
    values = table.column(column.name)
    if len(values) <= FEW_ROWS:
        return np.array([column.places.get(value, UNKNOWN) for value in values.to_pylist()], np.int64)
    found = np.asarray(pc.fill_null(pc.index_in(values, value_set=column.values), UNKNOWN - FIRST)) + FIRST
    return np.where(np.asarray(pc.is_null(values)), MISSING, found)


def _fit_numeric(table: pa.Table, name: str) -> NumericColumn | None:
    values, null = _numbers(table, name)
    values = values[~null]
    if not len(values) or values.min() == values.max():
        return None
    low, high = np.quantile(values, [0.005, 0.995])
    core = np.clip(values, low, high) if low < high else values
    mean, std = _moments(core)
    with np.errstate(over="ignore"):
        scaled, inner = (values - mean) / std, (core - mean) / std
    edges = np.unique(np.quantile(inner, np.linspace(0, 1, BINS + 1)).astype(np.float32))
    if len(edges) < 2:
        return None
    return NumericColumn(
        name=name,
        mean=mean,
        std=std,
        low=float(max(scaled.min() - 1.0, -10.0)),
        high=float(min(scaled.max() + 1.0, 10.0)),
        edges=tuple(float(e) for e in edges),
        nullable=bool(null.any()),
    )


def _moments(values: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation (1.0 where there is none) of finite numbers of any size."""
    scale = float(np.abs(values).max()) or 1.0
    small = values / scale
    return float(small.mean()) * scale, float(small.std()) * scale or 1.0


def _new_values(column: pa.ChunkedArray, known: tuple[str, ...]) -> tuple[str, ...]:
    """Values that are not known, most frequent first, as many as there is room for."""
    room = MAX_CATEGORIES - len(known)
    fresh = column.filter(pc.invert(pc.is_in(column, value_set=pa.array(known, pa.string())))) if known else column
    counts = pc.value_counts(fresh.drop_null())
    if len(counts) > room > 0:
        log.warning(
            "there are %d categories more than the %d that fit; the rare ones count as unknown",
            len(counts) - room,
            room,
        )
    table = pa.table({"value": counts.field(0), "count": counts.field(1)})
    order = pc.sort_indices(table, [("count", "descending"), ("value", "ascending")])[: max(0, room)]
    return tuple(table.column("value").take(order).to_pylist())


def _natural(value: str | float) -> tuple[int, float, str]:
    """Numbers by size, then text."""
    try:
        return 0, float(value), str(value)
    except ValueError:
        return 1, 0.0, str(value)
