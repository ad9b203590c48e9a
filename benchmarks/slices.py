"""The search for slices: how often it finds one that was planted, how long it takes, and how often it errs.

300,000 rows of 20 columns, half of them categories of 3 to 29 values and half numbers, and a loss that already differs
by some of them. In one slice of two conditions, of about 2 % of the rows, it is higher by `--lift`. Found: it is among
the first three, where of the rows of two slices together at least 70 % are in both. Null: the loss is independent of
all columns, and the ratio is how often something is found all the same.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import pyarrow as pa

from cltrain.evaluate.discover import axes, discover

TOP = 3
LEVEL = 0.05


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rows", type=int, default=300_000)
    parser.add_argument("--columns", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=50)
    parser.add_argument("--lift", type=float, default=0.5, help="of the loss in the planted slice, as a share of it")


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    for kind in ("two categories", "category and number", "null"):
        hits, seconds = 0, []
        for seed in range(options.seeds):
            columns, generator = made(options.rows, options.columns, seed)
            loss = generator.exponential(size=options.rows)
            planted = None
            if kind != "null":
                planted = plant(columns, generator, kind)
                loss *= 1 + 0.3 * (columns["c0"] == "v1") + 0.02 * np.abs(columns["x0"])
                loss *= np.where(planted, 1 + options.lift, 1)
            table, least = pa.table(columns), max(50, options.rows // 200)
            started = time.perf_counter()
            found = discover(axes(table, frozenset(), least), loss, np.random.default_rng(seed), TOP, least, LEVEL)
            seconds.append(time.perf_counter() - started)
            hits += bool(found) if planted is None else any(overlap(f.mask, planted) >= 0.7 for f in found)
        rows.append(
            {
                "name": kind,
                "found" if kind != "null" else "false": hits,
                "seeds": options.seeds,
                "ratio": hits / options.seeds,
                "median_s": float(np.median(seconds)),
                "max_s": max(seconds),
            }
        )
    return rows


def made(rows: int, columns: int, seed: int) -> tuple[dict[str, np.ndarray], np.random.Generator]:
    generator = np.random.default_rng(seed)
    found: dict[str, np.ndarray] = {}
    for i in range(columns // 2):
        values = int(generator.integers(3, 30))
        share = generator.dirichlet(np.full(values, 2.0))
        found[f"c{i}"] = np.array([f"v{v}" for v in range(values)])[generator.choice(values, rows, p=share)]
    for i in range(columns - columns // 2):
        found[f"x{i}"] = generator.normal(size=rows) * 10
    return found, generator


def plant(columns: dict[str, np.ndarray], generator: np.random.Generator, kind: str) -> np.ndarray:
    """Rows of a random slice of two conditions that has 1.7 to 2.3 % of them."""
    categories, numbers = ([name for name in columns if name[0] == letter] for letter in "cx")
    while True:
        first, second = generator.choice(categories, 2, replace=False)
        one = columns[first] == f"v{generator.integers(30)}"
        if not 0.017 < one.mean() < 0.5:
            continue
        if kind == "two categories":
            other = columns[second] == f"v{generator.integers(30)}"
        else:
            # Neither nearly all rows nor nearly none: else it is one condition.
            name = generator.choice(numbers)
            other = columns[name] > np.quantile(columns[name], generator.uniform(0.3, 0.9))
        if 0.017 < (one & other).mean() < 0.023:
            return one & other


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Jaccard's index."""
    return float((a & b).sum() / (a | b).sum())
