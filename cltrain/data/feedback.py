"""Source: what serving has answered, joined with the feedback that came for it."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Container, Iterator
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa
from pyarrow import fs

from cltrain.clock import parse_duration
from cltrain.data.join import KEPT, PREFIX, FeedbackJoin, JoinSettings, JoinState
from cltrain.data.parquet import ParquetSource
from cltrain.data.schema import HOUR, WEEKDAY, Columns, Feature, Schema
from cltrain.errors import ConfigError, DataError
from cltrain.records import to_json
from cltrain.storage import Storage, digest_json

log = logging.getLogger(__name__)

JOINED = "joined"
SERVED = tuple(f"{PREFIX}{name}" for name in ("event_id", "time", *KEPT, "feedback_type", "state"))


class NothingJoinedError(DataError):
    """No prediction has a label yet."""


@dataclass(frozen=True, kw_only=True)
class FeedbackSource(Columns):
    """Rows of the prediction log, with their features as they were when they were answered, once their label is known.
    Which version answered, in which arm and with which propensity, stands in columns `served.…`, which are no features.

    store, model: whose logs, by default those of the job's own store; the model may be left out where they hold one.
    label_horizon: for how long a label is waited for, on the clock of the label stream, so that nobody is given up
    while that stream stands still. negative_after: binary tasks alone; a row without a label by then is a negative, and
    is marked so in `served.state`; null never takes silence for an answer. feedback_types: which feedback is a label;
    empty means all. every: between two looks at the logs at most.

    history: a folder of Parquet with events from before, whose columns `event_time`, `label`, `label_time` and
    `event_id` then name; it should end where serving begins. Its files keep their names, so that a store whose versions
    were made from that folder goes on without learning from it again.
    """

    event_time: str = f"{PREFIX}event_time"
    label: str = f"{PREFIX}label"
    label_time: str | None = f"{PREFIX}label_time"
    event_id: str | None = f"{PREFIX}request_id"
    store: str | None = None
    model: str | None = None
    label_horizon: str = "7d"
    negative_after: str | None = None
    feedback_types: tuple[str, ...] = ()
    every: str = "10s"
    history: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "feedback_types", tuple(self.feedback_types))
        if not self.store:
            raise ConfigError(
                "data.store is not set: name the store whose predictions are logged, data.store=DIR, or let the job go "
                "on in that very store, store.root=DIR"
            )
        for name in ("label_horizon", "every"):
            parse_duration(getattr(self, name))
        if self.negative_after is not None:
            parse_duration(self.negative_after)
            if self.task != "binary":
                raise ConfigError(f"data.negative_after is for data.task=binary, not for {self.task}: set it to null")
        if self.history is None and not str(self.event_time).startswith(PREFIX):
            raise ConfigError(
                f"data.event_time={self.event_time} names a column of data.history, which is not set: name its folder, "
                "or leave data.event_time out"
            )

    @property
    def path(self) -> str:
        """Where the joined files are."""
        return self.join.storage.uri(self.join.folder)

    @cached_property
    def columns(self) -> Columns:
        named = {f.name: getattr(self, f.name) for f in dataclasses.fields(Columns)}
        roles = {self.event_time, self.label, self.label_time, self.event_id}
        kept = (name for name in SERVED if name not in roles)
        return Columns(**{**named, "exclude": tuple(dict.fromkeys([*self.exclude, *kept]))})

    @cached_property
    def join(self) -> FeedbackJoin:
        settings = JoinSettings(
            horizon_us=_us(self.negative_after or self.label_horizon),
            model=self.model,
            negatives=self.negative_after is not None,
            types=self.feedback_types,
            numeric=self.task != "multiclass" and self.positive is None,
            binary=self.task == "binary" and self.positive is None,
            event_time=self.event_time,
            label=self.label,
            label_time=self.label_time,
            event_id=self.event_id,
        )
        return FeedbackJoin(Storage(str(self.store)), f"{JOINED}/{digest_json(to_json(settings))[:12]}", settings)

    def learned_by(self, schema: Schema) -> FeedbackSource:
        """The source for going on from a version that learned from `schema`: what it reads and no request has is null,
        what it took for a category or a text is one, and the time is a feature where it was. Raises `ConfigError` for
        another task."""
        of = schema.columns
        if of.task != self.task:
            raise ConfigError(f"data.task={self.task}, but what was served was made for {of.task}: set it to that")
        features = tuple(f for f in schema.features if f.name not in (HOUR, WEEKDAY))
        texts = {f.name for f in features if f.kind == "text"} - {*self.categorical}
        named = {f.name for f in features if f.kind == "categorical"} - {*self.text}
        source = dataclasses.replace(
            self,
            categorical=tuple(sorted({*self.categorical, *named})),
            text=tuple(sorted({*self.text, *texts})),
            time_features=len(features) < len(schema.features),
            text_buckets=of.text_buckets,
            max_tokens=of.max_tokens,
            max_categories=of.max_categories,
        )
        source.__dict__["_learned"] = features
        return source

    def prepare(self) -> None:
        """Take in what has been logged so far."""
        self._look()

    def files(self) -> list[str]:
        """Files of the join, after those of `history`. Raises `DataError` when there are none."""
        state = self._look()
        past = self._history.files() if self._history else []
        if both := sorted({*past} & {*state.files}):
            raise DataError(f"data.history={self.history}: {both[0]} is what a file of the join is called: rename it")
        if not past and not state.files:
            seen = {name: state.counts.get(name, 0) for name in ("predictions", "labels")}
            raise NothingJoinedError(
                f"data.store={self.store}: of {seen['predictions']} logged prediction(s) none has one of the "
                f"{seen['labels']} label(s): serve with serve.log.rate above 0 and send labels to /feedback, or set "
                "data.history=DIR to begin with"
            )
        return [*past, *state.files]

    def schema(self, name: str) -> pa.Schema:
        source, file = self._of(name)
        schema = source.schema(file)
        for column in SERVED:  # a file of history has none of them, and they must be there to be left out
            if column not in schema.names:
                schema = schema.append(pa.field(column, pa.null()))
        for feature in self._learned:
            if feature.name not in schema.names:
                schema = schema.append(pa.field(feature.name, feature.type))
        return schema

    def read(
        self, name: str, columns: list[str] | None = None, parts: Container[int] | None = None
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        source, file = self._of(name)
        return source.read(file, columns, parts)

    def locate(self, name: str) -> tuple[fs.FileSystem, str]:
        source, file = self._of(name)
        return source.locate(file)

    @cached_property
    def _joined(self) -> ParquetSource:
        return ParquetSource(path=self.path, event_time=self.event_time, label=self.label)

    @cached_property
    def _history(self) -> ParquetSource | None:
        if self.history is None:
            return None
        return ParquetSource(path=self.history, event_time=self.event_time, label=self.label)

    def _of(self, name: str) -> tuple[ParquetSource, str]:
        if self._history is None:
            return self._joined, name
        state = self._last.get("state") or self._look()
        assert isinstance(state, JoinState)
        return (self._joined if name in state.files else self._history), name

    @cached_property
    def _learned(self) -> tuple[Feature, ...]:
        return ()

    @cached_property
    def _last(self) -> dict[str, object]:
        return {}

    def _look(self) -> JoinState:
        """The join, brought up to date unless that was done within `every`."""
        last = self._last
        if "at" in last and time.monotonic() - float(str(last["at"])) < parse_duration(self.every).total_seconds():
            state = last["state"]
            assert isinstance(state, JoinState)
            return state
        state = self.join.step()
        last.update(at=time.monotonic(), state=state)
        if state.counts.get("lost"):
            log.warning("%d pending row(s) were deleted from the log before their label came", state.counts["lost"])
        return state


def _us(duration: str) -> int:
    return round(parse_duration(duration).total_seconds() * 1e6)
