"""Challenger and champion on the same rows: of all, of the slices that were declared, of those that are found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from cltrain.evaluate import bootstrap
from cltrain.evaluate.discover import axes, discover
from cltrain.evaluate.influence import mean
from cltrain.evaluate.measures import NORMAL_ROWS, Measure, differences, flips, sums_of
from cltrain.evaluate.sample import Sample
from cltrain.evaluate.slices import Part
from cltrain.records import Comparison


@dataclass(frozen=True, kw_only=True)
class Comparer:
    """Settings are those of `Evaluation`; the generator draws for the bootstrap."""

    measures: Sequence[Measure]
    generator: np.random.Generator
    level: float
    resamples: int
    flip_tolerance: float

    def __call__(
        self, name: str, ours: Sample, theirs: Sample | None, normal_rows: int = bootstrap.NORMAL_ROWS
    ) -> Comparison:
        """Both on all rows. Without a rival, and without rows, there is no difference. Above `normal_rows` rows the
        interval of the loss has a closed form."""
        known = Comparison(name=name, rows=len(ours), challenger=sums_of(ours, self.measures).values())
        if theirs is None:
            return known
        known = replace(known, champion=sums_of(theirs, self.measures).values())
        if not len(ours):
            return known
        a, b = (s.losses if s.weights is None else mean(s.losses, s.shares) for s in (ours, theirs))
        difference, low, high = bootstrap.paired_interval(a, b, self.generator, self.level, self.resamples, normal_rows)
        return replace(
            known,
            difference=difference,
            low=low,
            high=high,
            metrics=differences(ours, theirs, self.measures, self.generator, self.level, self.resamples),
            flips=flips(ours, theirs, self.flip_tolerance),
        )

    def part(self, part: Part, ours: Sample, theirs: Sample | None) -> Comparison:
        """Both on a slice."""
        return replace(self._on(part.name, part.mask, ours, theirs), where=part.where)

    def found(
        self,
        table: pa.Table,
        ours: Sample,
        theirs: Sample | None,
        skip: frozenset[str],
        count: int,
        min_rows: int,
        generator: np.random.Generator,
    ) -> list[Comparison]:
        """Slices that nobody declared: where the challenger loses most against the rest of the rows (`high loss: …`),
        and where it loses more than the champion (`worse than the champion: …`). What they say is measured on rows that
        were not searched, so it is not flattered by the choice."""
        columns = axes(table, skip, min_rows)
        kinds = [("high loss", ours.losses)]
        if theirs is not None and (ours.losses != theirs.losses).any():
            kinds.append(("worse than the champion", ours.losses - theirs.losses))
        slices = []
        for kind, values in kinds:
            for found in discover(columns, values, generator, count, min_rows, self.level):
                mask = found.mask & found.confirmed
                if kind == "high loss" or values[mask].mean() > 0:
                    weighed = self._on(f"{kind}: {found.where}", mask, ours, theirs)
                    slices.append(replace(weighed, where=found.where, found=True))
        return slices

    def _on(self, name: str, mask: np.ndarray, ours: Sample, theirs: Sample | None) -> Comparison:
        rows = np.flatnonzero(mask)
        return self(name, ours.take(rows), theirs.take(rows) if theirs else None, NORMAL_ROWS)
