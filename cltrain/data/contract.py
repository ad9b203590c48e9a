"""The quality contract: what a window must be like before anything is trained on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pyarrow as pa

from cltrain.errors import ConfigError
from cltrain.records import EVENT_ID, EVENT_TIME, LABEL, LABEL_TIME


class Reference(Protocol):
    """What is known of earlier windows."""

    @property
    def rows(self) -> int: ...

    def null_share(self, name: str) -> float: ...


@dataclass(frozen=True, kw_only=True)
class Contract:
    """A window that breaks one rule is quarantined: nothing is trained on it, and the champion keeps serving.

    max_null_rise: by how much the share of nulls in a column may rise above that of the bootstrap window.
    ranges: lowest and highest value of a numeric column, `{price: [0, 1000]}`; at most `max_out_of_range` of its
    values may lie outside. min_labelled_share: of the events of a window, how many must have a label when it closes.
    """

    max_null_rise: float = 0.5
    ranges: Mapping[str, Sequence[float]] = field(default_factory=dict)
    max_out_of_range: float = 0.01
    min_labelled_share: float = 0.0

    def __post_init__(self) -> None:
        for name in ("max_null_rise", "max_out_of_range", "min_labelled_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"contract.{name} must be a share between 0 and 1, not {getattr(self, name)}")
        for name, bounds in self.ranges.items():
            if len(bounds) != 2 or not bounds[0] <= bounds[1]:
                raise ConfigError(f"contract.ranges.{name} must be [lowest, highest], not {bounds}")

    def breaches(self, events: Iterable[pa.Table], reference: Reference | None, labelled: int) -> tuple[str, ...]:
        """Every rule that a window breaks, in words; empty if it is sound. `events` are all its events, in pieces, of
        which `labelled` have a label. Raises `ConfigError` for a range of a column that is not there."""
        rows, nulls, numbers, outside = 0, Counter[str](), Counter[str](), Counter[str]()
        for table in events:
            self._require_columns(table)
            rows += table.num_rows
            for name in table.column_names:
                if name not in (EVENT_ID, EVENT_TIME, LABEL_TIME, LABEL):
                    nulls[name] += table.column(name).null_count
            for name, (low, high) in self.ranges.items():
                values = np.asarray(table.column(name).drop_null(), dtype=np.float64)
                numbers[name] += len(values)
                outside[name] += int(((values < low) | (values > high)).sum())
        if not rows:
            return ()
        found = []
        for name, count in nulls.items():
            was = reference.null_share(name) if reference is not None and reference.rows else 1.0
            if count / rows - was > self.max_null_rise:
                found.append(f"{name}: {count / rows:.0%} null, was {was:.0%} at first")
        for name, (low, high) in self.ranges.items():
            if outside[name] > self.max_out_of_range * numbers[name]:
                found.append(f"{name}: {outside[name] / numbers[name]:.1%} of values outside [{low}, {high}]")
        if labelled < self.min_labelled_share * rows:
            least = f"contract.min_labelled_share is {self.min_labelled_share:.0%}"
            found.append(f"{labelled / rows:.0%} of events have a label, {least}")
        return tuple(found)

    def _require_columns(self, table: pa.Table) -> None:
        numeric = [f.name for f in table.schema if pa.types.is_floating(f.type) and f.name != LABEL]
        for name in self.ranges:
            if name not in numeric:
                has = ", ".join(numeric) or "none"
                raise ConfigError(f"contract.ranges.{name}: there is no such numeric column; there are: {has}")
