"""Fully sharded: each rank keeps a part of every parameter, of its gradient and of the optimizer's state, and gathers a
block of the model when it computes with it (FSDP2, `torch.distributed.fsdp.fully_shard`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from cltrain.errors import ConfigError
from cltrain.train.engines.ddp import Ranks
from cltrain.train.engines.plain import Named, Running, optimizer_state
from cltrain.train.engines.sharded import ShardedRunning, hollowed


@dataclass(frozen=True, kw_only=True)
class FSDP(Ranks):
    """unit_elements: a block of the model with at least so many parameters is gathered on its own."""

    unit_elements: int = 1_000_000
    offers: frozenset[str] = frozenset({"elementwise", "gradients", "whole"})

    def begin(self, net: nn.Module, optimizer: Callable[[nn.Module], torch.optim.Optimizer]) -> Running:
        """Raises `ConfigError` for a model with a parameter that is a scalar, which cannot be cut."""
        if scalars := [name for name, p in net.named_parameters() if not p.dim()]:
            raise ConfigError(
                f"engine=fsdp cannot cut {', '.join(scalars)}: make it a tensor of one element, or set engine=ddp"
            )
        net.to(self.device)
        hollow = hollowed(net)
        mesh = init_device_mesh(self.device.type, (self.world,))
        for unit in units(net, self.unit_elements):
            fully_shard(unit, mesh=mesh)
        fully_shard(net, mesh=mesh)
        made = optimizer(net)
        for group in made.param_groups:
            if group.get("fused") and not isinstance(made, torch.optim.Adam):  # torch cannot cut the other fused ones
                group["fused"] = False
        return FSDPRunning(net, net, made, hollow, self.device)


class FSDPRunning(ShardedRunning):
    """A piece is this rank's rows of a parameter, under the parameter's name; it may have none."""

    def backward(self, loss: Tensor, first: bool = True) -> None:
        super().backward(loss * dist.get_world_size(), first)  # FSDP takes the mean over the ranks

    @contextmanager
    def without_sync(self) -> Iterator[None]:
        module = cast(FSDPModule, self.net)
        module.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            module.set_requires_gradient_sync(True)

    @torch.no_grad()
    def pieces(self) -> Named:
        return {name: _local(p) for name, p in self.parameters.items()}

    @torch.no_grad()
    def gradients(self) -> Named:
        return {name: _local(p.grad) for name, p in self.parameters.items() if p.grad is not None}

    def scatter(self, named: Mapping[str, Tensor]) -> Named:
        return {name: _local(_cut(value, self.parameters[name])).clone() for name, value in named.items()}

    def gather(self, pieces: Mapping[str, Tensor]) -> Named:
        # In one order on every rank, whatever that of `pieces` is: tensors come out of a file in any.
        return {name: _whole(value, self.parameters.get(name)) for name, value in sorted(pieces.items())}

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        held = self.net.state_dict()
        self.net.load_state_dict({name: _cut(value, held[name]) for name, value in weights.items()})

    def optimizer_tensors(self) -> Named:
        return {
            f"{slot}/{name}": _whole(torch.as_tensor(value))
            for name, parameter in self.parameters.items()
            for slot, value in sorted(self.optimizer.state.get(parameter, {}).items())
            if value is not None
        }

    def load_optimizer(self, tensors: Mapping[str, Tensor]) -> None:
        def place(name: str, whole: Tensor) -> Tensor:
            return _cut(whole, self.parameters[name])

        self.optimizer.load_state_dict(optimizer_state(self.optimizer, self.parameters, tensors, place))


def units(module: nn.Module, least: int) -> list[nn.Module]:
    """The blocks of `module`, inner ones first, that hold at least `least` elements which no block within them holds:
    its children, and at any depth the entries of lists of modules. A parameter that is used both in a block and outside
    of it keeps the block from being one."""
    uses, taken, found = _uses(module), set[int](), list[nn.Module]()

    def visit(parent: nn.Module) -> None:
        for child in parent.children():
            if any(isinstance(part, nn.ModuleList) for part in child.modules()):
                visit(child)
            own = {p: count for p, count in _uses(child).items() if id(p) not in taken}
            alone = all(count == uses[p] for p, count in own.items())
            if alone and sum(p.numel() for p in own) >= least > 0 and type(child).forward is not nn.Module.forward:
                found.append(child)
                taken.update(map(id, own))

    visit(module)
    return found


def _uses(module: nn.Module) -> Counter[nn.Parameter]:
    """How often each parameter occurs; of a module that occurs twice, twice."""
    parts = (part for _, part in module.named_modules(remove_duplicate=False))
    return Counter(parameter for part in parts for parameter in part.parameters(recurse=False))


def _cut(whole: Tensor, like: Any) -> Tensor:
    """`whole`, which every rank has, sharded as `like` is."""
    if not isinstance(like, DTensor):
        return whole
    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def _whole(value: Tensor, like: Any = None) -> Tensor:
    """A copy on the CPU of the whole of which `value` is a shard, cut as `like` is."""
    if isinstance(like, DTensor) and not isinstance(value, DTensor):
        value = DTensor.from_local(
            value, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
        )
    return (value.full_tensor() if isinstance(value, DTensor) else value).detach().cpu().clone()
