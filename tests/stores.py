"""A store that a small loop has made, for tests that look at stores."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cltrain.assemble import open_store, run_by_hand, run_loop
from cltrain.registry import Registry
from tests.conftest import overrides_of_table, write_table


def made(folder: Path, settings_of: Callable[..., dict[str, Any]], *overrides: str) -> dict[str, Any]:
    """Settings of the loop that was run in `folder`, once: two majors, of which one was left behind, and a surgery."""
    done = folder / "done"
    if not done.exists():
        write_table(folder / "events", weeks=6, rows_a_day=20)
    common = [
        *overrides_of_table(folder / "events"),
        "serve=none",
        "cluster.workers=0",
        f"store.root={folder / 'kept'}",
        "train.stateless.min_steps=10",
        "recalibrate.every=2",
        "gate.floor=10",
        "train.stateful.learning_rate=3e-4",
        "train.stateful.schedule=constant",
        "window.bootstrap=2",
        "max_rounds=4",
        *overrides,
    ]
    settings = settings_of(*common) | {"run_dir": str(folder / "run"), "tracking": {}}
    if not done.exists():
        with contextlib.chdir(folder):  # store/latest is written there
            run_loop(settings)
            wider = settings_of(*common, "model.hidden=[96,32]", "transfer=surgery", job="recalibrate")
            run_by_hand(wider | {"run_dir": str(folder / "run"), "tracking": {}}, "stateless")
        done.touch()
    return settings


def copied(made: dict[str, Any], folder: Path) -> Registry:
    """The registry of a copy of the store, to be treated badly; the events are those of the original."""
    shutil.copytree(made["store"]["root"], folder / "store")
    return Registry(open_store(made | {"store": {"root": str(folder / "store"), "url": None}}, create=False), "default")


def files(registry: Registry) -> dict[str, float]:
    """When each file of the store was last written, but for those of the database."""
    return {b.name: b.changed for b in registry.store.storage.infos("") if not b.name.startswith("registry.db")}
