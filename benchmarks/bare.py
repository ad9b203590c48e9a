"""The baseline: training loops written by hand, each for one method, in one process, on tensors in memory.

They are as fast as we could make plain PyTorch: rows gathered by `index_select`, a fused AdamW, the gradient clipped
and the penalty added by `torch._foreach_*`, whatever does not change computed once, and no wait for the device. They
keep no account of anything but the loss and can do nothing else: no resume, no ranks, no row weights, no other
optimizer. Each function trains `net` on `work` and returns the mean loss of a step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MAX_NORM = 1.0
STRENGTH = 10.0  # of the quadratic penalties
ALPHA, BETA = 1.0, 0.5  # DER++: of the stored outputs, and of the labels
TEMPERATURE = 2.0  # LwF


@dataclass(frozen=True, kw_only=True)
class Work:
    """New rows `x` (N, 784) with `y` (N,) and what the parent said of them, (N, C); rows of the past with what was said
    of them then; and the importance and the anchor of each parameter."""

    x: Tensor
    y: Tensor
    parent_outputs: Tensor
    old_x: Tensor
    old_y: Tensor
    old_outputs: Tensor
    importance: list[Tensor]
    anchor: list[Tensor]
    batch_size: int
    epochs: int

    def batches(self) -> Iterator[Tensor]:
        for _ in range(self.epochs):
            yield from torch.randperm(len(self.x), device=self.x.device).split(self.batch_size)

    def draw(self, rows: int) -> Tensor:
        return torch.randint(len(self.old_x), (rows,), device=self.x.device)

    @property
    def steps(self) -> int:
        return self.epochs * -(-len(self.x) // self.batch_size)


def finetune(net: nn.Module, optimizer: torch.optim.Optimizer, work: Work) -> float:
    parameters, total = list(net.parameters()), torch.zeros((), device=work.x.device)
    for new in work.batches():
        loss = F.cross_entropy(net(work.x.index_select(0, new)), work.y.index_select(0, new))
        optimizer.zero_grad()
        loss.backward()
        clip(parameters)
        optimizer.step()
        total += loss.detach()
    return total.item() / work.steps


def replay(net: nn.Module, optimizer: torch.optim.Optimizer, work: Work) -> float:
    """Experience replay: as many old rows as new ones join each batch."""
    parameters, total = list(net.parameters()), torch.zeros((), device=work.x.device)
    for new in work.batches():
        old = work.draw(len(new))
        x = torch.cat([work.x.index_select(0, new), work.old_x.index_select(0, old)])
        y = torch.cat([work.y.index_select(0, new), work.old_y.index_select(0, old)])
        loss = F.cross_entropy(net(x), y)
        optimizer.zero_grad()
        loss.backward()
        clip(parameters)
        optimizer.step()
        total += loss.detach()
    return total.item() / work.steps


def ewc(net: nn.Module, optimizer: torch.optim.Optimizer, work: Work) -> float:
    """Elastic weight consolidation; the same step as MAS, whose importance is another."""
    parameters, total = list(net.parameters()), torch.zeros((), device=work.x.device)
    for new in work.batches():
        loss = F.cross_entropy(net(work.x.index_select(0, new)), work.y.index_select(0, new))
        optimizer.zero_grad()
        loss.backward()
        pull(parameters, work)
        clip(parameters)
        optimizer.step()
        total += loss.detach()
    return total.item() / work.steps


def derpp(net: nn.Module, optimizer: torch.optim.Optimizer, work: Work) -> float:
    """Dark experience replay ++, with one draw for both of its terms; it keeps what is said of each new row, which the
    memory will hold."""
    parameters, total = list(net.parameters()), torch.zeros((), device=work.x.device)
    said = work.old_outputs.new_empty(len(work.x), work.old_outputs.shape[1])
    for new in work.batches():
        count, old = len(new), work.draw(len(new))
        outputs = net(torch.cat([work.x.index_select(0, new), work.old_x.index_select(0, old)]))
        said.index_copy_(0, new, outputs[:count].detach())
        loss = F.cross_entropy(outputs[:count], work.y.index_select(0, new))
        loss = loss + ALPHA * F.mse_loss(outputs[count:], work.old_outputs.index_select(0, old))
        loss = loss + BETA * F.cross_entropy(outputs[count:], work.old_y.index_select(0, old))
        optimizer.zero_grad()
        loss.backward()
        clip(parameters)
        optimizer.step()
        total += loss.detach()
    return total.item() / work.steps


def lwf(net: nn.Module, optimizer: torch.optim.Optimizer, work: Work) -> float:
    """Learning without forgetting: the parent's outputs on the new rows, softened."""
    parameters, total = list(net.parameters()), torch.zeros((), device=work.x.device)
    soft = torch.softmax(work.parent_outputs / TEMPERATURE, dim=1)
    for new in work.batches():
        outputs = net(work.x.index_select(0, new))
        loss = F.cross_entropy(outputs, work.y.index_select(0, new))
        loss = loss + TEMPERATURE**2 * F.cross_entropy(outputs / TEMPERATURE, soft.index_select(0, new))
        optimizer.zero_grad()
        loss.backward()
        clip(parameters)
        optimizer.step()
        total += loss.detach()
    return total.item() / work.steps


def agem(net: nn.Module, optimizer: torch.optim.Optimizer, work: Work) -> float:
    """Averaged GEM: where the new gradient opposes that of old rows, it loses that part."""
    parameters, total = list(net.parameters()), torch.zeros((), device=work.x.device)
    for new in work.batches():
        old = work.draw(len(new))
        past = F.cross_entropy(net(work.old_x.index_select(0, old)), work.old_y.index_select(0, old))
        reference = torch.autograd.grad(past, parameters)
        loss = F.cross_entropy(net(work.x.index_select(0, new)), work.y.index_select(0, new))
        optimizer.zero_grad()
        loss.backward()
        gradients = [p.grad for p in parameters]
        dot, square = torch.stack(
            [
                torch.stack([torch.dot(a.flatten(), r.flatten()) for a, r in zip(of, reference, strict=True)]).sum()
                for of in (gradients, reference)
            ]
        )
        torch._foreach_add_(gradients, torch._foreach_mul(reference, (-dot / square).clamp_(min=0.0)))
        clip(parameters)
        optimizer.step()
        total += loss.detach()
    return total.item() / work.steps


def si(net: nn.Module, optimizer: torch.optim.Optimizer, work: Work) -> float:
    """Synaptic intelligence: the penalty of EWC, and the importance of the next one gathered along the path."""
    parameters, total = list(net.parameters()), torch.zeros((), device=work.x.device)
    path = [torch.zeros_like(p) for p in parameters]
    before = [torch.empty_like(p) for p in parameters]
    gradients = [torch.empty_like(p) for p in parameters]
    for new in work.batches():
        loss = F.cross_entropy(net(work.x.index_select(0, new)), work.y.index_select(0, new))
        optimizer.zero_grad()
        loss.backward()
        with torch.no_grad():
            torch._foreach_copy_(before, parameters)
            torch._foreach_copy_(gradients, [p.grad for p in parameters])
        pull(parameters, work)
        clip(parameters)
        optimizer.step()
        with torch.no_grad():
            torch._foreach_sub_(before, parameters)
            torch._foreach_addcmul_(path, gradients, before)
        total += loss.detach()
    return total.item() / work.steps


def adamw(net: nn.Module) -> torch.optim.AdamW:
    """Matrices decay, biases do not."""
    matrices, rest = ([p for p in net.parameters() if (p.dim() > 1) is of] for of in (True, False))
    groups = [{"params": matrices, "weight_decay": 1e-2}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-3, fused=True)


@torch.no_grad()
def pull(parameters: list[nn.Parameter], work: Work) -> None:
    """Add the gradient of `STRENGTH / 2 * sum(importance * (parameter - anchor)**2)`."""
    distance = torch._foreach_sub(parameters, work.anchor)
    torch._foreach_addcmul_([p.grad for p in parameters], work.importance, distance, value=STRENGTH)


@torch.no_grad()
def clip(parameters: list[nn.Parameter]) -> None:
    """`clip_grad_norm_` in half its time, which is 5 % of a step of the MLP on 64 rows."""
    gradients = [p.grad for p in parameters]
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    torch._foreach_mul_(gradients, (MAX_NORM / (norm + 1e-6)).clamp_(max=1.0))


LOOPS = {"finetune": finetune, "replay": replay, "ewc": ewc, "derpp": derpp, "lwf": lwf, "agem": agem, "si": si}
