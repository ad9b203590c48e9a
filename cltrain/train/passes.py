"""Many steps: passes over the rows, until they are done or bring no more."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cltrain.batch import Batch, join
from cltrain.seeding import torch_generator
from cltrain.task import row_losses
from cltrain.train.engines.plain import Plain
from cltrain.train.settings import Training
from cltrain.train.step import Stepper, hide_categories


@dataclass(frozen=True, kw_only=True)
class Passed:
    """rows counts every visit of a row, replayed ones among them; loss is the mean over all steps and ranks."""

    steps: int
    rows: int
    replayed: int
    loss: float


def train_passes(
    stepper: Stepper, net: nn.Module, rows: Batch, exemplars: Batch | None, training: Training, seed: int
) -> Passed:
    """Train on all `rows` but those kept aside to stop early, and leave `net` in eval mode.

    Each use of chance has a generator of its own, so that a method which rehearses nothing takes the very steps of one
    that does not rehearse.
    """
    device = rows.target.device
    shuffle, hide, hide_old = (torch_generator(seed, name) for name in ("shuffle", "hide", "hide exemplars"))
    shuffled = torch.randperm(len(rows), generator=shuffle).to(device)
    kept_aside = training.validation_rows(len(rows))
    learned = shuffled[kept_aside:]
    best = Best.on(rows, shuffled[:kept_aside], net, stepper) if kept_aside else None
    batch_size, epochs = training.plan(len(learned))
    steps_per_pass = -(-len(learned) // batch_size)
    steps = visited = replayed = 0
    loss_sum = torch.zeros((), device=device)
    for _ in range(epochs):
        stepper.module.train()
        seen = hide_categories(rows, training.unknown_rate, hide)
        if exemplars is not None:
            seen = join([seen, hide_categories(exemplars, training.unknown_rate, hide_old)])
        order = learned[torch.randperm(len(learned), generator=shuffle).to(device)]
        for index in order.tensor_split(steps_per_pass):
            learning_rate = training.learning_rate_at(steps / (epochs * steps_per_pass))
            for group in stepper.optimizer.param_groups:
                group["lr"] = learning_rate
            loss, rehearsed = stepper.step(seen, len(rows), index)
            loss_sum += loss
            visited += len(index) + rehearsed
            replayed += rehearsed
            steps += 1
        if best is not None and best.passes_since() >= training.passes_without_gain(epochs):
            break
    if best is not None:
        best.restore()
    net.eval()
    return Passed(steps=steps, rows=visited, replayed=replayed, loss=stepper.engine.sum(loss_sum).item() / steps)


@dataclass
class Best:
    """The best state of a model so far, by its loss on validation rows, of which `share` is this rank's part. The
    loss is summed over the ranks, so that all of them decide alike."""

    net: nn.Module
    optimizer: torch.optim.Optimizer
    task: str
    share: Batch
    engine: Plain
    loss: float = float("inf")
    passes: int = 0
    saved: Any = None

    @classmethod
    def on(cls, rows: Batch, index: Tensor, net: nn.Module, stepper: Stepper) -> Best:
        share = rows.take(stepper.engine.shard(index))
        return cls(net, stepper.optimizer, stepper.task, share, stepper.engine)

    def passes_since(self) -> int:
        """Look at the model as it is now; how many looks in a row were no better than the best one?"""
        self.net.eval()
        with torch.inference_mode():
            mine = torch.zeros((), device=self.share.target.device)
            if len(self.share):
                losses = row_losses(self.task, self.net(**self.share.inputs), self.share.target)
                mine += (losses * self.share.weight).sum()
            loss = self.engine.sum(mine).item()
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
