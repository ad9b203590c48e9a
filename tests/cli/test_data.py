"""Rows, impact and export, by command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import Result

from cltrain.cli import data
from cltrain.clock import from_us
from cltrain.data.event_log import EventLog
from cltrain.data.parquet import ParquetSource
from cltrain.data.snapshot import Snapshots, SnapshotSettings
from cltrain.records import Snapshot
from cltrain.registry import Registry
from cltrain.tracking.mlflow import Mirrored

Call = Callable[..., Result]
CallJson = Callable[..., Any]
HOUR = 3_600_000_000


@pytest.fixture
def snapshot(registry: Registry, tmp_path: Path) -> Snapshot:
    """Of two days, one file each."""
    for day in range(2):
        hours = range(24 * day, 24 * day + 24)
        times = pa.array([h * HOUR for h in hours], pa.timestamp("us"))
        Path(tmp_path, "events").mkdir(exist_ok=True)
        table = {
            "id": [f"e{h}" for h in hours],
            "at": times,
            "y": [h % 2 for h in hours],
            "x": [1.0 * h for h in hours],
        }
        pq.write_table(pa.table(table), tmp_path / "events" / f"{day}.parquet")
    source = ParquetSource(path=str(tmp_path / "events"), event_time="at", label="y", event_id="id")
    snapshots = Snapshots(EventLog(source), registry.store.storage, SnapshotSettings(holdout_share=0.3))
    return snapshots.fresh("train", "train", from_us(48 * HOUR), None)


def test_rows_tells_versions_through_whom_and_what_is_held_out(
    registry: Registry, snapshot: Snapshot, add: Callable[..., str], call: Call, call_json: CallJson
) -> None:
    registry.promote(add(snapshot=snapshot), reason="first")
    add("1.0")
    found = [call("rows", f"e{h}") for h in range(12)]
    assert {r.exit_code for r in found} == {0}
    held = [r for r in found if "in no version: held out" in r.output]
    taken = [r for r in found if "ranker:1.0 (champion)  trained on it" in r.output]
    assert len(held) + len(taken) == 12
    assert held
    assert "ranker:1.1  through ranker:1.0" in taken[0].output
    assert "0.parquet  event 1970-01-01" in taken[0].output
    said = call_json("rows", f"e{found.index(taken[0])}")
    assert [(v["version"], v["through"]) for v in said["places"][0]["versions"]] == [
        ("1.0", None),
        ("1.1", "ranker:1.0"),
    ]
    nobody = call("rows", "e99")
    assert (nobody.exit_code, nobody.output.splitlines()[0]) == (1, "not found")
    assert "manifests are gone" in nobody.output, "of 1.1"


def test_impact_of_a_file_and_of_a_snapshot(
    registry: Registry, snapshot: Snapshot, add: Callable[..., str], call: Call, call_json: CallJson
) -> None:
    registry.promote(add(snapshot=snapshot), reason="first")
    add("1.0")
    printed = call("impact", "--file", "1.parquet").output
    assert "ranker:1.0  direct (champion)" in printed
    assert "1 direct, 1 inherited, 1 with an alias" in printed
    said = call_json("impact", "--snapshot", snapshot.digest)
    assert [v["version"] for v in said["inherited"]] == ["1.1"]
    assert "no version was trained on 7.parquet" in call("impact", "--file", "7.parquet").stderr
    assert "exactly one of them" in call("impact").stderr


def test_an_export_is_on_record(
    registry: Registry, add: Callable[..., str], call: Call, call_json: CallJson, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def mirror(uri: str, model: str, versions: list[Any], *, name: str | None) -> Mirrored:
        asked.append((uri, model, [v["version"] for v in versions], name))
        return Mirrored(
            name=name or model, created=("1.0",), changed=(), aliases={"champion": "1.0"}, versions={"1.0": "1"}
        )

    registry.promote(add(), reason="first")
    refused = call("export", "--uri", "http://127.0.0.1:9")
    assert refused.exit_code == 2
    assert "error: cannot export to MLflow at http://127.0.0.1:9" in refused.stderr
    assert "--to must be mlflow" in call("export", "--to", "elsewhere", "--uri", "http://x").stderr
    monkeypatch.setattr(data, "mirror", mirror)
    words = ("export", "--to", "mlflow", "--uri", "http://ann:secret@host", "--name", "theirs", "--by", "ann")
    assert call(*words).output == "ranker: 1 created, 0 changed, aliases: champion → 1.0\n"
    assert call_json(*words)["exported"][0]["versions"] == {"1.0": "1"}
    assert asked == [("http://ann:secret@host", "ranker", ["1.0"], "theirs")] * 2
    entries = [e for e in registry.audit_log() if e["action"] == "export"]
    assert [(e["by"], e["subject"], e["details"]["uri"]) for e in entries] == [
        ("ann", "theirs", "http://ann:…@host")
    ] * 2
