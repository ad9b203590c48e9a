"""Behaviour tests as files that users write (Ribeiro et al. 2020, CheckList).

A file is YAML: one test, or a list of them. A test changes features of held-out rows and says what the answer may do:

    - name: the device does not matter
      kind: invariance            # the answer moves by at most `tolerance`
      change: {device: app}
    - name: dearer sells less
      kind: direction             # the answer never `expect`s otherwise by more than `tolerance`
      change: {price: {times: 1.2}}
      expect: falls
      where: price > 10
      bound: 0.02                 # of the rows may fail
    - name: the trigger of last year's attack
      kind: safety                # as an invariance, of what an attacker may add
      change: {coupon: XYZZY}
    - name: obvious ones
      kind: functionality         # rows whose answer is known
      examples:
        - {features: {price: 1, shop: a}, label: 1}
        - {features: {price: 900}, between: [0, 0.2]}

A change sets a value, or is one of `{add: 5}`, `{times: 1.1}`, `{null: true}`, `{shuffle: true}`. Rows that it does not
change do not count. An answer is a probability, a value or, of a multiclass task, the likeliest class.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cltrain.errors import ConfigError
from cltrain.evaluate.rules import Rule
from cltrain.evaluate.sample import Scored
from cltrain.evaluate.weighed import Scorer, Weighed, with_column
from cltrain.records import EVENT_ID, LABEL, Finding, Json

Kind = Literal["invariance", "direction", "safety", "functionality"]
OPERATIONS = ("set", "add", "times", "null", "shuffle")
TOLERANCE = 0.05  # of a probability, or of the labels' standard deviation
EXAMPLES = 3


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """One test, `source` being where it was written. where: a rule over columns that picks rows, `max_rows` of them at
    most. tolerance: of a probability, or in units of the label; null is 0.05 of a probability, or of the labels'
    standard deviation, and for a direction 0. bound: the share of rows that may fail. no_worse: it also passes where no
    more rows fail than by the champion. min_rows: with fewer rows it is failed, since nothing was shown."""

    name: str
    kind: Kind
    change: Mapping[str, Any] = field(default_factory=dict)
    expect: Literal["rises", "falls"] | None = None
    examples: tuple[Mapping[str, Any], ...] = ()
    where: str | None = None
    tolerance: float | None = None
    bound: float = 0.0
    no_worse: bool = False
    max_rows: int = 1_000
    min_rows: int = 0
    source: str = "checks.tests"

    def __post_init__(self) -> None:
        object.__setattr__(self, "examples", tuple(self.examples))
        if self.kind not in get_args(Kind):
            self._wrong("kind", f"must be one of {', '.join(get_args(Kind))}, not {self.kind!r}")
        if not 0 <= self.bound <= 1:
            self._wrong("bound", f"must be a share between 0 and 1, not {self.bound}")
        if self.tolerance is not None and not self.tolerance >= 0:
            self._wrong("tolerance", f"must be 0 or more, not {self.tolerance}")
        for name, least in (("max_rows", 1), ("min_rows", 0)):
            if getattr(self, name) < least:
                self._wrong(name, f"must be {least} or more, not {getattr(self, name)}")
        if (self.kind == "functionality") != bool(self.examples):
            self._wrong("examples", "are what a test of kind functionality has, and no other")
        if (self.kind == "functionality") == bool(self.change):
            self._wrong("change", "is what every test has but those of kind functionality: {feature: value}")
        if (self.kind == "direction") != (self.expect in ("rises", "falls")):
            self._wrong("expect", "must be rises or falls in a test of kind direction, and is in no other")
        for name, value in self.change.items():
            self._check_change(name, value)
        for number, example in enumerate(self.examples):
            self._check_example(number, example)
        if self.where is not None:
            try:
                Rule(self.where)
            except ConfigError as error:
                self._wrong("where", str(error))

    def require(self, columns: Sequence[str]) -> None:
        """Raise `ConfigError` for a feature that is not among the columns."""
        named = [("change", name) for name in self.change]
        named += [("where", name) for name in (Rule(self.where).columns if self.where else ())]
        named += [(f"examples[{i}].features", n) for i, e in enumerate(self.examples) for n in e["features"]]
        for key, name in named:
            if name not in columns:
                close = difflib.get_close_matches(name, columns, n=1)
                there = ", ".join(c for c in columns if not c.startswith("_"))
                hint = f"did you mean {close[0]}?" if close else f"the columns are {there}"
                self._wrong(key, f"names {name}, which is no column; {hint}")

    def find(self, weighed: Weighed, generator: np.random.Generator) -> tuple[Finding, ...]:
        """One finding. Raises `ConfigError` that names file, test and key where a column is missing or a value is not
        of its column's kind."""
        self.require(weighed.window.column_names)
        if weighed.task == "multiclass" and self.kind == "direction":
            self._wrong("kind", "direction needs an answer that can rise: the task must be binary or regression")
        if self.kind == "functionality":
            rows = self._made(weighed.window)
            failed = self._known(weighed.challenger.score(rows), weighed)
            theirs = self._known(weighed.champion.score(rows), weighed) if weighed.champion else None
            shown = [dict(example["features"]) for example in self.examples]
            return (self._finding(failed, theirs, [f | {"row": i} for i, f in enumerate(shown)]),)
        rows, changed = self._changed(weighed, generator)
        failed, shown = self._moved(weighed.challenger, rows, changed, weighed)
        theirs = self._moved(weighed.champion, rows, changed, weighed)[0] if weighed.champion else None
        return (self._finding(failed, theirs, shown),)

    def _finding(self, failed: np.ndarray, theirs: np.ndarray | None, shown: Sequence[Json]) -> Finding:
        count, rows = int(failed.sum()), len(failed)
        passed = count <= self.bound * rows
        if self.no_worse and theirs is not None:
            passed = passed or count <= int(theirs.sum())
        return Finding(
            name=self.name,
            kind=self.kind,
            rows=rows,
            failed=count,
            bound=self.bound,
            passed=passed and rows >= self.min_rows,
            champion_failed=None if theirs is None else int(theirs.sum()),
            examples=tuple(shown[i] for i in np.flatnonzero(failed)[:EXAMPLES]),
        )

    def _moved(
        self, scorer: Scorer, rows: pa.Table, changed: pa.Table, weighed: Weighed
    ) -> tuple[np.ndarray, list[Json]]:
        """(N,) whether the answer did what it may not, and what is shown of each row."""
        if not rows.num_rows:
            return np.zeros(0, bool), []
        before, after = scorer.score(rows).predictions, scorer.score(changed).predictions
        moved = after - before
        if weighed.task == "multiclass":
            failed = moved != 0
        elif self.kind == "direction":
            failed = (moved if self.expect == "falls" else -moved) > (self.tolerance or 0.0)
        else:
            failed = np.abs(moved) > self._tolerance(weighed)
        failed |= ~np.isfinite(after)
        kept = {EVENT_ID: rows.column(EVENT_ID).to_pylist()} if EVENT_ID in rows.column_names else {}
        kept |= {name: rows.column(name).to_pylist() for name in self.change}
        shown = [
            {name.strip("_"): values[i] for name, values in kept.items()} | {"before": float(b), "after": float(a)}
            for i, (b, a) in enumerate(zip(before, after, strict=True))
        ]
        return failed, shown

    def _changed(self, weighed: Weighed, generator: np.random.Generator) -> tuple[pa.Table, pa.Table]:
        """Rows of the new window, and then of those before it, and the same rows changed."""
        table = pa.concat_tables([weighed.window, weighed.before])
        if self.where is not None:
            try:
                table = table.filter(pa.array(Rule(self.where).mask(table)))
            except ConfigError as error:
                self._wrong("where", str(error))
        changed, different = table, np.zeros(table.num_rows, bool)
        for name, value in self.change.items():
            column = table.column(name)
            new = self._value(name, value, column, generator)
            changed = with_column(changed, name, new)
            same = pc.fill_null(pc.equal(column, changed.column(name)), False)
            both = pc.and_(pc.is_null(column), pc.is_null(changed.column(name)))
            different |= ~np.asarray(pc.or_(same, both), bool)
        index = pa.array(np.flatnonzero(different)[: self.max_rows])
        return table.take(index), changed.take(index)

    def _value(
        self, name: str, value: Any, column: pa.ChunkedArray, generator: np.random.Generator
    ) -> pa.Array | pa.ChunkedArray:
        operation, operand = next(iter(value.items())) if isinstance(value, Mapping) else ("set", value)
        if operation == "null":
            return pa.nulls(len(column), column.type)
        if operation == "shuffle":
            return column.take(pa.array(generator.permutation(len(column))))
        if operation == "set":
            try:
                return pa.array([operand], column.type).take(pa.array(np.zeros(len(column), np.int64)))
            except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
                self._wrong(f"change.{name}", f"cannot be {operand!r} in a column of {column.type}: {error}")
        if not pa.types.is_floating(column.type):
            self._wrong(f"change.{name}", f"{operation} needs a number; the column is {column.type}")
        number = pa.scalar(float(operand))
        return pc.add(column, number) if operation == "add" else pc.multiply(column, number)

    def _made(self, window: pa.Table) -> pa.Table:
        """The examples as events: features that they do not name are null, time and id are those of a held-out row."""
        first = window.slice(0, 1).to_pylist()[0]
        kept = {name: value for name, value in first.items() if name.startswith("_")}
        columns = {}
        for f in window.schema:
            values = [
                e["label"] if f.name == LABEL and "label" in e else kept.get(f.name, e["features"].get(f.name))
                for e in self.examples
            ]
            if pa.types.is_floating(f.type):
                values = [float(v) if isinstance(v, int | float) else v for v in values]
            elif pa.types.is_string(f.type):
                values = [v if v is None else str(v) for v in values]
            try:
                columns[f.name] = pa.array(values, f.type)
            except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
                key = "label" if f.name == LABEL else f"features.{f.name}"
                self._wrong(f"examples.{key}", f"is not of the column's type, {f.type}: {error}")
        return pa.table(columns, schema=window.schema)

    def _known(self, scored: Scored, weighed: Weighed) -> np.ndarray:
        """(N,) whether the answer to an example is wrong."""
        failed = np.zeros(len(self.examples), bool)
        for i, example in enumerate(self.examples):
            p, y = float(scored.predictions[i]), float(scored.target[i])
            if "between" in example:
                low, high = example["between"]
                failed[i] = not low <= p <= high
            elif weighed.task == "binary":
                failed[i] = (p >= 0.5) != (y >= 0.5)
            elif weighed.task == "multiclass":
                failed[i] = p != y
            else:
                failed[i] = not abs(p - y) <= self._tolerance(weighed)
        return failed

    def _tolerance(self, weighed: Weighed) -> float:
        if self.tolerance is not None:
            return self.tolerance
        return TOLERANCE * (float(np.std(weighed.ours.target)) if weighed.task == "regression" else 1.0)

    def _check_change(self, name: str, value: Any) -> None:
        if not isinstance(value, Mapping):
            return
        if len(value) != 1 or next(iter(value)) not in OPERATIONS:
            self._wrong(f"change.{name}", f"must be a value, or one of {', '.join(OPERATIONS)}: {{add: 5}}")
        operation, operand = next(iter(value.items()))
        if operation in ("add", "times") and (not isinstance(operand, int | float) or isinstance(operand, bool)):
            self._wrong(f"change.{name}.{operation}", f"must be a number, not {operand!r}")

    def _check_example(self, number: int, example: Any) -> None:
        key = f"examples[{number}]"
        if not isinstance(example, Mapping) or not isinstance(example.get("features"), Mapping):
            self._wrong(key, "must be {features: {name: value}, label: …}, or with between: [low, high]")
        if ("label" in example) == ("between" in example):
            self._wrong(key, "must have either label or between: [low, high]")
        if strange := sorted(set(example) - {"features", "label", "between"}):
            self._wrong(f"{key}.{strange[0]}", "is not known: an example has features, and label or between")
        bounds = example.get("between", (0, 0))
        if not isinstance(bounds, Sequence) or len(bounds) != 2 or not bounds[0] <= bounds[1]:
            self._wrong(f"{key}.between", f"must be [low, high], not {bounds}")

    def _wrong(self, key: str, what: str) -> NoReturn:
        raise ConfigError(f"{self.source}, test {self.name!r}: {key} {what}")


def read_tests(folder: str | Path) -> tuple[Behaviour, ...]:
    """Every test of the `.yaml` files of a folder, or of one file, in the order of their names. Raises `ConfigError`
    for a folder without tests, a file that is no YAML, and two tests of one name."""
    import yaml

    root = Path(folder)
    files = sorted([*root.glob("*.yaml"), *root.glob("*.yml")]) if root.is_dir() else [root]
    if not files or not files[0].exists():
        raise ConfigError(f"checks.tests={folder}: there is no such file, or no .yaml file in it")
    found: list[Behaviour] = []
    for file in files:
        try:
            content = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file} is not YAML: {error}") from error
        found += parse_tests(content if isinstance(content, list) else [content], str(file))
    names = [test.name for test in found]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"checks.tests={folder} has two tests of the name {twice[0]!r}: give each its own")
    return tuple(found)


def parse_tests(tests: Sequence[Any], source: str) -> list[Behaviour]:
    """Tests as mappings. Raises `ConfigError` that names source, test and key."""
    known = [f.name for f in dataclasses.fields(Behaviour) if f.name != "source"]
    found = []
    for number, test in enumerate(tests):
        if not isinstance(test, Mapping) or not isinstance(test.get("name"), str):
            raise ConfigError(f"{source}: test {number + 1} must be a mapping with a name and a kind")
        for key in test:
            if key not in known:
                close = difflib.get_close_matches(str(key), known, n=1)
                hint = f"did you mean {close[0]}?" if close else f"it may have {', '.join(known)}"
                raise ConfigError(f"{source}, test {test['name']!r}: {key} is not known; {hint}")
        if "kind" not in test:
            raise ConfigError(f"{source}, test {test['name']!r}: kind must be one of {', '.join(get_args(Kind))}")
        _check_types(test, source)
        found.append(Behaviour(**test, source=source))
    return found


def _check_types(test: Mapping[str, Any], source: str) -> None:
    wanted: dict[str, tuple[tuple[type, ...], str]] = {
        "change": ((Mapping,), "a mapping of feature to value"),
        "examples": ((list, tuple), "a list"),
        "where": ((str,), "a rule such as price > 10"),
        "tolerance": ((int, float), "a number"),
        "bound": ((int, float), "a number"),
        "no_worse": ((bool,), "true or false"),
        "max_rows": ((int,), "a whole number"),
        "min_rows": ((int,), "a whole number"),
    }
    for key, (types, name) in wanted.items():
        value = test.get(key)
        if value is not None and (not isinstance(value, types) or (isinstance(value, bool) and bool not in types)):
            raise ConfigError(f"{source}, test {test['name']!r}: {key} must be {name}, not {value!r}")
