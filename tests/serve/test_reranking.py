"""Re-ranking weights live on /rank: how they order, how clicks move them, and how they go back."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from scipy import special

from cltrain.errors import ConfigError, DataError
from cltrain.online.policy import Threshold, Weights
from cltrain.registry import Registry, Store
from cltrain.registry.deployment import Deployments
from serve.local import LocalServing
from serve.logs.prediction_log import read_predictions
from serve.policy import reranking
from serve.policy.policy_layer import Reward, document_of
from serve.policy.reranking import WeightsAdapter, blended
from serve.rollout import Canary, Interleave
from serve.rollout.controller import Controller, begin
from serve.settings import LogSettings

Serve = Callable[..., Any]
SETTINGS = Weights(start={"age": 0.0, "match": 0.0}, step=0.3, reach=0.8, sessions=30, session_s=600.0)


class Scored:
    """A predictor of which the test knows the answer."""

    def __init__(self, predictor: Any) -> None:
        self._predictor = predictor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._predictor, name)

    def answer(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"probability": float(special.expit(row["x"])), "label": int(row["x"] > 0)} for row in rows]


class Shop:
    """Users who want what the model says, and even more what matches, which the model does not know."""

    def __init__(self, client: Any, registry: Registry) -> None:
        self.client, self.registry, self.deployments = client, registry, Deployments(registry)
        self.generator = np.random.default_rng(0)
        self.users = self.lists = 0
        for loaded in client.server.resident.resident().values():
            object.__setattr__(loaded, "predictor", Scored(loaded.predictor))

    def rank(self, unit: str, features: np.ndarray, **more: Any) -> dict[str, Any]:
        items = [
            {"item_id": str(i), "features": {"x": x, "age": age, "match": match}}
            for i, (x, age, match) in enumerate(features.tolist())
        ]
        answer = self.client.post("/rank", json={"unit_id": unit, "items": items, "top": 8, **more})
        assert answer.status_code == 200, answer.text
        self.lists += 1
        return answer.json()

    def visit(self, users: int) -> None:
        for _ in range(users):
            features = self.generator.normal(size=(20, 3)) * [1.0, 30.0, 5.0] + [0.0, 40.0, 10.0]
            found = self.rank(f"u{self.users}", features)
            liked = special.expit(features[:, 0] + 2 * (features[:, 2] - 10) / 5 - 1)
            self.users += 1
            clicks = [
                {"request_id": item["request_id"], "label": 1, "type": "implicit"}
                for item in found["ranking"]
                if self.generator.random() < liked[int(item["item_id"])]
            ]
            if clicks:
                self.client.post("/feedback", json={"rows": clicks})
        end = time.monotonic() + 30
        while self.client.server.predictions.written < 20 * self.lists:
            assert time.monotonic() < end
            time.sleep(0.01)

    def follow(self) -> None:
        self.client.server.resident.refresh()


@pytest.fixture
def shop(serve_store: Serve, store: Store, registry: Registry) -> Shop:
    registry.promote("1.0", reason="first")
    return Shop(serve_store(store, poll_s=600.0, evidence_s=600.0, log=LogSettings(flush_s=0.01)), registry)


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """The adapter's clock is past the sessions."""

    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) + timedelta(minutes=15)

    monkeypatch.setattr(reranking, "datetime", Later)


def test_weights_count_standard_deviations_of_the_list() -> None:
    answers = [{"value": value} for value in (10.0, 20.0, 30.0)]
    rows = [{"age": 3_000}, {"age": 2_000}, {"age": 1_000, "other": "text"}]
    one = np.sqrt(1.5)
    assert blended(answers, rows, {}) == pytest.approx([-one, 0, one])
    assert blended(answers, rows, {"age": 2.0}) == pytest.approx([one, 0, -one])
    assert blended(answers, [{"age": True}, {"age": None}, {}], {"age": 1.0}) == pytest.approx([-one, 0, one])
    for same in ([{"age": 1e308}, {"age": -1e308}, {}], [{"age": 0.1}, {"age": 0.1}, {}]):
        assert blended(answers, same, {"age": 1.0}) == pytest.approx([-one, 0, one])
    odds = [{"probability": p} for p in (special.expit(-2.0), 0.5, special.expit(2.0), 1.0)]
    assert np.diff(blended(odds, [{}] * 4, {}))[:2] == pytest.approx([1, 1], rel=0.8)
    with pytest.raises(DataError, match=r"items\[1\]\.features\.age must be a number"):
        blended(answers, [{}, {"age": "old"}, {}], {"age": 1.0})
    with pytest.raises(DataError, match="64 bits"):
        blended(answers, [{}, {"age": 10**400}, {}], {"age": 1.0})


@pytest.mark.usefixtures("later")
def test_weights_follow_clicks_in_bounded_steps_and_the_model_stays(shop: Shop, registry: Registry) -> None:
    adapter, digest = WeightsAdapter(registry, SETTINGS), registry.version("1.0").weights_digest
    seen = [adapter.look(shop.deployments.current())]
    for _ in range(14):
        shop.follow()
        shop.visit(40)
        while (moved := adapter.look(shop.deployments.current())) is None:
            assert shop.users < 2_000
            shop.visit(10)
        seen.append(moved)
        if len(seen) == 7:
            adapter = WeightsAdapter(registry, SETTINGS)  # another controller goes on
    documents = [one.document for one in seen if one is not None]
    for before, after in pairwise(documents):
        moves = [after["weights"][name] - before["weights"][name] for name in ("age", "match")]
        assert np.linalg.norm(moves) <= 0.3 + 1e-9
        assert (after["duel"], after["parent"]) == (before["duel"] + 1, before["version"])
    last = documents[-1]["weights"]
    assert last["match"] > 0.5
    assert last["match"] > 1.5 * abs(last["age"])
    assert "sessions" in documents[-1]["reason"]
    assert registry.champion().version == "1.0"  # type: ignore[union-attr]
    assert registry.version("1.0").weights_digest == digest


@pytest.mark.usefixtures("later")
def test_answers_and_log_name_the_weights(shop: Shop, registry: Registry) -> None:
    adapter = WeightsAdapter(registry, SETTINGS)
    started = adapter.look(shop.deployments.current())
    assert started is not None
    shop.follow()
    features = np.random.default_rng(1).normal(size=(20, 3))
    answer = shop.rank("u", features)
    assert (answer["version"], answer["arm"]) == ("binary:1.0", "champion")
    assert answer["policy_version"] == started.policy
    assert {item["team"] for item in answer["ranking"]} >= {"champion", "challenger"}
    again = shop.rank("u", features)
    assert [i["item_id"] for i in again["ranking"]] == [i["item_id"] for i in answer["ranking"]]
    end = time.monotonic() + 10
    while (logged := read_predictions(registry.store.storage)).num_rows < 40:
        assert time.monotonic() < end
        time.sleep(0.01)
    rows = {row["request_id"]: row for row in logged.to_pylist()}
    for place, item in enumerate(answer["ranking"]):
        row = rows[item["request_id"]]
        assert (row["arm"], row["position"], row["version"]) == (item["team"], place + 1, "1.0")
        assert (row["policy_version"], row["experiment"]) == (started.policy, None)
        assert row["prediction"] == item["score"] == special.expit(features[int(item["item_id"]), 0])
    metrics = shop.client.get("/metrics").text
    assert 'cltrain_rows_total{arm="champion",role="champion",version="1.0"} 40.0' in metrics
    items = [{"item_id": "a", "features": {"x": 1.0, "age": "old"}}]
    refused = shop.client.post("/rank", json={"items": items})
    assert (refused.status_code, "features.age must be a number" in refused.json()["detail"]) == (422, True)
    one = shop.client.post("/rank", json={"items": [{"item_id": "a", "features": {"x": 1.0}}]}).json()
    assert one["ranking"][0]["team"] == "neither"
    plain = shop.client.post("/predict", json={"features": {"x": 1.0}}).json()
    assert plain.get("policy_version") is None


@pytest.mark.usefixtures("later")
def test_weights_by_hand_order_all_and_go_back(shop: Shop, registry: Registry) -> None:
    features = np.column_stack([np.arange(10.0), np.zeros(10), -np.arange(10.0)])
    wanted = {"weights": {"match": 3.0}, "hold": True, "reason": "a campaign"}
    done = shop.client.post("/policy/weights", json=wanted).json()
    shop.follow()

    def order() -> list[str]:
        return [item["item_id"] for item in shop.rank("u", features)["ranking"]]

    up, down = [str(i) for i in range(9, 1, -1)], [str(i) for i in range(8)]
    assert order() == down
    assert shop.rank("u", features)["policy_version"] == done["policy_version"]
    assert "team" not in shop.rank("u", features)["ranking"][0], "what is held has no duel"
    adapter = WeightsAdapter(registry, SETTINGS)
    assert adapter.look(shop.deployments.current()) is None
    shop.client.post("/policy/weights", json={"weights": {"match": -3.0, "age": 0.0}, "reason": "it is over"})
    shop.follow()
    assert order() == up
    begun = adapter.look(shop.deployments.current())
    assert begun is not None
    assert begun.document["weights"] == {"match": -3.0, "age": 0.0}, "the adapter goes on from there"
    state = shop.client.get("/policy").json()
    assert state["policy"]["weights"] == {"match": -3.0, "age": 0.0}
    back = {"reason": "no", "version": done["policy_version"]}
    assert shop.client.post("/policy/rollback", json=back).json()["policy"]["held"]
    shop.follow()
    assert order() == down
    assert adapter.look(shop.deployments.current()) is None
    shop.client.post("/policy/weights", json={"weights": {"x": 1.0}, "reason": "other features"})
    assert adapter.look(shop.deployments.current()) is None, "what was put in force by hand stays"
    shop.deployments.set_policy(document_of(0.4, 0.0, Reward()), reason="a threshold")
    assert adapter.look(shop.deployments.current()) is None
    wrong = shop.client.post("/policy/weights", json={"weights": {"x": "much"}, "reason": "?"})
    assert wrong.status_code == 422
    stale = shop.client.post("/policy/weights", json={"weights": {}, "reason": "?", "expected_epoch": 1})
    assert stale.status_code == 409


@pytest.mark.usefixtures("later")
def test_weights_hold_still_while_a_roll_out_runs_and_order_its_lists(shop: Shop, registry: Registry) -> None:
    features = np.column_stack([np.arange(10.0), np.zeros(10), -np.arange(10.0)])
    shop.deployments.set_policy({"weights": {"match": 3.0}, "candidate": {"match": -3.0}, "duel": 0}, reason="test")
    controller = Controller(registry, replicas=1)
    for kind, arm in ((Canary(steps=(0.5, 1.0)), None), (Interleave(), "interleave")):
        now = begin(shop.deployments, kind, "1.1", by="test", reason="try")
        assert WeightsAdapter(registry, SETTINGS).look(now) is None
        shop.follow()
        shop.client.server.recorder.publish()
        controller.look()
        shop.follow()
        for loaded in shop.client.server.resident.resident().values():
            object.__setattr__(loaded, "predictor", Scored(loaded.predictor))
        answer = shop.rank("u", features)
        assert [item["item_id"] for item in answer["ranking"]] == [str(i) for i in range(8)]
        assert answer["policy_version"] == now.policy
        assert arm in (None, answer["arm"])
        shop.client.post("/rollouts/halt", json={"reason": "enough"})
        shop.follow()


def test_a_controller_lets_weights_follow(shop: Shop, registry: Registry) -> None:
    controller = Controller(registry, replicas=1, policy=SETTINGS)
    controller.look()
    now = shop.deployments.current()
    assert now.document["weights"] == {"age": 0.0, "match": 0.0}
    assert now.document["candidate"] == SETTINGS.towards(now.document["weights"], 0, 0.8)
    other = WeightsAdapter(registry, Weights(start={"price": 0.1}))
    begun = other.look(now)
    assert begun is not None
    assert begun.document["weights"] == {"price": 0.1}


def test_what_cannot_be_is_refused(store: Store) -> None:
    with pytest.raises(ConfigError, match=r"policy\.click_type must be system"):
        LocalServing(policy=Weights(start={"a": 0.0}, click_type="clicks"))
    with pytest.raises(ConfigError, match=r"policy\.session_s"):
        Weights(start={"a": 0.0}, session_s=0.0)
    serving = LocalServing(port=0, policy=Weights(start={"a": 0.0}))
    serving.check(task="regression")
    with pytest.raises(ConfigError, match=r"serve\.policy=weights compares rankings"):
        serving.check(task="multiclass")
    assert LocalServing(port=0, policy=Threshold()).policy == Threshold()
    registry = Registry(store, "multiclass")
    registry.promote("1.0", reason="first")
    with pytest.raises(ConfigError, match="no one score to rank by"):
        WeightsAdapter(registry, SETTINGS).look(Deployments(registry).current())
    assert Deployments(registry).current().policy is None


def test_the_group_builds(settings_of: Callable[..., dict[str, Any]]) -> None:
    from cltrain.config import build

    found = build(settings_of("policy@serve.policy=weights", "serve.policy.start={age: 0.1}")["serve"], "serve")
    assert found.policy == Weights(start={"age": 0.1})
