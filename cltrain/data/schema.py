"""What the columns of a table are, and how any table becomes events of one form.

An event table has `_event_id` (string), `_event_time` and `_label_time` (timestamp, microseconds, UTC), `_label`
(float64, or string for classes; null while unknown) and then the features under their own names: numeric ones as
float64, categorical ones as string, both nullable.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cltrain.errors import ConfigError, LabelError, SchemaError
from cltrain.records import EVENT_ID, EVENT_TIME, LABEL, LABEL_TIME
from cltrain.task import check_task

log = logging.getLogger(__name__)

TIMESTAMP = pa.timestamp("us", tz="UTC")
HOUR, WEEKDAY = "_hour", "_weekday"


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which column is what, as the user says it; the rest are features.

    Strings, booleans and dictionaries are categorical, numbers numeric, unless `categorical` names them.
    `positive` names the positive label of a binary task whose labels are two strings. With `time_features` the
    hour of the day and the day of the week of the event time become features.
    """

    event_time: str
    label: str
    task: str = "binary"
    label_time: str | None = None
    event_id: str | None = None
    exclude: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    positive: str | None = None
    time_features: bool = True

    def __post_init__(self) -> None:
        check_task(self.task)
        object.__setattr__(self, "exclude", tuple(self.exclude))
        object.__setattr__(self, "categorical", tuple(self.categorical))
        for name in ("event_time", "label"):
            if not getattr(self, name):
                raise ConfigError(f"data.{name} is not set: name the column that holds it, data.{name}=COLUMN")
        if self.event_time == self.label:
            raise ConfigError(f"data.event_time and data.label are both {self.label!r}: they must be two columns")


@dataclass(frozen=True, kw_only=True)
class Feature:
    name: str
    kind: Literal["numeric", "categorical"]


@dataclass(frozen=True, kw_only=True)
class Schema:
    """The features of a table, in its order, beside the columns with a role."""

    columns: Columns
    features: tuple[Feature, ...]
    ignored: tuple[str, ...] = ()

    def names(self, kind: str) -> tuple[str, ...]:
        return tuple(f.name for f in self.features if f.kind == kind)


def infer_schema(table: pa.Schema, columns: Columns) -> Schema:
    """Read the features off a table's schema. Raises `SchemaError` that names the columns there are."""
    named = {
        "data.event_time": columns.event_time,
        "data.label": columns.label,
        "data.label_time": columns.label_time,
        "data.event_id": columns.event_id,
    }
    named |= {f"data.exclude[{i}]": name for i, name in enumerate(columns.exclude)}
    named |= {f"data.categorical[{i}]": name for i, name in enumerate(columns.categorical)}
    for key, name in named.items():
        if name is not None and name not in table.names:
            close = difflib.get_close_matches(name, table.names, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise SchemaError(f"{key}={name}: no such column; {hint}the table has: {', '.join(table.names)}")
    roles = {columns.event_time, columns.label, columns.label_time, columns.event_id, *columns.exclude}
    features, ignored = [], []
    for field in table:
        if field.name in roles:
            continue
        kind = "categorical" if field.name in columns.categorical else _kind(field.type)
        if kind is None:
            ignored.append(field.name)
        else:
            features.append(Feature(name=field.name, kind=kind))
    if columns.time_features:
        features += [Feature(name=HOUR, kind="numeric"), Feature(name=WEEKDAY, kind="categorical")]
    if ignored:
        log.warning("columns of a type that cannot be a feature are ignored: %s", ", ".join(ignored))
    if not features:
        raise SchemaError(f"no column is left to learn from; the table has: {', '.join(table.names)}")
    return Schema(columns=columns, features=tuple(features), ignored=tuple(ignored))


def _kind(type_: pa.DataType) -> Literal["numeric", "categorical"] | None:
    if pa.types.is_dictionary(type_):
        type_ = type_.value_type
        return "categorical" if _is_text(type_) or pa.types.is_integer(type_) else None
    if _is_text(type_) or pa.types.is_boolean(type_):
        return "categorical"
    if pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_decimal(type_):
        return "numeric"
    return None


def _is_text(type_: pa.DataType) -> bool:
    return pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_)


def event_table(batch: pa.RecordBatch | pa.Table, schema: Schema, file: str, first_row: int) -> pa.Table:
    """Events of one form from rows of any table; `file` and `first_row` make stable ids where there are none.

    Raises `SchemaError` for a column that is missing or cannot be read as its kind, `LabelError` for a label
    that does not fit the task.
    """
    table = pa.table(batch) if isinstance(batch, pa.RecordBatch) else batch
    names = schema.columns
    needed = [names.event_time, names.label, *(n for n in (names.label_time, names.event_id) if n)]
    missing = [n for n in needed if n not in table.column_names]
    missing += [f.name for f in schema.features if not f.name.startswith("_") and f.name not in table.column_names]
    if missing:
        raise SchemaError(f"{file} lacks column {', '.join(missing)}; it has: {', '.join(table.column_names)}")
    event_time = timestamps(table.column(names.event_time), names.event_time)
    label_time = timestamps(table.column(names.label_time), names.label_time) if names.label_time else event_time
    if names.event_id:
        event_id = table.column(names.event_id).cast(pa.string())
    else:
        rows = np.arange(first_row, first_row + table.num_rows).astype(str)
        event_id = pc.binary_join_element_wise(pa.scalar(file), pa.array(rows), "#")
    out = {
        EVENT_ID: event_id,
        EVENT_TIME: event_time,
        LABEL_TIME: label_time,
        LABEL: labels(table.column(names.label), names),
    }
    for feature in schema.features:
        out[feature.name] = feature_column(table, feature, event_time)
    return pa.table(out)


def feature_column(table: pa.Table, feature: Feature, event_time: pa.ChunkedArray | pa.Array) -> pa.ChunkedArray:
    """One feature as float64 or string; a value that cannot be read as its kind raises `SchemaError`."""
    if feature.name == HOUR:
        seconds = pc.divide(pc.cast(event_time, pa.int64()), 1_000_000)
        return pc.cast(pc.divide(pc.cast(_modulo(seconds, 86400), pa.float64()), 3600.0), pa.float64())
    if feature.name == WEEKDAY:
        return pc.cast(pc.day_of_week(event_time), pa.string())
    column = table.column(feature.name)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    wanted = pa.float64() if feature.kind == "numeric" else pa.string()
    try:
        return column.cast(wanted, safe=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise SchemaError(
            f"column {feature.name} was {feature.kind} and is now {column.type}: {error}; "
            f"convert it, or leave it out with data.exclude='[{feature.name}]'"
        ) from error


def _modulo(values: pa.ChunkedArray, by: int) -> pa.ChunkedArray:
    return pc.subtract(values, pc.multiply(pc.divide(values, by), by))


def timestamps(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """UTC microseconds from a timestamp (naive ones are taken as UTC), a date, ISO 8601 text, or epoch numbers
    (seconds, milliseconds, microseconds or nanoseconds by their magnitude)."""
    type_ = column.type
    try:
        if pa.types.is_timestamp(type_):
            utc = column if type_.tz else column.cast(pa.timestamp(type_.unit)).cast(pa.timestamp(type_.unit, tz="UTC"))
            return utc.cast(TIMESTAMP, safe=False)
        if pa.types.is_date(type_):
            return column.cast(pa.timestamp("us")).cast(TIMESTAMP)
        if _is_text(type_):
            return _parse_text(column)
        if pa.types.is_integer(type_) or pa.types.is_floating(type_):
            largest = pc.max(pc.abs(column)).as_py() or 0
            scale = next(s for limit, s in ((1e11, 1e6), (1e14, 1e3), (1e17, 1), (np.inf, 1e-3)) if largest < limit)
            return pc.cast(pc.round(pc.multiply(column.cast(pa.float64()), scale)), pa.int64()).cast(TIMESTAMP)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise SchemaError(f"column {name} cannot be read as a time: {error}") from error
    raise SchemaError(f"column {name} has type {type_}, which is not a time: use a timestamp, a date or ISO 8601 text")


def _parse_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    text = column.cast(pa.string())
    zoned = pc.any(pc.match_substring_regex(text, r"(Z|[+-]\d\d:?\d\d)$")).as_py()
    return text.cast(TIMESTAMP) if zoned else text.cast(pa.timestamp("us")).cast(TIMESTAMP)


def labels(column: pa.ChunkedArray, columns: Columns) -> pa.ChunkedArray:
    """float64 0/1 or value, or class names as strings; null where the label is not known."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if columns.task == "multiclass":
        if pa.types.is_floating(column.type):
            whole = pc.all(pc.equal(pc.floor(column), column)).as_py()
            column = column.cast(pa.int64()) if whole else column
        return column.cast(pa.string())
    if columns.task == "binary" and columns.positive is not None:
        return pc.cast(pc.equal(column.cast(pa.string()), columns.positive), pa.float64())
    if _is_text(column.type):
        what = "data.positive=VALUE names the positive one" if columns.task == "binary" else "data.task=multiclass fits"
        raise LabelError(
            f"data.label={columns.label} holds text such as {_examples(column)}, which is not {columns.task}: {what}"
        )
    try:
        values = column.cast(pa.float64(), safe=False)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise LabelError(f"data.label={columns.label} has type {column.type}, which cannot be a label") from error
    values = pc.if_else(pc.is_finite(values), values, pa.scalar(None, pa.float64()))
    if columns.task == "binary":
        wrong = pc.filter(values, pc.invert(pc.is_in(values, pa.array([0.0, 1.0]), skip_nulls=False)))
        wrong = wrong.drop_null()
        if len(wrong):
            raise LabelError(
                f"data.label={columns.label} holds {_examples(wrong)}, but a binary label is 0 or 1: use "
                "data.task=multiclass or data.task=regression, or data.positive=VALUE to name the positive value"
            )
    return values


def _examples(column: pa.ChunkedArray | pa.Array) -> str:
    values: Sequence[object] = pc.unique(column.drop_null())[:3].to_pylist()
    return ", ".join(repr(v) for v in values)
