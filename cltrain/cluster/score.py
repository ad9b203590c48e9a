"""The other command: a version and rows in, its answers out. Each worker answers for its share."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Sequence
from itertools import groupby

import numpy as np
import pyarrow as pa
import torch

from cltrain.data.snapshot import read_rows
from cltrain.errors import UpdateError
from cltrain.evaluate.sample import Sample
from cltrain.evaluate.spread import Block, ScoreRequest, blocks_of, share, stride, uniform
from cltrain.records import Json, from_json, to_json
from cltrain.storage import Storage, read_arrow, write_arrow
from cltrain.train.predictor import Predictor

FOLDER = "cache/scores"  # what lies there is read once, and may be deleted at any time
COLUMNS = {"prediction": "predictions", "target": "target", "loss": "losses"}


def score_payload(request: ScoreRequest, root: str, threads: int) -> Json:
    return {
        "do": "score",
        "request": to_json(request),
        "root": root,
        "threads": threads,
        "into": f"{FOLDER}/{uuid.uuid4().hex}",
    }


def score(payload: Json, rank: int, world: int) -> Json:
    """`payload`: request, root (of the blobs), threads, and the folder that answers go into. Scores the share of rank
    `rank` of `world` and writes its answers; returns their place, the task, and which rows they are for. Doing it again
    writes the same file."""
    request = from_json(ScoreRequest, payload["request"])
    storage = Storage(payload["root"])
    torch.set_num_threads(payload["threads"])
    predictor = Predictor.load(storage, request.state)
    first = read_rows(storage, request.windows[0].snapshot)
    mine = share(list(blocks_of(request.windows, stride(predictor, first))), rank, world)
    answers: list[Sample] = []
    for window, blocks in groupby(mine, key=lambda block: block.window):
        rows = next(rows for rows in request.windows if rows.window == window)
        table = uniform(read_rows(storage, rows.snapshot), rows.count)
        if table.num_rows != rows.count:
            raise UpdateError(
                f"{rows.count} rows of snapshot {rows.snapshot[:12]} are to be scored, and it has {table.num_rows}"
            )
        answers += [Sample.of([predictor.score(table.slice(b.start, b.end - b.start))]) for b in blocks]
    name = f"{payload['into']}/{rank}-of-{world}.arrow"
    if mine:
        table = pa.table({c: np.concatenate([getattr(a, field) for a in answers]) for c, field in COLUMNS.items()})
        with storage.writing(name) as path:
            write_arrow(path, table)
    return {"name": name, "task": predictor.task, "blocks": [list(block) for block in mine]}


def gather(storage: Storage, request: ScoreRequest, results: Sequence[Json]) -> dict[int, Sample]:
    """The answers of all ranks by window, in the order of its rows; their files are deleted. Raises `UpdateError` where
    rows were left out."""
    parts: dict[int, list[tuple[Block, Sample]]] = defaultdict(list)
    for result in results:
        if not result["blocks"]:
            continue
        table = read_arrow(storage.local_copy(result["name"]))
        columns = [np.array(table.column(c)) for c in COLUMNS]
        place = 0
        for block in (Block(*block) for block in result["blocks"]):
            end = place + block.end - block.start
            parts[block.window].append((block, Sample(result["task"], *(c[place:end] for c in columns))))
            place = end
        storage.delete(result["name"])
        storage.prune(result["name"].rpartition("/")[0])
    found: dict[int, Sample] = {}
    for rows in request.windows:
        of_window = sorted(parts[rows.window], key=lambda part: part[0].start)
        place = rows.start
        for block, _ in of_window:
            place = block.end if block.start == place else -1
        if place != rows.count:
            raise UpdateError(f"the workers left out rows of window {rows.window}")
        found[rows.window] = Sample.of([answer for _, answer in of_window])
    return found
