"""`/rank`: candidates in, best first, by the model that also answers `/predict`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.background import BackgroundTask

from cltrain.errors import DataError
from serve.arrow_api import about
from serve.schemas import Id, Instant, PredictRow, Value, _Body
from serve.segments import new_id
from serve.server import Server

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
    item_id: str
    request_id: str
    score: float


class RankAnswer(BaseModel):
    """Best first; of equal scores the one that was asked first. A click is feedback on the item's `request_id`."""

    version: str = Field(examples=["ranker:1.3"])
    epoch: int
    arm: str
    stands_in: bool = False
    ranking: list[Ranked]


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
        answer = server.answer(rows, body.unit_id or new_id())
        scores = [one.get("probability", one.get("value")) for one in answer.body["predictions"]]
        order = sorted(range(len(scores)), key=lambda i: -scores[i])[: body.top]
        ranking = [
            {
                "item_id": body.items[i].item_id,
                "request_id": answer.body["predictions"][i]["request_id"],
                "score": scores[i],
            }
            for i in order
        ]
        told = {name: value for name, value in answer.body.items() if name != "predictions"}

        async def mirror() -> None:
            server.mirror(answer)

        after = BackgroundTask(mirror) if server.shadow.active else None
        return JSONResponse({**told, "ranking": ranking}, headers=about(answer), background=after)
