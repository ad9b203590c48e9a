"""Parts of a window that are weighed by themselves: by values of a column, by bins of a number, by a rule."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cltrain.errors import ConfigError
from cltrain.evaluate.rules import Rule, quoted
from cltrain.evaluate.sample import plain
from cltrain.records import Finding


@dataclass(frozen=True)
class Part:
    """A slice that can be weighed: its name, its rule, which rows (N,) it has, and how many it should have; required:
    the card is no proof while it has fewer."""

    name: str
    where: str
    mask: np.ndarray
    min_rows: int
    required: bool = False

    @property
    def is_short(self) -> bool:
        return int(self.mask.sum()) < self.min_rows

    def shortage(self) -> Finding:
        """What the card says of a slice with too few rows."""
        rows = int(self.mask.sum())
        return Finding(
            name=f"slice {self.name} has {rows} rows, fewer than its min_rows={self.min_rows}",
            kind="composition",
            rows=self.min_rows,
            failed=self.min_rows - rows,
            bound=0.0 if self.required else 1.0,
            passed=not self.required,
        )


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Exactly one of: `where`, a rule such as `origin == 'JFK' and distance > 1000`; or `column`, and then a slice for
    each of its values, or of its `values`, or of `bins` bins with as many rows each, or between `edges`.

    name: of a rule; else it is the rule itself. top: of the values of a column, at most so many, the most frequent
    ones. min_rows: a value or bin with fewer is left out; of a rule, or a value that is named in `values`, the card has
    a finding of kind `composition` that names it. required: then that is a test which has failed, for a gate to
    refuse."""

    where: str | None = None
    column: str | None = None
    values: tuple[Any, ...] = ()
    bins: int | None = None
    edges: tuple[float, ...] = ()
    name: str | None = None
    top: int = 20
    min_rows: int = 100
    required: bool = False

    def __post_init__(self) -> None:
        if (self.where is None) == (self.column is None):
            raise ConfigError("evaluate.slices: a slice must have either where or column, such as {column: carrier}")
        for name in ("values", "edges"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        ways = [name for name in ("values", "bins", "edges") if getattr(self, name) not in ((), None)]
        if self.where is not None:
            Rule(self.where)
            if ways:
                raise ConfigError(f"evaluate.slices: {ways[0]} goes with column, not with where={self.where!r}")
        elif self.name is not None:
            raise ConfigError(f"evaluate.slices: name goes with where; the slices of {self.column} are named by it")
        if len(ways) > 1:
            raise ConfigError(f"evaluate.slices: {self.column} must have one of {' and '.join(ways)}, not both")
        if self.bins is not None and self.bins < 2:
            raise ConfigError(f"evaluate.slices: bins of {self.column} must be 2 or more, not {self.bins}")
        if list(self.edges) != sorted(set(self.edges)):
            raise ConfigError(f"evaluate.slices: edges of {self.column} must ascend, not {list(self.edges)}")
        for name, least in (("top", 1), ("min_rows", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"evaluate.slices: {name} must be {least} or more, not {getattr(self, name)}")

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,) if self.column is not None else Rule(str(self.where)).columns

    def parts(self, table: pa.Table) -> list[Part]:
        """Its slices of the table. Raises `ConfigError` where a column is missing or not of its kind."""
        if self.where is not None:
            where = self.where
            mask = Rule(where).mask(table)
            return [Part(self.name or where, where, mask, self.min_rows, self.required)]
        assert self.column is not None
        if self.column not in table.column_names:
            Rule(f"{quoted(self.column)} is None").expression(table.schema)
        values = plain(table.column(self.column))
        if self.bins or self.edges:
            found = self._bins(values)
        else:
            found = [equals(self.column, value) for value in self.values or self._frequent(values)]
        parts = []
        for where in found:
            mask = Rule(where).mask(table)
            if self.values or mask.sum() >= self.min_rows:
                parts.append(Part(where, where, mask, self.min_rows, self.required and bool(self.values)))
        return parts

    def _frequent(self, values: pa.ChunkedArray) -> list[Any]:
        if pa.types.is_nested(values.type) or pa.types.is_temporal(values.type):
            raise ConfigError(f"evaluate.slices: {self.column} has no values to slice by: it is {values.type}")
        counted = pc.value_counts(values.combine_chunks())
        counts = np.asarray(counted.field("counts"))
        order = np.argsort(-counts, kind="stable")[: self.top]
        return counted.field("values").take(pa.array(order)).to_pylist()

    def _bins(self, values: pa.ChunkedArray) -> list[str]:
        assert self.column is not None
        numbers = finite(values)
        if numbers is None:
            raise ConfigError(f"evaluate.slices: {self.column} must be a number to have bins, not {values.type}")
        edges = np.asarray(self.edges, float) if self.edges else quantile_edges(numbers, self.bins or 2)
        bounds: list[float | None] = [None, *edges.tolist(), None]
        return [between(self.column, a, b) for a, b in pairwise(bounds)] if len(edges) else []


def declared(spec: Any) -> Slice:
    """A slice as one writes it in settings: a rule, or a mapping of the fields of `Slice`."""
    if isinstance(spec, Slice):
        return spec
    if isinstance(spec, str):
        return Slice(where=spec)
    if not isinstance(spec, Mapping):
        raise ConfigError(f"evaluate.slices: {spec!r} must be a rule or a mapping such as {{column: carrier}}")
    there = {field.name: field for field in dataclasses.fields(Slice)}
    for name, value in spec.items():
        if name not in there:
            close = difflib.get_close_matches(str(name), there, n=1)
            hint = f"did you mean {close[0]}?" if close else f"it has: {', '.join(there)}"
            raise ConfigError(f"evaluate.slices: a slice has no setting {name}; {hint}")
        if not _fits(name, value):
            raise ConfigError(f"evaluate.slices: {name}={value!r} is not of its type, {there[name].type}")
    return Slice(**spec)


def _fits(name: str, value: Any) -> bool:
    if name in ("values", "edges"):
        numbers = name == "edges"
        return isinstance(value, Sequence) and not isinstance(value, str) and (not numbers or all(map(_number, value)))
    if name in ("where", "column", "name"):
        return value is None or isinstance(value, str)
    if name == "required":
        return isinstance(value, bool)
    return (value is None and name == "bins") or (isinstance(value, int) and not isinstance(value, bool))


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def quantile_edges(numbers: np.ndarray, bins: int) -> np.ndarray:
    """At most bins − 1 numbers, ascending, that part the known ones evenly, rounded to four digits so that one can read
    them."""
    known = numbers[np.isfinite(numbers)]
    if not len(known):
        return np.zeros(0)
    edges = np.quantile(known, np.arange(1, bins) / bins)
    rounded = np.unique([float(f"{edge:.4g}") for edge in edges])
    return rounded[(rounded > known.min()) & (rounded <= known.max())]


def finite(values: pa.ChunkedArray) -> np.ndarray | None:
    """(N,) float64, NaN where it is not known; None if they are not numbers."""
    if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type) or pa.types.is_decimal(values.type)):
        return None
    return np.asarray(values.cast(pa.float64(), safe=False).fill_null(float("nan")), np.float64)


def between(column: str, low: float | None, high: float | None) -> str:
    """The rule low ≤ column < high, either of which may be open.

    >>> between("distance", 500.0, 1000.0), between("distance", None, 500.0)
    ('500 <= distance < 1000', 'distance < 500')
    """
    name = quoted(column)
    if low is None:
        return f"{name} < {_said(high)}"
    return f"{name} >= {_said(low)}" if high is None else f"{_said(low)} <= {name} < {_said(high)}"


def _said(number: float | None) -> str:
    assert number is not None
    return str(int(number)) if float(number).is_integer() and abs(number) < 1e15 else repr(float(number))


def equals(column: str, value: Any) -> str:
    name = quoted(column)
    if value is None:
        return f"{name} is None"
    return f"{name} == {_said(value) if _number(value) else repr(value)}"
