"""The loop learns from what was served: answers and labels come through the API, and nothing else is known."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from cltrain.assemble import open_store, run_loop
from cltrain.data.holdout import is_held_out
from cltrain.data.snapshot import read_rows
from cltrain.errors import ConfigError, DataError, StoreError
from cltrain.records import EVENT_ID, EVENT_TIME, LABEL
from cltrain.registry import Registry, RoundLog, Store
from tests.conftest import write_table

START, WEEK = datetime(2024, 1, 1, tzinfo=UTC), timedelta(days=7)
SERVED = START + 5 * WEEK  # history ends here
COLUMNS = ("data.event_time=when", "data.label=clicked", "data.label_time=known", "data.event_id=id")
HISTORY = (*COLUMNS, "data.categorical=[number]", "data.time_features=false")
FEEDBACK = ("data=feedback", "data.every=1ms", "contract.max_null_rise=1")
Settings = Callable[..., dict[str, Any]]
Row = dict[str, Any]


class Table(NamedTuple):
    """rows: of history and of what is served later. history, store: folders."""

    rows: list[Row]
    history: Path
    store: Path


def test_two_rounds_on_predictions_and_their_labels(
    serve_store: Callable[..., Any],
    store: Store,
    registry: Registry,
    events: Callable[..., pa.Table],
    settings_of: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    registry.promote("1.0", reason="first")
    client = serve_store(store)
    rows = events(rows=400).to_pylist()
    for start in range(0, len(rows), 100):
        some = rows[start : start + 100]
        asked = [
            {
                "event_id": row[EVENT_ID],
                "event_time": row[EVENT_TIME].isoformat(),
                "features": {name: row[name] for name in ("distance", "carrier")},
            }
            for row in some
        ]
        assert client.post("/predict", json={"rows": asked}).status_code == 200
        labels = [
            {"event_id": row[EVENT_ID], "label": row[LABEL], "label_time": row[EVENT_TIME].isoformat()}
            for row in some[5:]
        ]
        assert client.post("/feedback", json={"rows": labels}).status_code == 200
    client.server.predictions.close()
    client.server.labels.close()
    settings = settings_of(
        "data=feedback",
        f"data.store={store.storage.root}",
        "window.every=3h",
        "serve=none",
        "tracking=files",
        "cluster.workers=0",
        "train.stateless.min_steps=20",
        f"store.root={tmp_path / 'loop'}",
    ) | {"run_dir": str(tmp_path / "run")}
    summary = run_loop(settings)
    assert (summary["rounds"], summary["versions"]) == (1, ["1.0", "1.1"])  # after the bootstrap
    version = Registry(Store(root=str(tmp_path / "loop")), "default").version("1.0")
    assert 0 < version.challenger.snapshot.rows < 180


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    """Ten weeks of events, of which the first five are in a folder, as history, with a store that has learned from it;
    with a number of a shop, which the model takes for a category, and noise, which no client will send."""
    folder = tmp_path_factory.mktemp("past")
    everything = write_table(folder / "all").drop_columns(["kind", "amount"])
    numbers = pa.array(["abc".index(shop) for shop in everything["shop"].to_pylist()])
    noise = pa.array(np.random.default_rng(0).normal(size=len(everything)))
    everything = everything.append_column("number", numbers).append_column("noise", noise)
    past = everything.filter(pc.less(everything["when"], pa.scalar(SERVED.replace(tzinfo=None))))
    (folder / "events").mkdir()
    pq.write_table(past, folder / "events" / "past.parquet")
    rows = [row | {name: _utc(row[name]) for name in ("when", "known")} for row in everything.to_pylist()]
    return Table(rows, folder / "events", folder / "store")


def in_batches(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    held = list(rows)
    return (held[start : start + size] for start in range(0, len(held), size))


def _utc(instant: datetime | None) -> datetime | None:
    return instant if instant is None else instant.replace(tzinfo=UTC)


@pytest.fixture
def settings(settings_of: Callable[..., dict[str, Any]], table: Table, tmp_path: Path) -> Settings:
    """Of a job in one and the same store, which has learned from history."""

    def resolve(*overrides: str, root: Path = tmp_path / "store") -> dict[str, Any]:
        return settings_of(
            "window.bootstrap=4",
            "recalibrate.every=null",
            "gate.floor=10",
            "serve=none",
            "tracking=files",
            "cluster.workers=0",
            "train.stateless.min_steps=60",
            f"store.root={root}",
            *overrides,
        ) | {"run_dir": str(tmp_path / "run")}

    if not table.store.exists():
        run_loop(resolve("data=parquet", f"data.path={table.history}", *HISTORY, root=table.store))
    shutil.copytree(table.store, tmp_path / "store")
    return resolve


@pytest.fixture
def served(settings: Settings, serve_store: Callable[..., Any], table: Table) -> Callable[[int], dict[str, Row]]:
    """`served(week)` asks for all events of a week, sends the labels that are known by its end, of weeks before, too,
    and gives the events that have one so far, by request id."""
    client = serve_store(open_store(settings(*FEEDBACK)), "default")
    asked: dict[str, Row] = {}
    told: dict[str, Row] = {}

    def serve(week: int) -> dict[str, Row]:
        start = SERVED + (week - 1) * WEEK
        for some in in_batches([row for row in table.rows if start <= row["when"] < start + WEEK], 200):
            bodies = [
                {
                    "event_id": row["id"],
                    "event_time": row["when"].isoformat(),
                    "features": {name: row[name] for name in ("x", "z", "shop", "number")},
                }
                for row in some
            ]
            answer = client.post("/predict", json={"rows": bodies}).json()
            asked.update(zip((one["request_id"] for one in answer["predictions"]), some, strict=True))
        ready = {
            id_: row
            for id_, row in asked.items()
            if row["known"] is not None and max(row["known"], row["when"]) < start + WEEK and id_ not in told
        }
        for some in in_batches(ready.values(), 200):
            labels = [{"event_id": r["id"], "label": r["clicked"], "label_time": r["known"].isoformat()} for r in some]
            for _ in range(2):  # some clients send them twice
                assert client.post("/feedback", json={"rows": labels}).status_code == 200
        told.update(ready)
        rows_on_disk(client, len(asked))
        return dict(told)

    return serve


def rows_on_disk(client: Any, rows: int) -> None:
    end = time.monotonic() + 10
    while client.server.predictions.counts()["written"] < rows:
        assert time.monotonic() < end, client.server.predictions.counts()
        time.sleep(0.02)


def trained(store: Store, version: str) -> list[str]:
    digest = Registry(store, "default").version(version).snapshot_digest
    return read_rows(store.storage, digest).column(EVENT_ID).to_pylist()


def kept(ids: Sequence[str]) -> set[str]:
    """Those that are trained on."""
    return {id_ for id_, held in zip(ids, is_held_out(pa.array(ids), 0.1), strict=True) if not held}


def test_versions_from_history_are_served_and_go_on_from_what_was_served(
    settings: Settings, served: Callable[[int], dict[str, Row]], tmp_path: Path
) -> None:
    going_on = settings(*FEEDBACK)
    store = open_store(going_on)
    assert [v.version for v in Registry(store, "default").versions()] == ["1.0", "1.1"]
    first = served(1)
    summary = run_loop(going_on)
    assert summary["versions"] == ["1.0", "1.1", "1.2"]
    assert (Registry(store, "default").version("1.2").parent, summary["champion"]) == ("1.1", "1.2")
    assert set(trained(store, "1.2")) == kept(list(first))
    assert len(trained(store, "1.2")) == len(kept(list(first))) > 250, "each label once, though it was sent twice"
    assert run_loop(going_on)["versions"] == summary["versions"], "nothing new has come"

    shutil.rmtree(tmp_path / "store" / "cache")  # held-out rows of history are decoded again, from history
    second = served(2)
    assert run_loop(going_on)["versions"][-1] == "1.3"
    assert set(trained(store, "1.3")) == kept([id_ for id_ in second if id_ not in first])
    rounds = RoundLog(store, "default").finished()
    assert [r.window.start for r in rounds[2:]] == [SERVED, SERVED + WEEK]
    assert rounds[3].observation.late_labels > 0
    assert [row["window"] for row in rounds[3].versions[0]["transfer"]] == [0, 1, 2, 3], "history is not forgotten"


def test_history_is_not_learned_again_and_its_last_labels_are(
    settings: Settings, served: Callable[[int], dict[str, Row]], table: Table
) -> None:
    first = served(1)
    going_on = settings(*FEEDBACK, f"data.history={table.history}", *COLUMNS)
    assert run_loop(going_on)["versions"] == ["1.0", "1.1", "1.2"]
    late = [r["id"] for r in table.rows if r["when"] < SERVED and r["known"] and SERVED <= r["known"] < SERVED + WEEK]
    assert late
    assert sorted(trained(open_store(going_on), "1.2")) == sorted(kept([*first, *late]))


def test_other_data_that_is_gone_is_named(
    settings: Settings, served: Callable[[int], dict[str, Row]], table: Table, tmp_path: Path
) -> None:
    served(1)
    shutil.rmtree(tmp_path / "store" / "cache")
    aside = table.history.rename(tmp_path / "aside")
    try:
        with pytest.raises(StoreError, match=r"made from other data .* restore the files in .*/events"):
            run_loop(settings(*FEEDBACK))
    finally:
        aside.rename(table.history)


def test_what_clients_do_not_send_breaks_the_contract_of_history(
    settings: Settings, served: Callable[[int], dict[str, Row]]
) -> None:
    served(1)
    run_loop(settings("data=feedback"))
    last = RoundLog(open_store(settings()), "default").finished()[-1]
    assert (last.status, last.observation.problems) == ("quarantined", ("noise: 100% null, was 0%",))


def test_a_live_loop_waits_for_the_first_label(
    settings: Settings, served: Callable[[int], dict[str, Row]], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(DataError, match="of 0 logged prediction"):
        run_loop(settings(*FEEDBACK))
    later = threading.Timer(1.0, served, (1,))
    later.start()
    live = settings(*FEEDBACK, "clock=wall", "clock.poll_s=0.1", "max_rounds=3")
    summary = run_loop(live)
    later.join()
    assert summary["versions"] == ["1.0", "1.1", "1.2"]
    assert [r.message.partition(":")[0] for r in caplog.records].count("waiting for the first label") == 1
    assert "clock=data takes the time from the events" in caplog.text


def test_from_scratch_without_history_is_worth_a_warning(
    settings: Settings, served: Callable[[int], dict[str, Row]], caplog: pytest.LogCaptureFixture
) -> None:
    served(1)
    run_loop(settings(*FEEDBACK, "recalibrate.every=12"))
    assert "data.history=DIR" in caplog.text


def test_a_task_that_is_not_that_of_the_store_is_refused(
    settings: Settings, served: Callable[[int], dict[str, Row]]
) -> None:
    served(1)
    with pytest.raises(ConfigError, match="what was served was made for binary"):
        run_loop(settings(*FEEDBACK, "data.task=regression"))
