"""The quality contract: what a window must be like before anything is trained on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cltrain.errors import ConfigError
from cltrain.records import LABEL


class Reference(Protocol):
    """What is known of earlier windows."""

    rows: int

    def null_share(self, name: str) -> float: ...


@dataclass(frozen=True, kw_only=True)
class Contract:
    """A window that breaks one rule is quarantined: nothing is trained on it, and the champion keeps serving.

    max_null_rise: by how much the share of nulls in a column may rise above that of the bootstrap window.
    ranges: lowest and highest value of a numeric column, `{price: [0, 1000]}`; at most `max_out_of_range` of its
    values may lie outside. min_labelled_share: of the events of a window, how many must have a label when it closes.
    min_rows: fewer labelled rows are no reason for quarantine, but the window is reported as thin.
    """

    max_null_rise: float = 0.5
    ranges: Mapping[str, Sequence[float]] = field(default_factory=dict)
    max_out_of_range: float = 0.01
    min_labelled_share: float = 0.0
    min_rows: int = 1

    def __post_init__(self) -> None:
        for name in ("max_null_rise", "max_out_of_range", "min_labelled_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"contract.{name} must be a share between 0 and 1, not {getattr(self, name)}")
        for name, bounds in self.ranges.items():
            if len(bounds) != 2 or not bounds[0] <= bounds[1]:
                raise ConfigError(f"contract.ranges.{name} must be [lowest, highest], not {bounds}")

    def breaches(self, table: pa.Table, reference: Reference | None, events: int) -> tuple[str, ...]:
        """Every rule that a window's labelled rows break, in words; empty if it is sound. `events` counts its events with
        and without label."""
        found = []
        for name in table.column_names:
            if reference is not None and reference.rows and table.num_rows:
                share = table.column(name).null_count / table.num_rows
                if share - reference.null_share(name) > self.max_null_rise:
                    found.append(f"{name}: {share:.0%} null, was {reference.null_share(name):.0%} at first")
        for name, (low, high) in self.ranges.items():
            if name not in table.column_names or not pa.types.is_floating(table.schema.field(name).type):
                raise ConfigError(f"contract.ranges.{name}: there is no such numeric column; there are {table.column_names}")
            values = np.asarray(pc.drop_null(table.column(name)), dtype=np.float64)
            outside = float(((values < low) | (values > high)).mean()) if len(values) else 0.0
            if outside > self.max_out_of_range:
                found.append(f"{name}: {outside:.1%} of values outside [{low}, {high}]")
        labelled = table.num_rows - table.column(LABEL).null_count
        if events and labelled / events < self.min_labelled_share:
            found.append(f"{labelled / events:.0%} of events have a label, contract.min_labelled_share is {self.min_labelled_share:.0%}")
        return tuple(found)
