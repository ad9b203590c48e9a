"""Which strategy is tried next, and what became of those that were; and what of that is kept."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cltrain.backtest.searcher import Searcher
from cltrain.backtest.statistics import pareto_front
from cltrain.backtest.strategy import Strategy
from cltrain.errors import ConfigError
from cltrain.records import Json
from cltrain.storage import Storage, digest_json

ATTEMPTS = 30  # points asked for in a row that were all tried before
LOST: Json = {"ranked": None, "all": None, "periods": None, "points": [], "stopped": None, "seconds": None}


@dataclass(frozen=True)
class Kept:
    """Results of trials in the store, by the `work` that they share and the strategy, so that nothing is tried twice.
    One that was given up counts only against the same bars and `stop_margin`."""

    storage: Storage
    work: Json
    stop_margin: float | None = None

    def find(self, strategy: Strategy, whole: bool, bars: Sequence[Json]) -> Json | None:
        name = self._name(strategy)
        if not self.storage.exists(name):
            return None
        found = self.storage.read_json(name)
        met = found.pop("bars")
        if found["stopped"]:
            return found if met == self._met(bars) and not whole else None
        return found if found["all"] or found["error"] or not whole else None

    def keep(self, strategy: Strategy, result: Json, bars: Sequence[Json]) -> None:
        self.storage.write_json(self._name(strategy), result | {"bars": self._met(bars)})

    def _met(self, bars: Sequence[Json]) -> str:
        return digest_json([self.stop_margin, list(bars)])

    def _name(self, strategy: Strategy) -> str:
        return f"backtests/trials/{digest_json([self.work, strategy.settings])[:32]}.json"


@dataclass(kw_only=True)
class Trials:
    """Says which trial comes next; the same strategies and results give the same trials, however many run at once and
    whichever ends first.

    fixed: strategies that are always tried, of which those in `whole` run over all of history. Then come `at(number,
    point)` of the searcher's points, in generations: one begins when all trials before it have ended, but for the
    baseline, which takes long and teaches nothing. At last the one that `choose` chose runs over all of history.
    """

    fixed: Sequence[Strategy]
    whole: Sequence[str]
    at: Callable[[int, Json], Strategy]
    searcher: Searcher | None
    objectives: Sequence[str]
    count: int
    generation: int
    kept: Kept
    choose: Callable[[list[Json]], int | None]
    baseline: str
    told: Callable[[Json, int], None] = lambda line, total: None
    over: bool = False
    strategies: list[Strategy] = field(default_factory=list)
    results: dict[int, Json] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._bars: dict[int, list[Json]] = {}
        self._queue: list[Strategy] = list(self.fixed)
        self._asked: dict[int, Json] = {}
        self._untold: list[int] = []
        self._current_bars: list[Json] = []
        self._seen = {digest_json(s.settings) for s in self.fixed}
        self._confirmed: int | None = None

    @property
    def total(self) -> int:
        """Trials at most, that of the choice among them."""
        return max(self.count, len(self.fixed)) + 1

    def begin(self) -> Json | None:
        while not self.over:
            if not self._queue and not self._next_generation():
                return None
            if self.over:
                return None
            strategy = self._queue.pop(0)
            number = len(self.strategies)
            self.strategies.append(strategy)
            whole = strategy.name in self.whole or self._confirmed is not None
            self._bars[number] = [] if whole else self._current_bars
            found = self.kept.find(strategy, whole, self._bars[number])
            if found is None:
                plan = {"settings": strategy.composed.settings, "whole": whole, "bars": self._bars[number]}
                return {"trial": number, "plan": json.dumps(plan)}
            self._take(number, found)
        return None

    def end(self, number: int, result: Mapping[str, Any] | None) -> Json:
        found = dict(result or LOST | {"error": "its process was lost"})
        if result is not None:
            self.kept.keep(self.strategies[number], found, self._bars[number])
        return self._take(number, found)

    def table(self) -> list[Json]:
        """A line for each strategy that has ended, in the order in which they were begun."""
        return [self._line(number) for number in sorted(self.results) if number != self._confirmed]

    def _next_generation(self) -> bool:
        """Fill the queue; False if nothing can begin before a trial has ended."""
        waiting = [i for i in range(len(self.strategies)) if i not in self.results]
        if any(self.strategies[i].name != self.baseline for i in waiting):
            return False
        self._tell()
        room = min(self.generation, self.count - len(self.strategies))
        if self.searcher is not None and room > 0:
            self._current_bars = self._front()
            while len(self._queue) < room and (made := self._ask(len(self.strategies) + len(self._queue))) is not None:
                self._queue.append(made)
            if self._queue:
                return True
            self.searcher = None
        if waiting:
            return False
        chosen = None if self._confirmed is not None else self.choose(self.table())
        if chosen is None or self.results[chosen]["all"]:
            self.over = True
            return True
        self._confirmed = len(self.strategies)
        self._queue = [self.strategies[chosen]]
        return True

    def _ask(self, number: int) -> Strategy | None:
        assert self.searcher is not None
        for _ in range(ATTEMPTS):
            point = self.searcher.ask()
            try:
                strategy = self.at(number, point)
            except ConfigError:
                self.searcher.tell(point, None)
                continue
            digest = digest_json(strategy.settings)
            if digest not in self._seen:
                self._seen.add(digest)
                self._asked[number] = point
                self._untold.append(number)
                return strategy
            self.searcher.tell(point, None)
        return None

    def _tell(self) -> None:
        for number in self._untold:
            assert self.searcher is not None
            self.searcher.tell(self._asked[number], objectives_of(self.results[number], self.objectives))
        self._untold = []

    def _front(self) -> list[Json]:
        """Curves of the trials that none of those before beats in loss, row visits and updates."""
        ended = [
            (i, r)
            for i, r in sorted(self.results.items())
            if r["ranked"] and r["points"] and self.strategies[i].name != self.baseline
        ]
        if not ended:
            return []
        values = np.array([objectives_of(r, ("quality", "rows", "updates")) for _, r in ended], np.float64)
        front = pareto_front(values)
        return [
            {"name": self.strategies[i].name, "points": r["points"]}
            for (i, r), stays in zip(ended, front, strict=True)
            if stays
        ]

    def _take(self, number: int, result: Json) -> Json:
        self.results[number] = result
        if number == self._confirmed:
            chosen = next(i for i, s in enumerate(self.strategies) if s is self.strategies[number])
            if result["ranked"]:
                self.results[chosen] = result
            self._confirmed, self.over = number, True
        line = self._line(number)
        self.told(line, self.total)
        return line

    def _line(self, number: int) -> Json:
        strategy = self.strategies[number]
        about = {"trial": number, "name": strategy.name, "changes": strategy.changes, "kind": strategy.kind}
        return about | {"overrides": list(strategy.overrides), "point": strategy.point} | self.results[number]


def objectives_of(result: Mapping[str, Any], names: Sequence[str]) -> list[float] | None:
    """What a searcher minimises: mean loss, retention, the logarithm of row visits, updates. None without a result."""
    ranked = result["ranked"]
    if not ranked:
        return None
    retention = ranked["retention"].get("log_loss", ranked["retention"].get("rmse"))
    found = {
        "quality": ranked["loss"],
        "retention": retention,
        "rows": math.log(max(1, ranked["rows"])),
        "updates": float(ranked["updates"]),
    }
    values = [found[name] for name in names]
    return values if all(value is not None and math.isfinite(value) for value in values) else None
