"""Averaged gradient episodic memory (Chaudhry et al. 2019): no step that makes the past worse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from cltrain.methods.base import Named
from cltrain.methods.replay import Replay


@dataclass(frozen=True, kw_only=True)
class AGEM(Replay):
    """Where the gradient g of the new rows points against r, that of `ratio` exemplars a new row, its part along r is
    taken out: `g - (g . r) / (r . r) * r` (eq. 11)."""

    ratio: float = 1.0

    needs = frozenset({"gradients"})
    projects = True

    def project(self, gradients: Named, reference: Named, total: Callable[[Tensor], Tensor]) -> None:
        names = [n for n in gradients if n in reference]
        ours, theirs = [gradients[n] for n in names], [reference[n] for n in names]
        dot = total(torch.stack([(g * r).sum() for g, r in zip(ours, theirs, strict=True)]).sum())
        length = total(torch.stack([r.square().sum() for r in theirs]).sum())
        share = torch.where((dot < 0) & (length > 0), dot / length, 0.0)
        torch._foreach_sub_(ours, torch._foreach_mul(theirs, share))
