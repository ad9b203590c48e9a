"""Versions that nobody trained, for tests that look at registries."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import Any

from cltrain.records import Challenger, Cursor, ReportCard, Snapshot, Verdict
from cltrain.registry import Registry, VersionRecord

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
CARD = ReportCard(comparisons=(), transfer=(), latency_ms=0.1, size_bytes=8)


def registered(
    registry: Registry,
    index: int,
    parent: str | None = None,
    *,
    accepted: bool = True,
    reason: str = "test",
    settings: dict[str, Any] | None = None,
    depends_on: tuple[str, ...] = (),
    **fields: Any,
) -> VersionRecord:
    """The version of round `index`: from scratch, or from `parent`, beside which it was weighed. fields: what is
    different in its challenger."""
    about = {
        "kind": "stateful" if parent else "stateless",
        "state": f"states/{index}",
        "parent": registry.version(parent).state if parent else None,
    }
    return registry.register(
        dataclasses.replace(CHALLENGER, **(about | fields)),
        CARD,
        Verdict(accepted=accepted, reasons=("test",)),
        round_index=index,
        reason=reason,
        compared_to=parent,
        settings={"seed": 0} if settings is None else settings,
        depends_on=depends_on,
    )
