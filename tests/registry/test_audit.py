"""The audit log has everything, and what was done to it shows."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from cltrain.registry import Registry
from cltrain.registry import audit as module

Register = Callable[..., object]


def live(registry: Registry, register: Register) -> Registry:
    """A little of everything happens."""
    register(registry)
    register(registry, "1.0")
    registry.promote("1.0", by="ann", reason="first")
    registry.challenge("1.1", by="loop")
    registry.tag("1.1", "team", "maps", by="ann")
    registry.promote("1.1", by="ann", reason="better")
    registry.rollback(by="guard", reason="worse", automatic=True)
    registry.log("gc", by="ann", freed=3, share=float("nan"), kept=("1.0",))
    return registry


@pytest.fixture
def busy(registry: Registry, register: Register) -> Registry:
    return live(registry, register)


def change(registry: Registry, statement: str) -> None:
    with registry.store.writing() as session:
        session.execute(text(statement))


def test_every_act_is_one_entry(busy: Registry) -> None:
    found = [(e["id"], e["action"], e["subject"], e["by"]) for e in busy.audit_log()]
    assert found == [
        (1, "register", "1.0", "loop"),
        (2, "register", "1.1", "loop"),
        (3, "promote", "1.0", "ann"),
        (4, "challenge", "1.1", "loop"),
        (5, "tag", "1.1", "ann"),
        (6, "promote", "1.1", "ann"),
        (7, "rollback", "1.0", "guard"),
        (8, "gc", None, "ann"),
    ]
    assert busy.audit_log(last=1)[0]["details"] == {"freed": 3, "share": "nan", "kept": ["1.0"]}
    check = busy.verify_audit()
    assert (check.intact, check.entries, check.head) == (True, 8, busy.audit_log()[-1]["digest"])
    before = busy.audit_log()[3]["digest"]
    assert busy.verify_audit(head=before).intact, "what was noted elsewhere is still in the chain"


@pytest.mark.parametrize(
    ("statement", "broken", "why"),
    [
        ("UPDATE audit SET by = 'nobody' WHERE id = 5", 5, "it was altered"),
        ("UPDATE audit SET at = '2020-01-01 00:00:00' WHERE id = 5", 5, "it was altered"),
        ("UPDATE audit SET details = '{}' WHERE id = 5", 5, "it was altered"),
        ("DELETE FROM audit WHERE id = 5", 5, "it is missing: the next one there is 6"),
        ("DELETE FROM audit WHERE id = 1", 1, "it is missing: the next one there is 2"),
        ("UPDATE audit SET previous = 'x' WHERE id = 5", 5, "it does not follow"),
        ("DELETE FROM audit WHERE id >= 7", 7, "it is missing: the history of the aliases names entry 7"),
        ("UPDATE alias_moves SET new = '1.1' WHERE entry = 3", 3, "history of the aliases differs"),
        ("DELETE FROM alias_moves WHERE entry = 6", 6, "history of the aliases differs"),
        ("UPDATE versions SET weights_digest = 'x' WHERE version = '1.1'", 2, r"ranker:1\.1 is no longer the version"),
    ],
)
def test_what_was_altered_or_taken_out_is_found(
    local: Registry, register: Register, statement: str, broken: int, why: str
) -> None:
    live(local, register)
    change(local, statement)
    check = local.verify_audit()
    assert check.broken == broken
    assert re.search(why, check.why or "")


def test_a_chain_that_was_cut_or_made_anew_is_found_by_a_head_that_was_kept(busy: Registry) -> None:
    head = busy.verify_audit().head
    change(busy, "DELETE FROM audit WHERE id = 8")
    assert busy.verify_audit().intact, "nothing else tells of it"
    assert busy.verify_audit(head).why == f"the entry {head} is no longer there"


def test_versions_of_all_models_are_in_one_chain(local: Registry, register: Register) -> None:
    other = Registry(local.store, "embedding")
    register(local)
    register(other)
    assert [e["id"] for e in other.audit_log()] == [2]
    assert other.verify_audit().entries == 2
    assert Registry(local.store, "none").verify_audit() == local.verify_audit()


def test_time_does_not_go_back_though_a_clock_does(
    local: Registry, register: Register, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(local)
    register(local)
    local.promote("1.0", reason="first")

    class Slow(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime.now(UTC) - timedelta(hours=1)

    monkeypatch.setattr(module, "datetime", Slow)
    local.promote("2.0", reason="by a machine whose clock is slow")
    instants = [move["at"] for move in local.moves()]
    assert instants == sorted(instants)
    assert local.champion_at(datetime.now(UTC)) == "2.0"


def test_an_empty_log_is_whole(local: Registry) -> None:
    assert local.verify_audit() == module.AuditCheck(entries=0, head=module.GENESIS)
