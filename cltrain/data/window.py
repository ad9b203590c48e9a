"""Windows of event time, by duration or by count."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from cltrain.clock import from_us, parse_duration, to_us
from cltrain.errors import ConfigError
from cltrain.records import Window


class Timeline(Protocol):
    """What cutting needs to know of an event log; `slack` is the share of a window by which it may end early."""

    @property
    def slack(self) -> float: ...

    def first(self) -> datetime | None: ...
    def nth_after(self, start: datetime, rows: int) -> datetime | None:
        """The microsecond after the last of the first `rows` events from `start` on, if there are so many."""

    def now(self) -> datetime: ...


@dataclass(frozen=True, kw_only=True)
class DurationWindows:
    """Windows of `every`, aligned to midnight UTC of the first event's day (or to multiples of a shorter `every`)
    unless `start` says otherwise; events before `start` are learned with the first window.

    The first window, number 0, spans `bootstrap` windows that hold events: the first champion learns from it. A lone
    event, decades before the others, is thus one of its rows and not the first of a thousand empty windows.
    """

    every: str = "7d"
    bootstrap: int = 4
    start: str | None = None

    def __post_init__(self) -> None:
        parse_duration(self.every)
        if self.bootstrap < 1:
            raise ConfigError(f"window.bootstrap must be 1 or more windows, not {self.bootstrap}")
        if self.start is not None:
            _instant(self.start)

    def cut(self, timeline: Timeline, after: Window | None) -> Iterator[Window]:
        """Windows after `after` that have ended by the timeline's now."""
        every = parse_duration(self.every)
        while True:
            if after is None:
                first = timeline.first()
                if first is None:
                    return
                start = _instant(self.start) if self.start else _floor(first, every)
                end = self._bootstrap(timeline, start, every)
                if end is None:
                    return
                window = Window(index=0, start=start, end=end)
            else:
                window = Window(index=after.index + 1, start=after.end, end=after.end + every)
            if not _has_ended(window.end, every, timeline):
                return
            yield window
            after = window

    def _bootstrap(self, timeline: Timeline, start: datetime, every: timedelta) -> datetime | None:
        """Where the first window ends: after as many windows with events as asked, but one such window is left for the
        first round where history is short. None before the first one has ended."""
        ends = [start]
        while len(ends) <= self.bootstrap + 1:
            past_event = timeline.nth_after(ends[-1], 1)
            if past_event is None:
                break
            end = start - (start - past_event) // every * every
            if not _has_ended(end, every, timeline):
                break
            ends.append(end)
        return None if len(ends) == 1 else ends[max(1, min(self.bootstrap, len(ends) - 2))]


@dataclass(frozen=True, kw_only=True)
class CountWindows:
    """Windows of `rows` events each; the first has `bootstrap` times as many. Events of one instant stay together,
    so a window may hold a few more."""

    rows: int = 10_000
    bootstrap: int = 4

    def __post_init__(self) -> None:
        if self.rows < 1 or self.bootstrap < 1:
            raise ConfigError(
                f"window.rows and window.bootstrap must be 1 or more, not {self.rows} and {self.bootstrap}"
            )

    def cut(self, timeline: Timeline, after: Window | None) -> Iterator[Window]:
        while True:
            start = timeline.first() if after is None else after.end
            if start is None:
                return
            rows = self.rows * (self.bootstrap if after is None else 1)
            end = timeline.nth_after(start, rows)
            if end is None:
                return
            window = Window(index=0 if after is None else after.index + 1, start=start, end=end)
            yield window
            after = window


def _has_ended(end: datetime, every: timedelta, timeline: Timeline) -> bool:
    return end - timeline.slack * every <= timeline.now()


def _floor(instant: datetime, every: timedelta) -> datetime:
    unit = min(to_us(from_us(0) + every), to_us(from_us(0) + timedelta(days=1)))
    return from_us(to_us(instant) // unit * unit)


def _instant(text: str) -> datetime:
    try:
        instant = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(f"window.start={text} is not an ISO 8601 date or time, such as 2013-01-01") from error
    return from_us(to_us(instant)) if instant.tzinfo else from_us(to_us(instant.replace(tzinfo=from_us(0).tzinfo)))
