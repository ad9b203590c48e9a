"""What people allow beside versions: it is on record, and nothing else is the record."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from cltrain.errors import ConfigError, ConflictError, StoreError
from cltrain.registry import Registry

Register = Callable[..., object]
LATER = datetime.now(UTC) + timedelta(days=1)


def test_an_update_waits_for_a_person_and_the_audit_log_says_who(registry: Registry, register: Register) -> None:
    register(registry)
    assert registry.permission("retrain/7") is None
    asked = registry.ask_for("retrain/7", why="7 days are over", expires_at=LATER)
    assert registry.ask_for("retrain/7", why="again", expires_at=None) == asked, "asking again changes nothing"
    assert (asked.state, asked.why, asked.version, asked.expires_at) == ("awaiting", "7 days are over", None, LATER)
    assert registry.permissions("awaiting") == [asked]
    said = registry.permit("retrain/7", "alice", "looked at the data")
    assert registry.permit("retrain/7", "bob", "me too") == said == registry.permission("retrain/7")
    assert (said.state, said.by, said.comment) == ("approved", "alice", "looked at the data")
    with pytest.raises(ConflictError, match=r"retrain/7 is approved, by alice: looked at the data"):
        registry.refuse("retrain/7", "bob")
    entry = registry.audit_log()[-1]
    assert (entry["action"], entry["subject"], entry["by"]) == ("approve", "retrain/7", "alice")
    assert entry["details"] == {"comment": "looked at the data", "version": None}
    assert entry["at"] == said.answered_at.isoformat()
    assert registry.verify_audit().intact


def test_a_no_stays_a_no(local: Registry) -> None:
    local.ask_for("retrain/7", why="drift")
    said = local.refuse("retrain/7", "bob", "holidays")
    assert local.refuse("retrain/7", "bob") == said
    assert (said.state, said.by, said.comment) == ("rejected", "bob", "holidays")
    with pytest.raises(ConflictError, match="retrain/7 is rejected, by bob: holidays"):
        local.permit("retrain/7", "alice")


@pytest.mark.parametrize("subject", ["rollback/canary-1.1-5", "rollback/ab-1.1-9"])
def test_a_version_is_withdrawn_with_the_yes_and_not_before(
    registry: Registry, register: Register, subject: str
) -> None:
    register(registry)
    register(registry, "1.0")
    registry.promote("1.0", reason="first")
    registry.ask_for(subject, why="errors: 9 % of requests", version="1.1", by="roll-out")
    assert registry.version("1.1").stage == "validated"
    registry.permit(subject, "alice", "seen it")
    assert registry.version("1.1").stage == "withdrawn"
    assert registry.version("1.1").tags == {"rolled_back": "errors: 9 % of requests"}


def test_a_version_that_people_keep_is_not_withdrawn(local: Registry, register: Register) -> None:
    register(local)
    register(local, "1.0")
    local.ask_for("rollback/canary-1.1-5", why="slow", version="1.1")
    local.refuse("rollback/canary-1.1-5", "bob", "the network was slow")
    assert (local.version("1.1").stage, local.version("1.1").tags) == ("validated", {})


def test_a_version_that_is_champion_by_now_is_not_withdrawn(local: Registry, register: Register) -> None:
    register(local)
    later = datetime.now(UTC) + timedelta(hours=1)
    local.ask_for("rollback/canary-1.0-5", why="slow", version="1.0", expires_at=later, on_timeout="approve")
    local.promote("1.0", reason="by hand")
    with pytest.raises(ConflictError, match=r"1\.0 is champion by now: to undo that, `cltrain rollback`"):
        local.permit("rollback/canary-1.0-5", "alice")
    assert [p.state for p in local.settle(LATER)] == ["expired"], "nor by time"
    assert local.version("1.0").stage != "withdrawn"


def test_no_answer_is_taken_as_was_said_when_it_was_asked_for(local: Registry, register: Register) -> None:
    register(local)
    soon = datetime.now(UTC) + timedelta(hours=1)
    local.ask_for("retrain/1", why="drift", expires_at=soon)
    local.ask_for("rollback/canary-1.0-5", why="slow", version="1.0", expires_at=soon, on_timeout="approve")
    local.ask_for("retrain/2", why="drift")
    assert local.settle() == []
    assert [(p.subject, p.state, p.by) for p in local.settle(LATER)] == [
        ("retrain/1", "expired", None),
        ("rollback/canary-1.0-5", "approved", "timeout"),
    ]
    assert local.settle(LATER) == []
    assert local.version("1.0").stage == "withdrawn"
    assert [p.subject for p in local.permissions("awaiting")] == ["retrain/2"]
    with pytest.raises(ConflictError, match=r"retrain/1 is expired, at"):
        local.permit("retrain/1", "alice")


def test_an_answer_that_comes_too_late_is_refused_before_anybody_looked(local: Registry) -> None:
    local.ask_for("retrain/1", why="drift", expires_at=datetime.now(UTC) - timedelta(seconds=1))
    with pytest.raises(ConflictError, match="is expired"):
        local.permit("retrain/1", "alice")


def test_people_are_told_once(local: Registry) -> None:
    assert local.tell("retrain/3", "an update is due")
    assert not local.tell("retrain/3", "an update is due")
    (entry,) = local.audit_log()
    assert (entry["action"], entry["details"]) == ("notify", {"text": "an update is due"})
    assert local.permissions() == []


def test_what_nobody_asked_for_names_what_waits(local: Registry) -> None:
    local.ask_for("retrain/3", why="drift")
    with pytest.raises(StoreError, match="nobody asked for retrain/4; what awaits an answer: retrain/3"):
        local.permit("retrain/4")
    for subject, version in (("1.0", None), ("retrain/1", "1.0"), ("rollback/x", None)):
        with pytest.raises(ConfigError, match="one asks for"):
            local.ask_for(subject, why="", version=version)
