"""One Ray for the whole session, and jobs run as a user's settings would run them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).resolve().parent.parent
for name in ("CACHE", "DATA", "CONFIG"):
    os.environ.setdefault(f"WANDB_{name}_DIR", "/tmp/cltrain-tests-wandb")


@pytest.fixture(scope="session")
def ray_session() -> Iterator[str]:
    """A Ray of two CPUs, started as the jobs start it; the address of its dashboard."""
    import ray

    from cltrain.cluster import Cluster

    with Cluster(workers=1, num_cpus=2).session(True, {"job": "tests"}) as dashboard:
        assert dashboard is not None
        yield dashboard
    assert not ray.is_initialized()


@pytest.fixture(scope="session")
def settings_of() -> Callable[..., dict[str, Any]]:
    """Resolved settings of a job from overrides, as `python -m jobs.<job>` would have them."""
    from hydra import compose, initialize_config_dir

    from cltrain.config import CONF, register_defaults
    from jobs.entry import plain

    register_defaults()

    def resolve(*overrides: str, job: str = "loop") -> dict[str, Any]:
        with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
            return plain(compose(config_name=job, overrides=list(overrides)))

    return resolve


def overrides_of_table(folder: Path) -> list[str]:
    """Overrides of a job on the table that `write_table` has written."""
    columns = ("event_time=when", "label=clicked", "label_time=known", "event_id=id", "exclude=[kind,amount]")
    return ["data=parquet", f"data.path={folder}", *(f"data.{column}" for column in columns)]


@pytest.fixture
def small(tmp_path: Path, settings_of: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    """Settings of a job on a small table of ten weeks in `tmp_path`, in this process, without serving and W&B."""
    folder = tmp_path / "events"
    if not folder.exists():
        write_table(folder)

    def resolve(*overrides: str, job: str = "loop") -> dict[str, Any]:
        return settings_of(
            *overrides_of_table(folder),
            "serve=none",
            "tracking=files",
            "cluster.workers=0",
            f"store.root={tmp_path / 'store'}",
            "train.stateless.min_steps=60",
            *overrides,
            job=job,
        ) | {"run_dir": str(tmp_path / "run")}

    return resolve


@pytest.fixture(scope="session")
def event_ids() -> Callable[..., list[str]]:
    """Ids of the rows of a snapshot, decoded again if need be."""
    from cltrain.assemble import open_store
    from cltrain.config import build
    from cltrain.data.event_log import EventLog
    from cltrain.data.snapshot import Snapshots

    def ids(settings: dict[str, Any], snapshot: Any) -> list[str]:
        log = EventLog(build(settings["data"], "data"))
        snapshots = Snapshots(log, open_store(settings).storage, build(settings["snapshot"], "snapshot"))
        return snapshots.table(snapshot).column("_event_id").to_pylist()

    return ids


def write_table(folder: Path, weeks: int = 10, rows_a_day: int = 60, seed: int = 0) -> pa.Table:
    """Events of `weeks` weeks, a file a day; the rule turns slowly, labels come up to two days late and 3 % never."""
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    days, rows = weeks * 7, rows_a_day
    tables = []
    for day in range(days):
        when = np.datetime64("2024-01-01") + np.timedelta64(day, "D")
        times = when + np.sort(generator.integers(0, 86_400, rows)).astype("timedelta64[s]")
        x, z = generator.normal(size=(2, rows))
        shop = generator.choice(["a", "b", "c"], rows)
        odds = 1.5 * x * np.cos(day / days * 2) + 1.5 * z * np.sin(day / days * 2) + (shop == "a")
        clicked = (generator.random(rows) < 1 / (1 + np.exp(-odds))).astype(np.int64)
        known = times + generator.integers(0, 2 * 86_400, rows).astype("timedelta64[s]")
        never = generator.random(rows) < 0.03
        table = pa.table(
            {
                "id": [f"{day}-{i}" for i in range(rows)],
                "when": times,
                "known": pa.array(known, mask=never),
                "x": x,
                "z": z,
                "shop": shop,
                "clicked": pa.array(clicked, mask=never),
                "kind": pa.array(np.where(odds > 1, "high", np.where(odds < -1, "low", "middle"))),
                "amount": odds * 100 + generator.normal(size=rows) * 10,
            }
        )
        pq.write_table(table, folder / f"day-{day:03d}.parquet")
        tables.append(table)
    return pa.concat_tables(tables)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    from tests import servers

    with servers.postgres_server() as url:
        yield url


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """SQLAlchemy URL of a new database on a PostgreSQL that runs."""
    from tests import servers

    with servers.database_of(postgres_server) as url:
        yield url


@pytest.fixture(scope="session")
def s3_server() -> Iterator[str]:
    from tests import servers

    with servers.s3_server() as endpoint:
        yield endpoint


@pytest.fixture
def s3(s3_server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """URI of an empty folder in an S3 that runs; its address and keys are in the environment, as users have them."""
    from tests import servers

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", servers.KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", servers.SECRET)
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    return f"s3://cltrain/{tmp_path.name}"
