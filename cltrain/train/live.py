"""Updates in this process, as small as a micro-batch: the model stays in memory from one to the next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import torch

from cltrain.batch import Batch
from cltrain.data.schema import Schema
from cltrain.errors import ConfigError
from cltrain.methods import Method
from cltrain.records import Cursor
from cltrain.seeding import torch_generator
from cltrain.train.engines.plain import Plain
from cltrain.train.learner import Learner, labelled
from cltrain.train.loader import Draw, Loader, encode, hide_categories
from cltrain.train.settings import Training
from cltrain.train.state import State
from cltrain.train.step import Stepper

NOWHERE = Cursor(until=datetime.fromtimestamp(0, UTC), files=())


@dataclass(kw_only=True)
class Live:
    """Continues from a state, a few rows at a time: `update` takes a step on them at once, and what the method
    remembers of them (exemplars, Fisher, new categories) follows when `absorb_rows` rows have come, or `state` is
    asked for. So a call costs about what its step does, however many there were before.

    A method that starts from fresh weights cannot be live. Raises `ConfigError` then, and the errors of `train_update`.
    """

    parent: State
    method: Method
    training: Training
    seed: int = 0
    engine: Plain = field(default_factory=Plain)
    absorb_rows: int = 4_096
    _learner: Learner = field(init=False)
    _stepper: Stepper = field(init=False)
    _exemplars: Batch | None = field(init=False)
    _pending: list[pa.Table] = field(default_factory=list, init=False)
    _calls: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        if self.method.restarts or not self.method.stateful:
            raise ConfigError(f"method={type(self.method).__name__} starts from fresh weights: it cannot be live")
        if self.absorb_rows < 1:
            raise ConfigError(f"absorb_rows must be 1 or more, not {self.absorb_rows}")
        self._draws = torch_generator(self.seed, "live")
        self._begin(self.parent, None)

    def update(self, rows: pa.Table) -> torch.Tensor:
        """Take a step on the labelled `rows` (several, where they are more than a batch). Returns the mean loss, a
        tensor that was not waited for."""
        rows = labelled(rows)
        batch = self._learner.encoder(rows)
        if self._learner.encoder.task == "multiclass" and batch.target.max() >= self._learner.encoder.num_outputs:
            self._begin(self.state(NOWHERE), rows)  # a class that the model has no output for
            batch = self._learner.encoder(rows)
        batch = hide_categories(batch.to(self.engine.device), self.training.unknown_rate, self._draws)
        loader = Loader(
            batch,
            self._exemplars,
            engine=self.engine,
            method=self.method,
            accumulate=self.training.accumulate,
            seed=self.seed,
        )
        remembered = 0 if self._exemplars is None else len(self._exemplars)
        steps = -(-len(batch) // self.training.batch_size)
        losses = []
        for number, new in enumerate(torch.arange(len(batch), device=batch.target.device).tensor_split(steps)):
            old = self.method.rehearse(len(new), remembered, self._draws) if remembered else None
            draw = Draw(new, None if old is None else old.to(new.device), (self._calls, number))
            losses.append(self._stepper.step(loader.gather(draw)))
        self._calls += 1
        self._learner.steps += steps
        self._pending.append(rows)
        if sum(table.num_rows for table in self._pending) >= self.absorb_rows:
            self._absorb()
        return losses[0] if steps == 1 else torch.stack(losses).mean()

    def state(self, cursor: Cursor) -> State:
        """All that a version is, as of now; `cursor` says which rows it has had."""
        self._absorb()
        return self._learner.state(cursor)

    def _absorb(self) -> None:
        if not self._pending:
            return
        rows = pa.concat_tables(self._pending)
        self._pending = []
        learner = self._learner
        learner.running.net.eval()
        batch = encode(learner.encoder, rows, self.training.memory_gib).to(self.engine.device)
        learner.absorb(rows, batch, self._stepper.state)
        if learner.encoder.extended(rows) != learner.encoder:
            self._begin(learner.state(NOWHERE), rows)
        else:
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
        )
        self._learner.updates = self.parent.updates + 1
        self._resume()

    def _resume(self) -> None:
        exemplars = self._learner.exemplars()
        self._exemplars = None if exemplars is None else exemplars.to(self.engine.device)
        self._stepper = self._learner.stepper()
        self._learner.running.module.train()
