"""One trial: a training on the rows of its periods, evaluated on all later periods that need it. What it gives depends
on its settings and on nothing else, so that it may run anywhere."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from cltrain.config import build
from cltrain.data.event_log import row_times
from cltrain.data.holdout import is_held_out
from cltrain.data.schema import Schema
from cltrain.data.snapshot import read_rows
from cltrain.errors import CltrainError, UpdateError
from cltrain.evaluate.metrics import MetricSums
from cltrain.methods import Method
from cltrain.records import EVENT_ID, Cursor, Json
from cltrain.seeding import derive_seed, hash_ids
from cltrain.storage import Storage, digest_json
from cltrain.train.engines import AutoEngine
from cltrain.train.predictor import Predictor
from cltrain.train.state import State, load_state, save_state, schema_from_json
from cltrain.train.update import train_update

QUARTERS = (0.25, 0.5, 0.75)
KEPT_TABLES = 64
NOWHERE = Cursor(until=datetime.fromtimestamp(0, UTC), files=())


def trial_key(work: Mapping[str, Any], trial: Mapping[str, Any]) -> str:
    """Name of what a trial gives: of all that it depends on."""
    shared = {name: work[name] for name in ("settings", "seed", "eval_rows", "slices", "holdout_share")}
    return digest_json([shared, {name: value for name, value in trial.items() if name != "trial"}])[:32]


def state_folder(key: str) -> str:
    return f"freshness/states/{key}"


def run_trial(work: Mapping[str, Any], trial: Mapping[str, Any]) -> Json:
    """`work`: root of the store, settings, seed, threads, device, eval_rows, slices and holdout_share; `trial`: see
    `cltrain.freshness.grid`, with the `key` of its own and of its parent. Returns cells (by evaluation window: rows,
    mean loss, metrics and slices), rows (visits), seconds and error. A link of a chain leaves its state in the store
    for the next."""
    torch.set_num_threads(work["threads"])
    started = time.perf_counter()
    result: Json = {"cells": None, "rows": None, "seconds": 0.0, "error": None}
    try:
        storage = Storage(work["root"])
        state, result["rows"] = _trained(work, trial, storage)
        seconds = time.perf_counter() - started
        if trial["mode"] == "stateful":
            save_state(state, storage, state_folder(trial["key"]))
        result["cells"] = _cells(work, trial, Predictor.of(state))
        result["seconds"] = round(seconds, 3)
    except CltrainError as error:
        result["error"] = str(error)
    return result


def _trained(work: Mapping[str, Any], trial: Mapping[str, Any], storage: Storage) -> tuple[State, int]:
    settings = work["settings"]
    parent = load_state(storage, state_folder(trial["parent"])) if trial["parent"] else None
    rows = training_rows(
        [_table(work["root"], digest) for digest in trial["train"]],
        since=trial["since"],
        until=trial["until"],
        count=trial["rows"],
        holdout_share=work["holdout_share"],
        salt=derive_seed(work["seed"], "rows", trial["seed"], trial["until"]),
    )
    if not rows.num_rows and parent is not None:
        return parent, 0
    method: Method = build(settings["method"], "method")
    kind = "stateless" if parent is None or method.restarts else "stateful"
    trained = train_update(
        rows,
        parent=parent,
        schema=_schema(storage, trial["train"][-1]),
        model=settings["model"],
        method=method,
        training=build(settings["train"][kind], f"train.{kind}"),
        cursor=NOWHERE,
        seed=derive_seed(work["seed"], "freshness", trial["seed"], trial["until"]),
        engine=AutoEngine().here(torch.device(work["device"])),
        adapter=build(settings["adapter"], "adapter"),
    )
    return trained.state, trained.rows_trained


def training_rows(
    tables: Sequence[pa.Table], *, since: int | None, until: int, count: int, holdout_share: float, salt: int
) -> pa.Table:
    """At most `count` rows of `tables`, in their order, chosen by a hash of their ids: those whose labels became known
    before `until` (microseconds), and not before `since`; never one that is held out."""
    kept = []
    for table in tables:
        _, visible, good = row_times(table)
        found = np.flatnonzero(good & (visible < until) & (visible >= (-(2**62) if since is None else since)))
        ids = table.column(EVENT_ID).take(pa.array(found))
        kept.append(table.take(pa.array(found[~is_held_out(ids, holdout_share)])))
    rows = pa.concat_tables(kept)
    if rows.num_rows <= count:
        return rows
    order = np.argsort(hash_ids(rows.column(EVENT_ID), salt=salt), kind="stable")[:count]
    return rows.take(pa.array(np.sort(order)))


def trainable_times(table: pa.Table, holdout_share: float) -> np.ndarray:
    """When the labels of the rows that may be trained on became known, sorted, (N,) int64 microseconds."""
    _, visible, good = row_times(table)
    return np.sort(visible[good & ~is_held_out(table.column(EVENT_ID), holdout_share)])


def _cells(work: Mapping[str, Any], trial: Mapping[str, Any], predictor: Predictor) -> Json:
    cells: Json = {}
    for window, digest in trial["evals"].items():
        rows = _eval_rows(work["root"], digest, work["eval_rows"])
        scores = predictor.score(rows)
        loss = float(scores.losses.mean())
        if not math.isfinite(loss):
            raise UpdateError(f"the loss on the rows of period {window} is {loss}")
        cells[window] = {"loss": loss, **MetricSums.of(scores).values()}
        if work["slices"]:
            place = slice_of(rows, work["slices"])
            names = [*work["slices"]["names"]]
            count = np.bincount(place, minlength=len(names) + 1)[: len(names)]
            total = np.bincount(place, scores.losses, len(names) + 1)[: len(names)]
            cells[window]["slices"] = {
                name: [int(n), float(v / n)] for name, n, v in zip(names, count, total, strict=True) if n
            }
    return cells


def slices_of(tables: Sequence[pa.Table], column: str, at_most: int) -> Json:
    """How rows are put into slices: by the commonest values of a categorical column, or by quarters of a numeric
    one."""
    values = pa.chunked_array([c for table in tables for c in table.column(column).chunks])
    if pa.types.is_floating(values.type):
        numbers = np.asarray(values.drop_null())
        edges = np.unique(np.quantile(numbers, QUARTERS)).tolist() if len(numbers) else []
        names = [f"{column} < {edge:.4g}" for edge in edges] + [f"{column} ≥ {edges[-1]:.4g}" if edges else column]
        for i in range(1, len(edges)):
            names[i] = f"{edges[i - 1]:.4g} ≤ {names[i]}"
        return {"column": column, "edges": edges, "values": None, "names": names}
    counted = pc.value_counts(values.drop_null()).to_pylist()
    common = sorted(counted, key=lambda item: (-item["counts"], item["values"]))[:at_most]
    found = [item["values"] for item in common]
    return {"column": column, "edges": None, "values": found, "names": [f"{column} = {value}" for value in found]}


def slice_of(table: pa.Table, slices: Mapping[str, Any]) -> np.ndarray:
    """Number of the slice of each row, (N,); the number of slices for a row of none."""
    column, nowhere = table.column(slices["column"]), len(slices["names"])
    if slices["edges"] is not None:
        numbers = np.asarray(pc.fill_null(column, np.nan), np.float64)
        return np.where(np.isnan(numbers), nowhere, np.searchsorted(slices["edges"], numbers, side="right"))
    return np.asarray(pc.fill_null(pc.index_in(column, pa.array(slices["values"], column.type)), nowhere), np.int64)


@lru_cache(maxsize=KEPT_TABLES)
def _table(root: str, digest: str) -> pa.Table:
    return read_rows(Storage(root), digest)


@lru_cache(maxsize=KEPT_TABLES)
def _eval_rows(root: str, digest: str, count: int) -> pa.Table:
    table = _table(root, digest)
    if table.num_rows <= count:
        return table
    order = np.argsort(hash_ids(table.column(EVENT_ID), salt=derive_seed(0, "evaluation")), kind="stable")[:count]
    return table.take(pa.array(np.sort(order)))


@lru_cache(maxsize=KEPT_TABLES)
def _schema_of(root: str, digest: str) -> Schema:
    manifest = Storage(root).read_json(f"snapshots/{digest}.json")
    return schema_from_json({"columns": manifest["columns"], "features": manifest["features"], "ignored": []})


def _schema(storage: Storage, digest: str) -> Schema:
    return _schema_of(storage.root, digest)
