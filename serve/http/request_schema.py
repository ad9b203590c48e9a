"""What a version wants to be asked, as a JSON schema, with an example: from the encoder that travels with it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, Field

from cltrain.data.encoder import Encoder
from cltrain.data.schema import HOUR, WEEKDAY
from serve.http.arrow_api import ARROW
from serve.http.schemas import Problem
from serve.server import Server

MOST_CATEGORIES = 20
Json = dict[str, Any]


class SchemaAnswer(BaseModel):
    """The features that the champion reads. Those that are absent count as null, others are ignored; `known` lists some
    of the categories that were met, and any other text is allowed too."""

    version: str = Field(examples=["ranker:1.3"])
    task: str
    features: dict[str, Any]
    example: dict[str, Any]


def features_schema(encoder: Encoder) -> Json:
    """JSON schema of each feature that a request may have."""
    found: Json = {}
    for number in encoder.numeric:
        about = {"type": ["number", "null"], "description": f"met between {_known(number, number.low, number.high)}"}
        found[number.name] = about
    for category in encoder.categorical:
        known = list(category.categories[:MOST_CATEGORIES])
        found[category.name] = {"type": ["string", "number", "boolean", "null"], "known": known}
    for tensor in encoder.tensors:
        found[tensor.name] = {"type": ["array", "null"], "shape": list(tensor.shape), "element": tensor.element}
    for text in encoder.texts:
        found[text.name] = {"type": ["string", "null"]}
    return {name: about for name, about in found.items() if name not in (HOUR, WEEKDAY)}


def example_of(encoder: Encoder) -> Json:
    """A row that the version answers: means, a category that was met."""
    features: Json = {number.name: float(f"{number.mean:.4g}") for number in encoder.numeric}
    features |= {c.name: next(iter(c.categories), None) for c in encoder.categorical}
    features |= {text.name: "some words" for text in encoder.texts}
    features |= {tensor.name: None for tensor in encoder.tensors}
    features = {name: value for name, value in features.items() if name not in (HOUR, WEEKDAY)}
    return {"event_id": "example-1", "event_time": "2024-01-01T10:00:00Z", "features": features}


def _known(number: Any, low: float, high: float) -> str:
    return f"{low * number.std + number.mean:.4g} and {high * number.std + number.mean:.4g}"


def add_schema_route(api: FastAPI, server: Server) -> None:
    @api.get("/schema", responses={503: {"model": Problem}})
    async def schema() -> SchemaAnswer:
        """Features of the champion, and an example to send to `/predict`."""
        served = server.resident.current
        if served is None:
            raise server.not_ready()
        encoder = served.predictor.state.encoder
        return SchemaAnswer(
            version=server.name(served.version),
            task=encoder.task,
            features=features_schema(encoder),
            example=example_of(encoder),
        )

    api.openapi = _openapi(api.openapi, server)  # type: ignore[method-assign]


def _openapi(plain: Callable[[], Json], server: Server) -> Callable[[], Json]:
    """The OpenAPI document with the champion's own features as example, and Arrow beside JSON."""

    def openapi() -> Json:
        document = copy.deepcopy(plain())
        content = document["paths"]["/predict"]["post"]["requestBody"]["content"]
        content[ARROW] = {"schema": {"type": "string", "format": "binary"}}
        served = server.resident.current
        if served is not None:
            encoder = served.predictor.state.encoder
            row = document["components"]["schemas"]["PredictRow"]["properties"]["features"]
            row["description"] = f"of {server.name(served.version)}: {', '.join(features_schema(encoder))}"
            content["application/json"]["example"] = {"rows": [example_of(encoder)]}
        return document

    return openapi
