"""A made-up history, so that trackers can be tested without a loop."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cltrain.records import (
    Comparison,
    Cursor,
    Decision,
    Observation,
    RollOut,
    Round,
    RunInfo,
    Snapshot,
    Window,
    to_json,
)

START = datetime(2013, 1, 1, tzinfo=UTC)


def metrics(task: str, loss: float, rows: int = 400) -> dict[str, Any]:
    if task == "regression":
        return {"rmse": loss**0.5, "mae": loss**0.5 * 0.8, "r2": 1 - loss, "squared_error": loss, "rows": rows}
    found = {"log_loss": loss, "accuracy": 1 - loss / 2, "rows": rows}
    if task == "binary":
        found |= {"auc": 1 - loss / 2.5, "brier": loss / 3, "ece": loss / 10}
    return found


def snapshot(role: str, rows: int) -> Snapshot:
    return Snapshot(digest=role, role=role, rows=rows)


def history(count: int, task: str = "binary", said: str = "", windows: int | None = None) -> list[Round]:
    """Weekly rounds: a stateful version in most, a stateless rival every 12; every 7th is rejected; 9 waits, 14 is
    empty, 20 is quarantined. `said` is put into every text. `windows` caps the transfer row of a version."""
    rounds: list[Round] = []
    champion, first, major, minors = None, None, 0, {0: 0}
    for i in range(count):
        window = Window(index=i, start=START + timedelta(weeks=i), end=START + timedelta(weeks=i + 1))
        status = {9: "waited", 14: "empty", 20: "quarantined"}.get(i % 50, "rejected" if i % 7 == 5 else "promoted")
        season = 0.06 * ((i * 7919) % 13 - 6) / 6
        now, never = 0.42 + season + 0.0004 * i, 0.43 + season + 0.003 * min(i, 60)
        empty = status == "empty"
        cursor = Cursor(until=window.end, files=())
        versions: list[dict[str, Any]] = []
        if status in ("promoted", "rejected"):
            kinds = ["stateless"] if champion is None else ["stateful", "stateless"] if i % 12 == 0 else ["stateful"]
            for kind in kinds:
                if kind == "stateless":
                    major, parent = major + 1, None
                    minors[major] = 0
                    name = f"{major}.0"
                else:
                    base = int(champion.split(".")[0])
                    minors[base] += 1
                    parent, name = champion, f"{base}.{minors[base]}"
                wins = (
                    status == "promoted"
                    and (kind == "stateless" or len(kinds) == 1 or i % 24 == 0)
                    and not (i % 24 == 0 and parent is None and i)
                )
                picked = (
                    range(i + 1) if windows is None else sorted({round(j * i / windows) for j in range(windows + 1)})
                )
                row = [
                    {
                        "window": k,
                        "rows": 100,
                        "loss": 0.4 + 0.0006 * (i - k) + 0.05 * ((k * 7919) % 13 - 6) / 6 + 0.002 * (i % 3),
                    }
                    for k in picked
                ]
                delta = -0.004 - 0.01 * (i % 4) / 4 if wins else 0.03
                comparisons = (
                    []
                    if champion is None
                    else [
                        to_json(
                            Comparison(
                                name=n,
                                rows=r,
                                challenger=metrics(task, now),
                                champion=metrics(task, now - delta),
                                difference=delta * f,
                                low=delta * f - 0.008,
                                high=delta * f + 0.008,
                            )
                        )
                        for n, r, f in (("window", 420, 1.0), ("past", 100 * i, 0.4))
                    ]
                )
                versions.append(
                    {
                        "version": name,
                        "kind": kind,
                        "parent": parent,
                        "compared_to": champion,
                        "accepted": wins,
                        "reasons": [
                            f"window: {delta:+.4f} [{delta - 0.008:+.4f}, {delta + 0.008:+.4f}] on 420 rows{said}"
                        ],
                        "score": delta,
                        "rows": 5000 if i == 0 else 1000,
                        "rows_trained": 25000 if i == 0 else 1500,
                        "rows_replayed": 0 if i == 0 else 500,
                        "seconds": 1.5,
                        "loss": now,
                        "snapshot_digest": f"{i:064x}",
                        "weights_digest": f"{i + 7:064x}",
                        "comparisons": comparisons,
                        "transfer": row,
                        "latency_ms": 0.4,
                        "size_bytes": 50_000,
                    }
                )
        previous = champion
        champion = next((v["version"] for v in versions if v["accepted"]), champion)
        first = first or champion
        rolled = champion != previous
        rounds.append(
            Round(
                index=i,
                window=window,
                status=status,
                observation=Observation(
                    events=0 if empty else 1000 + i,
                    labelled=0 if empty else 950 + i,
                    late_labels=i % 4,
                    problems=(f"dep_delay: 31 % null, at most 5 % expected{said}",) if status == "quarantined" else (),
                    arrived=snapshot("arrived", 0 if empty else 950 + i),
                    fresh=snapshot("train", 0 if empty else 5000 if i == 0 else 1000),
                    holdout=snapshot("holdout", 0 if empty else 100),
                    cursor=cursor,
                    prequential={} if i == 0 or empty else metrics(task, now),
                    static={} if i == 0 or empty else metrics(task, never),
                ),
                decision=Decision(
                    fire=status not in ("waited", "empty", "quarantined"),
                    reason={
                        "waited": f"312 fresh labelled rows of 800 needed{said}",
                        "empty": "the window has no events",
                        "quarantined": f"quarantined: dep_delay: 31 % null, at most 5 % expected{said}",
                    }.get(status, f"950 fresh labelled rows of 800 needed{said}"),
                ),
                champion=champion,
                versions=tuple(versions),
                roll_out=RollOut(kind="swap", version=champion, previous=previous, epoch=i, confirm_s=0.02)
                if rolled
                else None,
                cursor=cursor,
                served={"sent": 50, "failed": 0, "feedback": 48} if versions else {},
                freshness_s=12.5 if rolled else None,
                seconds=3.2,
            )
        )
    return rounds  # fmt: skip


def run_info(run_dir: Any, task: str = "binary", **more: Any) -> RunInfo:
    settings = {
        "seed": 7,
        "data": {"task": task, "label": "late"},
        "train": {"stateless": {"epochs": 5}, "stateful": {"epochs": 1}},
    }
    metric = "rmse" if task == "regression" else "log_loss"
    return RunInfo(
        **{
            "name": "loop-1",
            "model": "flights",
            "task": task,
            "metric": metric,
            "run_dir": str(run_dir),
            "store": "/data/store",
            "settings": settings,
        }
        | more
    )


def summary(rounds: list[Round]) -> dict[str, Any]:
    return {
        "rounds": len(rounds),
        "versions": [v["version"] for r in rounds for v in r.versions],
        "champion": rounds[-1].champion,
        "prequential": {"log_loss": 0.4321, "auc": 0.83, "accuracy": 0.8, "rows": 19_000},
        "static": {"log_loss": 0.4987, "auc": 0.8, "accuracy": 0.78},
        "retention": {"log_loss": 0.41, "accuracy": 0.81},
        "rejected": 7,
        "rollbacks": 0,
        "served_requests": 2300,
        "failed_requests": 0,
    }


@pytest.fixture
def make():
    """`make.history(n)`, `make.run_info(folder)`, `make.summary(rounds)`, `make.metrics(task, loss)`."""
    import types

    return types.SimpleNamespace(history=history, run_info=run_info, summary=summary, metrics=metrics)
