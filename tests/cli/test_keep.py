"""The audit log, by command."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from click.testing import Result
from sqlalchemy import text

from cltrain.registry import Registry


def test_the_audit_log_is_read_and_verified(
    registry: Registry, add: Callable[..., str], call: Callable[..., Result], call_json: Callable[..., Any]
) -> None:
    add()
    registry.promote("1.0", by="ann", reason="first")
    assert [e["action"] for e in call_json("audit")["entries"]] == ["register", "promote"]
    assert "ann  promote  ranker:1.0" in call("audit", "--last", "1", "--model", "ranker").output
    head = call_json("audit", "--verify")["head"]
    assert call("audit", "--verify").output == f"intact: 2 entries, head {head}\n"
    registry.note("1.0", "later")
    assert call("audit", "--head", head).exit_code == 0
    assert "is no longer there" in call("audit", "--head", "f" * 64).output
    with registry.store.writing() as session:
        session.execute(text("UPDATE audit SET \"by\" = 'bob' WHERE id = 2"))
    broken = call("audit", "--verify")
    assert (broken.exit_code, broken.output.split(";")[0]) == (1, "entry 2: it was altered")
