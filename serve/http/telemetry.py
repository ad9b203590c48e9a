"""What Prometheus reads at `/metrics`: requests, failures and latency by version, arm and role, and the logs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.responses import Response

from cltrain.registry.base import CHAMPION
from serve.http.limits import App, Message, Receive, Send
from serve.logs.profiles import METRIC
from serve.server import Answer, Server

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
BY_VERSION = ("version", "arm", "role")


class Telemetry:
    """Metrics of one replica, each with its id as `replica`. Versions that are no longer resident are left out, so that
    their number is bounded by the roles there are."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.registry = CollectorRegistry()
        told: dict[str, Any] = {"registry": self.registry, "namespace": "cltrain"}
        self._requests = Counter("requests", "Requests that a version answered", BY_VERSION, **told)
        self._rows = Counter("rows", "Rows that a version answered", BY_VERSION, **told)
        self._latency = Histogram("answer_seconds", "Time of the model", BY_VERSION, buckets=BUCKETS, **told)
        self._http = Counter("http_responses", "Responses", ("route", "status"), **told)
        self._seconds = Histogram("http_seconds", "Time of a response", ("route",), buckets=BUCKETS, **told)
        self._seen: set[tuple[str, str, str]] = set()
        self.registry.register(_Now(server))

    def answered(self, answer: Answer) -> None:
        body = answer.body
        version = body["version"].rpartition(":")[2]
        served = self._server.resident.current
        roles = served.deployment.roles if served else {}
        role = next((role for role, one in roles.items() if one == version), CHAMPION)
        labels = (version, body["arm"], role)
        self._seen.add(labels)
        self._requests.labels(*labels).inc()
        self._rows.labels(*labels).inc(len(answer.log))
        self._latency.labels(*labels).observe(answer.log[0].latency_us / 1e6)

    def responded(self, route: str, status: int, seconds: float) -> None:
        self._http.labels(route, status).inc()
        self._seconds.labels(route).observe(seconds)

    def page(self) -> bytes:
        resident = self._server.resident.resident()
        for labels in [labels for labels in self._seen if labels[0] not in resident]:
            self._seen.discard(labels)
            for metric in (self._requests, self._rows, self._latency):
                metric.remove(*labels)
        return generate_latest(self.registry)


class _Now:
    """What is counted elsewhere, read when it is asked for."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def describe(self) -> list[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        server = self._server
        served, resident = server.resident.current, server.resident.resident()
        about = GaugeMetricFamily("cltrain_replica", "1, with the id of this replica", labels=["replica", "model"])
        about.add_metric([server.replica, server.settings.model], 1)
        yield about
        yield GaugeMetricFamily("cltrain_epoch", "Epoch that answers", value=served.epoch if served else 0)
        yield GaugeMetricFamily("cltrain_registry_epoch", "Epoch wanted", value=server.resident.registry_epoch)
        yield GaugeMetricFamily("cltrain_ready", "Whether a version is loaded", value=float(served is not None))
        yield CounterMetricFamily("cltrain_failures", "Requests without an answer", value=server.failed)
        size = GaugeMetricFamily("cltrain_resident_bytes", "Weights in memory", labels=["version"])
        for version, loaded in resident.items():
            size.add_metric([version], loaded.predictor.size_bytes)
        yield size
        rows = CounterMetricFamily("cltrain_log_rows", "Rows of the logs", labels=["log", "outcome"])
        waiting = GaugeMetricFamily("cltrain_log_waiting_rows", "Rows that wait to be written", labels=["log"])
        logs = {"predictions": server.predictions, "feedback": server.labels, "shadow": server.shadows}
        for name, one in logs.items():
            for outcome in ("written", "shed", "lost"):
                rows.add_metric([name, outcome], getattr(one, outcome))
            waiting.add_metric([name], one.waiting_rows)
        rows.add_metric(["feedback", "duplicate"], server.labels.duplicates)
        yield rows
        yield waiting
        yield CounterMetricFamily("cltrain_shadow_shed", "Copies that a shadow did not get", value=server.shadow.shed)
        yield from self._metrics_of_users()

    def _metrics_of_users(self) -> Iterator[Metric]:
        profiles = self._server.predictions.profiles
        if profiles is None:
            return
        mean = GaugeMetricFamily(
            "cltrain_proxy_metric", "Mean of a metric of serve.log.metrics", labels=["metric", "version", "arm"]
        )
        latest = {(key.version, key.arm): profile for key, profile in sorted(profiles.latest.copy().items())}
        for (version, arm), profile in latest.items():
            for name, column in profile.numeric.items():
                if name.startswith(METRIC) and column.rows > column.nulls:
                    value = column.total / (column.rows - column.nulls)
                    mean.add_metric([name.removeprefix(METRIC), version, arm], value)
        yield mean


class Timed:
    """An ASGI middleware that counts responses by route, which is that of the application, or `other`."""

    def __init__(self, app: App, *, telemetry: Telemetry) -> None:
        self._app, self._telemetry = app, telemetry

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500

        async def seen(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, seen)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._telemetry.responded(route, status, time.perf_counter() - started)


def add_metrics_route(api: FastAPI, telemetry: Telemetry) -> None:
    @api.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    async def metrics() -> Response:
        """Metrics of the replica that answers, for Prometheus."""
        return Response(telemetry.page(), media_type=CONTENT_TYPE_LATEST)
