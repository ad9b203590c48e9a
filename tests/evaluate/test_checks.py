"""Labels that are noise, spoilt inputs, importance, and all checks together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from cltrain.config import build
from cltrain.errors import ConfigError
from cltrain.evaluate.checks import Checks
from cltrain.evaluate.importance import importance
from cltrain.evaluate.labels import Labels, random_share
from cltrain.evaluate.robustness import Robustness
from cltrain.evaluate.weighed import Weighed
from cltrain.records import Finding
from tests.evaluate.scorers import TRUE, Formula, table

GENERATOR = np.random.default_rng(0)
ROUNDED = table(600).column("z").to_numpy()


def labels_of(task: str, noise: float, seed: int, challenger: Any = None) -> Finding:
    weighed = Weighed(challenger or TRUE[task], TRUE[task], table(400, seed, task, noise), table(800, seed + 500, task))
    return Labels().find(weighed, GENERATOR)[0]


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_flipped_labels_are_found_and_sound_ones_are_not(task: str) -> None:
    sound = [labels_of(task, 0.0, seed) for seed in range(10)]
    noisy = [labels_of(task, 0.3, seed) for seed in range(10)]
    assert all(f.passed and f.failed == 0 for f in sound)
    assert not any(f.passed for f in noisy)
    assert all(f.failed > 60 for f in noisy)


def test_a_concept_that_moves_is_no_noise_if_the_challenger_follows() -> None:
    moved = Formula(lambda c: -2 * c["x"] + c["z"])
    rows = table(400)
    backwards = rows.set_column(1, "_label", [1 - rows.column("_label").to_numpy()])
    weighed = Weighed(moved, TRUE["binary"], backwards, table(800, 1))
    assert Labels().find(weighed, GENERATOR)[0].passed
    assert not Labels().find(Weighed(TRUE["binary"], TRUE["binary"], backwards, table(800, 1)), GENERATOR)[0].passed


def test_nothing_is_said_of_labels_without_a_champion_or_with_few_rows() -> None:
    rows = table(100)
    assert Labels().find(Weighed(TRUE["binary"], None, rows, rows), GENERATOR) == ()
    assert Labels().find(Weighed(TRUE["binary"], TRUE["binary"], rows, rows.slice(0, 39)), GENERATOR) == ()


def test_the_share_of_a_mixture_by_hand() -> None:
    parts = np.array([[1.0, 0.5]] * 3 + [[0.0, 0.5]])  # likelihood (w + (1 - w) / 2)^3 (1 - w) / 2 is largest at 1/2
    assert random_share(parts)[0] == pytest.approx(0.5, abs=1e-3)


def test_importance_ranks_a_known_linear_model() -> None:
    rows = table(2_000, task="regression")
    model = Formula(lambda c: 2 * c["x"] - c["z"] + 0.3 * (c["shop"] == "a"), "regression")
    found = importance(model, rows, np.random.default_rng(0))
    assert [f["feature"] for f in found] == ["x", "z", "shop"]
    assert found[0]["rise"] == pytest.approx(2 * 2**2, rel=0.1), "twice the variance of what the feature adds"
    assert found[1]["rise"] == pytest.approx(2, rel=0.15)
    nothing = importance(Formula(lambda c: 2 * c["x"]), rows, np.random.default_rng(0))
    assert [f["rise"] for f in nothing[1:]] == [0.0, 0.0]
    assert importance(model, rows.slice(0, 0), np.random.default_rng(0)) == ()
    assert importance(model, rows, np.random.default_rng(0)) == found


def spoilt(challenger: Any, champion: Any = None, **settings: Any) -> dict[str, Finding]:
    weighed = Weighed(challenger, champion, table(600), table(0))
    return {f.name.split()[0]: f for f in Robustness(**settings).find(weighed, np.random.default_rng(0))}


def test_robustness() -> None:
    calm = spoilt(TRUE["binary"])
    assert {name: (f.rows, f.passed) for name, f in calm.items()} == {"a": (1, True), "noise": (2, True)}
    fragile = Formula(lambda c: 2 * c["x"] - c["z"] - 20 * ~np.isin(c["shop"], ["a", "b", "c"]))
    unseen = spoilt(fragile, missing=None, noise=None)["a"]
    assert not unseen.passed
    assert unseen.examples[0]["feature"] == "shop"
    jumpy = Formula(lambda c: 2 * c["x"] - c["z"] + 30 * (np.abs(c["z"] - ROUNDED[: len(c["z"])]) > 1e-9))
    assert [e["feature"] for e in spoilt(jumpy)["noise"].examples] == ["z", "x"]
    assert not spoilt(jumpy)["noise"].passed
    shaken = [spoilt(TRUE["binary"], noise_std=std)["noise"].examples for std in (0.1, 1.0)]
    assert shaken[0] != shaken[1]


def test_a_challenger_may_be_as_fragile_as_its_champion() -> None:
    alone = Robustness(missing=0.1, noise=None, unseen=None)
    rows = table(600)
    assert not alone.find(Weighed(TRUE["binary"], None, rows, rows), GENERATOR)[0].passed
    beside = alone.find(Weighed(TRUE["binary"], TRUE["binary"], rows, rows), GENERATOR)[0]
    assert beside.passed
    assert beside.champion_failed


@dataclass(frozen=True, kw_only=True)
class Mine:
    """A check of one's own."""

    name: str = "mine"

    def find(self, weighed: Weighed, generator: np.random.Generator) -> tuple[Finding, ...]:
        rows = weighed.window.num_rows
        return (Finding(name=self.name, kind="own", rows=rows, failed=0, bound=0.0, passed=True),)


def test_all_together_repeat() -> None:
    test = {"name": "shuffled", "kind": "invariance", "change": {"x": {"shuffle": True}}}
    checks = Checks(tests=(test,), robustness=Robustness(), own={"mine": Mine()})
    held_out = [(0, table(300, 1)), (1, table(0)), (2, table(300, 2))]
    found = checks.examine(TRUE["binary"], TRUE["binary"], held_out, 0)
    assert found == checks.examine(TRUE["binary"], TRUE["binary"], held_out, 0)
    assert [f.kind for f in found.findings] == ["invariance", "labels", *["robustness"] * 3, "own"]
    assert found.importance[0]["feature"] == "x"
    assert Checks().examine(TRUE["binary"], None, [(0, table(0))], 0).findings == ()
    with pytest.raises(ConfigError, match="shuffled"):
        checks.require(["z"])


@pytest.mark.parametrize("option", ["default", "none", "thorough"])
def test_options(option: str, settings_of: Callable[..., dict[str, Any]]) -> None:
    settings = settings_of(f"checks={option}")["evaluate"]["checks"]
    checks = build(settings, "checks")
    assert isinstance(checks, Checks)
    assert (checks.labels is not None) == (option != "none")
    assert (checks.robustness is not None) == (option == "thorough")


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (Labels, {"max_rise": 2.0}, "checks.labels.max_rise"),
        (Labels, {"min_rows": 1}, "checks.labels.min_rows"),
        (Robustness, {"missing": -1.0}, "checks.robustness.missing"),
        (Robustness, {"bound": 2.0}, "checks.robustness.bound"),
        (Checks, {"rows": 0}, "checks.rows must be 1 or more"),
        (Checks, {"tests": "/nowhere"}, "checks.tests=/nowhere: there is no such file"),
    ],
)
def test_ranges(kind: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        kind(**settings)
