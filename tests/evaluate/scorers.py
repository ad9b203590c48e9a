"""Versions whose answers one knows, and tables for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from cltrain.evaluate.sample import Sample
from cltrain.records import EVENT_ID, LABEL


@dataclass(frozen=True)
class Formula:
    """Answers `f(columns)`: the log-odds of a binary task, the value of a regression, or the class of a multiclass
    task, in which it is sure to 0.9. Numbers that are null count as 0."""

    f: Callable[[dict[str, np.ndarray]], np.ndarray]
    task: str = "binary"
    size_bytes: int = 0

    def score(self, table: pa.Table) -> Sample:
        columns = {}
        for name in table.column_names:
            values = table.column(name).to_numpy(zero_copy_only=False)
            columns[name] = np.nan_to_num(values) if values.dtype.kind == "f" else values
        y, out = columns[LABEL].astype(float), np.asarray(self.f(columns), float)
        if self.task == "binary":
            p = 1 / (1 + np.exp(-out))
            return Sample("binary", p, y, -np.log(np.clip(np.where(y > 0.5, p, 1 - p), 1e-12, 1)))
        if self.task == "regression":
            return Sample("regression", out, y, np.square(out - y))
        return Sample("multiclass", out, y, -np.log(np.where(out == y, 0.9, 0.05)))


def table(rows: int = 1_000, seed: int = 0, task: str = "binary", noise: float = 0.0) -> pa.Table:
    """x and z are normal, shop is a, b or c; the log-odds are 2x - z, and a regression's label is that and a little.
    Of the labels a share of `noise` is flipped, or that of another row."""
    generator = np.random.default_rng(seed)
    x, z = generator.normal(size=(2, rows))
    odds = 2 * x - z
    if task == "binary":
        y = (generator.random(rows) < 1 / (1 + np.exp(-odds))).astype(float)
        y = np.where(generator.random(rows) < noise, 1 - y, y)
    elif task == "regression":
        y = odds + 0.5 * generator.normal(size=rows)
        y = np.where(generator.random(rows) < noise, generator.permutation(y), y)
    else:
        y = np.digitize(odds, [-1.0, 1.0]).astype(float)
        y = np.where(generator.random(rows) < 0.1 + noise, generator.integers(0, 3, rows), y)
    ids = [f"{seed}-{i}" for i in range(rows)]
    return pa.table({EVENT_ID: ids, LABEL: y, "x": x, "z": z, "shop": generator.choice(["a", "b", "c"], rows)})


TRUE = {
    "binary": Formula(lambda c: 2 * c["x"] - c["z"]),
    "regression": Formula(lambda c: 2 * c["x"] - c["z"], "regression"),
    "multiclass": Formula(lambda c: np.digitize(2 * c["x"] - c["z"], [-1.0, 1.0]), "multiclass"),
}
