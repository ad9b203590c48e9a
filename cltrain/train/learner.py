"""A model in training, with all that a version has: it starts from a parent, learns from rows, and becomes a state."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor

from cltrain.batch import Batch
from cltrain.data.encoder import Encoder
from cltrain.data.schema import Schema
from cltrain.errors import ConfigError, UpdateError
from cltrain.methods import Absorbed, Method, MethodState
from cltrain.methods.base import OUTPUTS
from cltrain.models.adapter import LoRA, NoAdapter
from cltrain.models.surgery import Carried
from cltrain.records import LABEL, Cursor
from cltrain.train.beginning import by_surgery, extended, from_nothing, from_parent
from cltrain.train.checkpoint import Checkpoints
from cltrain.train.engines.plain import Plain, Running
from cltrain.train.loader import encode, place
from cltrain.train.optimizer import make_optimizer, slots
from cltrain.train.passes import Passed, train_passes
from cltrain.train.settings import Training
from cltrain.train.state import State
from cltrain.train.step import Stepper

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Learner:
    """`encoder`, `schema` and `model` (settings) are those of the state that it becomes; `remembered` is what the
    method does, whole and on the CPU. Every rank of `engine` has one, and makes the same calls."""

    encoder: Encoder
    schema: Schema
    model: Mapping[str, Any]
    method: Method
    training: Training
    engine: Plain
    running: Running
    remembered: MethodState
    seed: int
    knew: int | None = None
    base: Mapping[str, Tensor] | None = None
    adapter: LoRA | NoAdapter = field(default_factory=NoAdapter)
    carried: Carried | None = None
    updates: int = 0
    steps: int = 0
    absorb_seconds: float = 0.0

    @classmethod
    def start(
        cls,
        rows: pa.Table,
        *,
        parent: State | None,
        schema: Schema,
        model: Mapping[str, Any],
        method: Method,
        training: Training,
        seed: int,
        engine: Plain,
        adapter: LoRA | NoAdapter | None = None,
        transfer: Mapping[str, str | None] | None = None,
    ) -> Learner:
        """From scratch on labelled `rows` without a parent, else from where the parent ended, with its optimizer and
        what `rows` make new; with `transfer` (parameters of the parent by the names of the new ones, maybe none) by
        surgery. Draws from torch's generator to initialise weights."""
        if lacking := sorted(method.needs - engine.offers):
            raise ConfigError(
                f"{type(method).__name__} needs {', '.join(lacking)}, which {type(engine).__name__} lacks"
            )
        adapter = adapter or NoAdapter()
        if method.restarts:
            remembered = method.admit(MethodState() if parent is None else parent.method, rows)
            assert remembered.memory is not None
            encoder = None if parent is None else extended(parent.encoder, rows, schema)
            begun = from_nothing(remembered.memory, schema, model, adapter, encoder)
            begun = dataclasses.replace(begun, remembered=remembered)
        elif parent is None:
            begun = from_nothing(rows, schema, model, adapter)
        elif transfer is not None:
            begun = by_surgery(parent, rows, schema, model, transfer)
        else:
            begun = from_parent(parent, rows, schema, model, adapter)
            _warn_of_new_classes(begun.encoder.classes[len(parent.encoder.classes) :], method)
        running = engine.begin(begun.net, lambda module: make_optimizer(module, training))
        if {key.split("/", 1)[0] for key in begun.optimizer} == slots(training):  # another optimizer starts afresh
            running.load_optimizer(begun.optimizer)
        return cls(
            encoder=begun.encoder,
            schema=schema,
            model=dict(model),
            method=method,
            training=training,
            engine=engine,
            running=running,
            remembered=begun.remembered,
            seed=seed,
            knew=begun.knew,
            base=begun.base,
            adapter=adapter,
            carried=begun.carried,
            updates=0 if parent is None else parent.updates + 1,
            steps=0 if parent is None else parent.steps,
        )

    def fit(self, rows: pa.Table, checkpoints: Checkpoints | None = None) -> Passed:
        """Train on labelled `rows`, pass after pass, and absorb them."""
        if self.method.restarts:
            assert self.remembered.memory is not None
            rows = self.remembered.memory
        batch = encode(self.encoder, rows, self.training.memory_gib)
        if "parent" in self.method.reads and self.knew is not None:
            batch = dataclasses.replace(batch, extra={"parent": self._outputs(batch)[:, : self.knew]})
        batch, ahead = place(batch, self.engine, self.training)
        exemplars = self.exemplars()
        if exemplars is not None:
            exemplars = exemplars if ahead else exemplars.to(self.engine.device)
        stepper = self.stepper()
        passed = train_passes(
            stepper,
            batch,
            exemplars,
            self.training,
            self.seed,
            staying=self.method.staying(self.remembered, rows),
            num_outputs=self.encoder.num_outputs,
            ahead=ahead,
            checkpoints=checkpoints,
        )
        self._require_finite(passed)
        self.steps += passed.steps
        self.absorb(rows, batch, stepper.state, passed.said)
        return passed

    def stepper(self) -> Stepper:
        """What takes steps on the model; it works on pieces of its own of what the method remembers."""
        pieces = {slot: self.running.scatter(named) for slot, named in self.remembered.tensors.items()}
        return Stepper(
            running=self.running,
            task=self.encoder.task,
            method=self.method,
            state=dataclasses.replace(self.remembered, tensors=pieces),
            engine=self.engine,
            training=self.training,
        )

    def exemplars(self) -> Batch | None:
        """The memory as tensors, on the CPU, with the outputs that it holds."""
        memory = self.remembered.memory
        if memory is None or not memory.num_rows or self.method.restarts:
            return None
        batch = self.encoder(memory)
        if "outputs" in self.method.reads and OUTPUTS in memory.column_names:
            batch = dataclasses.replace(batch, extra=stored_outputs(memory.column(OUTPUTS), self.encoder.num_outputs))
        return batch

    def absorb(self, rows: pa.Table, batch: Batch, state: MethodState, said: Tensor | None = None) -> None:
        """Let the method remember `rows`, which were learned. `state` is that of the stepper, `said` of `Passed`."""
        started = time.perf_counter()
        whole = {slot: self.running.gather(pieces) for slot, pieces in sorted(state.tensors.items())}
        with self.running.whole() as net:
            absorbed = Absorbed(
                model=net,
                task=self.encoder.task,
                rows=rows,
                batch=batch,
                seed=self.seed,
                encode=self.encoder,
                said=said,
                shard=self.engine.shard,
                reduce=self.engine.sum,
            )
            found = self.method.absorb(dataclasses.replace(state, tensors=whole), absorbed)
        tensors = {s: {n: v.detach().cpu() for n, v in named.items()} for s, named in found.tensors.items()}
        self.remembered = dataclasses.replace(found, tensors=tensors)
        self.absorb_seconds += time.perf_counter() - started

    def state(self, cursor: Cursor) -> State:
        return State(
            weights=self.running.weights(),
            optimizer=self.running.optimizer_tensors(),
            method=self.remembered,
            encoder=self.encoder,
            schema=self.schema,
            model=self.model,
            adapter=None if self.base is None else dataclasses.asdict(self.adapter),
            base=self.base,
            cursor=cursor,
            updates=self.updates,
            steps=self.steps,
        )

    def _outputs(self, batch: Batch) -> Tensor:
        """What the model says of rows now, (N, C)."""
        self.running.net.eval()
        with torch.no_grad():
            parts = [self.running.module(**part.to(self.engine.device).inputs).float() for part in batch.chunks()]
        return torch.cat(parts).to(batch.target.device)

    def _require_finite(self, passed: Passed) -> None:
        bad = torch.tensor(float(not torch.isfinite(torch.tensor(passed.loss))))
        for value in self.running.pieces().values():
            bad += float(not torch.isfinite(value).all())
        if self.engine.sum(bad.to(self.engine.device)).item():
            raise UpdateError(
                f"the loss or the weights are not finite after {passed.steps} steps (mean loss {passed.loss}): lower "
                "train.learning_rate, and look for extreme labels"
            )


def labelled(rows: pa.Table) -> pa.Table:
    """The rows that have a label. Raises `UpdateError` where there are none."""
    if rows.column(LABEL).null_count:
        rows = rows.filter(pc.is_valid(rows.column(LABEL)))
    if not rows.num_rows:
        raise UpdateError("there is no labelled row to train on")
    return rows


def _warn_of_new_classes(classes: tuple[str, ...], method: Method) -> None:
    """Penalties and distillation keep 22 % and less of split MNIST in class-incremental streams: they never see an old
    class beside a new one (van de Ven and Tolias 2019)."""
    if classes and not method.rehearses and not method.restarts:
        log.warning(
            "classes %s are new, and method %s rehearses nothing: the old ones will be forgotten; use method=replay, "
            "method=derpp or method=replay_ewc",
            ", ".join(map(repr, classes[:5])),
            type(method).__name__,
        )


def stored_outputs(column: pa.ChunkedArray, width: int) -> dict[str, Tensor]:
    """Lists of numbers as (N, width) float32, and which of them are there where some lists are shorter or null."""
    outputs, known = torch.zeros(len(column), width), torch.zeros(len(column), width, dtype=torch.bool)
    start = 0
    for chunk in column.chunks:
        lengths = torch.tensor(np.asarray(pc.fill_null(pc.list_value_length(chunk), 0)))
        known[start : start + len(chunk)] = torch.arange(width)[None, :] < lengths[:, None]
        outputs[start : start + len(chunk)][known[start : start + len(chunk)]] = torch.tensor(
            np.asarray(chunk.flatten())
        )
        start += len(chunk)
    return {"outputs": outputs} if known.all() else {"outputs": outputs, "outputs_known": known.float()}
