"""Records survive JSON."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime
from typing import Any

import pytest

from cltrain.records import (
    Comparison,
    Cursor,
    Decision,
    Observation,
    ReportCard,
    RollOut,
    Round,
    Snapshot,
    Window,
    from_json,
    to_json,
)

START, END = datetime(2013, 1, 1, tzinfo=UTC), datetime(2013, 1, 8, 0, 0, 0, 1, tzinfo=UTC)
SNAPSHOT = Snapshot(digest="d", role="train", rows=3, late_rows=1)
CURSOR = Cursor(until=END, files=("a", "b"))
OBSERVATION = Observation(
    events=5, labelled=3, late_labels=1, problems=("x: 90% null",), arrived=SNAPSHOT, fresh=SNAPSHOT, holdout=SNAPSHOT,
    cursor=CURSOR, prequential={"log_loss": 0.5}, static={},
)  # fmt: skip
ROUND = Round(
    index=1, window=Window(index=1, start=START, end=END), status="promoted", observation=OBSERVATION,
    decision=Decision(fire=True, reason="r", evidence={"rows": 1}), champion=None, versions=({"version": "1.0"},),
    roll_out=RollOut(kind="swap", version="1.0", previous=None, epoch=3), cursor=CURSOR,
)  # fmt: skip
CARD = ReportCard(
    comparisons=(Comparison(name="window", rows=3, challenger={"log_loss": 0.1}),),
    transfer=({"window": 0, "loss": 0.1},),
    latency_ms=1.5,
    size_bytes=3,
)


@pytest.mark.parametrize("record", [OBSERVATION, ROUND, CARD, CURSOR, dataclasses.replace(ROUND, roll_out=None)])
def test_a_record_survives_json(record: Any) -> None:
    assert from_json(type(record), json.loads(json.dumps(to_json(record)))) == record


def test_a_window_whose_labels_are_noise_is_not_sound_unless_it_was_promoted() -> None:
    noise = {"version": "1.1", "findings": [{"kind": "labels", "passed": False}]}
    assert ROUND.sound
    assert not dataclasses.replace(ROUND, status="quarantined").sound
    assert not dataclasses.replace(ROUND, status="rejected", versions=(noise,)).sound
    assert dataclasses.replace(ROUND, status="promoted", versions=(noise,)).sound
    assert dataclasses.replace(ROUND, status="rejected").sound


def test_unknown_and_missing_keys_are_refused() -> None:
    value = to_json(CURSOR)
    with pytest.raises(TypeError, match="unexpected keyword argument 'more'"):
        from_json(Cursor, value | {"more": 1})
    with pytest.raises(TypeError, match="missing 1 required keyword-only argument: 'files'"):
        from_json(Cursor, {"until": value["until"]})


def test_records_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SNAPSHOT.rows = 4  # type: ignore[misc]
