"""ZeRO through DeepSpeed: each rank keeps its part of the optimizer's state, of the gradients and of the parameters, as
flat tensors (Rajbhandari et al. 2020)."""

from __future__ import annotations

import inspect
import logging
import os
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cltrain.errors import ConfigError
from cltrain.models.growth import grown
from cltrain.train.engines.collective import clip_shards, mean_buffers
from cltrain.train.engines.ddp import Ranks
from cltrain.train.engines.plain import Named, Pull, Running
from cltrain.train.engines.sharded import ShardedRunning, hollowed

BUCKET = 50_000_000  # elements of the gradient that are sent at once

_joined: Any = None  # the process group that DeepSpeed knows


@dataclass(frozen=True, kw_only=True)
class DeepSpeed(Ranks):
    """stage: 1, 2 or 3 of ZeRO. It has no gradient by parameter to offer: a rank never has more than its flat part of
    the sum. The processes of a group must have begun the same models before, as those of a worker group have: DeepSpeed
    compares numbers that it counts through the life of a process."""

    stage: int = 2
    offers: frozenset[str] = frozenset({"elementwise", "whole"})

    def begin(self, net: nn.Module, optimizer: Callable[[nn.Module], torch.optim.Optimizer]) -> Running:
        """Raises `ConfigError` where DeepSpeed is not installed."""
        deepspeed = _imported(self.device)
        net.to(self.device)
        hollow = hollowed(net)
        client = optimizer(net)
        config = {
            "train_micro_batch_size_per_gpu": 1,  # asked for, and used only to count
            "gradient_clipping": 0.0,  # 1.0 if left out
            "steps_per_print": None,
            "zero_allow_untested_optimizer": True,
            "zero_optimization": {
                "stage": self.stage,
                "overlap_comm": False,
                "compute_grad_norm": self.stage == 3,
                # A buffer of so many elements is allocated.
                "reduce_bucket_size": min(BUCKET, sum(p.numel() for p in net.parameters())),
            },
        }
        engine, *_ = deepspeed.initialize(model=net, optimizer=client, config=config)
        return DeepSpeedRunning(engine, net, client, hollow, self.device)


class Fragment(NamedTuple):
    """`size` elements of a parameter, from its element `start`, are in this rank's flat tensor `piece`, at `place`."""

    piece: str
    place: int
    name: str
    start: int
    size: int


class DeepSpeedRunning(ShardedRunning):
    """A piece is this rank's part of a group of parameters, flat and in float32; what pads it is 0."""

    def __init__(
        self, engine: Any, net: nn.Module, optimizer: torch.optim.Optimizer, hollow: nn.Module, device: torch.device
    ) -> None:
        super().__init__(net, engine, optimizer, hollow, device)
        self.engine, self.zero = engine, engine.optimizer
        self.sharded = engine.zero_optimization_stage() == 3
        engine.set_gradient_accumulation_boundary(True)
        # DeepSpeed turns off a torch.autocast that it was not told of.
        engine.torch_autocast_enabled = lambda: torch.is_autocast_enabled(device.type)
        engine.torch_autocast_dtype = lambda: torch.get_autocast_dtype(device.type)
        flats = self.zero.fp32_partitioned_groups_flat if self.sharded else self.zero.single_partition_of_fp32_groups
        self.flats: Named = {f"group.{number}": flat for number, flat in enumerate(flats)}
        self.shapes = {name: p.shape for name, p in hollow.named_parameters() if p.requires_grad}
        groups = self.zero.fp16_groups if self.sharded else self.zero.bit16_groups
        numbers = {id(p): number for number, group in enumerate(groups) for p in group}
        self.home = {name: f"group.{numbers[id(p)]}" for name, p in self.parameters.items()}
        self.fragments = list(self._find_fragments())
        self._blank_padding()
        weakref.finalize(self, _destroy, engine).atexit = False

    def _find_fragments(self) -> Iterator[Fragment]:
        for name, p in self.parameters.items():
            if self.sharded:
                _, place, padded = self.zero.grad_position[self.zero.get_param_id(p)]
                start = dist.get_rank() * padded
                size = min(padded, self.shapes[name].numel() - start)
                if size > 0:
                    yield Fragment(self.home[name], place, name, start, size)
            elif (mapping := p._hp_mapping) is not None:  # type: ignore[attr-defined]
                flat, whole = mapping.hp_fragment_address, mapping.lp_fragment_address
                yield Fragment(self.home[name], flat.start, name, whole.start, flat.numel)

    def _blank_padding(self) -> None:
        """DeepSpeed leaves there what the memory held."""
        for piece, flat in self.pieces().items():
            padding = torch.ones_like(flat, dtype=torch.bool)
            for part in self.fragments:
                if part.piece == piece:
                    padding[part.place : part.place + part.size] = False
            flat[padding] = 0

    def backward(self, loss: Tensor, first: bool = True) -> None:
        if first:
            self.zero.zero_grad()
        self.engine.backward(loss * dist.get_world_size())  # DeepSpeed takes the mean over the ranks

    @contextmanager
    def without_sync(self) -> Iterator[None]:
        self.engine.set_gradient_accumulation_boundary(False)
        try:
            yield
        finally:
            self.engine.set_gradient_accumulation_boundary(True)

    def num_parameters(self) -> int:
        return sum(shape.numel() for shape in self.shapes.values())

    def pieces(self) -> Named:
        return {name: flat.detach() for name, flat in self.flats.items()}

    def gradients(self) -> Named:
        """By piece, between the backward pass of a whole batch and the step."""
        averaged = self.zero.averaged_gradients
        if self.sharded:  # a buffer that holds the gradients of all groups, one after another
            parts = self.zero.grad_partitions_flat_buffer.split([flat.numel() for flat in self.flats.values()])
            return dict(zip(self.flats, parts, strict=True))
        for number, (_, flat) in enumerate(self.flats.items()):
            if len(averaged[number]) > 1:
                averaged[number] = [self.zero.flatten(averaged[number])]
            assert averaged[number][0].numel() == flat.numel()
        return {name: averaged[number][0].view(-1) for number, name in enumerate(self.flats)}

    def step(self, pull: Pull | None = None, max_norm: float | None = None) -> None:
        if pull is not None or max_norm is not None:
            gradients = self.gradients()
            if pull is not None:
                pull(self.pieces(), gradients)
            if max_norm is not None:
                clip_shards(gradients.values(), max_norm)
        self.engine.step()

    def scatter(self, named: Mapping[str, Tensor]) -> Named:
        dtypes = {self.home[name]: value.dtype for name, value in named.items()}
        pieces = {piece: torch.zeros_like(self.flats[piece], dtype=dtype) for piece, dtype in dtypes.items()}
        for part in self.fragments:
            if part.name in named:
                elements = named[part.name].reshape(-1)[part.start : part.start + part.size]
                pieces[part.piece][part.place : part.place + part.size] = elements.to(self.device)
        return {piece: value.detach() for piece, value in pieces.items()}

    def gather(self, pieces: Mapping[str, Tensor]) -> Named:
        """In one sum over the ranks, to which each adds what it has."""
        names = [name for name, home in self.home.items() if home in pieces]
        if not names:
            return {}
        sizes = [self.shapes[name].numel() for name in names]
        whole = torch.zeros(sum(sizes), dtype=next(iter(pieces.values())).dtype, device=self.device)
        views = dict(zip(names, whole.split(sizes), strict=True))
        for part in self.fragments:
            if part.piece in pieces:
                elements = pieces[part.piece].detach()[part.place : part.place + part.size]
                views[part.name][part.start : part.start + part.size] = elements
        dist.all_reduce(whole)
        whole = whole.cpu()
        return {n: v.view(self.shapes[n]).clone() for n, v in zip(names, whole.split(sizes), strict=True)}

    def weights(self) -> Named:
        whole = self.gather(self.pieces())
        with self._frozen():
            rest = {n: v.detach().cpu().clone() for n, v in self.net.named_parameters() if not v.requires_grad}
        kept = {name: value.detach().cpu().clone() for name, value in self.net.named_buffers()} | mean_buffers(self.net)
        named = {id(value): name for name, value in (*self.net.named_parameters(), *self.net.named_buffers())}
        found = whole | rest | kept
        return {key: found[named[id(value)]] for key, value in self.net.state_dict(keep_vars=True).items()}

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        for piece, value in self.scatter({name: weights[name] for name in self.home}).items():
            self.pieces()[piece].copy_(value)
        self._publish()
        with torch.no_grad(), self._frozen(writes=True):
            for name, value in (*self.net.named_parameters(), *self.net.named_buffers()):
                if name in weights and name not in self.home:
                    value.copy_(weights[name])

    @contextmanager
    def _frozen(self, writes: bool = False) -> Iterator[None]:
        """For the block, every rank has the whole of the parameters that are not trained."""
        frozen = [p for p in self.net.parameters() if not p.requires_grad]
        if self.sharded and frozen:
            import deepspeed

            with deepspeed.zero.GatheredParameters(frozen, modifier_rank=0 if writes else None):
                yield
        else:
            yield

    @torch.no_grad()
    def _publish(self) -> None:
        """Let the model compute with the pieces as they are now."""
        if not self.sharded:
            self.zero.update_lp_params()
            return
        self.zero._partition_all_parameters()
        for number in range(len(self.flats)):
            self.zero._reassign_or_swap_out_partitioned_parameters(number)
        if kept := self.zero.persistent_parameters:
            kept[0].all_gather(kept)

    def optimizer_tensors(self) -> Named:
        found: Named = {}
        slots: dict[str, Named] = {}
        for piece, flat in self.flats.items():
            for slot, value in self.optimizer.state.get(flat, {}).items():
                if isinstance(value, Tensor) and value.shape == flat.shape:
                    slots.setdefault(slot, {})[piece] = value
                elif value is not None:
                    count = torch.as_tensor(value).detach().cpu()
                    found |= {f"{slot}/{name}": count.clone() for name, home in self.home.items() if home == piece}
        for slot, pieces in sorted(slots.items()):
            found |= {f"{slot}/{name}": value for name, value in self.gather(pieces).items()}
        return found

    def load_optimizer(self, tensors: Mapping[str, Tensor]) -> None:
        """A count, such as that of the steps, is one for a group: the largest of those of its parameters."""
        slots: dict[str, Named] = {}
        for key, value in tensors.items():
            slot, name = key.split("/", 1)
            if name in self.home:
                slots.setdefault(slot, {})[name] = value
        state: dict[str, dict[str, Tensor]] = {}
        for slot, named in slots.items():
            if all(not value.dim() for value in named.values()):
                for name, count in named.items():
                    kept = state.setdefault(self.home[name], {})
                    kept[slot] = torch.maximum(kept[slot], self._count(count)) if slot in kept else self._count(count)
            else:
                zeros = {name: torch.zeros(self.shapes[name], dtype=value.dtype) for name, value in named.items()}
                whole = {name: grown(f"{slot}/{name}", value, zeros[name]) for name, value in named.items()}
                for piece, flat in self.scatter(whole).items():
                    state.setdefault(piece, {})[slot] = flat
        for piece, flat in self.flats.items():
            self.optimizer.state[flat] = state.get(piece, {})

    def _count(self, value: Tensor) -> Tensor:
        group = self.optimizer.param_groups[0]
        on_device = group.get("fused") or group.get("capturable")
        return value.clone().to(self.device if on_device else "cpu")


def _destroy(engine: Any) -> None:
    """Take back the hooks, and what DeepSpeed keeps of a model outside of it."""
    import deepspeed
    from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator as Coordinator

    if deepspeed.comm.is_initialized():
        engine.destroy()
    FWD_MODULE_STACK[:] = [module for module in FWD_MODULE_STACK if module is not engine.module]
    # It remembers what a method said, and with that the model that the method is about.
    method = Coordinator._PartitionedParameterCoordinator__params_to_release  # type: ignore[attr-defined]
    inspect.getclosurevars(method).nonlocals["func"].cache_clear()


def _imported(device: torch.device) -> Any:
    """DeepSpeed, quiet, and knowing the process group that is there."""
    global _joined
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    if device.type == "cuda":
        os.environ["LOCAL_RANK"] = str(device.index)  # what DeepSpeed calls the number of the device
    os.environ.setdefault("LOCAL_RANK", "0")
    try:
        import deepspeed
        import deepspeed.ops
    except ImportError as error:
        raise ConfigError(
            f"engine=deepspeed needs the extra deepspeed: pip install 'cltrain[deepspeed]' ({error})"
        ) from error
    logger = logging.getLogger("DeepSpeed")
    logger.setLevel(logging.ERROR)
    for handler in logger.handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setStream(sys.stderr)
    # DeepSpeed calls collectives by the names that they had in older versions of torch.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    # Else the first use on a CPU compiles a collective through shared memory, for minutes.
    deepspeed.ops.__compatible_ops__ = {}
    if _joined is not dist.group.WORLD:
        deepspeed.comm.comm.cdb = None
        deepspeed.utils.groups._release_process_group_references()
        deepspeed.init_distributed(dist.get_backend(), auto_mpi_discovery=False, verbose=False)
        _joined = dist.group.WORLD
    return deepspeed
