"""One trial of a search: settings and rows in, a score out."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from cltrain.config import build
from cltrain.data.encoder import fit_encoder
from cltrain.data.schema import Schema
from cltrain.data.snapshot import read_rows
from cltrain.errors import CltrainError, ConfigError, UpdateError
from cltrain.evaluate import headline
from cltrain.evaluate.metrics import MetricSums
from cltrain.methods import Method
from cltrain.models.build import build_model, supports_incremental
from cltrain.records import EVENT_ID, EVENT_TIME, Cursor, Json
from cltrain.search import GROUPS, Search, Values, legs, needs_stateful, with_settings
from cltrain.seeding import derive_seed, hash_ids
from cltrain.storage import Storage
from cltrain.train.engines import AutoEngine
from cltrain.train.learner import labelled
from cltrain.train.predictor import Predictor
from cltrain.train.state import State, schema_from_json
from cltrain.train.update import train_update

ROWS_TO_TRY = 2_000
NOWHERE = Cursor(until=datetime.fromtimestamp(0, UTC), files=())


def search_work(search: Search, space: Mapping[str, Values], settings: Mapping[str, Any], snapshot: str) -> Json:
    """What all trials of a search on the rows of `snapshot` share; it names them in the store."""
    return {
        "snapshot": snapshot,
        "validation_share": search.validation_share,
        "settings": {key: settings[key] for key in GROUPS},
        "stateful": needs_stateful(space) and supports_incremental(settings["model"]),
        "seed": derive_seed(settings["seed"], "search"),
    }


def rows_of_trials(
    rows: pa.Table, space: Mapping[str, Values], settings: Mapping[str, Any], schema: Schema, newest: float
) -> int:
    """How many rows a trial can train on. Raises `ConfigError` that names the key of a value the model cannot have."""
    rows = labelled(rows)
    spec = fit_encoder(rows.slice(0, ROWS_TO_TRY), schema).spec
    for key, values in space.items():
        for value in values.extremes if key.startswith("model.") else ():
            try:
                with torch.random.fork_rng([]):
                    build_model(with_settings(settings, {key: value})["model"], spec)
            except (ConfigError, RuntimeError, TypeError, ValueError) as error:
                raise ConfigError(f"search.space: {key}={value!r} cannot be: {error}") from error
    return rows.num_rows - _apart(rows.num_rows, newest)


def _apart(rows: int, newest: float) -> int:
    return min(max(1, round(rows * newest)), rows - 1)


def by_time(rows: pa.Table, newest: float) -> tuple[pa.Table, pa.Table]:
    """The labelled rows in the order of their time, the share `newest` apart. A version answers what comes after its
    rows: rows drawn at random from among them would favour settings that fit what passes."""
    rows = labelled(rows)
    ties = hash_ids(rows.column(EVENT_ID), salt=0)
    order = np.lexsort((ties, np.asarray(rows.column(EVENT_TIME).cast(pa.int64()))))
    apart = _apart(len(order), newest)
    return rows.take(pa.array(order[:-apart])), rows.take(pa.array(order[-apart:]))


def sample(rows: pa.Table, count: int) -> pa.Table:
    """So many rows, in their order, drawn from all times: where the world moves, the newest ones alone would do better
    than all of them, whatever the settings."""
    if count >= rows.num_rows:
        return rows
    order = np.argsort(hash_ids(rows.column(EVENT_ID), salt=derive_seed(0, "trial")), kind="stable")[:count]
    return rows.take(pa.array(np.sort(order)))


def run_trial(work: Mapping[str, Any], trial: Mapping[str, Any]) -> Json:
    """`work`: root and snapshot of the rows, validation_share, settings, stateful, seed, threads and device; `trial`:
    the settings that differ, and how many rows it is of. Returns score (the
    task's headline metric there, lower is better), rows (visits), seconds and error.

    With `stateful`, the older rows are learned from scratch and the newer ones by one update with the method."""
    torch.set_num_threads(work["threads"])
    started = time.perf_counter()
    result: Json = {"score": None, "rows": None, "seconds": 0.0, "error": None}
    try:
        result |= _trained(work, with_settings(work["settings"], trial["settings"]), trial["of_rows"])
    except CltrainError as error:
        result["error"] = str(error)
    return result | {"seconds": round(time.perf_counter() - started, 3)}


def _trained(work: Mapping[str, Any], settings: Mapping[str, Any], of_rows: int) -> Json:
    known, newest = _split(work["root"], work["snapshot"], work["validation_share"])
    method: Method = build(settings["method"], "method")
    known = sample(known, of_rows)
    first, _ = legs(of_rows, work["stateful"] and method.stateful and not method.restarts)
    engine = AutoEngine().here(torch.device(work["device"]))
    state: State | None = None
    visits = 0
    for kind, rows in (("stateless", known.slice(0, first)), ("stateful", known.slice(first))):
        if rows.num_rows:
            trained = train_update(
                rows,
                parent=state,
                schema=_schema(Storage(work["root"]), work["snapshot"]),
                model=settings["model"],
                method=method,
                training=build(settings["train"][kind], f"train.{kind}"),
                cursor=NOWHERE,
                seed=work["seed"],
                engine=engine,
                adapter=build(settings["adapter"], "adapter"),
            )
            state, visits = trained.state, visits + trained.rows_trained
    assert state is not None
    scores = Predictor.of(state).score(newest)
    score = MetricSums.of(scores).values()[headline(scores.task)]
    if not math.isfinite(score):
        raise UpdateError(f"the validation {headline(scores.task)} is {score}")
    return {"score": score, "rows": visits}


@lru_cache(maxsize=1)
def _split(root: str, snapshot: str, newest: float) -> tuple[pa.Table, pa.Table]:
    return by_time(read_rows(Storage(root), snapshot), newest)


def _schema(storage: Storage, snapshot: str) -> Schema:
    manifest = storage.read_json(f"snapshots/{snapshot}.json")
    return schema_from_json({"columns": manifest["columns"], "features": manifest["features"], "ignored": []})
