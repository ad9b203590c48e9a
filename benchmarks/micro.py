"""Live updates on a few rows at a time: `python benchmarks/run.py micro`.

A `Learner` that stays in this process takes one step for each table of 64 events: from Arrow to tensors, rehearsal,
step, and memory. Beside it, in turns, the hand-written replay step on 64 rows that are tensors already. Does a call
cost at most two such steps (ratio 0.5), and as much after thousands of calls as at first? Do the exemplars take the
room of their rows, and no more the longer it goes on? Is a checkpoint as large as what is in it?
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from benchmarks.bare import Work, adamw, replay
from benchmarks.mnist import Digits
from benchmarks.models import MLP
from benchmarks.tasks import START, events, schema_of
from benchmarks.turns import seconds
from cltrain.memory import Reservoir
from cltrain.methods import Replay
from cltrain.records import Cursor
from cltrain.storage import Storage
from cltrain.train.engines import Plain
from cltrain.train.learner import Learner
from cltrain.train.settings import Training
from cltrain.train.state import save_state

ROWS, CAPACITY = 64, 2_000
BLOCK = 50  # calls of one kind before the other has its turn


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--calls", type=int, default=10_000)


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    threads, device = torch.get_num_threads(), torch.device(options.device)
    torch.set_num_threads(1)
    try:
        return measure(options.calls, device)
    finally:
        torch.set_num_threads(threads)


def measure(calls: int, device: torch.device) -> list[dict[str, Any]]:
    first = micro_batch(0)
    before = pa.total_allocated_bytes()
    learner = Learner.start(
        first,
        parent=None,
        schema=schema_of(first),
        model={"_target_": "benchmarks.models.MLP"},
        method=Replay(ratio=1.0, memory=Reservoir(capacity_rows=CAPACITY)),
        training=Training(batch_size=ROWS),
        seed=0,
        engine=Plain(device=device),
    )
    step = bare(device)
    ours, theirs, resident = [], [], {}
    for start in range(0, calls, BLOCK):
        tables = [micro_batch(1 + start + i) for i in range(BLOCK)]
        theirs += [seconds(step, device) for _ in tables]
        ours += [seconds(lambda table=table: learner.update(table), device) for table in tables]
        del tables
        if start in (calls // 10, calls - BLOCK):
            resident[start] = rss()
    gc.collect()
    exemplars = pa.total_allocated_bytes() - before
    tenth = calls // 10
    cost = [
        statistics.median(part(ours)) / statistics.median(part(theirs))
        for part in (lambda t: t, lambda t: t[:tenth], lambda t: t[-tenth:])
    ]
    row_bytes = first.nbytes / first.num_rows
    parts, size = checkpoint(learner)
    grown = list(resident.values())
    return [
        {
            "name": f"micro update of {ROWS} rows by a bare step",
            "ratio": 1 / cost[0],
            "wanted": 0.5,
            "milliseconds": 1e3 * statistics.median(ours),
        },
        {"name": f"micro first {tenth:,} calls by the last", "ratio": cost[1] / cost[2], "wanted": 0.9},
        {
            "name": "micro rows of the memory by bytes held",
            "ratio": CAPACITY * row_bytes / exemplars,
            "wanted": 1 / 1.1,
            "bytes": exemplars,
            "grown_bytes": grown[-1] - grown[0],
        },
        {"name": "micro content of a checkpoint by its size", "ratio": parts / size, "wanted": 1 / 1.05, "bytes": size},
    ]


def micro_batch(number: int) -> pa.Table:
    chance = np.random.default_rng(number)
    labels = np.arange(ROWS, dtype=np.uint8) % 10
    return events(Digits(chance.integers(0, 256, (ROWS, 784), np.uint8), labels), f"{number}", number)


def bare(device: torch.device) -> Callable[[], float]:
    net = MLP().to(device)
    pixels, labels = torch.rand(CAPACITY, 784, device=device), torch.randint(10, (CAPACITY,), device=device)
    work = Work(
        x=pixels[:ROWS].clone(),
        y=labels[:ROWS].clone(),
        parent_outputs=torch.empty(0),
        old_x=pixels,
        old_y=labels,
        old_outputs=torch.empty(0),
        importance=[],
        anchor=[],
        batch_size=ROWS,
        epochs=1,
    )
    optimizer = adamw(net)
    return lambda: replay(net, optimizer, work)


def checkpoint(learner: Learner) -> tuple[int, int]:
    """Bytes of model, optimizer and memory, and of the files of the state."""
    state = learner.state(Cursor(until=START + timedelta(days=1), files=()))
    tensors = [*state.weights.values(), *state.optimizer.values()]
    assert state.method.memory is not None
    parts = sum(t.numel() * t.element_size() for t in tensors) + state.method.memory.nbytes
    with tempfile.TemporaryDirectory() as folder:
        save_state(state, Storage(folder), "state")
        return parts, sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def rss() -> int:
    """Resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
