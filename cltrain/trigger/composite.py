"""Triggers made of triggers: any of them, all of them, or so many of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cltrain.errors import ConfigError
from cltrain.records import Decision, to_json
from cltrain.trigger.base import Evidence, Trigger


@dataclass(frozen=True, kw_only=True)
class AtLeast:
    """Fire when `count` of `parts` fire at the same time."""

    parts: Mapping[str, Trigger]
    count: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.count <= len(self.parts):
            raise ConfigError(f"trigger.count must be between 1 and the {len(self.parts)} trigger.parts, not {self.count}")

    def decide(self, evidence: Evidence) -> Decision:
        decisions = {name: part.decide(evidence) for name, part in self.parts.items()}
        fired = [name for name, decision in decisions.items() if decision.fire]
        reason = "; ".join(f"{name}: {decision.reason}" for name, decision in decisions.items())
        return Decision(fire=len(fired) >= self.count, reason=reason, evidence=to_json(decisions))


@dataclass(frozen=True, kw_only=True)
class Any(AtLeast):
    """Fire when one of `parts` fires."""

    count: int = field(default=1, init=False)


@dataclass(frozen=True, kw_only=True)
class All(AtLeast):
    """Fire when every one of `parts` fires."""

    count: int = field(default=1, init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "count", len(self.parts))
        super().__post_init__()
