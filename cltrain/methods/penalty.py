"""What pulls each parameter towards where it was: maths on lists of tensors, without an autograd graph."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

Named = dict[str, Tensor]


def pull_to(
    anchor: Mapping[str, Tensor],
    importance: Mapping[str, Tensor] | None,
    strength: float,
    values: Named,
    gradients: Named,
    step_size: float | None,
) -> None:
    """Add to `gradients`, in place, that of `strength / 2 * sum(importance * (values - anchor)**2)`; an importance of
    None is 1 everywhere.

    With a `step_size` h the whole gradient is then divided by `1 + h * strength * importance`, which makes a step
    of -h times the gradient the implicit (proximal) one: explicit ones diverge where that product is above 2.
    """
    names = [n for n in gradients if n in anchor and (importance is None or n in importance)]
    if not names or not strength:
        return
    pulled = [gradients[n] for n in names]
    distance = torch._foreach_sub([values[n] for n in names], [anchor[n] for n in names])
    if importance is None:
        torch._foreach_add_(pulled, distance, alpha=strength)
        if step_size is not None:
            torch._foreach_div_(pulled, 1 + step_size * strength)
        return
    weights = [importance[n] for n in names]
    torch._foreach_addcmul_(pulled, distance, weights, value=strength)
    if step_size is not None:
        damping = torch._foreach_mul(weights, step_size * strength)
        torch._foreach_add_(damping, 1.0)
        torch._foreach_div_(pulled, damping)


def remembered(old: Mapping[str, Tensor] | None, new: Named, decay: float) -> Named:
    """`new` importance added to the `old` one, which counts `decay` as much as it did."""
    if not old:
        return new
    return {name: value + decay * old[name].to(value) if name in old else value for name, value in new.items()}
