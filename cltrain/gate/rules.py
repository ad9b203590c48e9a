"""Rules put together, and the gate that is made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from cltrain.errors import ConfigError
from cltrain.gate.compare import NO_ROWS
from cltrain.gate.evidence import NO_CHAMPION, Outcome, Rule, joined, without_champion
from cltrain.records import ReportCard, Verdict

Tie = Literal["refuse", "promote"]
SAME = "it answers exactly like the champion"


@dataclass(frozen=True, kw_only=True)
class AllOf:
    """Every rule passes."""

    rules: Mapping[str, Rule]

    def __post_init__(self) -> None:
        require_rules(self.rules)

    def check(self, card: ReportCard) -> Outcome:
        outcomes = _named(self.rules, card)
        return joined(outcomes, all(o.passed for o in outcomes))


@dataclass(frozen=True, kw_only=True)
class AtLeast:
    """At least `count` of the rules that apply pass; all of them where fewer apply."""

    count: int
    rules: Mapping[str, Rule]

    def __post_init__(self) -> None:
        require_rules(self.rules)
        if not 1 <= self.count <= len(self.rules):
            raise ConfigError(f"gate.count must be between 1 and the number of rules, {len(self.rules)}")

    def check(self, card: ReportCard) -> Outcome:
        outcomes = _named(self.rules, card)
        applying = [o for o in outcomes if o.applies]
        passed = sum(o.passed for o in applying)
        told = joined(outcomes, passed >= min(self.count, len(applying)))
        return Outcome(passed=told.passed, reason=f"at least {self.count} of ({told.reason})", applies=bool(applying))


@dataclass(frozen=True, kw_only=True)
class AnyOf:
    """One rule passes of those that apply."""

    rules: Mapping[str, Rule]

    def __post_init__(self) -> None:
        require_rules(self.rules)

    def check(self, card: ReportCard) -> Outcome:
        told = AtLeast(count=1, rules=self.rules).check(card)
        return Outcome(
            passed=told.passed, reason=told.reason.replace("at least 1 of", "one of", 1), applies=told.applies
        )


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The gate of your own rules, each with a name: a challenger is accepted when every rule passes. The verdict tells
    what each one found. A rule whose evidence is not on the card refuses; one that has nothing to hold the challenger
    against, such as a champion, says so and lets it through. tie: what becomes of a challenger that answers exactly
    like the champion."""

    rules: Mapping[str, Rule]
    tie: Tie = "refuse"

    def __post_init__(self) -> None:
        require_rules(self.rules)
        require_tie(self.tie)

    def judge(self, card: ReportCard) -> Verdict:
        return judge(card, self.rules, self.tie)


def judge(card: ReportCard, rules: Mapping[str, Rule], tie: Tie = "refuse") -> Verdict:
    """Hold every rule against the card. The score, lower is better, ranks challengers of one round: the difference on
    the new window, since the past is a bound and not an aim. A card that compares no rows with a champion is refused.
    """
    compared = [c for c in card.comparisons if c.champion is not None]
    if any(not c.rows for c in compared):
        return Verdict(accepted=False, reasons=(NO_ROWS,))
    score = compared[0].difference if compared else None
    if compared and tie == "refuse" and all(c.difference == c.low == c.high == 0 for c in compared):
        return Verdict(accepted=False, reasons=(SAME,), score=score)
    outcomes = {name: rule.check(card) for name, rule in rules.items()}
    accepted = all(o.passed for o in outcomes.values())
    reasons = [f"{name}: {o.reason}" if o.passed else f"{name}: refused, {o.reason}" for name, o in outcomes.items()]
    if without_champion(card):
        reasons = [r for r, o in zip(reasons, outcomes.values(), strict=True) if o.applies]
        reasons = [*reasons, NO_CHAMPION] if accepted else reasons
    return Verdict(accepted=accepted, reasons=tuple(reasons), score=score)


def choose(cards: Sequence[ReportCard], verdicts: Sequence[Verdict]) -> int | None:
    """The place of the best of those that pass: with the lowest score, then the smallest, then the first; None if none
    does. Each challenger had its own chance to pass wrongly: of K that are all worse by the margin one is promoted no
    more often than K times the level."""
    passed = [i for i, verdict in enumerate(verdicts) if verdict.accepted]
    return min(passed, key=lambda i: (verdicts[i].score or 0.0, cards[i].size_bytes, i), default=None)


def require_rules(rules: Mapping[str, Rule]) -> None:
    if not rules:
        raise ConfigError("gate.rules must have one rule or more, each with a name: rules.loss._target_=…")
    for name, rule in rules.items():
        if not callable(getattr(rule, "check", None)):
            raise ConfigError(f"gate.rules.{name} must be settings with a _target_ that names a rule, not {rule!r}")


def require_tie(tie: str) -> None:
    if tie not in ("refuse", "promote"):
        raise ConfigError(f"gate.tie must be refuse or promote, not {tie!r}")


def _named(rules: Mapping[str, Rule], card: ReportCard) -> list[Outcome]:
    found = {name: rule.check(card) for name, rule in rules.items()}
    return [Outcome(passed=o.passed, reason=f"{name}: {o.reason}", applies=o.applies) for name, o in found.items()]
