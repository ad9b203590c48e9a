"""The report card and the difference of two versions at the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from click.testing import Result


def test_a_card_is_printed_and_written(
    call: Callable[..., Result], call_json: Callable[..., Any], add: Callable[..., str], tmp_path: Path
) -> None:
    add()
    page = tmp_path / "card.html"
    said = call("card", "1.0", "--html", str(page))
    assert said.exit_code == 0, said.output
    assert said.output.startswith("ranker:1.0  Accepted.")
    assert "<h1>ranker:1.0" in page.read_text()
    assert call_json("card", "1.0")["verdict"]["accepted"] is True


def test_a_difference_is_printed_and_written(
    call: Callable[..., Result], call_json: Callable[..., Any], add: Callable[..., str], tmp_path: Path
) -> None:
    add()
    add("1.0", rate=0.25)
    page = tmp_path / "diff.html"
    said = call("diff", "1.0", "1.1", "--html", str(page))
    assert said.exit_code == 0, said.output
    assert "1.1 continues 1.0 by 1 update." in said.output
    assert "0.25" in said.output
    assert "ranker: 1.0 → 1.1" in page.read_text()
    assert {"key": "rate", "first": None, "second": 0.25} in call_json("diff", "1.0", "1.1")["settings"]


def test_mistakes_are_one_line(call: Callable[..., Result], add: Callable[..., str], tmp_path: Path) -> None:
    add()
    for words in (["card", "3.0"], ["diff", "1.0", "3.0"]):
        assert "has no version '3.0'; it has: 1.0" in call(*words).stderr
    said = call("card", "1.0", "--html", str(tmp_path / "nowhere" / "card.html"))
    assert (said.exit_code, said.stderr.count("\n")) == (2, 1)
    assert "cannot be written" in said.stderr
