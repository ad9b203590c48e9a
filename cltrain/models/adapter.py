"""Low-rank adapters (LoRA, Hu et al. 2021, through `peft`): updates of a large model that train, and store, a small
part of it.

An adapted linear layer computes W x + alpha / rank · B A x with W frozen; B starts at 0, so that adapting changes no
output. Its parameters are called `layer.base_layer.weight`, `layer.lora_A.default.weight` and
`layer.lora_B.default.weight`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cltrain.errors import ConfigError
from cltrain.models.head import last_linear

Named = dict[str, Tensor]
DOWN, UP = ".lora_A.default.weight", ".lora_B.default.weight"


@dataclass(frozen=True, kw_only=True)
class LoRA:
    """Settings of an adapter.

    rank: of the change to each adapted layer. alpha: it counts `alpha / rank` times. dropout: of its input.
    targets: layers to adapt, linear or convolutional, by name or by the last parts of it; None: every linear layer
    but the head. train_head: whether the head, the linear layer that was registered last, trains whole. also: other
    modules or parameters that do, such as `embeddings`, without which a new category stays the unknown one.
    An importance, such as the Fisher, is kept of what still trains: in the first adapted update, of the head.
    freeze: with "updates" training from scratch trains the whole model, and the updates after it the adapter; "always"
    is for a model that comes with weights of its own.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: tuple[str, ...] | None = None
    train_head: bool = True
    also: tuple[str, ...] = ()
    freeze: Literal["updates", "always"] = "updates"

    def __post_init__(self) -> None:
        object.__setattr__(self, "also", tuple(self.also))
        if self.targets is not None:
            object.__setattr__(self, "targets", tuple(self.targets))
        if self.rank < 1:
            raise ConfigError(f"adapter.rank must be 1 or more, not {self.rank}")
        if not 0 < self.alpha < float("inf"):
            raise ConfigError(f"adapter.alpha must be above 0, not {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"adapter.dropout must be between 0 and 1, not {self.dropout}")
        if self.targets == ():
            raise ConfigError("adapter.targets must name layers, or be null for every linear layer but the head")
        if self.freeze not in ("updates", "always"):
            raise ConfigError(f"adapter.freeze must be updates or always, not {self.freeze!r}")

    def continues(self, parent: Mapping[str, Any]) -> bool:
        """Whether the adapter of a parent, with these settings, is one of the same shape and scale."""
        given = LoRA(**{**parent, "targets": parent["targets"] and tuple(parent["targets"])})
        return (self.rank, self.alpha, self.targets) == (given.rank, given.alpha, given.targets)

    def adapts(self, stateful: bool) -> bool:
        """Whether a training from scratch or a stateful update trains the adapter, and not the whole model."""
        return stateful or self.freeze == "always"


@dataclass(frozen=True, kw_only=True)
class NoAdapter:
    """Every update trains the whole model."""

    def continues(self, parent: Mapping[str, Any]) -> bool:
        return False

    def adapts(self, stateful: bool) -> bool:
        return False


def adapt(net: nn.Module, settings: LoRA | NoAdapter) -> nn.Module:
    """Put an adapter into `net`, in place, and freeze the rest but what `settings` say; its outputs stay as they are.

    Draws from torch's generator. Raises `ConfigError` where `peft` is not installed, or a name fits nothing that can
    be adapted.
    """
    assert isinstance(settings, LoRA)
    peft = _peft()
    chosen = _chosen(net, settings)
    head = last_linear(net)
    trained = [*settings.also, *([head] if settings.train_head and head not in chosen and head is not None else [])]
    for name in trained:
        if not any(_within(n, name) for n, _ in net.named_parameters()):
            raise ConfigError(f"adapter.also has {name}, which is no module and no parameter of the model")
    frozen_before = {n for n, p in net.named_parameters() if not p.requires_grad}
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules="|".join(map(re.escape, chosen)),  # a list would also take names that end alike
    )
    peft.inject_adapter_in_model(config, net)
    for name, parameter in net.named_parameters():
        if any(_within(name, given) for given in trained):
            parameter.requires_grad_(name not in frozen_before)
    _leave_fast_path(net)
    return net


def plain_name(name: str) -> str:
    """Name of an adapted model's tensor in the model that it was made of.

    >>> plain_name("body.0.base_layer.weight")
    'body.0.weight'
    """
    return name.replace(".base_layer.", ".").removeprefix("base_layer.")


def split(weights: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> Named:
    """Of the `weights` of an adapted model, the small part to store beside those of its `base`, which is not adapted:
    the adapter and whatever is not bit for bit the base's, such as the head, running statistics or a table that grew.
    """
    return {name: value for name, value in weights.items() if not _same(value, base.get(plain_name(name)))}


def joined(base: Mapping[str, Tensor], small: Mapping[str, Tensor]) -> Named:
    """The weights of an adapted model, again whole: the way back from `split`."""
    adapted = {name.removesuffix(DOWN) for name in small if name.endswith(DOWN)}
    named = {_adapted_name(name, adapted): value for name, value in base.items()}
    return named | dict(small)


def folded(weights: Mapping[str, Tensor], alpha: float) -> Named:
    """The `weights` of an adapted model for the model that it was made of, which needs no `peft`."""
    found = {plain_name(n): value for n, value in weights.items() if not n.endswith((DOWN, UP))}
    for name, down in weights.items():
        if name.endswith(DOWN):
            layer = name.removesuffix(DOWN)
            # (out, rank) and (rank, in, ...), which is a convolution's kernel where there is more
            change = torch.tensordot(weights[f"{layer}{UP}"].flatten(1), down, dims=1)
            found[f"{layer}.weight"] = found[f"{layer}.weight"] + (alpha / down.shape[0] * change).to(down.dtype)
    return found


def _chosen(net: nn.Module, settings: LoRA) -> list[str]:
    """Full names of the layers to adapt."""
    modules = dict(net.named_modules())
    inside = {f"{n}.out_proj" for n, m in modules.items() if isinstance(m, nn.MultiheadAttention)}
    if settings.targets is None:
        head = last_linear(net)
        found = [n for n, m in modules.items() if isinstance(m, nn.Linear) and n != head and n not in inside]
        if not found:
            raise ConfigError("the model has no linear layer but its head: name what to adapt in adapter.targets")
        return found
    chosen: list[str] = []
    for target in settings.targets:
        found = [n for n in modules if n == target or n.endswith(f".{target}")]
        unfit = [n for n in found if not isinstance(modules[n], nn.Linear | nn.Conv1d | nn.Conv2d) or n in inside]
        if unfit or not found:
            what = f"{type(modules[unfit[0]]).__name__} {unfit[0]}" if unfit else "no module of the model"
            raise ConfigError(
                f"adapter.targets has {target}, which is {what}: name linear or convolutional layers, but not the one "
                "inside nn.MultiheadAttention, which would pass its adapter by"
            )
        chosen += found
    return list(dict.fromkeys(chosen))


def _leave_fast_path(net: nn.Module) -> None:
    """In eval mode `nn.TransformerEncoderLayer` reads the weights of its layers and passes their adapters by, unless
    its activation is one that its fused kernel lacks."""
    for layer in net.modules():
        if isinstance(layer, nn.TransformerEncoderLayer):
            layer.activation_relu_or_gelu = 0


def _within(name: str, module: str) -> bool:
    name = plain_name(name)
    return name == module or name.startswith(f"{module}.")


def _adapted_name(name: str, adapted: Collection[str]) -> str:
    layer, _, leaf = name.rpartition(".")
    return f"{layer}.base_layer.{leaf}" if layer in adapted else name


def _same(a: Tensor, b: Tensor | None) -> bool:
    return b is not None and a.shape == b.shape and torch.equal(a, b)


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ConfigError("adapter=lora needs the package peft: pip install 'cltrain[adapters]'") from error
    return peft
