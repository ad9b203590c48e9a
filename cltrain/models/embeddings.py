"""What a model makes of rows before its last linear layer."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


def outputs_and_embeddings(model: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The outputs of any module for `inputs`, (N, C), and the embeddings (N, D): the inputs of the linear layer that
    ran last, or the outputs themselves where no linear layer ran."""
    seen: list[Tensor] = []

    def keep(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        seen[:] = [arguments[0]]

    hooks = [m.register_forward_pre_hook(keep) for m in model.modules() if isinstance(m, nn.Linear)]
    try:
        outputs = model(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return outputs, seen[0].flatten(1) if seen else outputs
