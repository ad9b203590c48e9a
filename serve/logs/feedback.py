"""Feedback: labels that arrive after the answer, stored once, and joined with what was predicted."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from cltrain.data.schema import TIMESTAMP
from cltrain.storage import Storage
from serve.logs.segments import SegmentLog, read_segments
from serve.settings import LogSettings

FOLDER = "feedback"
FeedbackType = Literal["system", "explicit", "implicit", "human"]
SCHEMA = pa.schema(
    [
        ("request_id", pa.string()),
        ("event_id", pa.string()),
        ("type", pa.string()),
        ("label", pa.string()),
        ("label_value", pa.float64()),
        ("label_time", TIMESTAMP),
        ("received_at", TIMESTAMP),
    ]
)
REMEMBERED_KEYS, REMEMBERED_SEGMENTS = 100_000, 16


class Feedback(NamedTuple):
    """One label. `label` is its text (`1` for 1.0 and True alike), `label_value` its number where it has one."""

    request_id: str | None
    event_id: str | None
    type: str
    label: str
    label_value: float | None
    label_time: datetime
    received_at: datetime


class FeedbackLog(SegmentLog):
    """Segments below `feedback/`. The label that an event already has is counted as a duplicate and not written;
    another label for it is a correction and is. What was stored is known across restarts for the most recent keys; a
    duplicate that reaches another replica is written there and makes no difference to the join."""

    def __init__(self, storage: Storage, replica: str, settings: LogSettings) -> None:
        self.duplicates = 0
        self._known: OrderedDict[tuple[Any, ...], str] = OrderedDict()
        for row in read_segments(storage, FOLDER, SCHEMA, last=REMEMBERED_SEGMENTS).to_pylist():
            self._remember(Feedback(**row))
        super().__init__(storage, FOLDER, replica, SCHEMA, settings)

    def admit(self, rows: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        fresh = [row for row in map(Feedback._make, rows) if self._remember(row)]
        self.duplicates += len(rows) - len(fresh)
        return list(fresh)

    def forget(self, rows: Sequence[tuple[Any, ...]]) -> None:
        for row in map(Feedback._make, rows):
            self._known.pop(_key(row), None)

    def counts(self) -> dict[str, Any]:
        return {**super().counts(), "duplicates": self.duplicates}

    def _remember(self, row: Feedback) -> bool:
        """Whether this label is news for its event."""
        key = _key(row)
        if self._known.get(key) == row.label:
            return False
        self._known[key] = row.label
        self._known.move_to_end(key)
        if len(self._known) > REMEMBERED_KEYS:
            self._known.popitem(last=False)
        return True


def _key(row: Feedback) -> tuple[Any, ...]:
    return row.request_id, row.event_id, row.type


def label_text(label: bool | int | float | str) -> tuple[str, float | None]:
    """A label as text, as the classes of a multiclass task are named, and as a number where it is one.

    >>> label_text(True), label_text(2.0), label_text("cat")
    (('1', 1.0), ('2', 2.0), ('cat', None))
    """
    if isinstance(label, str):
        try:
            value = float(label)
        except ValueError:
            return label, None
        return label, value if math.isfinite(value) else None
    value = float(label)
    return (str(int(value)) if value.is_integer() else repr(value)), value


def read_feedback(storage: Storage) -> pa.Table:
    """All stored feedback (`SCHEMA`), corrections included, in the order in which each replica received it."""
    return read_segments(storage, FOLDER, SCHEMA)


def join_feedback(predictions: pa.Table, feedback: pa.Table) -> pa.Table:
    """Predictions, in their order, with `label`, `label_value`, `label_time` and `feedback_type`, null while there is
    no label.

    Feedback meets a prediction by request id or by event id. Of several labels the one with the latest label time wins,
    then the one received last.
    """
    order = pc.sort_indices(feedback, [("label_time", "descending"), ("received_at", "descending")])
    latest = feedback.take(order).combine_chunks()
    place = pc.min_element_wise(
        _first_place(predictions["request_id"], latest["request_id"]),
        _first_place(predictions["event_id"], latest["event_id"]),
        skip_nulls=True,
    )
    for name, column in (("label",) * 2, ("label_value",) * 2, ("label_time",) * 2, ("feedback_type", "type")):
        predictions = predictions.append_column(name, latest[column].take(place))
    return predictions


def _first_place(keys: pa.ChunkedArray, among: pa.ChunkedArray) -> pa.ChunkedArray:
    """Index of the first row of `among` that equals each key, null where the key is null or is not there."""
    rows = pa.table({"key": among, "row": pa.array(range(len(among)), pa.int64())}).filter(pc.is_valid(among))
    first = rows.group_by("key", use_threads=False).aggregate([("row", "min")])
    return first["row_min"].take(pc.index_in(keys, value_set=first["key"], skip_nulls=True))
