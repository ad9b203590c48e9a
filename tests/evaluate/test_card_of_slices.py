"""What the card says of slices, metrics, weights, lists and single rows; a ruined version still has a card."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cltrain.errors import ConfigError, DataError
from cltrain.evaluate import Evaluation
from cltrain.evaluate.sample import Sample
from cltrain.records import EVENT_ID, ReportCard, from_json, to_json

ROWS = 3_000


class Version:
    """Says what the column says, of a binary label."""

    task, size_bytes = "binary", 8

    def __init__(self, column: str) -> None:
        self.column = column

    def score(self, table: pa.Table) -> Sample:
        p, y = np.asarray(table.column(self.column)), np.asarray(table.column("_y"))
        return Sample("binary", p, y, -np.log(np.where(y > 0, p, 1 - p)))


OURS, THEIRS = Version("_ours"), Version("_theirs")


def table(seed: int = 0, rows: int = ROWS) -> pa.Table:
    """The challenger is better, but not for shop c in the evening."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=rows)
    y = (generator.random(rows) < 1 / (1 + np.exp(-2 * x))).astype(float)
    shop, hour = np.array(list("abcd"))[generator.integers(0, 4, rows)], generator.integers(0, 24, rows)
    bad = (shop == "c") & (hour >= 18)
    noise = generator.normal(size=(2, rows))
    return pa.table(
        {
            EVENT_ID: [f"{seed}-{i}" for i in range(rows)],
            "_y": y,
            "_ours": 1 / (1 + np.exp(-np.where(bad, -2 * x, 2 * x) - 0.1 * noise[0])),
            "_theirs": 1 / (1 + np.exp(-2 * x - 1.5 * noise[1])),
            "shop": shop,
            "hour": hour,
            "x": x,
            "list": np.arange(rows) // 5,
            "weight": np.where(shop == "c", 1.0, 4.0),
            "image": pa.array([[0.0]] * rows),
        }
    )


def card(held: pa.Table | None = None, **settings: Any) -> ReportCard:
    made = Evaluation(**settings).card(OURS, THEIRS, [(0, table(9, 200)), (1, held or table())], seed=0)
    assert from_json(ReportCard, json.loads(json.dumps(to_json(made)))) == made
    return made


def test_who_is_worse_off_is_found_and_named() -> None:
    made = card()
    (worse,) = [s for s in made.slices if s.name.startswith("worse than the champion")]
    assert worse.found
    assert worse.where is not None
    assert "shop == 'c'" in worse.where
    assert "hour" in worse.where
    assert worse.low is not None
    assert worse.low > 0
    assert made.comparisons[0].difference < 0  # type: ignore[operator]
    assert any(s.name.startswith("high loss") and "hour" in s.name for s in made.slices)
    assert card(found_slices=0).slices == ()
    assert not [s for s in Evaluation().card(OURS, OURS, [(0, table())], 0).slices if s.name.startswith("worse")]


def test_declared_slices_have_all_that_the_whole_has() -> None:
    made = card(slices=({"column": "shop"}, "hour < 0"), found_slices=0)
    assert [s.where for s in made.slices][-1] == "hour < 0"
    assert sum(s.rows for s in made.slices) == ROWS
    for weighed in made.slices[:-1]:
        assert weighed.metrics.keys() == made.comparisons[0].metrics.keys() == {
            "auc", "pr_auc", "accuracy", "f1", "brier", "ece",
        }  # fmt: skip
        assert weighed.flips is not None
        assert not weighed.found
        for name, bounds in weighed.metrics.items():
            assert weighed.champion is not None
            assert bounds["difference"] == pytest.approx(weighed.challenger[name] - weighed.champion[name], abs=1e-9)
            assert bounds["low"] <= bounds["difference"] <= bounds["high"]
    assert made.slices[-1].challenger == {"rows": 0}
    short = [f.name for f in made.findings if f.kind == "composition"]
    assert short == ["slice hour < 0 has 0 rows, fewer than its min_rows=100"]


def test_calibration_is_a_curve() -> None:
    curves = card().reliability
    assert curves.keys() == {"challenger", "champion"}
    assert sum(point["rows"] for point in curves["champion"]) == ROWS
    assert [p["predicted"] for p in curves["champion"]] == sorted(p["predicted"] for p in curves["champion"])
    ece = sum(p["rows"] * abs(p["predicted"] - p["observed"]) for p in curves["challenger"]) / ROWS
    assert ece == pytest.approx(card().comparisons[0].challenger["ece"])


def test_rows_count_as_their_weights_say() -> None:
    """A sample in which the rare ones were kept more often is weighed as all rows would be."""
    every = table(3, 20_000)
    keep = (np.asarray(every.column("weight")) == 1) | (np.random.default_rng(0).random(20_000) < 0.25)
    plain, weighted = card(every, found_slices=0), card(every.filter(pa.array(keep)), weight="weight", found_slices=0)
    for name in ("log_loss", "auc", "accuracy"):
        assert weighted.comparisons[0].challenger[name] == pytest.approx(
            plain.comparisons[0].challenger[name], rel=0.05
        )
    found, expected = weighted.comparisons[0], plain.comparisons[0]
    assert found.low < expected.difference < found.high  # type: ignore[operator]
    biased = card(every.filter(pa.array(keep)), found_slices=0).comparisons[0]
    assert biased.difference > found.high  # type: ignore[operator]
    spoilt = every.set_column(8, "weight", pa.array(np.zeros(20_000)))
    with pytest.raises(DataError, match="must be above 0"):
        card(spoilt, weight="weight")
    with pytest.raises(ConfigError, match="there is no such column"):
        card(weight="nope")


def test_metrics_of_lists_and_of_ones_own() -> None:
    class Sure:
        name, higher_is_better = "sure", True

        def per_row(self, predictions: np.ndarray, target: np.ndarray) -> np.ndarray:
            return np.abs(predictions - 0.5)

    made = card(metrics=("ndcg@3", "mrr", "auc", Sure()), group="list", slices=("x > 0",)).comparisons[0]
    assert list(made.metrics) == ["ndcg@3", "mrr", "auc", "sure"]
    assert made.challenger["sure"] - made.champion["sure"] == pytest.approx(made.metrics["sure"]["difference"])  # type: ignore[index]
    assert 0.5 < made.challenger["ndcg@3"] < 1


def test_spots_are_what_differs_most_and_what_chance_brings() -> None:
    found = card(spots=10).spots
    assert len({spot["id"] for spot in found}) == 10
    assert [spot["why"] for spot in found] == ["disagreement"] * 5 + ["chance"] * 5
    gaps = [abs(spot["challenger"]["loss"] - spot["champion"]["loss"]) for spot in found]
    assert min(gaps[:5]) >= max(gaps[5:])
    assert found[0]["features"].keys() == {"shop", "hour", "x", "list", "weight"}
    assert card().spots == ()
    alone = Evaluation(spots=4).card(OURS, None, [(0, table(0, 3))], seed=0).spots
    assert [spot["why"] for spot in alone] == ["chance"] * 3


def test_the_transfer_row_has_the_champion_of_the_moment() -> None:
    cells = card().transfer
    assert [cell["window"] for cell in cells] == [0, 1]
    assert cells[1]["champion"] == pytest.approx(card().comparisons[0].champion["log_loss"])  # type: ignore[index]
    assert 0.6 < cells[1]["constant"] < 0.7


def test_answers_may_come_from_elsewhere() -> None:
    evaluation, held = Evaluation(), [(0, table(9, 200)), (1, table())]
    asked: list[list[int]] = []

    def score(version: Any, windows: Any) -> dict[int, Sample]:
        asked.append([index for index, _ in windows])
        return {index: version.score(rows) for index, rows in windows}

    made = evaluation.card(OURS, THEIRS, held, 0, score=score)
    assert asked == [[0, 1], [0, 1]]
    windows = evaluation.windows(held)
    pure = evaluation.weigh(windows, score(OURS, windows), score(THEIRS, windows), 0, latency_ms=1.0, size_bytes=8)
    assert pure.comparisons == made.comparisons
    assert pure.slices == made.slices
    assert pure.latency_ms == 1.0


def test_settings_are_checked_before_anything_starts() -> None:
    for settings, words in (
        ({"metrics": ("ndcg@3",)}, "evaluate.group"),
        ({"slices": ("x > 0", "x > 0")}, "twice"),
        ({"slices": ("x >",)}, "cannot be read"),
        ({"found_share": 0.7}, "found_share"),
        ({"flip_tolerance": -1.0}, "flip_tolerance"),
        ({"spots": -1}, "evaluate.spots"),
    ):
        with pytest.raises(ConfigError, match=words):
            Evaluation(**settings)  # type: ignore[arg-type]
    Evaluation(slices=("x > 0 and _event_time > '2020-01-01'",), weight="w").check("binary", ["x", "w"])
    for evaluation, words in (
        (Evaluation(metrics=("r2",)), "not a metric of a binary task"),
        (Evaluation(slices=("y > 0",)), "no column y"),
        (Evaluation(group="w"), "no column w"),
        (Evaluation(metrics=("auc", "auc")), "twice"),
    ):
        with pytest.raises(ConfigError, match=words):
            evaluation.check("binary", ["x"])


def test_windows_whose_columns_differ_are_weighed_together() -> None:
    held = [(0, table(1, 100).drop_columns(["hour"])), (1, table(2, 100))]
    made = Evaluation(slices=("hour >= 0",), found_slices=0, min_rows=200).card(OURS, THEIRS, held, 0)
    assert (made.comparisons[0].rows, made.slices[0].rows) == (200, 100)


@pytest.mark.parametrize("task", ["multiclass", "regression"])
def test_the_other_tasks(task: str) -> None:
    class Other(Version):
        def score(self, table: pa.Table) -> Sample:
            said, y = np.asarray(table.column(self.column)), np.asarray(table.column("_y"))
            p = np.round(3 * said) if task == "multiclass" else said
            return Sample(task, p, y, np.square(said - y))

    held = [(0, table(9, 200)), (1, table())]
    made = Evaluation(slices=({"column": "shop"},), spots=2).card(Other("_ours"), Other("_theirs"), held, 0)
    assert from_json(ReportCard, json.loads(json.dumps(to_json(made)))) == made
    expected = {"accuracy", "f1"} if task == "multiclass" else {"rmse", "mae", "r2"}
    assert made.comparisons[0].metrics.keys() == expected
    assert made.reliability == {}
    assert made.slices[0].flips is not None


def test_a_version_that_answers_with_no_number_still_has_a_card() -> None:
    class Ruined(Version):
        task = "regression"

        def score(self, table: pa.Table) -> Sample:
            p = np.full(table.num_rows, np.nan if self.column == "_ours" else 0.5)
            y = np.asarray(table.column("_y"))
            return Sample("regression", p, y, np.square(p - y))

    made = Evaluation(slices=("x > 0",), spots=2).card(Ruined("_ours"), Ruined("_theirs"), [(0, table())], 0)
    assert np.isnan(made.comparisons[0].high)  # type: ignore[arg-type]
