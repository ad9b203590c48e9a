"""Fresher data or another model: where the next unit of compute is better spent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cltrain.records import Json

KINDS = {"data": "fresher data, same model", "model": "another model, same data"}


@dataclass(frozen=True, kw_only=True)
class Iteration:
    """What a change of one kind brought against the present settings: `gain` in mean loss, above 0 is better, with its
    interval, for `extra` compute, in any one unit."""

    name: str
    kind: Literal["data", "model"]
    gain: float
    low: float
    high: float
    extra: float

    @property
    def rate(self) -> float:
        """Gain per unit of compute; infinite where it came for nothing."""
        return self.gain / self.extra if self.extra > 0 else float("inf")


def advise(iterations: Sequence[Iteration]) -> Json:
    """The best change of each kind, by gain per unit of compute among those whose gain is not noise, and which kind to
    go on with: `spend_on` is data, model, or None where the data cannot tell.

    >>> bigger = Iteration(name="bigger", kind="model", gain=0.01, low=0.005, high=0.015, extra=100.0)
    >>> daily = Iteration(name="daily", kind="data", gain=0.01, low=0.005, high=0.015, extra=1.0)
    >>> advise([bigger, daily])["spend_on"]
    'data'
    """
    best = {
        kind: max((i for i in iterations if i.kind == kind and i.low > 0), key=lambda i: (i.rate, i.gain), default=None)
        for kind in KINDS
    }
    tried = {kind: sum(i.kind == kind for i in iterations) for kind in KINDS}
    found = {kind: made for kind, made in best.items() if made is not None}
    spend_on = max(found, key=lambda kind: (found[kind].rate, found[kind].gain)) if found else None
    return {
        "spend_on": spend_on,
        "said": _sentence(tried, found, spend_on),
        "best": {kind: None if made is None else made.name for kind, made in best.items()},
        "iterations": [
            {
                "name": i.name,
                "kind": i.kind,
                "gain": i.gain,
                "low": i.low,
                "high": i.high,
                "extra_device_seconds": i.extra,
                "gain_per_device_hour": i.gain / i.extra * 3600 if i.extra > 0 else None,
            }
            for i in iterations
        ],
    }


def _sentence(tried: dict[str, int], found: dict[str, Iteration], spend_on: str | None) -> str:
    if not any(tried.values()):
        return "Neither another model nor another cadence was tried."
    if spend_on is None:
        return "No change of model or of cadence brought a gain that is more than noise: spend nothing on either."
    ours = found[spend_on]
    cost = f"for {ours.extra:.3g} device-seconds more" if ours.extra > 0 else "for no more compute"
    said = f"Spend on {KINDS[spend_on]}: {ours.name} brought {ours.gain:.4g} {cost}"
    other = next((kind for kind in KINDS if kind != spend_on), "")
    if theirs := found.get(other):
        cost = f"for {theirs.extra:.3g}" if theirs.extra > 0 else "for no more compute"
        return f"{said}, {theirs.name} {theirs.gain:.4g} {cost}."
    return f"{said}; {KINDS[other]} {'brought no gain beyond noise' if tried[other] else 'was not tried'}."
