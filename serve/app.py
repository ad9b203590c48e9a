"""The Ray Serve deployment. Decorating happens here, at the edge: everything else is plain Python.

A change of version never comes through here: replicas follow the registry, and deploying again is for new code.
"""

from __future__ import annotations

from typing import Any

import torch
from fastapi import FastAPI
from ray import serve
from ray.serve import Application

from serve.control import INGRESS, Control
from serve.http.api import create_api
from serve.server import Server
from serve.settings import ServerSettings

QUIET = {"log_level": "ERROR", "enable_access_log": False}


class Ingress:
    """One replica. `settings` is `ServerSettings` as a plain dict: where the registry is, not which version serves."""

    def __init__(self, settings: dict[str, Any]) -> None:
        torch.set_num_threads(1)
        self._api = create_api(Server(ServerSettings.from_json(settings)))

    def __serve_build_asgi_app__(self) -> FastAPI:
        return self._api


def application(
    settings: dict[str, Any],
    *,
    replicas: int,
    num_cpus: float,
    num_gpus: float,
    max_ongoing_requests: int,
    max_queued_requests: int,
    autoscaling: dict[str, Any] | None = None,
) -> Application:
    """What answers. autoscaling: of Serve, in place of a number of replicas that stays."""
    how_many: dict[str, Any] = {"autoscaling_config": autoscaling} if autoscaling else {"num_replicas": replicas}
    deployment = serve.deployment(
        name=INGRESS,
        **how_many,
        ray_actor_options={"num_cpus": num_cpus, "num_gpus": num_gpus},
        max_ongoing_requests=max_ongoing_requests,
        max_queued_requests=max_queued_requests,
        health_check_period_s=5.0,
        graceful_shutdown_timeout_s=10.0,
        logging_config=QUIET,
    )
    return deployment(serve.ingress()(Ingress)).bind(settings)


def control(
    settings: dict[str, Any], *, replicas: int, policy: dict[str, Any] | None = None, alert: str | None = None
) -> Application:
    """The one process that acts on roll-outs, which has no route; `settings` as those of `application`."""
    deployment = serve.deployment(
        name="control",
        num_replicas=1,
        ray_actor_options={"num_cpus": 0},
        health_check_period_s=2.0,
        health_check_timeout_s=10.0,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=1.0,
        logging_config=QUIET,
    )
    bound = {"store": settings["store"], "model": settings["model"], "policy": policy, "alert": alert}
    return deployment(Control).bind(replicas=replicas, **bound)
