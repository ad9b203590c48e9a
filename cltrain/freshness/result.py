"""From what trials gave to the matrix, the curves, the half-life, what comes of recency and what of amount, and the
cadence to choose."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cltrain.freshness.cadence import Curve, advised, choices, duration
from cltrain.freshness.curve import block_length, bounds, fitted, half_life, isotonic, resampled
from cltrain.freshness.grid import MIN_WINDOWS, Plan
from cltrain.freshness.settings import Freshness
from cltrain.records import Json
from cltrain.seeding import numpy_generator

PRECISION_DRAWS = 400

Cells = Mapping[tuple[int, int], Sequence[Json]]


@dataclass(frozen=True)
class Panel:
    """Mean loss over seeds of evaluation windows (N,), in the order of time, at each age: (N, K)."""

    windows: tuple[int, ...]
    ages: tuple[int, ...]
    losses: np.ndarray

    @property
    def lost(self) -> np.ndarray:
        """Above the loss of the same window at the youngest age, (N, K)."""
        return self.losses - self.losses[:, :1]


def cells_of(trials: Sequence[Json], results: Mapping[int, Json], wanted: Callable[[Json], bool]) -> Cells:
    """What the trials that are wanted gave for (end of the training window, evaluation window), one for each seed."""
    found: dict[tuple[int, int], list[Json]] = defaultdict(list)
    for trial in trials:
        if trial["trial"] in results and wanted(trial):
            for window, cell in results[trial["trial"]]["cells"].items():
                found[trial["boundary"], int(window)].append(cell)
    return found


def panel(cells: Cells, plan: Plan, loss: Callable[[Json], float | None] = lambda cell: cell["loss"]) -> Panel:
    """The evaluation windows that have a loss at every age."""
    windows, rows = [], []
    for e in plan.windows:
        of = [[v for c in cells.get((e - age, e), ()) if (v := loss(c)) is not None] for age in plan.ages]
        if all(of):
            windows.append(e)
            rows.append([statistics.fmean(values) for values in of])
    return Panel(tuple(windows), plan.ages, np.array(rows).reshape(-1, len(plan.ages)))


def measured(settings: Freshness, found: Panel, length: int, seed: int, draws: int | None = None) -> Curve:
    """The curve of a panel of `MIN_WINDOWS` windows or more; `length`: of a training, in periods."""
    block = block_length(len(found.windows), max(found.ages) + length)
    lost = found.lost.mean(axis=0)
    drawn = resampled(found.lost, block, draws or settings.draws, numpy_generator(seed, "freshness", "bootstrap"))
    return Curve(
        every=settings.every,
        ages=found.ages,
        lost=lost,
        draws=drawn,
        decay=fitted(lost, drawn, found.ages),
        level=settings.level,
    )


def enough(settings: Freshness, plan: Plan, trials: Sequence[Json], seed: int) -> Callable[[Mapping[int, Json]], bool]:
    """Whether every interval of every curve is as narrow as `freshness.precision` asks."""

    def narrow(results: Mapping[int, Json]) -> bool:
        if settings.precision is None:
            return False
        for mode in sorted({trial["mode"] for trial in trials if trial["role"] == "curve"}):
            cells = cells_of(trials, results, _curve_of(mode))
            found = panel(cells, plan)
            if len(found.windows) < min(len(plan.windows), max(2 * MIN_WINDOWS, len(plan.windows) // 4)):
                return False
            low, high = bounds(
                measured(settings, found, settings.lengths[0], seed, PRECISION_DRAWS).draws, settings.level
            )
            if float((high - low).max()) > 2 * settings.precision:
                return False
        return True

    return narrow


def _curve_of(mode: str) -> Callable[[Json], bool]:
    return lambda trial: trial["mode"] == mode and trial["role"] == "curve"


def of_mode(
    settings: Freshness, plan: Plan, trials: Sequence[Json], results: Mapping[int, Json], mode: str, seed: int
) -> Json:
    """All that is known of one mode: matrix, curve, half-life, slices and cadence. Empty when too little is."""
    cells = cells_of(trials, results, _curve_of(mode))
    found = panel(cells, plan)
    length = settings.lengths[0]
    if len(found.windows) < MIN_WINDOWS:
        return {}
    curve = measured(settings, found, length, seed)
    done = [results[t["trial"]] for t in trials if t["trial"] in results and _curve_of(mode)(t) and t["parent"]]
    done = done or [results[t["trial"]] for t in trials if t["trial"] in results and _curve_of(mode)(t)]
    rows = statistics.fmean(r["rows"] for r in done)
    seconds = statistics.fmean(r["seconds"] for r in done)
    life = half_life(curve.lost, curve.decay, curve.draws, curve.ages, settings.level)
    names = sorted({name for of in cells.values() for cell in of for name in cell.get("slices", {})})
    cadences = choices(settings.every, plan.ages, settings.cadences)
    cost = settings.prices.of_training(rows, seconds)
    advice = advised(curve, cadences, cost=cost, value=settings.prices.value_per_unit)
    kwh = settings.prices.kwh(seconds)
    for line in advice["table"]:
        line |= _energy(settings, kwh * line["trainings_per_period"], "_per_period")
    return {
        "windows": len(found.windows),
        "loss": float(found.losses[:, 0].mean()),
        "curve": points(curve, len(found.windows)),
        "half_life": life.periods,
        "half_life_interval": {
            **dataclasses.asdict(life),
            "duration": life.periods and duration(life.periods, settings.every),
        },
        "slices": [s for name in names if (s := _slice(settings, plan, cells, name, length, seed))],
        "training": {"rows": rows, "device_seconds": seconds, "cost": cost, **_energy(settings, kwh)},
        "recommended_every": advice["recommended_every"],
        "cadence": advice["table"],
        "advice": advice["advice"],
        "matrix": [
            {
                "trained_until": b,
                "window": e,
                "age": e - b,
                "loss": statistics.fmean(c["loss"] for c in of),
                "seeds": len(of),
            }
            for (b, e), of in sorted(cells.items())
        ],
    }


def points(curve: Curve, windows: int) -> list[Json]:
    low, high = bounds(curve.draws, curve.level)
    spread = np.maximum(curve.draws.std(axis=0), 1e-12)
    smooth = isotonic(curve.lost, 1 / spread**2)
    return [
        {"age": age, "loss_delta": float(curve.lost[i]), "low": float(low[i]), "high": float(high[i]), "n": windows,
         "isotonic": float(smooth[i]), "fitted": curve.decay.plateau * (1 - 2.0 ** (-age / curve.decay.half_life))}
        for i, age in enumerate(curve.ages)
    ]  # fmt: skip


def _slice(settings: Freshness, plan: Plan, cells: Cells, name: str, length: int, seed: int) -> Json | None:
    def loss(cell: Json) -> float | None:
        found = cell["slices"].get(name)
        return None if found is None else found[1]

    found = panel(cells, plan, loss)
    if len(found.windows) < MIN_WINDOWS:
        return None
    curve = measured(settings, found, length, seed)
    life = half_life(curve.lost, curve.decay, curve.draws, curve.ages, settings.level)
    last = [cell["slices"][name][0] for e in found.windows for cell in cells[e, e][:1]]
    return {
        "slice": name, "rows": sum(last), "curve": points(curve, len(found.windows)), "half_life": life.periods,
        "half_life_interval": dataclasses.asdict(life),
    }  # fmt: skip


def recency_or_amount(
    settings: Freshness, plan: Plan, trials: Sequence[Json], results: Mapping[int, Json], seed: int
) -> list[Json]:
    """What longer training windows bring, for each two neighbours of `freshness.lengths`, at age 0: `amount` is what
    more rows of the same periods bring, `recency` what as many rows of newer periods would; positive is better.
    `longer` is amount less recency, what the longer window brings in all."""
    lines = []
    for shorter, longer in itertools.pairwise(sorted(settings.lengths)):
        few, many = min(plan.rows[shorter], plan.rows[longer]), plan.rows[longer]
        series = [
            _at_age_0(plan, trials, results, *recipe) for recipe in ((longer, many), (longer, few), (shorter, few))
        ]
        windows = [e for e in plan.windows if all(e in s for s in series)]
        if len(windows) < MIN_WINDOWS:
            continue
        all_of, some_of, newest = (np.array([s[e] for e in windows]) for s in series)
        gains = np.stack([some_of - all_of, some_of - newest, newest - all_of], axis=1)
        drawn = resampled(gains, block_length(len(windows), longer), settings.draws, numpy_generator(seed, "lengths"))
        low, high = bounds(drawn, settings.level)
        line: Json = {"shorter": shorter, "longer": longer, "rows_shorter": few, "rows_longer": many, "n": len(windows)}
        for i, name in enumerate(("amount", "recency", "longer")):
            line[name] = {"gain": float(gains[:, i].mean()), "low": float(low[i]), "high": float(high[i])}
        lines.append(line)
    return lines


def _at_age_0(
    plan: Plan, trials: Sequence[Json], results: Mapping[int, Json], length: int, rows: int
) -> dict[int, float]:
    def wanted(trial: Json) -> bool:
        same = trial["length"] == length and trial["rows"] == rows and trial["seed"] == 0
        return bool(trial["mode"] == "stateless" and same)

    cells = cells_of(trials, results, wanted)
    return {e: cells[e, e][0]["loss"] for e in plan.windows if (e, e) in cells}


def _energy(settings: Freshness, kwh: float, suffix: str = "") -> dict[str, Any]:
    grams = settings.prices.grams_per_kwh
    return {f"kwh{suffix}": kwh, **({} if grams is None else {f"grams_co2{suffix}": kwh * grams})}


def summary_of(
    settings: Freshness, plan: Plan, trials: Sequence[Json], results: Mapping[int, Json], metric: str, seed: int
) -> Json:
    """All of it. `curve`, `half_life` and `recommended_every` at the top are those of the first mode."""
    modes = list(dict.fromkeys(trial["mode"] for trial in trials if trial["role"] == "curve"))
    modes.sort(reverse=True)  # stateless, whose trainings are independent, first
    per_mode = {mode: of for mode in modes if (of := of_mode(settings, plan, trials, results, mode, seed))}
    first = next(iter(per_mode.values()), {})
    done = [trial for trial in trials if trial["trial"] in results]
    seconds = sum(results[t["trial"]]["seconds"] for t in done)
    of_curve = [t for t in trials if t["role"] == "curve" and t["mode"] == "stateless"]
    return {
        "metric": metric,
        "every": settings.every,
        "ages": list(plan.ages),
        "level": settings.level,
        **{
            name: first.get(name)
            for name in ("curve", "half_life", "half_life_interval", "recommended_every", "advice")
        },
        "modes": per_mode,
        "recency_or_amount": recency_or_amount(settings, plan, trials, results, seed),
        "rows": {"training": {str(n): rows for n, rows in plan.rows.items()}, "update": plan.update_rows},
        "windows": list(plan.windows),
        "skipped_windows": list(plan.skipped),
        "cost": {
            "trainings": len(done),
            "rows_trained": sum(results[t["trial"]]["rows"] for t in done),
            "train_seconds": seconds,
            **_energy(settings, settings.prices.kwh(seconds)),
            "stateless_trainings": len(of_curve),
            "stateless_trainings_naive": plan.naive,
            "naive_ratio": plan.naive / len(of_curve) if of_curve else None,
        },
    }
