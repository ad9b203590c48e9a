"""Live updates on a few rows at a time: `python benchmarks/run.py micro`.

A `Live` model (784-100-10) takes a step for each Arrow table of 64 events: from Arrow to tensors, rehearsal, step, and
now and then what the method remembers. In turns with it runs the hand-written loop of the same method, on as many rows
that are tensors already. Does a call cost at most two such steps on average, whatever it remembers included (ratio
0.5)? As much after thousands of calls as at first? Do the exemplars take the room of their rows, and no more the longer
it goes on? Is a checkpoint as large as what is in it?
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

from benchmarks.bare import LOOPS, STRENGTH, Work, adamw
from benchmarks.mnist import Digits
from benchmarks.models import MLP
from benchmarks.tasks import START, events, schema_of
from benchmarks.turns import seconds
from cltrain.memory import Reservoir
from cltrain.methods import EWC, Finetune, Method, Replay
from cltrain.records import Cursor
from cltrain.storage import Storage
from cltrain.train.engines import Plain
from cltrain.train.live import Live
from cltrain.train.settings import Training
from cltrain.train.state import State, save_state
from cltrain.train.update import train_update

ROWS, CAPACITY = 64, 2_000
BLOCK = 50  # calls of one kind before the other has its turn
METHODS: dict[str, Method] = {
    "finetune": Finetune(),
    "replay": Replay(ratio=1.0, memory=Reservoir(capacity_rows=CAPACITY)),
    "ewc": EWC(strength=STRENGTH),
}
CURSOR = Cursor(until=START + timedelta(days=1), files=())


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--method", choices=METHODS, nargs="+", default=list(METHODS))


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    threads, device = torch.get_num_threads(), torch.device(options.device)
    torch.set_num_threads(1)
    try:
        return [row for method in options.method for row in measure(method, options.calls, device)]
    finally:
        torch.set_num_threads(threads)


def measure(method: str, calls: int, device: torch.device) -> list[dict[str, Any]]:
    gc.collect()
    before = pa.total_allocated_bytes()
    live, steps = started(method, device), bare(method, device)
    ours, theirs, resident = [], [], []
    for start in range(0, calls, BLOCK):
        tables = [micro_batch(start + i) for i in range(BLOCK)]
        theirs += [seconds(steps, device) / BLOCK] * BLOCK
        ours += [seconds(lambda table=table: live.update(table), device) for table in tables]
        if start >= calls // 10:
            resident.append(rss())
    tenth = max(calls // 10, 1)
    cost = [
        statistics.fmean(part(ours)) / statistics.fmean(part(theirs))
        for part in (lambda t: t, lambda t: t[:tenth], lambda t: t[-tenth:])
    ]
    found = [
        {
            "name": f"micro {method} bare step by an update of {ROWS} rows",
            "ratio": 1 / cost[0],
            "wanted": 0.5,
            "milliseconds": 1e3 * statistics.fmean(ours),
            "median_ms": 1e3 * statistics.median(ours),
            "worst_hundred_ms": 1e3 * statistics.fmean(sorted(ours)[-100:]),
        },
        {"name": f"micro {method} first {tenth:,} calls by the last", "ratio": cost[1] / cost[2], "wanted": 0.9},
    ]
    state = live.state(CURSOR)
    content, size = checkpoint(state)
    if (memory := state.method.memory) is not None:
        del tables
        gc.collect()
        exemplars, row = pa.total_allocated_bytes() - before, memory.nbytes / memory.num_rows
        found.append(
            {
                "name": f"micro {method} rows of the memory by bytes held for it",
                "ratio": CAPACITY * row / exemplars,
                "wanted": 1 / 1.1,
                "bytes": exemplars,
                "bytes_waiting": live.absorb_rows * row,
                "bytes_grown": resident[-1] - resident[0],
            }
        )
    name = f"micro {method} content of a checkpoint by its size"
    return [*found, {"name": name, "ratio": content / size, "wanted": 1 / 1.05, "bytes": size}]


def started(method: str, device: torch.device) -> Live:
    """From a parent that was trained on as many rows as the memory holds, without what else an update leaves."""
    rows = pa.concat_tables([micro_batch(-1 - i) for i in range(-(-CAPACITY // ROWS))])
    training, engine = Training(batch_size=ROWS), Plain(device=device)
    parent = train_update(
        rows,
        parent=None,
        schema=schema_of(rows),
        model={"_target_": "benchmarks.models.MLP"},
        method=METHODS[method],
        training=training,
        cursor=CURSOR,
        seed=0,
        engine=engine,
    ).state
    return Live(parent=parent, method=METHODS[method], training=training, engine=engine)


def micro_batch(number: int) -> pa.Table:
    chance = np.random.default_rng(abs(number))
    labels = np.arange(ROWS, dtype=np.uint8) % 10
    return events(Digits(chance.integers(0, 256, (ROWS, 784), np.uint8), labels), f"{number}", max(number, 0))


def bare(method: str, device: torch.device) -> Callable[[], float]:
    """As many steps as a block has calls."""
    net = MLP().to(device)
    pixels, labels = torch.rand(BLOCK * ROWS, 784, device=device), torch.randint(10, (BLOCK * ROWS,), device=device)
    work = Work(
        x=pixels,
        y=labels,
        parent_outputs=torch.empty(0),
        old_x=torch.rand(CAPACITY, 784, device=device),
        old_y=torch.randint(10, (CAPACITY,), device=device),
        old_outputs=torch.empty(0),
        importance=[torch.full_like(p, 1e-3) for p in net.parameters()],
        anchor=[p.detach().clone() for p in net.parameters()],
        batch_size=ROWS,
        epochs=1,
    )
    optimizer = adamw(net)
    return lambda: LOOPS[method](net, optimizer, work)


def checkpoint(state: State) -> tuple[int, int]:
    """Bytes of model, optimizer, and what the method remembers; and of the files of the state."""
    named = (state.weights, state.optimizer, *state.method.tensors.values())
    content = sum(t.numel() * t.element_size() for tensors in named for t in tensors.values())
    content += 0 if state.method.memory is None else state.method.memory.nbytes
    with tempfile.TemporaryDirectory() as folder:
        save_state(state, Storage(folder), "state")
        return content, sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def rss() -> int:
    """Resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
