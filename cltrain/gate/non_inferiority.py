"""Not worse than the champion by more than a margin, on new rows and on old ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from cltrain.errors import ConfigError
from cltrain.records import Comparison, ReportCard, Verdict


@dataclass(frozen=True, kw_only=True)
class NonInferiority:
    """Accept when, on each comparison, the upper bound of challenger minus champion is below a margin (a one-sided
    non-inferiority test at the level of the card's interval: a challenger that is worse by the margin is promoted
    no more often than that).

    margins: for each comparison, as a share of the champion's loss, and at least `floor` (nats, or that share of the
    squared error). That of the past is wide, since following a world that moves costs on the world that was: at 0.02
    a concept that turns is not followed at all (docs/experiments.md). With fewer than `min_rows` rows no bound is
    tight enough to say anything, so the difference itself is held against the margin, and the verdict says so. tie:
    what becomes of a challenger that answers exactly like the champion."""

    margins: Mapping[str, float] = field(default_factory=lambda: {"window": 0.02, "past": 0.1})
    floor: float = 0.002
    min_rows: int = 200
    tie: Literal["refuse", "promote"] = "refuse"

    def __post_init__(self) -> None:
        for name, share in {**{f"margins.{k}": v for k, v in self.margins.items()}, "floor": self.floor}.items():
            if not share >= 0:
                raise ConfigError(f"gate.{name} must be 0 or more, not {share}")
        if self.min_rows < 0:
            raise ConfigError(f"gate.min_rows must be 0 or more, not {self.min_rows}")
        if self.tie not in ("refuse", "promote"):
            raise ConfigError(f"gate.tie must be refuse or promote, not {self.tie!r}")

    def judge(self, card: ReportCard) -> Verdict:
        """The score, lower is better, ranks challengers of one round: the difference on the new window, since the
        past is a bound and not an aim. Without a champion everything is accepted; beside one, a card that compares no
        rows is refused."""
        compared = [c for c in card.comparisons if c.champion is not None]
        if not compared:
            return Verdict(accepted=True, reasons=("there is no champion yet",))
        if not all(c.rows for c in compared):
            return Verdict(accepted=False, reasons=("there is no held-out row to compare it on with the champion",))
        score = compared[0].difference
        if self.tie == "refuse" and all(c.difference == c.low == c.high == 0 for c in compared):
            return Verdict(accepted=False, reasons=("it answers exactly like the champion",), score=score)
        findings = [self._check(c) for c in compared]
        return Verdict(accepted=all(ok for ok, _ in findings), reasons=tuple(why for _, why in findings), score=score)

    def margin(self, c: Comparison) -> float:
        """By how much the mean loss may be higher: nats, or squared units of the label."""
        metrics = c.champion or {}
        if "squared_error" in metrics:
            return max(self.margins.get(c.name, 0.0), self.floor) * float(metrics["squared_error"])
        return max(self.margins.get(c.name, 0.0) * float(metrics["log_loss"]), self.floor)

    def _check(self, c: Comparison) -> tuple[bool, str]:
        assert c.difference is not None
        assert c.high is not None
        assert c.low is not None
        margin = self.margin(c)
        said = f"{c.name}: {c.difference:+.4g} [{c.low:+.4g}, {c.high:+.4g}] on {c.rows} rows, margin {margin:.4g}"
        if c.rows < self.min_rows:
            return c.difference <= margin, f"{said}; too few rows for an interval, so the difference decides"
        return c.high <= margin, said
