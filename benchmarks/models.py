"""The models of the benchmarks, from `pixels` (B, 784 or 1024) float32 in [0, 1] to (B, num_outputs) logits.

An encoder also passes the `numeric` and `categorical` columns, of which MNIST has none.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MLP(nn.Module):
    """`num_inputs`, then rectified layers of `hidden`, then `num_outputs`. With `padded` images of 28 x 28 become
    32 x 32 and are standardised, as in the code of Hsu et al. 2018."""

    def __init__(
        self, hidden: Sequence[int] = (100,), num_inputs: int = 784, num_outputs: int = 10, padded: bool = False
    ) -> None:
        super().__init__()
        widths = [1024 if padded else num_inputs, *hidden]
        layers = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())]
        self.padded, self.body, self.head = padded, nn.Sequential(*layers), nn.Linear(widths[-1], num_outputs)

    def forward(self, pixels: Tensor, **_: Any) -> Tensor:
        if self.padded:
            pixels = (F.pad(pixels.unflatten(1, (28, 28)), (2, 2, 2, 2)).flatten(1) - 0.1) / 0.2752
        return self.head(self.body(pixels))


class MultiHead(MLP):
    """An MLP that is told the `task` of each row, (B, 1) float32, and answers with the `per_task` classes of that task
    alone: the logits of the others are 1,000 lower, so that softmax makes them 0. For a row of a new task those of all
    old ones are lowered by the same, which leaves them to distillation as they were."""

    def __init__(self, hidden: Sequence[int], num_outputs: int = 10, per_task: int = 2, padded: bool = False) -> None:
        super().__init__(hidden, num_outputs=num_outputs, padded=padded)
        self.per_task = per_task

    def forward(self, pixels: Tensor, task: Tensor | None = None, **_: Any) -> Tensor:
        outputs = super().forward(pixels)
        assert task is not None
        of_class = torch.arange(outputs.shape[1], device=outputs.device) // self.per_task
        return outputs - 1e3 * (of_class != task)


class CNN(nn.Module):
    """Two 3 x 3 convolutions, of 16 and 32 channels, each rectified and pooled, and a linear layer."""

    def __init__(self, num_outputs: int = 10) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
        )
        self.head = nn.Linear(32 * 7 * 7, num_outputs)

    def forward(self, pixels: Tensor, **_: Any) -> Tensor:
        return self.head(self.body(pixels.view(-1, 1, 28, 28)).flatten(1))
