"""People have the last word: the loop stops before promotion, and goes on from there when it is run again."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cltrain.approval import Approval
from cltrain.assemble import open_store, run_by_hand, run_loop
from cltrain.clock import WallClock
from cltrain.errors import ConfigError
from cltrain.records import Round
from cltrain.registry import Registry, RoundLog

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


@pytest.mark.parametrize(("policy", "serves"), [("reject", None), ("approve", "1.0")])
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
    told: list[str] = []
    answer = Approval(promote="approve").may_promote(found, "1.0", WallClock(), lambda title, _: told.append(title))
    assert answer.accepted
    assert "alice" in answer.reason
    assert told == ["default:1.0 awaits approval"]


def updates(settings: dict[str, Any]) -> list[Round]:
    return RoundLog(open_store(settings), "default").finished()


def test_an_update_that_the_trigger_asks_for_waits_for_people(
    small: Small, caplog: pytest.LogCaptureFixture, trackers: list[tuple[str, str]]
) -> None:
    settings = small("approval.retrain=approve", "max_rounds=3", "window.bootstrap=2")
    first = run_loop(settings)
    assert (first["awaiting"], first["versions"], champion(settings)) == ("retrain/1", ["1.0"], "1.0")
    assert "cltrain approve retrain/1" in caplog.text
    assert [title for title, _ in trackers] == ["an update of default awaits approval"], "not of the first version"
    assert run_loop(settings)["awaiting"] == "retrain/1"
    assert len(trackers) == 1, "people are asked once"

    registry(settings).permit("retrain/1", by="alice", comment="the data are good")
    second = run_loop(settings)
    assert (second["awaiting"], second["versions"]) == ("retrain/2", ["1.0", "1.1"])
    assert "approved by alice: the data are good" in updates(settings)[1].decision.reason

    registry(settings).refuse("retrain/2", by="bob", comment="holidays")
    third = run_loop(settings)
    assert third["versions"] == ["1.0", "1.1"]
    assert len(updates(settings)) == 3
    last = updates(settings)[2]
    assert (last.status, last.decision.fire) == ("waited", False)
    assert last.decision.reason.endswith("rejected by bob: holidays")
    said = [(e["action"], e["subject"], e["by"]) for e in registry(settings).audit_log()]
    assert ("approve", "retrain/1", "alice") in said
    assert ("reject", "retrain/2", "bob") in said

    rows = run_loop(small("max_rounds=4", "window.bootstrap=2"))["versions"]
    assert rows == ["1.0", "1.1", "1.2"], "its rows were offered again"


@pytest.mark.parametrize(("policy", "versions"), [("reject", 1), ("approve", 2)])
def test_an_update_that_nobody_answered_for(small: Small, policy: str, versions: int) -> None:
    settings = small(
        "approval.retrain=approve", "approval.timeout=1ms", f"approval.on_timeout={policy}", "max_rounds=2"
    )
    assert len(run_loop(settings)["versions"]) == versions


def test_a_withdrawal_that_nobody_answered_for_is_settled_by_the_next_round(small: Small) -> None:
    settings = small("approval.roll_back=approve", "max_rounds=2")
    run_loop(settings)
    found = registry(settings)
    past = datetime.now(UTC) - timedelta(seconds=1)
    found.ask_for("rollback/canary-1.0-5", why="slow", version="1.0", expires_at=past, on_timeout="approve")
    run_loop(small("approval.roll_back=approve", "max_rounds=3"))
    assert found.version("1.0").stage == "withdrawn"
    assert found.permission("rollback/canary-1.0-5").by == "timeout"


def test_people_are_told_that_an_update_is_due_and_make_it_themselves(
    small: Small, trackers: list[tuple[str, str]]
) -> None:
    settings = small("approval.retrain=notify", "max_rounds=2")
    assert run_loop(settings)["versions"] == ["1.0"]
    assert [(title, "python -m jobs.update" in text) for title, text in trackers] == [("default: retrain/1", True)]
    assert "left to people, who were told" in updates(settings)[1].decision.reason
    assert run_by_hand(small("approval.retrain=notify", job="update"), "stateful")["champion"] == "1.1"


def test_people_are_told_of_a_version_and_promote_it_themselves(small: Small, trackers: list[tuple[str, str]]) -> None:
    settings = small("approval.promote=notify", "max_rounds=1")
    assert run_loop(settings)["champion"] is None
    assert trackers == [("default: 1.0", "default:1.0 could be promoted: cltrain promote 1.0")]
    registry(settings).promote("1.0", by="alice", reason="looks good")
    assert champion(settings) == "1.0"


@pytest.fixture
def trackers(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What trackers are told that people should know."""
    told: list[tuple[str, str]] = []
    monkeypatch.setattr("cltrain.tracking.jsonl.Jsonl.alert", lambda _, title, text: told.append((title, text)))
    return told


@pytest.mark.parametrize(
    "wrong",
    [
        {"promote": "robot"},
        {"retrain": "human"},
        {"roll_back": True},
        {"on_timeout": "promote"},
        {"poll_s": 0.0},
        {"roles": ("a", "a")},
        {"roles": ("a",)},
    ],
)
def test_wrong_settings_are_named(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"approval.{next(iter(wrong))}"):
        Approval(**wrong)


def test_no_answer_does_not_stand_for_a_role_that_must_sign() -> None:
    with pytest.raises(ConfigError, match="pass over"):
        Approval(promote="approve", roles=("risk",), timeout="1h", on_timeout="approve")
