"""Transfer measures, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from cltrain.evaluate.transfer import Transfer, constant_loss


def cell(window: int, loss: float, champion: float | None = None, rows: int = 10) -> dict[str, float | int | None]:
    return {"window": window, "rows": rows, "loss": loss, "champion": champion, "constant": 1.0}


CARDS = [
    ("1.0", [cell(0, 0.5)]),
    ("1.1", [cell(0, 0.4, 0.5), cell(2, 0.6, 0.9)]),
    ("1.2", [cell(0, 0.7, 0.4), cell(2, 0.5, 0.6), cell(5, 0.2, 0.8, rows=30)]),
]


def test_by_hand() -> None:
    found = Transfer.of(CARDS)
    assert found.windows == (0, 2, 5)
    assert found.summary() == pytest.approx(
        {
            "average": (0.7 + 0.5 + 0.2) / 3,
            "backward": ((0.5 - 0.7) + (0.6 - 0.5)) / 2,
            "forward": ((1 - 0.9) + (1 - 0.8)) / 2,
            "forgetting": ((0.7 - 0.4) + (0.5 - 0.6)) / 2,
        }
    )
    assert found.composite() == [
        {"window": 2, "rows": 10, "loss": 0.9, "so_far": 0.9},
        {"window": 5, "rows": 30, "loss": 0.8, "so_far": pytest.approx((9 + 24) / 40)},
    ]


def test_cells_that_were_not_measured_are_left_out() -> None:
    cards = [*CARDS, ("1.3", [cell(2, 0.8), cell(6, 0.3)])]
    found = Transfer.of(cards).summary()
    assert found["forgetting"] == pytest.approx(0.8 - 0.5)
    assert found["backward"] == pytest.approx(0.6 - 0.8)


def test_one_version_has_an_average_only() -> None:
    nothing = {"backward": None, "forward": None, "forgetting": None}
    assert Transfer.of(CARDS[:1]).summary() == {"average": 0.5} | nothing
    assert Transfer.of([]).summary() == {"average": None} | nothing
    assert Transfer.of([]).composite() == []


def test_cards_of_before_have_no_champion() -> None:
    cards = [(name, [{k: c[k] for k in ("window", "rows", "loss")} for c in cells]) for name, cells in CARDS]
    assert Transfer.of(cards).summary()["forward"] is None


def test_the_constant_answer() -> None:
    assert constant_loss("binary", np.array([0, 0, 0, 1.0])) == pytest.approx(
        -0.75 * np.log(0.75) - 0.25 * np.log(0.25)
    )
    assert constant_loss("multiclass", np.array([0, 1, 2.0])) == pytest.approx(np.log(3))
    assert constant_loss("regression", np.array([1, 3.0])) == 1.0
