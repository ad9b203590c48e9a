"""A metric of a user's own as a guardrail: from a function of three lines to a version that is taken back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cltrain.errors import ConfigError
from cltrain.registry import Registry, Store
from cltrain.registry.deployment import Deployments
from cltrain.storage import Storage
from serve.http.schemas import PredictRow
from serve.logs.prediction_log import Prediction, PredictionLog
from serve.logs.profiles import GROUPS, MetricReader, shift_of
from serve.logs.segments import new_id
from serve.rollout import BanditTest, Canary, Interleave, Shadow
from serve.rollout.controller import Controller, begin, kind_of
from serve.rollout.evidence import Counters
from serve.rollout.guardrails import Guardrails, readings
from serve.rollout.outcomes import read_outcomes
from serve.server import Server
from serve.settings import LogSettings, ServerSettings

START = datetime(2024, 3, 1, tzinfo=UTC)
TOXIC = {"toxicity": f"{__name__}.toxicity"}


def toxicity(row: Prediction) -> float:
    """A metric of three lines: what the second version says too much of."""
    return row.features.get("mood", 0.0) + (row.version == "1.1") * row.features.get("more", 0.0)


def sums(rng: np.random.Generator, units: int, difference: float, habits: float) -> np.ndarray:
    """(windows, arms, 2, groups) of units that come back in each of 20 windows. In the later ones everybody has more of
    it and the challenger gets more traffic."""
    found = np.zeros((20, 2, 2, GROUPS))
    for unit in range(units):
        arm, group, habit = unit % 2, rng.integers(GROUPS), habits * rng.normal()
        for window in range(20):
            if rng.random() < (0.2 + 0.03 * window if arm else 0.6):
                found[window, arm, 0, group] += 1
                found[window, arm, 1, group] += habit + rng.normal() + window + arm * difference
    return found


@pytest.mark.parametrize(("difference", "habits"), [(0.0, 0.0), (0.0, 2.0), (0.5, 1.0)])
def test_the_error_of_a_shift_is_that_of_units(difference: float, habits: float) -> None:
    rng = np.random.default_rng(0)
    found = [shift_of(sums(rng, 400, difference, habits)) for _ in range(40)]
    z = [(one.difference - difference) / one.error for one in found if one is not None]
    assert len(z) == 40
    assert abs(np.mean(z)) < 3.5 / 40**0.5
    assert 0.7 < np.std(z) < 1.35


def test_too_few_units_say_nothing() -> None:
    rng = np.random.default_rng(0)
    assert shift_of(sums(rng, 10, 0.0, 1.0)) is None
    assert shift_of(sums(rng, 400, 0.0, 1.0)[:, :, :, :0]) is None
    alone = sums(rng, 400, 0.0, 1.0)
    alone[:, 1] = 0
    assert shift_of(alone) is None


def answered(number: int, arm: str, time: datetime, **more: Any) -> Prediction:
    features = {"mood": float(number % 7), "more": 2.0}
    version = "1.1" if arm == "challenger" else "1.0"
    return Prediction(
        new_id(), None, time, time, "m", version, 1, 0.5, "1", features, 1000, f"u{number}", arm
    )._replace(**more)


def write(storage: Storage, rows: list[Prediction], replica: str, **settings: Any) -> None:
    log = PredictionLog(storage, replica, LogSettings(flush_s=0.01, metrics=TOXIC, **settings))
    log.log(rows)
    log.close()


@pytest.mark.parametrize("kind", ["canary", "swap"])
def test_metrics_of_all_replicas_become_a_reading(tmp_path: Path, kind: str) -> None:
    """Whatever is logged of the rows themselves."""
    storage = Storage(tmp_path)
    rows = [answered(n, ("champion", "challenger")[n % 2], START + timedelta(seconds=n / 10)) for n in range(1_000)]
    rows += [answered(n, "champion", START - timedelta(hours=1), features={"mood": 1e6}) for n in range(100)]
    write(storage, rows[::2], "a", keep="profiles")
    write(storage, rows[1::2], "b", rate=0.1)
    guard = Guardrails(max_metric_shift={"toxicity": 1.0})
    about: dict[str, Any] = {"version": "1.1", "since": START, "reward_type": None, "kind": kind}
    outcomes = read_outcomes(storage, "m", **about, metrics=guard.max_metric_shift)
    shift = outcomes.shifts["toxicity"]
    assert (shift.n, shift.level) == (500, pytest.approx(3.0, abs=0.2))
    assert shift.difference == pytest.approx(2.0, abs=4 * shift.error)
    assert "toxicity" in outcomes.to_json()
    none = Counters()
    (reading,) = [one for one in readings(guard, none, none, none, outcomes) if "toxicity" in one.name]
    assert (reading.breach, reading.limit, reading.kind) == (True, 1.0, "health")
    (calm,) = readings(Guardrails(max_metric_shift={"toxicity": 3.0}), none, none, none, outcomes)
    assert not calm.breach
    down = read_outcomes(storage, "m", **{**about, "version": "1.0", "kind": "swap"}, metrics=["toxicity"])
    (other,) = readings(guard, none, none, none, down)
    assert other.breach, "either direction"


def test_files_are_read_when_they_have_changed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    storage = Storage(tmp_path)
    reader = MetricReader(storage, "m", ["toxicity", "taste"], START, "challenger", "1.1")
    assert not reader.read()
    assert reader.contrasts() == {}
    rows = [answered(n, ("champion", "challenger")[n % 2], START) for n in range(300)]
    write(storage, rows, "a")
    assert reader.read()
    assert not reader.read()
    assert set(reader.contrasts()) == {"toxicity"}
    assert "names taste, which is not logged" in caplog.text
    write(storage, rows, "b")
    assert reader.read()
    assert reader.contrasts()["toxicity"].n == 300


def test_alarms_for_nothing_are_rare(tmp_path: Path) -> None:
    rng, alarms = np.random.default_rng(0), 0
    guard = Guardrails(max_metric_shift={"toxicity": 0.2}, alpha=0.05)
    none = Counters()
    for _ in range(60):
        found = np.zeros((1, 2, 2, GROUPS))
        for _ in range(20):
            found = np.concatenate([found, sums(rng, 100, 0.2, 1.0)])
            shift = shift_of(found)
            if shift is None:
                continue
            outcomes = read_outcomes(Storage(tmp_path), "m", version="1", since=START, reward_type=None, kind="ab")
            object.__setattr__(outcomes, "shifts", {"toxicity": shift})
            if any(one.breach for one in readings(guard, none, none, none, outcomes)):
                alarms += 1
                break
    assert alarms <= 0.05 * 60 + 3


@pytest.fixture
def server(registry: Registry, store: Store) -> Iterator[Server]:
    registry.promote("1.0", reason="first")
    log = LogSettings(flush_s=0.02, metrics=TOXIC)
    server = Server(ServerSettings(store=store.to_json(), model="binary", poll_s=600.0, evidence_s=600.0, log=log))
    yield server
    server.close()


def test_a_version_that_says_too_much_is_taken_back(
    server: Server, registry: Registry, events: Callable[..., pa.Table]
) -> None:
    guard = {"sustain_s": 0.0, "max_p99_ratio": None, "max_metric_shift": {"toxicity": 0.5}}
    kind = kind_of("canary", {"steps": [0.5], "min_samples": 1_000_000, "guardrails": guard})
    controller = Controller(registry, replicas=1)
    begin(Deployments(registry), kind, "1.1", by="test", reason="try it")
    server.resident.refresh()
    server.recorder.publish()
    controller.look()
    server.resident.refresh()
    for number in range(300):
        row = PredictRow(event_id=f"e{number}", features={"distance": 100.0 + number, "carrier": "UA", "more": 2.0})
        server.predict([row], f"u{number % 150}")
    server.predictions.close()
    action = controller.look()
    assert action is not None
    assert action.do == "roll_back"
    assert "shift of toxicity" in action.reason


def test_a_guardrail_that_cannot_be_read_is_refused() -> None:
    guard = Guardrails(max_metric_shift={"toxicity": 0.1})
    for kind in (Shadow, Interleave, BanditTest):
        with pytest.raises(ConfigError, match="max_metric_shift"):
            kind(guardrails=guard)  # type: ignore[operator]
    assert Canary(guardrails=guard).guardrails.max_metric_shift == {"toxicity": 0.1}
    with pytest.raises(ConfigError, match=r"rollout\.guardrails\.max_metric_shift\.a must be above 0"):
        Guardrails(max_metric_shift={"a": 0.0})


def test_settings_reach_the_guardrail(settings_of: Callable[..., dict[str, Any]]) -> None:
    from cltrain.config import build

    given = settings_of(
        "rollout=ab", "+rollout.guardrails.max_metric_shift.toxicity=0.1", "rollout.covariate=pre_period"
    )
    kind = build(given["rollout"], "rollout")
    assert kind.guardrails.max_metric_shift == {"toxicity": 0.1}
    assert kind.covariate == "pre_period"
