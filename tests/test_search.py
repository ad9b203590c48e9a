"""The space and the budget of a search."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from cltrain.config import build
from cltrain.errors import ConfigError, UpdateError
from cltrain.search import Search, TrialLog, Trials, Values, best, candidates, needs_stateful, visits_of, with_settings
from cltrain.storage import Storage

SettingsOf = Callable[..., dict[str, Any]]
LEARNING_RATE = {"train.stateless.learning_rate": {"low": 1e-4, "high": 1e-2, "log": True}}


def test_the_usual_space_fits_every_model(settings_of: SettingsOf) -> None:
    usual = settings_of(job="search")["search"]["usual"]
    for model in ("tabular", "cnn", "text"):
        settings = settings_of(f"model={model}", job="search")
        space = Search(usual=usual).checked(settings)
        assert {"train.stateless.learning_rate", "model.embedding_dim"} <= space.keys()
        assert ("model.hidden" in space) == (model == "tabular")


def test_a_space_is_an_override_and_replaces_the_usual_one(settings_of: SettingsOf) -> None:
    ours = "{train.stateless.learning_rate: {low: 1e-4, high: 1e-2, log: true}, model.hidden: [[64, 32], [128]]}"
    settings = settings_of(f"search.space={ours}", job="search")
    assert settings["search"]["space"] == LEARNING_RATE | {"model.hidden": [[64, 32], [128]]}


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"train.stateless.lerning_rate": [1]}, "did you mean train.stateless.learning_rate"),
        ({"window.every": ["1d"]}, "window.every is no setting that can be searched"),
        ({"model.name": ["a"]}, "model.name is no setting that can be searched"),
        ({"train.stateless.epochs": [1, 0]}, r"train.stateless.epochs=0 cannot be.*must be 1 or more"),
        ({"train.stateless.epochs": ["many"]}, "train.stateless.epochs='many' must be a whole number"),
        ({"train.stateless.learning_rate": {"low": -1, "high": 1}}, "train.stateless.learning_rate=-1 cannot be"),
        ({"train.stateless.learning_rate": {"low": 0, "high": 1, "log": True}}, "make it above 0"),
        ({"train.stateless.learning_rate": {"low": 1, "high": 1}}, "low < high"),
        ({"train.stateless.learning_rate": {"min": 1, "max": 2}}, "list of choices or"),
        ({"train.stateless.learning_rate": []}, "has no choices"),
        ({"method.parts.ewc.strength": [-1]}, "method.parts.ewc.strength=-1 cannot be"),
        ({}, "search.space is empty"),
    ],
)
def test_a_mistake_in_the_space_names_its_key(settings_of: SettingsOf, space: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Search(space=space).checked(settings_of(job="search"))


@pytest.mark.parametrize("wrong", [{"max_trials": 1}, {"max_rows": 0}, {"validation_share": 1}, {"cpus_per_trial": 0}])
def test_a_budget_has_ranges(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Search(**wrong)


def test_candidates_start_with_what_is_and_cover_the_space(settings_of: SettingsOf) -> None:
    settings = settings_of(job="search")
    space = Search(space=LEARNING_RATE | {"train.stateless.epochs": {"low": 2, "high": 5}}).checked(settings)
    found = candidates(space, settings, 17, seed=0)
    assert found == candidates(space, settings, 17, seed=0) != candidates(space, settings, 17, seed=1)
    assert found[0] == {"train.stateless.learning_rate": 1e-3, "train.stateless.epochs": 3}
    rates = [point["train.stateless.learning_rate"] for point in found[1:]]
    for low, high in pairwise([1e-4, 10**-3.5, 1e-3, 10**-2.5, 1.001e-2]):
        assert sum(low <= rate < high for rate in rates) == 4, "a quarter of 16 points in each quarter"
    assert [sum(p["train.stateless.epochs"] == n for p in found[1:]) for n in (2, 3, 4, 5)] == [4, 4, 4, 4]
    changed = with_settings(settings, found[3])
    assert changed["train"]["stateless"]["learning_rate"] == found[3]["train.stateless.learning_rate"]
    assert settings["train"]["stateless"]["learning_rate"] == 1e-3, "the original is left alone"


def test_a_small_space_ends(settings_of: SettingsOf) -> None:
    settings = settings_of(job="search")
    space = Search(space={"model.dropout": [0.0, 0.1], "model.embedding_dim": [6, 4]}).checked(settings)
    assert len(candidates(space, settings, 50, seed=0)) == 4


def test_visits_are_those_of_the_training(settings_of: SettingsOf) -> None:
    settings = settings_of("train.stateless.min_steps=0", "train.stateless.validation_share=0", job="search")
    assert visits_of(settings, stateful=False)(1000) == 3 * 1000
    replayed = settings["method"]["parts"]["replay"]["ratio"]
    stateful = build(settings["train"]["stateful"])
    size, epochs = stateful.plan(250)
    expected = 3 * 750 + 250 * epochs * (1 + round(replayed * size) / size)
    assert visits_of(settings, stateful=True)(1000) == pytest.approx(expected, abs=1)
    scratch = settings_of("method=from_scratch", "train.stateless.validation_share=0", job="search")
    assert visits_of(scratch, stateful=True)(10**5) == 3 * 10**5
    assert needs_stateful({"method.parts.ewc.strength": Values()})
    assert not needs_stateful({"train.stateless.epochs": Values()})


def spend(trials: Trials, at_once: int, seed: int, share: tuple[float, float] = (1, 1)) -> list[dict[str, Any]]:
    """Run them, `at_once` side by side, ending in any order; each visits a fixed part of what was planned for it."""
    order, running = random.Random(seed), []
    while True:
        trial = trials.begin() if len(running) < at_once else None
        if trial:
            running.append(trial)
        elif running:
            done = running.pop(order.randrange(len(running)))
            used = share[0] + (share[1] - share[0]) * (done["trial"] * 0.618 % 1)
            result = {"score": 1.0, "rows": round(done["planned"] * used), "seconds": 0, "error": None}
            trials.end(done["trial"], result)
        else:
            assert trials.over, "it waits for nobody"
            return trials.table()


def made(count: int = 200, **more: Any) -> Trials:
    costs = [1 + i * 7 % 5 for i in range(count)]
    visits = [lambda rows, cost=cost: cost * rows for cost in costs]
    return Trials(candidates=[{"x": i} for i in range(count)], visits=visits, rows=1000, **more)


@pytest.mark.parametrize("budget", [1_000, 7_777, 50_000, 123_456])
@pytest.mark.parametrize("share", [(1, 1), (0.2, 1), (0.3, 0.4)])
def test_the_budget_is_spent_to_five_percent(budget: int, share: tuple[float, float]) -> None:
    tables = [spend(made(max_rows=budget), at_once, seed, share) for seed, at_once in enumerate((1, 2, 5, 16))]
    assert all(table == tables[0] for table in tables), "however many run at once and whichever ends first"
    assert 0.95 * budget <= sum(trial["rows"] for trial in tables[0]) <= budget


def test_trials_end_with_their_number_or_their_time() -> None:
    assert len(spend(made(7), 3, 0)) == 7
    ticks = iter(range(100))
    assert len(spend(made(max_seconds=5, clock=lambda: next(ticks)), 1, 0)) < 10


def test_a_budget_below_one_trial_is_refused() -> None:
    with pytest.raises(ConfigError, match="does not pay for one trial"):
        made(max_rows=999)


def test_known_trials_are_not_run_again(tmp_path: Path) -> None:
    tried = TrialLog(Storage(tmp_path), {"work": 1})
    whole = spend(made(max_rows=20_000), 1, 0, (0.2, 1))
    for trial in whole[:5]:
        tried.keep(trial)
    again = made(max_rows=20_000, known=tried.known())
    first = again.begin()
    assert first is not None
    assert first["trial"] == 5
    again.end(5, {key: whole[5][key] for key in ("score", "rows", "seconds", "error")})
    assert spend(again, 1, 0, (0.2, 1)) == whole
    other = made(max_rows=20_000, known={0: whole[0] | {"of_rows": 3}}).begin()
    assert other is not None
    assert other["trial"] == 0, "a trial of other rows is another trial"


def test_the_best_is_the_lowest_and_then_the_first() -> None:
    table = [{"trial": i, "score": score, "error": "bad"} for i, score in enumerate([None, 0.5, 0.4, 0.4])]
    assert best(table)["trial"] == 2
    with pytest.raises(UpdateError, match="none of 1 trials could be trained: bad"):
        best(table[:1])


def test_a_lost_trial_costs_what_was_planned() -> None:
    trials = made(3)
    trials.begin()
    line = trials.end(0, None)
    assert (line["score"], line["rows"], line["error"]) == (None, line["planned"], "its process was lost")
