"""The default gate: not worse than the champion by more than a margin, on new rows and on old ones, harmful to no
slice, on labels that are not noise, and not much slower."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cltrain.errors import ConfigError
from cltrain.gate.absolute import Latency, Passed
from cltrain.gate.compare import NotWorse, Unharmed
from cltrain.gate.evidence import Rule
from cltrain.gate.rules import Tie, judge, require_tie
from cltrain.records import ReportCard, Verdict


@dataclass(frozen=True, kw_only=True)
class NonInferiority:
    """Accept when, on each comparison, the upper bound of challenger minus champion is below a margin (a one-sided
    non-inferiority test at the level of the card's interval: a challenger that is worse by the margin is promoted
    no more often than that), and nothing else on the card speaks against it: no slice is shown to be worse than its
    margin, every test on the card is passed, and it is not many times slower.

    margins: for each comparison, as a share of the champion's loss, and at least `floor` (nats, or that share of the
    squared error). That of the past is wide, since following a world that moves costs on the world that was: at 0.02
    a concept that turns is not followed at all (docs/experiments.md). exchange: where it is certain that the new window
    gains, the past may lose so many times that gain; 0 makes the margin a bound that nothing moves. With fewer than
    `min_rows` rows no bound is tight enough to say anything, so the difference itself is held against the margin, and
    the verdict says so.
    slices: the margin of a slice; level: what they share, which is that of the card's intervals. max_latency: how many
    times as long as the champion it may take to answer one row, beyond 20 ms; null asks for nothing. tie: what becomes
    of a challenger that answers exactly like the champion."""

    margins: Mapping[str, float] = field(default_factory=lambda: {"window": 0.02, "past": 0.1, "golden": 0.1})
    floor: float = 0.002
    min_rows: int = 200
    exchange: float = 1.0
    slices: float = 0.1
    level: float = 0.05
    max_latency: float | None = 5.0
    tie: Tie = "refuse"

    def __post_init__(self) -> None:
        for name, share in {**{f"margins.{k}": v for k, v in self.margins.items()}, "floor": self.floor}.items():
            if not share >= 0:
                raise ConfigError(f"gate.{name} must be 0 or more, not {share}")
        if self.min_rows < 0:
            raise ConfigError(f"gate.min_rows must be 0 or more, not {self.min_rows}")
        for name in ("exchange", "slices"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"gate.{name} must be 0 or more, not {getattr(self, name)}")
        if not 0 < self.level < 0.5:
            raise ConfigError(f"gate.level must be between 0 and 0.5, not {self.level}")
        if self.max_latency is not None and not self.max_latency > 0:
            raise ConfigError(f"gate.max_latency must be above 0, or null, not {self.max_latency}")
        require_tie(self.tie)

    def judge(self, card: ReportCard) -> Verdict:
        """Without a champion everything is accepted that passed its tests; see `cltrain.gate.rules.judge`."""
        return judge(card, self.rules(card), self.tie)

    def rules(self, card: ReportCard) -> dict[str, Rule]:
        """The rules that a card of its comparisons is held against."""
        rules: dict[str, Rule] = {
            c.name: NotWorse(
                over=c.name,
                margin=self.margins.get(c.name, 0.0),
                floor=self.floor,
                min_rows=self.min_rows,
                exchange=self.exchange if c.name == "past" else 0.0,
            )
            for c in card.comparisons
        }
        if card.slices:
            rules["slices"] = Unharmed(margin=self.slices, floor=self.floor, level=self.level, required=False)
        if card.findings:
            rules["tests"] = Passed(required=False)
        if self.max_latency is not None and card.champion_latency_ms is not None:
            rules["latency"] = Latency(times=self.max_latency)
        return rules
