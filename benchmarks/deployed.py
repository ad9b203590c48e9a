"""What the cases of serving share: a store of versions that answer differently, a Ray with the application on it, and
the bare Ray Serve deployment of the same model that it is held against."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import torch
from fastapi import FastAPI, Request
from torch import Tensor

from cltrain.cluster import Cluster
from cltrain.data.schema import Columns, event_table, infer_schema
from cltrain.methods.finetune import Finetune
from cltrain.models import TabularNet
from cltrain.records import EVENT_TIME, Challenger, Cursor, ReportCard, Snapshot, Verdict
from cltrain.registry import Registry, Store
from cltrain.storage import Storage
from cltrain.train.engines.plain import Plain
from cltrain.train.predictor import Predictor
from cltrain.train.settings import Training
from cltrain.train.state import save_state
from cltrain.train.update import train_update
from serve.local import LocalServing
from serve.resident import load

MODEL = "ranker"
START = datetime(2024, 1, 1, tzinfo=UTC)
AT = "2024-02-01T00:00:00Z"
NUMBERS, CATEGORIES = 16, 4
BARE = "/bare"


class SlowNet(TabularNet):
    """A model that takes `sleep_s` seconds to answer, so that requests are under way at any moment."""

    def __init__(self, spec: Any, hidden: Sequence[int] = (8,), embedding_dim: int = 2, sleep_s: float = 0.0) -> None:
        super().__init__(spec, hidden, embedding_dim)
        self.sleep_s = sleep_s

    def forward(self, numeric: Tensor, categorical: Tensor) -> Tensor:
        if not self.training:
            time.sleep(self.sleep_s)
        return super().forward(numeric, categorical)


def make_events(rows: int, seed: int) -> pa.Table:
    generator = np.random.default_rng(seed)
    numbers = generator.normal(size=(rows, NUMBERS))
    columns: dict[str, Any] = {f"x{i}": numbers[:, i] for i in range(NUMBERS)}
    columns |= {f"c{i}": generator.choice(list("abcdefgh"), rows) for i in range(CATEGORIES)}
    score = numbers @ np.cos(np.arange(NUMBERS) + seed) + generator.normal(size=rows)
    when = [START + timedelta(minutes=i) for i in range(rows)]
    return pa.table({"id": [f"e{i}" for i in range(rows)], "at": when, **columns, "y": (score > 0).astype(np.int64)})


def add_versions(store: Store, versions: int, rows: int = 500, first: int = 0, **model: Any) -> list[str]:
    """Register so many versions of one model, each trained from scratch on data of its own, from data set `first` on:
    each answers any row differently. Their numbers."""
    settings = {"_target_": "cltrain.models.TabularNet", "hidden": [256, 256], **model}
    names = []
    for index in range(first, first + versions):
        table = make_events(rows, index)
        schema = infer_schema(table.schema, Columns(event_time="at", label="y", event_id="id", task="binary"))
        cursor = Cursor(until=START, files=(f"events-{index}",))
        trained = train_update(
            event_table(table, schema, f"events-{index}", 0),
            parent=None,
            schema=schema,
            model=settings,
            method=Finetune(),
            training=Training(epochs=1),
            cursor=cursor,
            seed=index,
            engine=Plain(),
        )
        prefix = f"states/{MODEL}-{index}"
        digest = save_state(trained.state, store.storage, prefix)
        challenger = Challenger(
            kind="stateless",
            state=prefix,
            parent=None,
            snapshot=Snapshot(digest=f"{index:064d}", role="train", rows=rows),
            cursor=cursor,
            weights_digest=digest,
            rows_trained=trained.rows_trained,
            rows_replayed=0,
            steps=trained.steps,
            seconds=trained.seconds,
            loss=trained.loss,
            parameters=trained.parameters,
            seed=index,
        )
        names.append(
            Registry(store, MODEL)
            .register(
                challenger,
                ReportCard(comparisons=(), transfer=(), latency_ms=0.0, size_bytes=0),
                Verdict(accepted=True, reasons=()),
                round_index=index,
                reason="benchmark",
                compared_to=None,
                settings={"index": index},
            )
            .version
        )
    return names


def make_rows(count: int, seed: int = 10_000) -> list[dict[str, Any]]:
    """Features of requests."""
    return [
        {name: value for name, value in row.items() if name not in ("id", "at", "y")}
        for row in make_events(count, seed).to_pylist()
    ]


def offline(
    store: Store, versions: Sequence[str], rows: Sequence[dict[str, Any]], device: str = "cpu"
) -> dict[str, list[float]]:
    """What each version answers to each row, one row at a time. Raises unless every version has answers of its own."""
    registry, asked = Registry(store, MODEL), datetime.fromisoformat(AT)
    answers = {}
    for version in versions:
        predictor = Predictor.load(store.storage, registry.version(version).state, torch.device(device))
        answers[version] = [predictor.answer([{**row, EVENT_TIME: asked}])[0]["probability"] for row in rows]
    if any(len(set(column)) < len(versions) for column in zip(*answers.values(), strict=True)):
        raise RuntimeError("two versions answer a row alike: an answer would not tell which of them gave it")
    return answers


def load_seconds(store: Store, versions: Sequence[str], device: str = "cpu") -> float:
    """What one version takes to be loaded and warmed up where nothing else runs; the median."""
    registry = Registry(store, MODEL)
    records = [registry.version(version) for version in versions]
    return float(np.median([load(store.storage, one, device=torch.device(device)).load_s for one in records]))


class Bare:
    """What somebody would write to serve the model with Ray Serve and no more. `user_config` may name another state."""

    def __init__(self, root: str, state: str) -> None:
        torch.set_num_threads(1)
        self._root, self._state = root, state
        self._predictor = Predictor.load(Storage(root), state)

    def reconfigure(self, config: dict[str, str]) -> None:
        if config["state"] != self._state:
            self._predictor, self._state = Predictor.load(Storage(self._root), config["state"]), config["state"]

    def __serve_build_asgi_app__(self) -> FastAPI:
        api = FastAPI()

        @api.post("/predict")
        async def predict(request: Request) -> dict[str, Any]:
            asked, now = (await request.json())["rows"], datetime.now(UTC)
            answers = self._predictor.answer([{**row["features"], EVENT_TIME: now} for row in asked])
            return {"version": self._state, "epoch": 0, "predictions": answers}

        return api


def bare_application(root: str, state: str, *, replicas: int, num_cpus: float, in_place: bool = False) -> Any:
    """`in_place`: the state is in `user_config`, and the code has a version of its own, as a declarative deployment
    gives it: only then does Serve reconfigure its replicas, where it would start them again."""
    from ray import serve

    deployment = serve.deployment(
        name="bare",
        num_replicas=replicas,
        ray_actor_options={"num_cpus": num_cpus},
        max_ongoing_requests=64,
        logging_config={"log_level": "ERROR", "enable_access_log": False},
    )(serve.ingress()(Bare))
    if in_place:
        deployment = deployment.options(version="1", user_config={"state": state}, _internal=True)
    return deployment.bind(root, state)


@dataclass(frozen=True)
class Deployed:
    store: Store
    registry: Registry
    serving: LocalServing
    versions: list[str]

    @property
    def url(self) -> str:
        assert self.serving.url is not None
        return self.serving.url

    def state(self, version: str) -> str:
        return self.registry.version(version).state

    async def bare(self, version: str, in_place: bool = False) -> None:
        """Deploy the bare application, or deploy it again; returns when Serve says that it is done."""
        from ray import serve

        app = bare_application(
            self.store.to_json()["root"],
            self.state(version),
            replicas=self.serving.replicas,
            num_cpus=self.serving.num_cpus,
            in_place=in_place,
        )
        await asyncio.to_thread(serve.run, app, name="bare", route_prefix=BARE)

    def replicas(self) -> dict[int, psutil.Process]:
        """The processes of the application's replicas that this one has started, by pid."""
        return {p.pid: p for p in processes("ServeReplica:cltrain")}


def processes(title: str) -> list[psutil.Process]:
    """Descendants of this process whose title has these words."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if title in " ".join(process.cmdline()):
                found.append(process)
    return found


@contextlib.contextmanager
def deployed(
    versions: int = 4, replicas: int = 2, model: dict[str, Any] | None = None, device: str = "cpu", **settings: Any
) -> Iterator[Deployed]:
    """The application with so many versions in its store, the first of them champion. On cuda its replicas share a
    GPU."""
    logging.disable(logging.INFO)  # Serve's, of each deployment
    with tempfile.TemporaryDirectory(prefix="cltrain-serving-") as folder:
        store = Store(root=str(Path(folder, "store")))
        names = add_versions(store, versions, **(model or {}))
        registry = Registry(store, MODEL)
        registry.promote(names[0], reason="first")
        num_gpus = 0.8 / replicas if device == "cuda" else 0.0
        serving = LocalServing(port=0, replicas=replicas, num_cpus=0.1, num_gpus=num_gpus, **settings)
        with Cluster(workers=0, num_cpus=4, dashboard=False).session(True, {"job": "benchmark"}):
            serving.start(store, MODEL)
            try:
                yield Deployed(store, registry, serving, names)
            finally:
                serving.stop()
                store.engine.dispose()


def post(url: str, body: Any) -> Any:
    """One request, outside of what is measured."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=30) as answer:
        return json.loads(answer.read())
