"""Permutation importance (Breiman 2001; Fisher, Rudin & Dominici 2019): what a model loses without a feature."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from cltrain.evaluate.weighed import Scorer, features_of
from cltrain.records import Json

CELLS = 50_000  # rows that are scored at once


def importance(scorer: Scorer, table: pa.Table, generator: np.random.Generator) -> tuple[Json, ...]:
    """For each feature by how much the mean loss rises when its values are shuffled among the rows, with the standard
    error of that over rows: `{"feature", "rise", "error"}`, largest first. All shuffled copies are scored together.

    Of features that say the same the model may do without either: both then look unimportant.
    """
    names, rows = features_of(table), table.num_rows
    if not rows:
        return ()
    base = scorer.score(table).losses
    orders = {name: generator.permutation(rows) for name in names}
    found: list[Json] = []
    at_once = max(1, CELLS // rows)
    for start in range(0, len(names), at_once):
        some = names[start : start + at_once]
        rises = scorer.score(_shuffled(table, some, orders)).losses.reshape(len(some), rows) - base
        found += [
            {"feature": name, "rise": float(rise.mean()), "error": float(rise.std() / rows**0.5)}
            for name, rise in zip(some, rises, strict=True)
        ]
    return tuple(sorted(found, key=lambda f: (-f["rise"], f["feature"])))


def _shuffled(table: pa.Table, names: list[str], orders: dict[str, np.ndarray]) -> pa.Table:
    """A copy of the table for each of the names, in which that column is in another order."""
    same, rows = np.arange(table.num_rows), len(names)
    plain = np.tile(same, rows)
    columns = {}
    for column in table.column_names:
        index = plain
        if column in names:
            index = np.concatenate([orders[column] if name == column else same for name in names])
        columns[column] = table.column(column).take(pa.array(index))
    return pa.table(columns, schema=table.schema)
