"""The join of predictions with feedback, against a search by hand, in steps, and after being killed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cltrain.data import join
from cltrain.data.event_log import EventLog
from cltrain.data.feedback import FeedbackSource
from cltrain.data.join import FeedbackJoin, JoinSettings, JoinState
from cltrain.data.served import feature_table, unified
from cltrain.errors import ConfigError, DataError
from cltrain.storage import Storage

START = datetime(2024, 1, 1, tzinfo=UTC)
DAY_US = 86_400_000_000
STAMP = pa.timestamp("us", tz="UTC")
TEXT, NUMBER = pa.string(), pa.float64()
ASKED = pa.schema(
    {"request_id": TEXT, "event_id": TEXT, "event_time": STAMP, "time": STAMP, "model": TEXT, "version": TEXT}
    | {"epoch": pa.int64(), "prediction": NUMBER, "features": TEXT, "arm": TEXT}
)
TOLD = pa.schema(
    {"request_id": TEXT, "event_id": TEXT, "type": TEXT, "label": TEXT, "label_value": NUMBER}
    | {"label_time": STAMP, "received_at": STAMP}
)


def at(hours: float) -> datetime:
    return START + timedelta(hours=hours)


def asked(number: int, hours: float, **more: Any) -> dict[str, Any]:
    features = {"x": number / 2, "shop": f"s{number % 3}", "day": "2024-01-01"}
    row = {"request_id": f"r{number}", "event_id": f"e{number}", "event_time": at(hours), "time": at(hours)}
    rest = {"model": "m", "version": "1.0", "epoch": 1, "prediction": 0.5, "arm": "champion"}
    return row | rest | {"features": json.dumps(features)} | more


def told(value: float, hours: float, *, request: str | None = None, event: str | None = None, **more: Any) -> Any:
    row = {"request_id": request, "event_id": event, "type": "system", "label": f"{value:g}", "label_value": value}
    return row | {"label_time": at(hours), "received_at": at(hours)} | more


def write(root: Path, name: str, *batches: list[dict[str, Any]], end: bool = True) -> None:
    """A segment with these batches, in place."""
    schema = ASKED if name.startswith("predictions") else TOLD
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(root / name), "wb") as sink:
        writer = pa.ipc.new_stream(sink, schema)
        for batch in batches:
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema))
        if end:
            writer.close()


def joining(root: Path, **settings: Any) -> FeedbackJoin:
    return FeedbackJoin(Storage(root), "joined/a", JoinSettings(**{"horizon_us": 7 * DAY_US, **settings}))


def rows_of(found: FeedbackJoin, state: JoinState | None = None) -> list[dict[str, Any]]:
    files = (state or found.state()).files
    return [row for name in files for row in pq.read_table(found.storage.path(f"joined/a/{name}")).to_pylist()]


def labels_of(found: FeedbackJoin) -> dict[str, float]:
    return {row["served.request_id"]: row["served.label"] for row in rows_of(found)}


def made(seed: int, rows: int, hours: float = 100) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Answers over some hours, and labels after 0 to 72 hours, out of order, a fifth of them never; some by request and
    some by event, some twice with another value."""
    rng = np.random.default_rng(seed)
    answers = [asked(i, hours * i / rows, event_id=f"e{i // 2}" if i % 7 == 0 else f"e{i}") for i in range(rows)]
    labels = []
    for i in range(rows):
        if rng.random() < 0.8:
            for again in range(1 + (rng.random() < 0.2)):
                by = {"request": f"r{i}"} if rng.random() < 0.5 else {"event": f"e{i}"}
                labels.append(told(float(rng.integers(2)), hours * i / rows + rng.uniform(0, 72) + again, **by))
    labels += [told(1.0, 5.0, request="of nobody")]
    order = rng.permutation(len(labels))
    return answers, [labels[i] for i in order]


def by_hand(answers: list[dict[str, Any]], labels: list[dict[str, Any]]) -> dict[str, float]:
    found = {}
    for row in answers:
        own = [
            t
            for t in labels
            if t["request_id"] == row["request_id"] or (t["event_id"] and t["event_id"] == row["event_id"])
        ]
        if own:
            best = max(own, key=lambda t: (t["label_time"], t["received_at"]))
            found[row["request_id"]] = best["label_value"]
    return found


@pytest.mark.parametrize("seed", range(3))
def test_it_equals_a_search_by_hand_in_small_blocks_and_groups(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, size in (("BLOCK_ROWS", 90), ("GROUP_ROWS", 70), ("PIECE_ROWS", 40)):
        monkeypatch.setattr(join, name, size)
    answers, labels = made(seed, 400)
    for i in range(0, 400, 50):
        write(tmp_path, f"predictions/{i:04d}.arrow", answers[i : i + 20], answers[i + 20 : i + 50])
    for i in range(0, len(labels), 60):
        write(tmp_path, f"feedback/{i:04d}.arrow", labels[i : i + 60])
    found = joining(tmp_path)
    counts = found.step().counts
    expected = by_hand(answers, labels)
    assert labels_of(found) == expected
    assert (counts["labelled"], counts["pending"], counts["labels"]) == (
        len(expected),
        400 - len(expected),
        len(labels),
    )
    assert 0 < counts["duplicates"] < len(labels) / 3
    files = found.step().files
    assert len(files) > 3
    assert found.step().files == files, "nothing new, nothing written"
    row = rows_of(found)[0]
    number = int(row["served.request_id"][1:])
    assert (row["x"], row["shop"], row["day"]) == (number / 2, f"s{number % 3}", "2024-01-01")
    assert (row["served.version"], row["served.arm"], row["served.state"]) == ("1.0", "champion", "labelled")


def test_labels_that_come_before_after_and_in_parts(tmp_path: Path) -> None:
    found = joining(tmp_path)
    write(tmp_path, "feedback/a.arrow", [told(1, 0, event="e3")], end=False)
    assert found.step().files == []
    write(tmp_path, "predictions/a.arrow", [asked(i, i) for i in range(4)], end=False)
    assert found.step().counts["pending"] == 3
    assert labels_of(found) == {"r3": 1.0}
    write(tmp_path, "predictions/a.arrow", [asked(i, i) for i in range(4)], [asked(4, 4)])
    write(tmp_path, "feedback/a.arrow", [told(1, 0, event="e3")], [told(0, 5, event="e0"), told(1, 6, request="r4")])
    state = found.step()
    assert labels_of(found) == {"r3": 1.0, "r0": 0.0, "r4": 1.0}
    assert state.counts | {"pending": 2, "labelled": 3, "predictions": 5, "labels": 3} == state.counts


def test_silence_is_no_negative_while_the_label_stream_stands_still(tmp_path: Path) -> None:
    write(tmp_path, "predictions/a.arrow", [asked(i, i) for i in range(10)] + [asked(11, 24.0 * 30)])
    write(tmp_path, "feedback/a.arrow", [told(1, 2, event="e1")])
    plain, negative = joining(tmp_path, horizon_us=DAY_US), joining(tmp_path, horizon_us=DAY_US, negatives=True)
    negative.folder = "joined/b"
    assert [one.step().counts.get("pending") for one in (plain, negative)] == [10, 10]
    write(tmp_path, "feedback/b.arrow", [told(1, 24 + 4.5, event="e9")])
    assert plain.step().counts | {"labelled": 2, "expired": 4, "pending": 5} == plain.state().counts
    state = negative.step()
    assert state.counts | {"labelled": 2, "negative": 4, "pending": 5} == state.counts
    rows = [r for name in state.files for r in pq.read_table(tmp_path / "joined/b" / name).to_pylist()]
    silent = {r["served.request_id"]: r for r in rows if r["served.state"] == "negative"}
    assert set(silent) == {"r0", "r2", "r3", "r4"}
    assert {r["served.label"] for r in silent.values()} == {0.0}
    assert silent["r2"]["served.label_time"] == at(2 + 24)


@pytest.mark.parametrize("stop", range(6))
def test_killed_at_any_write_it_gives_the_same_bytes(
    stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(join, "PIECE_ROWS", 30)
    answers, labels = made(3, 200)

    def play(root: Path, kill_at: int | None) -> dict[str, bytes]:
        writes = 0
        real: Callable[..., Any] = Storage.writing

        def writing(self: Storage, name: str) -> Any:
            nonlocal writes
            writes += 1
            if writes == kill_at:
                raise KeyboardInterrupt
            return real(self, name)

        for half in (0, 1):
            write(root, f"predictions/{half}.arrow", answers[100 * half : 100 * (half + 1)])
            write(root, f"feedback/{half}.arrow", labels[half::2])
            with monkeypatch.context() as patch:
                patch.setattr(Storage, "writing", writing)
                try:
                    joining(root).step()
                except KeyboardInterrupt:
                    joining(root).step()
        folder = root / "joined/a"
        return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if not p.name.startswith(".")}

    assert play(tmp_path / "killed", 1 + 2 * stop) == play(tmp_path / "whole", None)


def test_what_is_no_label_of_the_task_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path, "predictions/a.arrow", [asked(i, i) for i in range(3)])
    write(
        tmp_path,
        "feedback/a.arrow",
        [told(7, 9, event="e0"), told(1, 5, event="e0"), told(1, 5, event="e1", type="implicit")],
        [told(0, 5, event="e2", label="cat", label_value=None)],
    )
    found = joining(tmp_path, types=("system", "human"))
    found.step()
    assert labels_of(found) == {"r0": 1.0}
    texts = joining(tmp_path, numeric=False, binary=False)
    shutil.rmtree(tmp_path / "joined")
    texts.step()
    assert labels_of(texts) == {"r0": "7", "r1": "1", "r2": "cat"}


def test_two_models_share_a_log(tmp_path: Path) -> None:
    write(tmp_path, "predictions/a.arrow", [asked(0, 0), asked(1, 0, model="other")])
    write(tmp_path, "feedback/a.arrow", [told(1, 1, event="e0"), told(1, 1, event="e1")])
    with pytest.raises(ConfigError, match="m, other"):
        joining(tmp_path).step()
    found = joining(tmp_path, model="other")
    assert found.step().counts["pending"] == 0
    assert labels_of(found) == {"r1": 1.0}


def test_a_deleted_segment_costs_its_pending_rows(tmp_path: Path) -> None:
    write(tmp_path, "predictions/a.arrow", [asked(i, 0) for i in range(5)])
    write(tmp_path, "feedback/a.arrow", [told(1, 1, event="e0")])
    found = joining(tmp_path)
    found.step()
    (tmp_path / "predictions/a.arrow").unlink()
    write(tmp_path, "feedback/b.arrow", [told(1, 1, event="e1")])
    state = found.step()
    assert state.counts | {"lost": 4, "pending": 0, "labelled": 1} == state.counts


def test_features_of_any_kind() -> None:
    texts = pa.chunked_array([['{"a": 1, "b": "x", "c": [1, 2]}', '{"a": "y", "d": true}', '{"d": null}']])
    found = {name: column.to_pylist() for name, column in feature_table(texts).items()}
    assert found == {"a": ["1", "y", None], "b": ["x", None, None], "c": [[1, 2], None, None], "d": [None, True, None]}
    assert feature_table(pa.chunked_array([["{}", "{}"]])) == {}
    mixed = unified([pa.table({"a": [1, 2]}), pa.table({"a": ["z"]}), pa.table({"a": pa.nulls(1)})])
    assert mixed["a"].to_pylist() == ["1", "2", "z", None]
    assert unified([pa.table({"a": [1]}), pa.table({"a": [1.5]})])["a"].to_pylist() == [1.0, 1.5]


def test_an_event_log_of_it(tmp_path: Path) -> None:
    source = FeedbackSource(store=str(tmp_path), every="1ms", feedback_types=["system", "human"])
    assert source.join.settings.types == ("system", "human")
    with pytest.raises(DataError, match="of 0 logged prediction"):
        EventLog(source)
    answers, labels = made(1, 60)
    write(tmp_path, "predictions/a.arrow", answers)
    write(tmp_path, "feedback/a.arrow", labels[::2])
    log = EventLog(source)
    assert {f.name for f in log.schema.features} == {"x", "shop", "day", "_hour", "_weekday"}
    before = log.count(at(0), at(1000))
    write(tmp_path, "feedback/b.arrow", labels[1::2])
    assert log.refresh()
    assert log.count(at(0), at(1000)) == len(by_hand(answers, labels)) > before
    assert log.set_aside == {}


def test_history_comes_first(tmp_path: Path) -> None:
    (tmp_path / "past").mkdir()
    past = pa.table({"when": [at(-i) for i in range(1, 5)], "y": [0, 1, 0, 1], "known": [at(0)] * 4, "x": [1.0] * 4})
    pq.write_table(past.append_column("shop", pa.array(["a"] * 4)), tmp_path / "past/a.parquet")
    settings = {"event_time": "when", "label": "y", "label_time": "known", "event_id": None, "every": "1ms"}
    source = FeedbackSource(store=str(tmp_path / "store"), history=str(tmp_path / "past"), **settings)  # type: ignore[arg-type]
    log = EventLog(source)
    assert {f.name for f in log.schema.features} == {"x", "shop", "_hour", "_weekday"}
    write(tmp_path / "store", "predictions/a.arrow", [asked(i, i) for i in range(3)])
    write(tmp_path / "store", "feedback/a.arrow", [told(1, 5, event="e1")])
    assert log.refresh() == ["00000001-0000.parquet"]
    (rows,) = log.between(at(0), at(100))
    assert rows.select(["_label", "x", "shop"]).to_pylist() == [{"_label": 1.0, "x": 0.5, "shop": "s1"}]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"store": ""}, "data.store"),
        ({"store": "s", "negative_after": "1d", "task": "regression"}, "data.negative_after"),
        ({"store": "s", "event_time": "when"}, "data.history"),
        ({"store": "s", "label_horizon": "soon"}, "duration"),
    ],
)
def test_settings_name_what_is_wrong(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        FeedbackSource(**settings)
