"""Only when somebody asks: `python -m jobs.update` or `python -m jobs.recalibrate`."""

from __future__ import annotations

from dataclasses import dataclass

from cltrain.records import Decision
from cltrain.trigger.base import Evidence


@dataclass(frozen=True, kw_only=True)
class Manual:
    def decide(self, evidence: Evidence) -> Decision:
        return Decision(fire=False, reason="updates are made by hand (trigger=manual)")
