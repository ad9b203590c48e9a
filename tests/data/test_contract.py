"""The quality contract."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from cltrain.data.contract import Contract
from cltrain.errors import ConfigError
from cltrain.monitor import profile_of


def table(x: list[float | None], y: list[float | None] | None = None) -> pa.Table:
    labels = y if y is not None else [0.0] * len(x)
    return pa.table({"x": pa.array(x, pa.float64()), "_label": pa.array(labels, pa.float64())})


SOUND = profile_of(table([1.0, 2.0, 3.0, None]))


def test_a_sound_window_breaks_nothing() -> None:
    assert Contract().breaches([table([1.0, None])], SOUND, 2) == ()
    assert Contract(ranges={"x": [0, 5]}, min_labelled_share=1.0).breaches([table([1.0])], SOUND, 1) == ()


def test_a_window_without_events_breaks_nothing() -> None:
    assert Contract(min_labelled_share=1.0, ranges={"x": [0, 1]}).breaches([], SOUND, 0) == ()
    assert Contract(min_labelled_share=1.0, ranges={"x": [0, 1]}).breaches([table([])], SOUND, 0) == ()


def test_nulls_are_held_against_the_reference_over_all_pieces() -> None:
    pieces = [table([None, None, None]), table([None, 1.0])]
    assert Contract(max_null_rise=0.5).breaches(pieces, SOUND, 5) == ("x: 80% null, was 25% at first",)
    assert Contract(max_null_rise=0.6).breaches(pieces, SOUND, 5) == ()
    assert Contract(max_null_rise=0.0).breaches(pieces, None, 5) == (), "the first window has no reference"


def test_a_label_that_is_not_known_yet_is_no_null() -> None:
    assert Contract(max_null_rise=0.0).breaches([table([1.0, None, 2.0, 1.0], [None] * 4)], SOUND, 0) == ()


def test_values_out_of_range_are_counted_over_all_pieces() -> None:
    contract = Contract(ranges={"x": [0, 10]}, max_out_of_range=0.25)
    assert contract.breaches([table([1.0, 11.0]), table([2.0, 3.0])], None, 4) == ()
    assert contract.breaches([table([-1.0, 11.0]), table([2.0, None])], None, 4) == (
        "x: 66.7% of values outside [0, 10]",
    )


def test_labels_that_do_not_come_break_the_share() -> None:
    problems = Contract(min_labelled_share=0.5).breaches([table([1.0] * 10)], None, 4)
    assert problems == ("40% of events have a label, contract.min_labelled_share is 50%",)


def test_a_range_of_a_column_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(ConfigError, match=r"contract.ranges.z: there is no such numeric column; there are: x$"):
        Contract(ranges={"z": [0, 1]}).breaches([table([1.0])], None, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_null_rise": 1.5}, "contract.max_null_rise must be a share between 0 and 1, not 1.5"),
        ({"ranges": {"x": [2, 1]}}, r"contract.ranges.x must be \[lowest, highest\], not \[2, 1\]"),
        ({"ranges": {"x": [2]}}, r"contract.ranges.x must be \[lowest, highest\]"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Contract(**settings)
