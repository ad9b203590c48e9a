"""One column of any type as instants, numbers, texts or labels. What cannot be read raises, or becomes null where the
value is one of many."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cltrain.clock import to_us
from cltrain.errors import LabelError, SchemaError

TIMESTAMP = pa.timestamp("us", tz="UTC")
WHOLE = 2.0**53  # below which each whole number is a float
UNREADABLE = (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError)


def is_text(type_: pa.DataType) -> bool:
    return pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_)


def numbers(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """float64; null where a number is not finite. Text that holds numbers is read."""
    values = _plain(column)
    finite = pa.types.is_integer(values.type) or pa.types.is_boolean(values.type) or pa.types.is_null(values.type)
    values = values.cast(pa.float64(), safe=False)
    return values if finite else pc.if_else(pc.is_finite(values), values, pa.scalar(None, pa.float64()))


def texts(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """string. A number is written the same way whatever its type, so that a file in which nulls have made floats of the
    integers has the same categories.

    >>> texts(pa.chunked_array([[1.0, 2.5, None]])).to_pylist()
    ['1', '2.5', None]
    """
    values = _plain(column)
    if not (pa.types.is_floating(values.type) or pa.types.is_decimal(values.type)):
        return values.cast(pa.string())
    values = numbers(values)
    whole = pc.and_(pc.equal(pc.floor(values), values), pc.less(pc.abs(values), WHOLE))
    digits = pc.if_else(whole, values, 0.0).cast(pa.int64()).cast(pa.string())
    return pc.if_else(whole, digits, values.cast(pa.string()))


def tensor_form(type_: pa.DataType) -> tuple[tuple[int, ...], pa.DataType] | None:
    """Shape and element type of a column of tensors: nested fixed-size lists of numbers, or Arrow's tensors of fixed
    shape (as they lie in memory). uint8 stays what it is, other numbers are float32. None for other types.

    >>> tensor_form(pa.list_(pa.list_(pa.uint8(), 3), 2))
    ((2, 3), DataType(uint8))
    """
    shape: list[int] = []
    while isinstance(type_, pa.BaseExtensionType) or pa.types.is_fixed_size_list(type_):
        if isinstance(type_, pa.FixedShapeTensorType):
            shape, type_ = [*shape, *type_.shape], type_.value_type
        elif pa.types.is_fixed_size_list(type_):
            shape, type_ = [*shape, type_.list_size], type_.value_type
        else:
            return None
    if not shape or 0 in shape or not (pa.types.is_integer(type_) or pa.types.is_floating(type_)):
        return None
    return tuple(shape), pa.uint8() if pa.types.is_uint8(type_) else pa.float32()


def is_list(type_: pa.DataType) -> bool:
    return pa.types.is_list(type_) or pa.types.is_large_list(type_) or pa.types.is_fixed_size_list(type_)


def with_lengths(type_: pa.DataType, values: pa.Array | pa.ChunkedArray) -> pa.DataType:
    """`type_` with a fixed size for the lists that all have the same length in `values`, which are of that type.

    >>> with_lengths(pa.list_(pa.int64()), pa.array([[1, 2], None, [3, 4]]))
    FixedSizeListType(fixed_size_list<item: int64>[2])
    """
    if not is_list(type_):
        return type_
    lengths = pc.unique(pc.list_value_length(values).drop_null())
    if len(lengths) != 1:
        return type_
    return pa.list_(with_lengths(type_.value_type, pc.list_flatten(values)), lengths[0].as_py())


def tensors(column: pa.ChunkedArray, shape: Sequence[int], element: pa.DataType) -> pa.ChunkedArray:
    """Flat fixed-size lists of `element`; null where there is no list, and 0 in place of an element that is null or not
    finite. Raises `pyarrow.ArrowInvalid` where a list has another length, or a number does not fit uint8."""
    size = math.prod(shape)
    chunks = [_flat(chunk, shape, element) for chunk in column.chunks if len(chunk)]
    return pa.chunked_array(chunks, pa.list_(element, size))


def _flat(chunk: pa.Array, shape: Sequence[int], element: pa.DataType) -> pa.FixedSizeListArray:
    size, rows = math.prod(shape), len(chunk)
    if pa.types.is_null(chunk.type):
        return pa.nulls(rows, pa.list_(element, size))
    values = chunk.storage if isinstance(chunk, pa.ExtensionArray) else chunk
    null = values.is_null() if values.null_count else None
    found = tensor_form(chunk.type)
    if found is None or found[0] != tuple(shape):
        lists = element
        for length in reversed(shape):
            lists = pa.list_(lists, length)
        values = values.cast(lists, safe=pa.types.is_integer(element))
    while pa.types.is_fixed_size_list(values.type):
        length = values.type.list_size
        values = values.values.slice(values.offset * length, len(values) * length)
    values = values.cast(element, safe=pa.types.is_integer(element))
    values = pc.fill_null(values, 0) if values.null_count else values
    if pa.types.is_floating(element) and not (finite := np.isfinite(values)).all():
        values = pa.array(np.where(finite, values, np.float32(0)))
    return pa.FixedSizeListArray.from_arrays(values, size, mask=null)


def text_of(value: Any) -> str:
    """One value as `texts` writes it.

    >>> text_of(True), text_of(3.0), text_of("x")
    ('true', '3', 'x')
    """
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(texts(pa.chunked_array([[value]]))[0]) if isinstance(value, float) else str(value)


def instants(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    """UTC microseconds from a timestamp (naive ones are taken as UTC), a date, ISO 8601 text, or epoch numbers
    (seconds, milliseconds, microseconds or nanoseconds by the largest magnitude: below 1e11, 1e14, 1e17, or above).

    Null where a text or a number cannot be read; raises `SchemaError` when no text can, or for other types.
    """
    values = _plain(column)
    type_ = values.type
    if pa.types.is_null(type_):
        return values.cast(TIMESTAMP)
    if pa.types.is_timestamp(type_):
        utc = values if type_.tz else values.cast(pa.timestamp(type_.unit, tz="UTC"))
        return utc.cast(TIMESTAMP, safe=False)
    if pa.types.is_date(type_):
        return values.cast(pa.timestamp("us")).cast(TIMESTAMP)
    if is_text(type_):
        return _parsed(values.cast(pa.string()), name)
    if pa.types.is_integer(type_):
        return _epoch(np.asarray(pc.fill_null(values.cast(pa.int64(), safe=False), 0)), np.asarray(pc.is_null(values)))
    if pa.types.is_floating(type_) or pa.types.is_decimal(type_):
        found = numbers(values)
        return _epoch(np.asarray(pc.fill_null(found, 0.0)), np.asarray(pc.is_null(found)))
    raise SchemaError(f"column {name} has type {type_}, which is not a time: use a timestamp, a date or ISO 8601 text")


def _epoch(values: np.ndarray, null: np.ndarray) -> pa.ChunkedArray:
    largest = max(abs(int(values.max())), abs(int(values.min()))) if len(values) else 0
    if largest >= 1e17:
        null = null | (np.abs(values.astype(np.float64)) >= 2.0**63)
        us = np.where(null, 0, values).astype(np.int64) // 1000
    else:
        scale = 1_000_000 if largest < 1e11 else 1000 if largest < 1e14 else 1
        us = np.round(values * scale).astype(np.int64)
    return pa.chunked_array([pa.array(us, mask=null)]).cast(TIMESTAMP)


def _parsed(text: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    for type_ in (pa.timestamp("us"), TIMESTAMP):
        try:
            return text.cast(type_).cast(TIMESTAMP)
        except pa.ArrowInvalid:
            continue
    values = text.to_pylist()
    found = [None if value is None else _iso_us(value) for value in values]
    if all(us is None for us in found) and any(value is not None for value in values):
        raise SchemaError(
            f"column {name} holds text such as {examples(text)}, which cannot be read as a time: use a timestamp, "
            "a date or ISO 8601 text such as 2013-01-31T12:00:00Z"
        )
    return pa.chunked_array([pa.array(found, pa.int64())]).cast(TIMESTAMP)


def _iso_us(text: str) -> int | None:
    """Any zone, any number of digits in the fraction; None where it is not ISO 8601."""
    try:
        instant = datetime.fromisoformat(re.sub(r"\s*(UTC|GMT)$", "Z", re.sub(r"\s+([+-]\d\d)", r"\1", text.strip())))
        return to_us(instant if instant.tzinfo else instant.replace(tzinfo=UTC))
    except (ValueError, OverflowError):
        return None


def labels(column: pa.ChunkedArray, *, name: str, task: str, positive: str | None) -> pa.ChunkedArray:
    """float64 0/1 or value, or class names as `texts` (true and false as 1 and 0); null where the label is not known or
    not finite. Raises `LabelError` where labels do not fit the task."""
    values = _plain(column)
    try:
        if task == "multiclass":
            return texts(values.cast(pa.int8()) if pa.types.is_boolean(values.type) else values)
        if positive is not None:
            return pc.cast(pc.equal(texts(values), positive), pa.float64())
        if is_text(values.type) and len(values.drop_null()):
            what = "data.positive=VALUE names the positive one" if task == "binary" else "data.task=multiclass fits"
            raise LabelError(f"data.label={name} holds text such as {examples(values)}, which is not {task}: {what}")
        found = numbers(values)
    except UNREADABLE as error:
        raise LabelError(f"data.label={name} has type {values.type}, which cannot be a label") from error
    if task == "binary":
        wrong = pc.filter(found, pc.and_not(pc.not_equal(found, 0.0), pc.equal(found, 1.0))).drop_null()
        if len(wrong):
            raise LabelError(
                f"data.label={name} holds {examples(wrong)}, but a binary label is 0 or 1: use data.task=multiclass or "
                "data.task=regression, or data.positive=VALUE to name the positive value"
            )
    return found


def examples(column: pa.ChunkedArray) -> str:
    values: Sequence[object] = pc.unique(_plain(column).drop_null())[:3].to_pylist()
    return ", ".join(repr(v) for v in values)


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Without dictionary and without views, which not every function takes."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.cast(pa.string()) if pa.types.is_string_view(column.type) else column
