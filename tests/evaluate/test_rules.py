"""Rules: what they say of rows, and what may not stand in one."""

from __future__ import annotations

import pyarrow as pa
import pytest

from cltrain.errors import ConfigError
from cltrain.evaluate.rules import Rule, quoted

INSTANTS = pa.array([0, 1, 2 * 10**15], pa.timestamp("us", tz="UTC"))
TABLE = pa.table(
    {
        "shop": pa.array(["a", "b", None]).dictionary_encode(),
        "x": [1.0, 2.0, None],
        "i": [1, 2, 3],
        "flag": [True, False, None],
        "_event_time": INSTANTS,
        "arrival delay": [5, 6, 7],
    }
)


@pytest.mark.parametrize(
    ("rule", "rows"),
    [
        ("shop == 'a'", [0]),
        ("shop != 'a'", [1]),
        ("not shop == 'a'", [1]),
        ("shop in ['a', 'z']", [0]),
        ("shop not in ('a',)", [1]),
        ("i in []", []),
        ("0 < x <= 1", [0]),
        ("x is None", [2]),
        ("x is not None and not flag", [1]),
        ("flag", [0]),
        ("i / 2 > 0.6", [1, 2]),
        ("i / 0 > 1", [0, 1, 2]),
        ("-i < -1", [1, 2]),
        ("i - x * 2 < -1 or i == 3.0", [1, 2]),
        ("_event_time >= '2001-01-01'", [2]),
        ("'2001-01-01T00:00:00Z' > _event_time", [0, 1]),
        ("col('arrival delay') > 5", [1, 2]),
        ('shop == "it\'s"', []),
    ],
)
def test_which_rows_it_has(rule: str, rows: list[int]) -> None:
    assert Rule(rule).mask(TABLE).nonzero()[0].tolist() == rows


@pytest.mark.parametrize(
    "rule",
    [
        "__import__('os').system('true')", "x.real > 1", "[y for y in x]", "x if flag else i", "lambda: 1",
        "i ** 9 > 1", "col(shop) > 1", "open('f') == 1", "f'{x}' == '1'", "x == b'1'", "x := 1", "x[0] > 1", "i is 3",
        "x + 'a' > 2", "1 < 2", "True", "x >", "", "not " * 10_000 + "flag", "x in i", "shop == None",
    ],
)  # fmt: skip
def test_what_may_not_stand_in_one(rule: str) -> None:
    with pytest.raises(ConfigError):
        Rule(rule)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ("shopp == 'a'", "did you mean shop"),
        ("shop > 1", "does not fit its columns"),
        ("x", "is not a condition"),
        ("_event_time > 'soon'", "not an instant"),
    ],
)
def test_what_does_not_fit_the_table_is_refused(rule: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Rule(rule).mask(TABLE)


def test_its_columns() -> None:
    assert Rule("shop == 'a' and 1 < x < i and x > 0").columns == ("shop", "x", "i")
    assert Rule(f"{quoted('arrival delay')} > 1 and {quoted('class')} == 1").columns == ("arrival delay", "class")
