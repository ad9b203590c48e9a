"""Some rows with the answers of both versions, for a person to look at."""

from __future__ import annotations

from datetime import date, datetime, time
from typing import Any

import numpy as np
import pyarrow as pa

from cltrain.evaluate.sample import Sample
from cltrain.records import EVENT_ID, LABEL, Json

LONGEST = 200  # characters of a text


def spots(
    table: pa.Table, ours: Sample, theirs: Sample | None, count: int, generator: np.random.Generator
) -> tuple[Json, ...]:
    """`count` rows of the table, without one twice: half of them where the two versions differ most in what the row
    loses, the others drawn evenly. Each has id, label, features, the prediction and the loss of `challenger` and
    `champion`, and why it is here: `disagreement` or `chance`. Predictions of classes are their numbers."""
    count = min(count, len(ours))
    first = np.zeros(0, int)
    if theirs is not None:
        gap = np.abs(ours.losses - theirs.losses)
        first = np.argsort(-gap, kind="stable")[: count // 2]
        first = first[gap[first] > 0]
    others = np.setdiff1d(np.arange(len(ours)), first)
    chance = generator.choice(others, count - len(first), replace=False)
    rows = np.concatenate([first, chance])
    shown = [
        f.name for f in table.schema if not f.name.startswith("_") and not pa.types.is_nested(f.type)
    ]  # vectors and images are nothing to read
    found = []
    for place, row in zip(rows.tolist(), table.take(pa.array(rows)).to_pylist(), strict=True):
        spot = {
            "id": row.get(EVENT_ID),
            "why": "disagreement" if place in first else "chance",
            "label": _plain(row.get(LABEL, float(ours.target[place]))),
            "challenger": _answer(ours, place),
            "features": {name: _plain(row[name]) for name in shown},
        }
        found.append(spot if theirs is None else spot | {"champion": _answer(theirs, place)})
    return tuple(found)


def _answer(sample: Sample, place: int) -> Json:
    return {"prediction": float(sample.predictions[place]), "loss": float(sample.losses[place])}


def _plain(value: Any) -> Any:
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    if isinstance(value, str):
        return value if len(value) <= LONGEST else value[:LONGEST] + "…"
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float) else str(value)
