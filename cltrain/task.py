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
    if task != "multiclass":
        return known_losses(task, outputs, target)
    strange = outputs.shape[1]
    loss = F.cross_entropy(outputs, target, ignore_index=strange, reduction="none")
    return loss - (target == strange) * math.log(LOG_LOSS_FLOOR)


def known_losses(task: str, outputs: Tensor, target: Tensor, reduction: str = "none") -> Tensor:
    """`row_losses` of rows whose classes the model has, as one operation; with `reduction` "mean" their mean."""
    if task == "binary":
        return F.binary_cross_entropy_with_logits(outputs[:, 0], target.to(outputs.dtype), reduction=reduction)
    if task == "multiclass":
        return F.cross_entropy(outputs, target, reduction=reduction)
    return F.mse_loss(outputs[:, 0], target.to(outputs.dtype), reduction=reduction)


def predictions(task: str, outputs: Tensor) -> Tensor:
    """(B,) probability of the positive class, (B, C) class probabilities, or (B,) standardised value."""
    if task == "binary":
        return torch.sigmoid(outputs[:, 0])
    if task == "multiclass":
        return torch.softmax(outputs, dim=1)
    return outputs[:, 0]


def distillation(task: str, outputs: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """How far `outputs` are from those of a teacher, (B,): cross-entropy to its probabilities in nats, softened by
    `temperature` and times its square, less their entropy (Hinton et al. 2015), or half the squared difference of
    values.

    outputs: (B, C) as in `row_losses`; teacher: (B, K) with K <= C: it knew the first K classes.
    """
    outputs = outputs[:, : teacher.shape[1]]
    if task == "regression":
        return (outputs - teacher).square().sum(1) / 2
    ours, theirs = outputs / temperature, teacher / temperature
    if task == "binary":
        p = torch.sigmoid(theirs)
        cross = F.binary_cross_entropy_with_logits(ours, p, reduction="none")
        entropy = F.binary_cross_entropy_with_logits(theirs, p, reduction="none")
        return (cross - entropy)[:, 0] * temperature**2
    log_theirs = F.log_softmax(theirs, 1)
    return (log_theirs.exp() * (log_theirs - F.log_softmax(ours, 1))).sum(1) * temperature**2


def doubts(task: str, outputs: Tensor) -> Tensor:
    """How unsure the outputs are, (B,) in [0, 1]: the entropy of the probabilities by its largest value; of a
    regression, which says nothing of it, 0."""
    if task == "regression":
        return torch.zeros(len(outputs), device=outputs.device)
    p = predictions(task, outputs)
    if task == "binary":
        p = torch.stack([p, 1 - p], 1)
    return torch.special.entr(p).sum(1) / math.log(max(p.shape[1], 2))
