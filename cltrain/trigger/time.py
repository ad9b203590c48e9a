"""By the clock: at intervals."""

from __future__ import annotations

from dataclasses import dataclass

from cltrain.clock import parse_duration
from cltrain.errors import ConfigError
from cltrain.records import Decision
from cltrain.trigger.base import Evidence


@dataclass(frozen=True, kw_only=True)
class Time:
    """Fire when `every` has passed since the last update; with None, whenever a window ends. Ticks that were missed
    count as one."""

    every: str | None = None

    def __post_init__(self) -> None:
        if self.every is not None:
            try:
                parse_duration(self.every)
            except ConfigError as error:
                raise ConfigError(f"trigger.every: {error}") from error

    def decide(self, evidence: Evidence) -> Decision:
        passed = evidence.now - evidence.last_update
        seen = {"passed_s": passed.total_seconds(), "every": self.every}
        if self.every is None:
            return Decision(fire=True, reason="a window ended", evidence=seen)
        if passed >= parse_duration(self.every):
            return Decision(
                fire=True, reason=f"{passed} since the last update, trigger.every={self.every}", evidence=seen
            )
        return Decision(
            fire=False, reason=f"only {passed} since the last update, trigger.every={self.every}", evidence=seen
        )
