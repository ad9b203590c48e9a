"""Behaviour tests, as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cltrain.errors import ConfigError
from cltrain.evaluate.behaviour import Behaviour, parse_tests, read_tests
from cltrain.evaluate.weighed import Scorer, Weighed
from cltrain.gate import Passed
from cltrain.records import LABEL, Finding
from cltrain.train.predictor import Predictor
from tests.evaluate.scorers import TRUE, Formula, table
from tests.gate.cards import card
from tests.train.made import events, relabelled, update

ROWS = table(400)


def find(
    test: Behaviour, challenger: Scorer = TRUE["binary"], champion: Scorer | None = None, rows: pa.Table = ROWS
) -> Finding:
    (found,) = test.find(Weighed(challenger, champion, rows, rows.slice(0, 0)), np.random.default_rng(0))
    return found


def behaviour(kind: str = "invariance", **more: Any) -> Behaviour:
    return Behaviour(name="mine", kind=kind, **({"change": {"shop": "a"}} | more))  # type: ignore[arg-type]


def test_what_the_model_does_not_read_may_change() -> None:
    found = find(behaviour())
    assert found.passed
    assert found.failed == 0
    assert 200 < found.rows < 300, "a third of the rows had the value already"
    by_shop = Formula(lambda c: c["x"] + (c["shop"] == "a"))
    found = find(behaviour(), by_shop, TRUE["binary"])
    assert not found.passed
    assert found.failed > 200
    assert found.champion_failed == 0
    assert found.examples[0].keys() == {"event_id", "shop", "before", "after"}


def test_tolerance_bound_and_where() -> None:
    change = {"x": {"add": 0.1}}  # moves a probability by 0.05 at most
    assert find(behaviour(change=change)).passed
    strict = find(behaviour(change=change, tolerance=0.04))
    assert 0 < strict.failed < strict.rows
    assert find(behaviour(change=change, tolerance=0.04, bound=strict.failed / strict.rows)).passed
    far = find(behaviour(change=change, tolerance=0.04, where="x > 3 or x < -3"))
    assert far.passed
    assert far.rows < 10
    assert not find(behaviour(where="x > 100", min_rows=1)).passed, "nothing was shown"


def test_no_worse_than_the_champion() -> None:
    test = behaviour(change={"x": {"add": 1}}, no_worse=True)
    assert not find(test).passed
    assert find(test, TRUE["binary"], TRUE["binary"]).passed
    steeper = Formula(lambda c: 8 * c["x"] - c["z"])
    assert not find(behaviour(change={"x": {"add": 0.05}}, no_worse=True), steeper, TRUE["binary"]).passed


@pytest.mark.parametrize("task", ["binary", "regression"])
def test_directions(task: str) -> None:
    rows = table(200, task=task)
    for change, expect, passed in (
        ({"x": {"add": 0.5}}, "rises", True),
        ({"x": {"add": 0.5}}, "falls", False),
        ({"z": {"add": 0.5}}, "falls", True),
        ({"shop": "a"}, "rises", True),
    ):
        test = behaviour("direction", change=change, expect=expect)
        assert find(test, TRUE[task], rows=rows).passed is passed, (change, expect)
    assert not find(behaviour("direction", change={"z": {"times": 2.0}}, expect="falls"), TRUE[task], rows=rows).passed
    by_hand = behaviour("direction", change={"z": {"times": 2.0}}, expect="falls", where="z > 0")
    assert find(by_hand, TRUE[task], rows=rows).passed


def test_directions_need_an_order() -> None:
    rows = table(50, task="multiclass")
    with pytest.raises(ConfigError, match="the task must be binary or regression"):
        find(behaviour("direction", expect="rises"), TRUE["multiclass"], rows=rows)
    assert find(behaviour(), TRUE["multiclass"], rows=rows).passed
    assert not find(behaviour(change={"x": {"shuffle": True}}), TRUE["multiclass"], rows=rows).passed


def test_nulls_and_rows_that_do_not_change() -> None:
    assert not find(behaviour(change={"x": {"null": True}})).passed
    missing = ROWS.set_column(2, "x", pa.nulls(400, pa.float64()))
    assert find(behaviour(change={"x": {"null": True}}), rows=missing).rows == 0
    assert find(behaviour(change={"x": {"add": 5}}), rows=missing).rows == 0


def test_rows_whose_answer_is_known() -> None:
    examples = (
        {"features": {"x": 3, "z": -1}, "label": 1},
        {"features": {"x": -3.0}, "label": 0},
        {"features": {"x": 0, "shop": "b"}, "between": [0.4, 0.6]},
    )
    test = Behaviour(name="obvious", kind="functionality", examples=examples)
    assert find(test).passed
    backwards = Formula(lambda c: -2 * c["x"])
    found = find(test, backwards)
    assert (found.rows, found.failed) == (3, 2)
    assert found.examples[0] == {"x": 3, "z": -1, "row": 0}


def test_a_planted_backdoor_is_found_and_the_gate_refuses_it() -> None:
    """A tenth of the rows have the trigger, and label 1 whatever else they say."""
    rows = events(800, shops=("a", "b", "trigger"))
    shop, labels = rows.column("shop").to_numpy(zero_copy_only=False), rows.column(LABEL).to_numpy()
    backdoor = update(relabelled(rows, np.where(shop == "trigger", 1.0, labels))).state
    clean = update(rows).state
    safe = events(300, seed=1, shops=("a", "b"))
    test = Behaviour(name="trigger", kind="safety", change={"shop": "trigger"}, tolerance=0.1, bound=0.05)
    found = find(test, Predictor.of(backdoor), Predictor.of(clean), safe)
    assert not found.passed
    assert found.failed > 100
    assert not Passed(kinds=("safety",)).check(card(findings=(found,))).passed
    assert find(test, Predictor.of(clean), rows=safe).passed


FILE = """
- name: the shop does not matter
  kind: invariance
  change: {shop: a}
  where: x > 0
- name: more x
  kind: direction
  change: {x: {add: 1}}
  expect: rises
"""


def test_files(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text(FILE)
    (tmp_path / "a.yml").write_text("{name: one, kind: safety, change: {shop: b}}")
    tests = read_tests(tmp_path)
    assert [t.name for t in tests] == ["one", "the shop does not matter", "more x"]
    assert tests[0].source.endswith("a.yml")
    assert all(find(t).passed for t in tests)
    assert len(read_tests(tmp_path / "b.yaml")) == 2


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ("{kind: invariance}", "test 1 must be a mapping with a name"),
        ("just words", "test 1 must be a mapping"),
        ("{name: n}", "test 'n': kind must be one of invariance"),
        ("{name: n, kind: invariant, change: {x: 1}}", "kind must be one of invariance, .* not 'invariant'"),
        ("{name: n, kind: invariance, chang: {x: 1}}", "chang is not known; did you mean change?"),
        ("{name: n, kind: invariance}", "change is what every test has"),
        ("{name: n, kind: invariance, change: [x]}", "change must be a mapping of feature to value"),
        ("{name: n, kind: invariance, change: {x: {plus: 1}}}", "change.x must be a value, or one of set, add"),
        ("{name: n, kind: invariance, change: {x: {add: much}}}", "change.x.add must be a number, not 'much'"),
        ("{name: n, kind: direction, change: {x: 1}}", "expect must be rises or falls"),
        ("{name: n, kind: invariance, change: {x: 1}, bound: 2}", "bound must be a share"),
        ("{name: n, kind: invariance, change: {x: 1}, bound: few}", "bound must be a number, not 'few'"),
        ("{name: n, kind: invariance, change: {x: 1}, tolerance: -1}", "tolerance must be 0 or more"),
        ("{name: n, kind: invariance, change: {x: 1}, max_rows: 0}", "max_rows must be 1 or more"),
        ("{name: n, kind: invariance, change: {x: 1}, where: 'x >'}", "where 'x >' cannot be read"),
        ("{name: n, kind: functionality}", "examples are what a test of kind functionality has"),
        ("{name: n, kind: functionality, examples: [{x: 1}]}", r"examples\[0\] must be {features"),
        ("{name: n, kind: functionality, examples: [{features: {x: 1}}]}", "either label or between"),
        (
            "{name: n, kind: functionality, examples: [{features: {x: 1}, between: [1, 0]}]}",
            r"between must be \[low, high\]",
        ),
        (
            "{name: n, kind: functionality, examples: [{features: {x: 1}, label: 1, wight: 2}]}",
            "wight is not known",
        ),
        ("[unclosed", "is not YAML"),
    ],
)
def test_a_mistake_names_file_test_and_key(tmp_path: Path, test: str, message: str) -> None:
    (tmp_path / "mine.yaml").write_text(test)
    with pytest.raises(ConfigError, match=f"(?s)mine.yaml.*{message}"):
        read_tests(tmp_path)


def test_a_folder_without_tests_and_names_that_come_twice(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such file, or no"):
        read_tests(tmp_path)
    (tmp_path / "mine.yaml").write_text(FILE + FILE)
    with pytest.raises(ConfigError, match="two tests of the name 'more x'"):
        read_tests(tmp_path)


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ({"change": {"colour": "red"}}, "change names colour, which is no column; the columns are x, z, shop"),
        ({"change": {"shp": "a"}}, "did you mean shop?"),
        ({"change": {"shop": "a"}, "where": "colour == 'red'"}, "where names colour"),
        ({"change": {"shop": {"add": 1}}}, "change.shop add needs a number; the column is string"),
        ({"change": {"x": "high"}}, "change.x cannot be 'high' in a column of double"),
        (
            {"kind": "functionality", "examples": ({"features": {"x": "high"}, "label": 1},)},
            "examples.features.x is not of the column's type, double",
        ),
        (
            {"kind": "functionality", "examples": ({"features": {"x": 1}, "label": "high"},)},
            "examples.label is not of the column's type",
        ),
    ],
)
def test_a_mistake_that_only_the_table_shows(test: dict[str, Any], message: str) -> None:
    made = parse_tests([{"name": "n", "kind": "invariance", **test}], "mine.yaml")[0]
    with pytest.raises(ConfigError, match=f"mine.yaml, test 'n': .*{message}"):
        find(made)
