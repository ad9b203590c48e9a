"""How long predictions take to be joined with their labels, and how much memory.

`--predictions` answers in segments of 200,000, and half as many labels, by event or by request id, in any order, 5 % of
them twice. The first row is one step over all of them, in a process of its own: rows a second, its peak memory, and
`ratio`, the time over that of joining ids and labels alone, all in memory, by pandas, which writes no features. The
second row is a join that was killed half-way and done again. It fails unless the rows are those of a reference join by
pandas, and the files of both joins are the same, byte for byte.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cltrain.data.join import FeedbackJoin, JoinSettings
from cltrain.data.served import read_batches, segments
from cltrain.storage import Storage

SEGMENT_ROWS, BATCH_ROWS = 200_000, 20_000
HOUR_US = 3_600_000_000
START_US = 1_704_067_200_000_000
IDS = ["request_id", "event_id"]
STAMP = pa.timestamp("us", tz="UTC")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--predictions", type=int, default=1_000_000)


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        labels = make(root, options.predictions)
        plain = _apart(root, _in_memory)["seconds"]
        once = _apart(root, _join, "once")
        killed = _kill_half_way(root, once["seconds"])
        again = _apart(root, _join, "killed")
        rows = options.predictions + len(labels[0])
        _require_exact(root, "once", labels)
        same = _bytes(root, "once") == _bytes(root, "killed")
        if not same:
            raise SystemExit("error: a join that was killed and done again differs from one that was not")
    about = {"predictions": options.predictions, "labels": len(labels[0])}
    return [
        {"name": "join", **about, **once, "rows_per_s": rows / once["seconds"], "ratio": once["seconds"] / plain},
        {"name": "killed and done again", **about, **again, "killed": killed, "ratio": again["seconds"] / plain},
    ]


def make(root: Path, n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Write the logs; returns number of the prediction, value and time of each label."""
    rng = np.random.default_rng(0)
    asked_us = START_US + np.sort(rng.integers(0, 100 * HOUR_US, n))
    for start in range(0, n, SEGMENT_ROWS):
        numbers = np.arange(start, min(start + SEGMENT_ROWS, n))
        x = rng.normal(size=len(numbers)).round(4)
        columns = {
            "request_id": _ids("0197a0c07", numbers),
            "event_id": _ids("event-", numbers),
            "event_time": pa.array(asked_us[numbers], STAMP),
            "time": pa.array(asked_us[numbers], STAMP),
            "model": pa.array(["m"] * len(numbers)),
            "version": pa.array(["1.0"] * len(numbers)),
            "epoch": pa.array(np.ones(len(numbers), np.int64)),
            "prediction": pa.array(np.full(len(numbers), 0.5)),
            "features": pa.array([f'{{"x":{v},"z":{v + 1:.4f},"shop":"s{i % 50}"}}' for i, v in enumerate(x.tolist())]),
        }
        _write(root / f"predictions/{start:012d}.arrow", pa.table(columns))
    order = rng.permutation(n)[: n // 2]
    order = np.concatenate([order, rng.choice(order, n // 40)])
    order = rng.permutation(order)
    known_us = asked_us[order] + rng.integers(1, 72 * HOUR_US, len(order))
    values = rng.integers(0, 2, len(order)).astype(float)
    by_request = rng.random(len(order)) < 0.5
    for start in range(0, len(order), SEGMENT_ROWS):
        some = slice(start, start + SEGMENT_ROWS)
        numbers, requests = order[some], by_request[some]
        columns = {
            "request_id": _ids("0197a0c07", numbers, requests),
            "event_id": _ids("event-", numbers, ~requests),
            "type": pa.array(["system"] * len(numbers)),
            "label": pa.array(np.where(values[some] == 1, "1", "0")),
            "label_value": pa.array(values[some]),
            "label_time": pa.array(known_us[some], STAMP),
            "received_at": pa.array(known_us[some], STAMP),
        }
        _write(root / f"feedback/{start:012d}.arrow", pa.table(columns))
    return order, values, known_us


def _ids(prefix: str, numbers: np.ndarray, there: np.ndarray | None = None) -> pa.Array:
    texts = np.char.add(prefix, np.char.zfill(numbers.astype(str), 23))
    return pa.array(texts, mask=None if there is None else ~there)


def _write(path: Path, table: pa.Table) -> None:
    path.parent.mkdir(exist_ok=True)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=BATCH_ROWS)


def _joining(root: Path, name: str) -> FeedbackJoin:
    return FeedbackJoin(Storage(root), f"joined/{name}", JoinSettings(horizon_us=24 * 7 * HOUR_US))


def _join(root: Path, name: str) -> None:
    _joining(root, name).step()


def _in_memory(root: Path) -> None:
    asked, told = (
        pa.Table.from_batches(
            [b.select(names) for i in segments(Storage(root), folder) for b in read_batches(Storage(root), i.name)]
        ).to_pandas()
        for folder, names in (("predictions", IDS), ("feedback", [*IDS, "label_time", "label_value"]))
    )
    told = told.sort_values("label_time", kind="stable")
    for name in IDS:
        last = told[told[name].notna()].drop_duplicates(name, keep="last")
        asked = asked.merge(last[[name, "label_time", "label_value"]], on=name, how="left", suffixes=("", f"_{name}"))


def _apart(root: Path, work: Callable[..., None], *args: str) -> dict[str, float]:
    """Seconds, CPU seconds and peak memory in GiB of some work in a process of its own."""
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=_measured, args=(theirs, work, root, *args))
    process.start()
    found: dict[str, float] = ours.recv()
    process.join()
    return found


def _measured(pipe: Any, work: Callable[..., None], *args: Any) -> None:
    started, cpu = time.perf_counter(), time.process_time()
    work(*args)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    pipe.send({"seconds": time.perf_counter() - started, "cpu_s": time.process_time() - cpu, "peak_gib": peak})


def _kill_half_way(root: Path, seconds: float) -> bool:
    """Whether the process was still at work when it was killed."""
    process = multiprocessing.get_context("spawn").Process(target=_join, args=(root, "killed"))
    process.start()
    folder = root / "joined/killed"
    end = time.monotonic() + 5 * seconds + 60
    while not any(folder.glob("[0-9]*.parquet")) and time.monotonic() < end and process.is_alive():
        time.sleep(0.02)
    alive = process.is_alive()
    if alive and process.pid is not None:
        os.kill(process.pid, signal.SIGKILL)
    process.join()
    return alive


def _bytes(root: Path, name: str) -> dict[str, bytes]:
    join = _joining(root, name)
    return {file: (root / join.folder / file).read_bytes() for file in join.state().files}


def _require_exact(root: Path, name: str, labels: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    import pandas

    told = pandas.DataFrame(dict(zip(("number", "value", "time"), labels, strict=True)))
    last = told.sort_values("time", kind="stable").drop_duplicates("number", keep="last").set_index("number")["value"]
    join = _joining(root, name)
    found = pa.concat_tables(
        pq.read_table(root / join.folder / file, columns=["served.event_id", "served.label"])
        for file in join.state().files
    )
    numbers = found["served.event_id"].to_pandas().str.removeprefix("event-").astype(int)
    ours = pandas.Series(found["served.label"].to_numpy(), index=numbers.to_numpy())
    if not ours.sort_index().equals(last.sort_index().rename(None)):
        raise SystemExit(f"error: the join differs from the reference: {json.dumps(join.state().counts)}")
