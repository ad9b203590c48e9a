"""A command, done: an update request in, a challenger out; or rows in, answers out. The same on a worker and in the
driver's own process."""

from __future__ import annotations

import torch

from cltrain.cluster.score import score
from cltrain.config import build
from cltrain.data.snapshot import read_rows
from cltrain.errors import UpdateError
from cltrain.records import Challenger, Json, UpdateRequest, from_json, to_json
from cltrain.storage import Storage
from cltrain.train.checkpoint import Checkpoints
from cltrain.train.golden import device_kind, golden_of
from cltrain.train.predictor import Predictor
from cltrain.train.state import load_state, request_digest, save_state, schema_from_json, state_name
from cltrain.train.update import train_update


def obey(payload: Json, rank: int, world: int) -> Json:
    """Do what `payload` says on rank `rank` of `world`: it is an update, unless its `do` is `score`."""
    return score(payload, rank, world) if payload.get("do") == "score" else execute(payload)


def execute(payload: Json) -> Json:
    """`payload`: request, root (of the blobs), threads, device, engine (settings). Returns the challenger as JSON, on
    every rank alike; rank 0 writes its state. Doing it again writes the same files, so a command may be repeated; one
    that was interrupted goes on from its last checkpoint."""
    request = from_json(UpdateRequest, payload["request"])
    storage = Storage(payload["root"])
    torch.set_num_threads(payload["threads"])
    engine = build(payload["engine"], "engine").here(torch.device(payload["device"]))
    settings = request.settings
    parent = load_state(storage, request.parent) if request.parent else None
    method = build(settings["method"], "method")
    kind = "stateless" if method.restarts else request.kind  # what starts from fresh weights trains as long
    training = build(settings["train"][kind], f"train.{kind}")
    name = state_name(request_digest(request))
    checkpoints = Checkpoints(storage, f"updates/{name}", engine, training.checkpoint_steps)
    manifest = storage.read_json(f"snapshots/{request.snapshot.digest}.json")
    try:
        trained = train_update(
            read_rows(storage, request.snapshot.digest),
            parent=parent,
            schema=schema_from_json({"columns": manifest["columns"], "features": manifest["features"], "ignored": []}),
            model=settings["model"],
            method=method,
            training=training,
            cursor=request.cursor,
            seed=request.seed,
            engine=engine,
            checkpoints=checkpoints,
            adapter=build(settings["adapter"], "adapter") if "adapter" in settings else None,
            transfer=settings.get("transfer_names", {}) if request.kind == "surgery" else None,
        )
    except UpdateError:
        checkpoints.clear()  # it would end like this again
        raise
    digest = ""
    if engine.rank == 0:
        digest = save_state(trained.state, storage, name, golden_of(Predictor.of(trained.state)))
    checkpoints.clear()
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
            absorb_seconds=trained.absorb_seconds,
            loss=trained.loss,
            parameters=trained.parameters,
            seed=request.seed,
            workers=engine.world,
            carried=None if trained.carried is None else to_json(trained.carried),
            made={
                "engine": payload["engine"],
                "device": device_kind(payload["device"]),
                "threads": payload["threads"],
            },
        )
    )


def payload_of(request: UpdateRequest, root: str, threads: int, device: str, engine: Json | None = None) -> Json:
    return {
        "request": to_json(request),
        "root": root,
        "threads": threads,
        "device": device,
        "engine": engine or {"_target_": "cltrain.train.engines.AutoEngine"},
    }
