"""Roll-outs over a server in this process: who answers whom, what is seen, and what the controller does about it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import pytest

from cltrain.errors import ConflictError
from cltrain.online.assignment import arm_of
from cltrain.registry import Registry, Store
from cltrain.registry.deployment import Deployments, Trial
from serve.http.schemas import PredictRow
from serve.logs.prediction_log import read_predictions
from serve.rollout.controller import Controller, begin, end
from serve.rollout.evidence import read_evidence
from serve.rollout.guardrails import Guardrails
from serve.rollout.machine import Action
from serve.rollout.releases import Canary, Swap
from serve.server import Server
from serve.settings import LogSettings, ServerSettings

AT_ONCE = Guardrails(sustain_s=0.0, max_p99_ratio=None)  # latencies of a busy machine say nothing
FAST = Canary(steps=(0.25, 1.0), min_samples=20, min_s=0.0, guardrails=AT_ONCE)


class Stage:
    """A server whose threads are told when to look, so that a test says what happens when."""

    def __init__(self, store: Store, rows: list[dict[str, Any]], **settings: Any) -> None:
        told = {"poll_s": 600.0, "evidence_s": 600.0, "log": LogSettings(flush_s=0.02)} | settings
        self.registry = Registry(store, "binary")
        self.server = Server(ServerSettings(store=store.to_json(), model="binary", **told))
        self.deployments = Deployments(self.registry)
        self.controller = Controller(self.registry, replicas=1)
        self.rows = [
            PredictRow(event_id=r["_event_id"], features={k: r[k] for k in ("distance", "carrier")}) for r in rows
        ]

    def look(self) -> Action | None:
        self.server.resident.refresh()
        self.server.recorder.publish()
        action = self.controller.look()
        self.server.resident.refresh()
        return action

    def send(self, number: int) -> list[dict[str, Any]]:
        return [self.server.predict([row]) for row in self.rows[:number]]

    def trial(self) -> Trial:
        found = self.deployments.trials()[-1]
        assert found is not None
        return found

    def begin(self, kind: Any = FAST, version: str = "1.1") -> None:
        begin(self.deployments, kind, version, by="test", reason="try it")


@pytest.fixture
def stage(store: Store, registry: Registry, events: Callable[..., pa.Table]) -> Iterator[Callable[..., Stage]]:
    registry.promote("1.0", reason="first")
    opened: list[Stage] = []

    def open_stage(**settings: Any) -> Stage:
        opened.append(Stage(store, events(rows=400).to_pylist(), **settings))
        return opened[-1]

    yield open_stage
    for one in opened:
        one.server.close()


class Faulty:
    """A predictor that goes wrong in some requests."""

    def __init__(self, predictor: Any, fault: str) -> None:
        self._predictor, self._fault, self._count = predictor, fault, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._predictor, name)

    def answer(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        self._count += 1
        answers = self._predictor.answer(rows)
        if self._fault == "nan":
            return [{**answer, "probability": math.nan} for answer in answers]
        if self._fault == "constant":
            return [{"probability": 0.5, "label": 1} for _ in answers]
        if self._fault == "exceptions" and self._count % 10 == 0:
            raise RuntimeError("broken")
        if self._fault == "slow":
            time.sleep(0.15)
        return answers


def inject(stage: Stage, fault: str, version: str = "1.1") -> None:
    loaded = stage.server.resident.resident()[version]
    object.__setattr__(loaded, "predictor", Faulty(loaded.predictor, fault))


def test_a_sound_canary_is_promoted_step_by_step(stage: Callable[..., Stage], registry: Registry) -> None:
    on = stage()
    on.begin()
    assert registry.champion().version == "1.0"  # type: ignore[union-attr]
    assert {a["arm"] for a in on.send(20)} == {"champion"}, "no traffic before it is staged"
    assert on.look().to == 0  # type: ignore[union-attr]
    salt = on.deployments.current().salt
    for row, answer in zip(on.rows, on.send(200), strict=False):
        arm = arm_of(row.event_id, salt, {"champion": 0.75, "challenger": 0.25})  # type: ignore[arg-type]
        assert (answer["arm"], answer["version"]) == (arm, f"binary:{'1.1' if arm == 'challenger' else '1.0'}")
        assert answer["epoch"] == 3
    assert on.look().to == 1  # type: ignore[union-attr]
    assert {a["version"] for a in on.send(30)} == {"binary:1.1"}
    assert on.look().do == "promote"  # type: ignore[union-attr]
    champion = registry.champion()
    assert champion is not None
    assert (champion.version, champion.aliases, champion.stage) == ("1.1", ("champion",), "production-validated")
    assert on.trial().status == "promoted"
    assert on.trial().evidence["challenger"]["requests"] > 50
    assert {a["arm"] for a in on.send(5)} == {"champion"}
    moves = [(m["alias"], m["new"]) for m in registry.moves()]
    assert moves[-2:] == [("previous", "1.0"), ("champion", "1.1")]
    assert on.look() is None


@pytest.mark.parametrize("fault", ["nan", "exceptions", "constant"])
def test_a_fault_is_rolled_back_in_the_first_step_and_no_client_sees_it(
    stage: Callable[..., Stage], registry: Registry, fault: str
) -> None:
    on = stage()
    on.begin(Canary(steps=(0.25, 1.0), min_samples=200, min_s=0.0, guardrails=AT_ONCE))
    on.look()
    inject(on, fault)
    for _ in range(2):
        answers = on.send(200)
        assert all(math.isfinite(a["predictions"][0]["probability"]) for a in answers)
        stood_in = [a for a in answers if a.get("stands_in")]
        assert all((a["arm"], a["version"]) == ("challenger", "binary:1.0") for a in stood_in)
        if on.look().do == "roll_back":  # type: ignore[union-attr]
            break
    trial = on.trial()
    assert (trial.status, trial.step) == ("rolled_back", 0)
    assert {"nan": "non-finite", "exceptions": "error rate", "constant": "constant score"}[fault] in trial.reason
    assert on.deployments.refused("1.1") == trial.reason
    assert registry.champion().version == "1.0"  # type: ignore[union-attr]
    assert {a["version"] for a in on.send(20)} == {"binary:1.0"}
    assert registry.version("1.1").tags["rolled_back"] == trial.reason
    assert on.server.failed == 0


def test_a_slow_canary_is_rolled_back_within_a_second_of_its_breach(
    stage: Callable[..., Stage], registry: Registry
) -> None:
    """With threads as they are in production."""
    on = stage(poll_s=0.05, evidence_s=0.05)
    guard = Guardrails(sustain_s=0.1, max_p99_ratio=2.0)
    on.send(200)
    on.begin(Canary(steps=(0.5, 1.0), min_samples=10_000, min_s=60.0, guardrails=guard))
    on.controller.start()
    try:
        while on.deployments.current().running.step < 0:  # type: ignore[union-attr]
            time.sleep(0.02)
        on.send(300)
        inject(on, "slow")
        visible, end_at = None, time.monotonic() + 20
        while time.monotonic() < end_at:
            on.send(4)
            seen = read_evidence(registry.store.storage, on.trial().id)
            slow = seen.arm("challenger", 0).slower_than(2 * (seen.arm("champion", 0).quantile_s(0.99) or 1))
            if visible is None and slow >= 10:
                visible = time.monotonic()
            if not on.deployments.current().running:
                break
        on.server.resident.refresh()
        assert {a["version"] for a in on.send(10)} == {"binary:1.0"}
        assert visible is None or time.monotonic() - visible < 1.5
        assert on.trial().status == "rolled_back"
        assert "latency" in on.trial().reason
    finally:
        on.controller.close()


@pytest.mark.parametrize("file", ["weights.safetensors", "encoder.json"])
def test_a_version_that_was_altered_gets_no_request(
    stage: Callable[..., Stage], registry: Registry, store: Store, file: str
) -> None:
    on = stage()
    store.storage.write(f"{registry.version('1.1').state}/{file}", b"{}")
    on.begin()
    assert on.look().do == "roll_back"  # type: ignore[union-attr]
    assert "cannot be served" in on.trial().reason
    assert {a["version"] for a in on.send(50)} == {"binary:1.0"}
    assert on.server.served.keys() == {"1.0"}


def test_memory_that_is_not_there_keeps_a_version_out(stage: Callable[..., Stage]) -> None:
    on = stage(memory_mb=0.0004)
    assert on.server.resident.current is None, "not even the champion fits"
    assert "serve.memory_mb=0.0004" in str(on.server.resident.error)


def test_a_controller_that_was_killed_goes_on_from_the_record_and_two_act_once(
    stage: Callable[..., Stage], registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    on = stage()
    on.begin()
    on.look()
    on.controller = Controller(Registry(registry.store, "binary"), replicas=1)
    rival = Controller(Registry(registry.store, "binary"), replicas=1)
    assert rival.look().do == on.look().do == "hold"  # type: ignore[union-attr]
    on.send(150)
    assert on.look().to == 1  # type: ignore[union-attr]
    with monkeypatch.context() as patch:  # as if it had looked just before
        patch.setattr(Deployments, "epoch", lambda _: 3)
        assert rival.look().to == 1  # type: ignore[union-attr]
    assert on.deployments.current().epoch == 4, "one of them has acted"
    on.server.resident.refresh()
    on.send(30)
    assert on.look().do in ("promote", "step")  # type: ignore[union-attr]


def test_a_restarted_replica_comes_back_to_the_same_split(stage: Callable[..., Stage]) -> None:
    on = stage()
    on.begin()
    on.look()
    before = [a["version"] for a in on.send(60)]
    again = stage()
    assert [a["version"] for a in again.send(60)] == before


def test_a_swap_that_is_watched_is_taken_back(stage: Callable[..., Stage], registry: Registry) -> None:
    on = stage()
    on.send(100)
    on.begin(Swap(watch_s=600.0, guardrails=AT_ONCE))
    on.look()
    assert registry.champion().version == "1.1"  # type: ignore[union-attr]
    assert {a["version"] for a in on.send(20)} == {"binary:1.1"}
    assert on.look().do == "hold"  # type: ignore[union-attr]
    inject(on, "constant")
    on.send(60)
    assert on.look().do == "roll_back"  # type: ignore[union-attr]
    assert registry.champion().version == "1.0"  # type: ignore[union-attr]
    assert {a["version"] for a in on.send(20)} == {"binary:1.0"}
    with pytest.raises(ConflictError, match=r"1\.1 was taken back"):
        on.server.rollback("what now")


def test_labels_that_come_as_feedback_decide(stage: Callable[..., Stage], store: Store) -> None:
    """A challenger whose answers are turned around is as healthy as its champion, and wrong."""
    on = stage()
    guard = Guardrails(sustain_s=0.0, max_p99_ratio=None, max_score_shift=None)
    on.begin(Canary(steps=(0.5, 1.0), min_samples=10_000, guardrails=guard))
    on.look()
    loaded = on.server.resident.resident()["1.1"]

    class Turned(Faulty):
        def answer(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
            return [{**a, "probability": 1 - a["probability"]} for a in self._predictor.answer(rows)]

    object.__setattr__(loaded, "predictor", Turned(loaded.predictor, ""))
    label_rows(on, on.send(400))
    assert on.look().do == "roll_back"  # type: ignore[union-attr]
    assert "loss increase" in on.trial().reason
    logged = read_predictions(store.storage).to_pylist()
    assert {(row["arm"], row["experiment"], row["propensity"]) for row in logged if row["epoch"] == 3} == {
        ("champion", "canary-1.1-2", 0.5),
        ("challenger", "canary-1.1-2", 0.5),
    }


def label_rows(on: Stage, answers: list[dict[str, Any]]) -> None:
    """The label that the champion would give, so the champion is right."""
    import asyncio

    from serve.http.schemas import FeedbackRow

    champion = on.server.resident.resident()["1.0"].predictor
    truth = champion.answer([row.features for row in on.rows[: len(answers)]])
    rows = [
        FeedbackRow(request_id=a["predictions"][0]["request_id"], label=t["label"])
        for a, t in zip(answers, truth, strict=True)
    ]
    asyncio.run(on.server.feedback(rows))
    time.sleep(0.1)


def test_what_is_promoted_by_hand_ends_a_roll_out(stage: Callable[..., Stage], registry: Registry) -> None:
    on = stage()
    on.begin()
    on.look()
    with pytest.raises(ConflictError, match="is running"):
        begin(on.deployments, Swap(watch_s=1), "1.1", by="test", reason="too")
    registry.promote("1.1", reason="now")
    on.server.resident.refresh()
    assert {a["version"] for a in on.send(20)} == {"binary:1.1"}
    assert on.look() is None
    assert on.trial().status == "stopped"
    with pytest.raises(ConflictError, match="no roll-out is running"):
        end(on.deployments, Action("stop", "?"), by="test")
    with pytest.raises(ConflictError, match="champion already"):
        on.begin()


def test_a_version_retires_when_it_answers_nobody(stage: Callable[..., Stage], registry: Registry) -> None:
    on = stage()
    on.begin()
    on.look()
    end(on.deployments, Action("stop", "enough"), by="test")
    with on.server.resident.resident()["1.1"].uses.one():
        on.server.resident.refresh()
        assert "1.1" in on.server.resident.resident()
    on.server.resident.refresh()
    assert on.server.resident.resident().keys() == {"1.0"}
