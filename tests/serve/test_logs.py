"""Segments, what a crash leaves of them, and the join, without a server."""

import math
import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cltrain.errors import ConfigError, StoreError
from cltrain.storage import Storage
from serve.logs import feedback, prediction_log
from serve.logs.feedback import Feedback, FeedbackLog, join_feedback, read_feedback
from serve.logs.prediction_log import Prediction, PredictionLog, read_predictions
from serve.logs.segments import _Segment, new_id
from serve.settings import LogSettings, ServerSettings

NOW = datetime(2024, 1, 1, tzinfo=UTC)


def prediction(number: int, request_id: str | None = None) -> Prediction:
    features = {"x": number}
    return Prediction(request_id or f"r{number}", f"e{number}", NOW, NOW, "m", "1.0", 1, 0.5, "1", features, 10)


def label(event_id: str | None, value: int, request_id: str | None = None, after_s: float = 0.0) -> Feedback:
    return Feedback(request_id, event_id, "system", str(value), float(value), NOW + timedelta(seconds=after_s), NOW)


def segments(storage: Storage, folder: str) -> list[str]:
    return [name for name in storage.names(folder) if name.endswith(".arrow")]


def test_ids_are_uuid7_and_sort_by_time() -> None:
    first = new_id()
    time.sleep(0.002)
    assert first < new_id()
    assert (len(first), first[12]) == (32, "7")
    assert first[16] in "89ab"


@pytest.mark.parametrize(
    ("setting", "value"),
    [("rate", 1.1), ("rate", -0.1), ("flush_s", 0.0), ("capacity_rows", 0), ("rotate_rows", 0), ("rotate_s", -1.0)],
)
def test_log_settings_name_what_is_wrong(setting: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"serve.log.{setting}"):
        LogSettings(**{setting: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(("setting", "value"), [("poll_s", 0.0), ("max_batch_rows", 0)])
def test_server_settings_name_what_is_wrong(setting: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"serve.{setting}"):
        ServerSettings(store={}, model="m", **{setting: value})  # type: ignore[arg-type]


def test_a_tenth_of_ten_thousand_requests_is_logged(tmp_path: Path) -> None:
    log = PredictionLog(Storage(tmp_path), "r", LogSettings(rate=0.1))
    for number in range(10_000):
        log.log([prediction(number, new_id())])
    log.close()
    found = read_predictions(Storage(tmp_path))
    assert abs(found.num_rows - 1000) < 3 * math.sqrt(10_000 * 0.1 * 0.9)
    assert set(found["version"].to_pylist()) == {"1.0"}
    assert set(found["weight"].to_pylist()) == {10.0}


def test_rate_zero_logs_nothing_and_makes_no_file(tmp_path: Path) -> None:
    log = PredictionLog(Storage(tmp_path), "r", LogSettings(rate=0.0))
    log.log([prediction(1)])
    log.close()
    assert log.counts() == {"written": 0, "shed": 0, "lost": 0, "error": None}
    assert segments(Storage(tmp_path), "") == []


def test_what_does_not_fit_is_shed_and_counted(tmp_path: Path) -> None:
    log = PredictionLog(Storage(tmp_path), "r", LogSettings(capacity_rows=10, flush_s=60.0))
    for number in range(25):
        log.log([prediction(number)])
    log.close()
    log.log([prediction(26)])
    assert (log.written, log.shed) == (10, 16)
    assert read_predictions(Storage(tmp_path))["event_id"].to_pylist() == [f"e{i}" for i in range(10)]


def test_segments_rotate_by_rows_and_by_age(tmp_path: Path) -> None:
    by_rows, by_age = Storage(tmp_path / "rows"), Storage(tmp_path / "age")
    for storage, settings in (
        (by_rows, LogSettings(rotate_rows=2, flush_s=0.01)),
        (by_age, LogSettings(rotate_s=0.01, flush_s=0.01)),
    ):
        log = PredictionLog(storage, "r", settings)
        for number in range(6):
            log.append([prediction(number)]).result(5)
            time.sleep(0.02)
        log.close()
        log.close()
        assert read_predictions(storage)["event_id"].to_pylist() == [f"e{i}" for i in range(6)]
    assert segments(by_rows, "predictions") == [f"predictions/r-{n:06d}.arrow" for n in (1, 2, 3)]
    assert len(segments(by_age, "predictions")) == 6


def test_a_tail_cut_anywhere_costs_its_batch_only(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    log = PredictionLog(storage, "r", LogSettings())
    ends = []
    for number in range(3):
        log.append([prediction(number)]).result(5)
        ends.append(Path(storage.path("predictions/r-000001.arrow")).stat().st_size)
    log.close()
    path = Path(storage.path("predictions/r-000001.arrow"))
    whole = path.read_bytes()
    for length in range(0, len(whole) + 1, 7):
        path.write_bytes(whole[:length])
        assert read_predictions(storage).num_rows == sum(end <= length for end in ends), length


def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    code = (
        "import sys, datetime as d; from cltrain.storage import Storage;"
        "from serve.logs.feedback import Feedback, FeedbackLog;"
        "from serve.settings import LogSettings; log = FeedbackLog(Storage(sys.argv[1]), 'r', LogSettings());"
        "now = d.datetime.now(d.UTC); n = 0\n"
        "while True:\n"
        "    log.append([Feedback(None, f'e{n}', 'system', '1', 1.0, now, now)]).result(); n += 1; print(n, flush=True)"
    )
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, cwd=root, text=True
    ) as writer:
        assert writer.stdout is not None
        for _ in range(20):
            acknowledged = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        rest = writer.stdout.read().split()
    acknowledged = int(rest[-1]) if rest else acknowledged
    found = read_feedback(Storage(tmp_path))["event_id"].to_pylist()
    assert found[:acknowledged] == [f"e{i}" for i in range(acknowledged)]
    assert len(found) <= acknowledged + 1


def test_a_write_that_fails_is_counted_and_the_next_one_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = FeedbackLog(Storage(tmp_path), "r", LogSettings())
    log.append([label("a", 1)]).result(5)
    with monkeypatch.context() as patch:
        patch.setattr(_Segment, "write", _no_space)
        with pytest.raises(StoreError, match="No space left"):
            log.append([label("b", 1)]).result(5)
    assert log.append([label("b", 1), label("a", 1)]).result(5) == 1  # b was not taken for a duplicate
    log.close()
    assert (log.written, log.lost, log.duplicates, log.error) == (
        2,
        1,
        1,
        "OSError: [Errno 28] No space left on device",
    )
    assert read_feedback(Storage(tmp_path))["event_id"].to_pylist() == ["a", "b"]
    with pytest.raises(StoreError, match="closed"):
        log.append([label("c", 1)]).result(5)


def _no_space(*_: Any) -> None:
    raise OSError(28, os.strerror(28))


def test_duplicates_are_known_after_a_restart(tmp_path: Path) -> None:
    for replica, stored in (("r1", [1, 1]), ("r2", [0, 0])):
        log = FeedbackLog(Storage(tmp_path), replica, LogSettings())
        assert [log.append([row]).result(5) for row in (label("a", 1), label(None, 0, "r"))] == stored
        log.close()
    assert read_feedback(Storage(tmp_path)).num_rows == 2


class Remote(Storage):
    """A local folder that behaves as an object store does: objects appear whole."""

    is_local = False  # type: ignore[assignment]


def test_a_remote_store_gets_segments_when_they_end_even_after_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    (tmp_path / "root/predictions").mkdir(parents=True)
    remote = Remote(tmp_path / "root")
    log = PredictionLog(remote, "r1", LogSettings(rotate_rows=2))
    log.append([prediction(0), prediction(1)]).result(5)
    log.append([prediction(2)]).result(5)
    (spooled,) = (tmp_path / "tmp/cltrain-spool").rglob("r1-000002.arrow")
    shutil.copy(spooled, spooled.with_name("dead-000001.arrow"))  # as a killed process leaves it: nobody holds its lock
    other = PredictionLog(remote, "r2", LogSettings(flush_s=0.01))
    other.append([prediction(3)]).result(5)
    other.close()
    assert segments(remote, "predictions") == [
        f"predictions/{n}.arrow" for n in ("dead-000001", "r1-000001", "r2-000001")
    ]
    log.close()
    assert sorted(read_predictions(remote)["event_id"].to_pylist()) == ["e0", "e1", "e2", "e2", "e3"]
    assert list((tmp_path / "tmp/cltrain-spool").rglob("*.arrow")) == []


def test_a_remote_store_that_is_down_gets_its_segments_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    remote = Remote(tmp_path / "root")
    log = PredictionLog(remote, "r", LogSettings(rotate_rows=1, flush_s=0.01))
    log.append([prediction(0)]).result(5)
    while log.error is None:
        time.sleep(0.01)
    assert "cannot write" in log.error
    (tmp_path / "root/predictions").mkdir(parents=True)
    log.close()
    assert read_predictions(remote).num_rows == 1


def table_of(kind: Any, rows: list[Any]) -> pa.Table:
    columns = list(zip(*rows, strict=True)) or [()] * len(kind.SCHEMA)
    return pa.table([pa.array(c, f.type) for c, f in zip(columns, kind.SCHEMA, strict=True)], schema=kind.SCHEMA)


def test_the_last_label_wins_and_both_ids_find_it() -> None:
    asked = table_of(prediction_log, [prediction(i)._replace(features="{}") for i in range(4)])  # type: ignore[arg-type]
    told = table_of(
        feedback,
        [
            label("e0", 1, after_s=5),
            label("e0", 0),
            label(None, 7, "r1"),
            label("e1", 8, after_s=-1),
            label("stranger", 3),
        ],
    )
    joined = join_feedback(asked, told)
    assert joined["label_value"].to_pylist() == [1.0, 7.0, None, None]
    assert joined["label"].to_pylist() == ["1", "7", None, None]
    assert joined["feedback_type"].to_pylist() == ["system", "system", None, None]
    assert joined["event_id"].to_pylist() == ["e0", "e1", "e2", "e3"]
    assert join_feedback(asked.slice(0, 0), told).num_rows == 0
    assert join_feedback(asked, told.slice(0, 0))["label"].null_count == 4


IDS = st.one_of(st.none(), st.integers(0, 5).map(str))


@given(st.lists(st.tuples(IDS, IDS), max_size=8), st.lists(st.tuples(IDS, IDS, st.integers(0, 3)), max_size=12))
def test_the_join_equals_a_search_by_hand(asked: list[Any], told: list[Any]) -> None:
    predictions = table_of(
        prediction_log,
        [prediction(0)._replace(request_id=r and f"r{r}", event_id=e and f"e{e}", features="{}") for r, e in asked],  # type: ignore[arg-type,type-var]
    )
    rows = [
        label(e and f"e{e}", i, r and f"r{r}", after_s=at)._replace(received_at=NOW + timedelta(seconds=i))
        for i, (r, e, at) in enumerate(told)
    ]
    found = join_feedback(predictions, table_of(feedback, rows))["label_value"].to_pylist()
    for (request, event), value in zip(asked, found, strict=True):
        own = [
            row
            for row in rows
            if (request and row.request_id == f"r{request}") or (event and row.event_id == f"e{event}")
        ]
        last = max(own, key=lambda row: (row.label_time, row.received_at), default=None)
        assert value == (last.label_value if last else None)


def test_many_predictions_are_joined_in_seconds() -> None:
    rng = np.random.default_rng(0)
    n = 200_000
    ids = np.char.add("e", np.arange(n).astype(str))
    like = table_of(prediction_log, [prediction(0)._replace(features="{}")])  # type: ignore[arg-type]
    asked = pa.table(
        {name: pa.array(ids) if name == "event_id" else pa.nulls(n, like[name].type) for name in like.column_names}
    )
    order = rng.permutation(n)[: n // 2]
    told = pa.table(
        {
            f.name: pa.array(ids[order])
            if f.name == "event_id"
            else pa.array(order.astype(float))
            if f.name == "label_value"
            else pa.nulls(n // 2, f.type)
            for f in feedback.SCHEMA
        }
    )
    started = time.process_time()
    joined = join_feedback(asked, told)
    assert time.process_time() - started < 5
    values = np.asarray(joined["label_value"].to_numpy(zero_copy_only=False))
    assert np.array_equal(np.flatnonzero(~np.isnan(values)), np.sort(order))
    assert np.array_equal(values[order], order.astype(float))
