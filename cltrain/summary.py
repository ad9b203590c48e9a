"""The numbers of a whole run, from its rounds and its registry alone: a run that was resumed says the same as one that
was not."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from cltrain.data.event_log import EventLog
from cltrain.evaluate.metrics import MetricSums, total
from cltrain.observe import read_prequential
from cltrain.records import Json, Round
from cltrain.registry import Registry
from cltrain.train.predictor import Predictor


def summarise(rounds: Sequence[Round], registry: Registry, log: EventLog, held_out: Sequence[pa.Table]) -> Json:
    """What `summary.json` holds. `held_out` are the held-out rows of all windows; rounds do not count the bootstrap."""
    task = log.source.columns.task
    storage = registry.store.storage
    versions = registry.versions()
    champion = registry.champion()
    ours, static = read_prequential(storage, registry.model, task, [r.index for r in rounds])
    retention: Json = {}
    if champion is not None:
        predictor = Predictor.load(storage, champion.state)
        retention = total(task, [MetricSums.of(predictor.score(rows)) for rows in held_out if rows.num_rows]).values()
    trained = [v.challenger for v in versions]
    served = [r.served for r in rounds]
    quarantined = [r for r in rounds if r.status == "quarantined"]
    return {
        "model": registry.model,
        "task": task,
        "rounds": sum(r.index > 0 for r in rounds),
        "versions": [v.version for v in versions],
        "champion": champion.version if champion else None,
        "prequential": ours.values(),
        "static": static.values(),
        "retention": retention,
        "cost": {
            "rows_trained": sum(t.rows_trained for t in trained),
            "rows_trained_stateless": sum(t.rows_trained for t in trained if t.kind == "stateless"),
            "rows_replayed": sum(t.rows_replayed for t in trained),
            "train_seconds": sum(t.seconds for t in trained),
        },
        "rejected": sum(not v.verdict.accepted for v in versions),
        "rollbacks": sum(
            1 for move in registry.moves() if move["alias"] == "champion" and "rollback" in move["reason"]
        ),
        "waited": sum(r.status == "waited" for r in rounds),
        "empty": sum(r.status == "empty" for r in rounds),
        "failed": sum(r.status == "failed" for r in rounds),
        "quarantined_windows": [r.index for r in quarantined],
        "quarantined_rows": sum(r.observation.labelled for r in quarantined) + log.bad_rows,
        "set_aside_files": log.set_aside,
        "late_labels": sum(r.observation.late_labels for r in rounds),
        "events": sum(r.observation.events for r in rounds),
        "served_requests": sum(s.get("sent", 0) for s in served),
        "failed_requests": sum(s.get("failed", 0) for s in served),
        "feedback_rows": sum(s.get("feedback", 0) for s in served),
        "freshness_s": _median([r.freshness_s for r in rounds if r.freshness_s is not None]),
    }


def _median(values: list[float]) -> float | None:
    return sorted(values)[len(values) // 2] if values else None
