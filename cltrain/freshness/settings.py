"""What is measured of the value of freshness, and what things cost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, get_args, get_type_hints

from cltrain.clock import parse_duration
from cltrain.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Prices:
    """What an update costs and what quality is worth, in one currency.

    per_row: of a row visited in training. per_device_hour: of what a trial trains on. value_per_unit: of a loss that is
    lower by 1 for one period of `freshness.every`: the loss of a row times how many such rows a period has.
    watts: drawn by what a trial trains on while it trains. grams_per_kwh: of CO2.
    """

    per_row: float = 0.0
    per_device_hour: float = 0.0
    value_per_unit: float | None = None
    watts: float = 100.0
    grams_per_kwh: float | None = None

    def __post_init__(self) -> None:
        for name in ("per_row", "per_device_hour", "value_per_unit", "watts", "grams_per_kwh"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ConfigError(f"freshness.prices.{name} must be 0 or more, not {value}")
        if self.value_per_unit is None and (self.per_row or self.per_device_hour):
            raise ConfigError(
                "freshness.prices.value_per_unit is not set: say what a loss lower by 1 is worth in one period, in the "
                "currency of per_row and per_device_hour, or leave all three out"
            )

    @property
    def known(self) -> bool:
        return self.value_per_unit is not None

    def of_training(self, rows: float, seconds: float) -> float:
        return rows * self.per_row + seconds / 3600 * self.per_device_hour

    def kwh(self, seconds: float) -> float:
        return seconds * self.watts / 3.6e6


@dataclass(frozen=True, kw_only=True)
class Freshness:
    """every: a period. ages: how many periods before the evaluation window training ends; 0 is right before it.
    lengths: periods of rows in a training; the first is that of the curve, the others tell recency from amount.
    windows: evaluation windows at most, the latest ones; until: those that end by then (ISO 8601), null: all.
    mode: stateless trains on the rows of each window from scratch; stateful is a chain that is updated each period.
    eval_rows: of each evaluation window, at most. precision: stop once every interval of the curve reaches at most so
    far to either side, in units of the loss. level: of all intervals, two-sided. slice_by: a feature for whose values
    there is a curve each, at most max_slices. cadences: to choose from; null: the usual ones that history can tell of.
    """

    every: str = "7d"
    ages: tuple[int, ...] = (0, 1, 2, 3, 4, 6, 8, 12, 16)
    lengths: tuple[int, ...] = (4, 1)
    seeds: int = 3
    mode: Literal["stateless", "stateful", "both"] = "both"
    windows: int = 60
    until: str | None = None
    eval_rows: int = 5_000
    precision: float | None = None
    level: float = 0.95
    draws: int = 2_000
    slice_by: str | None = None
    max_slices: int = 8
    cadences: tuple[str, ...] | None = None
    prices: Prices = Prices()
    cpus_per_trial: float = 1.0
    gpus_per_trial: float = 0.0

    def __post_init__(self) -> None:
        parse_duration(self.every)
        for cadence in self.cadences or ():
            parse_duration(cadence)
        if self.ages[:1] != (0,) or list(self.ages) != sorted(set(self.ages)) or len(self.ages) < 2:
            raise ConfigError(f"freshness.ages must be 0 and then larger whole numbers, not {list(self.ages)}")
        if not self.lengths or min(self.lengths) < 1 or len(set(self.lengths)) < len(self.lengths):
            raise ConfigError(f"freshness.lengths must be different whole numbers from 1 on, not {list(self.lengths)}")
        for name, least in (("seeds", 1), ("windows", 4), ("eval_rows", 1), ("draws", 200), ("max_slices", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"freshness.{name} must be {least} or more, not {getattr(self, name)}")
        if self.mode not in get_args(get_type_hints(type(self))["mode"]):
            raise ConfigError(f"freshness.mode must be stateless, stateful or both, not {self.mode!r}")
        if self.precision is not None and not 0 < self.precision < math.inf:
            raise ConfigError(f"freshness.precision must be above 0, or null to run all trials, not {self.precision}")
        if not 0.5 <= self.level < 1:
            raise ConfigError(f"freshness.level must be from 0.5 to below 1, such as 0.95, not {self.level}")
        if not 0 < self.cpus_per_trial < math.inf or not 0 <= self.gpus_per_trial < math.inf:
            raise ConfigError("freshness.cpus_per_trial must be above 0 and freshness.gpus_per_trial 0 or more")
        if self.until is not None:
            try:
                datetime.fromisoformat(self.until)
            except ValueError as error:
                raise ConfigError(
                    f"freshness.until={self.until} is not an ISO 8601 date or time, such as 2013-10-01"
                ) from error

    @property
    def modes(self) -> tuple[str, ...]:
        return ("stateless", "stateful") if self.mode == "both" else (self.mode,)
