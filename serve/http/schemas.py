"""Bodies of requests and answers, as OpenAPI shows them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import numpy as np
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    model_validator,
)

from serve.logs.feedback import FeedbackType


def _utc(value: datetime) -> datetime:
    try:
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).astimezone(UTC)
    except OverflowError as error:
        raise ValueError("is too far from the year 2000") from error


def _unicode(value: str) -> str:
    """JSON can hold half of a surrogate pair, which no file can."""
    value.encode()
    return value


def _numbers(value: list[Any]) -> list[Any]:
    try:
        found = np.array(value)
    except ValueError:
        found = np.array(None)
    if found.dtype.kind not in "iuf" or not np.isfinite(found).all():
        raise ValueError("must be finite numbers, in lists of one length")
    return value


Instant = Annotated[datetime, AfterValidator(_utc)]
Text = Annotated[StrictStr, AfterValidator(_unicode)]
Id = Annotated[Text, Field(min_length=1, max_length=200)]
Whole = Annotated[StrictInt, Field(ge=-(2**63), lt=2**64)]
Label = StrictBool | Whole | Annotated[StrictFloat, Field(allow_inf_nan=False)] | Text
Numbers = Annotated[list[Any], AfterValidator(_numbers)]
Value = StrictBool | StrictInt | Annotated[StrictFloat, Field(allow_inf_nan=False)] | Text | Numbers | None

_ROW: dict[str, Any] = {
    "event_id": "UA-1545",
    "event_time": "2013-01-01T05:15:00Z",
    "features": {"distance": 1400, "carrier": "UA"},
}


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid")


class PredictRow(_Body):
    """Features by name: those that are absent count as null, those that the model does not know are ignored. An image
    or another tensor is a list of numbers, nested as its shape or flat, on the scale that it has in the data."""

    event_id: Id | None = None
    event_time: Instant | None = None
    features: dict[str, Value]


class PredictRequest(_Body):
    """Many rows under `rows`, or the fields of one row. All rows are answered by one version: while several serve, the
    one that `unit_id` belongs to, such as a user or a session, or else the event id of the first row."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"rows": [_ROW]}, _ROW]})
    rows: list[PredictRow] = Field(min_length=1)
    unit_id: Id | None = None

    @model_validator(mode="before")
    @classmethod
    def _of_one_row(cls, body: Any) -> Any:
        if not isinstance(body, dict) or "features" not in body:
            return body
        unit = {"unit_id": body["unit_id"]} if "unit_id" in body else {}
        return {"rows": [{key: value for key, value in body.items() if key != "unit_id"}], **unit}


class PredictAnswer(BaseModel):
    """All rows are answered by one version. `arm` is what the unit was given to; `stands_in` is true where the champion
    answers for an arm that cannot. `policy_version` is that of the policy that made labels of scores, if one did.
    A prediction has its ids and `probability` and `label` (binary), `probabilities` by class and `label` (multiclass),
    or `value` (regression)."""

    version: str = Field(examples=["ranker:1.3"])
    epoch: int = Field(description="grows with each change of what serves", examples=[4])
    arm: str = Field(examples=["champion"])
    stands_in: bool = False
    policy_version: str | None = Field(default=None, examples=["7"])
    predictions: list[dict[str, Any]] = Field(
        examples=[[{"request_id": "0197a0c0…", "event_id": "UA-1545", "probability": 0.81, "label": 1}]]
    )


class FeedbackRow(_Body):
    """A label for the request or the event that it names; one of the two ids is needed."""

    request_id: Id | None = None
    event_id: Id | None = None
    label: Label
    label_time: Instant | None = None
    type: FeedbackType = "system"

    @model_validator(mode="after")
    def _has_an_id(self) -> FeedbackRow:
        if self.request_id is None and self.event_id is None:
            raise ValueError("a label needs a request_id or an event_id to belong to")
        return self


class FeedbackRequest(_Body):
    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"rows": [{"event_id": "UA-1545", "label": 1, "label_time": "2013-01-01T08:30:00Z"}]}]
        },
    )
    rows: list[FeedbackRow] = Field(min_length=1)


class FeedbackAnswer(BaseModel):
    stored: int
    duplicates: int


class PromoteRequest(_Body):
    """`expected`: the champion that you believe is there; the answer is 409 if it is another."""

    version: Text = Field(examples=["1.3"])
    reason: Text = Field(min_length=1, examples=["approved in review"])
    expected: Text | None = None


class RollbackRequest(_Body):
    reason: Text = Field(min_length=1, examples=["complaints since 10:00"])


class SwapAnswer(BaseModel):
    version: str
    epoch: int


class Resident(BaseModel):
    version: str
    weights_digest: str
    size_bytes: int
    loaded_at: datetime
    load_s: float


class VersionsAnswer(BaseModel):
    """What this replica answers with. `epoch` is behind `registry_epoch` while a new champion is being loaded or
    when it cannot be; `error` then says why. `served` counts requests by version, `failed` those without an answer."""

    replica: str
    model: str
    champion: str | None
    epoch: int
    registry_epoch: int
    roles: dict[str, str]
    shares: dict[str, float]
    loaded_at: datetime | None
    resident: list[Resident]
    served: dict[str, int]
    failed: int
    predictions_log: dict[str, Any]
    feedback_log: dict[str, Any]
    error: str | None


class RollOutRequest(_Body):
    """Start a roll-out of a version. `kind` is swap, shadow, canary, ab, interleave or bandit; `settings` are those of
    the kind that differ from its defaults, such as `{"steps": [0.05, 1.0], "guardrails": {"max_p99_ratio": 3}}`."""

    version: Text = Field(examples=["1.3"])
    kind: Text = Field(examples=["canary"])
    settings: dict[str, Any] = Field(default_factory=dict, examples=[{"min_samples": 200, "min_s": 30}])
    reason: Text = Field(min_length=1, examples=["approved in review"])
    expected_epoch: int | None = None


class EndRequest(_Body):
    """End the roll-out that runs; `id` guards against ending another one than is meant."""

    reason: Text = Field(min_length=1, examples=["the campaign is over"])
    id: Text | None = None


class RollOutState(BaseModel):
    """One roll-out. `status` is running, promoted, rolled_back or stopped; step -1 is staging, without traffic."""

    id: str
    kind: str
    version: str
    champion: str | None
    step: int
    share: float | None = None
    status: str
    reason: str
    started_at: datetime
    since: datetime
    settings: dict[str, Any]
    evidence: dict[str, Any]


class ControllerState(BaseModel):
    """What acts on roll-outs, as of `at`: `replicas` of the application are there. Where it is not `alive`, or has an
    `error`, the roll-out stays where it is."""

    at: datetime
    alive: bool
    replicas: int
    error: str | None


class RollOutsAnswer(BaseModel):
    """What serves now, the roll-out under way with what has been seen of it, and those before it, latest first.
    `controller` is null before there was one."""

    epoch: int
    roles: dict[str, str]
    shares: dict[str, float]
    running: RollOutState | None
    controller: ControllerState | None
    history: list[RollOutState]


class PolicyRequest(_Body):
    """A threshold to put in force: scores at or above it get the label 1. Within `band` of it decisions are drawn, so
    that the log can tell about others; `hold` keeps it from being adapted. The reward is the number of `reward_type`
    feedback, or else minus the cost of a wrong label; what is not given is as it was. `force` does it even if the log
    cannot tell what it would earn, or says that it is less."""

    threshold: Annotated[StrictFloat | StrictInt, Field(ge=0, le=1)] = Field(examples=[0.4])
    band: Annotated[StrictFloat | StrictInt, Field(ge=0, le=0.5)] = Field(default=0.0, examples=[0.1])
    reason: Text = Field(min_length=1, examples=["a missed case costs more since May"])
    reward_type: FeedbackType | None = None
    false_positive_cost: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    false_negative_cost: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    hold: StrictBool = False
    force: StrictBool = False
    expected_epoch: int | None = None


class PolicyRollbackRequest(_Body):
    """Without a `version` it is the one before the present one, which for the first one is none."""

    reason: Text = Field(min_length=1, examples=["complaints since 10:00"])
    version: Text | None = None
    expected_epoch: int | None = None


class PolicyState(BaseModel):
    """One document: a threshold with its band, or weights of features on /rank. estimate: what it would earn a decision
    by the log, as of when it came in; forced: why it was not to be, where it was forced; held: nothing adapts it."""

    version: str
    parent: str | None
    threshold: float | None = None
    band: float | None = None
    weights: dict[str, float] | None = None
    reward: dict[str, Any] | None
    reason: str
    estimate: dict[str, Any] | None
    forced: str | None = None
    held: bool = False


class PolicyAnswer(BaseModel):
    """What makes labels of scores now (none: a half does), and what did before, latest first."""

    epoch: int
    policy: PolicyState | None
    history: list[PolicyState]


class WhyAnswer(BaseModel):
    """What the log says of one answered row, features as they came in."""

    request_id: str
    event_id: str | None
    unit_id: str | None
    event_time: datetime
    time: datetime
    model: str
    version: str
    epoch: int
    arm: str | None
    experiment: str | None
    propensity: float | None
    snapshot: str | None = Field(description="of the bandit that chose the arm")
    prediction: float
    label_answer: str | None
    policy_version: str | None = Field(description="of the policy that made the label of the prediction")
    decision_propensity: float | None = Field(description="chance with which the policy decided so")
    latency_us: int
    features: dict[str, Any]


class ProfileLine(BaseModel):
    """One window of a version's answers in an arm: rows, and mean, deviation and number of each metric."""

    window: datetime
    version: str
    arm: str
    rows: int
    metrics: dict[str, dict[str, float]]


class Health(BaseModel):
    alive: bool
    replica: str
    error: str | None


class Ready(BaseModel):
    version: str
    epoch: int


class Problem(BaseModel):
    detail: str


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What the OpenAPI says of answers with these statuses."""
    return {status: {"model": Problem} for status in statuses}


ADMIN_PROBLEMS = problems(401, 403, 404, 409, 422, 503)
