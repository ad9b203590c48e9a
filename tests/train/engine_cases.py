"""A small model trained through the interface of engines, without the rest of an update; run by `test_engines.py`, in
processes of its own for engines of several ranks."""

from __future__ import annotations

import contextlib
import gc
import io
import warnings
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cltrain.train.engines import DDP, DeepSpeed, Plain, Running
from cltrain.train.engines.fsdp import FSDP
from cltrain.train.engines.plain import Named

Reports = dict[str, dict[str, Any]]
ENGINES: dict[str, Callable[[], Plain]] = {
    "plain": Plain,
    "ddp": lambda: DDP.of_process_group(torch.device("cpu")),
    "fsdp": lambda: FSDP.of_process_group(torch.device("cpu")),
    "fsdp_units": lambda: FSDP.of_process_group(torch.device("cpu"), unit_elements=1),
    **{
        f"deepspeed{stage}": partial(lambda stage: DeepSpeed.of_process_group(torch.device("cpu"), stage=stage), stage)
        for stage in (1, 2, 3)
    },
}
ROWS = 24


class Small(nn.Module):
    """Parameters of odd sizes, one smaller than any number of ranks and one that is not trained."""

    def __init__(self, categories: int = 5) -> None:
        super().__init__()
        self.table = nn.Embedding(categories, 3)
        self.blocks = nn.ModuleList([nn.Linear(5, 7), nn.Linear(7, 7)])
        self.norm = nn.LayerNorm(7)
        self.head = nn.Linear(7, 1)
        self.scale = nn.Parameter(torch.ones(1))
        self.fixed = nn.Parameter(torch.linspace(0.5, 1.5, 7), requires_grad=False)
        self.register_buffer("seen", torch.zeros(2))
        self.register_buffer("constant", torch.tensor([2.0]), persistent=False)

    def forward(self, numeric: Tensor, categorical: Tensor) -> Tensor:
        x = torch.cat([numeric, self.table(categorical)], dim=1)
        for block in self.blocks:
            x = torch.tanh(block(x))
        return self.head(self.norm(x * self.fixed)).squeeze(1) * self.scale * self.constant


def small(categories: int = 5) -> Small:
    torch.manual_seed(0)
    return Small(categories)


def adamw(net: nn.Module, **settings: Any) -> torch.optim.Optimizer:
    trained = [p for p in net.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in trained if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=1e-2, **{"fused": True, **settings})


OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "adamw": adamw,
    "adamw_plain": partial(adamw, fused=False),
    "sgd": lambda net: torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1, fused=True),
    "momentum": lambda net: torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1, momentum=0.9),
}


def batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    numeric = torch.randn(ROWS, 2, generator=generator)
    categorical = torch.randint(5, (ROWS,), generator=generator)
    return numeric, categorical, numeric.sum(1) + 0.3 * categorical


def importance(categories: int) -> tuple[Named, Named]:
    """A Fisher and an anchor by name, whole."""
    generator = torch.Generator().manual_seed(7)
    trained = {name: p for name, p in small(categories).named_parameters() if p.requires_grad}
    fisher = {name: torch.rand(p.shape, generator=generator) for name, p in trained.items()}
    return fisher, {name: torch.randn(p.shape, generator=generator) for name, p in trained.items()}


def train(
    running: Running,
    engine: Plain,
    steps: range,
    parts: int = 1,
    max_norm: float | None = 0.5,
    strength: float = 0.3,
    bf16: bool = False,
) -> list[float]:
    """Steps with a penalty that pulls towards an anchor, and with clipping that bites."""
    fisher, anchor = (running.scatter(named) for named in importance(running.net.table.num_embeddings))

    def pull(values: Named, gradients: Named) -> None:
        for name, gradient in gradients.items():
            gradient.add_(fisher[name] * (values[name] - anchor[name]), alpha=strength)

    running.module.train()
    losses = []
    for step in steps:
        running.set_learning_rate(1e-2 / (1 + step))
        numeric, categorical, target = batch(step)
        index = engine.shard(torch.arange(ROWS))
        loss_sum = torch.zeros(())
        for number, part in enumerate(index.tensor_split(parts), 1):
            with contextlib.nullcontext() if number == parts else running.without_sync():
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    outputs = running.module(numeric=numeric[part], categorical=categorical[part])
                loss = (outputs.float() - target[part]).square().sum() / ROWS
                running.backward(loss, first=number == 1)
            loss_sum += loss.detach()
        running.step(pull if strength else None, max_norm)
        losses.append(engine.sum(loss_sum).item())
    return losses


def state(running: Running) -> dict[str, Named]:
    return {"weights": running.weights(), "optimizer": running.optimizer_tensors()}


def loaded(engine: Plain, saved: dict[str, Named], optimizer: str = "adamw", categories: int = 5) -> Running:
    """Begun as an update does: weights into the net, and then the optimizer's tensors."""
    net = small(categories)
    net.load_state_dict({**net.state_dict(), **saved["weights"]})
    running = engine.begin(net, OPTIMIZERS[optimizer])
    running.load_optimizer(saved["optimizer"])
    return running


def report(engine: Plain, parent: dict[str, Named]) -> dict[str, Any]:
    """All that is asked of an engine. `parent` is the state that one process had after three steps."""
    found: dict[str, Any] = {}
    running = engine.begin(small(), OPTIMIZERS["adamw"])
    found["groups_before"] = len(dist.distributed_c10d._world.pg_map)
    fisher, anchor = importance(5)
    found["round_trip"] = {
        name: running.gather(running.scatter(named)) for name, named in [("a", fisher), ("b", anchor)]
    }
    pieces = list(running.scatter(fisher).items())
    found["any_order"] = running.gather(dict(pieces[:: -1 if engine.rank % 2 else 1]))
    found["initial"] = running.weights()
    found["losses"] = train(running, engine, range(3))
    found["third"] = state(running)
    before = state(running)
    train(running, engine, range(3, 6))
    found["sixth"] = state(running)
    for name in ("restored", "restored_again"):
        running.load_weights(before["weights"])
        running.load_optimizer(before["optimizer"])
        found[name] = state(running)
        train(running, engine, range(3, 6))
        found[f"{name}_sixth"] = state(running)
    with running.whole() as whole:
        found["training"] = [part.training for part in whole.modules()]
        numeric, categorical, _ = batch(0)
        found["outputs"] = whole(numeric, categorical).detach()
        named = dict(whole.named_parameters())
        found["whole"] = {name: value.detach().clone() for name, value in named.items()}
        row = torch.func.grad(lambda n: torch.func.functional_call(whole, n, (numeric[:1], categorical[:1])).sum())
        found["per_row"] = {name: value.detach() for name, value in row(named).items()}
    train(running, engine, range(6, 7))
    found["seventh"] = state(running)
    with torch.no_grad():
        for buffer in running.net.buffers():
            buffer.fill_(engine.rank)
    found["buffers"] = running.weights()["seen"]
    running.load_weights(parent["weights"])
    found["loaded_weights"] = running.weights()

    running = loaded(engine, found["third"])
    found["resumed"] = state(running)
    train(running, engine, range(3, 6))
    found["resumed_sixth"] = state(running)
    running = loaded(engine, parent)
    train(running, engine, range(3, 6))
    found["moved_sixth"] = state(running)
    running = loaded(engine, grown_weights(parent), categories=8)
    train(running, engine, range(3, 6))
    found["grown_sixth"] = state(running)
    for name, parts in (("parts", 3), ("sgd", 1), ("momentum", 1), ("adamw_plain", 1)):
        running = engine.begin(small(), OPTIMIZERS.get(name, adamw))
        train(running, engine, range(3), parts=parts)
        found[name] = state(running)
    running = loaded(engine, found["momentum"], "momentum")
    train(running, engine, range(3, 6))
    found["momentum_sixth"] = state(running)
    running = engine.begin(small(), OPTIMIZERS["adamw"])
    train(running, engine, range(3), max_norm=None, strength=0.0)
    found["free"] = state(running)
    running = engine.begin(small(), OPTIMIZERS["adamw"])
    train(running, engine, range(3), bf16=True)
    found["bf16"] = state(running)
    found["parameters"] = running.num_parameters()
    found["groups"] = len(dist.distributed_c10d._world.pg_map)
    model = weakref.ref(running.module)
    del running
    gc.collect()
    found["freed"] = model() is None
    return found


def grown_weights(parent: dict[str, Named]) -> dict[str, Named]:
    """The same with new rows of the embedding, as an update gives it to its engine."""
    table = small(8).table.weight.detach().clone()
    table[:5] = parent["weights"]["table.weight"]
    return {**parent, "weights": {**parent["weights"], "table.weight": table}}


def rank_main(rank: int, cases: dict[int, list[str]], folder: str) -> None:
    """The engines of each number of ranks, one after another; this process takes part in those with room for it."""
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", category=DeprecationWarning)  # what torch and DeepSpeed do to one another
    parent = torch.load(Path(folder, "parent.pt"))
    for world, names in cases.items():
        if rank >= world:
            continue
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet-{world}", rank=rank, world_size=world)
        try:
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                found: dict[str, Any] = {name: report(ENGINES[name](), parent) for name in names}
            torch.save(found | {"stdout": out.getvalue()}, Path(folder, f"{world}-{rank}.pt"))
        finally:
            dist.destroy_process_group()
