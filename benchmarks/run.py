"""Run a benchmark: `python benchmarks/run.py CASE [--json FILE] [--device cuda]`, and `CASE --help` for more.

A case is a module beside this one with `add_options(parser)` and `run(options) -> list of rows`; each row has `name`
and `ratio`, measured in one run against something else. Results that are worth keeping go to `benchmarks/results/`,
with hardware and versions.
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

CASES = (
    "step",
    "micro",
    "scaling",
    "streams",
    "registry",
    "crash",
    "online",
    "gate",
    "freshness",
    "swap",
    "serve",
    "soak",
    "shadow",
    "join",
    "slices",
    "live",
)
MODULES = {"serve": "serving"}  # of cases that are not called like theirs
ROOT = Path(__file__).resolve().parent.parent


def machine(device: str) -> dict[str, Any]:
    """What the figures depend on."""
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "device": name,
        "cores": cores,
        "load": os.getloadavg()[1],  # processes that wanted a core in the last five minutes, this one among them
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def main() -> None:
    sys.path.insert(0, str(ROOT))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cases = parser.add_subparsers(dest="case", required=True)
    modules = {name: importlib.import_module(f"benchmarks.{MODULES.get(name, name)}") for name in CASES}
    for name, module in modules.items():
        case = cases.add_parser(name, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
        case.add_argument("--json", type=Path, help="write the rows here")
        case.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
        module.add_options(case)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("error: --device cuda, but torch sees no GPU")
    rows = modules[options.case].run(options)
    show(rows)
    if options.json:
        result = {"case": options.case, "machine": machine(options.device), "rows": rows}
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def show(rows: list[dict[str, Any]]) -> None:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    table = Table(*columns)
    for row in rows:
        table.add_row(*(_text(row.get(name)) for name in columns))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, list | tuple):
        return " to ".join(_text(v) for v in value)
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.3g}"
    return str(value)


if __name__ == "__main__":
    main()
