"""gRPC says what HTTP says: in this process over the application, and through Ray Serve's proxy."""

from __future__ import annotations

import asyncio
import json
import math
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import psutil
import pytest
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest
from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

from benchmarks.deployed import processes
from cltrain.errors import ConfigError, ServingError
from cltrain.registry import Registry, Store
from cltrain.registry.deployment import Deployments
from serve.http.api import create_api
from serve.http.grpc_api import Rpc, answers, ask
from serve.http.proto import cltrain_pb2 as pb
from serve.http.proto import cltrain_pb2_grpc
from serve.local import LocalServing, free_port
from serve.logs.feedback import join_feedback, read_feedback
from serve.logs.prediction_log import read_predictions
from serve.proxy import environment, middlewares
from serve.rollout import Interleave
from serve.rollout.guardrails import Guardrails
from serve.settings import LogSettings

ROOT = Path(__file__).resolve().parents[2]
Serve = Callable[..., Any]
AT = datetime(2024, 1, 1, 10, tzinfo=UTC)


class Context:
    """What Ray Serve gives a method to answer with."""

    code: grpc.StatusCode | None = None
    details = ""

    def set_code(self, code: grpc.StatusCode) -> None:
        self.code = code

    def set_details(self, details: str) -> None:
        self.details = details


def value(given: Any) -> pb.Value:
    kinds = {bool: "bool_value", int: "int_value", float: "double_value", str: "string_value"}
    return pb.Value(**{kinds[type(given)]: given}) if given is not None else pb.Value()


def row(event_id: str = "a", at: datetime | None = AT, **features: Any) -> pb.Row:
    found = pb.Row(event_id=event_id, features={name: value(one) for name, one in features.items()})
    if at is not None:
        found.event_time.FromDatetime(at)
    return found


def call(client: Any, method: str, request: Any, rpc: Rpc | None = None) -> tuple[Any, Context]:
    context = Context()
    rpc = rpc or Rpc(client._client._transport.app)
    return client._runner.run(getattr(rpc, method)(request, context)), context


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_rows_are_answered_as_over_http(serve_store: Serve, store: Store, task: str) -> None:
    Registry(store, task).promote("1.0", reason="first")
    client = serve_store(store, task)
    asked = pb.PredictRequest(rows=[row(distance=900, carrier="UA"), row("b", None, distance=900.5, carrier=None)])
    asked.unit_id = "u1"
    found, context = call(client, "Predict", asked)
    assert (context.code, found.version, found.epoch, found.arm) == (None, f"{task}:1.0", 1, "champion")
    rows = [
        {"event_id": "a", "event_time": AT.isoformat(), "features": {"distance": 900, "carrier": "UA"}},
        {"event_id": "b", "features": {"distance": 900.5, "carrier": None}},
    ]
    answer = client.post("/predict", json={"rows": rows}).json()
    for ours, theirs in zip(found.predictions, answer["predictions"], strict=True):
        assert ours.event_id == theirs["event_id"]
        assert len(ours.request_id) == 32
        if task == "binary":
            assert (ours.probability, ours.label) == (theirs["probability"], str(theirs["label"]))
        elif task == "multiclass":
            assert (dict(ours.probabilities), ours.label) == (theirs["probabilities"], theirs["label"])
        else:
            assert (ours.value, ours.HasField("label")) == (theirs["value"], False)


def test_lists_are_ranked_and_labels_meet_what_was_answered(
    serve_store: Serve, store: Store, registry: Registry
) -> None:
    registry.promote("1.0", reason="first")
    client = serve_store(store)
    items = [pb.Candidate(item_id=str(d), features={"distance": value(d)}) for d in (200, 900, 1500)]
    found, _ = call(client, "Rank", pb.RankRequest(items=items, features={"carrier": value("UA")}, top=2, unit_id="u"))
    assert [item.item_id for item in found.ranking] == ["1500", "900"]
    assert (found.version, found.HasField("version"), found.ranking[0].HasField("team")) == ("binary:1.0", True, False)
    labels = [pb.Label(request_id=found.ranking[0].request_id, label=value(True), type="implicit")]
    stored, _ = call(client, "Feedback", pb.FeedbackRequest(rows=labels))
    assert (stored.stored, stored.duplicates) == (1, 0)
    stored, _ = call(client, "Feedback", pb.FeedbackRequest(rows=labels))
    assert (stored.stored, stored.duplicates) == (0, 1)
    end = time.monotonic() + 10
    while read_predictions(store.storage).num_rows < 3:
        assert time.monotonic() < end
        time.sleep(0.01)
    joined = join_feedback(read_predictions(store.storage), read_feedback(store.storage)).to_pylist()
    assert [r["feedback_type"] for r in joined if r["label_value"] == 1.0] == ["implicit"]


def test_policies_are_named(serve_store: Serve, store: Store, registry: Registry) -> None:
    registry.promote("1.0", reason="first")
    client, deployments = serve_store(store), Deployments(registry)
    for document in ({"weights": {"distance": -9.0}}, {"values": {"threshold": 1.0, "band": 0.0}}):
        policy = deployments.set_policy(document, reason="test").policy
        client.server.resident.refresh()
        items = [pb.Candidate(item_id=str(d), features={"distance": value(d)}) for d in (200, 900, 1500)]
        ranked, _ = call(client, "Rank", pb.RankRequest(items=items))
        found, _ = call(client, "Predict", pb.PredictRequest(rows=[row(distance=1500, carrier="UA")]))
        first = ranked.ranking[0].item_id
        if "weights" in document:
            assert (ranked.policy_version, first, found.HasField("policy_version")) == (policy, "200", False)
        else:
            assert (ranked.HasField("policy_version"), first, found.policy_version) == (False, "1500", policy)
            assert (found.predictions[0].label, found.predictions[0].probability > 0.5) == ("0", True)


@pytest.mark.parametrize(
    ("method", "request_", "words"),
    [
        ("Predict", pb.PredictRequest(), "rows"),
        ("Predict", pb.PredictRequest(rows=[row(distance="far")]), "rows[0].features.distance must be a number"),
        ("Predict", pb.PredictRequest(rows=[row(distance=math.nan)]), "rows[0].features.distance: must be a finite"),
        ("Predict", pb.PredictRequest(rows=[row("")]), "rows[0].event_id"),
        ("Predict", pb.PredictRequest(rows=[row("x" * 201)]), "rows[0].event_id"),
        ("Predict", pb.PredictRequest(rows=[row()] * 3), "2 of one request"),
        ("Rank", pb.RankRequest(), "items"),
        ("Rank", pb.RankRequest(items=[pb.Candidate(item_id="a")] * 2), "there twice"),
        ("Feedback", pb.FeedbackRequest(rows=[pb.Label(label=value(1))]), "needs a request_id or an event_id"),
        ("Feedback", pb.FeedbackRequest(rows=[pb.Label(event_id="a")]), "label"),
        ("Feedback", pb.FeedbackRequest(rows=[pb.Label(event_id="a", label=value(1), type="click")]), "rows[0].type"),
    ],
)
def test_what_is_wrong_is_an_invalid_argument_with_a_sentence(
    serve_store: Serve, store: Store, registry: Registry, method: str, request_: Any, words: str
) -> None:
    registry.promote("1.0", reason="first")
    client = serve_store(store, max_batch_rows=2)
    answer, context = call(client, method, request_)
    assert (context.code, words in context.details) == (grpc.StatusCode.INVALID_ARGUMENT, True), context.details
    assert answer == type(answer)()


def test_a_time_that_is_none_is_refused(serve_store: Serve, store: Store, registry: Registry) -> None:
    registry.promote("1.0", reason="first")
    bad = row()
    bad.event_time.seconds = 10**12
    _, context = call(serve_store(store), "Predict", pb.PredictRequest(rows=[bad]))
    assert (context.code, "rows[0].event_time" in context.details) == (grpc.StatusCode.INVALID_ARGUMENT, True)


def test_limits_and_failures_have_their_codes(serve_store: Serve, store: Store, registry: Registry) -> None:
    client = serve_store(store, max_requests_per_s=3.0, max_body_bytes=300)
    rpc = Rpc(create_api(client.server))
    _, context = call(client, "Predict", pb.PredictRequest(rows=[row(distance=1)]), rpc)
    assert (context.code, "no champion" in context.details) == (grpc.StatusCode.UNAVAILABLE, True)
    large = pb.PredictRequest(rows=[row(carrier="x" * 300)])
    assert call(client, "Predict", large, rpc)[1].code == grpc.StatusCode.INVALID_ARGUMENT
    codes = {call(client, "Predict", pb.PredictRequest(rows=[row()]), rpc)[1].code for _ in range(10)}
    assert grpc.StatusCode.RESOURCE_EXHAUSTED in codes

    async def raises(*_: Any) -> None:
        raise RuntimeError("broken")

    _, context = call(client, "Predict", pb.PredictRequest(), Rpc(raises))
    assert (context.code, context.details) == (grpc.StatusCode.INTERNAL, "RuntimeError: broken")

    async def plain(scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "http.request"
        leaves = asyncio.ensure_future(receive())
        await send({"type": "http.response.start", "status": 502, "headers": []})
        assert not leaves.done(), "the client waits for an answer"
        await send({"type": "http.response.body", "body": b"no JSON"})
        assert (await leaves)["type"] == "http.disconnect"

    assert client._runner.run(ask(plain, "/predict", b"{}")) == (502, b"no JSON")
    assert call(client, "Predict", pb.PredictRequest(), Rpc(plain))[1].details == "no JSON"


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (404, grpc.StatusCode.UNAVAILABLE),
        (408, grpc.StatusCode.DEADLINE_EXCEEDED),
        (413, grpc.StatusCode.INVALID_ARGUMENT),
        (422, grpc.StatusCode.INVALID_ARGUMENT),
        (429, grpc.StatusCode.RESOURCE_EXHAUSTED),
        (503, grpc.StatusCode.UNAVAILABLE),
        (500, grpc.StatusCode.INTERNAL),
    ],
)
def test_each_refusal_of_http_has_its_code(status: int, code: grpc.StatusCode) -> None:
    async def refuses(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": b'{"detail": "because"}'})

    context = Context()
    asyncio.run(Rpc(refuses).Predict(pb.PredictRequest(), context))
    assert (context.code, context.details) == (code, "because")


def test_the_door_waits_for_a_port_that_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.http.grpc_api.RETRY_S", 0.05)
    answer = {"version": "m:1.0", "epoch": 1, "arm": "champion", "predictions": []}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(answer).encode()})

    async def asked() -> str:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            address = f"127.0.0.1:{taken.getsockname()[1]}"
            for name, value in environment(address, 1_000_000).items():
                monkeypatch.setenv(name, value)
            _, door = middlewares()
            opened = door.cls(app, **door.kwargs)
            await asyncio.sleep(0.3)
            assert not opened._opening.done()
        await asyncio.wait_for(opened._opening, 20)
        assert await asyncio.to_thread(answers, address, 20)
        async with grpc.aio.insecure_channel(address) as channel:
            found = await cltrain_pb2_grpc.ServingStub(channel).Predict(pb.PredictRequest(), timeout=20)
        await opened._server.stop(None)
        assert not await asyncio.to_thread(answers, address, 0.3)
        return found.version

    assert asyncio.run(asked()) == "m:1.0"


def test_the_python_is_that_of_the_proto(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "serve/http/proto", tmp_path / "serve/http/proto")
    outs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    made = [sys.executable, "-m", "grpc_tools.protoc", "-I.", *outs, "serve/http/proto/cltrain.proto"]
    subprocess.run(made, cwd=tmp_path, check=True)
    for path in (ROOT / "serve/http/proto").glob("cltrain*"):
        assert (tmp_path / "serve/http/proto" / path.name).read_text() == path.read_text(), "run scripts/proto"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"grpc_port": 70_000}, r"serve\.grpc_port must be between 0"),
        ({"port": 8000, "grpc_port": 8000}, r"another than serve\.port=8000"),
    ],
)
def test_a_port_that_cannot_be_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        LocalServing(**settings)


def test_a_port_in_use_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        with pytest.raises(ServingError, match=r"serve\.grpc_port=N"):
            free_port("0.0.0.0", taken.getsockname()[1], "serve.grpc_port")


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*")
def test_an_interleaving_over_grpc_and_ray_serve(ray_session: object, store: Store, registry: Registry) -> None:
    """Rankers that differ little, since they are real: users click on what the challenger has drafted."""
    registry.promote("1.0", reason="first")
    serving = LocalServing(port=0, grpc_port=0, replicas=2, num_cpus=0.1, log=LogSettings(flush_s=0.05))
    serving.start(store, "binary")
    loose = Guardrails(max_p99_ratio=None, max_score_shift=None)
    kind = Interleave(session_s=0.2, min_samples=30, guardrails=loose, wait_s=60.0)
    over, seen = threading.Event(), SimpleNamespace(lists=0, teams=set(), versions=set())

    def clients(stub: cltrain_pb2_grpc.ServingStub) -> None:
        while not over.is_set():
            items = [pb.Candidate(item_id=str(d), features={"distance": value(d)}) for d in range(100, 2_000, 50)]
            asked = pb.RankRequest(items=items, features={"carrier": value("UA")}, unit_id=f"u{seen.lists}")
            answer = stub.Rank(asked, timeout=30)
            seen.lists += 1
            seen.teams |= {item.team for item in answer.ranking}
            seen.versions |= {tuple(sorted(answer.versions.items()))}
            clicked = [
                pb.Label(request_id=item.request_id, label=value(True), type="implicit")
                for item in answer.ranking
                if item.team == "challenger"
            ]
            if clicked:
                stub.Feedback(pb.FeedbackRequest(rows=clicked[:1]), timeout=30)

    try:
        with grpc.insecure_channel(serving.grpc_address) as channel:
            stub = cltrain_pb2_grpc.ServingStub(channel)
            found = stub.Predict(pb.PredictRequest(rows=[row(distance=900, carrier="UA")]), timeout=30)
            assert (found.version, found.predictions[0].event_id) == ("binary:1.0", "a")
            with pytest.raises(grpc.RpcError) as refused:
                stub.Predict(pb.PredictRequest(rows=[row(distance="far")]), timeout=30)
            assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert "rows[0].features.distance must be a number, not 'far'" in refused.value.details()
            thread = threading.Thread(target=clients, args=(stub,))
            thread.start()
            try:
                done = serving.roll_out(registry, "1.1", "1.0", kind, "better")
            finally:
                over.set()
                thread.join()
        assert (done.status, done.version) == ("promoted", "1.1"), done.reason
        assert "preferred by" in done.reason
        assert {"champion", "challenger"} <= seen.teams
        assert (("challenger", "binary:1.1"), ("champion", "binary:1.0")) in seen.versions
        with grpc.insecure_channel(serving.grpc_address) as channel:
            assert_nothing_fails_when_a_replica_dies(cltrain_pb2_grpc.ServingStub(channel))
            asked = iter([ServerReflectionRequest(list_services="")])
            (found,) = ServerReflectionStub(channel).ServerReflectionInfo(asked)
            assert "cltrain.v1.Serving" in {service.name for service in found.list_services_response.service}
        assert_only_loopback_answers(serving)
    finally:
        serving.stop()


def assert_nothing_fails_when_a_replica_dies(stub: cltrain_pb2_grpc.ServingStub) -> None:
    rows = [row(str(i), distance=900, carrier="UA") for i in range(200)]
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(stub.Predict, pb.PredictRequest(rows=rows), timeout=60) for _ in range(300)]
        while not sum(one.done() for one in asked) > 20:
            time.sleep(0.01)
        one, _ = processes("ServeReplica:cltrain:")
        one.kill()
        assert all(len(one.result().predictions) == 200 for one in asked)


def assert_only_loopback_answers(serving: LocalServing) -> None:
    port = int(serving.grpc_address.rpartition(":")[2])
    found = [a.address for of in psutil.net_if_addrs().values() for a in of if a.family == socket.AF_INET]
    for address in found:
        with socket.socket() as client:
            client.settimeout(1)
            assert (client.connect_ex((address, port)) == 0) == address.startswith("127."), address
