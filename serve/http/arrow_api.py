"""`/predict` for clients that have tables: an Arrow IPC stream in, one out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pyarrow as pa
from fastapi import FastAPI
from pydantic import ValidationError
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match, Route

from cltrain.data.schema import HOUR, WEEKDAY
from cltrain.errors import DataError
from cltrain.records import EVENT_ID, EVENT_TIME, LABEL, LABEL_TIME
from serve.http.schemas import PredictRow
from serve.server import Answer, Server

ARROW = "application/vnd.apache.arrow.stream"
UNIT = "x-cltrain-unit"
_ROLES = (EVENT_ID, EVENT_TIME, LABEL, LABEL_TIME, HOUR, WEEKDAY)


class _ArrowRoute(Route):
    """Answers requests of the Arrow content type alone: others go on to the next route."""

    def matches(self, scope: Any) -> tuple[Match, Any]:
        if dict(scope.get("headers", ())).get(b"content-type", b"").split(b";")[0].strip() != ARROW.encode():
            return Match.NONE, {}
        return super().matches(scope)


def add_arrow_route(api: FastAPI, server: Server, check_size: Callable[[int], None]) -> None:
    """Columns are features; `_event_id` and `_event_time` are what they are in an event table, whose labels are left
    out. The unit is named by the header `x-cltrain-unit`."""

    async def predict(request: Request) -> Response:
        rows = await run_in_threadpool(read_rows, await request.body(), check_size)
        answer = server.answer(rows, request.headers.get(UNIT))
        body = await run_in_threadpool(answer_table, answer)

        async def mirror() -> None:
            server.mirror(answer)

        after = BackgroundTask(mirror) if server.shadow.active else None
        return Response(body, headers=about(answer), media_type=ARROW, background=after)

    api.router.routes.insert(0, _ArrowRoute("/predict", predict, methods=["POST"]))


def about(answer: Answer) -> dict[str, str]:
    """Headers that say who answered, of an interleaved list both, with a comma between; and the policy that decided."""
    body = answer.body
    versions = [body["version"]] if body["version"] else body["versions"].values()
    policy = {"x-cltrain-policy": body["policy_version"]} if "policy_version" in body else {}
    return policy | {
        "x-cltrain-version": ",".join(quote(version, safe=":") for version in versions),
        "x-cltrain-epoch": str(body["epoch"]),
        "x-cltrain-arm": body["arm"],
    }


def read_rows(body: bytes, check_size: Callable[[int], None]) -> list[PredictRow]:
    """Raises `DataError` for what is no stream or holds what cannot be a feature."""
    count, rows = 0, []
    try:
        with pa.ipc.open_stream(body) as stream:
            if len(set(stream.schema.names)) < len(stream.schema):
                raise DataError("the stream has a column twice: rename it")
            for batch in stream:
                count += batch.num_rows
                check_size(count)
                batch.validate(full=True)
                rows += batch.to_pylist()
    except (pa.ArrowException, OSError, ValueError, UnicodeDecodeError) as error:
        raise DataError(f"the body is not an Arrow IPC stream: {' '.join(str(error).split())[:200]}") from error
    if not rows:
        raise DataError("the stream has no row")
    return [_row(index, row) for index, row in enumerate(rows)]


def _row(index: int, row: dict[str, Any]) -> PredictRow:
    features = {name: _value(value) for name, value in row.items() if name not in _ROLES}
    given = {"event_id": row.get(EVENT_ID), "event_time": row.get(EVENT_TIME), "features": features}
    try:
        return PredictRow.model_validate(given)
    except ValidationError as error:
        found = error.errors()[0]
        column = next((str(part) for part in found["loc"][1:2]), str(found["loc"][0]))
        raise DataError(f"column {column}, row {index}: {found['msg'].removeprefix('Value error, ')}") from error


def _value(value: Any) -> Any:
    """A number that is not finite is null, as it is in training."""
    return None if isinstance(value, float) and not abs(value) < float("inf") else value


def answer_table(answer: Answer) -> bytes:
    """A row for each prediction, with the columns that its JSON has; probabilities by class are a map. Version, epoch
    and arm are in the schema's metadata."""
    found = answer.body["predictions"]
    columns: dict[str, pa.Array] = {}
    for name in dict.fromkeys(name for row in found for name in row):
        values = [row.get(name) for row in found]
        if name == "probabilities":
            columns[name] = pa.array([list(row.items()) for row in values], pa.map_(pa.string(), pa.float64()))
        else:
            columns[name] = pa.array(values, pa.string() if name == "event_id" else None)
    metadata = {
        name: str(answer.body[name]) for name in ("version", "epoch", "arm", "policy_version") if name in answer.body
    }
    table = pa.table(columns).replace_schema_metadata(metadata)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())
