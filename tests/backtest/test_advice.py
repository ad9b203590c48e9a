"""Where the next unit of compute is better spent."""

from __future__ import annotations

from typing import Any

import pytest

from cltrain.backtest.advice import Iteration, advise


def change(kind: Any, gain: float, extra: float, spread: float = 0.001) -> Iteration:
    name = f"{kind} {gain}"
    return Iteration(name=name, kind=kind, gain=gain, low=gain - spread, high=gain + spread, extra=extra)


def test_a_hundred_times_the_compute_for_the_same_gain_is_the_worse_way() -> None:
    found = advise([change("model", 0.01, 100.0), change("data", 0.01, 1.0)])
    assert found["spend_on"] == "data"
    assert found["said"].startswith(
        "Spend on fresher data, same model: data 0.01 brought 0.01 for 1 device-seconds more"
    )
    rates = {i["kind"]: i["gain_per_device_hour"] for i in found["iterations"]}
    assert rates["data"] == pytest.approx(100 * rates["model"])


def test_what_costs_nothing_more_comes_first() -> None:
    found = advise([change("model", 0.002, -5.0), change("data", 0.05, 1.0)])
    assert found["spend_on"] == "model"
    assert found["iterations"][0]["gain_per_device_hour"] is None


def test_noise_is_no_gain() -> None:
    found = advise([change("model", 0.01, 1.0, spread=0.02), change("data", -0.01, 1.0)])
    assert found["spend_on"] is None
    assert "spend nothing" in found["said"]
    assert advise([])["said"] == "Neither another model nor another cadence was tried."
    alone = advise([change("data", 0.01, 1.0)])
    assert alone["said"].endswith("another model, same data was not tried.")
