"""Updates in this process, as small as a micro-batch: the model stays in memory from one to the next."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass, field
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from cltrain.batch import Batch
from cltrain.data.schema import Schema
from cltrain.errors import ConfigError, UpdateError
from cltrain.methods import Method
from cltrain.methods.base import OUTPUTS
from cltrain.models.adapter import LoRA
from cltrain.records import LABEL, Cursor
from cltrain.seeding import torch_generator
from cltrain.train.engines.plain import Plain
from cltrain.train.learner import Learner, labelled, stored_outputs
from cltrain.train.loader import Draw, Loader, encode, hide_categories
from cltrain.train.settings import Training
from cltrain.train.state import State
from cltrain.train.step import Stepper

NOWHERE = Cursor(until=datetime.fromtimestamp(0, UTC), files=())


@dataclass(kw_only=True)
class Live:
    """Continues from a state, a few rows at a time: `update` takes a step on them at once, and what the method
    remembers of them (exemplars, Fisher, new categories) follows when `absorb_rows` rows have come, or `state` is
    asked for. So a call costs about what its step does, however many there were before. Until then those rows are kept;
    of the exemplars there is only the Arrow table, from which each step takes and encodes its own.

    A method that starts from fresh weights cannot be live, nor one that reads what the parent says of new rows. Raises
    `ConfigError` then, and the errors of `train_update`.
    """

    parent: InitVar[State]
    method: Method
    training: Training
    seed: int = 0
    engine: Plain = field(default_factory=Plain)
    absorb_rows: int = 4_096
    _learner: Learner = field(init=False)
    _stepper: Stepper = field(init=False)
    _exemplars: pa.Table | None = field(init=False)
    _reads: set[str] = field(init=False)
    _pending: list[pa.Table] = field(default_factory=list, init=False)
    _said: list[Tensor] = field(default_factory=list, init=False)
    _pending_rows: int = field(default=0, init=False)
    _calls: int = field(default=0, init=False)

    def __post_init__(self, parent: State) -> None:
        name = type(self.method).__name__
        if self.method.restarts or not self.method.stateful:
            raise ConfigError(f"method={name} starts from fresh weights: it cannot be live")
        if "parent" in self.method.reads:
            raise ConfigError(f"method={name} reads what the parent says of each new row: it cannot be live")
        if self.absorb_rows < 1:
            raise ConfigError(f"absorb_rows must be 1 or more, not {self.absorb_rows}")
        self._draws = torch_generator(self.seed, "live")
        self._updates = parent.updates + 1
        self._begin(parent, None)

    def update(self, rows: pa.Table) -> Tensor:
        """Take a step on the labelled `rows` (several, where they are more than a batch). Returns the mean loss, a
        tensor that was not waited for."""
        rows = labelled(rows)
        steps = -(-rows.num_rows // self.training.batch_size)
        parts = torch.arange(rows.num_rows).tensor_split(steps)
        batch, exemplars, places = self._encoded(rows, parts)
        if self._learner.encoder.task == "multiclass" and batch.target.max() >= self._learner.encoder.num_outputs:
            self._begin(self.state(NOWHERE), rows)  # a class that the model has no output for
            batch, exemplars, places = self._encoded(rows, parts)
        loader = Loader(
            self._placed(batch),
            None if exemplars is None else self._placed(exemplars),
            engine=self.engine,
            method=self.method,
            accumulate=self.training.accumulate,
            seed=self.seed,
        )
        losses = []
        for number, (new, old) in enumerate(zip(parts, places, strict=True)):
            on_device = None if old is None else old.to(self.engine.device)
            draw = Draw(new.to(self.engine.device), on_device, (self._calls, number))
            losses.append(self._stepper.step(loader.gather(draw)))
            self._said += self._stepper.said
        self._calls += 1
        self._learner.steps += steps
        self._pending.append(rows)
        self._pending_rows += rows.num_rows
        if self._pending_rows >= self.absorb_rows:
            self._absorb()
        return losses[0] if steps == 1 else torch.stack(losses).mean()

    def state(self, cursor: Cursor) -> State:
        """All that a version is, as of now; `cursor` says which rows it has had."""
        self._absorb()
        return self._learner.state(cursor)

    def _encoded(self, rows: pa.Table, parts: Sequence[Tensor]) -> tuple[Batch, Batch | None, Sequence[Tensor | None]]:
        """`rows` and the exemplars that join the steps on their `parts`, on the CPU; and where among the exemplars each
        step has its own."""
        memory, encoder = self._exemplars, self._learner.encoder
        drawn = [None if memory is None else self._drawn(len(part), memory) for part in parts]
        found = [index for index in drawn if index is not None]
        if memory is None or not found:
            return encoder(rows), None, drawn
        taken = memory.take(pa.array(torch.cat(found).numpy()))
        read = [name for name in rows.column_names if name in self._reads]
        batch = encoder(_united(rows.select(read), taken))  # in one call, which costs less than two
        new, old = batch.rows(0, rows.num_rows), batch.rows(rows.num_rows, len(batch))
        if OUTPUTS in taken.column_names:
            old = dataclasses.replace(old, extra=stored_outputs(taken.column(OUTPUTS), encoder.num_outputs))
        order = iter(torch.arange(len(old)).split([len(index) for index in found]))
        return new, old, [None if index is None else next(order) for index in drawn]

    def _drawn(self, rows: int, memory: pa.Table) -> Tensor | None:
        return self.method.rehearse(rows, memory.num_rows, self._draws)

    def _placed(self, batch: Batch) -> Batch:
        return hide_categories(batch.to(self.engine.device), self.training.unknown_rate, self._draws)

    def _absorb(self) -> None:
        if not self._pending:
            return
        rows, said = pa.concat_tables(self._pending), torch.cat(self._said) if self._said else None
        self._pending, self._said, self._pending_rows = [], [], 0
        learner = self._learner
        learner.running.net.eval()
        batch = encode(learner.encoder, rows, self.training.memory_gib).to(self.engine.device)
        learner.absorb(rows, batch, self._stepper.state, said)
        encoder = learner.encoder.extended(rows)
        if encoder.spec != learner.encoder.spec or encoder.reused(learner.encoder):
            self._begin(learner.state(NOWHERE), rows)
        else:
            learner.encoder = encoder
            self._resume()

    def _begin(self, parent: State, rows: pa.Table | None) -> None:
        """Go on from `parent`, with the categories and classes of `rows`."""
        schema: Schema = parent.schema
        model: Mapping[str, Any] = parent.model
        self._learner = Learner.start(
            schema.arrow.empty_table() if rows is None else rows,
            parent=parent,
            schema=schema,
            model=model,
            method=self.method,
            training=self.training,
            seed=self.seed,
            engine=self.engine,
            adapter=None if parent.adapter is None else LoRA(**parent.adapter),
        )
        self._learner.updates = self._updates
        if rows is None:
            self._learner.encoder = parent.encoder  # no rows came, so there is nothing to count
        self._resume()

    def _resume(self) -> None:
        self._reads = {LABEL, *self._learner.encoder.names}
        self._stepper = self._learner.stepper()
        self._learner.running.module.train()
        memory = self._learner.remembered.memory
        if memory is None or not memory.num_rows or not self.method.rehearses:
            self._exemplars = None
            return
        wanted = self._reads | ({OUTPUTS} if "outputs" in self.method.reads else set())
        self._exemplars = memory.select([name for name in memory.column_names if name in wanted])


def _united(rows: pa.Table, exemplars: pa.Table) -> pa.Table:
    try:
        return pa.concat_tables([rows, exemplars], promote_options="default")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise UpdateError(f"the rows do not fit the memory of their parent: {error}") from error
