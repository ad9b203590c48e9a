"""The routes over the policy layer: what decides now and what did before, and for admins another one and going back."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import FastAPI

from cltrain.records import Json
from serve.http import schemas
from serve.policy.policy_layer import DecisionLog, Reward, document_of, propose, require_binary
from serve.server import Server

BY = "POST /policy"
SHOWN = 50


def add_policy_routes(api: FastAPI, server: Server, admin: list[Any]) -> None:
    @api.get("/policy")
    async def policy() -> schemas.PolicyAnswer:
        """The document in force, and those that were, latest first."""
        return await asyncio.to_thread(_state, server)

    @api.post("/policy", dependencies=admin, responses=schemas.ADMIN_PROBLEMS)
    async def put(body: schemas.PolicyRequest) -> schemas.PolicyAnswer:
        """Put another threshold in force if the log can tell what it would earn, and it is not less. The estimate is in
        the answer."""
        return await asyncio.to_thread(_put, server, body)

    @api.post("/policy/rollback", dependencies=admin, responses=schemas.ADMIN_PROBLEMS)
    async def rollback(body: schemas.PolicyRollbackRequest) -> schemas.PolicyAnswer:
        """Put the document before the present one in force again, or the one that is named, whatever the model is.
        Nothing adapts it until another is put in force."""
        return await asyncio.to_thread(_rollback, server, body)


def _put(server: Server, body: schemas.PolicyRequest) -> schemas.PolicyAnswer:
    now = server.deployments.current()
    if now.champion is None:
        raise server.not_ready()
    require_binary(server.registry, now.champion)
    given = body.model_dump(include={"reward_type", "false_positive_cost", "false_negative_cost"}, exclude_none=True)
    reward = Reward(**{**vars(Reward.read(now.document)), **given})
    document = document_of(body.threshold, body.band, reward) | ({"held": True} if body.hold else {})
    propose(
        server.deployments,
        DecisionLog(server.registry.store.storage, server.settings.model, reward),
        document,
        by=BY,
        reason=body.reason,
        force=body.force,
        expected_epoch=body.expected_epoch,
    )
    server.resident.wake()
    return _state(server)


def _rollback(server: Server, body: schemas.PolicyRollbackRequest) -> schemas.PolicyAnswer:
    server.deployments.rollback_policy(
        body.version, expected_epoch=body.expected_epoch, by="POST /policy/rollback", reason=body.reason
    )
    server.resident.wake()
    return _state(server)


def _state(server: Server) -> schemas.PolicyAnswer:
    now = server.deployments.current()
    past = [one for one in reversed(server.deployments.policies()) if one["version"] != now.policy]
    return schemas.PolicyAnswer(
        epoch=now.epoch,
        policy=_shown(now.document) if now.policy else None,
        history=[_shown(one) for one in past[:SHOWN]],
    )


def _shown(document: Json) -> schemas.PolicyState:
    told: Json = {name: document.get(name) for name in ("parent", "reward", "estimate", "forced", "weights")}
    told |= {"version": document["version"], "reason": document["reason"], **document.get("values", {})}
    return schemas.PolicyState(**told, held=bool(document.get("held")))
