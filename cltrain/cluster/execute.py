"""One command: an update request in, a challenger out. The same on a worker and in the driver's own process."""

from __future__ import annotations

import torch
import torch.distributed as dist

from cltrain.config import build
from cltrain.data.snapshot import read_rows
from cltrain.records import Challenger, Json, UpdateRequest, from_json, to_json
from cltrain.storage import Storage
from cltrain.train.engines import DDP, Plain
from cltrain.train.state import load_state, request_digest, save_state, schema_from_json, state_name
from cltrain.train.update import train_update


def execute(payload: Json) -> Json:
    """`payload`: request, root (of the blobs), threads, device. Returns the challenger as JSON, on every rank alike;
    rank 0 writes its state. Doing it again writes the same files, so a command may be repeated."""
    request = from_json(UpdateRequest, payload["request"])
    storage = Storage(payload["root"])
    torch.set_num_threads(payload["threads"])
    engine = engine_here(payload["device"])
    settings = request.settings
    parent = load_state(storage, request.parent) if request.parent else None
    manifest = storage.read_json(f"snapshots/{request.snapshot.digest}.json")
    trained = train_update(
        read_rows(storage, request.snapshot.digest),
        parent=parent,
        schema=schema_from_json({"columns": manifest["columns"], "features": manifest["features"], "ignored": []}),
        model=settings["model"],
        method=build(settings["method"], "method"),
        training=build(settings["train"][request.kind], f"train.{request.kind}"),
        cursor=request.cursor,
        seed=request.seed,
        engine=engine,
    )
    name = state_name(request_digest(request))
    digest = save_state(trained.state, storage, name) if engine.rank == 0 else ""
    return to_json(
        Challenger(
            kind=request.kind,
            state=name,
            parent=request.parent,
            snapshot=request.snapshot,
            cursor=request.cursor,
            weights_digest=digest,
            rows_trained=trained.rows_trained,
            rows_replayed=trained.rows_replayed,
            steps=trained.steps,
            seconds=trained.seconds,
            loss=trained.loss,
            parameters=trained.parameters,
            seed=request.seed,
        )
    )


def engine_here(device: str) -> Plain:
    """Plain in a process of its own, data parallel where a process group of several ranks is up."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        index = torch.cuda.current_device() if device == "cuda" else None
        return DDP.of_process_group(torch.device(device, index) if index is not None else torch.device(device))
    return Plain(device=torch.device(device))


def payload_of(request: UpdateRequest, root: str, threads: int, device: str) -> Json:
    return {"request": to_json(request), "root": root, "threads": threads, "device": device}
