"""The report card: challenger and champion on the same rows, of the new window and of the past."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from cltrain.errors import ConfigError
from cltrain.evaluate.cache import Memory, Score, Scorer, score_here
from cltrain.evaluate.checks import Checks
from cltrain.evaluate.compare import Comparer
from cltrain.evaluate.measures import TASKS, Measure, needs_groups, parse
from cltrain.evaluate.metrics import MetricSums
from cltrain.evaluate.sample import Sample, Scored, groups_of, weights_of
from cltrain.evaluate.slices import declared
from cltrain.evaluate.spots import spots
from cltrain.evaluate.spread import uniform
from cltrain.evaluate.transfer import constant_loss
from cltrain.records import Comparison, Json, ReportCard, from_json, to_json
from cltrain.seeding import derive_seed, numpy_generator

FEWEST = 50  # rows of a slice that is found, on the half that is searched and on the other


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """level: of each one-sided bound of an interval. resamples: of the bootstrap. min_rows: if the new window has fewer
    held-out rows, those of the windows before it join, the latest first, up to `recent_windows` in all: what is older
    says little of a world that moves. window_rows: of the new window at most; past_rows: of each past window at most,
    for retention and the transfer matrix. past_windows: at most, evenly spread. golden_windows: the first so many
    windows with held-out rows are a golden set: their rows, `window_rows` of each at most, stay the same for every
    version to come, which is compared on them (`golden`); 0 has none. Where there are more rows a uniform sample is
    taken, the same one each time, so that rounds can be compared.

    metrics: that get an interval beside the loss, by name or as settings with `_target_` (`cltrain.evaluate.measures`);
    null for those of the task. weight: the column that says what a row counts. group: the column of the list that a
    ranker's row belongs to. slices: rules, or mappings such as `{column: carrier}` (`cltrain.evaluate.slices`).
    found_slices: how many to search for at most, both where the challenger loses most and where it loses more than the
    champion; found_share: the least share of the rows that such a slice has. flip_tolerance: in standard deviations of
    the label, by how much an error must grow to count as a flip. spots: rows to show to a person, with their features,
    so none unless you ask. checks: what is tested beside the metrics."""

    level: float = 0.05
    resamples: int = 1_000
    min_rows: int = 50
    recent_windows: int = 4
    window_rows: int = 50_000
    past_rows: int = 2_000
    past_windows: int = 60
    golden_windows: int = 0
    metrics: tuple[Any, ...] | None = None
    weight: str | None = None
    group: str | None = None
    slices: tuple[Any, ...] = ()
    found_slices: int = 3
    found_share: float = 0.01
    flip_tolerance: float = 0.1
    spots: int = 0
    checks: Checks = field(default_factory=Checks)

    def __post_init__(self) -> None:
        if not 0 < self.level < 0.5:
            raise ConfigError(f"evaluate.level must be between 0 and 0.5, not {self.level}")
        if not 0 < self.found_share < 0.5:
            raise ConfigError(f"evaluate.found_share must be between 0 and 0.5, not {self.found_share}")
        if not self.flip_tolerance >= 0:
            raise ConfigError(f"evaluate.flip_tolerance must be 0 or more, not {self.flip_tolerance}")
        for name, least in (
            ("resamples", 100),
            ("min_rows", 0),
            ("recent_windows", 1),
            ("window_rows", 1),
            ("past_rows", 1),
            ("past_windows", 1),
            ("golden_windows", 0),
            ("found_slices", 0),
            ("spots", 0),
        ):
            if getattr(self, name) < least:
                raise ConfigError(f"evaluate.{name} must be {least} or more, not {getattr(self, name)}")
        for metric in self.metrics or ():
            parse(metric)
            if needs_groups(metric) and self.group is None:
                raise ConfigError(
                    f"evaluate.metrics has {metric}, a metric of lists: name their column, evaluate.group"
                )
        names = [part.name or part.where or f"{part.column} {part.values}" for part in map(declared, self.slices)]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ConfigError(f"evaluate.slices has {', '.join(sorted(twice))} twice: give them a name each")

    def check(self, task: str, columns: Sequence[str]) -> None:
        """Raise `ConfigError` where a metric is not of the task, or a column that is named is not among `columns`."""
        self.measures(task)
        self.checks.require(columns)
        named = [("weight", self.weight), ("group", self.group)]
        named += [("slices", column) for part in map(declared, self.slices) for column in part.columns]
        for setting, column in named:
            if column is not None and not column.startswith("_") and column not in columns:
                raise ConfigError(f"evaluate.{setting}: there is no column {column}; there are {', '.join(columns)}")

    def measures(self, task: str) -> list[Measure]:
        """Those that get an interval. Raises `ConfigError` for a metric of another task, or a name used twice."""
        if self.metrics is None:
            return list(TASKS[task].values())
        made = [parse(metric)(task) for metric in self.metrics]
        names = [measure.name for measure in made]
        if twice := {name for name in names if names.count(name) > 1}:
            raise ConfigError(f"evaluate.metrics has {', '.join(sorted(twice))} twice")
        return made

    def windows(self, held_out: Sequence[tuple[int, pa.Table]]) -> list[tuple[int, pa.Table]]:
        """The rows that the card is made of, by number of their window, the new one last: what must be scored."""
        filled = [(index, rows) for index, rows in held_out if rows.num_rows]
        golden = self._golden(filled)
        chosen = {*golden, *(index for index, _ in self._spread(filled))}
        windows = [window for window in filled if window[0] in chosen]
        past = [(i, uniform(rows, self.window_rows if i in golden else self.past_rows)) for i, rows in windows[:-1]]
        return [*past, *((index, uniform(rows, self.window_rows)) for index, rows in windows[-1:])]

    def card(
        self,
        challenger: Scorer,
        champion: Scorer | None,
        held_out: Sequence[tuple[int, pa.Table]],
        seed: int,
        *,
        score: Score = score_here,
        cache: Memory | None = None,
    ) -> ReportCard:
        """Weigh the challenger. `held_out` has the number and the held-out rows, which no version has ever trained
        on, of each window up to the new one, which is last. Where no window has a row, the comparison has 0 rows.
        score: what asks a version about windows, here or on other machines: `score(version, windows)` returns the
        answers by number of the window, its rows in their order. cache: what was answered and compared before."""
        windows = self.windows(held_out)
        if not windows:
            nothing = Comparison(
                name="window", rows=0, challenger={"rows": 0}, champion={"rows": 0} if champion else None
            )
            return ReportCard(comparisons=(nothing,), transfer=(), latency_ms=0.0, size_bytes=challenger.size_bytes)
        score = cache.scoring(score) if cache else score
        scores = score(challenger, windows)
        rivals = score(champion, windows) if champion else None
        new = windows[-1][1]
        card = self.weigh(
            windows,
            scores,
            rivals,
            seed,
            cache,
            latency_ms=_latency_ms(challenger, new),
            size_bytes=challenger.size_bytes,
            champion_latency_ms=_latency_ms(champion, new) if champion else None,
            champion_size_bytes=champion.size_bytes if champion else None,
        )
        if cache:
            cache.close()
        examined = self.checks.examine(challenger, champion, held_out, derive_seed(seed, "checks"))
        return replace(card, findings=(*card.findings, *examined.findings), importance=examined.importance)

    def weigh(
        self,
        windows: Sequence[tuple[int, pa.Table]],
        scores: Mapping[int, Scored],
        rivals: Mapping[int, Scored] | None,
        seed: int,
        cache: Memory | None = None,
        **measured: Any,
    ) -> ReportCard:
        """The card of answers that were given: a pure function. windows: as `windows` returns them, at least one;
        scores, rivals: by number, of the challenger and of the champion; cache: of the same windows and versions;
        measured: latencies and sizes, which the card takes as they are."""
        about = {"settings": repr(self._compared()), "seed": seed, "champion": rivals is not None}
        parts: list[Json] = []
        for name, indices, make in self._pieces(windows, scores, rivals, seed):
            produce = functools.partial(_plain, make)
            parts.append(cache.once(about | {"piece": name}, indices, produce) if cache else produce())
        recent = self._recent(windows)
        table, new = _joined(recent, dict(windows)), self._answers(recent, dict(windows), scores, rivals)
        card = {
            "transfer": [_transfer(i, scores[i], rivals[i] if rivals else None) for i, _ in windows],
            "reliability": parts[0]["reliability"],
            "spots": spots(table, *new, self.spots, numpy_generator(seed, "spots")),
            **{
                key: [item for part in parts for item in part.get(key, ())]
                for key in ("comparisons", "slices", "findings")
            },
        }
        return from_json(ReportCard, card | measured)

    def _pieces(
        self,
        windows: Sequence[tuple[int, pa.Table]],
        scores: Mapping[int, Scored],
        rivals: Mapping[int, Scored] | None,
        seed: int,
    ) -> Iterator[tuple[str, list[int], Callable[[], Json]]]:
        """What is compared: a name that says all of its settings, the windows that it is about, and what makes it."""
        measures, tables = self.measures(next(iter(scores.values())).task), dict(windows)
        recent, past = self._recent(windows), [index for index, _ in windows[:-1]]
        golden = self._golden(windows)

        def comparer(*name: str) -> Comparer:
            return Comparer(
                measures=measures,
                generator=numpy_generator(seed, "bootstrap", *name),
                level=self.level,
                resamples=self.resamples,
                flip_tolerance=self.flip_tolerance,
            )

        def of_golden() -> Json:
            return {"comparisons": [comparer("golden")("golden", *self._answers(golden, tables, scores, rivals))]}

        def of_past() -> Json:
            return {"comparisons": [comparer("past")("past", *self._answers(past, tables, scores, rivals))]}

        def of_slice(spec: Any) -> Json:
            parts, compare = declared(spec).parts(table), comparer("slice", str(spec))
            short = [part.shortage() for part in parts if part.is_short]
            return {"slices": [compare.part(part, *new) for part in parts], "findings": short}

        def of_found() -> Json:
            skip = frozenset(name for name in (self.weight, self.group) if name)
            least = max(FEWEST, round(self.found_share * table.num_rows / 2))
            generator = numpy_generator(seed, "slices")
            return {"slices": comparer("found").found(table, *new, skip, self.found_slices, least, generator)}

        table, new = _joined(recent, tables), self._answers(recent, tables, scores, rivals)
        yield (
            "window",
            recent,
            lambda: {
                "comparisons": [comparer()("window", *new)],
                "reliability": _reliability(*new),
            },
        )
        if past:
            yield "past", past, of_past
        if golden:
            yield "golden", golden, of_golden
        for spec in self.slices:
            yield f"slice {spec}", recent, functools.partial(of_slice, spec)
        if self.found_slices:
            yield f"found {self.found_slices} of {self.found_share}", recent, of_found

    def _compared(self) -> tuple[Any, ...]:
        """The settings that every comparison depends on."""
        return (self.level, self.resamples, self.metrics, self.weight, self.group, self.flip_tolerance)

    def _golden(self, windows: Sequence[tuple[int, pa.Table]]) -> list[int]:
        """Numbers of the windows of the golden set; none before all of them are past."""
        return [i for i, _ in windows[: self.golden_windows]] if len(windows) > self.golden_windows else []

    def _spread(self, windows: list[tuple[int, pa.Table]]) -> list[tuple[int, pa.Table]]:
        if len(windows) <= self.past_windows + 1:
            return windows
        chosen = np.unique(np.linspace(0, len(windows) - 1, self.past_windows + 1).round().astype(int))
        return [windows[i] for i in chosen]

    def _recent(self, windows: Sequence[tuple[int, pa.Table]]) -> list[int]:
        rows, chosen = 0, []
        for index, table in reversed(windows[-self.recent_windows :]):
            chosen.append(index)
            rows += table.num_rows
            if rows >= self.min_rows:
                break
        return chosen

    def _answers(
        self,
        indices: list[int],
        tables: Mapping[int, pa.Table],
        scores: Mapping[int, Scored],
        rivals: Mapping[int, Scored] | None,
    ) -> tuple[Sample, Sample | None]:
        """Of both versions on the rows of those windows, one after another."""
        parts = [tables[i] for i in indices]
        weights = np.concatenate([weights_of(part, self.weight) for part in parts]) if self.weight else None
        groups = groups_of(parts, self.group) if self.group else None
        ours = Sample.of([scores[i] for i in indices], weights, groups)
        return ours, Sample.of([rivals[i] for i in indices], weights, groups) if rivals else None


def _joined(indices: list[int], tables: Mapping[int, pa.Table]) -> pa.Table:
    """Their rows, one after another; a column that a window lacks is null there."""
    return pa.concat_tables([tables[i] for i in indices], promote_options="permissive")


def _plain(make: Callable[[], Json]) -> Json:
    return to_json(make())


def _transfer(index: int, scored: Scored, rival: Scored | None) -> Json:
    """A cell of the transfer matrix; `champion` is the champion's loss, `constant` that of the best constant answer."""
    return {
        "window": index,
        "rows": len(scored.losses),
        "loss": float(scored.losses.mean()),
        "champion": float(rival.losses.mean()) if rival else None,
        "constant": constant_loss(scored.task, scored.target),
    }


def _reliability(ours: Sample, theirs: Sample | None) -> Json:
    """Curves of a binary task; none of the others."""
    if ours.task != "binary":
        return {}
    named = {"challenger": ours} | ({} if theirs is None else {"champion": theirs})
    return {name: MetricSums.of(sample, sample.weights).reliability() for name, sample in named.items()}


def _latency_ms(scorer: Scorer, rows: pa.Table) -> float:
    """Median time of scoring one row, of five."""
    one = rows.slice(0, 1)
    times = []
    for _ in range(5):
        started = time.perf_counter()
        scorer.score(one)
        times.append(time.perf_counter() - started)
    return sorted(times)[2] * 1e3
