"""Durations, instants, and the two clocks: the one on the wall and the one in the data."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import ClassVar

from cltrain.errors import ConfigError

_UNITS = {"ms": 1e-3, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 604800}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def parse_duration(text: str) -> timedelta:
    """Read `7d`, `24h`, `30s`, `1h30m`, `500ms` or `2w`.

    >>> parse_duration("1h30m")
    datetime.timedelta(seconds=5400)
    """
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*(ms|min|s|m|h|d|w)", str(text))
    if not parts or "".join(n + u for n, u in parts) != str(text).replace(" ", ""):
        raise ConfigError(f"{text!r} is not a duration: write a number and a unit (s, m, h, d, w), such as 7d or 1h30m")
    try:
        span = timedelta(seconds=sum(float(number) * _UNITS[unit] for number, unit in parts))
    except OverflowError as error:
        raise ConfigError(f"{text!r}: a duration must be shorter than 2.7 million years") from error
    if span <= timedelta(0):
        raise ConfigError(f"{text!r}: a duration must be longer than nothing")
    return span


def to_us(instant: datetime) -> int:
    """Microseconds since 1970 UTC; exact, since a float of seconds is not."""
    return (instant - _EPOCH) // timedelta(microseconds=1)


def from_us(us: int) -> datetime:
    return _EPOCH + timedelta(microseconds=int(us))


@dataclass(frozen=True, kw_only=True)
class DataTime:
    """Time is where the data ends, so that the loop runs over history without waiting.

    slack: share of a window by which history may end before it: data up to a minute before midnight fills the day.
    """

    slack: float = 0.05
    waits: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.slack < 1:
            raise ConfigError(f"clock.slack must be a share of a window between 0 and 1, not {self.slack}")

    def now(self, data_end: datetime) -> datetime:
        return data_end

    def wait(self) -> bool:
        """Nothing more will come: False ends the loop."""
        return False


@dataclass(frozen=True, kw_only=True)
class WallClock:
    """Time is now; the loop waits `poll_s` seconds and looks for new files."""

    waits: ClassVar[bool] = True
    poll_s: float = 5.0
    slack: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        if self.poll_s <= 0:
            raise ConfigError(f"clock.poll_s must be above 0 seconds, not {self.poll_s}")

    def now(self, data_end: datetime) -> datetime:
        return datetime.now(UTC)

    def wait(self) -> bool:
        time.sleep(self.poll_s)
        return True
