"""Logs that a test writes by hand."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from cltrain.storage import Storage
from serve.logs.feedback import FOLDER as FEEDBACK
from serve.logs.feedback import SCHEMA as FEEDBACK_SCHEMA
from serve.logs.prediction_log import SCHEMA

START = datetime(2024, 3, 1, tzinfo=UTC)
ABOUT: dict[str, Any] = {"version": "1.1", "since": START, "reward_type": "implicit", "kind": "ab"}
NUMBERS = itertools.count()


def write(storage: Storage, folder: str, rows: list[dict[str, Any]], name: str | None = None) -> None:
    """A segment of one batch, or one more batch of a segment that is there."""
    schema = FEEDBACK_SCHEMA if folder == FEEDBACK else SCHEMA
    path = Path(storage.path(f"{folder}/{name or f'r-{next(NUMBERS):06d}'}.arrow"))
    path.parent.mkdir(parents=True, exist_ok=True)
    batches = list(pa.ipc.open_stream(path.read_bytes())) if path.exists() else []
    with pa.ipc.new_stream(str(path), schema) as writer:
        for batch in (*batches, pa.RecordBatch.from_pylist(rows, schema)):
            writer.write_batch(batch)


def answer(unit: str | None, arm: str = "champion", **more: Any) -> dict[str, Any]:
    number = next(NUMBERS)
    given = {"request_id": f"q{number}", "event_id": f"e{number}", "time": START + timedelta(seconds=1), "model": "m"}
    given |= {"version": "1.1" if arm == "challenger" else "1.0", "epoch": 3, "prediction": 0.5, "label_answer": "0"}
    return {**given, "unit_id": unit, "arm": arm, "weight": 1.0, "features": "{}", "propensity": 0.5, **more}


def label(row: dict[str, Any], value: float, type: str = "system", **more: Any) -> dict[str, Any]:
    at = START + timedelta(hours=1, microseconds=next(NUMBERS))
    given = {"request_id": row["request_id"], "type": type, "label": f"{value:g}", "label_value": value}
    return {**given, "label_time": at, "received_at": at, **more}
