"""Who serves, who may, and what is said of a version."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from click.testing import Result

from cltrain.registry import Registry

Call = Callable[..., Result]
CallJson = Callable[..., Any]
Add = Callable[..., str]


def test_the_last_signature_makes_a_version_champion(
    registry: Registry, add: Add, call: Call, call_json: CallJson
) -> None:
    registry.promote(add(), reason="first")
    add("1.0")
    registry.ask("1.1", roles=("risk", "product"))
    said = call_json("approve", "1.1", "--by", "ann", "--role", "risk")
    assert (said["state"], said["champion"]) == ("awaiting", "1.0")
    answer = call("approve", "1.1", "--by", "bob", "--role", "product", "--comment", "fine")
    assert answer.exit_code == 0
    assert "ranker:1.1 is approved" in answer.output
    assert "champion: 1.0 → 1.1 (epoch 2)" in answer.output
    assert [(m["by"], m["reason"]) for m in registry.moves() if m["new"] == "1.1"] == [("bob", "approved: fine")]
    registry.rollback(reason="slow")
    assert call_json("approve", "1.1", "--by", "bob", "--role", "product")["champion"] == "1.0", "it has served"


def test_approving_a_version_that_was_weighed_against_another_champion_moves_nothing(
    registry: Registry, add: Add, call: Call
) -> None:
    registry.promote(add(), reason="first")
    add("1.0")
    add("1.0")
    registry.promote("1.1", reason="better")
    answer = call("approve", "1.2", "--by", "ann")
    assert answer.exit_code == 2
    assert "1.2 is approved, but the champion of ranker is 1.1, not 1.0: somebody else moved it" in answer.stderr
    assert "`cltrain promote 1.2` all the same" in answer.stderr
    assert registry.approval("1.2").state == "approved"
    add()
    answer = call("approve", "2.0", "--by", "ann")
    assert "is 1.1, and it was weighed against none" in answer.stderr
    assert registry.champion().version == "1.1"


def test_a_version_that_is_rolled_out_in_steps_is_left_to_the_loop(registry: Registry, add: Add, call: Call) -> None:
    registry.promote(add(), reason="first")
    add("1.0", rollout={"_target_": "serve.rollout.Canary"})
    add("1.0", rollout={"_target_": "serve.rollout.Swap"})
    answer = call("approve", "1.1", "--by", "ann")
    assert "the running loop rolls it out (Canary)" in answer.output
    assert registry.champion().version == "1.0"
    assert "champion: 1.0 → 1.2" in call("approve", "1.2", "--by", "ann").output


def test_tags_and_notes(registry: Registry, add: Add, call: Call, call_json: CallJson) -> None:
    add()
    assert call_json("tag", "1.0", "owner", "ann")["tags"] == {"owner": "ann"}
    assert "owner=ann, pinned" in call("tag", "1.0", "pinned").output
    assert call_json("tag", "1.0", "owner", "--remove")["tags"] == {"pinned": ""}
    assert "no tags" in call("tag", "1.0", "pinned", "--remove").output
    assert "bob: looks [odd]" in call("note", "1.0", "looks [odd]", "--by", "bob").output
    assert [n["text"] for n in call_json("note", "1.0", "again")["notes"]] == ["looks [odd]", "again"]
    assert call("note", "1.0", " ").exit_code == 2


def test_people_say_yes_or_no_to_what_is_no_version(
    registry: Registry, add: Add, call: Call, call_json: CallJson
) -> None:
    registry.promote(add(), reason="first")
    add("1.0")
    add("1.0")
    assert "nothing awaits an answer" in call("waiting").output
    registry.ask("1.2")
    registry.ask_for("retrain/7", why="a window ended")
    registry.ask_for("rollback/canary-1.1-5", why="errors", version="1.1")
    assert [(w["subject"], w["why"]) for w in call_json("waiting")["waiting"]] == [
        ("1.2", "1 more"),
        ("retrain/7", "a window ended"),
        ("rollback/canary-1.1-5", "errors"),
    ]
    said = call_json("approve", "retrain/7", "--by", "ann", "--comment", "fine")
    assert (said["state"], said["by"], said["comment"]) == ("approved", "ann", "fine")
    answer = call("approve", "rollback/canary-1.1-5", "--by", "ann")
    assert "rollback/canary-1.1-5 is approved: ranker:1.1 is withdrawn" in answer.output
    assert registry.version("1.1").stage == "withdrawn"
    registry.ask_for("retrain/8", why="a window ended")
    assert "retrain/8 is rejected" in call("reject", "retrain/8", "--by", "bob").output
    assert "1.2: 1 more" in call("waiting").output
    assert "nobody asked for retrain/9" in call("approve", "retrain/9").stderr
    assert "leave out --role" in call("approve", "retrain/7", "--role", "risk").stderr
