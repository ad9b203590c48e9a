"""Stores with versions in them that nobody trained."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from cltrain.cli import app
from cltrain.records import Challenger, Cursor, ReportCard, Snapshot, Verdict
from cltrain.registry import Registry, Store


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
        index = next(rounds)
        challenger = Challenger(
            kind="stateful" if parent else "stateless",
            state=f"states/{index}",
            parent=registry.version(parent).state if parent else None,
            snapshot=snapshot or Snapshot(digest="d", role="train", rows=5),
            cursor=Cursor(until=datetime(2024, 1, 1, tzinfo=UTC), files=()),
            weights_digest=str(index),
            rows_trained=1,
            rows_replayed=0,
            steps=1,
            seconds=0.1,
            loss=0.5,
            parameters=3,
            seed=1,
        )
        found = registry.register(
            challenger,
            ReportCard(comparisons=(), transfer=(), latency_ms=0.1, size_bytes=8),
            Verdict(accepted=accepted, reasons=("test",)),
            round_index=index,
            reason="test",
            compared_to=parent,
            settings={"seed": 0, **settings},
        )
        return found.version

    return register
