"""Rules about the challenger itself: what is good enough, fast enough, small enough, and passed its tests."""

from __future__ import annotations

from dataclasses import dataclass

from cltrain.errors import ConfigError
from cltrain.gate.evidence import NO_CHAMPION, Outcome, absent, places
from cltrain.records import Finding, ReportCard


@dataclass(frozen=True, kw_only=True)
class Within:
    """A metric of the challenger lies between `least` and `most`, one of which is enough: what is good enough is said
    beforehand. It applies to the first version too. over: as in `NotWorse`."""

    metric: str
    least: float | None = None
    most: float | None = None
    over: str = "window"

    def __post_init__(self) -> None:
        if self.least is None and self.most is None:
            raise ConfigError(f"gate.least or gate.most must be a number: the bound that {self.metric} has")
        if self.least is not None and self.most is not None and self.least > self.most:
            raise ConfigError(f"gate.least must be below gate.most, not {self.least} and {self.most}")

    def check(self, card: ReportCard) -> Outcome:
        found = {c.name: c.challenger.get(self.metric) for c in places(card, self.over)}
        if not found or None in found.values():
            return absent(f"{self.metric} on {self.over}", "it is not defined there, or not named in evaluate.metrics")
        values = {name: float(value) for name, value in found.items() if value is not None}
        bad = {name: v for name, v in values.items() if not self._fits(v)}
        told = ", ".join(f"{name} {v:.4g}" for name, v in (bad or values).items())
        bounds = [f"at least {self.least:g}"] if self.least is not None else []
        bounds += [f"at most {self.most:g}"] if self.most is not None else []
        return Outcome(passed=not bad, reason=f"{self.metric} is {told}; it must be {' and '.join(bounds)}")

    def _fits(self, value: float) -> bool:
        least = self.least if self.least is not None else float("-inf")
        most = self.most if self.most is not None else float("inf")
        return least <= value <= most


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """The expected calibration error of a binary task is at most `most`, and at most `rise` above the champion's; null
    asks for nothing."""

    most: float | None = None
    rise: float | None = 0.02
    over: str = "window"

    def __post_init__(self) -> None:
        for name in ("most", "rise"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"gate.{name} must be between 0 and 1, or null, not {value}")
        if self.most is None and self.rise is None:
            raise ConfigError("gate.most or gate.rise must be a number: the bound that the calibration error has")

    def check(self, card: ReportCard) -> Outcome:
        found = places(card, self.over)
        if not found or any(c.challenger.get("ece") is None for c in found):
            return absent(f"calibration error on {self.over}", "it is measured of binary tasks")
        outcomes = [self._of(float(c.challenger["ece"]), (c.champion or {}).get("ece")) for c in found]
        failed = [reason for ok, reason in outcomes if not ok]
        return Outcome(passed=not failed, reason="; ".join(failed or [reason for _, reason in outcomes]))

    def _of(self, now: float, was: float | None) -> tuple[bool, str]:
        ok, said = True, f"calibration error {now:.4g}"
        if self.most is not None:
            ok, said = ok and now <= self.most, f"{said}, at most {self.most:g}"
        if self.rise is not None and was is not None:
            ok, said = ok and now <= was + self.rise, f"{said}, was {was:.4g} and may rise by {self.rise:g}"
        return ok, said


@dataclass(frozen=True, kw_only=True)
class Rows:
    """There are at least so many held-out rows (`over` as in `NotWorse`)."""

    least: int = 200
    over: str = "window"

    def __post_init__(self) -> None:
        if self.least < 1:
            raise ConfigError(f"gate.least must be 1 row or more, not {self.least}")

    def check(self, card: ReportCard) -> Outcome:
        found = {c.name: c.rows for c in places(card, self.over)}
        fewest = min(found, key=found.__getitem__, default=self.over)
        rows = found.get(fewest, 0)
        return Outcome(passed=rows >= self.least, reason=f"{rows} held-out rows on {fewest}, at least {self.least}")


@dataclass(frozen=True, kw_only=True)
class Latency:
    """To answer one row takes at most `most_ms`, and at most `times` as long as the champion takes; null asks for
    nothing. What takes less than `ignore_ms` is never too slow beside the champion: so little is noise of the clock."""

    most_ms: float | None = None
    times: float | None = 5.0
    ignore_ms: float = 20.0

    def __post_init__(self) -> None:
        for name in ("most_ms", "times"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"gate.{name} must be above 0, or null, not {value}")
        if self.most_ms is None and self.times is None:
            raise ConfigError("gate.most_ms or gate.times must be a number: the bound that the latency has")
        if not self.ignore_ms >= 0:
            raise ConfigError(f"gate.ignore_ms must be 0 or more, not {self.ignore_ms}")

    def check(self, card: ReportCard) -> Outcome:
        now, was = card.latency_ms, card.champion_latency_ms
        ok, said, applies = True, f"{now:.3g} ms a row", self.most_ms is not None
        if self.most_ms is not None:
            ok, said = now <= self.most_ms, f"{said}, at most {self.most_ms:g}"
        if self.times is not None and was is not None:
            ok = ok and now <= max(self.ignore_ms, self.times * was)
            said, applies = f"{said}, was {was:.3g} and may be {self.times:g} times that", True
        elif self.times is not None:
            said = f"{said}; {NO_CHAMPION}"
        return Outcome(passed=ok, reason=said, applies=applies)


@dataclass(frozen=True, kw_only=True)
class Size:
    """The weights take at most `most_bytes`, and at most `times` as much as the champion's; null asks for nothing."""

    most_bytes: int | None = None
    times: float | None = 2.0

    def __post_init__(self) -> None:
        for name in ("most_bytes", "times"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"gate.{name} must be above 0, or null, not {value}")
        if self.most_bytes is None and self.times is None:
            raise ConfigError("gate.most_bytes or gate.times must be a number: the bound that the size has")

    def check(self, card: ReportCard) -> Outcome:
        now, was = card.size_bytes, card.champion_size_bytes
        ok, said, applies = True, f"{now:,} bytes", self.most_bytes is not None
        if self.most_bytes is not None:
            ok, said = now <= self.most_bytes, f"{said}, at most {self.most_bytes:,}"
        if self.times is not None and was is not None:
            ok = ok and now <= self.times * was
            said, applies = f"{said}, was {was:,} and may be {self.times:g} times that", True
        elif self.times is not None:
            said = f"{said}; {NO_CHAMPION}"
        return Outcome(passed=ok, reason=said, applies=applies)


@dataclass(frozen=True, kw_only=True)
class Passed:
    """Every test on the card is passed: behaviour, safety, robustness, labels. kinds: only these, such as
    `[invariance, direction, functionality, safety]`; empty means all. required: refuse where there is none of a kind
    that is named, or none at all."""

    kinds: tuple[str, ...] = ()
    required: bool = True

    def check(self, card: ReportCard) -> Outcome:
        found = [f for f in card.findings if not self.kinds or f.kind in self.kinds]
        missing = [kind for kind in self.kinds if kind not in {f.kind for f in found}]
        if self.required and (missing or not found):
            return absent(
                f"test of {', '.join(missing) or 'any kind'}", "name a folder of tests in evaluate.checks.tests, "
                "or turn on evaluate.checks.robustness"
            )  # fmt: skip
        if not found:
            return Outcome(passed=True, reason="no test was asked for", applies=False)
        failed = [finding_text(f) for f in found if not f.passed]
        told = "; ".join(failed) if failed else f"all {len(found)} passed"
        return Outcome(passed=not failed, reason=told)


def finding_text(finding: Finding) -> str:
    """One finding in words."""
    share = finding.failed / finding.rows if finding.rows else 0.0
    if finding.kind == "labels":
        return (
            f"the labels of the window look like noise: its champion explains them best if {share:.0%} are drawn at "
            f"random, at most {finding.bound:.0%} here, and the challenger explains them no better"
        )
    was = "" if finding.champion_failed is None else f" (the champion on {finding.champion_failed})"
    return (
        f"{finding.kind} {finding.name} fails on {finding.failed} of {finding.rows} rows{was}, at most "
        f"{finding.bound:.1%}"
    )
