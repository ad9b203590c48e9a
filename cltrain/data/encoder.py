"""From events to tensors: the vocabulary and the normalisation of a version, which travel with it.

Statistics are fixed by the training from scratch that starts a major; the vocabulary (and the classes of a multiclass
label) grows with each update, and no category ever changes its index.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from cltrain.batch import UNKNOWN, Batch, InputSpec
from cltrain.data.schema import Feature, Schema, feature_column
from cltrain.errors import LabelError
from cltrain.records import EVENT_TIME, LABEL

MISSING, FIRST = UNKNOWN + 1, UNKNOWN + 2  # index of null, and of the first category
BINS = 12
MAX_CATEGORIES = 20_000


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
    name: str
    categories: tuple[str, ...]

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
        numeric = tuple(NumericColumn(**{**c, "edges": tuple(c["edges"])}) for c in value["numeric"])
        categorical = tuple(CategoricalColumn(name=c["name"], categories=tuple(c["categories"])) for c in value["categorical"])
        rest = {k: tuple(v) if isinstance(v, list) else v for k, v in value.items() if k not in ("numeric", "categorical")}
        return cls(numeric=numeric, categorical=categorical, **rest)


def fit_encoder(table: pa.Table, schema: Schema) -> Encoder:
    """Learn vocabulary and statistics from the rows of a training from scratch. Raises `LabelError` when there is
    nothing to tell apart. Numeric columns that never vary are left out."""
    task = schema.columns.task
    label = table.column(LABEL)
    if table.num_rows == 0:
        raise LabelError("there is no labelled row to learn from")
    numeric = tuple(c for name in schema.names("numeric") if (c := _fit_numeric(table, name)) is not None)
    categorical = tuple(
        CategoricalColumn(name=name, categories=_new_values(table.column(name), ())) for name in schema.names("categorical")
    )
    encoder = Encoder(task=task, numeric=numeric, categorical=categorical)
    if task == "multiclass":
        classes = tuple(sorted(_new_values(label, ()), key=_natural))
        if len(classes) < 2:
            raise LabelError(f"data.label={schema.columns.label} holds one class only ({', '.join(classes)})")
        return dataclasses.replace(encoder, classes=classes)
    if task == "regression":
        values = np.asarray(label)
        return dataclasses.replace(encoder, target_mean=float(values.mean()), target_std=float(values.std()) or 1.0)
    return encoder


def request_table(rows: Sequence[dict[str, Any]], encoder: Encoder) -> pa.Table:
    """Events from requests (one dict of features a row); features that are absent are null, strangers are ignored."""
    times = pa.array([row.get(EVENT_TIME) for row in rows], pa.timestamp("us", tz="UTC"))
    columns: dict[str, pa.Array] = {}
    for kind, names in (("numeric", encoder.numeric), ("categorical", encoder.categorical)):
        for column in names:
            feature = Feature(name=column.name, kind=kind)  # type: ignore[arg-type]
            if column.name in ("_hour", "_weekday"):
                columns[column.name] = feature_column(pa.table({}), feature, times)
            else:
                columns[column.name] = _request_column([row.get(column.name) for row in rows], kind)
    return pa.table(columns)


def _request_column(values: Iterable[Any], kind: str) -> pa.Array:
    if kind == "numeric":
        return pa.array([None if v is None else float(v) for v in values], pa.float64())
    return pa.array([None if v is None else str(v).lower() if isinstance(v, bool) else str(v) for v in values], pa.string())


def _numbers(table: pa.Table, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Values (N,) float64 and where they are null or not finite (N,) bool."""
    if name not in table.column_names:
        return np.zeros(table.num_rows), np.ones(table.num_rows, bool)
    values = np.asarray(pc.fill_null(table.column(name), np.nan), dtype=np.float64)
    null = ~np.isfinite(values)
    return np.where(null, 0.0, values), null


def _indices(table: pa.Table, column: CategoricalColumn) -> np.ndarray:
    if column.name not in table.column_names:
        return np.full(table.num_rows, MISSING)
    values = table.column(column.name)
    found = pc.index_in(values, value_set=pa.array(column.categories, pa.string()))
    index = np.asarray(pc.fill_null(pc.add(found, FIRST), UNKNOWN))
    return np.where(np.asarray(pc.is_null(values)), MISSING, index)


def _fit_numeric(table: pa.Table, name: str) -> NumericColumn | None:
    values, null = _numbers(table, name)
    values = values[~null]
    if not len(values) or values.min() == values.max():
        return None
    low, high = np.quantile(values, [0.005, 0.995])
    core = np.clip(values, low, high) if low < high else values
    mean, std = float(core.mean()), float(core.std())
    scaled = (values - mean) / std
    inner = (core - mean) / std
    edges = np.unique(np.quantile(inner, np.linspace(0, 1, BINS + 1)).astype(np.float32))
    return NumericColumn(
        name=name,
        mean=mean,
        std=std,
        low=float(max(scaled.min() - 1.0, -10.0)),
        high=float(min(scaled.max() + 1.0, 10.0)),
        edges=tuple(float(e) for e in edges),
        nullable=bool(null.any()),
    )


def _new_values(column: pa.ChunkedArray, known: tuple[str, ...]) -> tuple[str, ...]:
    counts = pc.value_counts(column.drop_null())
    values = zip(counts.field(0).to_pylist(), counts.field(1).to_pylist(), strict=True)
    have = set(known)
    fresh = sorted(((-n, v) for v, n in values if v not in have))
    return tuple(v for _, v in fresh)[: max(0, MAX_CATEGORIES - len(known))]


def _natural(text: str) -> tuple[int, float, str]:
    try:
        return 0, float(text), text
    except ValueError:
        return 1, 0.0, text
