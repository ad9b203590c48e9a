"""The command line, on a store that a loop has made."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cltrain.assemble import run_loop
from cltrain.cli import app


@pytest.fixture
def store(small: Callable[..., dict[str, Any]], tmp_path: Path) -> str:
    run_loop(small("max_rounds=4", "recalibrate.every=3", "gate.floor=10"))
    return str(tmp_path / "store")


def call(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def call_json(*words: str) -> dict[str, Any]:
    result = call(*words, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


def test_versions_and_lineage_as_json_are_complete_and_oldest_first(store: str) -> None:
    found = call_json("versions", "--store", store)["versions"]
    assert found == call_json("lineage", "--store", store)["versions"]
    assert [v["version"] for v in found][:3] == ["1.0", "1.1", "1.2"]
    assert found[0]["parent"] is None
    assert {
        "version",
        "parent",
        "kind",
        "snapshot_digest",
        "weights_digest",
        "created_at",
        "aliases",
        "verdict",
    } <= found[0].keys()
    by_name = {v["version"]: v for v in found}
    for v in found:
        root = v
        while root["parent"]:
            root = by_name[root["parent"]]
        assert root["kind"] == "stateless"
        assert Path(store, "snapshots", f"{v['snapshot_digest']}.json").exists()


def test_tables_and_trees_are_printed(store: str) -> None:
    assert "stateless" in call("versions", "--store", store).output
    assert "champion" in call("lineage", "--store", store).output
    assert "weighed on held-out rows" in call("show", "champion", "--store", store).output
    assert call("lineage", "1.1", "--store", store).output.startswith("1.1")


def test_promote_and_rollback_move_the_champion_and_stay_on_record(store: str) -> None:
    before = call_json("show", "champion", "--store", store)["version"]
    moved = call_json("promote", "1.0", "--store", store, "--by", "ann", "--reason", "complaints")
    assert (moved["champion"], moved["previous"]) == ("1.0", before)
    assert call_json("rollback", "--store", store)["champion"] == before
    moves = call_json("show", "1.0", "--store", store)["moves"]
    assert any(m["by"] == "ann" and m["reason"] == "complaints" for m in moves)
    assert moves[-1]["reason"].startswith("rollback")


def test_people_approve_and_reject_by_name_and_with_a_comment(store: str) -> None:
    said = call_json("approve", "1.1", "--by", "ann", "--comment", "looked at it", "--store", store)
    assert (said["version"], said["state"], said["by"]) == ("1.1", "approved", "ann")
    assert call("reject", "1.1", "--by", "bob", "--store", store).exit_code == 2, "it is approved already"
    assert "is rejected" in call("reject", "1.2", "--by", "bob", "--comment", "too slow", "--store", store).output
    answer = call("approve", "1.2", "--by", "ann", "--store", store)
    assert answer.exit_code == 2
    assert "was rejected by bob: too slow" in answer.stderr


def test_the_options_of_the_store_come_after_those_of_the_command(store: str) -> None:
    shown = call("gc", "--help").output
    assert [shown.index(option) for option in ("--keep-last", "--store", "--store-url", "--model", "--json")] == sorted(
        shown.index(option) for option in ("--keep-last", "--store", "--store-url", "--model", "--json")
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["show", "9.9"], "has no version '9.9'; it has: 1.0"),
        (["promote", "9.9"], "has no version '9.9'"),
        (["versions", "--model", "other"], "has no model 'other'; it holds default"),
    ],
)
def test_mistakes_are_answered_in_one_line(store: str, words: list[str], message: str) -> None:
    result = call(*words, "--store", store)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_folder_without_a_store_is_not_made_one(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "cltrain", "versions", "--store", str(tmp_path / "nothing")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "there is no store" in done.stderr
    assert not (tmp_path / "nothing").exists()
