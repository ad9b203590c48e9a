"""Run a benchmark: `python benchmarks/run.py CASE [--json FILE] [--device cuda]`.

A case is a module beside this one with `run(device) -> list of rows`; each row has `name` and `ratio`, measured in one
run against something else. Results that are worth keeping go to `benchmarks/results/`, with hardware and versions.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent


def cases() -> list[str]:
    return sorted(p.stem for p in HERE.glob("*.py") if p.stem != "run")


def machine(device: str) -> dict[str, Any]:
    """What the figures depend on."""
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"device": name, "cores": cores, "python": platform.python_version(), "torch": torch.__version__}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=cases())
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("error: --device cuda, but torch sees no GPU")
    sys.path.insert(0, str(HERE.parent))
    rows = importlib.import_module(f"benchmarks.{arguments.case}").run(arguments.device)
    table = Table(*rows[0])
    for row in rows:
        table.add_row(*(_text(value) for value in row.values()))
    Console().print(table)
    if arguments.json:
        result = {"case": arguments.case, "machine": machine(arguments.device), "rows": rows}
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " to ".join(_text(v) for v in value)
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"
    return str(value)


if __name__ == "__main__":
    main()
