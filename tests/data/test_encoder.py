"""From events to tensors."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cltrain.data.encoder import Encoder, fit_encoder, request_table
from cltrain.data.schema import Columns, Schema, event_table, infer_schema
from cltrain.data.vocabulary import FEW_ROWS, FIRST, MISSING
from cltrain.errors import DataError, UpdateError
from cltrain.storage import canonical_json

UNKNOWN = 0


def made(task: str = "binary", **columns: Any) -> tuple[pa.Table, Schema]:
    """Events of one instant with these columns; `y` is the label."""
    rows = len(next(iter(columns.values())))
    table = pa.table({"at": np.zeros(rows, np.int64), **columns})
    schema = infer_schema(table.schema, Columns(event_time="at", label="y", task=task, time_features=False))
    return event_table(table, schema, "f", 0), schema


def fitted(task: str = "binary", **columns: Any) -> tuple[Encoder, pa.Table]:
    table, schema = made(task, **columns)
    return fit_encoder(table, schema), table


def test_numbers_are_standardised_and_nulls_are_the_mean_with_a_flag() -> None:
    encoder, table = fitted(x=[1.0, 3.0, None, 1.0, 3.0], y=[0, 1, 0, 1, 0])
    batch = encoder(table)
    assert batch.inputs["numeric"].tolist() == [[-1, 0], [1, 0], [0, 1], [-1, 0], [1, 0]]
    assert batch.target.tolist() == [0, 1, 0, 1, 0]
    assert encoder.spec.num_columns == encoder.spec.num_indicators == 1


def test_a_number_far_outside_of_training_is_clipped() -> None:
    encoder, _ = fitted(x=[1.0, 3.0, 1.0, 3.0], y=[0, 1, 0, 1])
    beyond, _ = made(x=[1e300, -1e300], y=[0, 1])
    assert encoder(beyond).inputs["numeric"].flatten().tolist() == [2.0, -2.0]


def test_columns_that_never_vary_are_left_out_and_ones_that_are_missing_are_null() -> None:
    encoder, table = fitted(
        x=[1.0, 2.0],
        constant=[5.0, 5.0],
        nothing=pa.array([None, None], pa.float64()),
        k=["a", "b"],
        y=[0, 1],
    )
    assert [c.name for c in encoder.numeric] == ["x"]
    batch = encoder(table.drop_columns(["x", "k"]))
    assert batch.inputs["numeric"].tolist() == [[0.0], [0.0]]
    assert batch.inputs["categorical"].tolist() == [[MISSING], [MISSING]]


def test_categories_are_ordered_by_how_often_they_come_and_strangers_and_nulls_have_their_own_index() -> None:
    encoder, _ = fitted(k=["b", "a", "b", None, "c"], y=[0, 1, 0, 1, 0])
    assert encoder.categorical[0].categories == ("b", "a", "c")
    few, _ = made(k=["a", "b", "c", "new", None], y=[0, 1, 0, 1, 0])
    many = pa.concat_tables([few] * FEW_ROWS)
    expected = [FIRST + 1, FIRST, FIRST + 2, UNKNOWN, MISSING]
    assert encoder(few).inputs["categorical"][:, 0].tolist() == expected
    assert encoder(many).inputs["categorical"][:, 0].tolist() == expected * FEW_ROWS, "the same for many rows"


@given(st.lists(st.lists(st.one_of(st.none(), st.text(max_size=2)), min_size=1, max_size=20), min_size=2, max_size=5))
def test_no_category_ever_changes_its_index(parts: list[list[str | None]]) -> None:
    columns = [{"k": pa.array(p, pa.string()), "x": [0.0, 1.0] * len(p), "y": [0, 1] * len(p)} for p in parts]
    tables = [made(**{n: v[: len(c["k"])] for n, v in c.items()})[0] for c in columns]
    _, schema = made(k=["a", "b"], x=[0.0, 1.0], y=[0, 1])
    first = made(k=["a", "b"], x=[0.0, 1.0], y=[0, 1])[0]
    encoder = fit_encoder(first, schema)
    for table in tables:
        grown = encoder.extended(table)
        before, after = encoder.categorical[0].categories, grown.categorical[0].categories
        assert after[: len(before)] == before
        assert set(after) == set(before) | set(table.column("k").to_pylist()) - {None}
        assert len(set(after)) == len(after)
        encoder = grown


@given(st.lists(st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True)), min_size=2, max_size=50))
def test_any_numbers_become_finite_ones(values: list[float | None]) -> None:
    encoder, table = fitted(x=pa.array(values, pa.float64()), k=["a"] * len(values), y=[0, 1] + [0] * (len(values) - 2))
    batch = encoder(table)
    assert torch.isfinite(batch.inputs["numeric"]).all()
    for column in encoder.numeric:
        assert np.all(np.diff(column.edges) > 0)
        assert len(column.edges) >= 2
    json.loads(canonical_json(encoder.to_json()))


@pytest.mark.parametrize("scale", [1e-300, 1e-9, 1.0, 1e12, 1e300])
def test_regression_of_any_scale_is_standardised(scale: float) -> None:
    encoder, table = fitted("regression", x=[1.0, 2.0, 3.0], y=[-scale, 0.0, scale])
    target = encoder(table).target
    assert target.tolist() == pytest.approx([-1.2247449, 0.0, 1.2247449])
    assert encoder.target_std == pytest.approx(scale * (2 / 3) ** 0.5)


def test_a_constant_regression_label_is_learned_as_it_is() -> None:
    encoder, table = fitted("regression", x=[1.0, 2.0], y=[5.0, 5.0])
    assert (encoder.target_std, encoder(table).target.tolist()) == (1.0, [0.0, 0.0])


def test_classes_are_in_natural_order_and_grow_at_the_end() -> None:
    encoder, table = fitted("multiclass", x=[1.0, 2.0, 3.0], y=[10, 9, 2])
    assert (encoder.classes, encoder.num_outputs) == (("2", "9", "10"), 3)
    assert encoder(table).target.tolist() == [2, 1, 0]
    later, _ = made("multiclass", x=[1.0, 2.0], y=[1, 9])
    assert encoder(later).target.tolist() == [3, 1], "a class that is not known has an index past the last one"
    assert encoder.extended(later).classes == ("2", "9", "10", "1")


def test_rows_without_label_weigh_nothing() -> None:
    encoder, _ = fitted(x=[1.0, 2.0], y=[0, 1])
    table, _ = made(x=[1.0, 2.0], y=pa.array([1, None]))
    assert encoder(table).weight.tolist() == [1.0, 0.0]
    assert encoder(table.drop_columns(["_label"])).weight.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("task", "columns", "message"),
    [
        ("binary", {"x": [1.0, 2.0], "y": [0, 0]}, "data.label=y holds only 0.0 in these 2 rows"),
        ("multiclass", {"x": [1.0, 2.0], "y": ["a", "a"]}, "data.label=y holds only a in these 2 rows"),
        ("binary", {"x": [1.0, 2.0], "y": pa.nulls(2)}, "there is no labelled row to learn from"),
        ("binary", {"x": [1.0, 1.0], "y": [0, 1]}, "no column varies in these 2 rows"),
    ],
)
def test_nothing_to_learn_says_what_is_lacking(task: str, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(UpdateError, match=message):
        fitted(task, **columns)


def test_an_encoder_survives_json() -> None:
    for task, y in (("binary", [0, 1, 0]), ("multiclass", [3, 1, 2]), ("regression", [0.5, 1.5, 1.0])):
        encoder, table = fitted(task, x=[1.0, None, 2.0], k=["a", "b", None], y=y)
        again = Encoder.from_json(json.loads(canonical_json(encoder.to_json())))
        assert again == encoder
        assert torch.equal(again(table).inputs["numeric"], encoder(table).inputs["numeric"])


def test_a_column_that_differs_in_each_row_is_worth_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    fitted(k=[f"v{i}" for i in range(100)], y=[0, 1] * 50)
    assert "k differs in most rows and teaches little: data.exclude='[k]'" in caplog.text


def test_a_request_is_encoded_like_the_event_that_it_becomes() -> None:
    columns: dict[str, list[Any]] = {
        "x": [1.5, 2.0, None],
        "code": [1.0, 3.0, None],
        "flag": [True, False, None],
        "k": ["a", "b", None],
    }
    table = pa.table({"at": pa.array([1, 3, 5], pa.timestamp("s")), "y": [0, 1, 0], **columns})
    schema = infer_schema(table.schema, Columns(event_time="at", label="y", categorical=("code",)))
    events = event_table(table, schema, "f", 0)
    encoder = fit_encoder(events, schema)
    rows = [
        {"_event_time": at, **{n: v[i] for n, v in columns.items()}}
        for i, at in enumerate(table.column("at").to_pylist())
    ]
    asked = encoder(request_table(rows, encoder))
    for name, tensor in encoder(events).inputs.items():
        assert torch.equal(asked.inputs[name], tensor)
    empty = encoder(request_table([{"stranger": 1}], encoder))
    assert set(empty.inputs["categorical"].flatten().tolist()) == {MISSING}
    for feature, value, message in (
        ("x", "many", "must be a number, not 'many'"),
        ("x", [1.0], "must be a number, not a list"),
        ("k", ["a"], "must be a text, not a list"),
    ):
        with pytest.raises(DataError, match=rf"rows\[1\].features.{feature} {message}"):
            request_table([{}, {feature: value}], encoder)
