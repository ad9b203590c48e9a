"""Declared slices: which there are, what they are called, and what the card says of one that is short of rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cltrain.errors import ConfigError
from cltrain.evaluate.rules import Rule
from cltrain.evaluate.slices import declared

TABLE = pa.table(
    {
        "shop": ["a"] * 60 + ["it's"] * 30 + [None] * 10,
        "x": pa.array([float(i) if i else None for i in range(100)]),
        "n": [i % 3 for i in range(100)],
        "v": [[1.0, 2.0]] * 100,
    }
)


def of(spec: Any) -> dict[str, int]:
    parts = declared(spec).parts(TABLE)
    for part in parts:
        assert (Rule(part.where).mask(TABLE) == part.mask).all()
    return {part.name: int(part.mask.sum()) for part in parts}


def test_by_value() -> None:
    assert of({"column": "shop", "min_rows": 10}) == {"shop == 'a'": 60, 'shop == "it\'s"': 30, "shop is None": 10}
    assert of({"column": "shop", "min_rows": 20, "top": 1}) == {"shop == 'a'": 60}
    assert of({"column": "shop", "values": ["a", "z"]}) == {"shop == 'a'": 60, "shop == 'z'": 0}
    assert of({"column": "n", "min_rows": 34}) == {"n == 0": 34}


def test_by_bins() -> None:
    bins = of({"column": "x", "bins": 4, "min_rows": 1})
    assert list(bins) == ["x < 25.5", "25.5 <= x < 50", "50 <= x < 74.5", "x >= 74.5"]
    assert sum(bins.values()) == 99, "the row without a value is in none"
    assert of({"column": "x", "edges": [10, 20], "min_rows": 5}) == {"x < 10": 9, "10 <= x < 20": 10, "x >= 20": 80}


def test_by_rule() -> None:
    assert of("shop == 'a' and x > 50") == {"shop == 'a' and x > 50": 9}
    assert of({"where": "x > 50", "name": "large"}) == {"large": 49}


def test_one_that_is_short_of_rows_is_named() -> None:
    (part,) = declared({"where": "x > 50", "name": "large", "min_rows": 50}).parts(TABLE)
    said = part.shortage()
    assert part.is_short
    assert (said.name, said.passed) == ("slice large has 49 rows, fewer than its min_rows=50", True)
    (required,) = declared({"where": "x > 50", "min_rows": 50, "required": True}).parts(TABLE)
    assert not required.shortage().passed
    enough = declared({"column": "shop", "values": ["a"], "min_rows": 60, "required": True}).parts(TABLE)
    assert not enough[0].is_short


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({}, "either where or column"),
        ({"where": "x > 1", "column": "x"}, "either where or column"),
        ({"where": "x >"}, "cannot be read"),
        ({"column": "x", "bins": 1}, "2 or more"),
        ({"column": "x", "bins": 3, "values": [1]}, "not both"),
        ({"column": "x", "edges": [2, 1]}, "must ascend"),
        ({"colum": "x"}, "did you mean column"),
        ({"column": "x", "top": "many"}, "not of its type"),
        ({"column": "x", "min_rows": 0}, "1 or more"),
        ({"column": "x", "name": "y"}, "name goes with where"),
        ({"where": "x > 1", "bins": 2}, "goes with column"),
        (3, "a rule or a mapping"),
    ],
)
def test_what_is_refused(spec: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        declared(spec)


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"column": "shopp"}, "did you mean shop"),
        ({"column": "v"}, "no values"),
        ({"column": "shop", "bins": 2}, "number"),
    ],
)
def test_what_does_not_fit_the_table(spec: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        declared(spec).parts(TABLE)


def test_bins_of_a_constant_are_none() -> None:
    assert declared({"column": "x", "bins": 3}).parts(pa.table({"x": np.ones(9)})) == []
