"""The source of what was served: columns and names, without a server."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cltrain.data.event_log import EventLog
from cltrain.data.feedback import FeedbackSource, NothingJoinedError
from cltrain.data.join import FEEDBACK, PREDICTIONS
from cltrain.data.schema import Columns, Feature, Schema
from cltrain.errors import ConfigError, DataError

START = datetime(2024, 3, 1, tzinfo=UTC)
LEARNED = Schema(
    columns=Columns(event_time="when", label="y", text_buckets=64, max_tokens=5, max_categories=9),
    features=(
        Feature(name="number", kind="categorical"),
        Feature(name="words", kind="text"),
        Feature(name="absent", kind="numeric"),
        Feature(name="x", kind="numeric"),
    ),
)


def write_logs(root: Path, rows: int = 6) -> None:
    """Answers and their labels, as serving leaves them."""
    ids = [f"q{i}" for i in range(rows)]
    times = pa.array([START + timedelta(minutes=i) for i in range(rows)], pa.timestamp("us", "UTC"))
    features = [json.dumps({"number": i % 3, "words": f"a flight {i}", "x": i / 2}) for i in range(rows)]
    shared = {"request_id": ids, "event_id": [f"e{i}" for i in range(rows)]}
    answers = pa.table(shared | {"event_time": times, "time": times, "model": ["m"] * rows, "features": features})
    labels = pa.table(
        shared | {"type": ["system"] * rows, "label": ["1", "0"] * (rows // 2), "label_value": [1.0, 0.0] * (rows // 2)}
    )
    labels = labels.append_column("label_time", times).append_column("received_at", times)
    for folder, table in ((PREDICTIONS, answers), (FEEDBACK, labels)):
        (root / folder).mkdir(parents=True)
        with pa.ipc.new_stream(str(root / folder / "a.arrow"), table.schema) as writer:
            writer.write_table(table)


def test_features_are_those_that_a_version_has_learned(tmp_path: Path) -> None:
    write_logs(tmp_path)
    plain = EventLog(FeedbackSource(store=str(tmp_path)))
    assert {f.name: f.kind for f in plain.schema.features} == {
        **{"number": "numeric", "words": "categorical", "x": "numeric"},
        **{"_hour": "numeric", "_weekday": "categorical"},
    }
    log = EventLog(FeedbackSource(store=str(tmp_path)).learned_by(LEARNED))
    assert {f.name: f.kind for f in log.schema.features} == {f.name: f.kind for f in LEARNED.features}
    of = log.schema.columns
    assert (of.text_buckets, of.max_tokens, of.max_categories) == (64, 5, 9)
    (rows,) = log.between(START, START + timedelta(hours=1))
    assert rows["number"].to_pylist() == ["0", "1", "2", "0", "1", "2"]
    assert rows["absent"].null_count == len(rows) == 6


def test_what_is_said_of_a_column_wins(tmp_path: Path) -> None:
    write_logs(tmp_path)
    source = FeedbackSource(store=str(tmp_path), text=("number",), categorical=("words",)).learned_by(LEARNED)
    kinds = {f.name: f.kind for f in EventLog(source).schema.features}
    assert (kinds["number"], kinds["words"]) == ("text", "categorical")


def test_time_is_a_feature_where_it_was(tmp_path: Path) -> None:
    write_logs(tmp_path)
    timed = Schema(columns=LEARNED.columns, features=(*LEARNED.features, Feature(name="_hour", kind="numeric")))
    source = FeedbackSource(store=str(tmp_path), time_features=False).learned_by(timed)
    assert "_hour" in {f.name for f in EventLog(source).schema.features}


def test_another_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="what was served was made for binary"):
        FeedbackSource(store=str(tmp_path), task="multiclass").learned_by(LEARNED)


def test_without_a_store_both_settings_are_named() -> None:
    with pytest.raises(ConfigError, match=r"data\.store=DIR, or .* store\.root=DIR"):
        FeedbackSource()


def test_files_of_history_keep_their_names(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"event_time": "when", "label": "y", "label_time": None, "event_id": None}
    past = pa.table({"when": [START - timedelta(days=1)], "y": [1], "x": [0.5]})
    (tmp_path / "past").mkdir()
    pq.write_table(past, tmp_path / "past" / "a.parquet")
    source = FeedbackSource(store=str(tmp_path), history=str(tmp_path / "past"), **settings)
    with pytest.raises(NothingJoinedError):
        FeedbackSource(store=str(tmp_path)).files()
    assert source.files() == ["a.parquet"]
    write_logs(tmp_path)
    source = FeedbackSource(store=str(tmp_path), history=str(tmp_path / "past"), **settings)
    assert source.files() == ["a.parquet", "00000001-0000.parquet"]
    assert source.locate("a.parquet")[1].split("/")[-2] == "past"
    pq.write_table(past, tmp_path / "past" / "00000001-0000.parquet")
    with pytest.raises(DataError, match="is what a file of the join is called: rename it"):
        source.files()
