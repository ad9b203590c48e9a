"""Which answered rows are logged: a rate for each stratum, and the weight that makes up for it."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

from cltrain.errors import ConfigError
from cltrain.online.assignment import bucket

FIELDS = ("arm", "version", "label", "score", "latency_ms", "event_id", "unit_id")
LOG_SALT = "log"  # no experiment has it: which units are logged says nothing of their arms
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {"is": operator.eq, "below": operator.lt, "above": operator.gt}
_RULE = re.compile(rf"({'|'.join(FIELDS)}|features\.\S+) (is|below|above) (.*)")

Rule = Callable[[Any], bool]


def rule_of(text: str) -> Rule:
    """Whether a logged row is in the stratum that `text` names: `arm is challenger`, `label is 1`,
    `score below 0.6`, `latency_ms above 50`, `features.country is NZ`. Raises `ConfigError`."""
    found = _RULE.fullmatch(text)
    if found is None:
        raise ConfigError(
            f"serve.log.rates.{text}: write a field ({', '.join(FIELDS)}, features.NAME), then is, below or above, "
            "and a value"
        )
    name, sign, wanted = found.groups()
    compare = _COMPARE[sign]
    if sign == "is":
        return lambda row: _said(_value(row, name)) == wanted
    try:
        bound = float(wanted)
    except ValueError as error:
        raise ConfigError(f"serve.log.rates.{text}: {wanted!r} is no number to compare with") from error

    def compared(row: Any) -> bool:
        value = _value(row, name)
        return isinstance(value, int | float) and compare(value, bound)

    return compared


class Strata:
    """Rows are logged with the chance of the stratum that asks for most, or with `rate` if they are in none. Whether
    one is, is read off its unit, so that the rows of a unit are there together, the unit itself with the highest of
    their chances, and a shadow's answer where the live one is, if their chances are equal (coordinated sampling: Cohen
    & Kaplan 2013)."""

    def __init__(self, rate: float, rates: Mapping[str, float]) -> None:
        self._rate = rate
        self._rules = [(rule_of(text), rate) for text, rate in rates.items()]

    @property
    def all(self) -> bool:
        """Whether every row is logged."""
        return self._rate == 1.0

    def chance(self, row: Any) -> float:
        return max([self._rate, *(rate for rule, rate in self._rules if rule(row))]) if self._rules else self._rate


def drawn(row: Any, chance: float) -> bool:
    """Whether a row (`Prediction`) that has this chance is logged. A row without a unit is one of its own."""
    if chance in (0.0, 1.0):
        return bool(chance)
    return bucket(row.unit_id or row.request_id, LOG_SALT) < chance


def _value(row: Any, name: str) -> Any:
    if name.startswith("features."):
        return row.features.get(name.removeprefix("features."))
    if name == "latency_ms":
        return row.latency_us / 1e3
    return getattr(row, {"label": "label_answer", "score": "prediction"}.get(name, name))


def _said(value: Any) -> str | None:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).lower() if isinstance(value, bool) else None if value is None else str(value)
