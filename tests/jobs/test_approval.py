"""People have the last word: the loop stops before promotion, and goes on from there when it is run again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from cltrain.approval import Approval
from cltrain.assemble import open_store, run_by_hand, run_loop
from cltrain.clock import WallClock
from cltrain.errors import ConfigError
from cltrain.registry import Registry

Small = Callable[..., dict[str, Any]]


def registry(settings: dict[str, Any]) -> Registry:
    return Registry(open_store(settings), "default")


def champion(settings: dict[str, Any]) -> str | None:
    found = registry(settings).champion()
    return found.version if found else None


def test_nothing_serves_before_a_person_says_so(small: Small, caplog: pytest.LogCaptureFixture) -> None:
    settings = small("approval=human", "max_rounds=3")
    assert run_loop(settings)["awaiting"] == "1.0"
    assert "cltrain approve 1.0" in caplog.text
    assert champion(settings) is None
    assert run_loop(settings)["awaiting"] == "1.0", "asking again changes nothing"
    assert len(registry(settings).approvals()) == 1

    registry(settings).approve("1.0", by="alice", comment="looks good")
    second = run_loop(settings)
    assert (second["versions"], second["awaiting"], champion(settings)) == (["1.0", "1.1"], "1.1", "1.0")

    registry(settings).reject("1.1", by="bob", comment="not on a Friday")
    third = run_loop(settings)
    assert (third["awaiting"], champion(settings)) == ("1.2", "1.0")
    assert registry(settings).version("1.2").parent == "1.0", "the next update continues from what serves"

    registry(settings).approve("1.2", by="alice")
    done = run_loop(settings)
    assert "awaiting" not in done
    assert (done["rounds"], done["champion"]) == (2, "1.2")
    assert {"action": "reject", "subject": "1.1", "by": "bob"}.items() <= next(
        entry for entry in registry(settings).audit_log() if entry["action"] == "reject"
    ).items()


def test_both_named_roles_must_sign(small: Small) -> None:
    settings = small("approval=human", "approval.roles=[science,risk]", "max_rounds=1")
    run_loop(settings)
    registry(settings).approve("1.0", by="alice", role="science")
    assert run_loop(settings)["awaiting"] == "1.0"
    registry(settings).approve("1.0", by="bob", role="risk")
    assert run_loop(settings)["champion"] == "1.0"


@pytest.mark.parametrize(("policy", "serves"), [("reject", None), ("promote", "1.0")])
def test_no_answer_is_taken_as_the_policy_says(small: Small, policy: str, serves: str | None) -> None:
    settings = small("approval=human", "approval.timeout=1ms", f"approval.on_timeout={policy}", "max_rounds=1")
    assert run_loop(settings)["champion"] == serves


def test_an_update_by_hand_waits_for_people_too(small: Small) -> None:
    run_loop(small("max_rounds=2"))
    asked = small("approval=human", job="update")
    assert run_by_hand(asked, "stateful")["awaiting"] == "1.2"
    registry(asked).approve("1.2", by="alice")
    assert run_by_hand(asked, "stateful")["champion"] == "1.2"


def test_a_live_loop_waits_for_the_answer(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = small("max_rounds=1")
    run_loop(settings)
    found = registry(settings)
    monkeypatch.setattr("cltrain.approval.time.sleep", lambda _: found.approve("1.0", by="alice"))
    answer = Approval(by="human").answer(found, "1.0", WallClock())
    assert answer.accepted
    assert "alice" in answer.reason


@pytest.mark.parametrize("wrong", [{"by": "robot"}, {"on_timeout": "wait"}, {"poll_s": 0.0}, {"roles": ("a", "a")}])
def test_wrong_settings_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"approval.{next(iter(wrong))}"):
        Approval(**wrong)


def test_no_answer_does_not_stand_for_a_role_that_must_sign() -> None:
    with pytest.raises(ConfigError, match="pass over"):
        Approval(by="human", roles=("risk",), timeout="1h", on_timeout="promote")
