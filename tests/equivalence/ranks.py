"""The same updates on one rank or on several; run by `test_ranks.py` in processes of their own."""

from __future__ import annotations

import zlib
from pathlib import Path

import torch
import torch.distributed as dist

from cltrain.methods import EWC, Combined, Finetune, Method, Replay
from cltrain.train.engines import DDP, Plain
from cltrain.train.settings import Training
from cltrain.train.update import Trained
from tests.train.made import MODEL, events, tensors, update

REPLAY, EWC_ = Replay(ratio=0.5), EWC(strength=50.0, fisher_rows=40)
METHODS: dict[str, Method] = {
    "finetune": Finetune(),
    "replay": REPLAY,
    "ewc": EWC_,
    "replay_ewc": Combined(parts={"replay": REPLAY, "ewc": EWC_}),
}
STOPPING = Training(batch_size=16, epochs=30, learning_rate=1e-2, validation_share=0.3, patience=2)


def run(name: str, engine: Plain) -> list[Trained]:
    """A parent and its child. The 101 and 83 rows divide neither by the ranks nor by the batches."""
    if name == "few":  # fewer rows than ranks: some rank has none, in the batches, the Fisher and the validation
        training = Training(batch_size=16, epochs=3, learning_rate=1e-2)
        parent = update(events(3, "regression"), None, EWC_, training, task="regression", engine=engine)
        child = update(events(1, "regression", seed=1), parent.state, EWC_, training, task="regression", engine=engine)
        return [parent, child]
    if name == "stopping":
        return [update(events(101), None, EWC_, STOPPING, engine=engine)]
    training = Training(batch_size=16, epochs=2, learning_rate=3e-3, unknown_rate=0.1)
    parent = update(events(101), None, METHODS[name], training, engine=engine, model=MODEL)
    child = update(events(83, seed=1, turn=0.5, shops="bcd"), parent.state, METHODS[name], training, engine=engine)
    return [parent, child]


def report(trained: list[Trained]) -> list[dict[str, torch.Tensor]]:
    counts = [{"rows": t.rows_trained, "replayed": t.rows_replayed, "steps": t.steps, "loss": t.loss} for t in trained]
    ids = [t.state.method.memory.column("_event_id").to_pylist() if t.state.method.memory else [] for t in trained]
    return [
        tensors(t.state)
        | {k: torch.tensor(v) for k, v in c.items()}
        | {"memory": torch.tensor([zlib.crc32(",".join(i).encode())])}
        for t, c, i in zip(trained, counts, ids, strict=True)
    ]


def rank_main(rank: int, cases: dict[int, list[str]], folder: str) -> None:
    """The cases of each number of ranks, one after another; this process takes part in those that have room for it."""
    torch.set_num_threads(1)
    for world, names in cases.items():
        if rank >= world:
            continue
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet-{world}", rank=rank, world_size=world)
        try:
            engine = DDP.of_process_group(torch.device("cpu"))
            found = {name: report(run(name, engine)) for name in names}
            torch.save(found, Path(folder, f"{world}-{rank}.pt"))
        finally:
            dist.destroy_process_group()
