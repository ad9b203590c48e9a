"""Rules over columns, as one writes them in settings: `origin == 'JFK' and distance > 1000`.

A rule is read by Python's parser, held against a short list of what may stand in it, and compiled to an expression of
`pyarrow.compute`; nothing is ever run. There may stand: columns, by name or as `col('any name')`; numbers, texts, True,
False; comparisons, also chained as in `5 <= hour < 9`; `in` and `not in` a list of constants; `is None`, `is not None`;
`and`, `or`, `not`; `+ - * /` of numbers. A row in which the answer is not known, since a value is missing, does not
belong to the slice.
"""

from __future__ import annotations

import ast
import difflib
import keyword
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cltrain.errors import ConfigError

_COMPARE: dict[type, Callable[[Any, Any], Any]] = {
    ast.Eq: lambda a, b: a == b,
    ast.NotEq: lambda a, b: a != b,
    ast.Lt: lambda a, b: a < b,
    ast.LtE: lambda a, b: a <= b,
    ast.Gt: lambda a, b: a > b,
    ast.GtE: lambda a, b: a >= b,
}
_ARITHMETIC: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: pc.add,
    ast.Sub: pc.subtract,
    ast.Mult: pc.multiply,
    ast.Div: lambda a, b: pc.divide(a.cast(pa.float64()), b),  # of whole numbers, too, a share; by zero, infinite
}


@dataclass(frozen=True)
class Rule:
    """A rule that can be read. Raises `ConfigError` that shows what may not stand in it."""

    text: str

    def __post_init__(self) -> None:
        self._compiled(None)

    @property
    def columns(self) -> tuple[str, ...]:
        """Those that it reads, in the order in which they are met."""
        found: dict[str, None] = {}
        self._compiled(None, found)
        return tuple(found)

    def expression(self, schema: pa.Schema) -> pc.Expression:
        """For a table of that schema. Raises `ConfigError` where a column is not there."""
        for name in self.columns:
            if name not in schema.names:
                there = [c for c in schema.names if not c.startswith("_")]
                close = difflib.get_close_matches(name, there, n=1)
                hint = f"did you mean {close[0]}?" if close else f"the columns are {', '.join(there)}"
                raise ConfigError(f"{self.text!r}: there is no column {name}; {hint}")
        return self._compiled(schema)

    def mask(self, table: pa.Table) -> np.ndarray:
        """(N,) which rows of the table it holds for.

        >>> Rule("x > 1 and shop in ['a', 'b']").mask(pa.table({"x": [1, 2, 3, None], "shop": ["a", "b", "c", "a"]}))
        array([False,  True, False, False])
        """
        try:
            import pyarrow.dataset as ds  # here, since it imports pandas

            found = ds.dataset(table).to_table(columns={"mask": self.expression(table.schema)}, use_threads=False)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            types = ", ".join(f"{name} is {table.schema.field(name).type}" for name in self.columns)
            raise ConfigError(f"{self.text!r} does not fit its columns ({types}): {error}") from error
        mask = found.column("mask")
        if not pa.types.is_boolean(mask.type):
            raise ConfigError(f"{self.text!r} is not a condition: compare it with something")
        return np.asarray(pc.fill_null(mask, False))

    def _compiled(self, schema: pa.Schema | None, columns: dict[str, None] | None = None) -> Any:
        try:
            body = ast.parse(self.text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
            raise ConfigError(f"{self.text[:200]!r} cannot be read as a condition: {error}") from error
        met: dict[str, None] = {} if columns is None else columns
        compiled = _Compiler(self.text, schema, met)(body)
        if not met:
            raise ConfigError(f"{self.text!r} names no column: write a condition such as distance > 1000")
        return compiled


def quoted(column: str) -> str:
    """The column as a rule names it.

    >>> quoted("hour"), quoted("arrival delay")
    ('hour', "col('arrival delay')")
    """
    return column if column.isidentifier() and not keyword.iskeyword(column) else f"col({column!r})"


@dataclass(frozen=True)
class _Compiler:
    text: str
    schema: pa.Schema | None
    columns: dict[str, None]

    def __call__(self, node: ast.AST) -> Any:
        if isinstance(node, ast.BoolOp):
            values = [self(value) for value in node.values]
            return self._joined(isinstance(node.op, ast.And), values)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            return ~self._condition(self(node.operand))
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            value = self(node.operand)
            if isinstance(value, pc.Expression):
                return pc.multiply(value, pc.scalar(-1))
            return -self._constant(value, (int, float))
        if isinstance(node, ast.Compare):
            return self._compared(node)
        if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
            sides = [self(side) for side in (node.left, node.right)]
            return _ARITHMETIC[type(node.op)](
                *(s if isinstance(s, pc.Expression) else pc.scalar(self._constant(s, (int, float))) for s in sides)
            )
        if isinstance(node, ast.Name):
            return self._column(node.id)
        if isinstance(node, ast.Constant):
            return self._constant(node.value, (int, float, str, bool))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "col":
            name = node.args[0] if len(node.args) == 1 and not node.keywords else None
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                return self._column(name.value)
        raise self._refused(node)

    def _compared(self, node: ast.Compare) -> Any:
        parts, left = [], node.left
        for operator, right in zip(node.ops, node.comparators, strict=True):
            parts.append(self._pair(node, left, operator, right))
            left = right
        return self._joined(True, parts) if len(parts) > 1 else parts[0]

    def _pair(self, node: ast.AST, left: ast.expr, operator: ast.cmpop, right: ast.expr) -> Any:
        a = self(left)
        if isinstance(operator, ast.Is | ast.IsNot):
            if not (isinstance(right, ast.Constant) and right.value is None and isinstance(a, pc.Expression)):
                raise self._refused(node)
            return a.is_null() if isinstance(operator, ast.Is) else a.is_valid()
        if isinstance(operator, ast.In | ast.NotIn):
            if not isinstance(right, ast.List | ast.Tuple | ast.Set) or not isinstance(a, pc.Expression):
                raise self._refused(node)
            values = [self._fitted(left, self._constant(self(item), (int, float, str, bool))) for item in right.elts]
            found = a.isin(pa.array(values) if values else [])
            return found if isinstance(operator, ast.In) else ~found & a.is_valid()
        if type(operator) not in _COMPARE:
            raise self._refused(node)
        b = self(right)
        if not isinstance(a, pc.Expression) and not isinstance(b, pc.Expression):
            raise self._refused(node)
        return _COMPARE[type(operator)](self._fitted(right, a), self._fitted(left, b))

    def _fitted(self, other: ast.expr, value: Any) -> Any:
        """A text beside a column of instants is one: `_event_time >= '2013-07-01'`."""
        name = other.id if isinstance(other, ast.Name) else None
        if self.schema is None or not isinstance(value, str) or name not in self.schema.names:
            return value
        kind = self.schema.field(name).type
        if not pa.types.is_timestamp(kind) and not pa.types.is_date(kind):
            return value
        try:
            if pa.types.is_timestamp(kind) and kind.tz and value[-1:] != "Z" and "+" not in value:
                value = pc.assume_timezone(pa.scalar(value).cast(pa.timestamp(kind.unit)), kind.tz)
            return pa.scalar(value).cast(kind) if isinstance(value, str) else value
        except (pa.ArrowInvalid, ValueError) as error:
            raise ConfigError(f"{self.text!r}: {value!r} is not an instant such as '2013-07-01'") from error

    def _joined(self, every: bool, values: list[Any]) -> Any:
        joined = self._condition(values[0])
        for value in values[1:]:
            joined = joined & self._condition(value) if every else joined | self._condition(value)
        return joined

    def _condition(self, value: Any) -> pc.Expression:
        if not isinstance(value, pc.Expression):
            raise ConfigError(f"{self.text!r}: {value!r} is not a condition; compare a column with it")
        return value

    def _column(self, name: str) -> pc.Expression:
        self.columns[name] = None
        return pc.field(name)

    def _constant(self, value: Any, kinds: tuple[type, ...]) -> Any:
        if not isinstance(value, kinds):
            raise ConfigError(f"{self.text!r}: {value!r} may not stand there; use numbers and texts")
        return value

    def _refused(self, node: ast.AST) -> ConfigError:
        part = ast.get_source_segment(self.text.strip(), node) or self.text
        return ConfigError(
            f"{self.text!r}: {part!r} may not stand in a rule. There may stand columns, numbers, texts, comparisons, "
            "in, is None, and, or, not, + - * /, and col('any name')"
        )
