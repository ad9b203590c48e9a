"""What a step costs beside a hand-written loop of the same method: `python benchmarks/run.py step`.

An MLP 784-100-10 and a small CNN on noise (the cost does not depend on it), with AdamW and a clipped gradient, batches
of 64 and of 1,024 new rows, one thread. `bare.py` has the loops written by hand. Ours is the loop of `train_update`,
`train_passes`, with its accounts and everything else that it does in an update. Contenders take turns; `ratio` is the
median over turns, above 1 where we are faster than the hand-written loop, and `wanted` is what we promise.

With `--avalanche PYTHON`, of an environment with `avalanche/requirements.txt`, that library takes turns as well.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.bare import ALPHA, BETA, LOOPS, MAX_NORM, STRENGTH, TEMPERATURE, Work, adamw
from benchmarks.models import CNN, MLP
from benchmarks.turns import ratio, seconds, take_turns
from cltrain.batch import Batch
from cltrain.methods import AGEM, EWC, SI, DERpp, Finetune, LwF, Method, MethodState, Replay
from cltrain.train.engines import Plain
from cltrain.train.optimizer import make_optimizer
from cltrain.train.passes import train_passes
from cltrain.train.settings import Training
from cltrain.train.step import Stepper

MEMORY = 2_000
ROWS = {64: 4_096, 1_024: 8_192}  # of which an epoch is timed, by batch size
MODELS: dict[str, type[nn.Module]] = {"mlp": MLP, "cnn": CNN}
METHODS: dict[str, Method] = {
    "finetune": Finetune(),
    "replay": Replay(ratio=1.0),
    "ewc": EWC(strength=STRENGTH),
    "derpp": DERpp(alpha=ALPHA, beta=BETA),
    "lwf": LwF(temperature=TEMPERATURE),
    "agem": AGEM(),
    "si": SI(strength=STRENGTH / 2),
}
WANTED = {"finetune": 0.95, "replay": 0.95, "ewc": 0.90, "derpp": 0.90}
FASTER = {"compiled": {"compile": "default"}, "bfloat16": {"precision": "bfloat16"}}  # settings that may pass the loop
FASTER_ON_GPU = {"CUDA graphs": {"compile": "reduce-overhead"}}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--turns", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60.0, help="of turns for one model, batch size and method")
    parser.add_argument("--model", choices=MODELS, nargs="+", default=list(MODELS))
    parser.add_argument("--method", choices=METHODS, nargs="+", default=list(WANTED))
    parser.add_argument("--batch-size", type=int, choices=ROWS, nargs="+", default=list(ROWS))
    parser.add_argument("--avalanche", metavar="PYTHON", help="a Python that has avalanche-lib")
    parser.add_argument("--no-faster", action="store_true", help="leave out torch.compile and mixed precision")


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    device = torch.device(options.device)
    data, threads, found = Data(device), torch.get_num_threads(), []
    faster = {} if options.no_faster else FASTER | (FASTER_ON_GPU if device.type == "cuda" else {})
    torch.set_num_threads(1)
    try:
        with avalanche(options.avalanche, data) as peer:
            for model, size, method in product(options.model, options.batch_size, options.method):
                contenders = {"bare": bare(model, method, size, data), "": ours(model, method, size, data)}
                if method == "finetune":
                    contenders |= {n: ours(model, method, size, data, **settings) for n, settings in faster.items()}
                if peer is not None and method in WANTED:
                    contenders["avalanche"] = peer(model, method, size)
                times = take_turns(contenders, options.turns, options.seconds)
                visits = ROWS[size] * (
                    2 if METHODS[method].rehearse(size, MEMORY, torch.Generator()) is not None else 1
                )
                for name in list(times)[1:]:
                    best, spread = ratio(times["bare"], times[name])
                    found.append(
                        {
                            "name": f"step {model} batch {size} {method} {name}".rstrip(),
                            "ratio": best,
                            "spread": spread,
                            "turns": len(times[name]),
                            "wanted": None if name else WANTED.get(method),
                            "rows_per_s": visits / statistics.median(times[name]),
                            "bare_rows_per_s": visits / statistics.median(times["bare"]),
                        }
                    )
        return found
    finally:
        torch.set_num_threads(threads)


class Data:
    """New rows and exemplars of noise, and what the methods remember."""

    def __init__(self, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        rows = max(ROWS.values()) + MEMORY
        pixels, outputs = torch.rand(rows, 784, generator=generator), torch.randn(rows, 10, generator=generator)
        labels = torch.randint(10, (rows,), generator=generator)
        self.device, (self.pixels, self.labels, self.outputs) = (
            device,
            (t.to(device) for t in (pixels, labels, outputs)),
        )

    def batch(self, extra: str, start: int, end: int) -> Batch:
        part = slice(start, end)
        weight = torch.ones(end - start, device=self.device)
        return Batch({"pixels": self.pixels[part]}, self.labels[part], weight, {extra: self.outputs[part]})

    def importance(self, net: nn.Module) -> dict[str, Tensor]:
        return {name: torch.full_like(p, 1e-3) for name, p in net.named_parameters()}


def bare(model: str, method: str, size: int, data: Data) -> Callable[[], float]:
    net = MODELS[model]().to(data.device)
    new, old = data.batch("parent", 0, ROWS[size]), data.batch("outputs", len(data.labels) - MEMORY, len(data.labels))
    work = Work(
        x=new.inputs["pixels"],
        y=new.target,
        parent_outputs=new.extra["parent"],
        old_x=old.inputs["pixels"],
        old_y=old.target,
        old_outputs=old.extra["outputs"],
        importance=list(data.importance(net).values()),
        anchor=[p.detach().clone() for p in net.parameters()],
        batch_size=size,
        epochs=1,
    )
    optimizer = adamw(net)
    return lambda: seconds(lambda: LOOPS[method](net, optimizer, work), data.device)


def ours(model: str, method: str, size: int, data: Data, **settings: Any) -> Callable[[], float]:
    training = Training(batch_size=size, max_grad_norm=MAX_NORM, **settings)
    net, engine = MODELS[model](), Plain(device=data.device)
    running = engine.begin(net, lambda made: make_optimizer(made, training))
    anchor = {name: p.detach().clone() for name, p in net.named_parameters()}
    importance = data.importance(net)
    tensors = {"ewc": {"fisher": importance, "anchor": anchor}, "si": {"si": importance, "anchor": anchor}}
    stepper = Stepper(
        running=running,
        task="multiclass",
        method=METHODS[method],
        state=MethodState(tensors=tensors.get(method, {})),
        engine=engine,
        training=training,
    )
    reads = METHODS[method].reads
    new, old = data.batch("parent", 0, ROWS[size]), data.batch("outputs", len(data.labels) - MEMORY, len(data.labels))
    new, old = (b if reads & b.extra.keys() else Batch(b.inputs, b.target, b.weight) for b in (new, old))
    exemplars = old if isinstance(METHODS[method], Replay) else None
    return lambda: seconds(lambda: train_passes(stepper, new, exemplars, training, seed=0), data.device)


@contextmanager
def avalanche(python: str | None, data: Data) -> Iterator[Callable[[str, str, int], Callable[[], float]] | None]:
    """How to make a contender of that library, which waits in a process of its own; None without a Python."""
    if python is None:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder, "rows.npz")
        np.savez(rows, x=data.pixels.cpu().numpy(), y=data.labels.cpu().numpy())
        command = [python, Path(__file__).parent / "avalanche" / "serve.py", rows, "--device", data.device.type]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as child:
            try:
                yield lambda *cell: lambda: _ask(child, dict(zip(("model", "method", "batch_size"), cell, strict=True)))
            finally:
                child.stdin.close()  # type: ignore[union-attr]
                child.wait(60)


def _ask(child: subprocess.Popen[str], request: dict[str, Any]) -> float:
    print(json.dumps({**request, "rows": ROWS[request["batch_size"]]}), file=child.stdin, flush=True)
    answer = child.stdout.readline()  # type: ignore[union-attr]
    if not answer:
        raise RuntimeError(f"Avalanche's process ended on {request}: run avalanche/serve.py by hand to see why")
    return json.loads(answer)["seconds"]
