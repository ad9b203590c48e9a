"""What batches and workers bring: `python benchmarks/run.py scaling`.

Rows a second of `train_passes`, the loop of an update, on noise, with AdamW and a clipped gradient. First in one
process and one thread, in batches of 64 and of 1,024 rows against single rows. Then by two workers, each a process of
one thread with half of every batch (`DDP`, over gloo or NCCL), against one that has all of it while the other waits.

Two workers pay where a step computes for long beside the sum of its gradients over the ranks. On two cores that are
shared with others, steps of an MLP 784-100-10 (1 ms in batches of 64) took them 2.5 times as long as one worker; those
of 784-1000-1000-10 with its 1.8 million parameters (100 ms in batches of 1,024) brought 1.7 times the rows, which is
what we promise of this model and more. The small CNN gains more than there are workers, since half of a large batch
stays in the cache.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from benchmarks.models import CNN, MLP
from benchmarks.turns import ratio, seconds, take_turns
from cltrain.batch import Batch
from cltrain.methods import Finetune, MethodState
from cltrain.train.engines import DDP, Plain
from cltrain.train.optimizer import make_optimizer
from cltrain.train.passes import train_passes
from cltrain.train.settings import Training
from cltrain.train.step import Stepper

MODELS: dict[str, Callable[[], nn.Module]] = {"mlp": MLP, "wide": partial(MLP, hidden=(1000, 1000)), "cnn": CNN}
ROWS = {1: 512, 64: 4_096, 1_024: 8_192}  # of which an epoch is timed, by batch size
WORKERS = 2
WANTED = {("wide", 1_024): 1.7}

Contender = Callable[[], float]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--model", choices=MODELS, nargs="+", default=list(MODELS))


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    rows = batches(options)
    if options.device == "cpu" or torch.cuda.device_count() >= WORKERS:
        rows += workers(options)
    return rows


def batches(options: argparse.Namespace) -> list[dict[str, Any]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    found = []
    try:
        for model in options.model:
            engine = Plain(device=torch.device(options.device))
            times = take_turns({str(size): epoch(model, size, engine) for size in ROWS}, options.turns)
            each = {size: [t / rows for t in times[str(size)]] for size, rows in ROWS.items()}
            for size in [size for size in ROWS if size > 1]:
                middle, spread = ratio(each[1], each[size])
                found.append(
                    {
                        "name": f"scaling {model} batch {size} by batch 1",
                        "ratio": middle,
                        "spread": spread,
                        "rows_per_s": 1 / statistics.median(each[size]),
                        "base_rows_per_s": 1 / statistics.median(each[1]),
                    }
                )
    finally:
        torch.set_num_threads(threads)
    return found


def workers(options: argparse.Namespace) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(worker, (folder, options.device, options.model, options.turns), nprocs=WORKERS)
        return json.loads(Path(folder, "rows.json").read_text())


def worker(rank: int, folder: str, kind: str, models: list[str], turns: int) -> None:
    """All workers take the same turns; in those of one alone, the others wait."""
    torch.set_num_threads(1)
    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    backend = "nccl" if kind == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"file://{folder}/meet", rank=rank, world_size=WORKERS)
    try:
        found = []
        for model, size in product(models, [size for size in ROWS if size > 1]):
            alone = epoch(model, size, Plain(device=device))
            together = epoch(model, size, DDP.of_process_group(device))
            contenders = {"alone": alone if rank == 0 else lambda: 0.0, "together": together}
            times = take_turns({name: partial(in_step, work) for name, work in contenders.items()}, turns)
            if rank == 0:
                middle, spread = ratio(times["alone"], times["together"])
                found.append(
                    {
                        "name": f"scaling {model} batch {size} {WORKERS} workers by 1",
                        "ratio": middle,
                        "spread": spread,
                        "wanted": WANTED.get((model, size)),
                        "rows_per_s": ROWS[size] / statistics.median(times["together"]),
                        "base_rows_per_s": ROWS[size] / statistics.median(times["alone"]),
                        "parameters": sum(p.numel() for p in MODELS[model]().parameters()),
                        "step_ms": 1e3 * statistics.median(times["alone"]) * size / ROWS[size],
                    }
                )
        if rank == 0:
            Path(folder, "rows.json").write_text(json.dumps(found))
    finally:
        dist.destroy_process_group()


def in_step(work: Contender) -> float:
    dist.barrier()
    taken = work()
    dist.barrier()
    return taken


def epoch(model: str, size: int, engine: Plain) -> Contender:
    """Seconds of an epoch in batches of `size`."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(ROWS[size], 784, generator=generator)
    rows = Batch({"pixels": pixels}, torch.randint(10, (len(pixels),), generator=generator), torch.ones(len(pixels)))
    rows = rows.to(engine.device)
    training = Training(batch_size=size, per_sample=True)
    stepper = Stepper(
        running=engine.begin(MODELS[model](), lambda net: make_optimizer(net, training)),
        task="multiclass",
        method=Finetune(),
        state=MethodState(),
        engine=engine,
        training=training,
    )
    return lambda: seconds(lambda: train_passes(stepper, rows, None, training, seed=0), engine.device)
