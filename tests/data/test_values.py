"""One column of any type becomes instants, numbers, texts or labels."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cltrain.clock import from_us, to_us
from cltrain.data.values import TIMESTAMP, instants, labels, numbers, text_of, texts
from cltrain.errors import LabelError, SchemaError

NOON = datetime(2013, 1, 31, 12, tzinfo=UTC)
NOON_US = to_us(NOON)


def column(values: Any, type_: pa.DataType | None = None) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(values, type_)])


def instant_of(values: Any, type_: pa.DataType | None = None) -> list[datetime | None]:
    found = instants(column(values, type_), "at")
    assert found.type == TIMESTAMP
    return found.to_pylist()


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "UTC", "America/New_York", "+05:30"])
def test_timestamps_of_every_unit_and_zone_are_the_same_instant(unit: str, zone: str | None) -> None:
    array = pa.array([NOON_US], pa.timestamp("us", tz=zone)).cast(pa.timestamp(unit, tz=zone))
    assert instant_of(array) == [NOON]


@pytest.mark.parametrize("type_", [pa.date32(), pa.date64()])
def test_a_date_is_its_midnight(type_: pa.DataType) -> None:
    assert instant_of([date(2013, 1, 31), None], type_) == [NOON.replace(hour=0), None]


@pytest.mark.parametrize(
    "text",
    [
        "2013-01-31T12:00:00",
        "2013-01-31 12:00",
        "2013-01-31 12:00:00.000",
        "2013-01-31T12:00:00Z",
        "2013-01-31T12:00:00.000000Z",
        "2013-01-31T12:00:00.000000001Z",
        "2013-01-31T13:00:00+01:00",
        "2013-01-31 07:00:00-0500",
        "2013-01-31 12:00:00 UTC",
        "2013-01-31 12:00:00 +00:00",
        " 2013-01-31T12:00:00Z",
    ],
)
def test_iso_text_of_every_kind_is_the_same_instant(text: str) -> None:
    for type_ in (pa.string(), pa.large_string(), pa.string_view()):
        assert instant_of([text, None], type_) == [NOON, None]
    assert instants(column([text]).dictionary_encode(), "at").to_pylist() == [NOON]


def test_zones_and_fractions_may_be_mixed_and_one_bad_text_is_null() -> None:
    texts_ = ["2013-01-31T12:00:00Z", "2013-01-31", "2013-01-31T12:00:00.5", "soon", "", "2013-02-30"]
    midnight, later = NOON.replace(hour=0), NOON + timedelta(seconds=0.5)
    assert instant_of(texts_) == [NOON, midnight, later, None, None, None]


def test_text_that_is_no_time_at_all_says_so() -> None:
    with pytest.raises(SchemaError, match=r"column at holds text such as '01/31/2013', which cannot .* ISO 8601"):
        instant_of(["01/31/2013", None])


@pytest.mark.parametrize("scale", [1, 1_000, 1_000_000, 1_000_000_000])
@pytest.mark.parametrize("type_", [pa.int64(), pa.uint64(), pa.float64()])
def test_epoch_numbers_are_read_by_their_size(scale: int, type_: pa.DataType) -> None:
    seconds = NOON_US // 1_000_000
    assert instant_of(pa.array([seconds * scale, None]).cast(type_, safe=False)) == [NOON, None]
    if type_ == pa.int64():
        assert instant_of([-seconds * scale], type_) == [from_us(-NOON_US)]


def test_epoch_numbers_that_are_not_finite_are_null() -> None:
    assert instant_of([float("nan"), float("inf"), 1.5]) == [None, None, from_us(1_500_000)]
    assert instant_of(pa.array([Decimal("1359633600.50")])) == [NOON + timedelta(seconds=0.5)]
    assert instant_of([], pa.int64()) == []


def test_other_types_are_no_time() -> None:
    assert instant_of([None, None], pa.null()) == [None, None]
    with pytest.raises(SchemaError, match="column at has type bool, which is not a time"):
        instant_of([True])


@given(st.datetimes(min_value=datetime(1000, 1, 1), max_value=datetime(8999, 1, 1)), st.integers(-720, 720))
def test_any_instant_survives_text_in_any_zone(instant: datetime, minutes: int) -> None:
    zoned = instant.replace(tzinfo=timezone(timedelta(minutes=minutes)))
    assert instant_of([zoned.isoformat(), "never"]) == [zoned.astimezone(UTC), None]


def test_numbers_of_every_type_are_float64_and_finite() -> None:
    for type_ in (pa.int8(), pa.int64(), pa.uint64(), pa.float16(), pa.float32(), pa.float64(), pa.bool_()):
        values = np.array([1, 0], type_.to_pandas_dtype())
        assert numbers(column(values, type_)).to_pylist() == [1.0, 0.0]
    assert numbers(column([2**64 - 1], pa.uint64())).to_pylist() == [float(2**64 - 1)]
    assert numbers(column([Decimal("1.25"), None])).to_pylist() == [1.25, None]
    assert numbers(column([1.0, float("nan"), float("-inf"), None])).to_pylist() == [1.0, None, None, None]
    assert numbers(column(["1.5", None])).to_pylist() == [1.5, None]
    assert numbers(column([3, 4]).dictionary_encode()).to_pylist() == [3.0, 4.0]
    assert numbers(column([None])).to_pylist() == [None]


def test_a_category_reads_the_same_from_every_type() -> None:
    wanted = ["1", "20", None]
    for type_ in (pa.int8(), pa.int64(), pa.float32(), pa.float64(), pa.decimal128(4, 2)):
        assert texts(column([1.0, 20.0, None]).cast(type_)).to_pylist() == wanted
    for type_ in (pa.string(), pa.large_string(), pa.string_view()):
        assert texts(column(wanted, type_)).to_pylist() == wanted
    assert texts(column(wanted).dictionary_encode()).to_pylist() == wanted
    assert texts(column([float("nan"), 1.5])).to_pylist() == [None, "1.5"]


@given(
    st.one_of(
        st.booleans(),
        st.integers(-(2**53), 2**53),
        st.floats(-1e12, 1e12).map(lambda v: round(v, 3)),
        st.text(),
    )
)
def test_a_request_writes_a_value_as_the_log_does(value: Any) -> None:
    assert texts(column([value])).to_pylist() == [text_of(value)]


def label_of(values: Any, task: str = "binary", positive: str | None = None) -> list[Any]:
    return labels(column(values), name="y", task=task, positive=positive).to_pylist()


def test_binary_labels_are_zero_and_one_of_any_type() -> None:
    assert label_of([True, False, None]) == [1.0, 0.0, None]
    assert label_of([1, 0, None]) == [1.0, 0.0, None]
    assert label_of([1.0, 0.0, float("nan")]) == [1.0, 0.0, None]
    assert label_of([None, None]) == [None, None]
    assert label_of(["yes", "no", None], positive="yes") == [1.0, 0.0, None]
    assert label_of([2, 1], positive="2") == [1.0, 0.0]
    assert label_of([True, False], positive="true") == [1.0, 0.0]


@pytest.mark.parametrize(
    ("values", "task", "message"),
    [
        (
            [0, 1, 2],
            "binary",
            "data.label=y holds 2.0, but a binary label is 0 or 1: use data.task=multiclass",
        ),
        (
            ["yes"],
            "binary",
            "data.label=y holds text such as 'yes', which is not binary: data.positive=VALUE",
        ),
        (
            ["big"],
            "regression",
            "holds text such as 'big', which is not regression: data.task=multiclass fits",
        ),
        ([date(2013, 1, 1)], "binary", "data.label=y has type date32.*cannot be a label"),
    ],
)
def test_a_label_that_does_not_fit_says_what_fits(values: Any, task: str, message: str) -> None:
    with pytest.raises(LabelError, match=message):
        label_of(values, task)


def test_classes_are_texts_and_the_same_from_every_type() -> None:
    assert label_of([1, 2, None], "multiclass") == ["1", "2", None]
    assert label_of([1.0, 2.5, float("nan")], "multiclass") == ["1", "2.5", None]
    assert label_of([True, False], "multiclass") == ["1", "0"]
    assert label_of(["x", None], "multiclass") == ["x", None]


def test_a_value_that_is_not_finite_is_no_label() -> None:
    assert label_of([1e300, float("inf"), None], "regression") == [1e300, None, None]
