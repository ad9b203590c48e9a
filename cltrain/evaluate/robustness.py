"""What a model does when its inputs are worse than they were: missing, noisy, or categories that it never met."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cltrain.errors import ConfigError
from cltrain.evaluate.sample import Scored
from cltrain.evaluate.weighed import Scorer, Weighed, features_of, with_column
from cltrain.records import Finding

UNSEEN = "a category that never came"
Change = Callable[[pa.Table, str], pa.Table]


@dataclass(frozen=True, kw_only=True)
class Robustness:
    """Features are spoilt one at a time, and the mean loss may grow by a share of what answering with the labels' own
    frequencies (or mean) loses: `missing` when a feature is null, `noise` when a number has noise of `noise_std` of its
    standard deviation added, `unseen` when a category is one that never came. A challenger also passes where it grows
    no more than `slack` more than the champion's does. null leaves that out. bound: the share of features that may
    fail."""

    missing: float | None = 0.5
    noise: float | None = 0.1
    noise_std: float = 0.1
    unseen: float | None = 0.5
    slack: float = 0.05
    bound: float = 0.0

    def __post_init__(self) -> None:
        for name in ("missing", "noise", "unseen", "noise_std", "slack"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ConfigError(f"checks.robustness.{name} must be 0 or more, not {value}")
        if not 0 <= self.bound <= 1:
            raise ConfigError(f"checks.robustness.bound must be a share between 0 and 1, not {self.bound}")

    def find(self, weighed: Weighed, generator: np.random.Generator) -> tuple[Finding, ...]:
        """A finding for each way in which features are spoilt, whose `rows` are the features; the examples name those
        for which the loss grows most."""
        return tuple(
            self._finding(name, columns, most, change, weighed)
            for name, columns, most, change in self._ways(weighed.window, generator)
            if columns and most is not None
        )

    def _ways(
        self, table: pa.Table, generator: np.random.Generator
    ) -> Iterator[tuple[str, list[str], float | None, Change]]:
        names = features_of(table)
        numeric = [n for n in names if pa.types.is_floating(table.schema.field(n).type)]
        categorical = [n for n in names if pa.types.is_string(table.schema.field(n).type)]

        def noisy(rows: pa.Table, name: str) -> pa.Table:
            std = pc.stddev(rows.column(name)).as_py() or 0.0
            noise = pa.array(generator.normal(0, self.noise_std * std, rows.num_rows))
            return with_column(rows, name, pc.add(rows.column(name), noise))

        yield "a feature is missing", names, self.missing, null_in
        yield f"noise of {self.noise_std:g} standard deviations", numeric, self.noise, noisy
        yield "a category that never came", categorical, self.unseen, unseen_in

    def _finding(self, name: str, columns: list[str], most: float | None, change: Change, weighed: Weighed) -> Finding:
        assert most is not None
        spoilt = {column: change(weighed.window, column) for column in columns}
        ours = growth(weighed.challenger, weighed.ours, spoilt)
        theirs = growth(weighed.champion, weighed.theirs, spoilt) if weighed.champion and weighed.theirs else {}
        failed = [c for c in columns if not (ours[c] <= most or ours[c] <= theirs.get(c, -np.inf) + self.slack)]
        worst = sorted(columns, key=lambda c: -ours[c])[:3]
        return Finding(
            name=name,
            kind="robustness",
            rows=len(columns),
            failed=len(failed),
            bound=self.bound,
            passed=len(failed) <= self.bound * len(columns),
            champion_failed=sum(value > most for value in theirs.values()) if theirs else None,
            examples=tuple(
                {"feature": c, "growth": round(ours[c], 4)}
                | ({"champion_growth": round(theirs[c], 4)} if theirs else {})
                for c in worst
            ),
        )


def growth(scorer: Scorer, sound: Scored, spoilt: dict[str, pa.Table]) -> dict[str, float]:
    """By how much the mean loss grows on each spoilt table, as a share of what the labels' own frequencies lose."""
    base, unit = float(sound.losses.mean()), max(uninformed(sound), 1e-12)
    return {name: (float(scorer.score(table).losses.mean()) - base) / unit for name, table in spoilt.items()}


def uninformed(scored: Scored) -> float:
    """Mean loss of always answering with the frequencies of the labels (their entropy), or with their mean."""
    if scored.task == "regression":
        return float(np.var(scored.target))
    shares = np.unique(scored.target, return_counts=True)[1] / len(scored.target)
    return float(-(shares * np.log(shares)).sum())


def null_in(table: pa.Table, name: str) -> pa.Table:
    return with_column(table, name, pa.nulls(table.num_rows, table.schema.field(name).type))


def unseen_in(table: pa.Table, name: str) -> pa.Table:
    return with_column(table, name, pa.array([UNSEEN] * table.num_rows, pa.string()))
