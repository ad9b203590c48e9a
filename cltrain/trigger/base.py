"""What a trigger is shown and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from cltrain.records import Decision


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """now: end of the window. last_update: end of the window of the last update that fired, whatever became of it.
    fresh_rows: labelled rows that the champion has not had; trained_rows: those that it and its ancestors had."""

    now: datetime
    last_update: datetime
    fresh_rows: int
    trained_rows: int


class Trigger(Protocol):
    """A pure function of the evidence: the same evidence gives the same decision, also after a restart."""

    def decide(self, evidence: Evidence) -> Decision: ...
