"""The update: a parent's state and new rows in, the challenger's state out."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch

from cltrain.data.schema import Schema
from cltrain.methods import Method
from cltrain.models.adapter import LoRA, NoAdapter
from cltrain.models.surgery import Carried
from cltrain.records import Cursor
from cltrain.seeding import derive_seed
from cltrain.train.checkpoint import Checkpoints
from cltrain.train.engines.plain import Plain
from cltrain.train.learner import Learner, labelled
from cltrain.train.settings import Training
from cltrain.train.state import State


@dataclass(frozen=True, kw_only=True)
class Trained:
    """rows_trained counts every visit of a row that a gradient was taken of, rehearsed ones (`rows_replayed`) among
    them; loss is the mean over all steps; seconds are of the wall, and absorb_seconds those of them in which the method
    remembered, as for the Fisher."""

    state: State
    rows_trained: int
    rows_replayed: int
    steps: int
    seconds: float
    absorb_seconds: float
    loss: float
    parameters: int
    carried: Carried | None = None


def train_update(
    rows: pa.Table,
    *,
    parent: State | None,
    schema: Schema,
    model: Mapping[str, Any],
    method: Method,
    training: Training,
    cursor: Cursor,
    seed: int,
    engine: Plain,
    checkpoints: Checkpoints | None = None,
    adapter: LoRA | NoAdapter | None = None,
    transfer: Mapping[str, str | None] | None = None,
) -> Trained:
    """Train on the labelled `rows` once: from scratch without a parent, else from where the parent ended, with its
    optimizer.

    The same arguments give the same bits on the same kind of device with the same number of threads; `parent` and the
    caller's random numbers are left alone. With `checkpoints` an update that was interrupted goes on where the last
    of them was taken, and ends with the same bits. `adapter` trains a small part of a large model; `transfer` carries
    the parent over to another architecture (names of its parameters by those of the new ones, where they differ).
    Raises `UpdateError` when there is no row to train on, when the
    parent cannot be continued on these rows or when the loss is not finite, and `ConfigError` when the engine lacks
    what the method needs.
    """
    started = time.perf_counter()
    rows = labelled(rows)
    with torch.random.fork_rng([engine.device] if engine.device.type == "cuda" else []):
        torch.manual_seed(derive_seed(seed, "model"))
        learner = Learner.start(
            rows,
            parent=parent,
            schema=schema,
            model=model,
            method=method,
            training=training,
            seed=seed,
            engine=engine,
            adapter=adapter,
            transfer=transfer,
        )
        passed = learner.fit(rows, checkpoints)
        state = learner.state(cursor)
    return Trained(
        state=state,
        rows_trained=passed.rows,
        rows_replayed=passed.replayed,
        steps=passed.steps,
        seconds=time.perf_counter() - started,
        absorb_seconds=learner.absorb_seconds,
        loss=passed.loss,
        parameters=learner.running.num_parameters(),
        carried=learner.carried,
    )
