"""What a step costs beside a hand-written loop of the same method: `python benchmarks/run.py step`.

The model is an MLP 784-100-10 on 2,048 rows of noise (the cost does not depend on them), with AdamW and a clipped
gradient. The bare loops below do what a careful engineer would write for one method and one process, on tensors in
memory. Ours is the loop of `train_update`, which is `train_passes`. The two take turns; the ratio is of the best
times, above 1 where ours is faster.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cltrain.batch import Batch
from cltrain.methods import EWC, Finetune, Method, MethodState, Replay
from cltrain.train.engines import Plain
from cltrain.train.optimizer import adamw
from cltrain.train.passes import train_passes
from cltrain.train.settings import Training
from cltrain.train.step import Stepper

ROWS, MEMORY, TURNS = 2_048, 2_000, 7
METHODS: dict[str, Method] = {"finetune": Finetune(), "replay": Replay(ratio=1.0), "ewc": EWC(strength=10.0)}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(784, 100), nn.Linear(100, 10)

    def forward(self, numeric: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(numeric)))


def data(device: torch.device) -> tuple[Batch, Batch, MethodState]:
    generator = torch.Generator().manual_seed(0)
    rows, exemplars = (
        Batch({"numeric": torch.randn(n, 784, generator=generator)}, torch.randint(10, (n,)), torch.ones(n)).to(device)
        for n in (ROWS, MEMORY)
    )
    net = Net()
    fisher = {name: torch.rand_like(p).mul_(1e-3).to(device) for name, p in net.named_parameters()}
    anchor = {name: p.detach().clone().to(device) for name, p in net.named_parameters()}
    return rows, exemplars, MethodState(tensors={"fisher": fisher, "anchor": anchor})


def ours(method: Method, rows: Batch, exemplars: Batch, state: MethodState, training: Training) -> Callable[[], Any]:
    device = rows.target.device
    net = Net().to(device)
    stepper = Stepper(
        module=net,
        parameters=dict(net.named_parameters()),
        optimizer=adamw(net, training),
        task="multiclass",
        method=method,
        state=state,
        engine=Plain(device=device),
        generator=torch.Generator().manual_seed(0),
        max_grad_norm=training.max_grad_norm,
    )
    old = exemplars if isinstance(method, Replay) else None
    return lambda: train_passes(stepper, net, rows, old, training, seed=0)


def bare(method: Method, rows: Batch, exemplars: Batch, state: MethodState, training: Training) -> Callable[[], Any]:
    x, y, old_x, old_y = rows.inputs["numeric"], rows.target, exemplars.inputs["numeric"], exemplars.target
    net = Net().to(x.device)
    parameters = list(net.parameters())
    fisher, anchor = (list(state.tensors[slot].values()) for slot in ("fisher", "anchor"))
    optimizer = torch.optim.AdamW(parameters, lr=training.learning_rate, fused=True)

    def run() -> float:
        total = torch.zeros((), device=x.device)
        for _ in range(training.epochs):
            for index in torch.randperm(len(x), device=x.device).split(training.batch_size):
                batch_x, batch_y = x[index], y[index]
                if isinstance(method, Replay):
                    drawn = torch.randint(len(old_x), (len(index),), device=x.device)
                    batch_x, batch_y = torch.cat([batch_x, old_x[drawn]]), torch.cat([batch_y, old_y[drawn]])
                loss = F.cross_entropy(net(batch_x), batch_y)
                optimizer.zero_grad()
                loss.backward()
                if isinstance(method, EWC):
                    with torch.no_grad():
                        for p, f, a in zip(parameters, fisher, anchor, strict=True):
                            p.grad.add_(  # type: ignore[union-attr]
                                f * (p - a), alpha=method.strength
                            )
                nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                total += loss.detach()
        return total.item()

    return run


def seconds(run: Callable[[], Any], device: torch.device) -> float:
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def run(device: str = "cpu") -> list[dict[str, Any]]:
    """A row for each method and batch size: name, ratio (bare time by ours), rows_per_s, bare_rows_per_s, spread (of
    the ratio over turns, as lowest and highest)."""
    where, threads = torch.device(device), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows, exemplars, state = data(where)
        found = []
        for name, method in METHODS.items():
            for batch_size in (64, 1024):
                training = Training(epochs=8 if batch_size == 1024 else 2, batch_size=batch_size, unknown_rate=0.0)
                pair = [make(method, rows, exemplars, state, training) for make in (bare, ours)]
                for one in pair:
                    one()
                times = [[seconds(one, where) for one in pair] for _ in range(TURNS)]
                best_bare, best_ours = (min(column) for column in zip(*times, strict=True))
                visits = ROWS * training.epochs * (2 if name == "replay" else 1)
                ratios = sorted(b / o for b, o in times)
                found.append(
                    {
                        "name": f"step {name} batch {batch_size}",
                        "ratio": best_bare / best_ours,
                        "rows_per_s": visits / best_ours,
                        "bare_rows_per_s": visits / best_bare,
                        "spread": [ratios[0], ratios[-1]],
                    }
                )
        return found
    finally:
        torch.set_num_threads(threads)
