"""The gate: lets through what is no worse, and errs no more often than its level."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest

from cltrain.errors import ConfigError
from cltrain.evaluate import Evaluation
from cltrain.gate import NonInferiority
from cltrain.records import EVENT_ID, LABEL, Comparison, ReportCard, Verdict
from cltrain.train.predictor import Predictor
from cltrain.train.settings import Training
from tests.train.made import events, relabelled, update

LIGHT = Evaluation(resamples=200)


def comparison(
    difference: float, half: float = 0.0, rows: int = 1_000, name: str = "window", loss: float = 0.5
) -> Comparison:
    return Comparison(
        name=name, rows=rows, challenger={}, champion={"log_loss": loss}, difference=difference,
        low=difference - half, high=difference + half,
    )  # fmt: skip


def judge(*comparisons: Comparison, **settings: object) -> Verdict:
    card = ReportCard(comparisons=comparisons, transfer=(), latency_ms=0.0, size_bytes=0)
    return NonInferiority(**settings).judge(card)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Fake:
    """A version whose losses are columns of the table."""

    column: str
    task: str = "binary"
    size_bytes: int = 0

    def score(self, table: pa.Table) -> Made:
        return Made(
            self.task, np.full(table.num_rows, 0.5), np.zeros(table.num_rows), np.asarray(table.column(self.column))
        )


@dataclass(frozen=True)
class Made:
    task: str
    predictions: np.ndarray
    target: np.ndarray
    losses: np.ndarray


def promoted(worse_by: float, series: int, rows: int, task: str = "binary") -> float:
    """How often a challenger is promoted whose mean loss is higher by `worse_by` of the champion's, which is 1. Its
    mistakes are rare and bad, which is the hard case."""
    generator, count = np.random.default_rng(0), 0
    for seed in range(series):
        champion = generator.exponential(size=rows)
        noise = 0.2 * (generator.exponential(size=rows) - 1)
        ids = [str(i) for i in range(rows)]
        table = pa.table({EVENT_ID: ids, "_old": champion, "_new": champion + worse_by + noise})
        card = LIGHT.card(Fake("_new", task), Fake("_old", task), [(0, table)], seed)
        count += NonInferiority().judge(card).accepted
    return count / series


@pytest.mark.parametrize("task", ["binary", "regression"])
def test_a_challenger_that_is_worse_by_the_margin_passes_no_more_often_than_the_level(task: str) -> None:
    assert promoted(0.02, 300, 600, task) <= 0.05 + 2.6 * (0.05 * 0.95 / 300) ** 0.5


def test_a_challenger_that_is_worse_by_twice_the_margin_hardly_ever_passes() -> None:
    assert promoted(0.04, 100, 600) == 0.0


def test_an_equal_one_passes_when_there_are_rows_enough_to_tell() -> None:
    assert promoted(0.0, 40, 5_000) > 0.95


def test_bounds_and_margins() -> None:
    assert judge(comparison(0.0, 0.0099), margins={"window": 0.02}, floor=0.0).accepted
    assert not judge(comparison(0.0, 0.0101), margins={"window": 0.02}, floor=0.0).accepted
    assert judge(comparison(0.0, 0.0101), margins={"window": 0.02}, floor=0.02).accepted
    assert not judge(comparison(0.005, 0.001), margins={}, floor=0.002).accepted
    both = (comparison(-0.1, 0.01), comparison(0.11, 0.01, name="past"))
    verdict = judge(*both)
    assert not verdict.accepted
    assert verdict.score == pytest.approx(-0.1), "the new window ranks"
    assert [r.split(":")[0] for r in verdict.reasons] == ["window", "past"]


def test_the_margin_of_a_regression_is_a_share_of_the_squared_error() -> None:
    large = Comparison(
        name="window", rows=500, challenger={}, champion={"squared_error": 1e18}, difference=1e16, low=0.0, high=1.9e16
    )
    assert judge(large).accepted
    assert not judge(large, margins={"window": 0.01}).accepted


def test_few_rows() -> None:
    verdict = judge(comparison(0.005, 10.0, rows=50))
    assert verdict.accepted
    assert "too few rows" in verdict.reasons[0]
    assert not judge(comparison(0.5, 10.0, rows=50)).accepted


def test_ties() -> None:
    assert judge(comparison(0.0)).reasons == ("it answers exactly like the champion",)
    assert judge(comparison(0.0), tie="promote").accepted


def test_no_champion_and_no_rows() -> None:
    first = Comparison(name="window", rows=100, challenger={"log_loss": 0.5})
    assert judge(first).reasons == ("there is no champion yet",)
    assert judge().accepted
    for champion, accepted in ((None, True), (Fake("x"), False)):
        card = LIGHT.card(Fake("x"), champion, [(0, pa.table({"x": pa.array([], pa.float64())}))], 0)
        assert NonInferiority().judge(card).accepted is accepted


def test_what_is_not_a_number_is_refused() -> None:
    assert not judge(comparison(float("nan"))).accepted
    assert not judge(comparison(float("nan"), rows=5)).accepted


def test_ranges() -> None:
    for settings, message in (
        ({"margins": {"past": -0.1}}, r"gate\.margins\.past must be 0 or more"),
        ({"floor": -1.0}, r"gate\.floor"),
        ({"min_rows": -1}, r"gate\.min_rows"),
        ({"tie": "maybe"}, "refuse or promote"),
    ):
        with pytest.raises(ConfigError, match=message):
            NonInferiority(**settings)  # type: ignore[arg-type]


def test_a_challenger_of_flipped_labels_is_never_promoted_and_a_good_one_is() -> None:
    """At a rate at which the flipped labels do harm: at a tenth of it they sometimes help, and may pass."""
    training = Training(batch_size=32, learning_rate=1e-2, epochs=8)
    champion = update(events(600), training=training).state
    held_out = [(i, events(4_000, seed=100 + i)) for i in range(3)]
    for seed in range(5):
        rows = events(400, seed=seed + 1)
        labels = np.asarray(rows.column(LABEL))
        flipped = np.where(np.random.default_rng(seed).random(400) < 0.3, 1 - labels, labels)
        good, bad = (
            LIGHT.card(
                Predictor.of(update(table, champion, training=training).state),
                Predictor.of(champion), held_out, seed,
            )
            for table in (rows, relabelled(rows, flipped))
        )  # fmt: skip
        assert NonInferiority().judge(good).accepted
        assert not NonInferiority().judge(bad).accepted
