"""Not worse than the champion by more than a margin, on new rows and on old ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cltrain.errors import ConfigError
from cltrain.records import Comparison, ReportCard, Verdict


@dataclass(frozen=True, kw_only=True)
class NonInferiority:
    """Accept when, on each comparison, the upper bound of challenger minus champion is below a margin (a one-sided
    non-inferiority test at the level of the card's interval: a challenger that is worse by the margin is promoted
    no more often than that).

    margins: for each comparison, as a share of the champion's loss, and at least `floor` (nats, or that share of the
    squared error). With fewer than `min_rows` rows no bound is tight enough to say anything, so the difference itself is
    held against the margin, and the verdict says so. tie: what becomes of a challenger that answers exactly like the champion.
    """

    margins: Mapping[str, float] = field(default_factory=lambda: {"window": 0.02, "past": 0.02})
    floor: float = 0.002
    min_rows: int = 200
    tie: str = "refuse"

    def __post_init__(self) -> None:
        if any(m < 0 for m in self.margins.values()) or self.floor < 0:
            raise ConfigError("gate.margins and gate.floor must be 0 or more")
        if self.tie not in ("refuse", "promote"):
            raise ConfigError(f"gate.tie must be refuse or promote, not {self.tie!r}")

    def judge(self, card: ReportCard) -> Verdict:
        """The score, lower is better, ranks challengers of one round: the mean over comparisons of the difference."""
        compared = [c for c in card.comparisons if c.difference is not None]
        if not compared:
            return Verdict(accepted=True, reasons=("there is no champion yet",))
        score = sum(c.difference or 0.0 for c in compared) / len(compared)
        if self.tie == "refuse" and all(c.difference == c.low == c.high == 0 for c in compared):
            return Verdict(accepted=False, reasons=("it answers exactly like the champion",), score=score)
        findings = [self._check(c) for c in compared]
        return Verdict(accepted=all(ok for ok, _ in findings), reasons=tuple(why for _, why in findings), score=score)

    def _check(self, c: Comparison) -> tuple[bool, str]:
        assert c.difference is not None
        assert c.high is not None
        assert c.low is not None
        assert c.champion is not None
        loss = c.champion.get("log_loss", c.champion.get("squared_error")) or 0.0
        unit = loss if "squared_error" in c.champion else 1.0
        margin = max(self.margins.get(c.name, 0.0) * loss, self.floor * unit)
        said = f"{c.name}: {c.difference:+.4f} [{c.low:+.4f}, {c.high:+.4f}] on {c.rows} rows"
        if c.rows < self.min_rows:
            passed = c.difference <= margin
            return passed, f"{said}, margin {margin:.4f}; too few rows for an interval, so the difference decides"
        return c.high <= margin, f"{said}, margin {margin:.4f}"
