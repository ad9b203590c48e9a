"""By the amount of data: rows, or growth."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cltrain.errors import ConfigError
from cltrain.records import Decision
from cltrain.trigger.base import Evidence


@dataclass(frozen=True, kw_only=True)
class Volume:
    """Fire when `rows` labelled rows are fresh, or when they make the data grow by `growth` (0.05 is 5 %) since the
    last training. Labels count, not events."""

    rows: int | None = None
    growth: float | None = None

    def __post_init__(self) -> None:
        if (self.rows is None) == (self.growth is None):
            raise ConfigError("trigger=volume needs trigger.rows=N or trigger.growth=SHARE, one of them")
        for name, least in (("rows", self.rows), ("growth", self.growth)):
            if least is not None and not least > 0:
                raise ConfigError(f"trigger.{name} must be above 0, not {least}")

    def decide(self, evidence: Evidence) -> Decision:
        needed = self.rows if self.rows is not None else max(1, math.ceil((self.growth or 0.0) * evidence.trained_rows))
        seen = {"fresh_rows": evidence.fresh_rows, "trained_rows": evidence.trained_rows, "needed": needed}
        reason = f"{evidence.fresh_rows} fresh labelled rows of {needed} needed"
        return Decision(fire=evidence.fresh_rows >= needed, reason=reason, evidence=seen)
