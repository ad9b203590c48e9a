"""The main job on small tables, in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cltrain.assemble import open_store, run_by_hand, run_evaluation, run_loop
from cltrain.config import CONF
from cltrain.errors import CltrainError, UpdateError
from cltrain.registry import Registry, RoundLog, VersionRecord
from cltrain.train.state import load_state

Small = Callable[..., dict[str, Any]]


def versions(settings: dict[str, Any]) -> list[VersionRecord]:
    return Registry(open_store(settings), settings["model"]["name"]).versions()


def weights(settings: dict[str, Any]) -> list[tuple[str, str]]:
    return [(v.version, v.weights_digest) for v in versions(settings)]


def test_the_loop_runs_window_after_window(small: Small, tmp_path: Path) -> None:
    settings = small("recalibrate.every=4", "window.bootstrap=2")
    summary = run_loop(settings)
    assert summary["rounds"] == 8
    assert summary["champion"] in summary["versions"]
    assert {"1.0", "1.1", "2.0"} <= set(summary["versions"])
    assert summary["prequential"]["log_loss"] < summary["static"]["log_loss"], "the rule turns, so updates pay"
    assert summary["late_labels"] > 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(9))
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    for v in versions(settings):
        assert (v.parent is None) == (v.kind == "stateless")
        assert (tmp_path / "store" / "snapshots" / f"{v.snapshot_digest}.json").exists()


def test_no_row_is_trained_twice_on_one_line_and_none_is_lost(
    small: Small, tmp_path: Path, event_ids: Callable[..., list[str]]
) -> None:
    settings = small("recalibrate.every=null", "window.bootstrap=2", "gate.floor=10")
    run_loop(settings)
    store = open_store(settings)
    ids: list[str] = []
    for v in versions(settings):
        assert v.kind == "stateless" or v.verdict.accepted
        ids += event_ids(settings, v.challenger.snapshot)
    assert len(ids) == len(set(ids)), "each row once"
    arrived: list[str] = []
    rounds = RoundLog(store, "default").finished()
    for r in rounds:
        arrived += event_ids(settings, r.observation.arrived)
    events = pq.read_table(tmp_path / "events")
    labelled = events.filter(events["clicked"].is_valid())
    known = labelled.filter(
        pa.array(labelled["known"].to_numpy() < np.datetime64(rounds[-1].window.end.replace(tzinfo=None)))
    )
    assert sorted(arrived) == sorted(known.column("id").to_pylist()), "every labelled row came to one round"
    held_out = [i for i in arrived if i not in set(ids)]
    assert 0.07 < len(held_out) / len(arrived) < 0.13


def test_the_same_command_again_changes_nothing_and_says_the_same(small: Small) -> None:
    first = run_loop(small())
    again = run_loop(small())
    assert first == again


def test_two_runs_of_one_seed_give_the_same_bits_and_another_seed_does_not(small: Small, tmp_path: Path) -> None:
    a, b, c = (
        small(f"store.root={tmp_path / name}", *more) for name, more in (("a", ()), ("b", ()), ("c", ("seed=1",)))
    )
    for settings in (a, b, c):
        run_loop(settings)
    assert weights(a) == weights(b)
    assert dict(weights(a))["1.0"] != dict(weights(c))["1.0"]


@pytest.mark.parametrize(
    "stage", ["observe", "decide", "update stateful", "weigh stateful", "judge stateful", "roll_out", "done"]
)
def test_a_crash_before_any_stage_is_made_good_by_the_same_command(
    small: Small, tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = small(f"store.root={tmp_path / 'undisturbed'}", "max_rounds=4")
    run_loop(undisturbed)
    settings = small("max_rounds=4")
    once = RoundLog.once

    def crash(self: RoundLog, index: int, name: str, kind: Any, produce: Any) -> Any:
        def produce_and_die() -> Any:
            produce()  # the work is done, and lost
            raise KeyboardInterrupt

        return once(self, index, name, kind, produce_and_die if (index, name) == (2, stage) else produce)

    monkeypatch.setattr(RoundLog, "once", crash)
    with pytest.raises(KeyboardInterrupt):
        run_loop(settings)
    monkeypatch.setattr(RoundLog, "once", once)
    summary = run_loop(settings)
    assert summary["rounds"] == 3
    assert weights(settings) == weights(undisturbed)
    epochs = [m["epoch"] for m in Registry(open_store(settings), "default").moves() if m["alias"] == "champion"]
    assert epochs == sorted(set(epochs))


def test_a_rejected_window_is_offered_again(small: Small) -> None:
    settings = small(
        "max_rounds=6", "gate.margins={window: 0, past: 0}", "gate.floor=0", "gate.min_rows=1", "evaluate.level=0.0001"
    )
    run_loop(settings)
    rounds = RoundLog(open_store(settings), "default").finished()
    rejected = [r for r in rounds[:-1] if r.status == "rejected"]
    assert rejected, "no challenger can prove itself against a margin of nothing at this level"
    following = rounds[rejected[0].index + 1]
    assert following.observation.fresh.rows > rejected[0].observation.fresh.rows
    assert rejected[0].champion == rounds[rejected[0].index - 1].champion


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_any_task_runs(small: Small, task: str) -> None:
    label = {"binary": "clicked", "multiclass": "kind", "regression": "amount"}[task]
    others = ",".join({"clicked", "kind", "amount"} - {label})
    summary = run_loop(small(f"data.task={task}", f"data.label={label}", f"data.exclude=[{others}]", "max_rounds=4"))
    metric = "rmse" if task == "regression" else "log_loss"
    assert summary["prequential"][metric] < summary["static"][metric] * 1.1
    assert summary["prequential"]["rows"] > 0


@pytest.mark.parametrize("strategy", ["manual", "periodic", "stateful", "triggered"])
def test_every_strategy_runs(small: Small, strategy: str) -> None:
    summary = run_loop(small(f"strategy={strategy}", "max_rounds=5"))
    updates = {"manual": 0, "periodic": 4, "stateful": 4}.get(strategy)
    assert updates is None or len(summary["versions"]) == 1 + updates
    if strategy == "manual":
        assert summary["waited"] == 4
    if strategy == "periodic":
        assert all(v.endswith(".0") for v in summary["versions"])


@pytest.mark.parametrize("method", sorted(p.stem for p in (CONF / "method").glob("*.yaml")))
def test_every_method_runs(small: Small, method: str) -> None:
    assert len(run_loop(small(f"method={method}", "max_rounds=3"))["versions"]) == 3


def test_windows_by_count_run(small: Small) -> None:
    summary = run_loop(small("window=count", "window.rows=500", "window.bootstrap=2", "max_rounds=4"))
    assert summary["rounds"] == 3


def test_an_update_by_hand_continues_from_any_version(small: Small) -> None:
    run_loop(small("max_rounds=3"))
    done = run_by_hand(small("base='1.1'", "reason=new sensor", job="update"), "stateful")
    made = done["versions"][0]
    assert made["parent"] == "1.1"
    assert made["version"] == "1.3"
    again = run_by_hand(small(job="recalibrate"), "stateless")
    assert again["versions"][0]["version"] == "2.0"
    version = next(v for v in versions(small()) if v.version == "1.3")
    assert version.reason.startswith("manual:")
    assert "new sensor" in version.reason
    summary = run_loop(small("max_rounds=4"))
    assert summary["rounds"] == 3, "the series goes on beside what is done by hand"


def test_a_model_iteration_carries_over_what_the_champion_knows(small: Small) -> None:
    run_loop(small("max_rounds=3", "window.bootstrap=2"))
    wider = small("model.hidden=[96,32]", "max_rounds=4", "window.bootstrap=2")
    refused = run_loop(wider)
    assert refused["versions"] == ["1.0", "1.1", "1.2"]
    failed = RoundLog(open_store(wider), "default").finished()[-1]
    assert failed.status == "failed"
    assert "model.hidden was [64, 32] and is [96, 32]" in failed.decision.reason
    with pytest.raises(UpdateError, match=r"model\.hidden was"):
        run_by_hand(small("model.hidden=[96,32]", job="update"), "stateful")
    done = run_by_hand(small("model.hidden=[96,32]", "transfer=surgery", job="recalibrate"), "stateless")
    version = done["versions"][0]
    assert (version["version"], version["kind"], version["parent"]) == ("2.0", "surgery", "1.2")
    record = Registry(open_store(wider), "default").version("2.0")
    assert record.challenger.carried["difference"] < 1e-5
    lineage = Registry(open_store(wider), "default").lineage("2.0")
    assert [v.version for v in lineage] == ["2.0", "1.2", "1.1", "1.0"]


def test_stateful_updates_of_an_adapter_run(small: Small) -> None:
    settings = small("max_rounds=4", "window.bootstrap=2", "adapter=lora", "adapter.rank=2", "recalibrate.every=null")
    assert run_loop(settings)["versions"] == ["1.0", "1.1", "1.2", "1.3"]
    storage = open_store(settings).storage
    assert len(storage.names("bases")) == 1
    assert load_state(storage, Registry(open_store(settings), "default").version("1.3").state).adapter["rank"] == 2


def test_two_versions_are_weighed_by_hand(small: Small) -> None:
    run_loop(small("max_rounds=4"))
    weighed = run_evaluation(small("version=champion", "against='1.0'", job="evaluate"))
    assert weighed["against"] == "1.0"
    assert {c["name"] for c in weighed["card"]["comparisons"]} == {"window", "past"}


def test_a_window_that_breaks_the_contract_is_quarantined_and_the_loop_goes_on(small: Small, tmp_path: Path) -> None:
    settings = small()
    for day in range(35, 42):
        path = tmp_path / "events" / f"day-{day:03d}.parquet"
        table = pq.read_table(path)
        nothing = pa.nulls(table.num_rows, pa.float64())
        pq.write_table(table.set_column(table.column_names.index("x"), "x", nothing), path)
    summary = run_loop(settings)
    assert summary["quarantined_windows"] == [2]
    assert summary["quarantined_rows"] > 300
    assert summary["rounds"] == 6
    quarantined = RoundLog(open_store(settings), "default").finished()[2]
    assert "x: 100% null" in quarantined.decision.reason


def test_an_empty_window_is_an_answer(small: Small, tmp_path: Path) -> None:
    settings = small()
    for day in range(41, 56):
        (tmp_path / "events" / f"day-{day:03d}.parquet").unlink()
    summary = run_loop(settings)
    assert [r.status for r in RoundLog(open_store(settings), "default").finished()][4] == "empty"
    assert summary["rounds"] == 6


def test_a_corrupt_file_is_set_aside_and_named(small: Small, tmp_path: Path) -> None:
    settings = small("max_rounds=3")
    (tmp_path / "events" / "day-003.parquet").write_bytes(b"not parquet")
    summary = run_loop(settings)
    assert list(summary["set_aside_files"]) == ["day-003.parquet"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.label=clickd"], "did you mean 'clicked'"),
        (["data.event_time=nope"], "data.event_time=nope: no such column"),
        (["data.task=binary", "data.label=amount"], "a binary label is 0 or 1"),
        (["data.path=/nowhere"], "no such folder"),
        (["window.every=70d"], "do not fill two windows"),
        (["window.every=soon"], "is not a duration"),
        (["method.parts.replay.ratio=-1"], "must be 0 or more replayed rows"),
        (["+method.parts.replay.rato=1"], "did you mean method.parts.replay.ratio"),
        (["method=agem", "engine=deepspeed"], "AGEM needs gradients"),
        (["engine=deepspeed", "train.stateful.compile=default"], "train.stateful.compile=default needs engine=ddp"),
        (["train.stateful.optimizer=sgdx"], "train.optimizer=sgdx must be one of adamw"),
        (["+train.stateful.optimizer_settings={lr: 1}"], "which is train.stateful.learning_rate: set that"),
        (["engine=fsdp"], "engine=FSDPEngine trains on a group of workers: set cluster.workers"),
        (["model=cnn"], "model=cnn"),
        (["gate.floor=high"], "gate.floor='high' must be a number"),
        (["model.name=a/b"], "without / and :"),
        (["model._target_=no.such.Net"], "cannot be imported"),
    ],
)
def test_bad_settings_end_with_one_clear_message(
    small: Small, tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(CltrainError, match=message.replace("(", r"\(")):
        run_loop(small(*overrides))
    assert not (tmp_path / "store" / "states").exists(), "nothing half-written"
