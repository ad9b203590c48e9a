"""Stores with versions in them that nobody trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from cltrain.cli import app
from cltrain.records import Snapshot
from cltrain.registry import Registry, Store
from tests.versions import registered


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(Store(root=str(tmp_path / "store")), "ranker")


@pytest.fixture
def call(registry: Registry) -> Callable[..., Result]:
    return lambda *words: CliRunner().invoke(app, [*words, "--store", registry.store.root])


@pytest.fixture
def call_json(call: Callable[..., Result]) -> Callable[..., Any]:
    def run(*words: str) -> Any:
        result = call(*words, "--json")
        assert result.exit_code == 0, result.output
        return json.loads(result.output)

    return run


@pytest.fixture
def add(registry: Registry) -> Callable[..., str]:
    """Registers the next version: from scratch, or from `parent`, which is what it was weighed against."""
    rounds = iter(range(1_000))

    def register(
        parent: str | None = None, snapshot: Snapshot | None = None, accepted: bool = True, **settings: Any
    ) -> str:
        return registered(
            registry,
            index := next(rounds),
            parent,
            accepted=accepted,
            settings={"seed": 0, **settings},
            snapshot=snapshot or Snapshot(digest="d", role="train", rows=5),
            weights_digest=str(index),
        ).version

    return register
