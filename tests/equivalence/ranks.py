"""The same updates on one rank or on several, on each engine; run by `test_ranks.py` in processes of their own."""

from __future__ import annotations

import warnings
import zlib
from pathlib import Path

import torch
import torch.distributed as dist

from cltrain.methods import AGEM, EWC, L2SP, MAS, SI, Combined, DERpp, Finetune, LwF, Method, Replay
from cltrain.storage import Storage
from cltrain.train.engines import Plain
from cltrain.train.settings import Training
from cltrain.train.state import State, load_state, save_state
from cltrain.train.update import Trained
from tests.train.engine_cases import ENGINES
from tests.train.made import MODEL, events, tensors, update

REPLAY, EWC_ = Replay(ratio=0.5), EWC(strength=50.0, fisher_rows=40)
METHODS: dict[str, Method] = {
    "finetune": Finetune(),
    "replay": REPLAY,
    "ewc": EWC_,
    "replay_ewc": Combined(parts={"replay": REPLAY, "ewc": EWC_}),
    "si": SI(strength=10.0),
    "mas": MAS(strength=5.0, importance_rows=40),
    "l2sp": L2SP(strength=0.1),
    "lwf": LwF(),
    "derpp": DERpp(),
    "agem": AGEM(),
}
TRAINING = Training(batch_size=16, epochs=2, learning_rate=3e-3, unknown_rate=0.1)
STOPPING = Training(batch_size=16, epochs=30, learning_rate=1e-2, validation_share=0.3, patience=2)
SGD = Training(batch_size=16, epochs=2, learning_rate=3e-2, optimizer="sgd", accumulate=2)
MOVES = "replay_ewc"  # whose states are written, to be continued elsewhere


def parent_of(method: Method, engine: Plain, training: Training = TRAINING) -> Trained:
    """The 101 rows, and the 83 of the child, divide neither by the ranks nor by the batches."""
    return update(events(101), None, method, training, engine=engine, model=MODEL)


def child_of(parent: State, method: Method, engine: Plain, training: Training = TRAINING) -> Trained:
    rows = events(83, seed=1, turn=0.5, shops="bcd")
    return update(rows, parent, method, training, engine=engine, model=MODEL)


def run(name: str, engine: Plain) -> list[Trained]:
    """A parent and its child."""
    if name == "few":  # fewer rows than ranks: some rank has none, in the batches, the Fisher and the validation
        training = Training(batch_size=16, epochs=3, learning_rate=1e-2)
        parent = update(events(3, "regression"), None, EWC_, training, task="regression", engine=engine)
        child = update(events(1, "regression", seed=1), parent.state, EWC_, training, task="regression", engine=engine)
        return [parent, child]
    if name == "stopping":
        return [update(events(101), None, EWC_, STOPPING, engine=engine)]
    method, training = (METHODS[MOVES], SGD) if name == "sgd" else (METHODS[name], TRAINING)
    parent = parent_of(method, engine, training)
    return [parent, child_of(parent.state, method, engine, training)]


def report(trained: list[Trained]) -> list[dict[str, torch.Tensor]]:
    counts = [{"rows": t.rows_trained, "replayed": t.rows_replayed, "steps": t.steps, "loss": t.loss} for t in trained]
    ids = [t.state.method.memory.column("_event_id").to_pylist() if t.state.method.memory else [] for t in trained]
    return [
        tensors(t.state)
        | {k: torch.tensor(v) for k, v in c.items()}
        | {"parameters": torch.tensor(t.parameters)}
        | {"memory": torch.tensor([zlib.crc32(",".join(i).encode())])}
        for t, c, i in zip(trained, counts, ids, strict=True)
    ]


def cases_on(engine_name: str, names: list[str], storage: Storage) -> dict[str, list[dict[str, torch.Tensor]]]:
    """What each case reports. The parent of `MOVES` is written as `{world}-{engine}`; a child of the parent that one
    process wrote is reported as `moved`."""
    engine = ENGINES[engine_name]()
    found = {}
    for name in names:
        trained = run(name, engine)
        found[name] = report(trained)
        if name == MOVES:
            if engine.rank == 0:
                save_state(trained[0].state, storage, f"{engine.world}-{engine_name}")
            found["moved"] = report([child_of(load_state(storage, "alone"), METHODS[MOVES], engine)])
    return found


def rank_main(rank: int, cases: dict[int, dict[str, list[str]]], folder: str) -> None:
    """The engines of each number of ranks, one after another; this process takes part in those with room for it."""
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", category=DeprecationWarning)  # what torch and DeepSpeed do to one another
    for world, engines in cases.items():
        if rank >= world:
            continue
        dist.init_process_group("gloo", init_method=f"file://{folder}/meet-{world}", rank=rank, world_size=world)
        try:
            found = {engine: cases_on(engine, names, Storage(folder)) for engine, names in engines.items()}
            torch.save(found, Path(folder, f"{world}-{rank}.pt"))
        finally:
            dist.destroy_process_group()
