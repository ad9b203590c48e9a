"""Answers of one version on some rows, with what a metric may want to know of the rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cltrain.errors import ConfigError, DataError


class Scored(Protocol):
    """Predictions and losses of N labelled rows; see `cltrain.train.predictor.Predictor.score`."""

    @property
    def task(self) -> str: ...

    @property
    def predictions(self) -> np.ndarray: ...

    @property
    def target(self) -> np.ndarray: ...

    @property
    def losses(self) -> np.ndarray: ...


@dataclass(frozen=True)
class Sample:
    """N rows, all (N,): predictions, target and losses as a version scored them; weights, what each row counts (of a
    row that was sampled with probability π that is 1/π), or None where all count alike; groups, the number of the
    list that a ranker's row belongs to, or None."""

    task: str
    predictions: np.ndarray
    target: np.ndarray
    losses: np.ndarray
    weights: np.ndarray | None = None
    groups: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.target)

    @classmethod
    def of(cls, parts: Sequence[Scored], weights: np.ndarray | None = None, groups: np.ndarray | None = None) -> Sample:
        """The rows of all parts, one after another; at least one part."""
        predictions, target, losses = (
            np.concatenate([getattr(part, name) for part in parts]) for name in ("predictions", "target", "losses")
        )
        return cls(parts[0].task, predictions, target, losses, weights, groups)

    def take(self, rows: np.ndarray) -> Sample:
        """Those rows: a mask (N,), or places."""
        weights, groups = (None if c is None else c[rows] for c in (self.weights, self.groups))
        return Sample(self.task, self.predictions[rows], self.target[rows], self.losses[rows], weights, groups)

    @property
    def shares(self) -> np.ndarray:
        """(N,) weights with mean 1."""
        if self.weights is None:
            return np.ones(len(self))
        return self.weights / self.weights.mean()

    @property
    def right(self) -> np.ndarray:
        """(N,) whether the answer is the label: the likeliest class, or the right side of 1/2."""
        if self.task == "binary":
            return (self.predictions >= 0.5) == (self.target >= 0.5)
        return self.predictions == self.target


def column(table: pa.Table, name: str, setting: str) -> pa.ChunkedArray:
    """Raises `ConfigError` that names the setting and the columns there are."""
    if name not in table.column_names:
        there = ", ".join(c for c in table.column_names if not c.startswith("_"))
        raise ConfigError(f"evaluate.{setting}={name}: there is no such column; the columns are {there}")
    return table.column(name)


def weights_of(table: pa.Table, name: str) -> np.ndarray:
    """(N,) inclusion weights. Raises `DataError` where one is missing, not finite or not above 0."""
    found = column(table, name, "weight")
    try:
        values = np.asarray(found.cast(pa.float64()), np.float64)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ConfigError(f"evaluate.weight={name} must be a column of numbers, not of {found.type}") from error
    if not (np.isfinite(values) & (values > 0)).all():
        raise DataError(f"column {name}, named by evaluate.weight, must be above 0 and known in every held-out row")
    return values


def groups_of(tables: Sequence[pa.Table], name: str) -> np.ndarray:
    """(N,) a number for each value of the column in the rows of all tables; rows without one are a group together."""
    found = pa.chunked_array([c for table in tables for c in plain(column(table, name, "group")).chunks])
    encoded = pc.dictionary_encode(found, null_encoding="encode").combine_chunks()
    chunks = encoded.chunks if isinstance(encoded, pa.ChunkedArray) else [encoded]
    return np.concatenate([np.asarray(c.indices, np.int64) for c in chunks]) if chunks else np.zeros(0, np.int64)


def plain(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """A dictionary column as its values."""
    return values.cast(values.type.value_type) if pa.types.is_dictionary(values.type) else values
