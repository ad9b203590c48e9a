"""A bandit over versions: how it learns from feedback that is late or lost, whoever dies."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import math
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

from cltrain.online.bandits import UCB, EpsilonGreedy, LinearThompson, LinUCB
from cltrain.online.simulator import Feedback, InFlight
from cltrain.registry import Registry, Store
from cltrain.registry.deployment import Deployments, Trial
from serve.http.schemas import FeedbackRow, PredictRow
from serve.logs.prediction_log import read_predictions
from serve.rollout import controller as controllers
from serve.rollout.bandit import ContextReader, snapshot_place, state_place
from serve.rollout.controller import Controller, begin
from serve.rollout.experiments import BanditTest
from serve.rollout.guardrails import Guardrails
from serve.rollout.outcomes import REWARD
from serve.server import Server
from serve.settings import LogSettings, ServerSettings
from tests.versions import registered

NOW = datetime(2024, 1, 1, tzinfo=UTC)
CLICKS = Guardrails(sustain_s=0.0, max_p99_ratio=None, reward_type="implicit", max_reward_drop=100.0)
OPEN = BanditTest(guardrails=CLICKS, min_units=1_000_000)  # goes on until it is told to end
LATE = Feedback(delay_s=40.0, lost=0.1)  # a request a second
EVERY = 40  # requests between two looks


class World:
    """A server, a controller and people whose liking of each version is known; nothing happens but when it is told."""

    def __init__(
        self, store: Store, rows: list[dict[str, Any]], likes: dict[str, Any], kind: BanditTest = OPEN
    ) -> None:
        self.store, self.registry = store, Registry(store, "binary")
        self.registry.promote("1.0", reason="first")
        told = {"poll_s": 600.0, "evidence_s": 600.0, "log": LogSettings(flush_s=0.01)}
        self.server = Server(ServerSettings(store=store.to_json(), model="binary", **told))  # type: ignore[arg-type]
        self.deployments = Deployments(self.registry)
        self.controller = Controller(self.registry, replicas=1)
        self.rows = [
            PredictRow(event_id=r["_event_id"], features={k: r[k] for k in ("distance", "carrier")}) for r in rows
        ]
        self.likes, self.draw = likes, np.random.default_rng(0)
        self.way, self.now_s, self.delivered = InFlight(), 0, 0
        self.chosen: list[str] = []
        self.regret = self.uniform = 0.0
        begin(self.deployments, kind, "1.1", by="test", reason="try it")
        assert self.look() == "step"

    def look(self) -> str | None:
        self.server.resident.refresh()
        self.server.recorder.publish()
        action = self.controller.look()
        self.server.resident.refresh()
        return action.do if action else None

    def play(self, rounds: int, feedback: Feedback = LATE) -> str | None:
        """A request a second, and a look every `EVERY` of them, until the roll-out ends."""
        done = "hold"
        for _ in range(rounds):
            row = self.rows[self.now_s % len(self.rows)]
            answer = self.server.predict([row])
            chances = {name: like(row) if callable(like) else like for name, like in self.likes.items()}
            self.chosen.append(answer["arm"])
            self.regret += max(chances.values()) - chances[answer["arm"]]
            self.uniform += max(chances.values()) - sum(chances.values()) / len(chances)
            reward = float(self.draw.random() < chances[answer["arm"]])
            at = self.now_s * 1_000_000
            self.way.send(feedback.arrival(at, self.draw), (answer["predictions"][0]["request_id"], reward))
            self.now_s += 1
            if self.now_s % EVERY == 0:
                self.deliver()
                if (done := self.look()) != "hold":
                    break
        return done

    def deliver(self) -> None:
        """Labels that have arrived by now, some of them twice, and all answers are on disk."""
        arrived = self.way.arrived(self.now_s * 1_000_000)
        rows = [FeedbackRow(request_id=id_, label=reward, type="implicit") for id_, reward in arrived]
        if rows:
            asyncio.run(self.server.feedback(rows + rows[:5]))
        self.delivered += len(rows)
        settled(self.server)

    def trial(self) -> Trial:
        return self.deployments.trials()[-1]

    def evidence(self) -> dict[str, Any]:
        self.controller._report_due = 0.0
        self.look()
        found: dict[str, Any] = controllers.report(self.registry, self.trial())["outcomes"]
        return found

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.store.storage.read(state_place(self.trial().id)))
        return found


def settled(server: Server) -> None:
    """All that was answered is on disk."""
    wanted = sum(server.served.values())
    end = time.monotonic() + 5
    while server.predictions.written < wanted and time.monotonic() < end:
        time.sleep(0.002)
    assert (server.predictions.written, server.predictions.error) == (wanted, None)


@pytest.fixture
def world(
    store: Store, events: Callable[..., pa.Table], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., World]]:
    monkeypatch.setattr(controllers, "LABELS_S", 0.0)
    monkeypatch.setattr(controllers, "READING_SHARE", math.inf)
    opened: list[World] = []

    def open_world(likes: dict[str, Any], kind: BanditTest = OPEN) -> World:
        opened.append(World(store, events(rows=400).to_pylist(), likes, kind))
        return opened[-1]

    yield open_world
    for one in opened:
        one.server.close()


def test_a_worse_challenger_gets_little_traffic_and_the_log_says_why(
    world: Callable[..., World], store: Store, record_property: Any
) -> None:
    on = world({"champion": 0.5, "challenger": 0.25})
    on.play(1_600)
    record_property("regret", on.regret / on.uniform)
    print("regret to uniform", on.regret / on.uniform)
    assert on.regret <= 0.5 * on.uniform
    assert on.chosen[-400:].count("challenger") < 0.15 * 400
    assert on.delivered < 0.95 * on.now_s, "labels are lost and late"
    assert on.state()["counts"]["learned"] == on.delivered, "each label counts once"
    rows = [r for r in read_predictions(store.storage, "binary").to_pylist() if r["snapshot"]]
    assert len(rows) == on.now_s
    chances: dict[tuple[str, str], float] = {}
    for row in rows:
        assert chances.setdefault((row["snapshot"], row["arm"]), row["propensity"]) == row["propensity"]
        assert 0.02 <= row["propensity"] <= 0.98
        assert row["version"] == {"champion": "1.0", "challenger": "1.1"}[row["arm"]]
    both = [s for s, arm in chances if arm == "champion" and (s, "challenger") in chances]
    assert len(both) > 5
    assert all(chances[s, "champion"] + chances[s, "challenger"] == pytest.approx(1) for s in both)
    challenged = [r["propensity"] if r["arm"] == "challenger" else 1 - r["propensity"] for r in rows]
    expected, variance = sum(challenged), sum(p * (1 - p) for p in challenged)
    assert stats.norm.sf(abs(on.chosen.count("challenger") - expected) / math.sqrt(variance)) > 0.001
    found = on.evidence()
    assert found["bandit"]["snapshot"] == on.server.resident.current.chooser.snapshot.version  # type: ignore[union-attr]
    for arm, truth in (("champion", 0.5), ("challenger", 0.25)):
        estimates = found["bandit"]["arms"][arm]["reward"]
        assert estimates.keys() == {"ips", "snips", "aipw"}
        half = (estimates["aipw"]["high"] - estimates["aipw"]["low"]) / 2
        assert abs(estimates["aipw"]["value"] - truth) < 2 * half < 0.4
    assert found["reward"]["difference"] == pytest.approx(-0.25, abs=4 * found["reward"]["error"])


def test_an_owner_that_is_killed_goes_on_exactly(world: Callable[..., World], store: Store) -> None:
    on = world({"champion": 0.3, "challenger": 0.6})
    on.play(400)
    before, chooser = on.state(), on.server.resident.current.chooser  # type: ignore[union-attr]
    on.deliver()  # labels that the dead one had not read
    store.storage.delete(snapshot_place(on.trial().id))  # it died between its two writes
    on.controller = Controller(Registry(store, "binary"), replicas=1)
    twin = Controller(Registry(store, "binary"), replicas=1)
    on.look()
    assert on.state()["counts"]["learned"] == on.delivered >= before["counts"]["learned"]
    twin.look()
    again, other = on.controller._owner.bandit, twin._owner.bandit  # type: ignore[union-attr]
    assert again.state_dict() == other.state_dict(), "two owners learn the same"  # type: ignore[union-attr]
    assert on.server.resident.current.chooser.snapshot.policy == chooser.snapshot.policy  # type: ignore[union-attr]
    on.play(400)
    whole = on.state()
    assert whole["counts"]["learned"] == on.delivered
    assert (whole["counts"]["repeated"], whole["counts"]["too_late"]) == (0, 0)
    store.storage.delete(state_place(on.trial().id))
    on.controller = Controller(Registry(store, "binary"), replicas=1)
    on.look()
    replayed = on.state()
    assert replayed["counts"] == whole["counts"], "the log alone says the same"
    assert dict(replayed["seen"]) == dict(whole["seen"])
    for name in ("gram", "moment", "square"):
        np.testing.assert_allclose(replayed[name], whole[name])
    assert on.regret <= 0.7 * on.uniform


def test_a_better_challenger_is_promoted_and_a_worse_one_rolled_back(world: Callable[..., World]) -> None:
    kind = dataclasses.replace(OPEN, min_units=20, min_s=0.0)
    on = world({"champion": 0.2, "challenger": 0.7}, kind)
    assert on.play(2_000) == "promote"
    assert on.registry.champion().version == "1.1"  # type: ignore[union-attr]
    assert "earns most with a chance of" in on.trial().reason
    assert on.trial().evidence["outcomes"]["bandit"]["arms"]["challenger"]["best"] >= 0.99
    on.server.resident.refresh()
    assert on.server.predict([on.rows[0]])["arm"] == "champion"
    begin(on.deployments, kind, "1.0", by="test", reason="and back")
    on.look()
    on.likes = {"champion": 0.7, "challenger": 0.2}
    assert on.play(2_000) == "roll_back"
    assert on.registry.champion().version == "1.1"  # type: ignore[union-attr]
    assert on.deployments.refused("1.0") is not None


def test_labels_are_the_reward_where_no_feedback_is_named(world: Callable[..., World], store: Store) -> None:
    guard = dataclasses.replace(CLICKS, reward_type=None, max_loss_increase=None, max_score_shift=None)
    on = world({"champion": 0.0, "challenger": 0.0}, BanditTest(guardrails=guard, min_units=30, min_s=0.0, level=0.95))
    loaded = on.server.resident.resident()["1.1"]

    class Turned:
        def __init__(self, predictor: Any) -> None:
            self.predictor = predictor

        def __getattr__(self, name: str) -> Any:
            return getattr(self.predictor, name)

        def answer(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
            return [{**a, "probability": 1 - a["probability"]} for a in self.predictor.answer(rows)]

    object.__setattr__(loaded, "predictor", Turned(loaded.predictor))
    truth = on.server.resident.resident()["1.0"].predictor
    done = "hold"
    for start in range(0, 1_200, 60):
        ids = [(row, on.server.predict([row])["predictions"][0]["request_id"]) for row in on.rows[start % 360 :][:60]]
        labels = [FeedbackRow(request_id=id_, label=truth.answer([row.features])[0]["label"]) for row, id_ in ids]
        asyncio.run(on.server.feedback(labels))
        settled(on.server)
        if (done := on.look() or "") != "hold":
            break
    assert done == "roll_back"
    assert "1.0" not in on.trial().reason
    assert "the champion earns most" in on.trial().reason
    outcomes = on.trial().evidence["outcomes"]
    assert outcomes["loss"]["difference"] > 0
    values = {arm: about["loss"]["snips"]["value"] for arm, about in outcomes["bandit"]["arms"].items()}
    assert values["challenger"] > values["champion"]


def test_guardrails_take_a_challenger_back_by_weighed_rewards(world: Callable[..., World]) -> None:
    strict = dataclasses.replace(CLICKS, max_reward_drop=0.1, alpha=0.05)
    on = world({"champion": 0.8, "challenger": 0.1}, dataclasses.replace(OPEN, guardrails=strict, min_share=0.2))
    assert on.play(1_600) == "roll_back"
    assert "drop of implicit feedback" in on.trial().reason


@pytest.mark.parametrize("policy", [LinUCB(), LinearThompson()], ids=lambda p: type(p).__name__)
def test_a_context_says_who_is_better_off_with_whom(world: Callable[..., World], store: Store, policy: Any) -> None:
    def far(row: PredictRow) -> bool:
        return row.features["distance"] > 1_050  # type: ignore[operator]

    likes = {"champion": lambda row: 0.9 if far(row) else 0.1, "challenger": lambda row: 0.1 if far(row) else 0.9}
    on = world(likes, dataclasses.replace(OPEN, policy=policy, features=("distance",)))
    on.play(1_000, Feedback(delay_s=5.0, lost=0.1))
    assert on.regret <= 0.6 * on.uniform
    rows = [r for r in read_predictions(store.storage, "binary").to_pylist() if r["snapshot"]]
    assert {len(r["context"]) for r in rows} == {1}
    encoder = on.server.resident.resident()["1.0"].predictor.state.encoder
    reader = ContextReader(encoder, ("distance",))
    assert rows[-1]["context"] == list(reader(json.loads(rows[-1]["features"])))
    assert len(ContextReader(encoder)({})) == len(encoder.numeric) + sum(c.size for c in encoder.categorical)
    assert on.evidence()["bandit"]["arms"]["challenger"]["chance"] is None


@pytest.mark.parametrize("policy", [UCB(), EpsilonGreedy()], ids=lambda p: type(p).__name__)
def test_three_versions_and_the_best_of_them_is_promoted(
    world: Callable[..., World], store: Store, policy: Any
) -> None:
    known = Registry(store, "binary").version("1.1").challenger
    registered(Registry(store, "binary"), 2, state=known.state, weights_digest=known.weights_digest)
    kind = dataclasses.replace(OPEN, policy=policy, versions=("2.0",), min_units=30, min_s=0.0, min_share=0.1)
    on = world({"champion": 0.2, "challenger": 0.3, "challenger-2": 0.9}, kind)
    assert on.play(2_000) == "promote"
    assert on.registry.champion().version == "2.0"  # type: ignore[union-attr]
    assert (on.trial().version, on.trial().status) == ("1.1", "stopped")
    assert on.registry.champion().stage == "production-validated"  # type: ignore[union-attr]
    assert set(on.chosen) == {"champion", "challenger", "challenger-2"}
    assert on.deployments.refused("1.1") is None


def test_a_retried_request_keeps_its_arm_and_snapshots_are_read_as_they_are(world: Callable[..., World]) -> None:
    on = world({"champion": 0.3, "challenger": 0.6})
    first = on.server.resident.current
    assert first is not None
    arms = [first.choose("unit", f"r{i}", {}).arm for i in range(200)]
    assert arms == [first.choose("other", f"r{i}", {}).arm for i in range(200)]
    assert 60 < arms.count("challenger") < 140
    on.play(80)
    second = on.server.resident.current
    assert second is not None
    assert second.epoch == first.epoch, "no new deployment"
    assert second.chooser.snapshot.version != first.chooser.snapshot.version  # type: ignore[union-attr]
    on.store.storage.write(snapshot_place(on.trial().id), b"{}")
    on.server.resident.refresh()
    assert on.server.resident.current is second, "one that cannot be read changes nothing"


def test_it_is_started_and_seen_over_http(
    serve_store: Callable[..., Any], store: Store, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controllers, "LABELS_S", 0.0)
    registry.promote("1.0", reason="first")
    client = serve_store(store)
    asked = {"version": "1.1", "kind": "bandit", "reason": "try it", "settings": {"policy": "lin_ucb"}}
    for settings, words in (
        ({"policy": "lin_ucb", "features": ["age"]}, "the champion reads no age"),
        ({"versions": ["1.0"]}, "1.0 is an arm already"),
        ({"versions": ["7.7"]}, "7.7"),
    ):
        answer = client.post("/rollouts", json={**asked, "settings": settings})
        assert (answer.status_code in (404, 422, 503), words in answer.json()["detail"]) == (True, True), answer.text
    started = client.post("/rollouts", json=asked)
    assert started.status_code == 200, started.text
    controller = Controller(registry, replicas=1)
    end = time.monotonic() + 10
    while client.get("/rollouts").json()["running"]["step"] < 0 or client.server.resident.current.chooser is None:
        assert time.monotonic() < end
        controller.look()
        time.sleep(0.01)
    row = {"event_id": "a", "features": {"distance": 900, "carrier": "UA"}}
    answers = [client.post("/predict", json={**row, "unit_id": "u"}).json() for _ in range(30)]
    assert {a["arm"] for a in answers} == {"champion", "challenger"}, "units are not sticky"
    assert client.post("/predict", json={"features": {"distance": "far"}}).status_code == 422
    request_id = answers[0]["predictions"][0]["request_id"]
    client.post("/feedback", json={"rows": [{"request_id": request_id, "label": 1}]})
    settled_at = time.monotonic() + 5
    while (why := client.get(f"/why/{request_id}")).status_code != 200 and time.monotonic() < settled_at:
        time.sleep(0.02)
    assert (why.json()["arm"], len(why.json()["snapshot"])) == (answers[0]["arm"], 16)
    controller._report_due = 0.0
    controller.look()
    running = client.get("/rollouts").json()["running"]
    assert running["evidence"]["outcomes"]["bandit"]["learned"]["learned"] == 1
    assert running["settings"]["policy"]["_target_"].endswith("LinUCB")
    assert REWARD not in running["evidence"]["outcomes"]
