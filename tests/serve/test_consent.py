"""A version that fails in traffic: what is done by itself, what waits for people, and what they are only told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cltrain.errors import ConfigError
from cltrain.registry import Registry, Store
from cltrain.registry.deployment import Deployments
from serve.local import LocalServing, tell_of
from serve.rollout.controller import Controller, begin
from serve.rollout.machine import Action
from serve.rollout.releases import Canary
from serve.settings import admin_token_digest
from tests.versions import registered


def trial_of(tmp_path: Path, **approval: Any) -> Registry:
    """A canary of 1.1 runs, which the strategy with `approval` made."""
    registry = Registry(Store(root=str(tmp_path)), "ranker")
    for index, parent in enumerate((None, "1.0")):
        registered(registry, index, parent, settings={"approval": approval}, weights_digest=str(index))
    registry.promote("1.0", reason="first")
    begin(Deployments(registry), Canary(), "1.1", by="loop", reason="better")
    return registry


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Registry], list[Any]]:
    """Looks twice, and guardrails have found errors; the actions, and how the roll-out ended as `on_end` was told."""
    monkeypatch.setattr("serve.rollout.controller.decide", lambda *_: Action("roll_back", "errors: 9 % of requests"))

    def look(registry: Registry) -> list[Any]:
        told: list[Any] = []
        controller = Controller(registry, replicas=1, on_end=lambda trial: told.append(trial.status))
        done = [controller.look(), controller.look()]
        return [action.do if action else None for action in done] + told

    return look


def test_by_default_it_is_withdrawn_at_once(tmp_path: Path, failing: Callable[[Registry], list[Any]]) -> None:
    registry = trial_of(tmp_path)
    assert failing(registry) == ["roll_back", None, "rolled_back"]
    assert registry.version("1.1").stage == "withdrawn"
    assert Deployments(registry).refused("1.1") == "errors: 9 % of requests"


@pytest.mark.parametrize(("answer", "stage"), [("permit", "withdrawn"), ("refuse", "validated")])
def test_it_has_no_traffic_and_people_say_whether_it_is_withdrawn(
    tmp_path: Path, failing: Callable[[Registry], list[Any]], answer: str, stage: str
) -> None:
    registry = trial_of(tmp_path, roll_back="approve")
    assert failing(registry) == ["stop", None, "stopped"]
    deployments = Deployments(registry)
    assert deployments.current().shares == {"champion": 1.0}
    assert deployments.refused("1.1") is None
    assert registry.version("1.1").stage == "validated"
    (asked,) = registry.permissions("awaiting")
    assert (asked.version, asked.why) == ("1.1", "errors: 9 % of requests")
    assert f"cltrain approve {asked.subject}" in deployments.history()[-1].reason
    getattr(registry, answer)(asked.subject, "alice", "looked at the requests")
    assert registry.version("1.1").stage == stage
    assert (deployments.refused("1.1") is None) == (answer == "refuse")
    assert (registry.audit_log()[-1]["by"], registry.audit_log()[-1]["subject"]) == ("alice", asked.subject)


def test_no_answer_withdraws_it_where_that_is_the_policy(
    tmp_path: Path, failing: Callable[[Registry], list[Any]]
) -> None:
    registry = trial_of(tmp_path, roll_back="approve", timeout="1ms", on_timeout="approve")
    failing(registry)
    registry.settle()
    assert registry.version("1.1").stage == "withdrawn"


def test_people_are_told_once_and_nothing_else_is_done(
    tmp_path: Path, failing: Callable[[Registry], list[Any]], caplog: pytest.LogCaptureFixture
) -> None:
    registry = trial_of(tmp_path, roll_back="notify")
    before = Deployments(registry).current()
    assert failing(registry) == ["hold", "hold"]
    assert failing(registry) == ["hold", "hold"], "as after a restart"
    assert Deployments(registry).current() == before
    told = [entry for entry in registry.audit_log() if entry["action"] == "notify"]
    assert [entry["subject"] for entry in told] == [f"rollback/{before.running.id}"]
    assert caplog.text.count("ranker:1.1 fails in traffic (errors: 9 % of requests)") == 1


def test_everybody_is_told_of_a_rollback_even_if_one_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    registry = trial_of(tmp_path)
    monkeypatch.setattr("serve.rollout.controller.decide", lambda *_: Action("roll_back", "errors: 9 % of requests"))
    told: list[tuple[str, str]] = []

    def broken(title: str, text: str) -> None:
        raise ConnectionError("nobody is there")

    alerts = [broken, lambda title, text: told.append((title, text))]
    Controller(registry, replicas=1, on_end=lambda trial: tell_of(trial, "ranker", alerts)).look()
    text = "canary: errors: 9 % of requests. ranker:1.0 answers everything."
    assert told == [("ranker:1.1 was rolled back", text)]
    assert "nobody is there" in caplog.text


def test_a_function_to_tell_must_be_one() -> None:
    assert LocalServing(alert="builtins.print").alert == "builtins.print"
    for wrong in ("nowhere.at_all", "sys.maxsize"):
        with pytest.raises(ConfigError, match=r"serve\.alert"):
            LocalServing(alert=wrong)


def test_the_token_of_admins_is_in_the_variable_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKER_TOKEN", "a token of the tests")
    told = LocalServing(admin_token_env="RANKER_TOKEN").settings(Store(root=str(tmp_path)), "ranker")
    assert told["admin_token_sha256"] == admin_token_digest("RANKER_TOKEN") is not None
    assert told["admin_token_env"] == "RANKER_TOKEN", "which a refusal names"
    assert LocalServing().settings(Store(root=str(tmp_path)), "ranker")["admin_token_sha256"] is None
