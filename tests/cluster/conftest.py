"""An update to ask of workers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cltrain.assemble import open_store, run_loop
from cltrain.records import UpdateRequest
from cltrain.registry import Registry


@pytest.fixture
def request_of(small: Callable[..., dict[str, Any]]) -> tuple[UpdateRequest, str]:
    """The request of a stateful update from version 1.0, and the root of its store."""
    settings = small("max_rounds=2", "window.bootstrap=2")
    run_loop(settings)
    store = open_store(settings)
    made = Registry(store, "default").version("1.1").challenger
    parts = {key: settings[key] for key in ("model", "method", "train")}
    request = UpdateRequest(
        number=2,
        kind="stateful",
        parent=made.parent,
        snapshot=made.snapshot,
        cursor=made.cursor,
        seed=made.seed,
        task="binary",
        settings=parts,
    )
    return request, str(Path(store.root).absolute())
