"""The benchmark of the gate in small: error rates on made losses, and poisoned windows of one stream."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.gate import LEVEL, Line, noise_of, simulated, streamed
from benchmarks.poison import POISONS, STREAMS

GATES = 300
MOST = LEVEL + 2.6 * (LEVEL * (1 - LEVEL) / GATES) ** 0.5


def test_false_promotions_stay_within_the_level_and_gains_are_found() -> None:
    found = {row["name"]: row["rate"] for row in simulated(2_000, GATES)}
    named = {name.removeprefix("simulated ").removesuffix(", 2000 rows"): rate for name, rate in found.items()}
    assert named["default gate, worse by the margin"] <= MOST
    assert named["default gate, worse on the past by the margin"] <= MOST
    assert named["superiority, equal"] <= MOST
    assert named["default gate, better by 2 %"] > named["default gate, equal"] > named["superiority, equal"]
    assert named["superiority, better by 2 %"] > 0.3
    assert noise_of(1.0) == pytest.approx(0.8, abs=0.01)


def test_every_poisoned_window_is_kept_out_and_sound_ones_come_in() -> None:
    rows = {row["name"].split(", ")[-1]: row for row in streamed(STREAMS["clicks"], [7], weeks=3)}
    assert rows["sound"]["promoted"] == 2
    assert rows.keys() == {"sound", *POISONS}
    for name in POISONS:
        assert rows[name]["promoted"] == 0, name
    assert rows["labels flipped"]["rejected"] == 1
    assert "labels" in rows["labels flipped"]["why"]
    assert rows["feature x1000"]["why"] == rows["class dropped"]["why"] == "contract 1"


def test_a_quarantined_window_leaves_no_trace() -> None:
    line, stream = Line(STREAMS["clicks"], 8), STREAMS["clicks"]
    line.offer(0, stream.week(0, 8))
    before = (line.champion, len(line.held_out), len(line.shapes), len(line.pending))
    end, why = line.offer(1, POISONS["feature x1000"](stream.week(1, 8), "binary", np.random.default_rng(0)))
    assert end == "quarantined"
    assert "x0: typically" in why[0]
    assert (line.champion, len(line.held_out), len(line.shapes), len(line.pending)) == before
