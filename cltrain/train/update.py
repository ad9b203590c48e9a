"""The update: a parent's state and new rows in, the challenger's state out."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch

from cltrain.batch import Batch
from cltrain.data.encoder import Encoder, fit_encoder
from cltrain.data.schema import Schema
from cltrain.errors import ConfigError, UpdateError
from cltrain.methods import Absorbed, Method, MethodState
from cltrain.models.build import build_model
from cltrain.models.growth import grow_into, grown, padded
from cltrain.records import Cursor
from cltrain.seeding import derive_seed, torch_generator
from cltrain.task import row_losses
from cltrain.train.engines.plain import Plain
from cltrain.train.settings import Training
from cltrain.train.state import State, load_optimizer, optimizer_tensors
from cltrain.train.step import Stepper


@dataclass(frozen=True, kw_only=True)
class Trained:
    """rows_trained counts every visit of a row that a gradient was taken of, rehearsed ones (`rows_replayed`) among them;
    loss is the mean over all steps; seconds are of the wall."""

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
    """Train on `rows` once: from scratch without a parent, else from where the parent ended, with its optimizer.

    The same arguments give the same bits on the same kind of device with the same number of threads. Raises
    `UpdateError` when there are no rows or the loss is not finite, `ConfigError` when the engine lacks what the method needs.
    """
    started = time.perf_counter()
    if lacking := method.needs - engine.offers:
        raise ConfigError(f"{type(method).__name__} needs {', '.join(lacking)}, which {type(engine).__name__} lacks")
    if not rows.num_rows:
        raise UpdateError("there is no row to train on")
    torch.manual_seed(derive_seed(seed, "model"))
    encoder = fit_encoder(rows, schema) if parent is None else parent.encoder.extended(rows)
    net = build_model(model, encoder.spec)
    remembered = MethodState()
    if parent is not None:
        grow_into(net, parent.weights)
        remembered = _carry_over(parent, net)
    module = engine.wrap(net)
    parameters = {name: p for name, p in net.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        parameters.values(), lr=training.learning_rate, weight_decay=training.weight_decay, foreach=True
    )
    if parent is not None:
        _restore_optimizer(optimizer, parent, parameters)
    stepper = Stepper(
        module=module,
        parameters=parameters,
        optimizer=optimizer,
        task=encoder.task,
        method=method,
        state=_to(remembered, engine.device),
        exemplars=encoder(remembered.memory).to(engine.device) if remembered.memory_rows else None,
        engine=engine,
        generator=torch_generator(seed, "update"),
        max_grad_norm=training.max_grad_norm,
        unknown_rate=training.unknown_rate,
    )
    batch = encoder(rows).to(engine.device)
    kept_aside = training.validation_rows(len(batch))
    shuffled = torch.randperm(len(batch), generator=stepper.generator).to(engine.device)
    validation, learned = shuffled[:kept_aside], shuffled[kept_aside:]
    best = _Best(net, optimizer, encoder.task, batch, engine.shard(validation), engine)
    batch_size, epochs = training.plan(len(learned))
    all_steps = epochs * -(-len(learned) // batch_size)
    steps = visited = replayed = 0
    loss_sum = torch.zeros((), device=engine.device)
    for _ in range(epochs):
        module.train()
        epoch_rows = stepper.hide_categories(batch)
        order = learned[torch.randperm(len(learned), generator=stepper.generator).to(engine.device)]
        for index in order.split(batch_size):
            for group in optimizer.param_groups:
                group["lr"] = training.learning_rate_at(steps / all_steps)
            loss, rehearsed = stepper.step(epoch_rows, index)
            loss_sum += loss
            visited += len(index) + rehearsed
            replayed += rehearsed
            steps += 1
        if kept_aside and best.passes_since() >= training.passes_without_gain(epochs):
            break
    if kept_aside:
        best.restore()
    loss = engine.sum(loss_sum).item() / steps
    if not all(bool(torch.isfinite(p).all()) for p in parameters.values()):
        raise UpdateError(f"the weights are not finite after {steps} steps (mean loss {loss}): lower train.learning_rate")
    net.eval()
    absorbed = Absorbed(
        model=net, task=encoder.task, rows=rows, batch=batch, seed=seed, shard=engine.shard, reduce=engine.sum
    )
    state = State(
        weights={name: value.detach().cpu() for name, value in net.state_dict().items()},
        optimizer=optimizer_tensors(optimizer, list(parameters)),
        method=_to(method.absorb(stepper.state, absorbed), torch.device("cpu")),
        encoder=encoder,
        schema=schema,
        model=dict(model),
        cursor=cursor,
        updates=0 if parent is None else parent.updates + 1,
        steps=steps + (0 if parent is None else parent.steps),
    )
    return Trained(
        state=state,
        rows_trained=visited,
        rows_replayed=replayed,
        steps=steps,
        seconds=time.perf_counter() - started,
        loss=loss,
        parameters=sum(p.numel() for p in parameters.values()),
    )


@dataclass
class _Best:
    """The best state of a model so far, by its loss on validation rows, this rank's `share` of which is at hand."""

    net: torch.nn.Module
    optimizer: torch.optim.Optimizer
    task: str
    batch: Batch
    share: torch.Tensor
    engine: Plain
    loss: float = float("inf")
    passes: int = 0
    saved: Any = None

    def passes_since(self) -> int:
        """Look at the model as it is now; how many looks in a row were no better than the best one?"""
        self.net.eval()
        with torch.inference_mode():
            part = self.batch.take(self.share)
            loss = self.engine.sum(row_losses(self.task, self.net(**part.inputs), part.target).sum()).item()
        if loss < self.loss:
            self.loss, self.passes = loss, 0
            self.saved = copy.deepcopy((self.net.state_dict(), self.optimizer.state_dict()))
        else:
            self.passes += 1
        return self.passes

    def restore(self) -> None:
        if self.saved is not None:
            self.net.load_state_dict(self.saved[0])
            self.optimizer.load_state_dict(self.saved[1])


def _carry_over(parent: State, net: torch.nn.Module) -> MethodState:
    """The parent's memory and tensors, with rows for categories that are new: no importance, anchored where they start."""
    like = dict(net.named_parameters())
    tensors = {slot: padded(named, like) for slot, named in parent.method.tensors.items()}
    if "anchor" in tensors:
        tensors["anchor"] = {n: grown(n, v, like[n].detach()) for n, v in parent.method.tensors["anchor"].items()}
    return dataclasses.replace(parent.method, tensors=tensors)


def _restore_optimizer(
    optimizer: torch.optim.Optimizer, parent: State, parameters: Mapping[str, torch.Tensor]
) -> None:
    found: dict[str, torch.Tensor] = {}
    for key, value in parent.optimizer.items():
        name = key.split("/", 1)[1]
        like = parameters[name].detach().cpu()
        found[key] = grown(key, value, torch.zeros_like(like)) if value.dim() and value.shape != like.shape else value
    load_optimizer(optimizer, list(parameters), found)


def _to(state: MethodState, device: torch.device) -> MethodState:
    tensors = {slot: {n: v.to(device) for n, v in named.items()} for slot, named in state.tensors.items()}
    return dataclasses.replace(state, tensors=tensors)


def check_encoder(encoder: Encoder, schema: Schema) -> None:
    """Raise `UpdateError` unless rows of `schema` have every column that `encoder` was fitted on."""
    have = {f.name for f in schema.features}
    lacking = [c.name for c in (*encoder.numeric, *encoder.categorical) if c.name not in have]
    if lacking:
        raise UpdateError(f"the rows lack {', '.join(lacking)}, which the parent was trained on: recalibrate")
