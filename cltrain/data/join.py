"""Predictions joined with the labels that came later, step by step, into files of events that never change.

A row is pending until a label for its request id or its event id is known, and is written out, labelled, in the first
step that knows one: of several labels the one with the latest label time, then the one received last. A row that has
none is expired once the label stream itself is `horizon` past its answer: while no labels come, nobody expires, and
nobody is taken for a negative. What is held in memory is bounded by a block of ids and a group of labels.

`state.json` says which batches have been read, which rows are pending, and which files there are; it is replaced at the
end of a step, in which all else is only added. So a step that was interrupted is done again and nothing is lost or
written twice.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cltrain.data.served import feature_table, read_batches, read_rows, segments, unified
from cltrain.data.values import TIMESTAMP
from cltrain.errors import ConfigError
from cltrain.records import Json, from_json, to_json
from cltrain.storage import Storage

PREDICTIONS, FEEDBACK = "predictions", "feedback"
BLOCK_ROWS = 1_500_000  # of predictions whose ids are looked up at once
GROUP_ROWS = 2_500_000  # of labels that are looked up in at once
PIECE_ROWS = 250_000  # of a file that is written
KEPT = ("version", "epoch", "arm", "experiment", "propensity", "unit_id", "prediction", "label_answer", "weight")
PREFIX = "served."

_TEXT, _NUMBER = pa.string(), pa.float64()
_IDS = pa.schema({"request_id": _TEXT, "event_id": _TEXT, "time": TIMESTAMP, "model": _TEXT})
_KEPT_TYPES = {"epoch": pa.int64(), "propensity": _NUMBER, "prediction": _NUMBER, "weight": _NUMBER}
_ROWS = pa.schema(
    {"request_id": _TEXT, "event_id": _TEXT, "event_time": TIMESTAMP, "time": TIMESTAMP, "features": _TEXT}
    | {name: _KEPT_TYPES.get(name, _TEXT) for name in KEPT}
)
_LABELS = pa.schema(
    {"request_id": _TEXT, "event_id": _TEXT, "type": _TEXT, "label": _TEXT, "label_value": _NUMBER}
    | {"label_time": TIMESTAMP, "received_at": TIMESTAMP}
)
_FOUND = ("label", "label_value", "label_time", "received_at", "type")


@dataclass(frozen=True, kw_only=True)
class JoinSettings:
    """horizon_us: after which a row without a label is expired, or with `negatives` a negative, in microseconds.
    types: of feedback that are labels; none means all. numeric, binary: labels are numbers, and 0 or 1. The other
    names are of the columns to write."""

    horizon_us: int
    model: str | None = None
    negatives: bool = False
    types: tuple[str, ...] = ()
    numeric: bool = True
    binary: bool = True
    event_time: str = f"{PREFIX}event_time"
    label: str = f"{PREFIX}label"
    label_time: str | None = f"{PREFIX}label_time"
    event_id: str | None = f"{PREFIX}request_id"


@dataclass(kw_only=True)
class Read:
    """How far a segment has been read. size: bytes that it had. last_us: when the last of its labels was received."""

    batches: int = 0
    rows: int = 0
    size: int = -1
    last_us: int = 0


@dataclass(kw_only=True)
class Chunk:
    """Batches of a segment of predictions, some of whose rows are pending."""

    segment: str
    first: int
    batches: int
    rows: int
    pending: int


@dataclass(kw_only=True)
class JoinState:
    """watermark_us: when the latest label was received. pending: the file with a bit for each row of the chunks."""

    step: int = 0
    files: list[str] = field(default_factory=list)
    predictions: dict[str, Read] = field(default_factory=dict)
    feedback: dict[str, Read] = field(default_factory=dict)
    chunks: list[Chunk] = field(default_factory=list)
    pending: str | None = None
    watermark_us: int = 0
    model: str | None = None
    counts: dict[str, int] = field(default_factory=dict)

    @classmethod
    def from_json(cls, value: Json) -> JoinState:
        reads = {name: {k: Read(**v) for k, v in value[name].items()} for name in (PREDICTIONS, FEEDBACK)}
        return cls(**{**value, **reads, "chunks": [from_json(Chunk, one) for one in value["chunks"]]})


Ref = tuple[str, int, int]  # segment, first batch, batches


class FeedbackJoin:
    """The join of one store's logs, kept in `folder` of that store. `step` brings it up to date."""

    def __init__(self, storage: Storage, folder: str, settings: JoinSettings) -> None:
        self.storage, self.folder, self.settings = storage, folder, settings

    def state(self) -> JoinState:
        place = f"{self.folder}/state.json"
        return JoinState.from_json(self.storage.read_json(place)) if self.storage.exists(place) else JoinState()

    def step(self) -> JoinState:
        """Take in what was logged since the last step. Two processes take turns."""
        with _alone(self.storage, self.folder):
            return self._step(self.state())

    def _step(self, state: JoinState) -> JoinState:
        there = {info.name for folder in (PREDICTIONS, FEEDBACK) for info in segments(self.storage, folder)}
        labels, old = self._new(FEEDBACK, state.feedback, self._note_label), state.chunks
        asked = self._new(PREDICTIONS, state.predictions, None)
        if not labels and not asked:
            return state
        for read in (state.predictions, state.feedback):
            for name in read.keys() - there:
                del read[name]
        state.watermark_us = max([state.watermark_us, *(read.last_us for read in state.feedback.values())])
        masks = self._masks(state, there)
        new = [Chunk(segment=s, first=f, batches=n, rows=r, pending=r) for (s, f, n), r in asked]
        self._count(state, "labels", sum(rows for _, rows in labels))
        self._count(state, "predictions", sum(rows for _, rows in asked))
        state.step += 1
        done: list[tuple[Chunk, np.ndarray]] = []
        known = [(name, 0, read.batches) for name, read in sorted(state.feedback.items()) if read.batches]
        fresh = _Groups(self, [ref for ref, _ in labels], state.feedback)
        for group in fresh.since(0):
            keys = pc.coalesce(group["request_id"], group["event_id"])
            self._count(state, "duplicates", len(keys) - pc.count_distinct(keys).as_py())
        for chunks, groups, is_new in ((old, fresh, False), (new, _Groups(self, known, state.feedback), True)):
            for block in _blocks([c for c in chunks if c.segment in there]):
                done += self._block(state, block, masks, groups, is_new)
        self._commit(state, done)
        return state

    def _block(
        self,
        state: JoinState,
        block: list[Chunk],
        masks: dict[tuple[str, int], np.ndarray],
        groups: _Groups,
        is_new: bool,
    ) -> list[tuple[Chunk, np.ndarray]]:
        """Write the rows of a block that are no longer pending; what is left of it."""
        ids = pa.concat_tables([read_rows(self.storage, c.segment, c.first, c.batches, _IDS) for c in block])
        pending = np.concatenate([masks.get((c.segment, c.first), np.ones(c.rows, bool)) for c in block])
        if is_new:
            pending &= self._of_model(state, ids["model"])
        times = ids["time"].cast(pa.int64()).to_numpy()
        oldest = int(times[pending].min()) if pending.any() else 0
        places = np.flatnonzero(pending)
        ids = ids.select(["request_id", "event_id"]).take(pa.array(places)).combine_chunks()
        found = _Found(len(places))
        for group in groups.since(oldest - self.settings.horizon_us):
            found.improve(group, ids)
        labelled = found.known
        over = ~labelled & (times[places] + self.settings.horizon_us <= state.watermark_us)
        out = labelled | over if self.settings.negatives else labelled
        self._count(state, "labelled", int(labelled.sum()))
        self._count(state, "negative" if self.settings.negatives else "expired", int(over.sum()))
        edges = np.cumsum([0, *(c.rows for c in block)])
        pieces: list[pa.Table] = []
        for chunk, start, end in zip(block, edges, edges[1:], strict=False):
            here = np.flatnonzero(out & (places >= start) & (places < end))
            if len(here):
                rows = read_rows(self.storage, chunk.segment, chunk.first, chunk.batches, _ROWS)
                for part in np.array_split(here, -(-len(here) // PIECE_ROWS)):
                    taken = rows.take(pa.array(places[part] - start))
                    pieces.append(self._events(taken, found.table.take(pa.array(part))))
                    if sum(len(piece) for piece in pieces) >= PIECE_ROWS:
                        self._write(state, pieces)
                        pieces = []
        self._write(state, pieces)
        pending[places[labelled | over]] = False
        return [(c, pending[start:end]) for c, start, end in zip(block, edges, edges[1:], strict=False)]

    def _events(self, rows: pa.Table, found: pa.Table) -> pa.Table:
        """Columns with a role, those of serving, and the features as they were when the row was answered."""
        told, settings = pc.is_valid(found["received_at"]), self.settings
        zero = pa.scalar(0.0) if settings.numeric else pa.scalar("0")
        label = pc.if_else(told, found["label_value" if settings.numeric else "label"], zero)
        late = pc.add(rows["event_time"], pa.scalar(settings.horizon_us, pa.duration("us")))
        columns: dict[str, Any] = {
            settings.event_time: rows["event_time"],
            settings.label: label,
            settings.label_time or f"{PREFIX}label_time": pc.if_else(told, found["label_time"], late),
            settings.event_id or f"{PREFIX}request_id": rows["request_id"],
            f"{PREFIX}event_id": rows["event_id"],
            f"{PREFIX}time": rows["time"],
            **{f"{PREFIX}{name}": rows[name] for name in KEPT},
            f"{PREFIX}feedback_type": found["type"],
            f"{PREFIX}state": pc.if_else(told, "labelled", "negative"),
        }
        features = feature_table(rows["features"])
        return pa.table(columns | {n: c for n, c in features.items() if n not in columns and not n.startswith(PREFIX)})

    def _write(self, state: JoinState, pieces: list[pa.Table]) -> None:
        if pieces:
            name = f"{state.step:08d}-{sum(n.startswith(f'{state.step:08d}-') for n in state.files):04d}.parquet"
            with self.storage.writing(f"{self.folder}/{name}") as path:
                pq.write_table(unified(pieces), path)
            state.files.append(name)

    def _commit(self, state: JoinState, done: list[tuple[Chunk, np.ndarray]]) -> None:
        left = [(chunk, mask) for chunk, mask in done if mask.any()]
        for chunk, mask in left:
            chunk.pending = int(mask.sum())
        before, state.pending = state.pending, f"pending-{state.step:08d}"
        bits = np.packbits(np.concatenate([mask for _, mask in left])) if left else np.empty(0, np.uint8)
        self.storage.write(f"{self.folder}/{state.pending}", bits.tobytes())
        state.chunks = [chunk for chunk, _ in left]
        self._count(state, "pending", sum(c.pending for c in state.chunks) - state.counts.get("pending", 0))
        self.storage.write_json(f"{self.folder}/state.json", to_json(state))
        if before is not None:
            self.storage.delete(f"{self.folder}/{before}")

    def _masks(self, state: JoinState, there: set[str]) -> dict[tuple[str, int], np.ndarray]:
        """Which rows of each chunk are pending. Chunks whose segment was deleted are given up, and counted."""
        if state.pending is None:
            return {}
        bits = np.frombuffer(self.storage.read(f"{self.folder}/{state.pending}"), np.uint8)
        edges = np.cumsum([0, *(c.rows for c in state.chunks)])
        flat = np.unpackbits(bits, count=int(edges[-1])).astype(bool)
        self._count(state, "lost", sum(c.pending for c in state.chunks if c.segment not in there))
        return {
            (c.segment, c.first): flat[start:end] for c, start, end in zip(state.chunks, edges, edges[1:], strict=False)
        }

    def _new(
        self, folder: str, read: dict[str, Read], note: Callable[[Read, pa.RecordBatch], None] | None
    ) -> list[tuple[Ref, int]]:
        """Batches that were not there before, and their rows."""
        found = []
        for info in segments(self.storage, folder):
            known = read.setdefault(info.name, Read())
            if info.size == known.size:
                continue
            first, rows = known.batches, 0
            for batch in read_batches(self.storage, info.name, first):
                known.batches, rows = known.batches + 1, rows + batch.num_rows
                if note is not None:
                    note(known, batch)
            known.size, known.rows = info.size, known.rows + rows
            if rows:
                found.append(((info.name, first, known.batches - first), rows))
        return found

    @staticmethod
    def _note_label(read: Read, batch: pa.RecordBatch) -> None:
        last = pc.max(batch["received_at"]).cast(pa.int64()).as_py()
        read.last_us = max(read.last_us, last or 0)

    def _of_model(self, state: JoinState, models: pa.ChunkedArray) -> np.ndarray:
        wanted = self.settings.model or state.model
        if wanted is None:
            names = sorted(pc.unique(models).to_pylist())
            if len(names) > 1:
                raise ConfigError(f"the log holds answers of {', '.join(names)}: name one of them, data.model=NAME")
            wanted = state.model = names[0]
        return np.asarray(pc.equal(models, wanted))

    def labels(self, refs: Sequence[Ref]) -> pa.Table:
        """Usable labels of some batches, the one that wins first."""
        table = pa.concat_tables([read_rows(self.storage, *ref, _LABELS) for ref in refs])
        if self.settings.types:
            table = table.filter(pc.is_in(table["type"], pa.array(self.settings.types)))
        if self.settings.binary:
            table = table.filter(pc.is_in(table["label_value"], pa.array([0.0, 1.0])))
        elif self.settings.numeric:
            table = table.filter(pc.is_valid(table["label_value"]))
        return table.take(pc.sort_indices(table, [("label_time", "descending"), ("received_at", "descending")]))

    def _count(self, state: JoinState, name: str, rows: int) -> None:
        state.counts[name] = state.counts.get(name, 0) + rows


class _Groups:
    """Labels in groups that fit into memory; one group stays there for the next block."""

    def __init__(self, join: FeedbackJoin, refs: Sequence[Ref], read: dict[str, Read]) -> None:
        self._join, self._read = join, read
        self._kept: tuple[tuple[Ref, ...], pa.Table] | None = None
        self._groups: list[tuple[Ref, ...]] = []
        rows = GROUP_ROWS
        for ref in refs:
            if rows >= GROUP_ROWS:
                self._groups.append(())
                rows = 0
            self._groups[-1] += (ref,)
            rows += read[ref[0]].rows

    def since(self, received_us: int) -> Iterator[pa.Table]:
        """Groups with labels that were received at `received_us` or later."""
        for group in self._groups:
            if max(self._read[name].last_us for name, _, _ in group) < received_us:
                continue
            if self._kept is None or self._kept[0] != group:
                self._kept = None
                self._kept = group, self._join.labels(group).combine_chunks()
            yield self._kept[1]


class _Found:
    """The best label of each of N rows so far, null where there is none."""

    def __init__(self, rows: int) -> None:
        self.table = pa.table({n: pa.nulls(rows, _LABELS.field(n).type) for n in _FOUND})

    @property
    def known(self) -> np.ndarray:
        return np.asarray(pc.is_valid(self.table["received_at"]))

    def improve(self, labels: pa.Table, ids: pa.Table) -> None:
        """`labels` have the one that wins first."""
        place = pc.min_element_wise(
            first_place(ids["request_id"], labels["request_id"]), first_place(ids["event_id"], labels["event_id"])
        )
        if place.null_count == len(place):
            return
        theirs = pa.table({name: labels[name].take(place) for name in _FOUND})
        better = _later(theirs, self.table)
        self.table = pa.table({n: pc.if_else(better, theirs[n], self.table[n]) for n in _FOUND})


def _later(a: pa.Table, b: pa.Table) -> pa.ChunkedArray:
    """Where the label of `a` wins over that of `b`."""
    equal = pc.and_(pc.equal(a["label_time"], b["label_time"]), pc.greater(a["received_at"], b["received_at"]))
    later = pc.fill_null(pc.or_(pc.greater(a["label_time"], b["label_time"]), equal), False)
    return pc.or_(later, pc.and_(pc.is_valid(a["received_at"]), pc.is_null(b["received_at"])))


def first_place(keys: pa.ChunkedArray, among: pa.ChunkedArray) -> pa.ChunkedArray:
    """Index of the first row of `among` that equals each key, null where the key is null or is not there."""
    places = pc.index_in(keys, value_set=among)
    return pc.if_else(pc.is_valid(keys), places, pa.scalar(None, places.type))


def _blocks(chunks: Sequence[Chunk]) -> Iterator[list[Chunk]]:
    block: list[Chunk] = []
    rows = 0
    for chunk in chunks:
        block.append(chunk)
        rows += chunk.rows
        if rows >= BLOCK_ROWS:
            yield block
            block, rows = [], 0
    if block:
        yield block


@contextmanager
def _alone(storage: Storage, folder: str) -> Iterator[None]:
    """A lock where the store is a folder; an object store has one owner of a join."""
    if not storage.is_local:
        yield
        return
    os.makedirs(storage.path(folder), exist_ok=True)
    with open(storage.path(f"{folder}/.lock"), "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
