"""People have the last word, and it is on record."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from cltrain.errors import ConfigError, ConflictError
from cltrain.registry import Registry

Register = Callable[..., object]
LATER = datetime.now(UTC) + timedelta(days=1)


def actions(registry: Registry) -> list[tuple[str, str]]:
    return [(entry["action"], entry["by"]) for entry in registry.audit_log() if entry["action"] != "register"]


def test_a_version_waits_until_a_person_approves_it(registry: Registry, register: Register) -> None:
    register(registry)
    register(registry, "1.0")
    registry.promote("1.0", by="loop", reason="first")
    asked = registry.ask("1.1", expires_at=LATER)
    assert registry.ask("1.1", expires_at=LATER) == asked, "asking again changes nothing"
    assert (asked.state, asked.needed, asked.missing, asked.expires_at) == ("awaiting", 1, "1 more", LATER)
    with pytest.raises(ConflictError, match=r"ranker:1\.1 is not approved but awaiting: see `cltrain approve`"):
        registry.promote("1.1", reason="better")
    assert registry.version("champion").version == "1.0"
    approved = registry.approve("1.1", "alice", "looked at the slices")
    assert registry.approve("1.1", "alice", "looked at the slices") == approved == registry.approval("1.1")
    assert (approved.state, approved.by, approved.comment) == ("approved", "alice", "looked at the slices")
    assert registry.promote("1.1", reason="better") == 2
    assert actions(registry) == [("promote", "loop"), ("ask", "loop"), ("approve", "alice"), actions(registry)[-1]]
    entry = next(e for e in registry.audit_log() if e["action"] == "approve")
    assert (entry["subject"], entry["details"]["comment"]) == ("1.1", "looked at the slices")


def test_one_no_is_enough_and_is_not_contradicted(local: Registry, register: Register) -> None:
    register(local)
    register(local)
    local.ask("1.0")
    rejected = local.reject("1.0", "bob", "unfair to night shifts")
    assert local.reject("1.0", "bob", "unfair to night shifts") == rejected
    with pytest.raises(ConflictError, match=r"1\.0 was rejected by bob: unfair to night shifts"):
        local.approve("1.0", "alice")
    with pytest.raises(ConflictError, match="is not approved but rejected"):
        local.promote("1.0", reason="anyway")
    assert local.promote("1.0", reason="anyway", by="carol", override=True) == 1
    assert local.audit_log()[-1]["details"]["override"] == "rejected"
    local.approve("2.0", "alice")
    with pytest.raises(ConflictError, match="was approved by alice"):
        local.reject("2.0", "bob")
    assert local.version("1.0").stage == "candidate"


def test_what_the_gate_rejected_is_approved_only_by_an_override_on_record(local: Registry, register: Register) -> None:
    register(local, accepted=False)
    assert local.version("1.0").stage == "candidate"
    with pytest.raises(ConflictError, match=r"the gate rejected ranker:1\.0 \(test\).*--override"):
        local.approve("1.0", "alice")
    assert local.approvals() == []
    approved = local.approve("1.0", "alice", "the slice is gone for good", override=True)
    assert approved == local.approve("1.0", "alice")
    assert local.audit_log()[-1]["details"] == {
        "comment": "the slice is gone for good",
        "role": None,
        "override": True,
    }
    assert (local.version("1.0").approval, local.version("1.0").stage) == ("approved", "validated")


def test_two_named_roles_are_signed_by_two_people(local: Registry, register: Register) -> None:
    register(local)
    local.ask("1.0", roles=("data", "risk"))
    with pytest.raises(ConfigError, match="to be signed by data and risk: pass --role"):
        local.approve("1.0", "alice")
    first = local.approve("1.0", "alice", role="data")
    assert (first.state, first.missing) == ("awaiting", "1 of risk")
    with pytest.raises(ConflictError, match=r"alice has signed ranker:1\.0 as data: another person must sign as risk"):
        local.approve("1.0", "alice", role="risk")
    with pytest.raises(ConflictError, match=r"ranker:1\.0 was signed by alice as data"):
        local.approve("1.0", "bob", role="data")
    second = local.approve("1.0", "bob", "fine", role="risk")
    assert (second.state, second.missing) == ("approved", "")
    assert [(s.by, s.role) for s in second.signed] == [("alice", "data"), ("bob", "risk")]


def test_an_early_yes_does_not_stand_for_the_roles_that_are_asked_later(local: Registry, register: Register) -> None:
    register(local)
    assert local.approve("1.0", "alice").state == "approved"
    assert local.ask("1.0", roles=("data",)).state == "awaiting"
    assert local.approve("1.0", "bob", role="data").state == "approved"
    with pytest.raises(ConfigError, match="needed must be from 1 to the number of distinct roles, 1, not 2"):
        local.ask("1.0", roles=("data",), needed=2)


def test_no_answer_in_time_is_an_answer(registry: Registry, register: Register) -> None:
    for _ in range(3):
        register(registry)
    registry.ask("1.0", expires_at=LATER)
    registry.ask("2.0", expires_at=LATER + timedelta(days=1))
    registry.ask("3.0")
    assert registry.expire() == []
    assert [a.version for a in registry.expire(LATER + timedelta(hours=1))] == ["1.0"]
    assert registry.expire(LATER + timedelta(hours=1)) == []
    assert {a.version: a.state for a in registry.approvals()} == {
        "1.0": "expired",
        "2.0": "awaiting",
        "3.0": "awaiting",
    }
    assert [a.version for a in registry.approvals("awaiting")] == ["2.0", "3.0"]
    with pytest.raises(ConflictError, match=r"ranker:1\.0 was to be approved before .*--override"):
        registry.approve("1.0", "alice")
    assert registry.ask("1.0", expires_at=LATER).state == "expired", "asking the same again changes nothing"
    assert registry.ask("1.0", expires_at=LATER + timedelta(days=7)).state == "awaiting"
    assert registry.approve("1.0", "alice").state == "approved"


def test_a_yes_that_comes_too_late_does_not_count_before_anybody_has_looked(
    local: Registry, register: Register
) -> None:
    register(local)
    local.ask("1.0", expires_at=datetime.now(UTC) - timedelta(seconds=1))
    with pytest.raises(ConflictError, match="was to be approved before"):
        local.approve("1.0", "alice")
    assert local.approve("1.0", "alice", override=True).state == "approved"
