"""The cadence to choose, for businesses whose best one is known."""

from __future__ import annotations

import numpy as np
import pytest

from cltrain.freshness.cadence import Curve, advised, choices, mean_ages, within_period
from cltrain.freshness.curve import fitted

AGES = (0, 1, 2, 3, 4, 6, 8, 12, 16)
CADENCES = ("28d", "14d", "7d")


def curve_of(plateau: float, half_life: float, noise: float) -> Curve:
    ages = np.array(AGES)
    lost = plateau * (1 - 2.0 ** (-ages / half_life))
    draws = lost + noise * np.random.default_rng(0).normal(size=(1_000, len(ages))) * (ages > 0)
    return Curve(every="7d", ages=AGES, lost=lost, draws=draws, decay=fitted(lost, draws, AGES), level=0.95)


def test_cadences_are_those_that_history_can_tell_of() -> None:
    assert choices("7d", AGES, None) == ["28d", "14d", "7d", "1d", "1h"]
    assert choices("1d", (0, 1, 7), None) == ["7d", "1d", "1h"]
    assert choices("7d", (0, 1), ["21d", "14d"]) == ["14d", "7d"]


def test_a_model_is_as_old_as_its_cadence_lets_it_be() -> None:
    assert mean_ages(AGES, 1).tolist() == [1.0] + [0.0] * 8
    assert mean_ages((0, 1, 2), 1.5) == pytest.approx([2 / 3, 1 / 3, 0])
    assert mean_ages((0, 4), 3) == pytest.approx([(1 + 0.75 + 0.5) / 3, (0.25 + 0.5) / 3])
    for periods in (1, 2.5, 7, 17):
        assert mean_ages(AGES, periods).sum() == pytest.approx(1)


def test_within_a_period_the_exponential_goes_on() -> None:
    """Numerically: the mean over staleness of an exponential, below a period and over one."""
    half_life, plateau = np.array(2.0), np.array(0.3)
    left = np.mean(2.0 ** (-np.linspace(0, 1, 100_001) / 2))  # of the plateau of the underlying curve at age 0
    under = plateau / left
    lost = [under * np.mean(1 - 2.0 ** (-np.linspace(0, span, 100_001) / 2)) for span in (1.0, 0.25)]
    assert within_period(plateau, half_life, 0.25) == pytest.approx(lost[0] - lost[1], rel=1e-3)


@pytest.mark.parametrize(("price", "best"), [(1.0, "7d"), (100.0, "14d"), (2_000.0, "28d")])
def test_three_businesses_with_a_known_optimum(price: float, best: str) -> None:
    """A unit of loss is worth 1,000 a period; the optimum by hand is the least loss and price a period."""
    curve = curve_of(0.4, 4.0, 0.0005)
    net = {
        c: 1_000 * float(curve.lost @ mean_ages(AGES, n)) + price / n for c, n in zip(CADENCES, (4, 2, 1), strict=True)
    }
    assert min(net, key=lambda c: net[c]) == best
    found = advised(curve, CADENCES, cost=price, value=1_000.0)
    assert found["recommended_every"] == best
    lines = {line["every"]: line for line in found["table"]}
    assert [line["cost_per_period"] for line in found["table"]] == [price / 4, price / 2, price]
    if best == "28d":
        assert {lines[c]["verdict"] for c in ("14d", "7d")} == {"does not pay"}
        assert any(s.startswith("Do not go from 28d to 7d") for s in found["advice"])


def test_a_step_pays_below_the_price_that_is_named() -> None:
    curve = curve_of(0.4, 4.0, 1e-6)
    below = advised(curve, ("14d", "7d"), cost=0.0, value=100.0)["table"][1]["pays_below"]
    for price, verdict in ((0.99 * below, "pays"), (1.01 * below, "does not pay")):
        assert advised(curve, ("14d", "7d"), cost=price, value=100.0)["table"][1]["verdict"] == verdict


def test_a_stream_that_stands_still_gets_the_slowest_cadence() -> None:
    found = advised(curve_of(0.0, 4.0, 0.002), ("28d", "14d", "7d", "1d"), cost=0.0, value=None)
    assert found["recommended_every"] == "28d"
    assert "No gain from fresher models can be told from chance." in found["advice"][0]
    assert {line["verdict"] for line in found["table"][1:]} == {"no gain seen"}
    assert "to cost nothing" in found["advice"][-1], "and says what it assumes"


def test_what_the_data_cannot_tell_is_said() -> None:
    found = advised(curve_of(0.1, 4.0, 0.1), CADENCES, cost=1.0, value=1_000.0)
    assert found["recommended_every"] == "28d"
    assert any(s.startswith("The data cannot tell whether 14d instead of 28d pays") for s in found["advice"])


def test_a_cadence_that_was_not_measured_is_never_chosen() -> None:
    found = advised(curve_of(0.4, 1.0, 0.001), ("14d", "7d", "1d"), cost=0.0, value=None)
    assert found["recommended_every"] == "7d"
    last = found["table"][-1]
    assert (last["verdict"], last["measured"]) == ("pays", False)
    assert any("freshness.every=1d measures it" in s for s in found["advice"])
