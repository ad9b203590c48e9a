"""What checks look at: two versions, and rows that neither has trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import pyarrow as pa

from cltrain.evaluate.sample import Scored
from cltrain.records import EVENT_ID
from cltrain.seeding import derive_seed, hash_ids


class Scorer(Protocol):
    """A version that can be asked; see `cltrain.train.predictor.Predictor`."""

    @property
    def task(self) -> str: ...

    def score(self, table: pa.Table) -> Scored: ...


@dataclass(frozen=True)
class Weighed:
    """window: held-out rows of the new window; before: those of the windows just before it, none for the first."""

    challenger: Scorer
    champion: Scorer | None
    window: pa.Table
    before: pa.Table

    @classmethod
    def of(
        cls,
        challenger: Scorer,
        champion: Scorer | None,
        held_out: Sequence[tuple[int, pa.Table]],
        rows: int,
        windows: int,
    ) -> Weighed:
        """`held_out` as in `Evaluation.card`, one window with a row at least: of the new window `rows` at most, and of
        the `windows` before it together."""
        sound = [table for _, table in held_out if table.num_rows]
        earlier = sound[-1 - windows : -1]
        before = pa.concat_tables(earlier) if earlier else sound[-1].slice(0, 0)
        return cls(challenger, champion, sampled(sound[-1], rows), sampled(before, rows))

    @property
    def task(self) -> str:
        return self.challenger.task

    @cached_property
    def ours(self) -> Scored:
        """The challenger on the new window."""
        return self.challenger.score(self.window)

    @cached_property
    def theirs(self) -> Scored | None:
        """The champion on the new window."""
        return self.champion.score(self.window) if self.champion else None


def sampled(table: pa.Table, count: int) -> pa.Table:
    """A uniform sample of `count` rows at most, in their order, by a hash of the id."""
    if table.num_rows <= count:
        return table
    order = np.argsort(hash_ids(table.column(EVENT_ID), salt=derive_seed(0, "checks")), kind="stable")[:count]
    return table.take(pa.array(np.sort(order)))


def features_of(table: pa.Table) -> list[str]:
    """Names of the columns that a model may read, in their order; the hour and the weekday of the event are not among
    them, since they follow from its time."""
    return [name for name in table.column_names if not name.startswith("_")]


def with_column(table: pa.Table, name: str, values: pa.Array | pa.ChunkedArray) -> pa.Table:
    """The table with the values of one of its columns exchanged."""
    place = table.column_names.index(name)
    return table.set_column(place, table.schema.field(name), values.cast(table.schema.field(name).type))
