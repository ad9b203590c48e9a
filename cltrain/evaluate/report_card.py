"""The report card: challenger and champion on the same rows, of the new window and of the past."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa

from cltrain.errors import ConfigError
from cltrain.evaluate.bootstrap import paired_interval
from cltrain.evaluate.metrics import MetricSums, Scored, total
from cltrain.records import EVENT_ID, Comparison, Json, ReportCard
from cltrain.seeding import derive_seed, hash_ids, numpy_generator


class Scorer(Protocol):
    """A version that can be asked; see `cltrain.train.predictor.Predictor`."""

    @property
    def task(self) -> str: ...

    @property
    def size_bytes(self) -> int: ...

    def score(self, table: pa.Table) -> Scored: ...


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """level: of each one-sided bound of an interval. resamples: of the bootstrap. min_rows: if the new window has fewer
    held-out rows, those of the windows before it join, the latest first, up to `recent_windows` in all: what is older
    says little of a world that moves. window_rows: of the new window at most;
    past_rows: of each past window at most, for retention and the transfer matrix. past_windows: at most, evenly
    spread. Where there are more rows a uniform sample is taken, the same one each time, so that rounds can be
    compared."""

    level: float = 0.05
    resamples: int = 1_000
    min_rows: int = 400
    recent_windows: int = 4
    window_rows: int = 50_000
    past_rows: int = 2_000
    past_windows: int = 60

    def __post_init__(self) -> None:
        if not 0 < self.level < 0.5:
            raise ConfigError(f"evaluate.level must be between 0 and 0.5, not {self.level}")
        for name, least in (
            ("resamples", 100),
            ("min_rows", 0),
            ("recent_windows", 1),
            ("window_rows", 1),
            ("past_rows", 1),
            ("past_windows", 1),
        ):
            if getattr(self, name) < least:
                raise ConfigError(f"evaluate.{name} must be {least} or more, not {getattr(self, name)}")

    def card(
        self, challenger: Scorer, champion: Scorer | None, held_out: Sequence[tuple[int, pa.Table]], seed: int
    ) -> ReportCard:
        """Weigh the challenger. `held_out` has the number and the held-out rows, which no version has ever trained
        on, of each window up to the new one, which is last. Where no window has a row, the comparison has 0 rows."""
        windows = self._spread([(index, rows) for index, rows in held_out if rows.num_rows])
        if not windows:
            nothing = Comparison(
                name="window", rows=0, challenger={"rows": 0}, champion={"rows": 0} if champion else None
            )
            return ReportCard(comparisons=(nothing,), transfer=(), latency_ms=0.0, size_bytes=challenger.size_bytes)
        past = [(index, _sample(rows, self.past_rows)) for index, rows in windows[:-1]]
        new = (windows[-1][0], _sample(windows[-1][1], self.window_rows))
        scores = {index: challenger.score(rows) for index, rows in (*past, new)}
        rivals = {index: champion.score(rows) for index, rows in (*past, new)} if champion else {}
        recent = self._recent([*past, new])
        generator = numpy_generator(seed, "bootstrap")
        comparisons = [self._compare("window", recent, scores, rivals, generator)]
        if past:
            comparisons.append(self._compare("past", [index for index, _ in past], scores, rivals, generator))
        return ReportCard(
            comparisons=tuple(comparisons),
            transfer=tuple(_transfer(index, scored) for index, scored in scores.items()),
            latency_ms=_latency_ms(challenger, new[1]),
            size_bytes=challenger.size_bytes,
        )

    def _spread(self, windows: list[tuple[int, pa.Table]]) -> list[tuple[int, pa.Table]]:
        if len(windows) <= self.past_windows + 1:
            return windows
        chosen = np.unique(np.linspace(0, len(windows) - 1, self.past_windows + 1).round().astype(int))
        return [windows[i] for i in chosen]

    def _recent(self, windows: list[tuple[int, pa.Table]]) -> list[int]:
        rows, chosen = 0, []
        for index, table in reversed(windows[-self.recent_windows :]):
            chosen.append(index)
            rows += table.num_rows
            if rows >= self.min_rows:
                break
        return chosen

    def _compare(
        self,
        name: str,
        indices: list[int],
        scores: dict[int, Scored],
        rivals: dict[int, Scored],
        generator: np.random.Generator,
    ) -> Comparison:
        sums = _total(scores, indices)
        if not rivals:
            return Comparison(name=name, rows=int(sums.sums[0]), challenger=sums.values())
        ours = np.concatenate([scores[i].losses for i in indices])
        theirs = np.concatenate([rivals[i].losses for i in indices])
        mean, low, high = paired_interval(ours, theirs, generator, self.level, self.resamples)
        return Comparison(
            name=name,
            rows=len(ours),
            challenger=sums.values(),
            champion=_total(rivals, indices).values(),
            difference=mean,
            low=low,
            high=high,
        )


def _sample(table: pa.Table, count: int) -> pa.Table:
    """A uniform sample of `count` rows, in their order, by a hash of the id."""
    if table.num_rows <= count:
        return table
    order = np.argsort(hash_ids(table.column(EVENT_ID), salt=derive_seed(0, "evaluation")), kind="stable")[:count]
    return table.take(pa.array(np.sort(order)))


def _total(scores: dict[int, Scored], indices: list[int]) -> MetricSums:
    return total(scores[indices[0]].task, [MetricSums.of(scores[i]) for i in indices])


def _transfer(index: int, scored: Scored) -> Json:
    return {"window": index, "rows": len(scored.losses), "loss": float(scored.losses.mean())}


def _latency_ms(scorer: Scorer, rows: pa.Table) -> float:
    """Median time of scoring one row, of five."""
    one = rows.slice(0, 1)
    times = []
    for _ in range(5):
        started = time.perf_counter()
        scorer.score(one)
        times.append(time.perf_counter() - started)
    return sorted(times)[2] * 1e3
