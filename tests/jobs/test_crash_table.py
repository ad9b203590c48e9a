"""Kill -9 at every durable write of a small loop, on SQLite, and at some of them on PostgreSQL. The full table, with
two moments for each write, and kills at random are `python benchmarks/run.py crash --fuzz 200`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.crash import first_difference

ROOT = Path(__file__).resolve().parents[2]


def table(result: Path, *options: str) -> list[dict[str, Any]]:
    command = [sys.executable, "benchmarks/run.py", "crash", "--rounds", "2", "--json", str(result), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "lost:" not in done.stderr, done.stderr
    return json.loads(result.read_text())["rows"]


@pytest.mark.slow
def test_killed_before_any_durable_write_the_loop_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    # Before one write is after the one that came before it.
    [every, fuzz] = table(tmp_path / "rows.json", "--moments", "before", "--fuzz", "3")
    assert every["points"] > 50
    assert (every["lost"], fuzz["lost"], fuzz["points"]) == (0, 0, 3)


@pytest.mark.slow
def test_the_same_on_postgres(tmp_path: Path, postgres_server: str) -> None:
    [some] = table(tmp_path / "rows.json", "--database", "postgres", "--server", postgres_server, "--every", "20")
    assert some["points"] > 2
    assert some["lost"] == 0


def test_a_difference_is_told_by_its_place() -> None:
    assert first_difference({"a": [{"b": 1}]}, {"a": [{"b": 2}]}) == "a.0.b is 2, not 1"
    assert first_difference([1], [1, 2]) == " has 2 entries, not 1"
    assert first_difference({"x": float("nan")}, {"x": float("nan")}) is None
