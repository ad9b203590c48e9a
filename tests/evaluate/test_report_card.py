"""The report card: the same rows for both, recent windows together, past ones sampled."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from cltrain.errors import ConfigError
from cltrain.evaluate import Evaluation
from cltrain.train.predictor import Predictor
from tests.train.made import events, update

LIGHT = Evaluation(resamples=100, min_rows=150, window_rows=300, past_rows=60, past_windows=3)


@pytest.fixture(scope="module")
def versions() -> tuple[Predictor, Predictor]:
    parent = update(events(200)).state
    return Predictor.of(update(events(200, seed=1), parent).state), Predictor.of(parent)


def test_what_is_on_the_card(versions: tuple[Predictor, Predictor]) -> None:
    windows = [(i, events(rows, seed=10 + i)) for i, rows in enumerate((80, 0, 50, 70, 90, 110))]
    card = LIGHT.card(*versions, windows, seed=0)
    window, past = card.comparisons
    assert (window.name, window.rows) == ("window", 110 + 60)
    assert (past.name, past.rows) == ("past", 60 + 50 + 60)
    assert [row["window"] for row in card.transfer] == [0, 2, 4, 5]
    assert window.low is not None
    assert window.high is not None
    assert window.low <= window.difference <= window.high
    assert window.difference == pytest.approx(window.challenger["log_loss"] - window.champion["log_loss"])
    assert card.size_bytes > 0
    again = LIGHT.card(*versions, windows, seed=0)
    assert (again.comparisons, again.transfer) == (card.comparisons, card.transfer)


def test_the_golden_set_is_the_same_rows_for_every_version_to_come(versions: tuple[Predictor, Predictor]) -> None:
    windows = [(i, events(rows, seed=10 + i)) for i, rows in enumerate((0, 400, 80, 50, 70, 90, 110))]
    golden = replace(LIGHT, golden_windows=2, past_windows=2)
    found = []
    for end in range(2, len(windows) + 1):
        card = golden.card(*versions, windows[:end], seed=0)
        found.append({c.name: c for c in card.comparisons}.get("golden"))
        names = [c.name for c in LIGHT.card(*versions, windows[:end], seed=0).comparisons]
        assert "golden" not in names
    assert found[:2] == [None, None], "not before both of them are past"
    assert {c.rows for c in found[2:]} == {300 + 80}, "more of each than of other past windows"
    assert len({c.challenger["log_loss"] for c in found[2:]}) == 1
    asked = [i for i, _ in golden.windows(windows)]
    assert asked == sorted(set(asked))
    assert asked[:2] == [1, 2]


def test_a_version_against_itself_is_a_tie(versions: tuple[Predictor, Predictor]) -> None:
    (only,) = LIGHT.card(versions[0], versions[0], [(0, events(200))], seed=0).comparisons
    assert only.difference == only.low == only.high == 0


def test_a_large_window_is_sampled_evenly(versions: tuple[Predictor, Predictor]) -> None:
    seen: list[np.ndarray] = []

    class Spy:
        task, size_bytes = "binary", 0

        def score(self, table: object) -> object:
            seen.append(np.asarray(table.column("x")))  # type: ignore[attr-defined]
            return versions[0].score(table)  # type: ignore[arg-type]

    rows = events(3_000).sort_by("x")
    LIGHT.card(Spy(), None, [(0, rows)], seed=0)  # type: ignore[arg-type]
    assert len(seen[0]) == 300
    assert abs(np.median(seen[0])) < 0.3, "the first rows alone would be all below -1"


def test_the_first_version_has_no_rival(versions: tuple[Predictor, Predictor]) -> None:
    (only,) = LIGHT.card(versions[0], None, [(0, events(200))], seed=0).comparisons
    assert only.champion is None
    assert only.difference is None


def test_ranges() -> None:
    for settings in ({"level": 0.5}, {"resamples": 10}, {"past_rows": 0}, {"min_rows": -1}):
        with pytest.raises(ConfigError, match=rf"evaluate\.{next(iter(settings))}"):
            Evaluation(**settings)  # type: ignore[arg-type]


def test_windows_long_gone_do_not_join_the_new_one(versions: tuple[Predictor, Predictor]) -> None:
    windows = [(i, events(30, seed=10 + i)) for i in range(8)]
    settings = {"resamples": 100, "min_rows": 1_000}
    assert Evaluation(**settings, recent_windows=2).card(*versions, windows, seed=0).comparisons[0].rows == 60
    assert Evaluation(**settings).card(*versions, windows, seed=0).comparisons[0].rows == 120
