"""What the contract looks at in a window: counts and sums of each column, which add up over windows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cltrain.data.schema import RESERVED


@dataclass(frozen=True, kw_only=True)
class Magnitude:
    """How large the numbers of a column are: how many are not 0, the sum of the logs of their magnitudes, and the
    largest; `above`: how many in each power of 2, so that one can ask for those above a bound."""

    count: int = 0
    logs: float = 0.0
    largest: float = 0.0
    above: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, values: np.ndarray) -> Magnitude:
        """values: (N,) finite."""
        sizes = np.abs(values[values != 0])
        if not len(sizes):
            return cls()
        powers, counts = np.unique(np.frexp(sizes)[1], return_counts=True)
        return cls(
            count=len(sizes),
            logs=float(np.log(sizes).sum()),
            largest=float(sizes.max()),
            above=dict(zip(powers.tolist(), counts.tolist(), strict=True)),
        )

    def __add__(self, other: Magnitude) -> Magnitude:
        return Magnitude(
            count=self.count + other.count,
            logs=self.logs + other.logs,
            largest=max(self.largest, other.largest),
            above=Counter(self.above) + Counter(other.above),
        )

    @property
    def typical(self) -> float:
        """Geometric mean; of at least one number."""
        return float(np.exp(self.logs / self.count))

    def number_above(self, bound: float) -> int:
        """How many are larger than the power of 2 next above `bound`."""
        return sum(count for power, count in self.above.items() if power > np.frexp(bound)[1])


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A window, or the sum of some. labelled: rows with a label; nulls, numbers (those of a numeric column that are
    not null), outside (of the range that the contract gives), magnitudes and categories by column; classes: how often
    each label came, and values: how large labels are, of which one is empty."""

    seconds: float = 0.0
    rows: int = 0
    labelled: int = 0
    nulls: Mapping[str, int] = field(default_factory=Counter)
    numbers: Mapping[str, int] = field(default_factory=Counter)
    outside: Mapping[str, int] = field(default_factory=Counter)
    magnitudes: Mapping[str, Magnitude] = field(default_factory=dict)
    categories: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    classes: Mapping[str, int] = field(default_factory=Counter)
    values: Magnitude = field(default_factory=Magnitude)

    def __add__(self, other: Shape) -> Shape:
        names = {*self.magnitudes, *other.magnitudes}
        columns = {*self.categories, *other.categories}
        return Shape(
            seconds=self.seconds + other.seconds,
            rows=self.rows + other.rows,
            labelled=self.labelled + other.labelled,
            nulls=Counter(self.nulls) + Counter(other.nulls),
            numbers=Counter(self.numbers) + Counter(other.numbers),
            outside=Counter(self.outside) + Counter(other.outside),
            magnitudes={
                n: self.magnitudes.get(n, Magnitude()) + other.magnitudes.get(n, Magnitude()) for n in sorted(names)
            },
            categories={
                n: Counter(self.categories.get(n, {})) + Counter(other.categories.get(n, {})) for n in sorted(columns)
            },
            classes=Counter(self.classes) + Counter(other.classes),
            values=self.values + other.values,
        )

    def null_share(self, name: str) -> float:
        return self.nulls.get(name, 0) / self.rows if self.rows else 0.0


def shape_of(
    events: Iterable[pa.Table],
    labels: pa.ChunkedArray | None = None,
    task: str = "binary",
    labelled: int = 0,
    seconds: float = 0.0,
    ranges: Mapping[str, Sequence[float]] | None = None,
) -> Shape:
    """`events`: all of a window, in pieces, of which `labelled` have a label; labels: those that became known in it.

    >>> shape_of([pa.table({"x": [1.0, None, -4.0]})]).magnitudes["x"].typical
    2.0
    """
    shape = Shape(seconds=seconds, labelled=labelled)
    for table in events:
        shape += _piece(table, ranges or {})
    known = labels.drop_null() if labels is not None else pa.chunked_array([], pa.float64())
    if task == "regression":
        return shape + Shape(values=Magnitude.of(np.asarray(known, np.float64)))
    return shape + Shape(classes=_counts(known))


def _piece(table: pa.Table, ranges: Mapping[str, Sequence[float]]) -> Shape:
    nulls, numbers, outside = Counter[str](), Counter[str](), Counter[str]()
    magnitudes, categories = {}, {}
    for name in table.column_names:
        if name in RESERVED:
            continue
        column = table.column(name)
        nulls[name] = column.null_count
        if pa.types.is_floating(column.type):
            values = np.asarray(column.drop_null(), np.float64)
            values = values[np.isfinite(values)]
            numbers[name] = len(values)
            magnitudes[name] = Magnitude.of(values)
            if name in ranges:
                low, high = ranges[name]
                outside[name] = int(((values < low) | (values > high)).sum())
        elif pa.types.is_string(column.type):
            categories[name] = _counts(column.drop_null())
    return Shape(
        rows=table.num_rows, nulls=nulls, numbers=numbers, outside=outside, magnitudes=magnitudes, categories=categories
    )


def _counts(values: pa.ChunkedArray) -> Counter[str]:
    found = pc.value_counts(values)
    names = [f"{v:g}" if isinstance(v, float) else str(v) for v in found.field(0).to_pylist()]
    return Counter(dict(zip(names, found.field(1).to_pylist(), strict=True)))
