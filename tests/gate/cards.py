"""Cards made by hand."""

from __future__ import annotations

from typing import Any

from cltrain.records import Comparison, Finding, ReportCard


def comparison(
    difference: float = 0.0,
    half: float = 0.001,
    rows: int = 1_000,
    name: str = "window",
    loss: float = 0.5,
    **more: Any,
) -> Comparison:
    """An interval of plus and minus `half`; of a further metric `auc`, which is 0.8 and higher by `difference`."""
    interval = {"difference": difference, "low": difference - half, "high": difference + half}
    given: dict[str, Any] = {
        "challenger": {"log_loss": loss + difference, "auc": 0.8 + difference, "ece": 0.03},
        "champion": {"log_loss": loss, "auc": 0.8, "ece": 0.02},
        "metrics": {"auc": interval},
        "flips": {"negative": 0.01, "positive": 0.02},
    }
    return Comparison(name=name, rows=rows, **interval, **(given | more))


def card(*comparisons: Comparison, **more: Any) -> ReportCard:
    given: dict[str, Any] = {
        "latency_ms": 30.0, "size_bytes": 1_000, "champion_latency_ms": 20.0, "champion_size_bytes": 800
    }  # fmt: skip
    return ReportCard(comparisons=comparisons or (comparison(),), transfer=(), **(given | more))


def finding(passed: bool = True, kind: str = "invariance", **more: Any) -> Finding:
    given = {"name": "the device", "rows": 100, "failed": 0 if passed else 10, "bound": 0.05}
    return Finding(kind=kind, passed=passed, **(given | more))


FIRST = card(
    Comparison(name="window", rows=1_000, challenger={"log_loss": 0.5, "auc": 0.8, "ece": 0.02}),
    champion_latency_ms=None,
    champion_size_bytes=None,
)
