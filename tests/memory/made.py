"""Small event tables and a model's opinion of them, for the tests of memories."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from cltrain.memory import Memory, Seen
from cltrain.memory.base import KEY
from cltrain.records import EVENT_ID, EVENT_TIME, LABEL

DAY_US = 86_400_000_000


def rows(start: int, stop: int, labels: Sequence[str] = ("a", "b", "b", "b"), step_us: int = DAY_US) -> pa.Table:
    """Events `start` to `stop`, one a day, with the `labels` in turn; `x` is the number of the event."""
    number = np.arange(start, stop)
    return pa.table(
        {
            EVENT_ID: [f"row-{i}" for i in number],
            EVENT_TIME: pa.array(number * step_us, pa.timestamp("us", tz="UTC")),
            LABEL: pa.array([labels[i % len(labels)] for i in number], pa.string()),
            "x": number.astype(np.float64),
        }
    )


def see(table: pa.Table) -> Seen:
    """Opinions that depend on `x` alone."""
    x = np.asarray(table.column("x"))
    scattered = np.sin(x[:, None] * [12.9898, 78.233, 37.719, 4.581]) * 43758.5453 % 1
    return Seen(losses=1 + np.cos(x) ** 2, uncertainty=np.sin(x) ** 2, embeddings=scattered.astype(np.float32))


def admitted(memory: Memory, parts: Sequence[pa.Table]) -> pa.Table:
    kept = None
    for part in parts:
        kept = memory.admit(kept, part, see)
    assert kept is not None
    return kept


def merged(memory: Memory, parts: Sequence[pa.Table]) -> pa.Table:
    """Each part has a memory of its own first, and then these are joined."""
    return admitted(memory, [memory.admit(None, part).drop_columns([KEY]) for part in parts])


def numbers(table: pa.Table) -> list[int]:
    return [int(x) for x in table.column("x").to_pylist()]
