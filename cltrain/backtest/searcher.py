"""Who says which point of a space is tried next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from cltrain.errors import ConfigError
from cltrain.records import Json
from cltrain.search import Values

DRAWS = 4_096


class Searcher(Protocol):
    """Asked for points, told what became of them; the same answers in the same order give the same points."""

    def ask(self) -> Json: ...
    def tell(self, point: Json, objectives: Sequence[float] | None) -> None:
        """`objectives`, lower is better; None if the point failed or was given up."""


class Sobol:
    """A scrambled Sobol sequence, which covers a space evenly and learns nothing."""

    def __init__(self, space: Mapping[str, Values], seed: int) -> None:
        self._space = space
        engine = torch.quasirandom.SobolEngine(len(space), scramble=True, seed=seed)
        self._points = iter(engine.draw(DRAWS, dtype=torch.float64).tolist())

    def ask(self) -> Json:
        shares = next(self._points)
        return {key: values.at(share) for (key, values), share in zip(self._space.items(), shares, strict=True)}

    def tell(self, point: Json, objectives: Sequence[float] | None) -> None:
        """Nothing is learned."""


class Optuna:
    """Optuna's multi-objective samplers: `tpe` (Ozaki et al. 2020) or `nsga2` (Deb et al. 2002). Several points may be
    asked for before the first is told."""

    def __init__(self, space: Mapping[str, Values], sampler: str, objectives: int, seed: int, startup: int) -> None:
        try:
            import optuna
        except ImportError as error:
            raise ConfigError(
                f"backtest.searcher={sampler} needs Optuna: pip install optuna, or set backtest.searcher=sobol"
            ) from error
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        made: Any
        if sampler == "tpe":
            made = optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup, constant_liar=True)
        else:
            made = optuna.samplers.NSGAIISampler(seed=seed, population_size=max(4, startup))
        self._study = optuna.create_study(directions=["minimize"] * objectives, sampler=made)
        self._space = space
        self._open: list[tuple[Json, Any]] = []
        self._failed = optuna.trial.TrialState.FAIL

    def ask(self) -> Json:
        trial = self._study.ask()
        point = {}
        for key, values in self._space.items():
            if values.choices:
                point[key] = values.choices[trial.suggest_categorical(key, range(len(values.choices)))]
            elif isinstance(values.low, int) and isinstance(values.high, int):
                point[key] = trial.suggest_int(key, values.low, values.high, log=values.log)
            else:
                point[key] = float(f"{trial.suggest_float(key, values.low, values.high, log=values.log):.3g}")
        self._open.append((point, trial))
        return point

    def tell(self, point: Json, objectives: Sequence[float] | None) -> None:
        place = next(i for i, (asked, _) in enumerate(self._open) if asked == point)
        _, trial = self._open.pop(place)
        if objectives is None:
            self._study.tell(trial, state=self._failed)
        else:
            self._study.tell(trial, list(objectives))


def make_searcher(space: Mapping[str, Values], kind: str, objectives: int, seed: int, trials: int) -> Searcher:
    if kind == "sobol":
        return Sobol(space, seed)
    return Optuna(space, kind, objectives, seed % 2**32, startup=max(4, trials // 3))
