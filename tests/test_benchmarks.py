"""Each case runs and says what it is measured against; its speed is not tested."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_step_case_prints_a_table_and_writes_its_rows(tmp_path: Path) -> None:
    result = tmp_path / "step.json"
    command = [sys.executable, "benchmarks/run.py", "step", "--json", str(result)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "step replay batch 64" in done.stdout
    written = json.loads(result.read_text())
    assert all(row["ratio"] > 0 for row in written["rows"])
    assert written["machine"]["torch"]
