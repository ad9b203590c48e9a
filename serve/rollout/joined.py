"""Answered rows and the labels that came for them, joined as the logs grow: what was read once is not read again.

It gives what `join_feedback` gives of the whole logs. Ids are held as 64-bit hashes: of ten million rows and ten
million labels two get mixed up with a chance of one in 200,000.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cltrain.data.served import read_batches, segments, with_columns
from cltrain.online.assignment import bucket
from cltrain.storage import BlobInfo, Storage
from cltrain.task import LOG_LOSS_FLOOR
from serve.logs.strata import LOG_SALT

LABEL, REWARD = 0, 1  # slots of a row
MARGIN_S = 3600.0  # by which clocks of machines and of the store may differ
NEVER = np.iinfo(np.int64).min
NOT_SEEN = (-1, 0.0, 0)
CLASSES = (hash("0") or 1, hash("1") or 1)


class NewRows:
    """What has come to the segments below `folder` since the last look, one segment at a time. after: seconds since
    1970; segments that were last written before it are passed over."""

    def __init__(self, storage: Storage, folder: str, columns: pa.Schema, after: float | None = None) -> None:
        self._storage, self._folder, self._columns, self._after = storage, folder, columns, after
        self._seen: dict[str, tuple[int, float, int]] = {}

    def __iter__(self) -> Iterator[pa.Table]:
        for info in self.pending():
            if (table := self.take(info)).num_rows:
                yield table

    def pending(self) -> list[BlobInfo]:
        """Segments that have changed, by name."""
        found = segments(self._storage, self._folder)
        self._seen = {info.name: self._seen[info.name] for info in found if info.name in self._seen}
        least = -math.inf if self._after is None else self._after - MARGIN_S
        return [i for i in found if i.changed >= least and self._seen.get(i.name, NOT_SEEN)[:2] != (i.size, i.changed)]

    def take(self, info: BlobInfo) -> pa.Table:
        """What is new in a segment."""
        count = self._seen.get(info.name, NOT_SEEN)[2]
        batches = [with_columns(batch, self._columns) for batch in read_batches(self._storage, info.name, count)]
        self._seen[info.name] = (info.size, info.changed, count + len(batches))
        return pa.Table.from_batches(batches, self._columns)


class Places:
    """Where each key is among those that were added, in the order of adding; keys may come again, and 0 is none.
    Sorted runs, each more than twice as long as the next, so that n keys take about n log² n steps."""

    def __init__(self) -> None:
        self._runs: list[tuple[np.ndarray, np.ndarray]] = []
        self._count = 0

    def add(self, keys: np.ndarray) -> None:
        """keys: (N,) int64."""
        real = np.flatnonzero(keys)
        run = _sorted(keys[real], real + self._count)
        self._count += len(keys)
        while self._runs and len(self._runs[-1][0]) <= 2 * len(run[0]):
            last = self._runs.pop()
            run = _sorted(*(np.concatenate(pair) for pair in zip(last, run, strict=True)))
        if len(run[0]):
            self._runs.append(run)

    def find(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All pairs of an index into `keys` and a place where that key was added."""
        found = [(np.empty(0, np.int64),) * 2]
        for known, places in self._runs:
            low = np.searchsorted(known, keys, "left")
            count = np.searchsorted(known, keys, "right") - low
            first = np.cumsum(count) - count
            within = np.arange(count.sum()) - np.repeat(first, count)
            found.append((np.repeat(np.arange(len(keys)), count), places[np.repeat(low, count) + within]))
        indices, places = (np.concatenate(side) for side in zip(*found, strict=True))
        return indices, places


def _sorted(keys: np.ndarray, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(keys, kind="stable")
    return keys[order], places[order]


class Columns:
    """Arrays of one length that grow together."""

    def __init__(self, kinds: Mapping[str, Any]) -> None:
        self._arrays = {name: np.empty(0, kind) for name, kind in kinds.items()}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name][: self._length]

    def append(self, values: Mapping[str, np.ndarray], count: int) -> None:
        if self._length + count > len(next(iter(self._arrays.values()))):
            room = max(2 * self._length, self._length + count, 1024)
            for name, held in self._arrays.items():
                grown = np.empty(room, held.dtype)
                grown[: self._length] = held[: self._length]
                self._arrays[name] = grown
        for name, held in self._arrays.items():
            held[self._length : self._length + count] = values[name]
        self._length += count

    def keep(self, which: np.ndarray) -> None:
        """which: (N,) bool."""
        self._arrays = {name: held[: self._length][which].copy() for name, held in self._arrays.items()}
        self._length = len(next(iter(self._arrays.values())))


_SLOTS = {"time": np.int64, "received": np.int64, "value": np.float64, "text": np.int64}
_ROWS = {
    **dict.fromkeys(("request", "event", "unit", "epoch", "at", "answer"), np.int64),
    **dict.fromkeys(("weight", "draw", "score", "feature"), np.float64),
    "ours": np.bool_,
    **{f"{name}{slot}": kind for slot in (LABEL, REWARD) for name, kind in _SLOTS.items()},
}
_LABELS = {"request": np.int64, "event": np.int64, "slot": np.int8, **_SLOTS}


class Joined:
    """Rows of predictions, and of each the label and the reward that came last: those with the latest label time, and
    of these the one received last. Both may come in any order. `labels_kept` labels wait for rows that are not read
    yet, the newest."""

    def __init__(self, labels_kept: int) -> None:
        self.rows, self.labels = Columns(_ROWS), Columns(_LABELS)
        self._labels_kept = labels_kept
        self._rows_at, self._labels_at = _places(self.rows), _places(self.labels)

    def add_rows(self, rows: Mapping[str, np.ndarray]) -> None:
        """rows: `columns_of` predictions, and `ours`, `epoch`."""
        count, start = len(rows["request"]), len(self.rows)
        for slot in (LABEL, REWARD):
            empty = {f"{name}{slot}": np.full(count, NEVER if name in ("time", "received") else 0) for name in _SLOTS}
            rows = {**empty, **rows}
        self.rows.append(rows, count)
        for name, places in self._rows_at.items():
            places.add(rows[name])
            ours, theirs = self._labels_at[name].find(rows[name])
            self._attach(ours + start, theirs)

    def add_labels(self, feedback: pa.Table, reward_type: str | None) -> None:
        feedback = feedback.filter(pc.is_valid(feedback["label"]))
        count, start = feedback.num_rows, len(self.labels)
        kinds = pc.equal(feedback["type"], reward_type or "") if reward_type else None
        labels = {
            "request": hashes(feedback["request_id"]),
            "event": hashes(feedback["event_id"]),
            "slot": np.zeros(count, np.int8) if kinds is None else np.asarray(pc.fill_null(kinds, False)),
            "time": _micros(feedback["label_time"]),
            "received": _micros(feedback["received_at"]),
            "value": _floats(feedback["label_value"]),
            "text": hashes(feedback["label"]),
        }
        self.labels.append(labels, count)
        for name, places in self._labels_at.items():
            places.add(labels[name])
            theirs, ours = self._rows_at[name].find(labels[name])
            self._attach(ours, theirs + start)
        if len(self.labels) > self._labels_kept:
            self.labels.keep(np.arange(len(self.labels)) >= len(self.labels) - self._labels_kept // 2)
            self._labels_at = _places(self.labels)

    def request_places(self) -> Places:
        return self._rows_at["request"]

    def drop(self, gone: np.ndarray) -> None:
        """Forget these rows: (N,) bool."""
        self.rows.keep(~gone)
        self._rows_at = _places(self.rows)

    def _attach(self, rows: np.ndarray, labels: np.ndarray) -> None:
        """Pairs of a row and a label of it."""
        at, got, slots = self.labels["time"], self.labels["received"], self.labels["slot"]
        for slot in (LABEL, REWARD):
            i, j = (side[slots[labels] == slot] for side in (rows, labels))
            if not len(i):
                continue
            order = np.lexsort((j, -got[j], -at[j], i))
            i, j = i[order], j[order]
            first = np.concatenate(([True], i[1:] != i[:-1]))
            i, j = i[first], j[first]
            held_at, held_got = self.rows[f"time{slot}"][i], self.rows[f"received{slot}"][i]
            newer = (at[j] > held_at) | ((at[j] == held_at) & (got[j] > held_got))
            for name in _SLOTS:
                self.rows[f"{name}{slot}"][i[newer]] = self.labels[name][j[newer]]


def losses(rows: Columns, binary: bool) -> np.ndarray:
    """(N,) losses of rows, NaN where there is no label of the model's kind. Of a multiclass model the log holds the
    class answered and its probability: the loss is that of the question whether it is this class."""
    score, value, answer = rows["score"], rows[f"value{LABEL}"], rows["answer"]
    right = value == 1 if binary else answer == rows[f"text{LABEL}"]
    loss = -np.log(np.clip(np.where(right, score, 1 - score), LOG_LOSS_FLOOR, 1.0))
    loss = np.where(np.isnan(value), np.nan, loss) if binary else loss
    loss = np.where(answer == 0, (score - value) ** 2, loss)
    return np.where(rows[f"time{LABEL}"] == NEVER, np.nan, loss)


def rewards(rows: Columns) -> np.ndarray:
    """(N,) numbers of the rewards, NaN where there is none."""
    return np.where(rows[f"time{REWARD}"] == NEVER, np.nan, rows[f"value{REWARD}"])


def all_binary(rows: Columns) -> bool:
    """Whether every class that was answered is `0` or `1`."""
    return bool(np.isin(rows["answer"], (0, *CLASSES)).all())


def columns_of(predictions: pa.Table, feature: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """What `Joined.add_rows` needs of N predictions, but for `ours` and `epoch`."""
    units = pc.coalesce(predictions["unit_id"], predictions["request_id"]).combine_chunks().dictionary_encode()
    names, place = units.dictionary.to_pylist(), np.asarray(units.indices)
    return {
        "request": hashes(predictions["request_id"]),
        "event": hashes(predictions["event_id"]),
        "unit": np.array([hash(name) for name in names], np.int64)[place],
        "draw": np.array([bucket(name, LOG_SALT) for name in names], np.float64)[place],
        "at": _micros(predictions["time"]),
        "answer": hashes(predictions["label_answer"]),
        "weight": np.asarray(pc.fill_null(predictions["weight"], 1.0)).astype(np.float64),
        "score": _floats(predictions["prediction"]),
        "feature": np.full(predictions.num_rows, np.nan) if feature is None else feature,
    }


def hashes(column: pa.ChunkedArray) -> np.ndarray:
    """(N,) int64, 0 where there is no value."""
    found: Sequence[str | None] = column.to_pylist()
    return np.fromiter((0 if value is None else hash(value) or 1 for value in found), np.int64, len(found))


def _places(columns: Columns) -> dict[str, Places]:
    found = {"request": Places(), "event": Places()}
    for name, places in found.items():
        places.add(columns[name])
    return found


def _micros(column: pa.ChunkedArray) -> np.ndarray:
    return np.asarray(pc.fill_null(column.cast(pa.int64()), NEVER + 1))


def _floats(column: pa.ChunkedArray) -> np.ndarray:
    return column.cast(pa.float64()).to_numpy().astype(np.float64)


class Deadline:
    """Whether `seconds` have passed."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def passed(self) -> bool:
        return time.monotonic() > self._end
