"""The update: a parent's state and new rows in, the challenger's state out."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor, nn

from cltrain.data.encoder import Encoder, fit_encoder
from cltrain.data.schema import Schema
from cltrain.errors import ConfigError, UpdateError
from cltrain.methods import Absorbed, Method, MethodState
from cltrain.models.build import build_model
from cltrain.models.growth import grow_into, grown, padded
from cltrain.records import LABEL, Cursor
from cltrain.seeding import derive_seed, torch_generator
from cltrain.train.engines.plain import Plain
from cltrain.train.optimizer import adamw, load_optimizer, optimizer_tensors
from cltrain.train.passes import train_passes
from cltrain.train.settings import Training
from cltrain.train.state import State
from cltrain.train.step import Stepper


@dataclass(frozen=True, kw_only=True)
class Trained:
    """rows_trained counts every visit of a row that a gradient was taken of, rehearsed ones (`rows_replayed`) among
    them; loss is the mean over all steps; seconds are of the wall."""

    state: State
    rows_trained: int
    rows_replayed: int
    steps: int
    seconds: float
    loss: float
    parameters: int


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
) -> Trained:
    """Train on the labelled `rows` once: from scratch without a parent, else from where the parent ended, with its
    optimizer.

    The same arguments give the same bits on the same kind of device with the same number of threads; `parent` and the
    caller's random numbers are left alone. Raises `UpdateError` when there is no row to train on, when the parent
    cannot be continued on these rows or when the loss is not finite, and `ConfigError` when the engine lacks what the
    method needs.
    """
    started = time.perf_counter()
    if lacking := sorted(method.needs - engine.offers):
        raise ConfigError(f"{type(method).__name__} needs {', '.join(lacking)}, which {type(engine).__name__} lacks")
    if rows.column(LABEL).null_count:
        rows = rows.filter(pc.is_valid(rows.column(LABEL)))
    if not rows.num_rows:
        raise UpdateError("there is no labelled row to train on")
    cuda = [engine.device] if engine.device.type == "cuda" else []
    with torch.random.fork_rng(cuda):
        torch.manual_seed(derive_seed(seed, "model"))
        if parent is None:
            encoder, remembered = fit_encoder(rows, schema), MethodState()
            net = build_model(model, encoder.spec)
        else:
            encoder = _extended(parent.encoder, rows, schema)
            net = build_model(model, encoder.spec)
            remembered = _continue_from(parent, net)
        batch = encoder(rows)
        if parent is None and (start_at := getattr(net, "start_at", None)):
            start_at(encoder.task, batch.target)
        stepper = Stepper(
            module=engine.wrap(net),
            parameters={name: p for name, p in net.named_parameters() if p.requires_grad},
            optimizer=adamw(net, training),
            task=encoder.task,
            method=method,
            state=_to(remembered, engine.device),
            engine=engine,
            generator=torch_generator(seed, "rehearse"),
            max_grad_norm=training.max_grad_norm,
        )
        if parent is not None:
            load_optimizer(stepper.optimizer, stepper.parameters, parent.optimizer)
        batch = batch.to(engine.device)
        exemplars = encoder(remembered.memory).to(engine.device) if remembered.memory_rows else None
        passed = train_passes(stepper, net, batch, exemplars, training, seed)
        _require_finite(stepper.parameters, passed.loss, passed.steps)
        absorbed = Absorbed(
            model=net, task=encoder.task, rows=rows, batch=batch, seed=seed, shard=engine.shard, reduce=engine.sum
        )
        state = State(
            weights={name: value.detach().cpu().clone() for name, value in net.state_dict().items()},
            optimizer=optimizer_tensors(stepper.optimizer, stepper.parameters),
            method=_to(method.absorb(stepper.state, absorbed), torch.device("cpu")),
            encoder=encoder,
            schema=schema,
            model=dict(model),
            cursor=cursor,
            updates=0 if parent is None else parent.updates + 1,
            steps=passed.steps + (0 if parent is None else parent.steps),
        )
    return Trained(
        state=state,
        rows_trained=passed.rows,
        rows_replayed=passed.replayed,
        steps=passed.steps,
        seconds=time.perf_counter() - started,
        loss=passed.loss,
        parameters=sum(p.numel() for p in stepper.parameters.values()),
    )


def _extended(encoder: Encoder, rows: pa.Table, schema: Schema) -> Encoder:
    have = {f.name for f in schema.features}
    wanted = [c.name for c in encoder.numeric] + [c.name for c in encoder.categorical]
    lacking = [name for name in wanted if name not in have]
    if lacking:
        raise UpdateError(f"the rows lack {', '.join(lacking)}, which the parent was trained on: recalibrate")
    if schema.columns.task != encoder.task:
        raise UpdateError(f"the parent was trained for {encoder.task}, not for {schema.columns.task}: recalibrate")
    return encoder.extended(rows)


def _continue_from(parent: State, net: nn.Module) -> MethodState:
    """Load the parent's weights into `net`, and return what its method remembers, with rows for categories and
    classes that
    are new: no importance, anchored where they start."""
    if not getattr(net, "supports_incremental", True):
        raise UpdateError(
            f"{type(net).__name__} says supports_incremental = False: it cannot continue from a parent; train it from "
            "scratch each time with strategy=periodic or method=from_scratch"
        )
    grow_into(net, parent.weights)
    like = dict(net.named_parameters())
    tensors = {slot: padded(named, like) for slot, named in parent.method.tensors.items()}
    if "anchor" in tensors:
        tensors["anchor"] = {n: grown(n, v, like[n].detach()) for n, v in parent.method.tensors["anchor"].items()}
    return dataclasses.replace(parent.method, tensors=tensors)


def _require_finite(parameters: Mapping[str, Tensor], loss: float, steps: int) -> None:
    if not math.isfinite(loss) or not all(bool(torch.isfinite(p).all()) for p in parameters.values()):
        raise UpdateError(
            f"the loss or the weights are not finite after {steps} steps (mean loss {loss}): lower "
            "train.learning_rate, and look for extreme labels"
        )


def _to(state: MethodState, device: torch.device) -> MethodState:
    tensors = {slot: {n: v.to(device) for n, v in named.items()} for slot, named in state.tensors.items()}
    return dataclasses.replace(state, tensors=tensors)
