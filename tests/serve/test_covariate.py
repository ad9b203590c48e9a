"""What was known of a unit before an experiment takes variance out of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cltrain.registry import Registry, Store
from cltrain.registry.deployment import Deployments
from cltrain.storage import Storage
from serve.logs.feedback import FOLDER as FEEDBACK
from serve.logs.prediction_log import FOLDER
from serve.rollout.controller import Controller, begin, kind_of
from serve.rollout.outcomes import read_outcomes
from tests.serve.logs import ABOUT, NUMBERS, START, answer, label, write


def history(
    storage: Storage, seed: int, covariate: str, better: float = 0.0, units: int = 1_500
) -> tuple[float, float]:
    """A regression whose units have habits; a third of them is new. The share of the variance that is left, and the
    difference in errors."""
    rng = np.random.default_rng(seed)
    rows, labels = [], []
    for number in range(units):
        habit, arm = rng.gamma(2.0, 1.0), ("champion", "challenger")[rng.integers(2)]
        start = {
            "label_answer": None,
            "prediction": 0.0,
            "features": json.dumps({"habit": habit if number % 3 else None}),
        }
        if number % 3:
            for _ in range(6):
                rows.append(answer(f"u{number}", time=START - timedelta(days=1), epoch=1, **start))
                at = START - timedelta(hours=1, microseconds=next(NUMBERS))
                error = float(rng.normal(0, habit**0.5))
                labels.append(label(rows[-1], error, label_time=at))
        lift = better if arm == "challenger" else 0.0
        for _ in range(6):
            rows.append(answer(f"u{number}", arm, **start))
            labels.append(label(rows[-1], float(rng.normal(0, (habit - lift * habit) ** 0.5))))
    write(storage, FOLDER, rows)
    write(storage, FEEDBACK, labels)
    plain, adjusted = (read_outcomes(storage, "m", **ABOUT, covariate=c).contrast("loss") for c in ("none", covariate))
    assert plain is not None
    assert adjusted is not None
    assert plain.n == adjusted.n
    return (adjusted.error / plain.error) ** 2, adjusted.difference / adjusted.error


@pytest.mark.parametrize("covariate", ["pre_period", "habit"])
def test_what_was_known_before_takes_variance_out(tmp_path: Path, covariate: str) -> None:
    """The variance falls by the square of the correlation, which is 0 for the third that is new."""
    shares, z = np.array([history(Storage(tmp_path / str(i)), i, covariate) for i in range(12)]).T
    rng = np.random.default_rng(0)
    habit = rng.gamma(2.0, 1.0, 200_000)
    loss, before = (habit * rng.chisquare(6, len(habit)) / 6 for _ in range(2))
    known = np.arange(len(habit)) % 3 > 0
    x = before if covariate == "pre_period" else habit
    x = np.where(known, x, x[known].mean())
    assert shares.mean() == pytest.approx(1 - np.corrcoef(loss, x)[0, 1] ** 2, abs=0.05)
    assert shares.mean() < 0.93
    assert abs(z.mean()) < 3.5 / 12**0.5, "no bias"
    better = history(Storage(tmp_path / "better"), 99, covariate, better=0.3)
    assert better[1] < -3


def test_labels_that_came_after_the_start_are_no_pre_period(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    rows = [answer(f"u{i}", ("champion", "challenger")[i % 2], prediction=0.3 + 0.01 * i) for i in range(20)]
    before = [answer(r["unit_id"], time=START - timedelta(days=1), prediction=r["prediction"]) for r in rows]
    old = [answer(r["unit_id"], time=START - timedelta(days=40), prediction=r["prediction"]) for r in rows]
    write(storage, FOLDER, rows + before + old)
    known = START - timedelta(hours=1)
    write(storage, FEEDBACK, [label(r, 1.0) for r in rows + before] + [label(r, 1.0, label_time=known) for r in old])
    found = read_outcomes(storage, "m", **ABOUT, covariate="pre_period").periods[0].moments["champion"]["loss"]
    assert found.xx == 0
    write(storage, FEEDBACK, [label(r, 0.0, label_time=known) for r in before])
    (period,) = read_outcomes(storage, "m", **ABOUT, covariate="pre_period").periods
    assert all(period.moments[arm]["loss"].xx > 0 for arm in period.moments)


def test_the_controller_follows_the_pre_period(
    registry: Registry, store: Store, serve_store: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the API: units that come before the test begins and again in it, whose labels come late."""
    monkeypatch.setattr("serve.rollout.controller.LABELS_S", 0.0)
    monkeypatch.setattr("serve.rollout.controller.READING_SHARE", 1e9)
    registry.promote("1.0", reason="first")
    client = serve_store(store, evidence_s=0.02)
    controller, waiting = Controller(registry, replicas=1), [list[str](), list[str]()]

    def send(of: list[str]) -> None:
        for number in range(40):
            rows = [{"features": {"distance": 100.0 * number, "carrier": "UA"}}]
            answers = client.post("/predict", json={"rows": rows, "unit_id": f"u{number}"}).json()
            of += [one["request_id"] for one in answers["predictions"]]

    def label_all(ids: list[str]) -> None:
        rows = [{"request_id": id_, "label": number % 2} for number, id_ in enumerate(ids)]
        assert client.post("/feedback", json={"rows": rows}).status_code == 200
        ids.clear()

    def follow(wanted: Callable[[], Any]) -> None:
        end = time.monotonic() + 30
        while not wanted():
            assert time.monotonic() < end, controller._outcomes
            controller.look()
            time.sleep(0.02)

    def labelled() -> int:
        return sum(m["loss"].n for p in controller._outcomes.periods for m in p.moments.values() if "loss" in m)

    send(waiting[0])
    label_all(waiting[0])
    guard = {"max_p99_ratio": None, "max_score_shift": None, "max_loss_increase": None}
    kind = kind_of("ab", {"covariate": "pre_period", "guardrails": guard})
    begin(Deployments(registry), kind, "1.1", by="test", reason="which")
    follow(
        lambda: len(client.server.resident.current.arms) == 2 and client.server.deployments.current().running.step == 0
    )
    end = time.monotonic() + 30
    while client.server.resident.current.deployment.running.step != 0:
        assert time.monotonic() < end
        time.sleep(0.01)
    send(waiting[1])
    follow(lambda: sum(sum(p.exposed.values()) for p in controller._outcomes.periods) == 40)
    assert labelled() == 0
    label_all(waiting[1])
    follow(lambda: labelled() == 40)
    (period,) = [p for p in controller._outcomes.periods if sum(p.exposed.values())]
    assert all(period.moments[arm]["loss"].xx > 0 for arm in ("champion", "challenger"))
