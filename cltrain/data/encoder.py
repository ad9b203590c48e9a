"""From events to tensors: the vocabulary and the normalisation of a version, which travel with it.

Statistics are fixed by the training from scratch that starts a major; the vocabulary (and the classes of a multiclass
label) grows with each update, and no category changes its index for as long as it is kept.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from cltrain.batch import Batch, InputSpec, TensorInput, TextInput
from cltrain.data.schema import HOUR, WEEKDAY, Feature, FeatureKind, Schema, feature_column
from cltrain.data.text import looks_like_text, tokens
from cltrain.data.values import text_of
from cltrain.data.vocabulary import FEW_ROWS, MISSING, CategoricalColumn, by_frequency, fit_categories
from cltrain.errors import DataError, UpdateError
from cltrain.records import EVENT_TIME, LABEL

BINS = 12
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
class TensorColumn:
    """Tensors of one shape. `element` is that of the column: uint8 is scaled to [0, 1], a float is taken as it is."""

    name: str
    shape: tuple[int, ...]
    element: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))

    @property
    def feature(self) -> Feature:
        return Feature(name=self.name, kind="tensor", shape=self.shape, element=self.element)


@dataclass(frozen=True, kw_only=True)
class TextColumn:
    """The first `max_tokens` words, hashed into `buckets`; see `cltrain.data.text.tokens`."""

    name: str
    buckets: int
    max_tokens: int


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """Pure function from event tables to `Batch`: `inputs["numeric"]` (B, F) float32, one column a number and then one
    a nullable number (1.0 where it was null); `inputs["categorical"]` (B, C) int64 indices; and, each under the name of
    its column, tensors (B, *shape) float32, 0 where they are null, and texts (B, max_tokens) int64, padded with 0."""

    task: str
    numeric: tuple[NumericColumn, ...]
    categorical: tuple[CategoricalColumn, ...]
    tensors: tuple[TensorColumn, ...] = ()
    texts: tuple[TextColumn, ...] = ()
    classes: tuple[str, ...] = ()
    target_mean: float = 0.0
    target_std: float = 1.0

    @property
    def num_outputs(self) -> int:
        return len(self.classes) if self.task == "multiclass" else 1

    @cached_property
    def _places(self) -> dict[str, int]:
        return {value: index for index, value in enumerate(self.classes)}

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that it reads."""
        kinds: tuple[Sequence[Any], ...] = (self.numeric, self.categorical, self.tensors, self.texts)
        return tuple(column.name for columns in kinds for column in columns)

    @property
    def spec(self) -> InputSpec:
        return InputSpec(
            num_columns=len(self.numeric),
            num_indicators=sum(c.nullable for c in self.numeric),
            edges=tuple(c.edges for c in self.numeric),
            cardinalities=tuple(c.size for c in self.categorical),
            num_outputs=self.num_outputs,
            tensors=tuple(TensorInput(name=c.name, shape=c.shape) for c in self.tensors),
            texts=tuple(TextInput(name=c.name, vocabulary=c.buckets, max_tokens=c.max_tokens) for c in self.texts),
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
            categorical[:, i] = cat.indices(table.column(cat.name)) if cat.name in table.column_names else MISSING
        inputs = {"numeric": numeric, "categorical": categorical}
        inputs |= {column.name: _tensors(table, column) for column in self.tensors}
        inputs |= {column.name: _tokens(table, column) for column in self.texts}
        target, weight = self._targets(table)
        return Batch(
            {name: torch.from_numpy(value) for name, value in inputs.items()},
            torch.from_numpy(target),
            torch.from_numpy(weight),
        )

    def _targets(self, table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
        if LABEL not in table.column_names:
            return np.zeros(table.num_rows, np.float32), np.zeros(table.num_rows, np.float32)
        column = table.column(LABEL)
        weight = np.ones(len(column), np.float32)
        if column.null_count:
            weight = np.asarray(pc.is_valid(column)).astype(np.float32)
        if self.task == "multiclass":
            if len(column) <= 2 * FEW_ROWS:
                strange = len(self.classes)
                return np.array([self._places.get(value, strange) for value in column.to_pylist()], np.int64), weight
            found = pc.index_in(column, value_set=pa.array(self.classes, pa.string()))
            return np.asarray(pc.fill_null(found, len(self.classes))).astype(np.int64), weight
        values = np.asarray(pc.fill_null(column, 0.0))
        return ((values - self.target_mean) / self.target_std).astype(np.float32), weight

    def extended(self, table: pa.Table) -> Encoder:
        """The same encoder with the categories (see `CategoricalColumn.extended`) and classes of `table`. Classes are
        added at the end, most frequent first."""
        columns = tuple(
            c.extended(table.column(c.name)) if c.name in table.column_names else c for c in self.categorical
        )
        classes = self.classes
        if self.task == "multiclass":
            classes += by_frequency(table.column(LABEL), classes)
        return dataclasses.replace(self, categorical=columns, classes=classes)

    def extended_with(self, table: pa.Table, schema: Schema) -> Encoder:
        """The encoder of a model iteration: columns that `schema` still has are encoded as they were, so that a model
        of the old ones can be carried over; new ones are fitted on `table`, and count as nullable, since rows from
        before lack them; columns that `schema` lacks, or has as another kind, are left out."""
        fresh, have = fit_encoder(table, schema), {(f.name, f.kind) for f in schema.features}

        def merged(kind: FeatureKind, old: Sequence[Any], new: Iterable[Any]) -> tuple[Any, ...]:
            kept = tuple(c for c in old if (c.name, kind) in have)
            return kept + tuple(c for c in new if c.name not in {k.name for k in kept})

        extended = self.extended(table)
        nullable = (dataclasses.replace(c, nullable=True) for c in fresh.numeric)
        return dataclasses.replace(
            extended,
            numeric=merged("numeric", self.numeric, nullable),
            categorical=merged("categorical", extended.categorical, fresh.categorical),
            tensors=merged("tensor", self.tensors, fresh.tensors),
            texts=merged("text", self.texts, fresh.texts),
        )

    def reused(self, before: Encoder) -> dict[int, tuple[int, ...]]:
        """By the position of a categorical column, the indices that meant another category `before`."""
        pairs = zip(self.categorical, before.categorical, strict=True)
        return {i: places for i, (now, was) in enumerate(pairs) if (places := now.reused(was))}

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Encoder:
        columns = {
            "numeric": tuple(NumericColumn(**{**c, "edges": tuple(c["edges"])}) for c in value["numeric"]),
            "categorical": tuple(CategoricalColumn(**c) for c in value["categorical"]),
            "tensors": tuple(TensorColumn(**c) for c in value.get("tensors", ())),
            "texts": tuple(TextColumn(**c) for c in value.get("texts", ())),
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
    of = schema.columns
    categorical = tuple(fit_categories(n, table.column(n), of.max_categories) for n in schema.names("categorical"))
    for column in categorical:
        if looks_like_text(table.column(column.name)) and table.num_rows > FEW_ROWS:
            log.warning("%s looks like text: data.text='[%s]' with model=text reads it", column.name, column.name)
        elif len(column.categories) > IDENTIFIER_SHARE * table.num_rows > IDENTIFIER_SHARE * FEW_ROWS:
            log.warning("%s differs in most rows and teaches little: data.exclude='[%s]'", column.name, column.name)
    tensors, texts = _inputs_of_their_own(schema)
    if not (numeric or categorical or tensors or texts):
        raise UpdateError(f"no column varies in these {table.num_rows} rows: there is nothing to learn from")
    mean, std = _moments(np.asarray(label)) if task == "regression" else (0.0, 1.0)
    return Encoder(
        task=task,
        numeric=numeric,
        categorical=categorical,
        tensors=tensors,
        texts=texts,
        classes=classes if task == "multiclass" else (),
        target_mean=mean,
        target_std=std,
    )


def outline(schema: Schema) -> InputSpec:
    """What can be said of a model's inputs before there are rows: tensors and texts are right, all else is not."""
    tensors, texts = _inputs_of_their_own(schema)
    return Encoder(task=schema.columns.task, numeric=(), categorical=(), tensors=tensors, texts=texts).spec


def _inputs_of_their_own(schema: Schema) -> tuple[tuple[TensorColumn, ...], tuple[TextColumn, ...]]:
    of = schema.columns
    tensors = (TensorColumn(name=f.name, shape=f.shape, element=f.element) for f in schema.features if f.shape)
    texts = (TextColumn(name=n, buckets=of.text_buckets, max_tokens=of.max_tokens) for n in schema.names("text"))
    return tuple(tensors), tuple(texts)


def request_table(rows: Sequence[dict[str, Any]], encoder: Encoder) -> pa.Table:
    """Events from requests (one dict of features a row); features that are absent are null, strangers are ignored. A
    tensor is a list of numbers, nested as its shape or flat. Raises `DataError` that names the row and the feature
    where a value is not of its kind."""
    times = pa.array([row.get(EVENT_TIME) for row in rows], pa.timestamp("us", tz="UTC"))
    columns: dict[str, pa.Array] = {}
    features = [Feature(name=c.name, kind="numeric") for c in encoder.numeric]
    features += [Feature(name=c.name, kind="categorical") for c in encoder.categorical]
    features += [c.feature for c in encoder.tensors]
    features += [Feature(name=c.name, kind="text") for c in encoder.texts]
    for feature in features:
        if feature.name in (HOUR, WEEKDAY):
            columns[feature.name] = feature_column(pa.table({}), feature, times)
        else:
            columns[feature.name] = _request_column([row.get(feature.name) for row in rows], feature)
    return pa.table(columns)


def _request_column(values: Sequence[Any], feature: Feature) -> pa.Array:
    read = {"numeric": _number, "tensor": lambda value: _tensor(value, feature)}.get(feature.kind, _text)
    found = []
    for index, value in enumerate(values):
        try:
            found.append(None if value is None else read(value))
        except (TypeError, ValueError, OverflowError) as error:
            shown = "a list" if isinstance(value, list) else repr(str(value)[:40])
            raise DataError(f"rows[{index}].features.{feature.name} must be {_needed(feature)}, not {shown}") from error
    return pa.array(found, feature.type)


def _needed(feature: Feature) -> str:
    if feature.kind == "tensor":
        range_ = ", whole and from 0 to 255" if feature.element == "uint8" else ""
        return f"numbers of shape {list(feature.shape)}{range_}"
    return "a number" if feature.kind == "numeric" else "a text"


def _number(value: Any) -> float:
    return float(value)


def _text(value: Any) -> str:
    if isinstance(value, list):
        raise TypeError
    return text_of(value)


def _tensor(value: Any, feature: Feature) -> np.ndarray:
    """(size,) of the feature's element. Raises `ValueError`."""
    found = np.array(value)
    flat = math.prod(feature.shape)
    fits = found.dtype.kind in "iuf" and found.shape in (feature.shape, (flat,)) and bool(np.isfinite(found).all())
    if fits and feature.element == "uint8":
        fits = bool(((found >= 0) & (found <= 255) & (found == np.floor(found))).all())
    if not fits:
        raise ValueError("not of this shape or range")
    return found.reshape(-1).astype(np.uint8 if feature.element == "uint8" else np.float32)


def _tensors(table: pa.Table, column: TensorColumn) -> np.ndarray:
    """(N, *shape) float32. Each value is moved once, from Arrow's memory to where it stays."""
    size, row = math.prod(column.shape), 0
    found = np.empty((table.num_rows, size), np.float32)
    if column.name not in table.column_names:
        found[:] = 0.0
        return found.reshape(-1, *column.shape)
    for chunk in table.column(column.name).chunks:
        if len(chunk):
            held = chunk.values
            values = np.frombuffer(held.buffers()[1], np.uint8 if column.element == "uint8" else np.float32)
            start = held.offset + chunk.offset * size
            values = values[start : start + len(chunk) * size].reshape(-1, size)
            part = found[row : row + len(chunk)]
            if column.element == "uint8":
                np.divide(values, np.float32(255.0), out=part)
            else:
                part[:] = values
            if chunk.null_count:
                part[np.asarray(chunk.is_null())] = 0.0
            row += len(chunk)
    return found.reshape(-1, *column.shape)


def _tokens(table: pa.Table, column: TextColumn) -> np.ndarray:
    """(N, max_tokens) int64."""
    if column.name not in table.column_names:
        return np.zeros((table.num_rows, column.max_tokens), np.int64)
    return tokens(table.column(column.name), column.buckets, column.max_tokens)


def _numbers(table: pa.Table, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Values (N,) float64 and where they are null or not finite (N,) bool."""
    if name not in table.column_names:
        return np.zeros(table.num_rows), np.ones(table.num_rows, bool)
    values = np.asarray(pc.fill_null(table.column(name), np.nan), dtype=np.float64)
    null = ~np.isfinite(values)
    return np.where(null, 0.0, values), null


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


def _natural(value: str | float) -> tuple[int, float, str]:
    """Numbers by size, then text."""
    try:
        return 0, float(value), str(value)
    except ValueError:
        return 1, 0.0, str(value)
