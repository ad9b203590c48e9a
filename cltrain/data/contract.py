"""The quality contract: what a window must be like before anything is trained on it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from cltrain.data.shape import Magnitude, Shape, shape_of
from cltrain.errors import ConfigError
from cltrain.records import LABEL

ENOUGH = 30  # numbers, or expected rows of a class, below which nothing can be said


@dataclass(frozen=True, kw_only=True)
class Contract:
    """A window that breaks one rule is quarantined: nothing is trained on it, and the champion keeps serving. It is
    compared with the `history` sound windows before it. The defaults refuse what is no drift but a fault: a column that
    is gone, one in another unit, a class of labels that no longer comes.

    max_null_rise: by how much the share of nulls in a column may rise. ranges: lowest and highest value of a numeric
    column, `{price: [0, 1000]}`; at most `max_out_of_range` of its values may lie outside. max_scale: by what factor
    the typical magnitude of a numeric column, or of the label of a regression, may change (up or down: the geometric
    mean of what is not 0), and by what factor its values, but for `max_out_of_range` of them, may exceed the largest
    one before; null asks for nothing. min_class_share: how much of its earlier share of the labels a class must keep,
    unless classes come that are new: then it is another set of classes. max_new_categories: share of the values of a
    categorical column that may be categories which did not come before. volume: lowest and highest number of events
    in the same time, as a multiple of that before. min_labelled_share: of the events of a window, how many must have
    a label when it closes.
    """

    history: int = 4
    max_null_rise: float = 0.5
    ranges: Mapping[str, Sequence[float]] = field(default_factory=dict)
    max_out_of_range: float = 0.01
    max_scale: float | None = 30.0
    min_class_share: float = 0.1
    max_new_categories: float = 1.0
    volume: tuple[float, float | None] = (0.0, None)
    min_labelled_share: float = 0.0

    def __post_init__(self) -> None:
        if self.history < 1:
            raise ConfigError(f"contract.history must be 1 or more windows, not {self.history}")
        for name in (
            "max_null_rise",
            "max_out_of_range",
            "min_class_share",
            "max_new_categories",
            "min_labelled_share",
        ):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"contract.{name} must be a share between 0 and 1, not {getattr(self, name)}")
        if self.max_scale is not None and not self.max_scale > 1:
            raise ConfigError(f"contract.max_scale must be a factor above 1, or null, not {self.max_scale}")
        if not 0 <= self.volume[0] <= (self.volume[1] if self.volume[1] is not None else float("inf")):
            raise ConfigError(f"contract.volume must be [lowest, highest or null], not {list(self.volume)}")
        for name, bounds in self.ranges.items():
            if len(bounds) != 2 or not bounds[0] <= bounds[1]:
                raise ConfigError(f"contract.ranges.{name} must be [lowest, highest], not {bounds}")

    def shape(
        self,
        events: Iterable[pa.Table],
        labels: pa.ChunkedArray | None = None,
        task: str = "binary",
        labelled: int = 0,
        seconds: float = 0.0,
    ) -> Shape:
        """What the rules look at; see `cltrain.data.shape.shape_of`. Raises `ConfigError` for a range of a column that
        is not there."""
        return shape_of(map(self._with_columns, events), labels, task, labelled, seconds, self.ranges)

    def breaches(self, window: Shape, before: Shape | None) -> tuple[str, ...]:
        """Every rule that a window breaks, in words; empty if it is sound, or has no event. `before`: the sum of the
        sound windows before it, None where there is none."""
        if not window.rows:
            return ()
        found = [*self._ranges(window)]
        if before is not None and before.rows:
            found += [*self._nulls(window, before), *self._scales(window, before), *self._classes(window, before)]
            found += [*self._categories(window, before), *self._volume(window, before)]
        share = window.labelled / window.rows
        if share < self.min_labelled_share:
            least = f"contract.min_labelled_share is {self.min_labelled_share:.0%}"
            found.append(f"{share:.0%} of events have a label, {least}")
        return tuple(found)

    def _nulls(self, window: Shape, before: Shape) -> Iterator[str]:
        for name in window.nulls:
            share, was = window.null_share(name), before.null_share(name)
            if share - was > self.max_null_rise:
                yield f"{name}: {share:.0%} null, was {was:.0%}"

    def _ranges(self, window: Shape) -> Iterator[str]:
        for name, (low, high) in self.ranges.items():
            outside, numbers = window.outside.get(name, 0), window.numbers.get(name, 0)
            if outside > self.max_out_of_range * numbers:
                yield f"{name}: {outside / numbers:.1%} of values outside [{low}, {high}]"

    def _scales(self, window: Shape, before: Shape) -> Iterator[str]:
        pairs = {name: (now, before.magnitudes.get(name)) for name, now in window.magnitudes.items()}
        pairs |= {"the label": (window.values, before.values)}
        for name, (now, was) in pairs.items():
            if self.max_scale is None or was is None or min(now.count, was.count) < ENOUGH:
                continue
            factor = now.typical / was.typical
            if not 1 / self.max_scale <= factor <= self.max_scale:
                yield f"{name}: typically {now.typical:.3g}, was {was.typical:.3g}; contract.max_scale is {self._most}"
            elif (far := self._far(now, was)) > self.max_out_of_range * now.count:
                yield (
                    f"{name}: {far / now.count:.0%} of values far above the largest before, {was.largest:.3g}; "
                    f"contract.max_scale is {self._most}"
                )

    @property
    def _most(self) -> str:
        return f"{self.max_scale:g}"

    def _far(self, now: Magnitude, was: Magnitude) -> int:
        return now.number_above((self.max_scale or 0) * was.largest)

    def _classes(self, window: Shape, before: Shape) -> Iterator[str]:
        if set(window.classes) - set(before.classes):
            return
        rows, earlier = sum(window.classes.values()), sum(before.classes.values())
        for name, count in before.classes.items():
            came, expected = window.classes.get(name, 0), rows * count / earlier
            if expected >= ENOUGH and came < self.min_class_share * expected:
                yield (
                    f"label {name}: {came} of {rows}, about {expected:.0f} were expected; "
                    f"contract.min_class_share is {self.min_class_share:g}"
                )

    def _categories(self, window: Shape, before: Shape) -> Iterator[str]:
        for name, counts in window.categories.items():
            known = before.categories.get(name, {})
            total = sum(counts.values())
            new = sum(count for value, count in counts.items() if value not in known)
            if known and new > self.max_new_categories * total:
                yield f"{name}: {new / total:.0%} of values are categories that did not come before"

    def _volume(self, window: Shape, before: Shape) -> Iterator[str]:
        if not (window.seconds and before.seconds):
            return
        times = (window.rows / window.seconds) / (before.rows / before.seconds)
        low, high = self.volume
        if times < low or (high is not None and times > high):
            bounds = f"[{low:g}, {'null' if high is None else f'{high:g}'}]"
            yield f"{window.rows} events, {times:.2g} times as many as before; contract.volume is {bounds}"

    def _with_columns(self, table: pa.Table) -> pa.Table:
        numeric = [f.name for f in table.schema if pa.types.is_floating(f.type) and f.name != LABEL]
        for name in self.ranges:
            if name not in numeric:
                has = ", ".join(numeric) or "none"
                raise ConfigError(f"contract.ranges.{name}: there is no such numeric column; there are: {has}")
        return table
