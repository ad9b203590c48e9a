"""The frozen records that stages pass on. A record is what one stage returned and the next one takes; all of them
can be written as JSON and read back, because a round is resumed from them."""

from __future__ import annotations

import dataclasses
import types
import typing
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, TypeVar, Union

EVENT_ID, EVENT_TIME, LABEL_TIME, LABEL = (
    "_event_id",
    "_event_time",
    "_label_time",
    "_label",
)  # columns of an event table

Kind = Literal["stateless", "stateful", "surgery"]
Json = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Window:
    """Half-open interval `[start, end)` of event time; `index` 0 is the bootstrap window."""

    index: int
    start: datetime
    end: datetime


@dataclass(frozen=True, kw_only=True)
class Cursor:
    """Which rows a version has had the chance to learn from: those of `files` that were visible before `until`."""

    until: datetime
    files: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The exact rows of one training or evaluation set. `digest` names its manifest, which names files and rule."""

    digest: str
    role: str
    rows: int
    late_rows: int = 0


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What was seen in a window before anything was decided.

    events: all events of the window; labelled: labels that became known since the round before, of which late_labels
    belong to earlier windows. problems: broken rules of the contract. arrived: those labelled rows; fresh: the ones to
    train on that the champion has not had; holdout: the window's own held-out rows.
    """

    events: int
    labelled: int
    late_labels: int
    problems: tuple[str, ...]
    arrived: Snapshot
    fresh: Snapshot
    holdout: Snapshot
    cursor: Cursor
    prequential: Json
    static: Json


@dataclass(frozen=True, kw_only=True)
class Decision:
    """Now or not yet, with its evidence."""

    fire: bool
    reason: str
    evidence: Json = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class UpdateRequest:
    """One training, complete: a worker that has this and the store needs nothing else.

    `parent` is the state to continue from, or to carry over by surgery, or None to start from scratch; `settings` are
    the resolved settings of model, method, training and adapter, and for a surgery `transfer_names`.
    """

    number: int
    kind: Kind
    parent: str | None
    snapshot: Snapshot
    cursor: Cursor
    seed: int
    task: str
    settings: Json


@dataclass(frozen=True, kw_only=True)
class Challenger:
    """A trained state, stored but not yet a version. `state` is its folder in the blob root. `carried`: what a surgery
    took over from the parent. made: engine, device and threads that trained it, which can show in its bits."""

    kind: Kind
    state: str
    parent: str | None
    snapshot: Snapshot
    cursor: Cursor
    weights_digest: str
    rows_trained: int
    rows_replayed: int
    steps: int
    seconds: float
    loss: float | None
    parameters: int
    seed: int
    absorb_seconds: float = 0.0
    carried: Json | None = None
    workers: int = 1
    made: Json = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Challenger against champion on the same held-out rows; `difference` is challenger minus champion in mean
    loss, with a paired-bootstrap interval. Without a champion only the challenger's metrics are there.

    metrics: `difference`, `low` and `high` of further metrics, by name. flips: `negative`, the share of rows that the
    champion has right and the challenger wrong, and `positive`, the reverse. where: the rule of a slice, as one writes
    it in the settings; found: the rule was searched for, not declared.
    """

    name: str
    rows: int
    challenger: Json
    champion: Json | None = None
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    metrics: Json = field(default_factory=dict)
    flips: Json | None = None
    where: str | None = None
    found: bool = False


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one behaviour, robustness or safety test found. `failed` of `rows` rows broke the rule; the test is passed
    if that share is at most `bound`. champion_failed: of the same rows; examples: some that failed, as one reads them.
    """

    name: str
    kind: str
    rows: int
    failed: int
    bound: float
    passed: bool
    champion_failed: int | None = None
    examples: tuple[Json, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ReportCard:
    """The evidence. `comparisons`: on the new window, and on the past. `transfer` is one row of the transfer matrix:
    window, rows and loss of the challenger on each past window.

    slices: comparisons on parts of the new window. findings: of the tests. reliability: curves of predicted against
    observed, by `challenger` and `champion`. importance: by how much the loss grows when a feature is shuffled, largest
    first. spots: some rows with both answers, for a person to look at. drift: what the challenger was trained on and
    how far that is from what its parent was, or else the champion (`cltrain.drift`).
    """

    comparisons: tuple[Comparison, ...]
    transfer: tuple[Json, ...]
    latency_ms: float
    size_bytes: int
    champion_latency_ms: float | None = None
    champion_size_bytes: int | None = None
    slices: tuple[Comparison, ...] = ()
    findings: tuple[Finding, ...] = ()
    reliability: Json = field(default_factory=dict)
    importance: tuple[Json, ...] = ()
    spots: tuple[Json, ...] = ()
    drift: Json = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    accepted: bool
    reasons: tuple[str, ...]
    score: float | None = None


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What people said of a version that the gate accepted."""

    accepted: bool
    reason: str


@dataclass(frozen=True, kw_only=True)
class RollOut:
    """How a version came to traffic: `version` replaced `previous` at `epoch` of what is deployed, if `status` is
    promoted; if it is still running, it may yet. evidence: what was seen of it in traffic, where that was asked for."""

    kind: str
    version: str | None
    previous: str | None
    epoch: int
    confirm_s: float | None = None
    status: Literal["promoted", "rolled_back", "stopped", "running"] = "promoted"
    reason: str = ""
    evidence: Json = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """What trackers are told when a job starts. `metric` is the one that the task is judged by, `store` its URI."""

    name: str
    model: str
    task: str
    metric: str
    run_dir: str
    store: str
    settings: Json


@dataclass(frozen=True, kw_only=True)
class Round:
    """One finished turn of the loop: the line of `rounds.jsonl`.

    Each of `versions` has version, kind, parent, compared_to, accepted, reasons, score, rows, rows_trained,
    rows_replayed, steps, seconds, absorb_seconds, workers, loss, parameters, snapshot_digest, weights_digest,
    comparisons (of the report card), transfer (window, rows and loss for each past window), latency_ms and size_bytes.
    `champion` is the one after the round, while a roll-out is running the one before it; `served` what traffic saw
    during it, `freshness_s` the seconds from the start of the round until its version answered.
    """

    index: int
    window: Window
    status: Literal[
        "promoted", "rejected", "waited", "empty", "quarantined", "failed", "rolled_back", "stopped", "running"
    ]
    observation: Observation
    decision: Decision
    champion: str | None
    versions: tuple[Json, ...]
    roll_out: RollOut | None
    cursor: Cursor
    served: Json = field(default_factory=dict)
    freshness_s: float | None = None
    seconds: float = 0.0

    @property
    def sound(self) -> bool:
        """False if the rows of the window are not to be learned from, nor tested on: it broke the contract, or its
        labels were found to be noise."""
        noise = any(f["kind"] == "labels" and not f["passed"] for v in self.versions for f in v.get("findings", ()))
        return self.status != "quarantined" and not (noise and self.status == "rejected")


def to_json(value: Any) -> Any:
    """Plain JSON of a record; instants become ISO 8601 in UTC."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, dict):
        return {str(k): to_json(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(v) for v in value]
    return value


def from_json(kind: type[T], value: Any) -> T:
    """Read back what `to_json` wrote. Unknown and missing keys raise `TypeError`.

    >>> w = Window(index=1, start=datetime(2013, 1, 1), end=datetime(2013, 1, 8))
    >>> from_json(Window, to_json(w)) == w
    True
    """
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return kind(**{name: _read(hints.get(name, Any), item) for name, item in value.items()})
    return _read(kind, value)


def _read(hint: Any, value: Any) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if value is None or hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _read(next(a for a in args if a is not type(None)), value)
    if origin is tuple:
        return tuple(_read(args[0], item) for item in value)
    if hint is datetime:
        return datetime.fromisoformat(value)
    if dataclasses.is_dataclass(hint):
        return from_json(typing.cast(type, hint), value)
    return value
