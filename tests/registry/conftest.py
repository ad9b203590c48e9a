"""Registries with versions in them that nobody trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from cltrain.records import Snapshot
from cltrain.registry import Registry, Store, VersionRecord
from tests.versions import registered


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
        return registered(
            registry,
            index,
            parent,
            accepted=accepted,
            depends_on=depends_on,
            snapshot=Snapshot(digest=snapshot, role="train", rows=5),
            weights_digest=f"{index:064d}",
        )

    return add
