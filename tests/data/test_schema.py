"""Any table becomes events of one form."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest

from cltrain.data.schema import Columns, Schema, event_table, infer_schema, union
from cltrain.errors import ConfigError, SchemaError
from cltrain.records import EVENT_ID, LABEL

COLUMNS = Columns(event_time="at", label="y", time_features=False)
SOME = {"at": [1, 2], "y": [0, 1]}


def kinds(**columns: Any) -> dict[str, str]:
    schema = infer_schema(pa.table(SOME | columns).schema, COLUMNS)
    return {f.name: f.kind for f in schema.features}


def test_the_kind_of_a_column_follows_from_its_type() -> None:
    found = kinds(
        i=pa.array([1, 2], pa.uint64()),
        f=pa.array([1, 2], pa.float16()),
        d=pa.array([1.0, 2.0]).cast(pa.decimal128(3, 1)),
        s=["a", "b"],
        large=pa.array(["a", "b"], pa.large_string()),
        view=pa.array(["a", "b"], pa.string_view()),
        b=[True, False],
        dictionary=pa.array(["a", "b"]).dictionary_encode(),
        codes=pa.array([1, 2]).dictionary_encode(),
        when=pa.array([1, 2], pa.timestamp("us")),
        lists=[[1], [2]],
        nothing=pa.nulls(2),
    )
    assert found == {
        **dict.fromkeys("ifd", "numeric"),
        **dict.fromkeys(("s", "large", "view", "b", "dictionary", "codes"), "categorical"),
    }


def test_names_with_spaces_dots_and_letters_of_any_kind_are_features() -> None:
    assert list(kinds(**{"a b": [1, 2], "a.b": [1, 2], "größe": [1, 2], "numeric": [1, 2], "_own": [1, 2]})) == [
        "a b",
        "a.b",
        "größe",
        "numeric",
        "_own",
    ]


@pytest.mark.parametrize("name", ["_event_id", "_label", "_hour", "_reservoir_key"])
def test_a_reserved_name_is_refused_and_can_be_left_out(name: str) -> None:
    table = pa.table(SOME | {"x": [1, 2], name: [1, 2]})
    with pytest.raises(
        SchemaError, match=rf"column {name} has a name that cltrain uses itself.*data.exclude='\[{name}\]'"
    ):
        infer_schema(table.schema, COLUMNS)
    left = Columns(event_time="at", label="y", exclude=(name,), time_features=False)
    assert event_table(table, infer_schema(table.schema, left), "f", 0).column(LABEL).to_pylist() == [
        0.0,
        1.0,
    ]


def test_a_misspelt_column_is_named_with_the_nearest_one_and_all_there_are() -> None:
    with pytest.raises(
        SchemaError, match=r"data.label=labl: no such column; did you mean 'label'\? the table has: at, label"
    ):
        infer_schema(pa.schema({"at": pa.int64(), "label": pa.int64()}), Columns(event_time="at", label="labl"))
    with pytest.raises(SchemaError, match=r"data.exclude\[0\]=z: no such column"):
        infer_schema(pa.table(SOME).schema, Columns(event_time="at", label="y", exclude=("z",)))


def test_a_table_without_features_says_so() -> None:
    with pytest.raises(SchemaError, match=r"no column is left to learn from; the table has: at, y"):
        infer_schema(pa.table(SOME).schema, COLUMNS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"event_time": "", "label": "y"}, "data.event_time is not set"),
        ({"event_time": "y", "label": "y"}, "data.event_time and data.label are both 'y'"),
        ({"event_time": "t", "label": "y", "label_time": "y"}, "data.label_time and data.label are both 'y'"),
        ({"event_time": "t", "label": "y", "task": "ranking"}, "data.task must be one of"),
        ({"event_time": "t", "label": "y", "task": "regression", "positive": "a"}, "is for data.task=binary"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Columns(**settings)


def test_the_positive_label_may_be_given_as_any_scalar() -> None:
    assert [Columns(event_time="t", label="y", positive=v).positive for v in (1, 2.0, True, "a")] == [
        "1",
        "2",
        "true",
        "a",
    ]


def test_ids_come_from_the_column_or_from_file_and_row() -> None:
    table = pa.table(SOME | {"x": [1, 2], "id": [7.0, None]})
    schema = infer_schema(table.schema, COLUMNS)
    assert event_table(table, schema, "d/f.parquet", 10).column(EVENT_ID).to_pylist() == [
        "d/f.parquet#10",
        "d/f.parquet#11",
    ]
    named = Columns(event_time="at", label="y", event_id="id")
    assert event_table(table, infer_schema(table.schema, named), "f", 0).column(EVENT_ID).to_pylist() == [
        "7",
        "f#1",
    ]


def test_a_table_has_the_form_of_its_schema_also_when_columns_are_missing() -> None:
    schema = infer_schema(pa.schema({"at": pa.int64(), "y": pa.int64(), "x": pa.int32(), "k": pa.string()}), COLUMNS)
    events = event_table(pa.table(SOME), schema, "f", 0)
    assert events.schema == schema.arrow
    assert (events.column("x").null_count, events.column("k").null_count) == (2, 2)


def test_a_role_without_column_names_the_file_and_its_columns() -> None:
    schema = infer_schema(pa.table(SOME | {"x": [1, 2]}).schema, COLUMNS)
    with pytest.raises(SchemaError, match=r"f.parquet lacks column y; it has: at, x"):
        event_table(pa.table({"at": [1], "x": [1]}), schema, "f.parquet", 0)


def test_text_that_is_no_number_names_the_column_and_the_way_out() -> None:
    schema = infer_schema(pa.table(SOME | {"x": [1, 2]}).schema, COLUMNS)
    with pytest.raises(SchemaError, match=r"column x was numeric and is now string: .*data.exclude='\[x\]'"):
        event_table(pa.table(SOME | {"x": ["1", "many"]}), schema, "f", 0)


def test_a_column_that_is_there_twice_is_refused() -> None:
    table = pa.table([[1, 2], [0, 1], [1, 2], [3, 4]], ["at", "y", "x", "x"])
    with pytest.raises(SchemaError, match=r"column x is there 2 times"):
        event_table(table, infer_schema(table.schema, COLUMNS), "f", 0)


def test_hour_and_weekday_are_those_of_the_event_time_also_before_1970() -> None:
    times = [datetime(1969, 12, 31, 23, 30, tzinfo=UTC), datetime(2024, 2, 29, 6, 0, tzinfo=UTC), None]
    table = pa.table({"at": times, "y": [0, 1, 1]})
    schema = infer_schema(table.schema, Columns(event_time="at", label="y"))
    events = event_table(table, schema, "f", 0)
    assert events.column("_hour").to_pylist() == [23.5, 6.0, None]
    assert events.column("_weekday").to_pylist() == ["2", "3", None], "a Wednesday and a Thursday, Monday is 0"


def test_the_union_has_all_columns_with_the_first_type_that_holds_values() -> None:
    found = union(
        [
            pa.schema({"a": pa.null(), "b": pa.int8()}),
            pa.schema({"c": pa.string(), "b": pa.string(), "a": pa.int64()}),
        ]
    )
    assert found == pa.schema({"a": pa.int64(), "b": pa.int8(), "c": pa.string()})


def test_a_schema_survives_json() -> None:
    columns = Columns(event_time="at", label="y", exclude=("a",), categorical=("x",))
    schema = infer_schema(pa.schema({"at": pa.int64(), "y": pa.int64(), "a": pa.int8(), "x": pa.int8()}), columns)
    listed = {k: list(v) if isinstance(v, tuple) else v for k, v in vars(columns).items()}
    assert Schema.from_json(listed, [vars(f) for f in schema.features]) == schema
