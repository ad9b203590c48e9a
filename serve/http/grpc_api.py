"""The routes for data over gRPC: what a message says is asked of an ASGI application in this process, so that checks,
limits, answers, logs and metrics are those of HTTP by construction.

Serve's own gRPC proxy listens on every interface and asks no other replica when one dies. Around its HTTP proxy, gRPC
listens where HTTP does and fails over as HTTP does.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from typing import Any

import grpc
from google.protobuf.message import Message as Proto
from grpc_reflection.v1alpha import reflection

from serve.http.limits import App, Message, Receive, Send
from serve.http.proto import cltrain_pb2 as pb
from serve.http.proto.cltrain_pb2_grpc import ServingServicer, add_ServingServicer_to_server

log = logging.getLogger(__name__)

RETRY_S = 0.5
CODES = {
    404: grpc.StatusCode.UNAVAILABLE,  # the proxy knows of no application yet
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
}


class GrpcDoor:
    """ASGI middleware that answers gRPC at `address`, such as 127.0.0.1:9000, by the application that it is put around;
    what comes over HTTP goes through it as it is. Messages may have `max_bytes`."""

    def __init__(self, app: App, address: str, max_bytes: int) -> None:
        self._app = app
        self._opening = asyncio.get_running_loop().create_task(self._open(address, max_bytes))

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)

    async def _open(self, address: str, max_bytes: int) -> None:
        server = grpc.aio.server(
            options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", max_bytes)],
        )
        add_ServingServicer_to_server(Rpc(self._app), server)
        services = (pb.DESCRIPTOR.services_by_name["Serving"].full_name, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(services, server)
        while True:
            try:
                server.add_insecure_port(address)
                break
            except RuntimeError as error:  # such as the proxy before this one, which is still ending
                log.warning("gRPC cannot listen at %s yet: %s", address, error)
                await asyncio.sleep(RETRY_S)
        await server.start()
        self._server = server  # which ends when nobody holds it


class Rpc(ServingServicer):  # type: ignore[misc]
    """The methods of `cltrain.v1.Serving` over an application. What is refused has a status code and the sentence that
    HTTP clients get as `detail`."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def Predict(self, request: pb.PredictRequest, grpc_context: Any) -> pb.PredictAnswer:  # noqa: N802
        body = {"rows": [_row(row) for row in request.rows], **_given(request, "unit_id")}
        found = await self._ask("/predict", body, grpc_context)
        return pb.PredictAnswer() if found is None else pb.PredictAnswer(**_who(found), predictions=_predictions(found))

    async def Rank(self, request: pb.RankRequest, grpc_context: Any) -> pb.RankAnswer:  # noqa: N802
        items = [{"item_id": item.item_id, "features": _features(item.features)} for item in request.items]
        body = {"items": items, "features": _features(request.features)}
        body |= _given(request, "unit_id", "top") | _instant(request, "event_time")
        found = await self._ask("/rank", body, grpc_context)
        if found is None:
            return pb.RankAnswer()
        ranking = [pb.Ranked(**item) for item in found["ranking"]]
        return pb.RankAnswer(**_who(found), versions=found.get("versions"), ranking=ranking)

    async def Feedback(self, request: pb.FeedbackRequest, grpc_context: Any) -> pb.FeedbackAnswer:  # noqa: N802
        rows = [
            {"label": _value(row.label), **_given(row, "request_id", "event_id", "type"), **_instant(row, "label_time")}
            for row in request.rows
        ]
        found = await self._ask("/feedback", {"rows": rows}, grpc_context)
        return pb.FeedbackAnswer(**found or {})

    async def _ask(self, path: str, body: Mapping[str, Any], context: Any) -> dict[str, Any] | None:
        """The answer, or None with the status told to `context`."""
        status, content = await ask(self._app, path, json.dumps(body).encode())
        if status == 200:
            return json.loads(content)
        context.set_code(CODES.get(status, grpc.StatusCode.INTERNAL))
        context.set_details(_detail(content))
        return None


def answers(address: str, within_s: float) -> bool:
    """Whether somebody accepts gRPC there."""
    with grpc.insecure_channel(address) as channel:
        try:
            grpc.channel_ready_future(channel).result(timeout=within_s)
        except grpc.FutureTimeoutError:
            return False
    return True


async def ask(app: App, path: str, body: bytes) -> tuple[int, bytes]:
    """Status and body of a POST to an ASGI application in this process; 500 where it raises."""
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    scope: Message = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": headers,
        "client": None,
        "server": None,
    }
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    status, content, answered = 500, b"", asyncio.Event()

    async def receive() -> Message:
        if waiting:
            return waiting.pop()
        await answered.wait()  # the client stays until then
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        nonlocal status, content
        status = message.get("status", status)
        content += message.get("body", b"")
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            answered.set()

    try:
        await app(scope, receive, send)
    except Exception as error:
        return 500, json.dumps({"detail": f"{type(error).__name__}: {error}"}).encode()
    return status, content


def _detail(content: bytes) -> str:
    try:
        return json.loads(content)["detail"]
    except (ValueError, KeyError, TypeError):
        return content.decode(errors="replace")


def _row(row: pb.Row) -> dict[str, Any]:
    return {"features": _features(row.features), **_given(row, "event_id"), **_instant(row, "event_time")}


def _features(features: Mapping[str, pb.Value]) -> dict[str, Any]:
    return {name: _value(value) for name, value in features.items()}


def _value(value: pb.Value) -> Any:
    kind = value.WhichOneof("kind")
    if kind is None:
        return None
    return list(value.numbers.values) if kind == "numbers" else getattr(value, kind)


def _given(message: Proto, *names: str) -> dict[str, Any]:
    """Those of the fields that are set."""
    return {name: getattr(message, name) for name in names if message.HasField(name)}


def _instant(message: Proto, name: str) -> dict[str, Any]:
    """A time in the words of JSON, which can say no more than HTTP clients can."""
    if not message.HasField(name):
        return {}
    value = getattr(message, name)
    try:
        return {name: value.ToJsonString()}
    except ValueError:
        return {name: f"{value.seconds} s and {value.nanos} ns"}  # no instant: refused as such by its place


def _who(found: Mapping[str, Any]) -> dict[str, Any]:
    """Who answered. (A version that is null is not set.)"""
    return {name: found[name] for name in ("version", "epoch", "arm", "stands_in", "policy_version") if name in found}


def _predictions(found: Mapping[str, Any]) -> list[pb.Prediction]:
    """A binary label is the text of its number, as the classes of a multiclass task are named."""
    return [
        pb.Prediction(
            request_id=row["request_id"],
            event_id=row["event_id"],
            probability=row.get("probability"),
            probabilities=row.get("probabilities"),
            label=str(row["label"]) if "label" in row else None,
            value=row.get("value"),
        )
        for row in found["predictions"]
    ]
