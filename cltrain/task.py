"""What a label means: how outputs become predictions, and what each row loses. Functions of tensors to tensors."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from cltrain.errors import ConfigError

TaskName = Literal["binary", "multiclass", "regression"]
LOG_LOSS_FLOOR = 1e-7  # a probability below this counts as this, as in scikit-learn for float32


def check_task(name: str) -> str:
    if name not in get_args(TaskName):
        raise ConfigError(f"data.task must be one of {', '.join(get_args(TaskName))}, not {name!r}")
    return name


def row_losses(task: str, outputs: Tensor, target: Tensor) -> Tensor:
    """Loss of each row, (B,): cross-entropy in nats, or squared error of the standardised target.

    outputs: (B, 1) logit for binary, (B, C) logits for multiclass, (B, 1) value for regression.
    target: (B,) 0/1 float, class index, or standardised value. Class index C means a class that the model has no output
    for; its rows get the loss of `LOG_LOSS_FLOOR`, and no gradient.
    """
    if task == "binary":
        return F.binary_cross_entropy_with_logits(outputs[:, 0], target.to(outputs.dtype), reduction="none")
    if task == "multiclass":
        strange = outputs.shape[1]
        loss = F.cross_entropy(outputs, target, ignore_index=strange, reduction="none")
        return loss - (target == strange) * math.log(LOG_LOSS_FLOOR)
    return (outputs[:, 0] - target.to(outputs.dtype)).square()


def predictions(task: str, outputs: Tensor) -> Tensor:
    """(B,) probability of the positive class, (B, C) class probabilities, or (B,) standardised value."""
    if task == "binary":
        return torch.sigmoid(outputs[:, 0])
    if task == "multiclass":
        return torch.softmax(outputs, dim=1)
    return outputs[:, 0]
