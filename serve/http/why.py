"""Why was this answered like that? What the prediction log says of one request."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pyarrow.compute as pc
from fastapi import FastAPI, HTTPException

from cltrain.storage import Storage
from serve.http.schemas import Problem, WhyAnswer
from serve.logs.prediction_log import FOLDER, SCHEMA
from serve.logs.segments import read_segment
from serve.server import Server


def find_prediction(storage: Storage, request_id: str) -> dict[str, Any] | None:
    """The logged row of a request; segments whose writer was not there yet are left out. Ids begin with their time."""
    names = [name for name in storage.names(FOLDER) if name.endswith(".arrow")]
    for name in reversed(names):
        file = name.rpartition("/")[2]
        if file.startswith(".") or file[:12] > request_id[:12]:
            continue
        for batch in read_segment(storage, name, SCHEMA):
            found = batch.filter(pc.equal(batch["request_id"], request_id))
            if found.num_rows:
                return found.to_pylist()[0]
    return None


def add_why_route(api: FastAPI, server: Server) -> None:
    @api.get("/why/{request_id}", responses={404: {"model": Problem}})
    async def why(request_id: str) -> WhyAnswer:
        """Version, arm, epoch and features as they were when the request was answered."""
        row = await asyncio.to_thread(find_prediction, server.registry.store.storage, request_id)
        if row is None or row["model"] != server.settings.model:
            rate, flush_s = server.settings.log.rate, server.settings.log.flush_s
            raise HTTPException(
                404, f"the log has no request {request_id}: {rate:.0%} are logged, {flush_s:g} s after their answer"
            )
        return WhyAnswer(**{**row, "version": server.name(row["version"]), "features": json.loads(row["features"])})
