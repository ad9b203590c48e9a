"""A store with two small versions of each task, and a server over it without Ray."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest

from cltrain.data.schema import Columns, Schema, event_table, infer_schema
from cltrain.methods.finetune import Finetune
from cltrain.records import Challenger, Cursor, ReportCard, Snapshot, Verdict
from cltrain.registry import Registry, Store
from cltrain.train.engines.plain import Plain
from cltrain.train.settings import Training
from cltrain.train.state import State, save_state
from cltrain.train.update import train_update
from serve.http.api import create_api
from serve.server import Server
from serve.settings import LogSettings, ServerSettings, admin_token_digest

TOKEN = "a token of the tests"
START = datetime(2024, 1, 1, tzinfo=UTC)


def make_events(task: str, rows: int = 300, seed: int = 0, **more: Any) -> tuple[pa.Table, Schema]:
    """`more`: columns, of `rows` values each."""
    rng = np.random.default_rng(seed)
    distance = rng.uniform(100, 2000, rows)
    carrier = rng.choice(["AA", "UA", "DL"], rows)
    score = distance / 1000 - 1 + (carrier == "UA") + rng.normal(0, 0.3, rows)
    labels = {"binary": (score > 0).astype(int), "multiclass": np.digitize(score, [-0.3, 0.6]), "regression": score}
    table = pa.table(
        {
            "id": [f"e{i}" for i in range(rows)],
            "at": pa.array(START.timestamp() + 60.0 * np.arange(rows), pa.float64()),
            "distance": distance,
            "carrier": carrier,
            "y": labels[task],
            **more,
        }
    )
    schema = infer_schema(table.schema, Columns(event_time="at", label="y", event_id="id", task=task))
    return event_table(table, schema, "events", 0), schema


def add_version(
    store: Store, model: str, task: str, round_index: int, parent: State | None = None, **more: Any
) -> State:
    """Train on 300 rows, save and register; the version is 1.0, or the next minor of the parent's major."""
    rows, schema = make_events(task, seed=round_index, **more)
    cursor = Cursor(until=START, files=("events",))
    trained = train_update(
        rows,
        parent=parent,
        schema=schema,
        model={"_target_": "cltrain.models.TabularNet", "hidden": [8], "embedding_dim": 2},
        method=Finetune(),
        training=Training(epochs=2, learning_rate=1e-2),
        cursor=cursor,
        seed=round_index,
        engine=Plain(),
    )
    prefix = f"states/{model}-{round_index}"
    digest = save_state(trained.state, store.storage, prefix)
    challenger = Challenger(
        kind="stateful" if parent else "stateless",
        state=prefix,
        parent=f"states/{model}-{round_index - 1}" if parent else None,
        snapshot=Snapshot(digest="0" * 64, role="train", rows=300),
        cursor=cursor,
        weights_digest=digest,
        rows_trained=trained.rows_trained,
        rows_replayed=0,
        steps=trained.steps,
        seconds=trained.seconds,
        loss=trained.loss,
        parameters=trained.parameters,
        seed=round_index,
    )
    Registry(store, model).register(
        challenger,
        ReportCard(comparisons=(), transfer=(), latency_ms=0.0, size_bytes=0),
        Verdict(accepted=True, reasons=()),
        round_index=round_index,
        reason="test",
        compared_to=None,
        settings={"task": task},
    )
    return trained.state


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with models `binary`, `multiclass` and `regression`, each with versions 1.0 and 1.1; none is champion."""
    root = tmp_path_factory.mktemp("template")
    store = Store(root=str(root))
    for task in ("binary", "multiclass", "regression"):
        first = add_version(store, task, task, 0)
        add_version(store, task, task, 1, parent=first)
    store.engine.dispose()
    return root


@pytest.fixture
def store(template: Path, tmp_path: Path) -> Iterator[Store]:
    shutil.copytree(template, tmp_path / "store")
    store = Store(root=str(tmp_path / "store"))
    yield store
    store.engine.dispose()


@pytest.fixture
def registry(store: Store) -> Registry:
    return Registry(store, "binary")


@pytest.fixture
def events() -> Callable[..., pa.Table]:
    return lambda task="binary", rows=300, seed=7: make_events(task, rows, seed)[0]


class Client:
    """HTTP requests to an application in this process; `server` is the one that it closes over."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._runner = asyncio.Runner()
        transport = httpx.ASGITransport(create_api(server))
        headers = {"authorization": f"Bearer {TOKEN}"}
        self._client = httpx.AsyncClient(transport=transport, base_url="http://server", headers=headers)

    def get(self, path: str, **more: Any) -> httpx.Response:
        return self._runner.run(self._client.get(path, **more))

    def post(self, path: str, **more: Any) -> httpx.Response:
        return self._runner.run(self._client.post(path, **more))

    def close(self) -> None:
        self._runner.run(self._client.aclose())
        self._runner.close()
        self.server.close()


@pytest.fixture
def serve_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Client]]:
    """`serve_store(store, model, **settings)` gives a client of an application; all are closed at the end."""
    monkeypatch.setenv("CLTRAIN_ADMIN_TOKEN", TOKEN)
    opened: list[Client] = []

    def open_client(store: Store, model: str = "binary", **settings: object) -> Client:
        told = ServerSettings(
            store=store.to_json(),
            model=model,
            log=LogSettings(flush_s=0.05),
            poll_s=0.02,
            admin_token_sha256=admin_token_digest("CLTRAIN_ADMIN_TOKEN"),
        )
        opened.append(Client(Server(dataclasses.replace(told, **settings))))  # type: ignore[arg-type]
        return opened[-1]

    yield open_client
    for client in opened:
        client.close()
