"""What a backtest tries, how it judges, and what compute costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args, get_type_hints

from cltrain.clock import parse_duration
from cltrain.errors import ConfigError

OBJECTIVES = ("quality", "retention", "rows", "updates")


@dataclass(frozen=True, kw_only=True)
class Backtest:
    """strategies: names of files of conf/strategy or conf/experiment, or name -> overrides of its own, such as
    {daily: ['window.every=1d']}; where they are given, nothing is searched unless there is a `space` too. space: dotted
    key or group of conf -> list of choices, or range {low, high, log}; None: the usual one, less what the settings do
    not have. trials: strategies at most, the present settings and the `baseline` (a strategy or an experiment) among
    them. searcher: tpe and nsga2 are Optuna's with several `objectives`, sobol covers the space evenly. generation:
    points that are asked for at once, so that what is tried does not depend on which trial ends first.

    period: of the curves, such as 7d (None: that of the windows). confirm_share: of the periods, the newest, on which
    nothing is chosen. no_worse_than, margin: the choice is the strategy of the fewest row visits of which the interval
    says that its loss is at most this share above that of current or baseline. budget: a share of the row visits of
    that reference; then the choice is the strategy of the least loss that keeps to it. stop_margin: a strategy is given
    up once an earlier one that costs no more is better by this share of its loss on the same windows; None: never.
    threshold: of the metric, beyond which time counts as bad (None: a tenth worse than the present settings).
    iterations: try one by one the models and cadences of the space, to say where compute is better spent. level: of
    each one-sided bound; resamples of the bootstrap, in blocks of `block` periods (None: by their number).

    watts: of the device that trains, with all that it needs; grams_per_kwh: of CO2. cache_gib: of decoded rows that
    the trials of one process share."""

    strategies: Sequence[str] | Mapping[str, Sequence[str]] | None = None
    space: Mapping[str, object] | None = None
    baseline: str = "all_history"
    trials: int = 32
    searcher: Literal["tpe", "nsga2", "sobol"] = "tpe"
    objectives: tuple[str, ...] = OBJECTIVES
    generation: int = 6
    period: str | None = None
    confirm_share: float = 0.34
    no_worse_than: Literal["current", "baseline"] = "current"
    margin: float = 0.005
    budget: float | None = None
    stop_margin: float | None = 0.05
    threshold: float | None = None
    iterations: bool = True
    level: float = 0.05
    resamples: int = 2_000
    block: int | None = None
    watts: float = 65.0
    grams_per_kwh: float = 400.0
    cpus_per_trial: float = 1.0
    gpus_per_trial: float = 0.0
    cache_gib: float = 8.0

    def __post_init__(self) -> None:
        for name in ("searcher", "no_worse_than"):
            choices = get_args(get_type_hints(type(self))[name])
            if getattr(self, name) not in choices:
                raise ConfigError(f"backtest.{name} must be one of {', '.join(choices)}, not {getattr(self, name)!r}")
        if not self.objectives or set(self.objectives) - set(OBJECTIVES):
            raise ConfigError(
                f"backtest.objectives must be some of {', '.join(OBJECTIVES)}, not {list(self.objectives)}"
            )
        for name, low in (("trials", 2), ("generation", 1), ("resamples", 100)):
            if getattr(self, name) < low:
                raise ConfigError(f"backtest.{name} must be {low} or more, not {getattr(self, name)}")
        if self.block is not None and self.block < 1:
            raise ConfigError(f"backtest.block must be 1 period or more, or null, not {self.block}")
        for name in ("confirm_share", "level"):
            if not 0 < getattr(self, name) < 0.9:
                raise ConfigError(f"backtest.{name} must be between 0 and 0.9, not {getattr(self, name)}")
        for name in ("margin", "gpus_per_trial", "watts", "grams_per_kwh"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"backtest.{name} must be 0 or more, not {getattr(self, name)}")
        for name in ("cpus_per_trial", "cache_gib"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"backtest.{name} must be above 0, not {getattr(self, name)}")
        if self.stop_margin is not None and not 0 < self.stop_margin < math.inf:
            raise ConfigError(
                f"backtest.stop_margin must be a share above 0, or null to stop nothing, not {self.stop_margin}"
            )
        if self.budget is not None and not 0 < self.budget < math.inf:
            raise ConfigError(
                f"backtest.budget must be a share of row visits above 0, or null for the cheapest, not {self.budget}"
            )
        if self.period is not None:
            try:
                parse_duration(self.period)
            except ConfigError as error:
                raise ConfigError(f"backtest.period: {error}") from error

    @property
    def named(self) -> dict[str, list[str] | None]:
        """Overrides by name; None: those of the file of that name."""
        if isinstance(self.strategies, Mapping):
            return {name: list(overrides) for name, overrides in self.strategies.items()}
        return dict.fromkeys(self.strategies or ())
