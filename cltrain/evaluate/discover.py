"""Slices that nobody declared: one or two conditions under which a loss is highest against the rest.

Half of the rows is searched, in all pairs of columns at once; the other half, which the search has not seen, confirms
(Holm 1979). Conditions are values of a column and runs of neighbouring bins of a number.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from statistics import NormalDist

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cltrain.evaluate.rules import quoted
from cltrain.evaluate.sample import plain
from cltrain.evaluate.slices import between, equals, finite, quantile_edges

BINS = 10  # of a number
MOST_VALUES = 50  # of a category: the most frequent ones
PER_PAIR = 3  # candidates of each pair of columns
POOL = 120  # candidates that are looked at once more
GAIN = 1.1  # by so much two conditions must be clearer than either alone
DOUBT = 4.0  # standard errors that are taken off a difference before slices are put in order: thousands are looked at
CLEAR = 2.5  # standard errors: below this a candidate is not worth confirming
_NORMAL = NormalDist()
Conditions = tuple[tuple[int, int], ...]  # one or two, as number of the axis and of its condition


@dataclass(frozen=True)
class Axis:
    """A column as conditions. codes (N,): the level of each row, below K, or K where it has none that is worth a
    condition; conditions (C, K + 1): which levels each has; rules: (C,) as one writes them."""

    codes: np.ndarray
    conditions: np.ndarray
    rules: tuple[str, ...]


@dataclass(frozen=True)
class Found:
    """A rule and its rows: `mask` (N,) of all rows, of which those in `confirmed` were not searched. z: by how many
    standard errors its mean is above that of the rest, there."""

    where: str
    mask: np.ndarray
    confirmed: np.ndarray
    z: float


def axes(table: pa.Table, skip: frozenset[str], min_rows: int) -> list[Axis]:
    """The columns that have conditions: numbers, categories and booleans; not those that `skip` names, nor those whose
    name starts with `_`."""
    found = []
    for name in table.column_names:
        if name.startswith("_") or name in skip:
            continue
        values = plain(table.column(name))
        numbers = finite(values)
        axis = _categories(name, values, min_rows) if numbers is None else _numbers(name, numbers)
        if axis is not None and len(axis.rules) > 1:
            found.append(axis)
    return found


def discover(
    columns: list[Axis], values: np.ndarray, generator: np.random.Generator, count: int, min_rows: int, level: float
) -> list[Found]:
    """At most `count` slices in which the mean of `values` (N,) is higher than in the other rows, the worst first;
    each of at least `min_rows` rows on both halves, and chosen with the rows of the ones before it left out. That any
    of them is there by chance has a probability of `level` at most."""
    if not columns or len(values) < 4 * min_rows:
        return []
    values = values - values.mean()
    searched = generator.random(len(values)) < 0.5
    candidates = _candidates(columns, values, searched, min_rows)
    left = ~searched
    tried = []
    for conditions in _chosen(columns, candidates, values, searched, count, min_rows):
        mask = _mask(columns, conditions, slice(None))
        sides = (values[mask & left], values[left & ~mask])
        inside, outside = (np.array([len(v), v.sum(), np.square(v).sum()]) for v in sides)
        rule = " and ".join(columns[i].rules[c] for i, c in conditions)
        tried.append(Found(rule, mask, ~searched, float(_welch(inside, outside, min_rows)[0])))
        left &= ~mask
    kept = _holm([1 - _NORMAL.cdf(found.z) for found in tried], level)
    return [found for found, ok in zip(tried, kept, strict=True) if ok]


def _numbers(name: str, numbers: np.ndarray) -> Axis | None:
    distinct = np.unique(numbers[~np.isnan(numbers)])
    edges = distinct[1:] if len(distinct) <= BINS else quantile_edges(numbers, BINS)
    if not len(edges):
        return None
    codes = np.searchsorted(edges, numbers, side="right")
    bins = len(edges) + 1
    codes[np.isnan(numbers)] = bins
    bounds: list[float | None] = [None, *edges.tolist(), None]
    runs = [(a, b) for a in range(bins) for b in range(a + 1, bins + 1) if b - a < bins]
    conditions = np.zeros((len(runs) + 1, bins + 2))
    rules = []
    for i, (a, b) in enumerate(runs):
        conditions[i, a:b] = 1
        alone = len(distinct) <= BINS and b == a + 1
        rules.append(equals(name, float(distinct[a])) if alone else between(name, bounds[a], bounds[b]))
    if np.isnan(numbers).any():
        conditions[-1, bins] = 1
        return Axis(codes, conditions, (*rules, f"{quoted(name)} is None"))
    return Axis(codes, conditions[:-1], tuple(rules))


def _categories(name: str, values: pa.ChunkedArray, min_rows: int) -> Axis | None:
    if not (
        pa.types.is_string(values.type) or pa.types.is_large_string(values.type) or pa.types.is_boolean(values.type)
    ):
        return None
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    encoded = pc.dictionary_encode(values, null_encoding="encode")
    if isinstance(encoded, pa.ChunkedArray):
        encoded = encoded.combine_chunks()
    numbers, names = np.asarray(encoded.indices, np.int64), encoded.dictionary.to_pylist()
    counts = np.bincount(numbers, minlength=len(names))
    levels = np.argsort(-counts, kind="stable")[:MOST_VALUES]
    levels = levels[counts[levels] >= 2 * min_rows]
    code_of = np.full(len(names), len(levels))
    code_of[levels] = np.arange(len(levels))
    conditions = np.concatenate([np.eye(len(levels)), np.zeros((len(levels), 1))], axis=1)
    return Axis(code_of[numbers], conditions, tuple(equals(name, names[level]) for level in levels))


def _candidates(columns: list[Axis], values: np.ndarray, searched: np.ndarray, min_rows: int) -> list[Conditions]:
    """Conditions, as (axis, number) each, whose rows have a mean clearly above the rest: the best few of each column,
    and of each pair of columns."""
    codes = [axis.codes[searched] for axis in columns]
    part = values[searched] - values[searched].mean()
    n, spread = len(part), float(part.std())
    if not spread:
        return []

    def clearness(rows: np.ndarray, sums: np.ndarray) -> np.ndarray:
        """Standard errors by which a part of the rows, whose `sums` are of centred values, is above the rest."""
        fits = (rows >= min_rows) & (n - rows >= min_rows)
        share = np.where(fits, rows * (n - rows) / n, 1.0)
        return np.where(fits, sums * (n / np.where(fits, n - rows, 1.0)) / np.where(fits, rows, 1.0), -np.inf) * (
            share**0.5 / spread
        )

    found: list[tuple[float, Conditions]] = []
    alone = []
    for i, axis in enumerate(columns):
        size = axis.conditions.shape[1]
        rows, sums = (axis.conditions @ np.bincount(codes[i], w, size) for w in (None, part))
        alone.append(clearness(rows, sums))
        found += [(alone[i][c], ((i, int(c)),)) for c in _best(alone[i])]
    for i, j in combinations(range(len(columns)), 2):
        a, b = columns[i].conditions, columns[j].conditions
        both = codes[i] * b.shape[1] + codes[j]
        rows, sums = (
            a @ np.bincount(both, w, a.shape[1] * b.shape[1]).reshape(a.shape[1], -1) @ b.T for w in (None, part)
        )
        z = clearness(rows, sums)
        z[z < GAIN * np.maximum(alone[i][:, None], alone[j][None, :])] = -np.inf
        found += [(z.flat[c], ((i, int(c) // z.shape[1]), (j, int(c) % z.shape[1]))) for c in _best(z.ravel())]
    found.sort(key=lambda item: -item[0])
    return [conditions for z, conditions in found[:POOL] if z >= CLEAR]


def _best(z: np.ndarray) -> np.ndarray:
    count = min(PER_PAIR, len(z))
    return np.argpartition(-z, count - 1)[:count]


def _mask(columns: list[Axis], conditions: Conditions, rows: np.ndarray | slice) -> np.ndarray:
    masks = [columns[i].conditions[c].astype(bool)[columns[i].codes[rows]] for i, c in conditions]
    return masks[0] if len(masks) == 1 else masks[0] & masks[1]


def _chosen(
    columns: list[Axis],
    candidates: list[Conditions],
    values: np.ndarray,
    searched: np.ndarray,
    count: int,
    min_rows: int,
) -> list[Conditions]:
    """The worst one, then the worst one in the rows that are left, and so on: by the difference that is left when
    `DOUBT` is taken off, as a slight one of half of the rows is clearer than a bad one of a few, and matters less."""
    chosen: list[Conditions] = []
    if not candidates:
        return chosen
    rows = np.flatnonzero(searched)
    inside = np.stack([_mask(columns, conditions, rows) for conditions in candidates])
    moments = np.stack([np.ones(len(rows)), values[rows], np.square(values[rows])])
    while len(chosen) < count:
        ours = np.stack([moments @ mask for mask in inside])
        z, error = _welch(ours, moments.sum(axis=1) - ours, min_rows)
        best = int(np.argmax(np.where(z >= CLEAR, (z - DOUBT) * error, -np.inf)))
        if z[best] < CLEAR:
            break
        chosen.append(candidates[best])
        moments[:, inside[best]] = 0.0
    return chosen


def _welch(inside: np.ndarray, outside: np.ndarray, min_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Standard errors by which the mean inside is above the mean outside, minus infinity where there are too few rows
    on either side; and how large one is. Given (..., 3) rows, sums and sums of squares."""
    least = max(min_rows, 2)
    fits = np.minimum(inside[..., 0], outside[..., 0]) >= least
    means, errors = [], []
    for part in (inside, outside):
        rows = np.maximum(part[..., 0], least)
        means.append(part[..., 1] / rows)
        errors.append(np.maximum(part[..., 2] / rows - np.square(means[-1]), 0.0) / rows)
    error = np.sqrt(errors[0] + errors[1])
    known = fits & (error > 0)
    error = np.where(known, error, 1.0)
    return np.where(known, (means[0] - means[1]) / error, -np.inf), error


def _holm(p: list[float], level: float) -> list[bool]:
    """Which hypotheses are rejected (Holm 1979)."""
    kept = [False] * len(p)
    for rank, i in enumerate(np.argsort(p)):
        if p[i] > level / (len(p) - rank):
            break
        kept[i] = True
    return kept
