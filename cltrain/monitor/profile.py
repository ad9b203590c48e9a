"""A window in a few numbers for each column: counts and sums, so that profiles of parts add up to that of the whole."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cltrain.records import EVENT_ID, EVENT_TIME, LABEL, LABEL_TIME

NOT_PROFILED = (EVENT_ID, EVENT_TIME, LABEL_TIME, LABEL, "_hour", "_weekday")
MAX_CATEGORIES = 1_000


@dataclass(frozen=True, kw_only=True)
class NumericProfile:
    """rows, nulls (not finite ones too), sum, sum of squares and extremes of the finite values."""

    rows: int
    nulls: int
    total: float = 0.0
    squares: float = 0.0
    low: float | None = None
    high: float | None = None

    def __add__(self, other: NumericProfile) -> NumericProfile:
        lows = [v for v in (self.low, other.low) if v is not None]
        highs = [v for v in (self.high, other.high) if v is not None]
        return NumericProfile(
            rows=self.rows + other.rows,
            nulls=self.nulls + other.nulls,
            total=self.total + other.total,
            squares=self.squares + other.squares,
            low=min(lows, default=None),
            high=max(highs, default=None),
        )


@dataclass(frozen=True, kw_only=True)
class CategoricalProfile:
    """rows, nulls, and how often each category came. Of more than `MAX_CATEGORIES` only the most frequent are counted,
    and the sum of two profiles is exact only up to those."""

    rows: int
    nulls: int
    counts: dict[str, int]

    def __add__(self, other: CategoricalProfile) -> CategoricalProfile:
        counts = dict(self.counts)
        for value, count in other.counts.items():
            counts[value] = counts.get(value, 0) + count
        if len(counts) > MAX_CATEGORIES:
            counts = dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:MAX_CATEGORIES])
        return CategoricalProfile(rows=self.rows + other.rows, nulls=self.nulls + other.nulls, counts=counts)


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Profiles of all feature columns, by name."""

    rows: int
    numeric: dict[str, NumericProfile]
    categorical: dict[str, CategoricalProfile]

    def __add__(self, other: Profile) -> Profile:
        def merge(a: dict, b: dict) -> dict:
            return {
                name: a[name] + b[name] if name in a and name in b else a.get(name, b.get(name)) for name in {**a, **b}
            }

        return Profile(
            rows=self.rows + other.rows,
            numeric=merge(self.numeric, other.numeric),
            categorical=merge(self.categorical, other.categorical),
        )

    def null_share(self, name: str) -> float:
        column = self.numeric.get(name) or self.categorical.get(name)
        return column.nulls / column.rows if column and column.rows else 0.0


def profile_of(table: pa.Table) -> Profile:
    """Profile of an event table's features, but for those made from the event time.

    >>> profile_of(pa.table({"x": [1.0, None, 3.0]})).numeric["x"].total
    4.0
    """
    numeric, categorical = {}, {}
    for name in table.column_names:
        if name in NOT_PROFILED:
            continue
        column = table.column(name)
        if pa.types.is_floating(column.type):
            values = np.asarray(pc.fill_null(column, np.nan), dtype=np.float64)
            finite = values[np.isfinite(values)]
            with np.errstate(over="ignore"):
                squares = float(np.square(finite).sum())
            numeric[name] = NumericProfile(
                rows=len(values),
                nulls=len(values) - len(finite),
                total=float(finite.sum()),
                squares=squares,
                low=float(finite.min()) if len(finite) else None,
                high=float(finite.max()) if len(finite) else None,
            )
        elif not pa.types.is_string(column.type):  # of tensors and texts only the nulls are counted
            categorical[name] = CategoricalProfile(rows=len(column), nulls=column.null_count, counts={})
        else:
            counts = pc.value_counts(column.drop_null())
            found = pa.table({"value": counts.field(0), "count": counts.field(1)})
            order = pc.sort_indices(found, [("count", "descending"), ("value", "ascending")])[:MAX_CATEGORIES]
            most = found.take(order)
            pairs = zip(most.column("value").to_pylist(), most.column("count").to_pylist(), strict=True)
            categorical[name] = CategoricalProfile(rows=len(column), nulls=column.null_count, counts=dict(pairs))
    return Profile(rows=table.num_rows, numeric=numeric, categorical=categorical)
