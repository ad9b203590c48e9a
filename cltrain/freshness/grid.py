"""Which trainings a measurement of freshness takes: periods of history, and trials over them. A training is evaluated
on all later windows that need it, so that there is one for each training window and seed, not one for each cell."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from cltrain.clock import from_us, parse_duration, to_us
from cltrain.errors import ConfigError
from cltrain.freshness.settings import Freshness
from cltrain.records import Json

log = logging.getLogger(__name__)

MIN_WINDOWS = 4
MIN_EVAL_ROWS = 30
THIN = 0.5  # of the median: a training window with a smaller share of rows would make all others as small


@dataclass(frozen=True)
class Period:
    """Number, bounds and rows of one period. visible: when the labels of its rows that may be trained on became known,
    sorted, (N,) int64 microseconds. rows: all that are labelled some day."""

    index: int
    start: datetime
    end: datetime
    digest: str
    rows: int
    visible: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Plan:
    """`windows` are evaluated at all `ages`; `trials` are in the order in which they should run. rows: of a training,
    by its length; update_rows: of an update; naive: stateless trainings of the curve, were there one for each cell."""

    ages: tuple[int, ...]
    windows: tuple[int, ...]
    rows: Mapping[int, int]
    update_rows: int
    skipped: tuple[int, ...]
    trials: tuple[Json, ...]
    naive: int


def periods_of(
    settings: Freshness, first: datetime, end: datetime, slack: float
) -> list[tuple[int, datetime, datetime]]:
    """Number and bounds of the periods that can matter: the latest that have ended, aligned like `window=duration`.
    Raises `ConfigError` when there are too few."""
    every = parse_duration(settings.every)
    if settings.until is not None:
        until = datetime.fromisoformat(settings.until)
        end, slack = min(end, until if until.tzinfo else until.replace(tzinfo=UTC)), 0.0
    unit = min(to_us(from_us(0) + every), 86_400_000_000)
    start = from_us(to_us(first) // unit * unit)
    count = max(0, int((end - start + slack * every) // every))
    wanted = settings.windows + max(settings.ages) + max(settings.lengths)
    found = [(i, start + i * every, start + (i + 1) * every) for i in range(max(0, count - wanted), count)]
    needed = max(settings.lengths[0] + 1, *settings.lengths) + MIN_WINDOWS
    if len(found) < needed:
        raise ConfigError(
            f"the events from {first} to {end} fill {len(found)} periods of freshness.every={settings.every}, and "
            f"{needed} are needed: make freshness.every or freshness.lengths smaller"
        )
    return found


def planned(settings: Freshness, periods: Sequence[Period], max_rows: int | None, modes: Sequence[str]) -> Plan:
    """The trials over consecutive `periods`, of `modes`; max_rows: of a training. Raises `ConfigError` when history is
    too short or too thin."""
    by_index = {p.index: p for p in periods}
    first, last, length = periods[0].index, periods[-1].index, settings.lengths[0]
    ages = _ages(settings, len(periods))
    counts = {n: {b: _available(by_index, b, n) for b in range(first + n, last + 1)} for n in settings.lengths}
    enough = {n: THIN * float(np.median(list(of.values()))) for n, of in counts.items()}
    begin = first + max(length + ages[-1], *settings.lengths)
    windows = []
    for e in range(begin, last + 1):
        trained = [(length, e - age) for age in ages] + [(n, e) for n in settings.lengths]
        thick = all(counts[n][b] >= max(1.0, enough[n]) for n, b in trained)
        if thick and by_index[e].rows >= MIN_EVAL_ROWS:
            windows.append(e)
    skipped = tuple(sorted(set(range(begin, last + 1)) - set(windows)))
    if len(windows) < MIN_WINDOWS:
        raise ConfigError(
            f"only {len(windows)} periods of freshness.every={settings.every} can be evaluated, since too few rows "
            "have labels in the others: make freshness.every larger, or freshness.ages younger"
        )
    windows = windows[-settings.windows :]
    used = {length: {e - age for e in windows for age in ages}} | {n: set(windows) for n in settings.lengths[1:]}
    rows = {n: min(min(counts[n][b] for b in used[n]), max_rows or counts[n][windows[0]]) for n in used}
    updated = range(first + length + 1, windows[-1] + 1)
    fresh = {b: _fresh(by_index, b, length) for b in updated}
    thick_updates = [n for n in fresh.values() if n >= THIN * float(np.median(list(fresh.values())))]
    update_rows = min(min(thick_updates), max_rows or max(thick_updates))
    make = _Trials(by_index, ages, windows, length, update_rows)
    trials: list[Json] = []
    for seed in range(settings.seeds):
        if "stateful" in modes:
            trials += make.chain(seed, first + length, rows[length], windows[-1])
        if "stateless" in modes:
            trials += [make.stateless(seed, b, length, rows[length]) for b in _spread(windows, ages)]
        if seed == 0:
            for shorter, longer in _neighbours(settings.lengths):
                recipes = {(longer, rows[longer]), (longer, min(rows[shorter], rows[longer])), (shorter, rows[shorter])}
                if "stateless" in modes:
                    recipes -= {(length, rows[length])}
                for n, count in sorted(recipes):
                    trials += [make.stateless(0, e, n, count, only=e) for e in windows]
    unique = {make.key(trial): trial for trial in trials}
    return Plan(
        ages=ages,
        windows=tuple(windows),
        rows=rows,
        update_rows=update_rows,
        skipped=skipped,
        trials=tuple(trial | {"trial": number} for number, trial in enumerate(unique.values())),
        naive=settings.seeds * len(windows) * len(ages) if "stateless" in modes else 0,
    )


def _ages(settings: Freshness, periods: int) -> tuple[int, ...]:
    """Those that leave windows to be evaluated on: as many as a quarter of history, and `MIN_WINDOWS`."""
    left = max(MIN_WINDOWS, periods // 4) if settings.windows >= periods // 4 else settings.windows
    ages = [a for a in settings.ages if periods - max(settings.lengths[0] + a, *settings.lengths) >= left]
    if len(ages) < 2:
        raise ConfigError(
            f"history has {periods} periods of freshness.every={settings.every}, which is too few for a training on "
            f"{settings.lengths[0]} of them and an age of {settings.ages[1]}: make freshness.every or "
            "freshness.lengths smaller"
        )
    if len(ages) < len(settings.ages):
        log.warning("history is too short for ages above %d: they are left out", ages[-1])
    return tuple(ages)


def _available(periods: Mapping[int, Period], end: int, length: int) -> int:
    """Rows that a training at the start of period `end` may have of the `length` periods before it."""
    now = to_us(periods[end].start)
    return sum(int(np.searchsorted(periods[i].visible, now)) for i in range(end - length, end))


def _fresh(periods: Mapping[int, Period], end: int, length: int) -> int:
    """Rows whose labels became known in the period before `end`."""
    since, now = to_us(periods[end - 1].start), to_us(periods[end].start)
    inside = [periods[i].visible for i in range(max(end - 1 - length, min(periods)), end)]
    return sum(int(np.searchsorted(v, now) - np.searchsorted(v, since)) for v in inside)


def _neighbours(lengths: Sequence[int]) -> list[tuple[int, int]]:
    return list(itertools.pairwise(sorted(lengths)))


def _spread(windows: Sequence[int], ages: Sequence[int]) -> list[int]:
    """All ends of training windows, in such an order that early on the windows which can be evaluated at all ages are
    spread over history."""
    bits = max(1, (len(windows) - 1).bit_length())
    order = sorted(range(len(windows)), key=lambda i: int(f"{i:0{bits}b}"[::-1], 2))
    return list(dict.fromkeys(windows[i] - age for i in order for age in ages))


@dataclass(frozen=True)
class _Trials:
    periods: Mapping[int, Period]
    ages: Sequence[int]
    windows: Sequence[int]
    length: int
    update_rows: int

    def key(self, trial: Json) -> tuple[object, ...]:
        return tuple(trial[name] for name in ("mode", "seed", "boundary", "length", "rows"))

    def stateless(self, seed: int, end: int, length: int, rows: int, only: int | None = None) -> Json:
        inside = range(end - length, end)
        return {
            "mode": "stateless",
            "role": "curve" if only is None else "side",
            "seed": seed,
            "boundary": end,
            "length": length,
            "rows": rows,
            "since": None,
            "until": to_us(self.periods[end].start),
            "train": [self.periods[i].digest for i in inside],
            "evals": self._evals(end) if only is None else {str(only): self.periods[only].digest},
            "parent": None,
        }

    def chain(self, seed: int, start: int, rows: int, last: int) -> list[Json]:
        """A training from scratch, and an update of it each period. Labels that are late by more than the length of a
        training are not used."""
        links = [self.stateless(seed, start, self.length, rows) | {"mode": "stateful"}]
        for end in range(start + 1, last + 1):
            inside = range(max(end - 1 - self.length, min(self.periods)), end)
            links.append(
                {
                    **links[-1],
                    "boundary": end,
                    "length": 1,
                    "rows": self.update_rows,
                    "since": to_us(self.periods[end - 1].start),
                    "until": to_us(self.periods[end].start),
                    "train": [self.periods[i].digest for i in inside],
                    "evals": self._evals(end),
                    "parent": end - 1,
                }
            )
        return links

    def _evals(self, end: int) -> dict[str, str]:
        found = [end + age for age in self.ages]
        return {str(e): self.periods[e].digest for e in found if e in self.windows}
