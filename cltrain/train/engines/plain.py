"""One process, one device; and the interface of all engines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cltrain.models.growth import grown

Named = dict[str, Tensor]
Pull = Callable[[Named, Named], None]


@dataclass(frozen=True, kw_only=True)
class Plain:
    """`rank` of `world` processes, on `device`. `offers` is what a method may need of an engine:

    elementwise: a penalty may be added to each element of the gradient, wherever that element is kept.
    gradients: the gradient of a backward pass may be read and replaced before the step.
    whole: the model with all its parameters can be had in one process when training ends, as for the Fisher.
    compile: the model may be compiled (`train.compile`).
    """

    device: torch.device = torch.device("cpu")  # noqa: RUF009
    rank: int = 0
    world: int = 1
    offers: frozenset[str] = frozenset({"elementwise", "gradients", "whole", "compile"})

    def begin(self, net: nn.Module, optimizer: Callable[[nn.Module], torch.optim.Optimizer]) -> Running:
        """Move `net` to the device, and be ready to train it with what `optimizer` makes for it."""
        net.to(self.device)
        return Running(net, net, optimizer(net))

    def shard(self, index: Tensor) -> Tensor:
        """This rank's part of the indices of a global batch."""
        return index

    def sum(self, value: Tensor) -> Tensor:
        """`value` added up over all ranks; every rank must call it."""
        return value


class Running:
    """A model in training on an engine. Every rank must make the same calls in the same order.

    `module` is what to call in a step, `net` the model as it was given. A *piece* is the part of a parameter (or of
    several) that this rank holds and updates; here it is the whole parameter, under its own name.
    """

    def __init__(self, net: nn.Module, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.net, self.module, self.optimizer = net, module, optimizer
        self.parameters = {name: p for name, p in net.named_parameters() if p.requires_grad}

    def num_parameters(self) -> int:
        """How many are trained, over all ranks."""
        return sum(p.numel() for p in self.parameters.values())

    def pieces(self) -> Named:
        """The values of this rank's pieces, of parameters that are trained; no copies."""
        return {name: p.detach() for name, p in self.parameters.items()}

    def total(self, value: Tensor) -> Tensor:
        """`value`, which each rank computed of its pieces, for all pieces: its sum over the ranks where each keeps
        pieces of its own, `value` itself where every rank keeps everything."""
        return value

    def set_learning_rate(self, value: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = value

    def backward(self, loss: Tensor, first: bool = True) -> None:
        """Take the gradient of `loss`, this rank's share of the loss of the global batch (the shares add up to it), and
        add it up over the ranks. A batch may be passed in several parts: the `first` one begins a new gradient."""
        if first:
            for parameter in self.parameters.values():
                parameter.grad = None
        loss.backward()

    def without_sync(self) -> AbstractContextManager[None]:
        """Around the forward and backward pass of every part of a batch but the last: the ranks need not meet yet."""
        return nullcontext()

    def gradients(self) -> Named:
        """The gradient as it is now, by piece; no copies."""
        return {name: p.grad for name, p in self.parameters.items() if p.grad is not None}

    def step(self, pull: Pull | None = None, max_norm: float | None = None) -> None:
        """Let `pull(values, gradients)` alter the gradient, piece by piece and in place; clip the whole of it to
        `max_norm`; and take the optimizer's step."""
        if pull is not None:
            gradients, values = self.gradients(), self.pieces()
            pull({name: values[name] for name in gradients}, gradients)
        if max_norm is not None:
            clip(self.gradients() if pull is None else gradients, max_norm)
        self.optimizer.step()

    def scatter(self, named: Mapping[str, Tensor]) -> Named:
        """From whole tensors that go with parameters, those that go with this rank's pieces: copies, on its device."""
        return {name: value.to(self.parameters[name].device, copy=True) for name, value in named.items()}

    def gather(self, pieces: Mapping[str, Tensor]) -> Named:
        """The way back: whole tensors by parameter name, on the CPU, on every rank; copies."""
        return {name: value.detach().cpu().clone() for name, value in pieces.items()}

    def weights(self) -> Named:
        """Copies of the whole state dict of `net`, on the CPU, on every rank."""
        return self.gather(self.net.state_dict())

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        self.net.load_state_dict(weights)

    def optimizer_tensors(self) -> Named:
        """Copies of the optimizer's state, whole, on the CPU and on every rank, by slot and parameter name, such as
        `exp_avg/head.weight`."""
        return {
            f"{slot}/{name}": torch.as_tensor(value).detach().cpu().clone()
            for name, parameter in self.parameters.items()
            for slot, value in self.optimizer.state.get(parameter, {}).items()
            if value is not None
        }

    def load_optimizer(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back copies of what `optimizer_tensors` gave, on any engine and any number of ranks. Rows of a parameter
        that are new, and parameters without state, start fresh."""
        self.optimizer.load_state_dict(optimizer_state(self.optimizer, self.parameters, tensors))

    @contextmanager
    def whole(self) -> Iterator[nn.Module]:
        """`net` in eval mode with all its parameters on this rank's device, to be read and not to be changed."""
        self.net.eval()
        yield self.net


def clip(gradients: Mapping[str, Tensor], max_norm: float) -> None:
    """Scale all gradients together so that their norm is `max_norm` at most: `torch.nn.utils.clip_grad_norm_`, without
    what that does for gradients on several devices."""
    values = list(gradients.values())
    if not values:
        return
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(values)))
    torch._foreach_mul_(values, (max_norm / (norm + 1e-6)).clamp(max=1.0))


def optimizer_state(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    place: Callable[[str, Tensor], Tensor] = lambda name, whole: whole,
) -> dict[str, Any]:
    """The state dict of `optimizer` with copies of the whole `tensors`, by slot and parameter name; rows that a
    parameter has gained are 0. `place` makes of a whole tensor what goes with the parameter of a name."""
    groups = optimizer.state_dict()["param_groups"]
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    places = dict(zip(held, (index for group in groups for index in group["params"]), strict=True))
    state: dict[int, Named] = {}
    for key, value in tensors.items():
        slot, name = key.split("/", 1)
        if name in parameters:
            like = torch.zeros(parameters[name].shape, dtype=value.dtype)
            # A clone, since the optimizer would take the tensor itself and change it in place.
            whole = place(name, grown(key, value, like)) if value.dim() else value.clone()
            state.setdefault(places[id(parameters[name])], {})[slot] = whole
    return {"state": state, "param_groups": groups}
