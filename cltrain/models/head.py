"""The last linear layer of a model, and how it starts: at the base rate, and with a place for each new class."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cltrain.batch import UNKNOWN

NEW_CLASSES_SHARE = 0.05  # of the probability, at most, that all new classes together start with


def last_linear(model: nn.Module) -> str | None:
    """Name of the linear layer that was registered last: the head of a classifier."""
    layers = (n for n, m in reversed(list(model.named_modules())) if isinstance(m, nn.Linear) and ".lora_" not in n)
    return next(layers, None)


def new_rows(model: nn.Module, name: str, old: Tensor, count: int) -> Tensor | None:
    """Rows for parameter `name` of any model when it grows by `count`; None leaves the model's own initialisation.

    A new category starts as the unknown one, in every `nn.Embedding`. The logit of a new class, in the last linear
    layer, is the mean of the old ones, lowered so that by Jensen's inequality all new classes together get
    `NEW_CLASSES_SHARE` of the probability at most: the old classes keep their logits, and their probabilities but for
    that share.
    """
    layer, _, leaf = name.rpartition(".")
    module = model.get_submodule(layer)
    if isinstance(module, nn.Embedding):
        return old[UNKNOWN].expand(count, -1)
    if layer != last_linear(model) or not isinstance(module, nn.Linear) or module.bias is None:
        return None
    mean = old.mean(dim=0, keepdim=True).expand(count, *old.shape[1:])
    if leaf != "bias":
        return mean
    odds = NEW_CLASSES_SHARE / (1 - NEW_CLASSES_SHARE)
    return mean + math.log(odds * old.shape[0] / count)


class HeadedNet(nn.Module):
    """A model of ours: its outputs are those of the linear layer `head`."""

    head: nn.Linear

    def start_at(self, task: str, target: Tensor) -> None:
        """Before a training from scratch: let the bias of the head say the base rate of `target` (N,)."""
        with torch.no_grad():
            if task == "binary":
                share = (target.sum() + 0.5) / (len(target) + 1)
                self.head.bias.fill_(torch.logit(share).item())
            elif task == "multiclass":
                outputs = self.head.out_features
                counts = torch.bincount(target[target < outputs], minlength=outputs) + 0.5
                self.head.bias.copy_(torch.log(counts / counts.sum()))
            else:
                self.head.bias.fill_(target.mean().item())

    def new_rows(self, name: str, old: Tensor, count: int) -> Tensor | None:
        """Rows for parameter `name` when it grows by `count`; see `cltrain.models.head.new_rows`."""
        return new_rows(self, name, old, count)
