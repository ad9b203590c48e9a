"""Images and texts on disk become a version that answers requests about them."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cltrain.clock import from_us
from cltrain.data.event_log import EventLog
from cltrain.data.parquet import ParquetSource
from cltrain.data.snapshot import Snapshots, SnapshotSettings
from cltrain.memory.reservoir import Reservoir
from cltrain.methods import Finetune, Method, Replay
from cltrain.storage import Storage
from cltrain.train.predictor import Predictor
from cltrain.train.settings import Training
from cltrain.train.state import load_state, save_state
from tests.train.made import update

ROWS = 600
TRAINING = Training(batch_size=32, learning_rate=1e-2, epochs=4)
CNN = {"_target_": "cltrain.models.SmallCNN", "channels": [4, 8]}
TEXT = {"_target_": "cltrain.models.TextTransformer", "dim": 16, "heads": 2, "layers": 1}


def write(folder: Path) -> None:
    """An event a minute. `side` says which half of `image` is bright and which of two words is in `words`; the second
    half of the events has a third class, for which all of the image is bright and a third word is there."""
    generator = np.random.default_rng(0)
    side = generator.integers(0, np.where(np.arange(ROWS) < ROWS // 2, 2, 3))
    pixels = generator.integers(0, 100, (ROWS, 8, 8))
    pixels[:, :, :4] += 120 * (side != 1)[:, None, None]
    pixels[:, :, 4:] += 120 * (side != 0)[:, None, None]
    filler = generator.choice(["the", "cat", "sat", "down"], (ROWS, 5))
    filler[np.arange(ROWS), generator.integers(0, 5, ROWS)] = np.array(["Left", "RIGHT", "both"])[side]
    table = pa.table(
        {
            "at": pa.array(np.arange(ROWS) * 60_000_000, pa.timestamp("us")),
            "side": pa.array(np.array(["l", "r", "b"])[side]),
            "image": pa.FixedShapeTensorArray.from_numpy_ndarray(pixels.astype(np.uint8)),
            "words": [" ".join(row) + "." for row in filler],
        }
    )
    folder.mkdir()
    pq.write_table(table.slice(0, ROWS // 2), folder / "1.parquet")
    pq.write_table(table.slice(ROWS // 2), folder / "2.parquet")


@pytest.mark.parametrize(
    "method", [Finetune(), Replay(memory=Reservoir(capacity_rows=100))], ids=["finetune", "replay"]
)
@pytest.mark.parametrize(
    ("model", "columns"),
    [(CNN, {"exclude": ("words",)}), (TEXT, {"exclude": ("image",), "text": ("words",), "max_tokens": 8})],
    ids=["cnn", "text"],
)
def test_from_files_to_answers(tmp_path: Path, model: dict[str, Any], columns: dict[str, Any], method: Method) -> None:
    write(tmp_path / "events")
    source = ParquetSource(
        path=str(tmp_path / "events"),
        event_time="at",
        label="side",
        task="multiclass",
        time_features=False,
        text_buckets=500,
        **{"max_tokens": 8, **columns},
    )
    log, storage = EventLog(source), Storage(tmp_path / "store")
    snapshots = Snapshots(log, storage, SnapshotSettings())
    middle, end = from_us(ROWS // 2 * 60_000_000), log.end() + timedelta(days=1)
    parts = [
        snapshots.table(snapshots.between("train", "train", end, None, middle)),
        snapshots.table(snapshots.between("train", "train", end, middle)),
    ]
    held_out = snapshots.table(snapshots.between("holdout", "holdout", end, middle))
    state = None
    for number, rows in enumerate(parts):
        trained = update(rows, state, method, TRAINING, "multiclass", seed=number, model=model, described=log.schema)
        save_state(trained.state, storage, f"states/{number}")
        state = load_state(storage, f"states/{number}")
    assert state is not None
    assert sorted(state.encoder.classes) == ["b", "l", "r"]
    scores = Predictor.of(state).score(held_out)
    assert float((scores.predictions == scores.target).mean()) > 0.9
    (name,) = state.encoder.names
    asked = held_out.column(name).slice(0, 5).to_pylist()
    answers = Predictor.of(state).answer([{name: value} for value in asked] + [{}])
    expected = [state.encoder.classes[int(i)] for i in scores.predictions[:5]]
    assert [answer["label"] for answer in answers[:5]] == expected
