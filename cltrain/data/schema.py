"""What the columns of a table are, and how any table becomes events of one form.

An event table has `_event_id` (string), `_event_time` and `_label_time` (timestamp, microseconds, UTC), `_label`
(float64, or string for classes; null while unknown) and then the features under their own names, all nullable: numeric
ones as float64 (finite), categorical ones as string, texts as large_string, and tensors as flat fixed-size lists of
uint8 or of float32 (finite).
"""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cltrain.data.values import (
    TIMESTAMP,
    UNREADABLE,
    instants,
    is_text,
    labels,
    numbers,
    tensor_form,
    tensors,
    text_of,
    texts,
)
from cltrain.errors import ConfigError, SchemaError
from cltrain.records import EVENT_ID, EVENT_TIME, LABEL, LABEL_TIME
from cltrain.task import check_task

log = logging.getLogger(__name__)

HOUR, WEEKDAY = "_hour", "_weekday"
MEMORY = ("_reservoir_key", "_outputs", "_stands_for")  # columns that memories add
RESERVED = (EVENT_ID, EVENT_TIME, LABEL_TIME, LABEL, HOUR, WEEKDAY, *MEMORY)
FeatureKind = Literal["numeric", "categorical", "tensor", "text"]
INPUTS = ("numeric", "categorical", "self")  # what a column that is an input of its own cannot be called
MAX_CATEGORIES = 20_000


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which column is what, as the user says it; the rest are features.

    Strings, booleans and dictionaries are categorical, numbers numeric, unless `categorical` names them, and lists of
    numbers that all have one length are tensors. `text` names columns of words: the first `max_tokens` of each row are
    hashed into `text_buckets`. Each categorical column has room for `max_categories`; after that, those not met for
    longest make room for new ones. `positive` names the positive label of a binary task whose labels are not 0 and 1.
    With `time_features` the hour of the day and the day of the week of the event time become features.
    """

    event_time: str
    label: str
    task: str = "binary"
    label_time: str | None = None
    event_id: str | None = None
    exclude: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    text: tuple[str, ...] = ()
    text_buckets: int = 8192
    max_tokens: int = 64
    max_categories: int = MAX_CATEGORIES
    positive: str | int | float | bool | None = None
    time_features: bool = True

    def __post_init__(self) -> None:
        check_task(self.task)
        for name in ("exclude", "categorical", "text"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if both := sorted({*self.categorical} & {*self.text}):
            raise ConfigError(f"data.categorical and data.text both name {', '.join(both)}: leave it in one of them")
        for name, least in (("text_buckets", 2), ("max_tokens", 1), ("max_categories", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"data.{name} must be {least} or more, not {getattr(self, name)}")
        if self.positive is not None:
            object.__setattr__(self, "positive", text_of(self.positive))
            if self.task != "binary":
                raise ConfigError(f"data.positive={self.positive} is for data.task=binary, not for {self.task}")
        for name in ("event_time", "label"):
            if not getattr(self, name):
                raise ConfigError(f"data.{name} is not set: name the column that holds it, data.{name}=COLUMN")
        for name in ("event_time", "label_time", "event_id"):
            if getattr(self, name) == self.label:
                raise ConfigError(f"data.{name} and data.label are both {self.label!r}: they must be two columns")

    @property
    def roles(self) -> tuple[str, ...]:
        """The columns that every file must have."""
        return tuple(n for n in (self.event_time, self.label, self.label_time, self.event_id) if n)


@dataclass(frozen=True, kw_only=True)
class Feature:
    """`shape` and `element` (uint8 or float) are those of tensors."""

    name: str
    kind: FeatureKind
    shape: tuple[int, ...] = ()
    element: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))

    @property
    def type(self) -> pa.DataType:
        """Of its column in an event table."""
        if self.kind == "tensor":
            return pa.list_(pa.type_for_alias(self.element), math.prod(self.shape))
        return {"numeric": pa.float64(), "categorical": pa.string(), "text": pa.large_string()}[self.kind]

    def fits(self, type_: pa.DataType) -> bool:
        """Whether every value of a column of this type can be one of this feature."""
        if self.kind == "tensor":
            return tensor_form(type_) == (self.shape, self.type.value_type)
        return kind_of(type_) == ("categorical" if self.kind == "text" else self.kind)


@dataclass(frozen=True, kw_only=True)
class Schema:
    """The features of a table, in its order, beside the columns with a role."""

    columns: Columns
    features: tuple[Feature, ...]
    ignored: tuple[str, ...] = ()

    def names(self, kind: str) -> tuple[str, ...]:
        return tuple(f.name for f in self.features if f.kind == kind)

    @property
    def arrow(self) -> pa.Schema:
        """The form of its event tables."""
        label = pa.string() if self.columns.task == "multiclass" else pa.float64()
        types = {EVENT_ID: pa.string(), EVENT_TIME: TIMESTAMP, LABEL_TIME: TIMESTAMP, LABEL: label}
        return pa.schema(types | {f.name: f.type for f in self.features})

    @property
    def wanted(self) -> list[str]:
        """Columns to read from a file."""
        names = [*self.columns.roles, *(f.name for f in self.features if f.name not in (HOUR, WEEKDAY))]
        return list(dict.fromkeys(names))

    @classmethod
    def from_json(cls, columns: Mapping[str, Any], features: Iterable[Mapping[str, Any]]) -> Schema:
        return cls(columns=Columns(**columns), features=tuple(Feature(**f) for f in features))


def union(schemas: Iterable[pa.Schema]) -> pa.Schema:
    """All columns of all files in order of appearance, each with the type of the first file that has values in it."""
    types: dict[str, pa.DataType] = {}
    for schema in schemas:
        for field in schema:
            if field.name not in types or pa.types.is_null(types[field.name]):
                types[field.name] = field.type
    return pa.schema(types)


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
    named |= {f"data.text[{i}]": name for i, name in enumerate(columns.text)}
    for key, name in named.items():
        if name is not None and name not in table.names:
            close = difflib.get_close_matches(name, table.names, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise SchemaError(f"{key}={name}: no such column; {hint}the table has: {', '.join(table.names)}")
    features: list[Feature] = []
    ignored: list[str] = []
    for field in table:
        if field.name in columns.roles or field.name in columns.exclude:
            continue
        if field.name in RESERVED:
            raise SchemaError(
                f"column {field.name} has a name that cltrain uses itself: rename it, or leave it out with "
                f"data.exclude='[{field.name}]'"
            )
        feature = _feature(field, columns)
        if feature is None:
            ignored.append(field.name)
        else:
            features.append(feature)
    if columns.time_features:
        features += [Feature(name=HOUR, kind="numeric"), Feature(name=WEEKDAY, kind="categorical")]
    if ignored:
        log.warning("columns of a type that cannot be a feature are ignored: %s", ", ".join(ignored))
    if not features:
        raise SchemaError(f"no column is left to learn from; the table has: {', '.join(table.names)}")
    return Schema(columns=columns, features=tuple(features), ignored=tuple(ignored))


def _feature(field: pa.Field, columns: Columns) -> Feature | None:
    kind = kind_of(field.type)
    if field.name in columns.categorical:
        kind = "categorical"
    elif field.name in columns.text:
        kind = "text"
    if kind in ("tensor", "text") and field.name in INPUTS:
        raise SchemaError(f"column {field.name} is a {kind}, which cannot have this name: rename it")
    if kind == "tensor" and (form := tensor_form(field.type)):
        element = "uint8" if pa.types.is_uint8(form[1]) else "float"
        return Feature(name=field.name, kind=kind, shape=form[0], element=element)
    return Feature(name=field.name, kind=kind) if kind else None


def kind_of(type_: pa.DataType) -> FeatureKind | None:
    """What a column of this type is unless the user says otherwise; None if it cannot be a feature."""
    if pa.types.is_dictionary(type_):
        return "categorical" if pa.types.is_integer(type_.value_type) else kind_of(type_.value_type)
    if is_text(type_) or pa.types.is_boolean(type_):
        return "categorical"
    if pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_decimal(type_):
        return "numeric"
    return "tensor" if tensor_form(type_) else None


def event_table(batch: pa.RecordBatch | pa.Table, schema: Schema, file: str, first_row: int) -> pa.Table:
    """Events of one form from rows of any table; `file` and `first_row` make stable ids where there are none. A feature
    that the table lacks is null.

    Raises `SchemaError` for a role without column or a column that cannot be read as its kind, `LabelError` for a label
    that does not fit the task.
    """
    return with_features(event_roles(batch, schema.columns, file, first_row), batch, schema)


def event_roles(batch: pa.RecordBatch | pa.Table, columns: Columns, file: str, first_row: int) -> pa.Table:
    """The four columns with a role; see `event_table`."""
    missing = [name for name in columns.roles if name not in batch.schema.names]
    if missing:
        raise SchemaError(f"{file} lacks column {', '.join(missing)}; it has: {', '.join(batch.schema.names)}")
    event_time = instants(_column(batch, columns.event_time), columns.event_time)
    label_time = instants(_column(batch, columns.label_time), columns.label_time) if columns.label_time else event_time
    positive = None if columns.positive is None else str(columns.positive)
    label = labels(_column(batch, columns.label), name=columns.label, task=columns.task, positive=positive)
    out = {
        EVENT_ID: _event_ids(batch, columns.event_id, file, first_row),
        EVENT_TIME: event_time,
        LABEL_TIME: label_time,
        LABEL: label,
    }
    return pa.table(out)


def with_features(roles: pa.Table, batch: pa.RecordBatch | pa.Table, schema: Schema) -> pa.Table:
    """`roles` with the features of the same rows of `batch`."""
    event_time = roles.column(EVENT_TIME)
    out = {name: roles.column(name) for name in roles.column_names}
    for feature in schema.features:
        out[feature.name] = feature_column(batch, feature, event_time)
    return pa.table(out, schema=schema.arrow)


def feature_column(
    batch: pa.RecordBatch | pa.Table, feature: Feature, event_time: pa.ChunkedArray | pa.Array
) -> pa.ChunkedArray | pa.Array:
    """One feature, with its type; a value that cannot be read as its kind raises `SchemaError`."""
    if feature.name == HOUR:
        of_minute = pc.add(pc.multiply(pc.hour(event_time), 60), pc.minute(event_time))
        return pc.divide(pc.cast(pc.add(pc.multiply(of_minute, 60), pc.second(event_time)), pa.float64()), 3600.0)
    if feature.name == WEEKDAY:
        return pc.cast(pc.day_of_week(event_time), pa.string())
    if feature.name not in batch.schema.names:
        return pa.nulls(batch.num_rows, feature.type)
    column = _column(batch, feature.name)
    try:
        if feature.kind == "tensor":
            return tensors(column, feature.shape, feature.type.value_type)
        return numbers(column) if feature.kind == "numeric" else texts(column).cast(feature.type)
    except UNREADABLE as error:
        raise SchemaError(
            f"column {feature.name} was {feature.kind} and is now {column.type}: {error}; "
            f"convert it, or leave it out with data.exclude='[{feature.name}]'"
        ) from error


def _column(batch: pa.RecordBatch | pa.Table, name: str) -> pa.ChunkedArray:
    if batch.schema.names.count(name) > 1:
        raise SchemaError(f"column {name} is there {batch.schema.names.count(name)} times: rename one of them")
    column = batch.column(name)
    return column if isinstance(column, pa.ChunkedArray) else pa.chunked_array([column])


def _event_ids(batch: pa.RecordBatch | pa.Table, name: str | None, file: str, first_row: int) -> pa.ChunkedArray:
    """Ids of the rows; by file and row where there is no id."""
    given = None
    if name is not None:
        try:
            given = texts(_column(batch, name))
        except UNREADABLE as error:
            raise SchemaError(
                f"data.event_id={name} has type {batch.schema.field(name).type}, which cannot be an id"
            ) from error
        if not given.null_count:
            return given
    rows = pa.array(np.arange(first_row, first_row + batch.num_rows)).cast(pa.string())
    made = pc.binary_join_element_wise(file, rows, "#")
    return pa.chunked_array([made]) if given is None else pc.coalesce(given, made)
