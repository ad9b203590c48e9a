"""Streams of tasks made of MNIST, each task an event table to train on and one to test on.

permuted: every task shuffles the pixels in its own way. rotated: it turns all digits by its own angle below 180
degrees. split: it has two digits of the ten. Of the split ones, class asks which of all digits it is; domain, which of
the two of its task; task, the same, and the model is told the task.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import torch
import torch.nn.functional as F

from benchmarks.mnist import Digits
from cltrain.data.schema import Columns, Schema, infer_schema
from cltrain.records import EVENT_ID, EVENT_TIME, LABEL, LABEL_TIME
from cltrain.seeding import numpy_generator

START = datetime(2024, 1, 1, tzinfo=UTC)
Task = tuple[pa.Table, pa.Table]


def tasks(kind: str, count: int, train: Digits, test: Digits, seed: int, padded: bool = False) -> Iterator[Task]:
    """`padded` makes images 32 x 32 before they are permuted."""
    chance = numpy_generator(seed, kind)
    size = 1024 if padded else 784
    for number in range(count):
        if kind == "permuted":
            order = chance.permutation(size)
            yield _pair(number, *(_permuted(part, order, padded) for part in (train, test)))
        elif kind == "rotated":
            angle = chance.uniform(0, 180)
            yield _pair(number, *(Digits(rotated(part.pixels, angle), part.labels) for part in (train, test)))
        else:
            yield _pair(number, *(_of_task(part, number, kind) for part in (train, test)), told=kind == "split-task")


def schema_of(table: pa.Table) -> Schema:
    """What the tables of a stream have in common."""
    columns = Columns(event_time="time", label="digit", task="multiclass", time_features=False)
    roles = [("time", pa.timestamp("us", tz="UTC")), ("digit", pa.string())]
    return infer_schema(pa.schema([*roles, *(f for f in table.schema if not f.name.startswith("_"))]), columns)


def rotated(pixels: np.ndarray, degrees: float) -> np.ndarray:
    """Images (N, 784) turned about their centre, each pixel the nearest one of the original, 0 outside."""
    turn = np.deg2rad(degrees)
    matrix = torch.tensor([[np.cos(turn), -np.sin(turn), 0.0], [np.sin(turn), np.cos(turn), 0.0]], dtype=torch.float32)
    images = torch.from_numpy(pixels.astype(np.float32)).reshape(1, -1, 28, 28)
    grid = F.affine_grid(matrix[None], [1, 1, 28, 28], align_corners=False)
    return F.grid_sample(images, grid, mode="nearest", align_corners=False).numpy().astype(np.uint8).reshape(-1, 784)


def _permuted(digits: Digits, order: np.ndarray, padded: bool) -> Digits:
    pixels = digits.pixels
    if padded:
        pixels = np.pad(pixels.reshape(-1, 28, 28), ((0, 0), (2, 2), (2, 2))).reshape(-1, 1024)
    return Digits(np.ascontiguousarray(pixels[:, order]), digits.labels)


def _of_task(digits: Digits, number: int, kind: str) -> Digits:
    mine = digits.labels // 2 == number
    labels = digits.labels[mine]
    return Digits(digits.pixels[mine], labels % 2 if kind == "split-domain" else labels)


def _pair(number: int, train: Digits, test: Digits, told: bool = False) -> Task:
    return events(train, f"{number}-train", number, told), events(test, f"{number}-test", number, told)


def events(digits: Digits, name: str, number: int, told: bool = False) -> pa.Table:
    """An event table of day `number`, whose ids begin with `name`; with the column `task` where it is `told`."""
    rows = len(digits.labels)
    when = pa.repeat(pa.scalar(START + timedelta(days=number), pa.timestamp("us", tz="UTC")), rows)
    columns = {
        EVENT_ID: pa.array([f"{name}-{row}" for row in range(rows)]),
        EVENT_TIME: when,
        LABEL_TIME: when,
        LABEL: pa.array(digits.labels).cast(pa.string()),
        "pixels": pa.FixedSizeListArray.from_arrays(pa.array(digits.pixels.ravel()), digits.pixels.shape[1]),
    }
    if told:
        columns["task"] = pa.FixedSizeListArray.from_arrays(pa.array(np.full(rows, number, np.float32)), 1)
    return pa.table(columns)
