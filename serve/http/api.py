"""The HTTP routes over a `Server`. Any ASGI server can run them; Ray Serve does so in `serve.app`."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.background import BackgroundTask

from cltrain.errors import CltrainError, ConfigError, ConflictError, DataError, StoreError
from serve.http import schemas
from serve.http.arrow_api import about, add_arrow_route
from serve.http.limits import Limits
from serve.http.policy_api import add_policy_routes
from serve.http.rank_api import add_rank_route, add_weights_route
from serve.http.request_schema import add_schema_route
from serve.http.rollout_api import add_rollout_routes
from serve.http.telemetry import Telemetry, Timed, add_metrics_route
from serve.http.why import add_why_route
from serve.logs.profiles import read_profiles, summary
from serve.server import NoChampionError, NoSuchVersionError, Server
from serve.settings import ServerSettings

CONSOLE = Path(__file__).with_name("console.html")
STATUS: tuple[tuple[type[CltrainError], int], ...] = (
    (ConfigError, 422),
    (DataError, 422),
    (NoChampionError, 503),
    (NoSuchVersionError, 404),
    (ConflictError, 409),
    (StoreError, 503),
)


def create_api(server: Server) -> FastAPI:
    """All routes. Every error is `{"detail": "what, and what to do"}`. The end of the application closes the server."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(server.close)

    problems = schemas.problems(413, 422, 503)
    api = FastAPI(
        title="cltrain",
        description=f"Answers of {server.settings.model}, by the versions that its registry wants.",
        lifespan=lifespan,
    )
    api.add_middleware(
        Limits,
        max_body_bytes=server.settings.max_body_bytes,
        max_requests_per_s=server.settings.max_requests_per_s,
    )
    telemetry = Telemetry(server)
    server.on_answer = telemetry.answered
    api.add_middleware(Timed, telemetry=telemetry)
    api.add_exception_handler(CltrainError, _problem)
    api.add_exception_handler(RequestValidationError, _invalid)
    _add_data_routes(api, server, problems)
    _add_state_routes(api, server)
    _add_admin_routes(api, server)
    add_rollout_routes(api, server, [Depends(_admin_check(server.settings))])
    add_policy_routes(api, server, [Depends(_admin_check(server.settings))])
    add_weights_route(api, server, [Depends(_admin_check(server.settings))])
    add_why_route(api, server)
    add_metrics_route(api, telemetry)
    add_schema_route(api, server)
    return api


def _add_data_routes(api: FastAPI, server: Server, problems: dict[int | str, dict[str, Any]]) -> None:
    def check_size(rows: int) -> None:
        if rows > server.settings.max_batch_rows:
            raise HTTPException(
                413, f"{rows} rows are more than the {server.settings.max_batch_rows} of one request: send fewer"
            )

    @api.post("/predict", response_model=schemas.PredictAnswer, responses=problems)
    async def predict(body: schemas.PredictRequest) -> Response:
        """Answer rows with the version that their unit belongs to at this moment, which is the champion unless a
        roll-out runs; the answer names it, in its body and in its headers."""
        check_size(len(body.rows))
        answer = server.answer(body.rows, body.unit_id)

        async def mirror() -> None:
            server.mirror(answer)

        after = BackgroundTask(mirror) if server.shadow.active else None
        return JSONResponse(answer.body, headers=about(answer), background=after)

    add_arrow_route(api, server, check_size)
    add_rank_route(api, server, check_size, problems)

    @api.post("/feedback", response_model=schemas.FeedbackAnswer, responses=problems)
    async def feedback(body: schemas.FeedbackRequest) -> dict[str, int]:
        """Store labels. They are on disk when this answers, and sending them again changes nothing."""
        check_size(len(body.rows))
        return await server.feedback(body.rows)


def _add_state_routes(api: FastAPI, server: Server) -> None:
    @api.get("/versions")
    async def versions() -> schemas.VersionsAnswer:
        """What is resident in the replica that answers, and what it has done."""
        return server.versions()

    @api.get("/healthz")
    async def healthz() -> schemas.Health:
        """The process is alive; `error` names what keeps it from following the registry."""
        return schemas.Health(alive=True, replica=server.replica, error=server.resident.error)

    @api.get("/readyz", responses={503: {"model": schemas.Problem}})
    async def readyz() -> schemas.Ready:
        """503 until a version is loaded."""
        served = server.resident.current
        if served is None:
            raise server.not_ready()
        return schemas.Ready(version=server.name(served.version), epoch=served.epoch)

    @api.get("/profiles")
    async def profiles(hours: Annotated[float, Query(gt=0, le=24 * 366)] = 1.0) -> list[schemas.ProfileLine]:
        """Windows of the last hours, by version and arm, where `serve.log` keeps profiles or metrics."""
        since = datetime.now(UTC) - timedelta(hours=hours)
        found = await asyncio.to_thread(read_profiles, server.registry.store.storage, server.settings.model, since)
        return [schemas.ProfileLine(**line) for line in summary(found)]

    @api.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def console() -> str:
        return CONSOLE.read_text(encoding="utf-8")


def _add_admin_routes(api: FastAPI, server: Server) -> None:
    admin = [Depends(_admin_check(server.settings))]

    @api.post("/promote", dependencies=admin, responses=schemas.ADMIN_PROBLEMS)
    async def promote(body: schemas.PromoteRequest) -> schemas.SwapAnswer:
        """Load and verify a version, then make it the champion. Every replica follows by itself."""
        version, epoch = await asyncio.to_thread(server.promote, body.version, body.reason, body.expected)
        return schemas.SwapAnswer(version=server.name(version), epoch=epoch)

    @api.post("/rollback", dependencies=admin, responses=schemas.ADMIN_PROBLEMS)
    async def rollback(body: schemas.RollbackRequest) -> schemas.SwapAnswer:
        """Make the previous champion the champion again; it is still in memory."""
        version, epoch = await asyncio.to_thread(server.rollback, body.reason)
        return schemas.SwapAnswer(version=server.name(version), epoch=epoch)


def _admin_check(settings: ServerSettings) -> Any:
    async def check(authorization: Annotated[str | None, Header()] = None) -> None:
        if settings.admin_token_sha256 is None:
            raise HTTPException(
                403,
                f"closed: set {settings.admin_token_env} in the environment of the job that starts serving to open it",
            )
        scheme, _, token = (authorization or "").partition(" ")
        digest = hashlib.sha256(token.encode()).hexdigest()
        if scheme.lower() != "bearer" or not hmac.compare_digest(digest, settings.admin_token_sha256):
            raise HTTPException(401, "send Authorization: Bearer TOKEN", headers={"WWW-Authenticate": "Bearer"})

    return check


async def _problem(_: Request, error: Exception) -> JSONResponse:
    status = next((status for kind, status in STATUS if isinstance(error, kind)), 500)
    return JSONResponse({"detail": str(error)}, status_code=status)


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    """One sentence for each thing that is wrong, with its place, and never the value: it may be no JSON."""
    assert isinstance(error, RequestValidationError)
    problems: dict[str, str] = {}
    for found in error.errors():
        path = list(found["loc"][1:])
        scalar = next((name for name in ("features", "label") if name in path), None)
        message = found["msg"].removeprefix("Value error, ")
        if scalar is not None and path[-1] != scalar:  # what follows names a branch of the union, which says nothing
            path = path[: path.index(scalar) + (2 if scalar == "features" else 1)]
            message = "must be a finite number, a text, true or false"
            message += ", a list of finite numbers, or null" if scalar == "features" else ""
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
        problems[place or "the body"] = message
    text = "; ".join(f"{place}: {message}" for place, message in list(problems.items())[:5])
    return JSONResponse({"detail": text}, status_code=422)
