"""Registries with versions in them that nobody trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cltrain.records import Challenger, Cursor, ReportCard, Snapshot, Verdict
from cltrain.registry import Registry, Store, VersionRecord

CHALLENGER = Challenger(
    kind="stateless",
    state="states/0",
    parent=None,
    snapshot=Snapshot(digest="d" * 64, role="train", rows=5),
    cursor=Cursor(until=datetime(2024, 1, 1, tzinfo=UTC), files=("a.parquet",)),
    weights_digest="w",
    rows_trained=10,
    rows_replayed=0,
    steps=2,
    seconds=0.1,
    loss=0.5,
    parameters=3,
    seed=1,
)


@pytest.fixture(params=["sqlite", "postgres"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Registry:
    url = request.getfixturevalue("postgres_url") if request.param == "postgres" else None
    return Registry(Store(root=str(tmp_path), url=url), "ranker")


@pytest.fixture
def local(tmp_path: Path) -> Registry:
    return Registry(Store(root=str(tmp_path)), "ranker")


@pytest.fixture
def register() -> Callable[..., VersionRecord]:
    """Registers the next round's version: from scratch, or from `parent`."""
    rounds = iter(range(1_000_000))

    def add(
        registry: Registry,
        parent: str | None = None,
        *,
        accepted: bool = True,
        snapshot: str = "d" * 64,
        depends_on: tuple[str, ...] = (),
    ) -> VersionRecord:
        index = next(rounds)
        challenger = dataclasses.replace(
            CHALLENGER,
            kind="stateful" if parent else "stateless",
            state=f"states/{index}",
            parent=registry.version(parent).state if parent else None,
            snapshot=Snapshot(digest=snapshot, role="train", rows=5),
            weights_digest=f"{index:064d}",
        )
        settings: dict[str, Any] = {"seed": 0}
        return registry.register(
            challenger,
            ReportCard(comparisons=(), transfer=(), latency_ms=0.1, size_bytes=8),
            Verdict(accepted=accepted, reasons=("test",)),
            round_index=index,
            reason="test",
            compared_to=parent,
            settings=settings,
            depends_on=depends_on,
        )

    return add
