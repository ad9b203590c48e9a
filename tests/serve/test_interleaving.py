"""Interleaving over a server in this process: what users see, what is logged, and what their clicks decide."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import special

from cltrain.errors import ConfigError
from cltrain.online.interleave import Wins
from cltrain.online.policy import Weights
from cltrain.online.simulator import World
from cltrain.registry import Registry, Store
from cltrain.registry.deployment import Deployments, Trial
from cltrain.seeding import numpy_generator
from serve.local import LocalServing
from serve.logs.feedback import Feedback, FeedbackLog
from serve.logs.prediction_log import read_predictions
from serve.rollout import controller as controlling
from serve.rollout.controller import Controller, begin
from serve.rollout.evidence import read_evidence
from serve.rollout.experiments import Interleave
from serve.rollout.guardrails import Guardrails
from serve.rollout.machine import Action, Evidence, decide
from serve.rollout.preference import Preference, PreferenceReader, credits_of
from serve.settings import LogSettings

Serve = Callable[..., Any]
QUIET = Guardrails(sustain_s=0.0, max_p99_ratio=None)  # latencies of a busy machine say nothing
KIND = Interleave(session_s=600.0, min_samples=50, guardrails=QUIET)
WORLD = World(users=1_000, items=30)
BY_HAND = {"poll_s": 600.0, "evidence_s": 600.0, "log": LogSettings(flush_s=0.02)}


class Ranker:
    """A predictor that knows what users like, up to an error of its version."""

    def __init__(self, predictor: Any, version: str, noise: float) -> None:
        error = numpy_generator(0, "ranker", version).normal(size=WORLD.logits.shape)
        self._predictor, self._logits = predictor, WORLD.logits + noise * error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._predictor, name)

    def answer(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        chances = special.expit([self._logits[row["user"], row["item"]] for row in rows])
        return [{"probability": float(p), "label": int(p >= 0.5)} for p in chances]


class Broken:
    def __init__(self, predictor: Any) -> None:
        self._predictor = predictor

    def __getattr__(self, name: str) -> Any:
        return getattr(self._predictor, name)

    def answer(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        raise RuntimeError("broken")


class Site:
    """A server and a controller that look when they are told, and users who click."""

    def __init__(self, client: Any, registry: Registry, kind: Interleave = KIND) -> None:
        self.client, self.registry, self.deployments = client, registry, Deployments(registry)
        self.controller = Controller(registry, replicas=1)
        self.lists: list[dict[str, Any]] = []
        self.generator = np.random.default_rng(0)
        begin(self.deployments, kind, "1.1", by="test", reason="try it")
        self.look()
        assert self.trial.step == 0

    @property
    def trial(self) -> Trial:
        return self.deployments.trials()[-1]

    def look(self) -> Action | None:
        self.client.server.resident.refresh()
        self.client.server.recorder.publish()
        action = self.controller.look()
        self.client.server.resident.refresh()
        return action

    def give(self, version: str, predictor: Callable[..., Any], *more: Any) -> None:
        loaded = self.client.server.resident.resident()[version]
        object.__setattr__(loaded, "predictor", predictor(loaded.predictor, *more))

    def visit(self, users: range, top: int = 10) -> list[dict[str, Any]]:
        """Each user asks for a list of all items, and clicks; returns the clicks as rows of feedback."""
        clicks = []
        for user in users:
            items = [{"item_id": str(i), "features": {"item": i}} for i in range(WORLD.items)]
            body = {"unit_id": f"u{user}", "features": {"user": user}, "items": items, "top": top}
            answer = self.client.post("/rank", json=body)
            assert answer.status_code == 200, answer.text
            found = answer.json()
            self.lists.append(found)
            shown = np.array([[int(one["item_id"]) for one in found["ranking"]]])
            (clicked,) = WORLD.clicks(np.array([user]), shown, self.generator)
            clicks += [
                {"request_id": one["request_id"], "label": 1, "type": "implicit"}
                for one, click in zip(found["ranking"], clicked, strict=True)
                if click
            ]
        return clicks

    def send(self, clicks: list[dict[str, Any]]) -> dict[str, int]:
        return self.client.post("/feedback", json={"rows": clicks}).json()

    def settle(self, rows_a_list: int = WORLD.items) -> None:
        """Until the log has all."""
        end = time.monotonic() + 30
        while self.client.server.predictions.written < rows_a_list * len(self.lists):
            assert time.monotonic() < end
            time.sleep(0.01)

    def reader(self, **settings: Any) -> PreferenceReader:
        told, trial = {"session_s": KIND.session_s} | settings, self.trial
        storage = self.registry.store.storage
        return PreferenceReader(storage, "binary", "experiment", trial.id, trial.started_at, **told)

    def found(self, after_s: float = 3_600.0, **settings: Any) -> Preference:
        return self.reader(**settings).read(datetime.now(UTC) + timedelta(seconds=after_s))


@pytest.fixture
def site(serve_store: Serve, store: Store, registry: Registry) -> Callable[..., Site]:
    registry.promote("1.0", reason="first")
    return lambda kind=KIND: Site(serve_store(store, max_batch_rows=5_000, **BY_HAND), registry, kind)


@pytest.fixture
def an_hour_later(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:
            return datetime.now(tz) + timedelta(hours=1)

    return lambda: monkeypatch.setattr(controlling, "datetime", Later)


def rankers(on: Site, champion: float, challenger: float) -> None:
    on.give("1.0", Ranker, "1.0", champion)
    on.give("1.1", Ranker, "1.1", challenger)


def test_a_list_says_who_is_in_it_and_the_log_says_the_same(site: Callable[..., Site], registry: Registry) -> None:
    on = site()
    rankers(on, 1.0, 1.0)
    on.visit(range(30))
    on.settle()
    logged = {row["request_id"]: row for row in read_predictions(registry.store.storage).to_pylist()}
    teams: list[str] = []
    for answer in on.lists:
        assert (answer["version"], answer["arm"]) == (None, "interleave")
        assert answer["versions"] == {"champion": "binary:1.0", "challenger": "binary:1.1"}
        assert len(answer["ranking"]) == 10
        for place, item in enumerate(answer["ranking"]):
            row = logged.pop(item["request_id"])
            version = "1.1" if item["team"] == "challenger" else "1.0"
            assert item["version"] == f"binary:{version}"
            assert (row["version"], row["arm"], row["position"]) == (version, item["team"], place + 1)
            sign = {"challenger": 1, "champion": -1, "neither": 0}[item["team"]]
            assert np.sign(row["credit"]) == sign, "what a click there says"
            assert (row["prediction"], row["experiment"], row["epoch"]) == (item["score"], on.trial.id, answer["epoch"])
            teams.append(item["team"])
        drafted = sum(team != "neither" for team in teams[-10:])
        assert row["propensity"] == 0.5 ** -(-drafted // 2)
    assert {row["position"] for row in logged.values()} == {None}, "what was cut off has no place"
    assert {row["credit"] for row in logged.values()} == {None}
    assert {row["arm"] for row in logged.values()} == {"neither"}
    assert teams.count("champion") == pytest.approx(teams.count("challenger"), abs=30)
    again = on.client.post("/rank", json={"unit_id": "u3", "features": {"user": 3}, "top": 10, "items": [
        {"item_id": str(i), "features": {"item": i}} for i in range(WORLD.items)]})  # fmt: skip
    assert again.headers["x-cltrain-version"] == "binary:1.0,binary:1.1"
    assert [i["item_id"] for i in again.json()["ranking"]] == [i["item_id"] for i in on.lists[3]["ranking"]]
    metrics = on.client.get("/metrics").text
    assert 'cltrain_rows_total{arm="challenger",role="challenger",version="1.1"} 930.0' in metrics


def test_lists_that_were_logged_without_credits_weigh_all_clicks_alike() -> None:
    rows = pa.table({"arm": ["challenger", "champion", "neither", "champion"], "credit": [None, None, None, -0.25]})
    assert credits_of(rows).to_pylist() == [1.0, -1.0, 0.0, -0.25]


def test_equal_rankers_win_equally_often_and_nothing_is_decided(
    site: Callable[..., Site], an_hour_later: Callable[[], None]
) -> None:
    on = site()
    rankers(on, 1.0, 1.0)
    on.send(on.visit(range(700)))
    on.settle()
    assert on.found(after_s=0.0).open == 700
    found = on.found()
    assert found.wins.challenger + found.wins.champion + found.wins.ties == 700
    assert found.wins.challenger + found.wins.champion > 200
    assert found.wins.preference().estimate == pytest.approx(0.5, abs=0.05)
    an_hour_later()
    held = on.look()
    assert held is not None
    assert (held.do, on.trial.status) == ("hold", "running")


def test_the_preferred_ranker_is_promoted_by_whichever_controller_is_there(
    site: Callable[..., Site], registry: Registry, an_hour_later: Callable[[], None]
) -> None:
    on = site()
    rankers(on, 1.5, 0.0)
    for first in range(0, 400, 100):
        on.send(on.visit(range(first, first + 100)))
    on.settle()
    assert on.look().do == "hold", "no session is over"  # type: ignore[union-attr]
    on.controller = Controller(registry, replicas=1)
    an_hour_later()
    promoted = on.look()
    assert promoted is not None
    assert (promoted.do, "preferred by" in promoted.reason) == ("promote", True)
    assert registry.champion().version == "1.1"  # type: ignore[union-attr]
    evidence = on.trial.evidence
    assert evidence["outcomes"]["preference"]["low"] > 0.5
    assert evidence["challenger"]["requests"] == evidence["champion"]["requests"] == 400
    plain = on.client.post("/rank", json={"items": [{"item_id": "a", "features": {"user": 1, "item": 1}}]}).json()
    assert (plain["version"], plain["arm"]) == ("binary:1.1", "champion")


def test_the_worse_ranker_is_rolled_back(site: Callable[..., Site], an_hour_later: Callable[[], None]) -> None:
    on = site()
    rankers(on, 0.0, 1.5)
    on.send(on.visit(range(400)))
    on.settle()
    an_hour_later()
    assert on.look().do == "roll_back"  # type: ignore[union-attr]
    assert on.deployments.refused("1.1").startswith("it is preferred by")  # type: ignore[union-attr]


def test_a_unit_counts_once_whatever_comes_twice(site: Callable[..., Site], registry: Registry) -> None:
    on = site()
    rankers(on, 1.0, 0.5)
    clicks = on.visit(range(100))
    assert on.send(clicks)["stored"] == len(clicks)
    on.settle()
    found = on.found()
    assert on.send(clicks)["duplicates"] == len(clicks)
    elsewhere = FeedbackLog(registry.store.storage, "another", LogSettings(flush_s=0.02))
    elsewhere._known.clear()
    now = datetime.now(UTC)
    elsewhere.append([Feedback(c["request_id"], None, "implicit", "1", 1.0, now, now) for c in clicks]).result()
    elsewhere.close()
    assert on.found() == found, "through another replica"
    on.visit(range(100))
    on.settle()
    again = on.found()
    assert again.wins.challenger + again.wins.champion + again.wins.ties == 100
    assert on.found(session_s=1e-6).wins == Wins(ties=100), "clicks after the session are of no account"
    assert on.found(click_type="explicit").wins == Wins(ties=100)
    assert on.found(click_type="implicit").wins == again.wins
    assert on.found(reward_type="implicit").wins == Wins(ties=100)
    took_back = [{**click, "label": 0, "label_time": "2100-01-01T00:00:00Z"} for click in clicks]
    on.send(took_back)
    assert on.found().wins == Wins(ties=100), "a click that was corrected"


@pytest.mark.parametrize(("reward_type", "after_s"), [(None, 5_000.0), ("explicit", 700_000.0)])
def test_what_is_settled_is_forgotten_and_still_counts(
    site: Callable[..., Site], reward_type: str | None, after_s: float
) -> None:
    on = site()
    rankers(on, 1.0, 0.5)
    follower, now = on.reader(reward_type=reward_type), datetime.now(UTC)

    def says(seconds: float) -> Preference:
        at = now + timedelta(seconds=seconds)
        found = follower.read(at)
        assert found.to_json() == on.reader(reward_type=reward_type).read(at).to_json()
        return found

    assert says(0.0).wins == Wins()
    clicks = on.visit(range(60))
    on.settle()
    assert (says(1.0).open, says(700.0).wins) == (60, Wins(ties=60))
    bought = [{**click, "type": "explicit", "label": 2.5} for click in clicks[::2]]
    on.send(clicks + bought)
    found = says(700.0)
    assert found.wins.challenger + found.wins.champion > 20
    assert says(after_s).wins == found.wins
    assert (follower._rows.num_rows, follower._labels.num_rows) == (0, 0)
    on.send(on.visit(range(60, 70)))
    on.settle()
    again = says(after_s + 700.0)
    assert again.wins.challenger + again.wins.champion + again.wins.ties == 70
    assert follower._rows.num_rows == 0


def test_rewards_are_added_up_for_each_team(site: Callable[..., Site]) -> None:
    on = site()
    rankers(on, 1.0, 1.0)
    on.visit(range(20))
    bought = {"challenger": 3.0, "champion": 1.0, "neither": 100.0}
    on.send(
        [
            {"request_id": item["request_id"], "label": bought[item["team"]], "type": "explicit"}
            for answer in on.lists
            for item in answer["ranking"]
        ]
    )
    on.settle()
    teams = [item["team"] for answer in on.lists for item in answer["ranking"]]
    found = on.found(reward_type="explicit").contrast("reward")
    assert found is not None
    assert found.n == 20
    assert found.level == pytest.approx(teams.count("champion") / 20)
    assert found.difference == pytest.approx((3 * teams.count("challenger") - teams.count("champion")) / 20)


def test_where_the_challenger_fails_the_champion_ranks_alone_and_it_is_taken_back(
    site: Callable[..., Site], registry: Registry
) -> None:
    on = site()
    rankers(on, 1.0, 1.0)
    on.visit(range(100))
    assert on.look().do == "hold"  # type: ignore[union-attr]
    on.give("1.1", Broken)
    on.visit(range(100, 160))
    for answer in on.lists[-60:]:
        assert (answer["version"], answer["arm"], answer["stands_in"]) == ("binary:1.0", "interleave", True)
        assert {(item["team"], item["version"]) for item in answer["ranking"]} == {("neither", "binary:1.0")}
        scores = [item["score"] for item in answer["ranking"]]
        assert scores == sorted(scores, reverse=True)
    taken_back = on.look()
    assert taken_back is not None
    assert (taken_back.do, "error rate" in taken_back.reason) == ("roll_back", True)
    assert registry.champion().version == "1.0"  # type: ignore[union-attr]
    assert on.client.get("/versions").json()["failed"] == 0


def test_predictions_are_the_champions_and_no_yardstick(site: Callable[..., Site], registry: Registry) -> None:
    on = site()
    row = {"features": {"distance": 900, "carrier": "UA"}}
    for user in range(20):
        answer = on.client.post("/predict", json={**row, "unit_id": f"u{user}"}).json()
        assert (answer["version"], answer["arm"]) == ("binary:1.0", "champion")
    items = [{"item_id": c, "features": {"distance": d}} for c, d in (("a", 200), ("b", 900), ("c", 1500))]
    ranked = on.client.post("/rank", json={"items": items, "features": {"carrier": "UA"}}).json()
    assert {item["item_id"] for item in ranked["ranking"]} == {"a", "b", "c"}
    on.client.server.recorder.publish()
    seen = read_evidence(registry.store.storage, on.trial.id)
    assert [(seen.arm(arm).requests, seen.arm(arm).rows) for arm in ("champion", "challenger")] == [(1, 3), (1, 3)]
    bad = [{"item_id": "a", "features": {"distance": "far"}}]
    refused = on.client.post("/rank", json={"items": bad})
    assert (refused.status_code, "distance must be a number" in refused.json()["detail"]) == (422, True)
    assert on.client.get("/versions").json()["failed"] == 0


def test_what_has_no_one_score_is_refused(serve_store: Serve, store: Store) -> None:
    registry = Registry(store, "multiclass")
    registry.promote("1.0", reason="first")
    client = serve_store(store, "multiclass")
    asked = {"version": "1.1", "kind": "interleave", "reason": "try"}
    answer = client.post("/rollouts", json=asked)
    assert (answer.status_code, "no one score" in answer.json()["detail"]) == (422, True)
    serving = LocalServing(port=0)
    with pytest.raises(ConfigError, match="use rollout=canary or rollout=ab"):
        serving.roll_out(registry, "1.1", "1.0", KIND, "better")
    with pytest.raises(ConfigError, match="no one score"):
        serving.check(KIND, "multiclass")
    assert Deployments(registry).epoch() == 1


def test_lists_must_be_logged_alike(serve_store: Serve, store: Store, registry: Registry) -> None:
    registry.promote("1.0", reason="first")
    uneven = LogSettings(rate=0.1, rates={"arm is challenger": 1.0})
    client = serve_store(store, log=uneven)
    answer = client.post("/rollouts", json={"version": "1.1", "kind": "interleave", "reason": "try"})
    assert (answer.status_code, "rollout=interleave learns" in answer.json()["detail"]) == (422, True)
    for told in (uneven, LogSettings(keep="profiles")):
        with pytest.raises(ConfigError, match="rollout=interleave learns from logged answers"):
            LocalServing(port=0, log=told).check(KIND)
        with pytest.raises(ConfigError, match=r"serve\.policy=weights learns from logged answers"):
            LocalServing(port=0, log=told, policy=Weights(start={"a": 0.0})).check()


def test_a_route_starts_it(serve_store: Serve, store: Store) -> None:
    registry = Registry(store, "regression")
    registry.promote("1.0", reason="first")
    client = serve_store(store, "regression")
    settings = {"session_s": 60, "guardrails": {"max_score_shift": None}}
    asked = {"version": "1.1", "kind": "interleave", "reason": "try", "settings": settings}
    assert client.post("/rollouts", json=asked).json()["running"]["kind"] == "interleave"
    end, controller = time.monotonic() + 10, Controller(registry, replicas=1)
    items = [{"item_id": str(d), "features": {"distance": d, "carrier": "UA"}} for d in range(100, 2000, 100)]
    while (answer := client.post("/rank", json={"items": items}).json())["arm"] != "interleave":
        assert time.monotonic() < end
        controller.look()
    assert {item["version"] for item in answer["ranking"]} <= {"regression:1.0", "regression:1.1"}


def trial(age_s: float) -> Trial:
    at = datetime.now(UTC) - timedelta(seconds=age_s)
    return Trial(id="t", kind="interleave", settings={}, version="1.1", champion="1.0", started_at=at, since=at, step=0)


def test_what_sessions_decide() -> None:
    def says(kind: Interleave, age_s: float = 10.0, **wins: int) -> str:
        evidence = Evidence(outcomes=Preference(wins=Wins(**wins)))
        return decide(kind, trial(age_s), evidence, datetime.now(UTC)).do

    kind = Interleave(min_samples=100, max_s=60.0)
    assert says(kind, challenger=80, champion=20) == "promote"
    assert says(Interleave(min_samples=100, then="stop"), challenger=80, champion=20) == "stop"
    assert says(kind, challenger=20, champion=80) == "roll_back"
    assert says(kind, challenger=60, champion=10) == "hold", "too few"
    assert says(kind, challenger=65, champion=35) == "hold"
    assert says(Interleave(min_samples=100, level=0.5), challenger=65, champion=35) == "promote"
    assert says(kind, 61.0, challenger=56, champion=44) == "stop"
    assert decide(kind, trial(1.0), Evidence(), datetime.now(UTC)).do == "hold"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"level": 1.0}, r"rollout\.level"),
        ({"session_s": 0.0}, r"rollout\.session_s"),
        ({"click_type": "clicks"}, r"rollout\.click_type must be system, explicit"),
        ({"then": "wait"}, r"rollout\.then must be promote or stop"),
        ({"max_s": 0.0}, r"rollout\.max_s"),
        ({"min_samples": 0}, r"rollout\.min_samples"),
    ],
)
def test_settings_say_what_is_wrong(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Interleave(**settings)
