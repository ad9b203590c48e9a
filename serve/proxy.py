"""What Serve's HTTP proxy is told to put around itself: failover, and a door for gRPC."""

from __future__ import annotations

import json
import os

from starlette.middleware import Middleware

from serve.failover import Failover

ENVIRONMENT = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve.proxy.middlewares"}  # of Serve's controller
GRPC = "CLTRAIN_GRPC"


def environment(grpc_address: str | None, max_bytes: int) -> dict[str, str]:
    """Of Serve's controller, which starts the proxies. grpc_address: None for no gRPC."""
    grpc = json.dumps({"address": grpc_address, "max_bytes": max_bytes})
    return ENVIRONMENT | ({GRPC: grpc} if grpc_address else {})


def middlewares() -> list[Middleware]:
    """The innermost first, in the process of the proxy."""
    found = [Middleware(Failover)]
    if GRPC in os.environ:
        from serve.http.grpc_api import GrpcDoor

        found.append(Middleware(GrpcDoor, **json.loads(os.environ[GRPC])))
    return found
