"""The checks of a version: behaviour tests, robustness, whether its labels are noise, and what it relies on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from cltrain.errors import ConfigError
from cltrain.evaluate.behaviour import Behaviour, parse_tests, read_tests
from cltrain.evaluate.importance import importance
from cltrain.evaluate.labels import Labels
from cltrain.evaluate.robustness import Robustness
from cltrain.evaluate.weighed import Scorer, Weighed, sampled
from cltrain.records import Finding, Json
from cltrain.seeding import numpy_generator


class Check(Protocol):
    """A check of your own: a pure function of two versions and held-out rows."""

    def find(self, weighed: Weighed, generator: np.random.Generator) -> tuple[Finding, ...]: ...


@dataclass(frozen=True)
class Examined:
    findings: tuple[Finding, ...]
    importance: tuple[Json, ...]


@dataclass(frozen=True, kw_only=True)
class Checks:
    """tests: a folder of behaviour tests or one file (`cltrain.evaluate.behaviour`), or a list of them. labels, and
    robustness: null leaves them out. own: checks of your own by name. rows: held-out rows of the new window at most,
    and of the `windows` before it together. importance_rows: of those for permutation importance; 0 leaves it out."""

    tests: str | tuple[Mapping[str, Any], ...] | None = None
    labels: Labels | None = field(default_factory=Labels)
    robustness: Robustness | None = None
    own: Mapping[str, Check] = field(default_factory=dict)
    rows: int = 5_000
    windows: int = 4
    importance_rows: int = 500

    def __post_init__(self) -> None:
        for name, least in (("rows", 1), ("windows", 1), ("importance_rows", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"checks.{name} must be {least} or more, not {getattr(self, name)}")
        _ = self.behaviour  # a file that cannot be read is found before anything starts

    @cached_property
    def behaviour(self) -> tuple[Behaviour, ...]:
        if self.tests is None:
            return ()
        return read_tests(self.tests) if isinstance(self.tests, str) else tuple(parse_tests(self.tests, "checks.tests"))

    def require(self, columns: Sequence[str]) -> None:
        """Raise `ConfigError` for a test of a column that is not there."""
        for test in self.behaviour:
            test.require(columns)

    def examine(
        self, challenger: Scorer, champion: Scorer | None, held_out: Sequence[tuple[int, pa.Table]], seed: int
    ) -> Examined:
        """All findings, and the challenger's permutation importance; none of either without a held-out row. `held_out`
        as in `Evaluation.card`. Each check has a generator of its own."""
        if not any(table.num_rows for _, table in held_out):
            return Examined((), ())
        weighed = Weighed.of(challenger, champion, held_out, self.rows, self.windows)
        checks: dict[str, Check] = {f"test {test.name}": test for test in self.behaviour}
        checks |= {name: part for name, part in (("labels", self.labels), ("robustness", self.robustness)) if part}
        checks |= {f"own {name}": part for name, part in self.own.items()}
        findings = [f for name, check in checks.items() for f in check.find(weighed, numpy_generator(seed, name))]
        some = sampled(weighed.window, self.importance_rows)
        return Examined(tuple(findings), importance(challenger, some, numpy_generator(seed, "importance")))
