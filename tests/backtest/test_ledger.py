"""Which strategies are tried, whoever runs them, and what is kept of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cltrain.backtest.ledger import Kept, Trials, objectives_of
from cltrain.backtest.searcher import Sobol, make_searcher
from cltrain.backtest.strategy import Composed, Strategy
from cltrain.records import Json
from cltrain.search import Values
from cltrain.storage import Storage

SPACE = {"x": Values(low=0.0, high=1.0), "n": Values(choices=(1, 2, 3)), "k": Values(low=1, high=9)}
OBJECTIVES = ("quality", "retention", "rows", "updates")


def strategy(name: str, **settings: Any) -> Strategy:
    from cltrain.assemble import STRATEGY

    return Strategy(name=name, composed=Composed(dict.fromkeys(STRATEGY) | {"model": {"name": name} | settings}))


def result(plan: Json) -> Json:
    """What a trial of a made-up world comes to: more work, less loss."""
    x = plan["settings"]["model"].get("x", 0.5)
    rows = int(1_000 * (1 + x))
    periods = {"rows": [100] * 4, "losses": [60 - 10 * x] * 4, "metrics": []}
    ranked = {"loss": 0.6 - 0.1 * x, "retention": {"log_loss": 0.5}, "rows": rows, "updates": 3}
    return {
        "ranked": ranked, "all": ranked if plan["whole"] else None, "periods": periods, "stopped": None, "error": None,
        "points": [[1, 100, 60.0, rows, 1]], "seconds": 1.0,
    }  # fmt: skip


def ledger(folder: Path, kind: str = "tpe", choose: Callable[[list[Json]], int | None] | None = None) -> Trials:
    def at(number: int, point: Json) -> Strategy:
        return replace(strategy("same", **point), name=f"strategy_{number:02d}", point=point)

    return Trials(
        fixed=[strategy("baseline"), strategy("current"), strategy("named", x=0.1)],
        whole=("current", "baseline"),
        at=at,
        searcher=make_searcher(SPACE, kind, len(OBJECTIVES), 2**40, 9),
        objectives=OBJECTIVES,
        count=12,
        generation=3,
        kept=Kept(Storage(folder), {"history": "of a year"}),
        choose=choose or (lambda lines: min(lines, key=lambda line: (line["ranked"]["loss"], line["trial"]))["trial"]),
        baseline="baseline",
    )


def run(trials: Trials, at_once: int, seed: int = 0) -> list[str]:
    """Run them, so many at once, ending in any order but for the baseline, which ends last; the order of beginning."""
    generator = np.random.default_rng(seed)
    running: dict[int, Json] = {}
    begun = []
    while True:
        while len(running) < at_once and (trial := trials.begin()) is not None:
            running[trial["trial"]] = json.loads(trial["plan"])
            begun.append(trials.strategies[trial["trial"]].name)
        if not running:
            assert trials.over
            return begun
        others = [n for n in running if trials.strategies[n].name != "baseline"] or list(running)
        number = int(generator.choice(others))
        trials.end(number, result(running.pop(number)))


@pytest.mark.parametrize("kind", ["tpe", "nsga2", "sobol"])
def test_the_same_is_tried_whoever_ends_first(kind: str, tmp_path: Path) -> None:
    tables = []
    for i, at_once in enumerate((1, 3, 5)):
        trials = ledger(tmp_path / str(i), kind)
        begun = run(trials, at_once, seed=i)
        assert begun[:3] == ["baseline", "current", "named"]
        assert len(begun) == 13, "twelve, and the choice once more over all of history"
        tables.append(trials.table())
    assert tables[0] == tables[1] == tables[2]
    best = min(tables[0], key=lambda line: line["ranked"]["loss"])
    assert best["name"] == begun[-1]
    assert [line["name"] for line in tables[0] if line["all"]] == ["baseline", "current", best["name"]]


def test_nothing_is_tried_twice(tmp_path: Path) -> None:
    whole = ledger(tmp_path)
    run(whole, 2)
    again = ledger(tmp_path)
    assert run(again, 2) == []
    assert again.table() == whole.table()
    interrupted = ledger(tmp_path / "other")
    for _ in range(5):
        trial = interrupted.begin()
        assert trial is not None
        interrupted.end(trial["trial"], result(json.loads(trial["plan"])))
    resumed = ledger(tmp_path / "other")
    assert len(run(resumed, 2)) == 13 - 5
    assert resumed.table() == whole.table()


def test_what_was_given_up_is_taken_up_again_against_other_bars(tmp_path: Path) -> None:
    kept = Kept(Storage(tmp_path), {})
    one = strategy("one")
    stopped = {"ranked": None, "all": None, "stopped": "at 2013-05-01 …", "error": None}
    kept.keep(one, stopped, [{"name": "current"}])
    assert kept.find(one, False, [{"name": "current"}]) is not None
    assert kept.find(one, False, []) is None
    assert kept.find(one, True, [{"name": "current"}]) is None, "the choice runs to the end"
    assert Kept(Storage(tmp_path), {"other": "data"}).find(one, False, []) is None


def test_a_lost_trial_is_no_result_and_is_not_kept(tmp_path: Path) -> None:
    trials = ledger(tmp_path, "sobol", choose=lambda lines: None)
    begun = [trials.begin() for _ in range(3)]
    assert trials.begin() is None, "a generation waits"
    for trial in begun:
        assert trial is not None
        line = trials.end(trial["trial"], None)
        assert line["error"] == "its process was lost"
    assert objectives_of(line, OBJECTIVES) is None
    assert not list(tmp_path.rglob("*.json"))
    later = trials.begin()
    assert later is not None
    assert json.loads(later["plan"])["bars"] == []


def test_bars_are_those_that_nothing_before_beats(tmp_path: Path) -> None:
    trials = ledger(tmp_path, "sobol")
    for _ in range(3):
        trial = trials.begin()
        assert trial is not None
        trials.end(trial["trial"], result(json.loads(trial["plan"])))
    later = trials.begin()
    assert later is not None
    assert [bar["name"] for bar in json.loads(later["plan"])["bars"]] == ["current", "named"], "not the baseline"


def test_a_searcher_stays_within_its_space() -> None:
    for searcher in (make_searcher(SPACE, "tpe", 2, 0, 30), make_searcher(SPACE, "nsga2", 2, 0, 30), Sobol(SPACE, 0)):
        for i in range(30):
            point = searcher.ask()
            assert 0 <= point["x"] <= 1
            assert point["n"] in (1, 2, 3)
            assert point["k"] in range(1, 10)
            searcher.tell(point, None if i % 3 == 0 else [point["x"], -point["x"]])
