"""How long the registry takes to answer, in a store of many versions and, for the ratio, in one of a hundred.

Both stores have chains of a hundred versions, each trained on a file of its own and on half of the file before, a model
whose every version depends on one of the first, and an alias move for every tenth version. `ratio` is the time in the
large store over the time in the small one; both times are medians in milliseconds. The last row is `--moves` moves of
the champion by two processes at once, each from where it saw the champion, over the time of one process for as many;
it fails if a move is lost, or if a reader ever finds no champion or two.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from multiprocessing.synchronize import Barrier
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
from sqlalchemy import insert

from cltrain.data.row_index import index_name, keys_of, row_index
from cltrain.errors import ConflictError
from cltrain.records import Challenger, Cursor, ReportCard, Snapshot, Verdict, to_json
from cltrain.registry import Registry, Store, impact
from cltrain.registry.segments import add_indexes
from cltrain.registry.tables import (
    AliasMoveRow,
    AliasRow,
    DependencyRow,
    SettingsRow,
    SnapshotFileRow,
    SnapshotRow,
    VersionRow,
)
from cltrain.rows import Answer, versions_with
from cltrain.storage import write_arrow

CHAIN, SMALL = 100, 100
HOUR_US = 3_600_000_000
START = datetime(2024, 1, 1, tzinfo=UTC)
BASE, RANKER = "embedding", "ranker"


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--versions", type=int, default=10_000, help="of each of the two models (default 10000)")
    parser.add_argument("--rows", type=int, default=1_000_000, help="that their snapshots have together")
    parser.add_argument("--url", help="of an empty PostgreSQL database for the large store; else SQLite")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--moves", type=int, default=1000)


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as small, tempfile.TemporaryDirectory() as large:
        stores = (Store(root=small), Store(root=large, url=options.url))
        for store, versions in zip(stores, (SMALL, options.versions), strict=True):
            fill(store, versions, max(1, options.rows // (2 * options.versions)))
        rows = []
        for name, ask in QUESTIONS.items():
            few, many = (median(_timed(ask, Registry(store, RANKER), options.repeats)) for store in stores)
            rows.append({"name": name, "ratio": many / few, "ms": many, "ms of 100 versions": few})
        alone, together = (_race(stores[1], processes, options.moves) for processes in (1, 2))
        rows.append({"name": f"{options.moves} moves by 2 processes", "ratio": together / alone, "ms": together})
        return rows


def _newest(registry: Registry) -> str:
    return registry.versions(last=1)[0].version


def _show(registry: Registry) -> object:
    """All that `cltrain show` asks."""
    found = registry.version("champion")
    about = registry.card(found.version), registry.settings(found.version), registry.approval(found.version)
    return found.summary(), about, registry.notes(found.version), registry.outdated(found.version)


# What is asked of a store, by the name in the report.
QUESTIONS: dict[str, Callable[[Registry], object]] = {
    "show": _show,
    "lineage": lambda registry: registry.lineage(_newest(registry)),
    "trained rows": lambda registry: registry.trained_rows("champion"),
    "versions, last 100": lambda registry: registry.versions(last=100),
    "versions, page in the middle": lambda registry: registry.versions(last=100, before="1.50"),
    "descendants of a root": lambda registry: Registry(registry.store, BASE).descendants("1.0"),
    "impact of a file": lambda registry: impact(registry.store, file="f" * 60 + "0050"),
    "rows, of one row": lambda registry: _known(versions_with(registry.store, "50#3")),
    "champion at an instant": lambda registry: registry.champion_at(START + timedelta(hours=50)),
    "promote": lambda registry: registry.rollback(reason="measured"),
}


def _known(answer: Answer) -> Answer:
    assert answer.places[0].versions
    return answer


def fill(store: Store, versions: int, rows_each: int) -> None:
    """Write what `versions` rounds of two models would leave, all at once."""
    index(store, versions, rows_each)
    with store.writing() as session:
        session.execute(insert(SettingsRow), [{"digest": "s", "settings": {"seed": 0, "train": {"steps": 100}}}])
        for model in (BASE, RANKER):
            session.execute(insert(VersionRow), [_version(model, i, rows_each) for i in range(versions)])
        names = [name_of(i) for i in range(versions)]
        depends = [{"model": RANKER, "version": v, "on_model": BASE, "on_version": v} for v in names]
        session.execute(insert(DependencyRow), depends)
        files = [
            {"snapshot_digest": _digest(model, i), "name": f"{j}.parquet", "file_digest": "f" * 60 + f"{j:04d}"}
            | {"seen": j < i, "index_digest": f"{j:064d}"}
            for model in (BASE, RANKER)
            for i in range(versions)
            for j in {i, max(0, i - 1)}
        ]
        session.execute(insert(SnapshotFileRow), files)
        rule = {"split": "train", "excluded": [], "holdout_share": 0.1, "seed": 0, "cut_off": None}
        rule |= {"start_us": None, "end_us": None}
        rules = [
            {"digest": _digest(model, i), "until_us": HOUR_US * (i + 1), "after_us": HOUR_US * i, **rule}
            for model in (BASE, RANKER)
            for i in range(versions)
        ]
        session.execute(insert(SnapshotRow), rules)
        crowned = names[::10]
        moves = [
            {"model": RANKER, "alias": "champion", "old": crowned[i - 1] if i else None, "new": new, "epoch": i + 1}
            | {"at": START + timedelta(hours=10 * i), "by": "loop", "reason": "better", "entry": None}
            for i, new in enumerate(crowned)
        ]
        session.execute(insert(AliasMoveRow), moves)
        for alias, version in (("champion", crowned[-1]), ("previous", crowned[-2])):
            session.add(AliasRow(model=RANKER, alias=alias, version=version, epoch=len(moves)))


def index(store: Store, files: int, rows: int) -> None:
    """Indexes of the files, of which each holds one hour, with labels up to an hour later."""
    os.makedirs(store.storage.path("rows"), exist_ok=True)
    draw = np.random.default_rng(0)
    for i in range(files):
        event = HOUR_US * i + np.sort(draw.integers(0, HOUR_US, rows))
        ids = pa.array([f"{i}#{j}" for j in range(rows)])
        table = row_index(keys_of(ids), event, event + draw.integers(0, HOUR_US, rows))
        write_arrow(Path(store.storage.path(index_name(f"{i:064d}"))), table)
    add_indexes(store, {f"{i:064d}": rows for i in range(files)})


def name_of(i: int) -> str:
    return f"{1 + i // CHAIN}.{i % CHAIN}"


def _digest(model: str, i: int) -> str:
    return f"{model}-{i}"


def _version(model: str, i: int, rows: int) -> dict[str, Any]:
    first = i % CHAIN == 0
    at = START + timedelta(hours=i)
    challenger = Challenger(
        kind="stateless" if first else "stateful",
        state=f"states/{model}-{i}",
        parent=None if first else f"states/{model}-{i - 1}",
        snapshot=Snapshot(digest=_digest(model, i), role="train", rows=rows),
        cursor=Cursor(until=at, files=(f"{i}.parquet",)),
        weights_digest=f"{i:064d}",
        rows_trained=rows,
        rows_replayed=0,
        steps=100,
        seconds=1.0,
        loss=0.5,
        parameters=1000,
        seed=i,
    )
    return {
        "model": model,
        "version": name_of(i),
        "ordinal": i,
        "major": 1 + i // CHAIN,
        "minor": i % CHAIN,
        "parent": None if first else name_of(i - 1),
        "compared_to": None,
        "kind": challenger.kind,
        "round_index": i,
        "reason": "time",
        "state": challenger.state,
        "snapshot_digest": challenger.snapshot.digest,
        "weights_digest": challenger.weights_digest,
        "settings_digest": "s",
        "seed": i,
        "code_commit": None,
        "created_at": at,
        "challenger": to_json(challenger),
        "card": to_json(ReportCard(comparisons=(), transfer=(), latency_ms=0.1, size_bytes=8)),
        "verdict": to_json(Verdict(accepted=True, reasons=("better",))),
        "packages": {},
    }


def _race(store: Store, processes: int, moves: int) -> float:
    """Milliseconds that the moves take, shared by the processes."""
    registry, context = Registry(store, RANKER), multiprocessing.get_context("spawn")
    first, before = registry.epoch(), len(registry.served())
    start = context.Barrier(processes + 1)
    each = moves // processes
    sides = [(f"1.{2 * i}", f"1.{2 * i + 1}") for i in range(processes)]
    racers = [context.Process(target=_move, args=(store.root, store.url, side, each, start)) for side in sides]
    for racer in racers:
        racer.start()
    start.wait()
    started = time.perf_counter()
    while any(racer.is_alive() for racer in racers):
        assert len([v for v in registry.lineage("1.3") if "champion" in v.aliases]) <= 1
        assert registry.champion() is not None
        time.sleep(0.1)
    took = time.perf_counter() - started
    made = registry.served()[before:]
    assert [m["epoch"] for m in made] == list(range(first + 1, first + 1 + each * processes)), "a move was lost"
    assert registry.verify_audit().intact
    return 1000 * took


def _move(root: str, url: str | None, side: tuple[str, str], moves: int, start: Barrier) -> None:
    registry = Registry(Store(root=root, url=url), RANKER)
    start.wait()
    while moves:
        champion = registry.champion()
        now = champion.version if champion else None
        try:
            registry.promote(side[now == side[0]], reason="race", expected=now)
        except ConflictError:
            continue
        moves -= 1


def _timed(ask: Callable[[Registry], object], registry: Registry, repeats: int) -> list[float]:
    ask(registry)
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        ask(registry)
        times.append(1000 * (time.perf_counter() - started))
    return times
