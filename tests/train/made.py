"""Small event tables, and updates on them, for the tests of training."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from cltrain.data.schema import Columns, Feature, Schema
from cltrain.methods import Finetune, Method
from cltrain.models.adapter import LoRA
from cltrain.records import EVENT_ID, EVENT_TIME, LABEL, LABEL_TIME, Cursor
from cltrain.train.checkpoint import Checkpoints
from cltrain.train.engines import Plain
from cltrain.train.settings import Training
from cltrain.train.state import State
from cltrain.train.update import Trained, train_update

NOW = datetime(2024, 1, 1, tzinfo=UTC)
CURSOR = Cursor(until=NOW, files=("day-1.parquet",))
MODEL = {"_target_": "cltrain.models.TabularNet", "name": "made", "hidden": [8], "embedding_dim": 2}
TRAINING = Training(batch_size=16, learning_rate=1e-2)


IMAGE = Feature(name="image", kind="tensor", shape=(4, 4), element="uint8")
WORDS = Feature(name="words", kind="text")


def schema(task: str = "binary", *more: Feature) -> Schema:
    features = (
        Feature(name="x", kind="numeric"),
        Feature(name="z", kind="numeric"),
        Feature(name="shop", kind="categorical"),
        *more,
    )
    return Schema(columns=Columns(event_time="when", label="y", task=task), features=features)


def events(
    rows: int,
    task: str = "binary",
    seed: int = 0,
    shops: Sequence[str] = ("a", "b", "c"),
    classes: Sequence[str] = ("0", "1", "2"),
    turn: float = 0.0,
    scale: float = 1.0,
) -> pa.Table:
    """Rows whose label depends on x, or with `turn` = 1 on z. The ids are those of the seed."""
    generator = np.random.default_rng(seed)
    x, z = generator.normal(size=(2, rows))
    score = (1 - turn) * x + turn * z + 0.3 * generator.normal(size=rows)
    if task == "binary":
        label = pa.array((score > 0).astype(np.float64))
    elif task == "multiclass":
        edges = np.linspace(-1, 1, len(classes) + 1)[1:-1]
        label = pa.array(np.asarray(classes)[np.searchsorted(edges, score)], pa.string())
    else:
        label = pa.array(score * scale)
    when = pa.array([NOW] * rows, pa.timestamp("us", tz="UTC"))
    return pa.table(
        {
            EVENT_ID: [f"{seed}#{i}" for i in range(rows)],
            EVENT_TIME: when,
            LABEL_TIME: when,
            LABEL: label,
            "x": x,
            "z": z,
            "shop": pa.array(generator.choice(list(shops), rows), pa.string()),
        }
    )


def joined_by(table: pa.Table, *more: Feature) -> pa.Table:
    """The same rows with columns of images and words that say nothing."""
    generator = np.random.default_rng(table.num_rows)
    for feature in more:
        values: list[Any] = list(generator.integers(0, 256, (table.num_rows, 16)))
        if feature.kind == "text":
            values = [" ".join(map(str, row[:5])) for row in values]
        table = table.append_column(feature.name, pa.array(values, feature.type))
    return table


def relabelled(table: pa.Table, labels: Any) -> pa.Table:
    place = table.column_names.index(LABEL)
    return table.set_column(place, LABEL, pa.array(labels, table.schema.field(LABEL).type))


def update(
    rows: pa.Table,
    parent: State | None = None,
    method: Method | None = None,
    training: Training = TRAINING,
    task: str = "binary",
    seed: int = 0,
    engine: Plain | None = None,
    model: dict[str, Any] | None = None,
    described: Schema | None = None,
    checkpoints: Checkpoints | None = None,
    adapter: LoRA | None = None,
    transfer: dict[str, str | None] | None = None,
) -> Trained:
    torch.set_num_threads(1)
    return train_update(
        rows,
        parent=parent,
        schema=described or schema(task),
        model=model or MODEL,
        method=method or Finetune(),
        training=training,
        cursor=CURSOR,
        seed=seed,
        engine=engine or Plain(),
        checkpoints=checkpoints,
        adapter=adapter,
        transfer=transfer,
    )


def tensors(state: State) -> dict[str, torch.Tensor]:
    """Every tensor of a state by one flat name."""
    found = {f"weights/{n}": v for n, v in state.weights.items()} | {
        f"optimizer/{n}": v for n, v in state.optimizer.items()
    }
    for slot, named in state.method.tensors.items():
        found |= {f"{slot}/{n}": v for n, v in named.items()}
    return found


def assert_same(a: State, b: State) -> None:
    """Bit for bit, memory included."""
    ours, theirs = tensors(a), tensors(b)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name
    if a.method.memory is None or b.method.memory is None:
        assert a.method.memory_rows == b.method.memory_rows == 0
    else:
        assert a.method.memory.equals(b.method.memory)
    assert (a.encoder, a.steps, a.updates) == (b.encoder, b.steps, b.updates)
