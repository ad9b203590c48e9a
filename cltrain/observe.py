"""What a window brings: rows whose labels became known, how well the champion of their moment had predicted them, and
whether the window is sound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import pyarrow as pa

from cltrain.clock import to_us
from cltrain.data.contract import Contract
from cltrain.data.event_log import EventLog
from cltrain.data.shape import Shape
from cltrain.data.snapshot import Snapshots
from cltrain.evaluate.metrics import MetricSums, total
from cltrain.records import EVENT_ID, EVENT_TIME, LABEL, Json, Observation, Round, Snapshot, Window
from cltrain.registry import Registry, VersionRecord
from cltrain.storage import Storage, read_arrow, write_arrow
from cltrain.train.predictor import Predictor, Scores


@dataclass
class Watch:
    """Looks at windows, given the rounds that are `finished`."""

    log: EventLog
    snapshots: Snapshots
    contract: Contract
    registry: Registry
    finished: list[Round]

    def __post_init__(self) -> None:
        self.predictor = lru_cache(maxsize=4)(lambda state: Predictor.load(self._storage, state))
        self._shape = lru_cache(maxsize=2 * self.contract.history)(self._shape_of)

    def observe(self, window: Window, champion: VersionRecord | None) -> Observation:
        """Everything that became known by the end of the window. The contract is held against all events of the window,
        since their labels may come much later; held-out rows are those that became known since the round before."""
        broken = [r.window for r in self.finished if not r.sound]
        self.snapshots.excluded = tuple((to_us(w.start), to_us(w.end)) for w in broken)
        before = self.finished[-1].cursor if self.finished else None
        had = champion.challenger.cursor if champion else None
        arrived = self.snapshots.fresh("arrived", "all", window.end, before)
        rows = self.snapshots.table(arrived)
        inside = int((event_us(rows) >= to_us(window.start)).sum())
        prequential, static = self._test_first(window.index, rows, champion)
        return Observation(
            events=self.log.count(window.start, window.end),
            labelled=rows.num_rows,
            late_labels=arrived.late_rows,
            problems=self.contract.breaches(replace(self._shape(window, arrived), labelled=inside), self._reference()),
            arrived=arrived,
            fresh=self.snapshots.fresh("train", "train", window.end, had),
            # A round by hand comes between two of the series and has, beside the rows of its base, none of its own.
            holdout=self.snapshots.fresh("holdout", "holdout", window.end, had if window.index < 0 else before),
            cursor=self.snapshots.cursor(window.end),
            prequential=prequential,
            static=static,
        )

    def rows(self, seen: Observation) -> pa.Table:
        return self.snapshots.table(seen.arrived)

    def held_out(self, index: int, seen: Observation) -> list[tuple[int, pa.Table]]:
        """Held-out rows of every sound round up to round `index`, which comes last."""
        sound = [(r.index, r.observation.holdout) for r in self.finished if r.sound]
        return [(i, self.snapshots.table(snapshot)) for i, snapshot in [*sound, (index, seen.holdout)]]

    @property
    def _storage(self) -> Storage:
        return self.registry.store.storage

    def _reference(self) -> Shape | None:
        """What the last sound windows of the series were like, added up."""
        sound = [r for r in self.finished if r.index >= 0 and r.observation.events and not r.observation.problems]
        shapes = [
            self._shape(r.window, r.observation.arrived, not self.log.count(r.window.start, r.window.end))
            for r in sound[-self.contract.history :]
        ]
        return sum(shapes, Shape()) if shapes else None

    def _shape_of(self, window: Window, arrived: Snapshot, elsewhere: bool = False) -> Shape:
        """elsewhere: the events are not in this log, since a job on other data had the window; the rows that arrived in
        it are in the store."""
        rows = self.snapshots.table(arrived)
        return self.contract.shape(
            [rows] if elsewhere else self.log.between(window.start, window.end),
            rows.column(LABEL),
            self.log.source.columns.task,
            seconds=(window.end - window.start).total_seconds(),
        )

    def _test_first(self, index: int, rows: pa.Table, champion: VersionRecord | None) -> tuple[Json, Json]:
        """Metrics of the champion of each row's moment and of the first champion, on rows that neither had yet seen.
        The predictions are kept, so that any metric can be computed later."""
        reigns = [(to_us(r.window.end), r.champion) for r in self.finished if r.champion]
        if champion is None or not reigns:
            return {}, {}
        reigns[-1] = (reigns[-1][0], champion.version)
        times = event_us(rows)
        reign = np.searchsorted([start for start, _ in reigns], times, side="right") - 1
        parts = []
        for number in np.unique(reign[reign >= 0]):
            version = reigns[number][1]
            part = rows.filter(pa.array(reign == number))
            scored = self._score(version, part)
            static = self._score(reigns[0][1], part)
            parts.append(
                pa.table(
                    {
                        EVENT_ID: part.column(EVENT_ID),
                        EVENT_TIME: part.column(EVENT_TIME),
                        "version": pa.array([version] * len(scored.target), pa.string()),
                        "target": scored.target,
                        "prediction": scored.predictions,
                        "loss": scored.losses,
                        "static_target": static.target,
                        "static_prediction": static.predictions,
                        "static_loss": static.losses,
                    }
                )
            )
        if not parts:
            return {}, {}
        with self._storage.writing(prequential_name(self.registry.model, index)) as path:
            write_arrow(path, pa.concat_tables(parts))
        task = self.log.source.columns.task
        return tuple(sums.values() for sums in read_prequential(self._storage, self.registry.model, task, [index]))  # type: ignore[return-value]

    def _score(self, version: str, rows: pa.Table) -> Scores:
        return self.predictor(self.registry.version(version).state).score(rows)


def prequential_name(model: str, index: int) -> str:
    return f"prequential/{model}/{index:06d}.arrow"


def read_prequential(storage: Storage, model: str, task: str, indices: Sequence[int]) -> tuple[MetricSums, MetricSums]:
    """Sums over rounds: of the champion of the moment, and of the first champion."""
    ours: list[MetricSums] = []
    static: list[MetricSums] = []
    for index in indices:
        name = prequential_name(model, index)
        if storage.exists(name):
            table = read_arrow(storage.local_copy(name))
            for sums, prefix in ((ours, ""), (static, "static_")):
                columns = [np.asarray(table.column(prefix + c)) for c in ("prediction", "target", "loss")]
                sums.append(MetricSums.of(Scores(task, *columns)))
    return total(task, ours), total(task, static)


def event_us(rows: pa.Table) -> np.ndarray:
    return np.asarray(rows.column(EVENT_TIME).cast(pa.int64()))
