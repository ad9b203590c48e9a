"""Updates of many steps, seen from outside: where they stand, and who works on them."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from cltrain.records import UpdateRequest

EVERY = 50  # steps between checkpoints


def of_many_steps(request: UpdateRequest, epochs: int = 50) -> UpdateRequest:
    """The same, of some 12 steps an epoch, with checkpoints."""
    settings = copy.deepcopy(dict(request.settings))
    settings["train"]["stateful"] |= {"epochs": epochs, "checkpoint_steps": EVERY}
    return replace(request, settings=settings)


def standing(root: str | Path) -> dict[str, Any] | None:
    """What the last checkpoint of the update under way in this store says: world, and numbers such as steps."""
    for file in Path(root, "updates").glob("states/*/checkpoint.json"):
        try:
            return json.loads(file.read_text())
        except FileNotFoundError:
            return None
    return None


def wait_for_steps(root: str | Path, steps: int, timeout_s: float = 120) -> dict[str, Any]:
    """Until a checkpoint of so many steps or more is there."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if (found := standing(root)) and found["numbers"]["steps"] >= steps:
            return found
        time.sleep(0.01)
    raise AssertionError(f"no checkpoint of {steps} steps")


def train_workers(driver: int) -> Iterator[int]:
    """Process ids of the Ray Train workers that descend from a driver."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and b"ray::RayTrainWorker" in _read(entry / "cmdline"):
            pid = int(entry.name)
            while pid > 1 and pid != driver:
                pid = int(_read(Path(f"/proc/{pid}/stat")).rsplit(b")", 1)[1].split()[1] or 0)
            if pid == driver:
                yield int(entry.name)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b") 0 0"
