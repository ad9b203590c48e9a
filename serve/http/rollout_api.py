"""The routes over roll-outs: what runs and what ran, and for admins starting one, halting it and promoting it early."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import FastAPI

from cltrain.errors import ConflictError, DigestError, ServingError
from cltrain.registry.deployment import Deployment, Trial
from serve.control import read_note
from serve.http import schemas
from serve.rollout.bandit import BANDIT, require_log
from serve.rollout.controller import begin, check_fit, end, kind_of, report
from serve.rollout.machine import Action
from serve.rollout.preference import INTERLEAVE
from serve.server import Server

BY = "POST /rollouts"
SHOWN = 50


def add_rollout_routes(api: FastAPI, server: Server, admin: list[Any]) -> None:
    @api.get("/rollouts")
    async def rollouts() -> schemas.RollOutsAnswer:
        """What serves, the roll-out that runs and what was seen of it, and those before it."""
        return await asyncio.to_thread(_state, server)

    @api.post("/rollouts", dependencies=admin, responses=schemas.ADMIN_PROBLEMS)
    async def start(body: schemas.RollOutRequest) -> schemas.RollOutsAnswer:
        """Load and verify a version here, then start its roll-out; it has traffic once every replica holds it."""
        return await asyncio.to_thread(_start, server, body)

    @api.post("/rollouts/halt", dependencies=admin, responses=schemas.ADMIN_PROBLEMS)
    async def halt(body: schemas.EndRequest) -> schemas.RollOutsAnswer:
        """The champion answers everything again; the version may be offered another time."""
        return await asyncio.to_thread(_end, server, body, "stop")

    @api.post("/rollouts/promote", dependencies=admin, responses=schemas.ADMIN_PROBLEMS)
    async def promote(body: schemas.EndRequest) -> schemas.RollOutsAnswer:
        """The version under trial becomes the champion now."""
        return await asyncio.to_thread(_end, server, body, "promote")


def _start(server: Server, body: schemas.RollOutRequest) -> schemas.RollOutsAnswer:
    kind, record = kind_of(body.kind, body.settings), server.record(body.version)
    check_fit(server.registry, kind, record.version)
    if kind.kind in (BANDIT, INTERLEAVE):
        require_log(server.settings.log, f"rollout={kind.kind}")
    try:
        server.resident.stage(record)
    except (DigestError, ServingError) as error:
        raise ConflictError(f"{body.version} is not rolled out: {error}") from error
    try:
        begin(
            server.deployments,
            kind,
            record.version,
            by=BY,
            reason=body.reason,
            expected_epoch=body.expected_epoch,
        )
    except ConflictError:
        server.resident.release(record.version)
        raise
    server.resident.wake()
    return _state(server)


def _end(server: Server, body: schemas.EndRequest, do: Any) -> schemas.RollOutsAnswer:
    end(server.deployments, Action(do, f"{BY}: {body.reason}"), by=BY, id=body.id)
    server.resident.wake()
    return _state(server)


def _state(server: Server) -> schemas.RollOutsAnswer:
    now: Deployment = server.deployments.current()
    running = now.running
    note = read_note(server.registry.store.storage, server.settings.model)
    past = [trial for trial in reversed(server.deployments.trials()) if trial.status != "running"]
    return schemas.RollOutsAnswer(
        epoch=now.epoch,
        roles={role: server.name(version) for role, version in now.roles.items()},
        shares=dict(now.shares),
        running=_shown(server, running, now) if running else None,
        controller=schemas.ControllerState(alive=not note.is_stale, **vars(note)) if note else None,
        history=[_shown(server, trial) for trial in past[:SHOWN]],
    )


def _shown(server: Server, trial: Trial, now: Deployment | None = None) -> schemas.RollOutState:
    return schemas.RollOutState(
        **{
            **vars(trial),
            "version": server.name(trial.version),
            "champion": server.name(trial.champion) if trial.champion else None,
            "share": next((now.shares[r] for r in now.shares if now.roles[r] == trial.version), 0.0) if now else None,
            "evidence": report(server.registry, trial) or trial.evidence if now else trial.evidence,
        }
    )
