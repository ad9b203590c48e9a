"""The quality contract."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cltrain.data.contract import Contract
from cltrain.data.shape import Magnitude, Shape, shape_of
from cltrain.errors import ConfigError


def table(x: list[float | None], y: list[float | None] | None = None) -> pa.Table:
    labels = y if y is not None else [0.0] * len(x)
    return pa.table({"x": pa.array(x, pa.float64()), "_label": pa.array(labels, pa.float64())})


def breaches(contract: Contract, pieces: list[pa.Table], before: Shape | None, labelled: int = 0) -> tuple[str, ...]:
    return contract.breaches(contract.shape(pieces, labelled=labelled), before)


def labels(*values: Any) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(values)])


def shape(x: Any, *known: Any, task: str = "binary", seconds: float = 1.0) -> Shape:
    return shape_of([table(list(x))], labels(*known) if known else None, task, seconds=seconds)


SOUND = shape_of([table([1.0, 2.0, 3.0, None])])


def test_a_sound_window_breaks_nothing() -> None:
    assert breaches(Contract(), [table([1.0, None])], SOUND, 2) == ()
    assert breaches(Contract(ranges={"x": [0, 5]}, min_labelled_share=1.0), [table([1.0])], SOUND, 1) == ()


def test_a_window_without_events_breaks_nothing() -> None:
    assert breaches(Contract(min_labelled_share=1.0, ranges={"x": [0, 1]}), [], SOUND, 0) == ()
    assert breaches(Contract(min_labelled_share=1.0, ranges={"x": [0, 1]}), [table([])], SOUND, 0) == ()


def test_nulls_are_held_against_the_reference_over_all_pieces() -> None:
    pieces = [table([None, None, None]), table([None, 1.0])]
    assert breaches(Contract(max_null_rise=0.5), pieces, SOUND, 5) == ("x: 80% null, was 25%",)
    assert breaches(Contract(max_null_rise=0.6), pieces, SOUND, 5) == ()
    assert breaches(Contract(max_null_rise=0.0), pieces, None, 5) == (), "the first window has no reference"


def test_a_label_that_is_not_known_yet_is_no_null() -> None:
    assert breaches(Contract(max_null_rise=0.0), [table([1.0, None, 2.0, 1.0], [None] * 4)], SOUND, 0) == ()


def test_values_out_of_range_are_counted_over_all_pieces() -> None:
    contract = Contract(ranges={"x": [0, 10]}, max_out_of_range=0.25)
    assert breaches(contract, [table([1.0, 11.0]), table([2.0, 3.0])], None, 4) == ()
    assert breaches(contract, [table([-1.0, 11.0]), table([2.0, None])], None, 4) == (
        "x: 66.7% of values outside [0, 10]",
    )


def test_labels_that_do_not_come_break_the_share() -> None:
    problems = breaches(Contract(min_labelled_share=0.5), [table([1.0] * 10)], None, 4)
    assert problems == ("40% of events have a label, contract.min_labelled_share is 50%",)


def test_a_range_of_a_column_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(ConfigError, match=r"contract.ranges.z: there is no such numeric column; there are: x$"):
        Contract(ranges={"z": [0, 1]}).shape([table([1.0])])


X = np.random.default_rng(0).normal(size=400)


@pytest.mark.parametrize(("factor", "broken"), [(1.0, 0), (5.0, 0), (0.2, 0), (1_000.0, 1), (0.001, 1)])
def test_a_column_in_another_unit(factor: float, broken: int) -> None:
    found = Contract().breaches(shape(X * factor), shape(X))
    assert len(found) == broken
    assert all("x: typically" in why and "contract.max_scale is 30" in why for why in found)
    assert Contract(max_scale=None).breaches(shape(X * factor), shape(X)) == ()


def test_some_values_in_another_unit() -> None:
    some = np.where(np.arange(400) % 20 == 0, X * 1_000, X)
    assert "far above the largest before" in Contract().breaches(shape(some), shape(X))[0]
    assert Contract(max_out_of_range=0.06).breaches(shape(some), shape(X)) == ()


def test_the_label_of_a_regression_in_another_unit() -> None:
    now, was = (shape(X, *(X * factor), task="regression") for factor in (1_000, 1))
    assert [why.split(":")[0] for why in Contract().breaches(now, was)] == ["the label"]


def test_heavy_tails_are_no_fault() -> None:
    generator = np.random.default_rng(1)
    was, now = (shape(np.exp(2.5 * generator.normal(size=500))) for _ in range(2))
    assert Contract().breaches(now, was) == ()


def test_a_class_that_comes_no_more() -> None:
    was = shape(X, *[0.0, 1.0] * 100)
    assert Contract().breaches(shape(X, *[0.0] * 200), was) == (
        "label 1: 0 of 200, about 100 were expected; contract.min_class_share is 0.1",
    )
    assert Contract(min_class_share=0.0).breaches(shape(X, *[0.0] * 200), was) == ()
    assert Contract().breaches(shape(X, *[0.0] * 40), was) == (), "too few to say"
    assert Contract().breaches(shape(X, *[0.0] * 180, *[1.0] * 20), was) == (), "rarer, but it comes"


def test_another_set_of_classes_is_no_fault() -> None:
    was = shape(X, *["a", "b"] * 100)
    assert Contract().breaches(shape(X, *["c", "d"] * 100), was) == ()
    assert Contract().breaches(shape(X, *["a"] * 200), was) != ()


def test_new_categories_and_volume() -> None:
    was, now = (shape_of([pa.table({"shop": list(shops)})], seconds=s) for shops, s in (("aabb", 4), ("abcc", 2)))
    assert Contract().breaches(now, was) == ()
    assert Contract(max_new_categories=0.4).breaches(now, was) == (
        "shop: 50% of values are categories that did not come before",
    )
    assert Contract(volume=(0.5, 1.5)).breaches(now, was) == (
        "4 events, 2 times as many as before; contract.volume is [0.5, 1.5]",
    )
    assert Contract(volume=(3.0, None)).breaches(now, was) != ()


@given(st.lists(st.floats(-1e300, 1e300), max_size=40), st.integers(0, 40))
def test_shapes_add_up(values: list[float], cut: int) -> None:
    whole, parts = Magnitude.of(np.array(values)), Magnitude.of(np.array(values[:cut]))
    parts += Magnitude.of(np.array(values[cut:]))
    assert (parts.count, parts.largest, parts.above) == (whole.count, whole.largest, whole.above)
    assert parts.logs == pytest.approx(whole.logs)
    a, b = shape([1.0, None], 1.0), shape([3.0], 0.0, 1.0)
    assert (a + b).classes == {"1": 2, "0": 1}
    assert (a + b).null_share("x") == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_null_rise": 1.5}, "contract.max_null_rise must be a share between 0 and 1, not 1.5"),
        ({"ranges": {"x": [2, 1]}}, r"contract.ranges.x must be \[lowest, highest\], not \[2, 1\]"),
        ({"ranges": {"x": [2]}}, r"contract.ranges.x must be \[lowest, highest\]"),
        ({"history": 0}, "contract.history must be 1 or more"),
        ({"max_scale": 1.0}, "contract.max_scale must be a factor above 1"),
        ({"volume": (2.0, 1.0)}, r"contract.volume must be \[lowest"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Contract(**settings)
