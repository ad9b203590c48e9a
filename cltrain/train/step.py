"""One training step. Read it downwards."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from cltrain.batch import Batch
from cltrain.methods import Joined, Method, MethodState
from cltrain.methods.base import Named
from cltrain.task import known_losses
from cltrain.train.engines.plain import Plain, Running
from cltrain.train.optimizer import step_size
from cltrain.train.settings import Training


@dataclass(frozen=True)
class Part:
    """Rows that are passed together: `fresh` new ones and then rehearsed ones, with what the method reads of them."""

    batch: Batch
    fresh: int
    new: Mapping[str, Tensor]
    old: Mapping[str, Tensor]


@dataclass(frozen=True)
class Rows:
    """What one step trains on, on this rank: its share of a global batch, in parts that are passed one after another.
    The weights are those of all new and of all rehearsed rows of the global batch; `even` says that this is all of it
    and that every row weighs 1. `reference`: rehearsed rows with a gradient of their own, and their global weight, for
    a method that projects."""

    parts: list[Part]
    new_weight: Tensor | float
    old_weight: Tensor | float
    even: bool = False
    reference: tuple[Batch, Tensor | float] | None = None


class Stepper:
    """Takes steps on a model with one method; holds what stays the same from step to step."""

    def __init__(
        self, *, running: Running, task: str, method: Method, state: MethodState, engine: Plain, training: Training
    ) -> None:
        self.running, self.engine, self.task, self.training = running, engine, task, training
        self.method, self.state = method, state
        self.module: Callable[..., Tensor] = running.module
        if training.compile != "off":
            mode = None if training.compile == "default" else training.compile
            self.module = torch.compile(running.module, mode=mode)
        self._one_mean = method.rehearsed_weight is None and not method.has_terms
        self._alters = method.penalises or method.projects
        self.said: list[Tensor] = []  # of the new rows of the last step, where the method records it
        self._precision = torch.bfloat16 if training.precision == "bfloat16" else None

    def set_tensors(self, tensors: dict[str, Named]) -> None:
        """Go on with these pieces of what the method remembers."""
        self.state = dataclasses.replace(self.state, tensors=tensors)

    def step(self, rows: Rows) -> Tensor:
        """Train on `rows`. Returns this rank's share of the loss: a tensor, not yet waited for."""
        reference = None if rows.reference is None else self._reference(*rows.reference)
        total: Tensor | None = None
        self.said = []
        for number, part in enumerate(rows.parts, 1):
            with nullcontext() if number == len(rows.parts) else self.running.without_sync():
                loss = self._loss(part, rows)
                self.running.backward(loss, first=number == 1)
            total = loss.detach() if total is None else total + loss.detach()

        def alter(values: Named, gradients: Named) -> None:
            if reference is not None:
                self.method.project(gradients, reference, self.running.total)
            self.method.penalise(self.state, values, gradients, step_size(self.running.optimizer))

        self.running.step(alter if self._alters else None, self.training.max_grad_norm)
        assert total is not None
        return total

    def _loss(self, part: Part, rows: Rows) -> Tensor:
        """The sum of the named terms over the rows of one part."""
        outputs = self._outputs(part.batch)
        if self.method.records:
            self.said.append(outputs[: part.fresh].detach())
        if rows.even and self._one_mean:
            return known_losses(self.task, outputs, part.batch.target, "mean")
        joined = Joined(
            task=self.task,
            outputs=outputs,
            target=part.batch.target,
            weight=part.batch.weight,
            fresh=part.fresh,
            new_weight=rows.new_weight,
            old_weight=rows.old_weight,
            even=rows.even,
            new=part.new,
            old=part.old,
        )
        total = joined.labels(self.method.rehearsed_weight)
        for term in self.method.terms(joined).values():
            total = total + term
        return total

    def _reference(self, batch: Batch, weight: Tensor | float) -> Named:
        losses = known_losses(self.task, self._outputs(batch), batch.target)
        self.running.backward((losses * batch.weight).sum() / weight)
        return {name: gradient.clone() for name, gradient in self.running.gradients().items()}

    def _outputs(self, batch: Batch) -> Tensor:
        if self._precision is None:
            return self.module(**batch.inputs)
        with torch.autocast(batch.target.device.type, self._precision):
            return self.module(**batch.inputs).float()
