"""The policy layer live: who decides, what the log says of another policy, how the threshold follows a change of cost,
and how it goes back; and the model is the same throughout."""

from __future__ import annotations

import asyncio
import json
import math
import time
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cltrain.config import build
from cltrain.errors import ConfigError, ConflictError
from cltrain.online.policy import Threshold
from cltrain.registry import Registry, Store
from cltrain.registry.deployment import Deployments
from serve.http.schemas import FeedbackRow, PredictRow
from serve.local import LocalServing, get_json
from serve.logs.prediction_log import read_predictions
from serve.policy.policy_layer import (
    Adapter,
    DecisionLog,
    Decisions,
    Reward,
    document_of,
    estimate,
    problem_of,
    propose,
)
from serve.rollout import BanditTest, Canary
from serve.rollout import controller as controllers
from serve.rollout.controller import Controller, begin
from serve.rollout.guardrails import Guardrails
from serve.server import Server
from serve.settings import LogSettings, ServerSettings

ROW = {"event_id": "a", "event_time": "2024-01-01T10:00:00Z", "features": {"distance": 900, "carrier": "UA"}}
EVERY = 50


class Even:
    """A predictor of which the test knows the answer: the probability is the distance over 2000."""

    def __init__(self, predictor: Any) -> None:
        self._predictor = predictor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._predictor, name)

    def answer(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"probability": p, "label": int(p >= 0.5)} for p in (row["distance"] / 2000 for row in rows)]


class Live:
    """A server whose threads are told when to look, and people who pay for wrong decisions at once."""

    def __init__(self, store: Store, policy: Threshold | None) -> None:
        self.registry = Registry(store, "binary")
        told = {"poll_s": 600.0, "evidence_s": 600.0, "log": LogSettings(flush_s=0.01)}
        self.server = Server(ServerSettings(store=store.to_json(), model="binary", **told))  # type: ignore[arg-type]
        self.controller = Controller(self.registry, replicas=1, policy=policy)
        self.deployments = Deployments(self.registry)
        for version in ("1.0", "1.1"):
            if version in self.server.resident.resident():
                loaded = self.server.resident.resident()[version]
                object.__setattr__(loaded, "predictor", Even(loaded.predictor))
        self.draw = np.random.default_rng(0)
        self.look()

    def look(self) -> None:
        self.controller.look()
        self.server.resident.refresh()

    @property
    def threshold(self) -> float:
        return self.server.resident.current.policy.threshold  # type: ignore[union-attr]

    def play(self, rounds: int, cost: float, kind: str = "implicit") -> None:
        """A score is the chance of a 1; above earns 1 for it, and costs `cost` for a 0, so the best threshold is
        cost / (1 + cost). Rewards come at once."""
        feedback: list[FeedbackRow] = []
        for i in range(1, rounds + 1):
            score = float(self.draw.random())
            answer = self.server.predict([PredictRow(features={"distance": 2000 * score, "carrier": "UA"})])
            (made,) = answer["predictions"]
            truth = self.draw.random() < score
            reward = 0.0 if not made["label"] else 1.0 if truth else -cost
            feedback.append(FeedbackRow(request_id=made["request_id"], label=reward, type=kind))
            if i % EVERY == 0 or i == rounds:
                asyncio.run(self.server.feedback(feedback))
                feedback = []
                settled(self.server)
                self.look()


def settled(server: Server) -> None:
    wanted = sum(server.served.values())
    end = time.monotonic() + 5
    while server.predictions.written < wanted and time.monotonic() < end:
        time.sleep(0.002)
    assert (server.predictions.written, server.predictions.error) == (wanted, None)


def followed(client: Any) -> None:
    """The replica answers by what is desired."""
    end = time.monotonic() + 10
    while client.get("/versions").json()["epoch"] != client.get("/policy").json()["epoch"]:
        assert time.monotonic() < end
        time.sleep(0.01)


QUICK = Threshold(min_s=0.0, band=0.15, reward_type="implicit")


@pytest.fixture
def live(store: Store, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Live]]:
    monkeypatch.setattr(controllers, "LABELS_S", 0.0)
    monkeypatch.setattr(controllers, "READING_SHARE", math.inf)
    registry.promote("1.0", reason="first")
    opened: list[Live] = []

    def open_live(policy: Threshold | None = QUICK) -> Live:
        opened.append(Live(store, policy))
        return opened[-1]

    yield open_live
    for one in opened:
        one.server.close()


def test_the_threshold_follows_a_change_of_cost_and_the_model_does_not(live: Callable[..., Live], store: Store) -> None:
    on = live()
    version = on.registry.version("1.0")
    weights = store.storage.digest(f"{version.state}/weights.safetensors")
    assert on.threshold == 0.5
    on.play(400, cost=1.0)
    assert on.threshold == pytest.approx(0.5, abs=0.15)
    on.controller = Controller(on.registry, replicas=1, policy=QUICK)  # it was killed, and knows what the log says
    on.play(1_950, cost=4.0)
    print("threshold", on.threshold, "documents", len(on.deployments.policies()))
    assert on.threshold == pytest.approx(0.8, abs=0.15), "four standard deviations of where it ends"
    documents = on.deployments.policies()
    values = [d["values"]["threshold"] for d in documents]
    assert max(np.abs(np.diff(values))) <= QUICK.step + 1e-12
    assert [d["parent"] for d in documents[1:]] == [d["version"] for d in documents[:-1]]
    assert all("above earns" in d["reason"] for d in documents[1:])
    assert documents[-1]["estimate"]["dr"]["low"] < documents[-1]["estimate"]["dr"]["high"]
    assert on.registry.champion().version == "1.0"  # type: ignore[union-attr]
    assert store.storage.digest(f"{version.state}/weights.safetensors") == weights == version.weights_digest
    assert on.server.resident.resident()["1.0"].weights_digest == weights
    entries = [e for e in on.registry.audit_log() if e["action"] == "policy"]
    assert [e["details"]["policy"] for e in entries] == [d["version"] for d in documents]
    assert entries[-1]["by"] == "policy"
    assert on.registry.verify_audit().intact
    drawn = [r for r in read_predictions(store.storage).to_pylist() if 0 < r["decision_propensity"] < 1]
    above = [r["decision_propensity"] if r["label_answer"] == "1" else 1 - r["decision_propensity"] for r in drawn]
    spread = math.sqrt(sum(p * (1 - p) for p in above))
    assert abs(sum(r["label_answer"] == "1" for r in drawn) - sum(above)) < 4 * spread


def test_labels_and_costs_are_a_reward_too(live: Callable[..., Live]) -> None:
    on = live(Threshold(min_s=0.0, false_negative_cost=9.0, step=0.05))
    for _ in range(8):
        feedback = []
        for _ in range(60):
            score = float(on.draw.random())
            (made,) = on.server.predict([PredictRow(features={"distance": 2000 * score})])["predictions"]
            feedback.append(FeedbackRow(request_id=made["request_id"], label=int(on.draw.random() < score)))
        asyncio.run(on.server.feedback(feedback))
        settled(on.server)
        on.look()
    assert on.threshold < 0.35


def test_it_holds_still_while_a_roll_out_runs_and_between_two_steps(live: Callable[..., Live]) -> None:
    on = live(Threshold(reward_type="implicit"))
    on.play(300, cost=9.0)
    assert on.threshold == 0.5, "a minute has not passed"
    on.controller = Controller(on.registry, replicas=1, policy=QUICK)
    begin(on.deployments, Canary(min_s=0.0), "1.1", by="test", reason="try it")
    epoch = on.deployments.epoch()
    on.look()
    assert (on.threshold, on.deployments.epoch()) == (0.5, epoch), "it is being staged"
    controllers.end(on.deployments, controllers.Action("stop", "enough"), by="test")
    on.look()
    assert on.threshold > 0.5
    assert on.deployments.current().roll_out.status == "stopped"  # type: ignore[union-attr]
    on.play(200, cost=9.0)
    assert len(on.deployments.policies(last=2)) == 2
    assert [one.kind for one in on.deployments.trials(last=2)] == ["canary"], "documents do not hide roll-outs"


def test_two_that_adapt_act_once(live: Callable[..., Live]) -> None:
    on = live()
    on.play(EVERY - 1, cost=9.0)
    rival = Adapter(on.registry, Threshold(min_s=0.0, reward_type="implicit", every=1, caution=0.0))
    stale = on.deployments.current()
    assert rival.look(stale) is not None
    with pytest.raises(ConflictError, match="somebody else"):
        Adapter(on.registry, Threshold(min_s=0.0, reward_type="implicit", every=1, caution=0.0)).look(stale)


def decisions(threshold: float, band: float, rows: int = 4_000, cost: float = 4.0) -> Decisions:
    draw = np.random.default_rng(1)
    score, coin = draw.random(rows), draw.random(rows)
    jump = (score >= threshold).astype(float)
    chance = np.clip((score - threshold + band) / (2 * band), 0, 1) if band else jump
    above = coin < chance
    propensity = np.where(above, chance, 1 - chance)
    reward = np.where(above, np.where(draw.random(rows) < score, 1.0, -cost), 0.0)
    names = np.array([None] * rows, object)
    return Decisions(np.arange(rows).astype(object), score, above, propensity, names, reward)


def worth(threshold: float, cost: float = 4.0) -> float:
    """A decision, of scores between 0 and 1: above earns s - cost (1 - s)."""
    return (1 + cost) * (1 - threshold**2) / 2 - cost * (1 - threshold)


def test_the_log_tells_what_a_policy_near_by_would_earn_and_says_where_it_cannot() -> None:
    log = decisions(0.5, 0.2)
    for threshold in (0.45, 0.55, 0.65):
        found = estimate(log, threshold, 0.0)
        assert found["untold"] == 0.0
        for name in ("ips", "snips", "dr"):
            half = (found[name]["high"] - found[name]["low"]) / 2
            assert abs(found[name]["value"] - worth(threshold)) < 2 * half, (threshold, name)
    assert problem_of(estimate(log, 0.6, 0.0)) is None
    assert "cannot tell" in str(problem_of(estimate(log, 0.9, 0.0)))
    assert "less than" in str(problem_of(estimate(log, 0.35, 0.05)))
    assert "are needed" in str(problem_of(estimate(log.last(50), 0.6, 0.0)))
    sharp = estimate(decisions(0.5, 0.0), 0.7, 0.0)
    assert sharp["untold"] == pytest.approx(0.2, abs=0.03)
    assert "had no chance" in str(problem_of(sharp))


def test_a_policy_is_put_in_force_and_taken_back_over_http(
    serve_store: Callable[..., Any], store: Store, registry: Registry
) -> None:
    client = serve_store(store)
    body = {"threshold": 0.5, "band": 0.2, "reason": "so that the log can tell"}
    assert client.post("/policy", json=body).status_code == 503
    registry.promote("1.0", reason="first")
    followed(client)
    loaded = client.server.resident.resident()["1.0"]
    object.__setattr__(loaded, "predictor", Even(loaded.predictor))
    assert client.get("/policy").json() == {"epoch": 1, "policy": None, "history": []}
    plain = client.post("/predict", json=ROW)
    assert ("policy_version" in plain.json(), "x-cltrain-policy" in plain.headers) == (False, False)
    refused = client.post("/policy", json=body)
    assert (refused.status_code, "send force=true" in refused.json()["detail"]) == (409, True), refused.text
    forced = client.post("/policy", json={**body, "force": True, "reward_type": "implicit"}).json()
    assert (forced["policy"]["version"], forced["policy"]["band"]) == ("2", 0.2)
    assert "are needed" in forced["policy"]["forced"]
    followed(client)
    draw = np.random.default_rng(0)
    for _ in range(8):
        rows = [{"features": {"distance": float(2000 * s)}} for s in draw.random(50)]
        answer = client.post("/predict", json={"rows": rows})
        assert (answer.json()["policy_version"], answer.headers["x-cltrain-policy"]) == ("2", "2")
        made = answer.json()["predictions"]
        reward = [float(p["label"] * (1 if draw.random() < p["probability"] else -2)) for p in made]
        labels = [
            {"request_id": p["request_id"], "label": r, "type": "implicit"} for p, r in zip(made, reward, strict=True)
        ]
        assert client.post("/feedback", json={"rows": labels}).status_code == 200
    end = time.monotonic() + 5
    while client.server.predictions.written < 401 and time.monotonic() < end:
        time.sleep(0.01)
    why = client.get(f"/why/{made[0]['request_id']}").json()
    assert (why["policy_version"], why["label_answer"]) == ("2", str(made[0]["label"]))
    assert 0 < why["decision_propensity"] <= 1
    far = client.post("/policy", json={"threshold": 0.95, "reason": "careful"})
    assert (far.status_code, "had no chance" in far.json()["detail"]) == (409, True)
    near = client.post("/policy", json={"threshold": 0.6, "reason": "a wrong one costs twice", "hold": True}).json()
    policy = near["policy"]
    assert (policy["version"], policy["parent"], policy["held"], policy["forced"]) == ("3", "2", True, None)
    assert policy["reward"]["reward_type"] == "implicit", "as it was"
    for name in ("ips", "snips", "dr"):
        assert policy["estimate"][name]["low"] < policy["estimate"][name]["value"] < policy["estimate"][name]["high"]
    assert [one["version"] for one in near["history"]] == ["2"]
    followed(client)
    labels = [client.post("/predict", json={"features": {"distance": d}}).json() for d in (1190.0, 1210.0)]
    assert [one["predictions"][0]["label"] for one in labels] == [0, 1]
    registry.promote("1.1", reason="a new model")
    followed(client)
    assert client.post("/predict", json=ROW).json()["policy_version"] == "3", "it is independent of the model"
    back = client.post("/policy/rollback", json={"reason": "complaints"}).json()
    assert (back["policy"]["version"], back["policy"]["held"]) == ("2", True)
    assert registry.champion().version == "1.1"  # type: ignore[union-attr]
    again = client.post("/policy/rollback", json={"reason": "the other one", "version": "3"}).json()
    assert (again["policy"]["version"], [one["version"] for one in again["history"]]) == ("3", ["2"])
    unknown = client.post("/policy/rollback", json={"reason": "?", "version": "99"})
    assert (unknown.status_code, "it has had: 2, 3" in unknown.json()["detail"]) == (422, True)
    client.post("/policy/rollback", json={"reason": "back", "version": "2"})
    assert client.post("/policy/rollback", json={"reason": "to none"}).json()["policy"] is None
    followed(client)
    assert "policy_version" not in client.post("/predict", json=ROW).json()
    assert client.post("/policy/rollback", json={"reason": "further"}).status_code == 422
    stale = {**body, "force": True, "expected_epoch": 1}
    assert client.post("/policy", json=stale).status_code == 409
    closed = client.post("/policy", json=body, headers={"authorization": "Bearer wrong"})
    assert closed.status_code == 401
    actions = [e["action"] for e in registry.audit_log() if e["action"] == "policy"]
    assert len(actions) == 6


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*")
def test_on_ray_the_threshold_adapts_and_a_bandit_ends(
    ray_session: object, store: Store, registry: Registry, events: Callable[..., pa.Table]
) -> None:
    registry.promote("1.0", reason="first")
    Registry(store, "regression").promote("1.0", reason="first")
    policy = Threshold(min_s=0.0, every=20, caution=0.0, reward_type="implicit", band=0.5)
    serving = LocalServing(port=0, log=LogSettings(flush_s=0.05), policy=policy)
    with pytest.raises(ConfigError, match="regression"):
        serving.start(store, "regression")
    serving.start(store, "binary")
    try:
        url, versions = str(serving.url), set()
        end = time.monotonic() + 60
        while len(versions) < 3:
            assert time.monotonic() < end, "the threshold does not move"
            rows = [{"features": {"distance": 100.0 * i, "carrier": "UA"}} for i in range(20)]
            answer = post(url, "/predict", {"rows": rows})
            versions |= {answer.get("policy_version")} - {None}
            labels = [
                {"request_id": p["request_id"], "label": -p["label"], "type": "implicit"} for p in answer["predictions"]
            ]
            post(url, "/feedback", {"rows": labels})
            time.sleep(0.1)
        found = get_json(url, "/policy", timeout_s=10)
        assert found["policy"]["threshold"] > 0.5
        assert found["policy"]["reason"].startswith("above earns -")
        kind = BanditTest(min_units=20, min_s=0.0, level=0.6, wait_s=60.0, guardrails=Guardrails(max_p99_ratio=None))
        with serving.traffic(events(), seed=0):
            done = serving.roll_out(registry, "1.1", "1.0", kind, "try it")
        assert done.status in ("promoted", "rolled_back", "running")
        assert done.evidence["outcomes"]["bandit"]["learned"]["learned"] >= 40
        assert get_json(url, "/policy", timeout_s=10)["policy"]["version"] == found["policy"]["version"], (
            "it held still"
        )
    finally:
        serving.stop()


def post(url: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    asked = urllib.request.Request(url + path, json.dumps(body).encode(), {"content-type": "application/json"})
    with opener.open(asked, timeout=30) as answer:
        return json.loads(answer.read())


def test_rank_and_other_tasks_have_no_policy(serve_store: Callable[..., Any], store: Store, registry: Registry) -> None:
    registry.promote("1.0", reason="first")
    client = serve_store(store)
    client.post("/policy", json={"threshold": 0.5, "band": 0.5, "reason": "all is drawn", "force": True})
    followed(client)
    items = [{"item_id": f"i{i}", "features": {"distance": 100 * i}} for i in range(5)]
    assert client.post("/rank", json={"items": items}).status_code == 200
    client.server.predictions.close()
    rows = read_predictions(store.storage, "binary").to_pylist()
    assert {(r["policy_version"], r["decision_propensity"]) for r in rows} == {(None, None)}
    Registry(store, "multiclass").promote("1.0", reason="first")
    other = serve_store(store, "multiclass")
    answer = other.post("/policy", json={"threshold": 0.5, "reason": "?"})
    assert (answer.status_code, "multiclass" in answer.json()["detail"]) == (422, True)


def test_a_held_document_is_not_adapted(live: Callable[..., Live]) -> None:
    on = live()
    on.play(200, cost=9.0)
    assert len(on.deployments.policies()) > 1
    first = on.deployments.policies()[0]["version"]
    on.deployments.rollback_policy(first, by="test", reason="not so fast")
    on.play(200, cost=9.0)
    assert on.threshold == 0.5
    log = DecisionLog(on.registry.store.storage, "binary", Reward.of(QUICK))
    held = on.deployments.current()
    done = propose(on.deployments, log, document_of(0.55, 0.1, Reward.of(QUICK)), by="test", reason="go on", force=True)
    assert done.epoch == held.epoch + 1
    on.look()
    on.play(200, cost=9.0)
    assert on.threshold > 0.55


def test_a_document_of_another_kind_is_shown_and_left_alone(
    serve_store: Callable[..., Any], store: Store, registry: Registry
) -> None:
    registry.promote("1.0", reason="first")
    now = Deployments(registry).set_policy({"weights": {"age": 0.1}, "candidate": {"age": 0.2}, "duel": 0}, reason="?")
    assert Adapter(registry, QUICK).look(now) is None
    client = serve_store(store)
    shown = client.get("/policy").json()["policy"]
    assert (shown["weights"], shown["threshold"], shown["version"]) == ({"age": 0.1}, None, "2")
    assert "policy_version" not in client.post("/predict", json=ROW).json()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Threshold(min_s=-1), r"policy\.min_s"),
        (lambda: Threshold(false_positive_cost=math.inf), r"policy\.false_positive_cost"),
        (lambda: Reward(reward_type="clicks"), r"policy\.reward_type"),
        (lambda: Reward(false_negative_cost=-1), r"policy\.false_negative_cost"),
        (lambda: document_of(1.5, 0.1, Reward()), r"policy\.threshold"),
        (lambda: document_of(0.5, 0.6, Reward()), r"policy\.band"),
        (lambda: LocalServing(policy=Threshold(reward_type="clicks")), r"policy\.reward_type"),
        (lambda: LocalServing(port=0, policy=Threshold()).check(task="regression"), r"serve\.policy"),
    ],
)
def test_settings_name_what_is_wrong(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()


@pytest.mark.parametrize("job", ["loop", "serve_app"])
def test_the_option_reaches_serving(settings_of: Callable[..., dict[str, Any]], job: str) -> None:
    assert build(settings_of(job=job)["serve"], "serve").policy is None
    given = settings_of("policy@serve.policy=threshold", "serve.policy.step=0.05", job=job)
    assert build(given["serve"], "serve").policy == Threshold(step=0.05)
    with pytest.raises(ConfigError, match=r"serve\.policy"):
        build(settings_of("policy@serve.policy=thompson", job=job)["serve"], "serve")
