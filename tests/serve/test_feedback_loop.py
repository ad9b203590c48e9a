"""The loop learns from what was served: answers and labels come through the API, and nothing else is known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from cltrain.assemble import run_loop
from cltrain.records import EVENT_ID, EVENT_TIME, LABEL
from cltrain.registry import Registry, Store


def test_two_rounds_on_predictions_and_their_labels(
    serve_store: Callable[..., Any],
    store: Store,
    registry: Registry,
    events: Callable[..., pa.Table],
    settings_of: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    registry.promote("1.0", reason="first")
    client = serve_store(store)
    rows = events(rows=400).to_pylist()
    for start in range(0, len(rows), 100):
        some = rows[start : start + 100]
        asked = [
            {
                "event_id": row[EVENT_ID],
                "event_time": row[EVENT_TIME].isoformat(),
                "features": {name: row[name] for name in ("distance", "carrier")},
            }
            for row in some
        ]
        assert client.post("/predict", json={"rows": asked}).status_code == 200
        labels = [
            {"event_id": row[EVENT_ID], "label": row[LABEL], "label_time": row[EVENT_TIME].isoformat()}
            for row in some[5:]
        ]
        assert client.post("/feedback", json={"rows": labels}).status_code == 200
    client.server.predictions.close()
    client.server.labels.close()
    settings = settings_of(
        "data=feedback",
        f"data.store={store.storage.root}",
        "window.every=3h",
        "serve=none",
        "tracking=files",
        "cluster.workers=0",
        "train.stateless.min_steps=20",
        f"store.root={tmp_path / 'loop'}",
    ) | {"run_dir": str(tmp_path / "run")}
    summary = run_loop(settings)
    assert (summary["rounds"], summary["versions"]) == (1, ["1.0", "1.1"])  # after the bootstrap
    version = Registry(Store(root=str(tmp_path / "loop")), "default").version("1.0")
    assert 0 < version.challenger.snapshot.rows < 180
