"""`/rank`: candidates in, best first, by the model that also answers `/predict`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt
from starlette.background import BackgroundTask

from cltrain.errors import DataError
from serve.http.arrow_api import about
from serve.http.schemas import ADMIN_PROBLEMS, Id, Instant, PredictRow, Text, Value, _Body
from serve.logs.segments import new_id
from serve.policy.reranking import WeightsPolicy
from serve.rollout.interleaving import Candidates, contest, duel, interleave
from serve.rollout.preference import require_one_score
from serve.server import Answer, Server

Position = Annotated[int, Field(ge=1)]


class Candidate(_Body):
    """`features` are those of the candidate; they win over the request's of the same name."""

    item_id: Id
    features: dict[str, Value] = Field(default_factory=dict)


class RankRequest(_Body):
    """Candidates to be sorted for one unit. `features` are those that all have in common, such as the user's; `top`
    cuts the list that comes back."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {
                    "unit_id": "user-7",
                    "features": {"carrier": "UA"},
                    "items": [{"item_id": "a", "features": {"distance": 300}}, {"item_id": "b"}],
                }
            ]
        },
    )
    items: list[Candidate] = Field(min_length=1)
    features: dict[str, Value] = Field(default_factory=dict)
    unit_id: Id | None = None
    event_time: Instant | None = None
    top: Position | None = None


class Ranked(BaseModel):
    """In an interleaved list, `version` is what scored the item and `team` whose item it is: `champion`, `challenger`,
    or `neither` where both ranked it next; in a duel of re-ranking weights those in force are the champion's."""

    item_id: str
    request_id: str
    score: float
    version: str | None = None
    team: str | None = None


class RankAnswer(BaseModel):
    """Best first; of equal scores the one that was asked first. A click is feedback on the item's `request_id`.

    While an interleaving runs, `arm` is `interleave`, the list is drafted from two rankings, `versions` names both by
    their team instead of `version`, and each item says which of them scored it; scores of two versions are not in one
    order. Where the challenger cannot answer, the champion's ranking stands alone, and `stands_in` is true.

    With re-ranking weights in force (`policy_version`), `score` is still the model's, and the order is that of the
    scores with the weighted features."""

    version: str | None = Field(examples=["ranker:1.3"])
    versions: dict[str, str] | None = Field(
        default=None, examples=[{"champion": "ranker:1.3", "challenger": "ranker:1.4"}]
    )
    epoch: int
    arm: str
    stands_in: bool = False
    policy_version: str | None = Field(default=None, examples=["7"])
    ranking: list[Ranked]


class WeightsRequest(_Body):
    """Weights to put in force, in standard deviations of the model's score for one of the feature; without any the
    order is the model's. `hold` keeps them as they are; else `serve.policy=weights` goes on from them."""

    weights: dict[str, Annotated[StrictFloat | StrictInt, Field(ge=-100, le=100)]] = Field(examples=[{"recency": 0.2}])
    reason: Text = Field(min_length=1, examples=["fresh offers first, for the campaign"])
    hold: StrictBool = False
    expected_epoch: int | None = None


class WeightsAnswer(BaseModel):
    policy_version: str
    epoch: int


def add_weights_route(api: FastAPI, server: Server, admin: list[Any]) -> None:
    @api.post("/policy/weights", dependencies=admin, responses=ADMIN_PROBLEMS)
    async def put(body: WeightsRequest) -> WeightsAnswer:
        """Put re-ranking weights in force. `POST /policy/rollback` goes back to what was before."""
        return await asyncio.to_thread(_put, server, body)


def _put(server: Server, body: WeightsRequest) -> WeightsAnswer:
    now = server.deployments.current()
    if now.champion is None:
        raise server.not_ready()
    require_one_score(server.registry, now.champion, "POST /policy/weights")
    document = {"weights": {name: float(weight) for name, weight in body.weights.items()}, "held": body.hold}
    done = server.deployments.set_policy(
        document, expected_epoch=body.expected_epoch, by="POST /policy/weights", reason=body.reason
    )
    server.resident.wake()
    assert done.policy is not None
    return WeightsAnswer(policy_version=done.policy, epoch=done.epoch)


def _listed(answer: Answer) -> Response:
    return JSONResponse(answer.body, headers=about(answer))


def add_rank_route(api: FastAPI, server: Server, check_size: Callable[[int], None], problems: Any) -> None:
    @api.post("/rank", response_model=RankAnswer, responses=problems)
    async def rank(body: RankRequest) -> Response:
        """Sort candidates by probability of the positive class or by value; each is logged as a prediction of its own.
        Without a `unit_id` the request is a unit of its own."""
        check_size(len(body.items))
        if len({item.item_id for item in body.items}) < len(body.items):
            raise DataError("items: an item_id is there twice: send each candidate once")
        served = server.resident.current
        if served is not None and served.predictor.task == "multiclass":
            raise DataError("a multiclass model has no one score to sort by: ask /predict for probabilities")
        rows = [
            PredictRow.model_construct(
                event_id=None, event_time=body.event_time, features={**body.features, **item.features}
            )
            for item in body.items
        ]
        asked = Candidates([item.item_id for item in body.items], rows, body.unit_id or new_id(), body.top)
        policy = WeightsPolicy.of(served.deployment) if served is not None else None
        if served is not None and (trial := contest(served)) is not None:
            return _listed(interleave(server, served, trial, asked, policy))
        if served is not None and policy is not None and policy.duels and served.deployment.running is None:
            return _listed(duel(server, served, asked, policy))
        weighed_by = policy.version if policy else None
        answer = server.answer(rows, asked.unit, decides=False, policy_version=weighed_by)
        found = answer.body["predictions"]
        ranking = [
            {
                "item_id": asked.items[i],
                "request_id": found[i]["request_id"],
                "score": found[i].get("probability", found[i].get("value")),
            }
            for i in asked.order(found, policy.weights if policy else None)[: body.top]
        ]
        told = {name: value for name, value in answer.body.items() if name != "predictions"}
        if weighed_by is not None:
            told["policy_version"] = weighed_by

        async def mirror() -> None:
            server.mirror(answer)

        after = BackgroundTask(mirror) if server.shadow.active else None
        return JSONResponse({**told, "ranking": ranking}, headers=about(answer), background=after)
