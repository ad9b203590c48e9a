"""Triggers made of triggers: any of them, all of them, or so many of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cltrain.errors import ConfigError
from cltrain.records import Decision, to_json
from cltrain.trigger.base import Evidence, Trigger


@dataclass(frozen=True, kw_only=True)
class Any:
    """Fire when one of `parts` fires."""

    parts: Mapping[str, Trigger]

    def __post_init__(self) -> None:
        if not self.parts:
            raise ConfigError("trigger.parts is empty: name one trigger or more")

    @property
    def needed(self) -> int:
        return 1

    def decide(self, evidence: Evidence) -> Decision:
        """The evidence of the decision is those of the parts by name."""
        decisions = {name: part.decide(evidence) for name, part in self.parts.items()}
        fired = sum(decision.fire for decision in decisions.values())
        reason = "; ".join(f"{name}: {decision.reason}" for name, decision in decisions.items())
        return Decision(fire=fired >= self.needed, reason=reason, evidence=to_json(decisions))


@dataclass(frozen=True, kw_only=True)
class All(Any):
    """Fire when every one of `parts` fires."""

    @property
    def needed(self) -> int:
        return len(self.parts)


@dataclass(frozen=True, kw_only=True)
class AtLeast(Any):
    """Fire when `count` of `parts` fire at the same time."""

    count: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.count <= len(self.parts):
            raise ConfigError(
                f"trigger.count must be between 1 and the {len(self.parts)} trigger.parts, not {self.count}"
            )

    @property
    def needed(self) -> int:
        return self.count
