"""The parts that a loop is made of, as the loop sees them. A part of your own has these methods and needs no base
class."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar, Protocol

import pyarrow as pa

from cltrain.data.event_log import EventLog
from cltrain.evaluate.sample import Scored
from cltrain.evaluate.spread import ScoreRequest
from cltrain.records import Challenger, ReportCard, RollOut, UpdateRequest, Verdict, Window
from cltrain.registry import Registry, Store

Alert = Callable[[str, str], None]  # of a title and a text


class Windows(Protocol):
    def cut(self, timeline: Timeline, after: Window | None) -> Iterator[Window]: ...


class Clock(Protocol):
    slack: float
    waits: bool

    def now(self, data_end: datetime) -> datetime: ...
    def wait(self) -> bool: ...


class Runner(Protocol):
    """Trains and scores: in this process, or on a warm group of `workers`."""

    @property
    def workers(self) -> int: ...

    def update(self, request: UpdateRequest) -> Challenger: ...
    def score(self, request: ScoreRequest) -> Mapping[int, Scored]: ...


class RollOutKind(Protocol):
    """How a version comes to traffic, such as `swap` or `canary`; what is behind the name is known to serving."""

    kind: ClassVar[str]


class Serving(Protocol):
    """Where versions answer. `traffic` replays events while its block runs, and then tells what it saw in `result`;
    `roll_out` brings a version to traffic and tells the outcome, which may still be open; `confirm` waits until every
    replica follows a swap."""

    needs_ray: bool

    def check(self, kind: Any = None) -> None: ...
    def start(self, store: Store, model: str, alert: Alert | None = None) -> None: ...
    def stop(self) -> None: ...

    def traffic(self, rows: pa.Table, seed: int) -> AbstractContextManager[Any]: ...
    def roll_out(self, registry: Registry, version: str, previous: str | None, kind: Any, reason: str) -> RollOut: ...
    def confirm(self, version: str, epoch: int) -> float | None: ...


class Gate(Protocol):
    """A pure function of the card."""

    def judge(self, card: ReportCard) -> Verdict: ...


@dataclass(frozen=True)
class Timeline:
    """What windows are cut from: the log, as far as the clock has come."""

    log: EventLog
    clock: Clock

    @property
    def slack(self) -> float:
        return self.clock.slack

    def first(self) -> datetime | None:
        return self.log.first()

    def nth_after(self, start: datetime, rows: int) -> datetime | None:
        return self.log.nth_after(start, rows, self.clock.now(self.log.end()))

    def now(self) -> datetime:
        return self.clock.now(self.log.end())
