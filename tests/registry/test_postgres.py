"""What a database server adds to the registry: other processes, other sessions, narrower types, passwords."""

from __future__ import annotations

import math
import multiprocessing
import threading
from datetime import UTC, datetime, timedelta
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from sqlalchemy import make_url

from cltrain.errors import ConfigError, ConflictError, StoreError
from cltrain.registry import Registry, RoundLog, Store, VersionRecord
from cltrain.registry import store as store_module
from cltrain.registry.registry import models
from tests.versions import registered


def register(registry: Registry, round_index: int, reason: str = "test", **fields: object) -> VersionRecord:
    return registered(registry, round_index, reason=reason, **fields)


@pytest.fixture
def registry(postgres_url: str, tmp_path: Path) -> Registry:
    return Registry(Store(root=str(tmp_path), url=postgres_url), "ranker")


def _open(stores: list[tuple[str, str | None]], start: Barrier) -> None:
    for root, url in stores:
        start.wait(20)
        assert models(Store(root=root, url=url)) == []


def test_processes_that_open_a_new_store_at_once_make_its_tables_once(postgres_server: str, tmp_path: Path) -> None:
    from tests.servers import database_of

    context = multiprocessing.get_context("spawn")
    with (
        database_of(postgres_server) as one,
        database_of(postgres_server) as two,
        database_of(postgres_server) as three,
    ):
        stores = [(str(tmp_path), url) for url in (one, two, three)]
        stores += [(str(tmp_path / f"{i}"), None) for i in range(5)]
        start = context.Barrier(2)
        openers = [context.Process(target=_open, args=(stores, start)) for _ in range(2)]
        for opener in openers:
            opener.start()
        for opener in openers:
            opener.join()
        assert [opener.exitcode for opener in openers] == [0, 0]


def test_of_many_that_promote_over_one_champion_one_is_first_and_the_others_are_told(registry: Registry) -> None:
    for round_index in range(9):
        register(registry, round_index)
    registry.promote("1.0", reason="first")
    start, outcomes = threading.Barrier(8), []

    def promote(number: int) -> None:
        start.wait(30)
        try:
            outcomes.append(registry.promote(f"{number}.0", reason="mine", expected="1.0"))
        except ConflictError:
            outcomes.append(None)

    threads = [threading.Thread(target=promote, args=(number,)) for number in range(2, 10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes, key=str) == [2] + [None] * 7
    assert registry.epoch() == 2


def test_writers_at_once_give_every_version_its_own_number(registry: Registry) -> None:
    start, errors = threading.Barrier(6), []

    def write(round_index: int) -> None:
        start.wait(30)
        try:
            register(registry, round_index)
        except StoreError as error:
            errors.append(error)

    threads = [threading.Thread(target=write, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [v.version for v in registry.versions()] == [f"{i}.0" for i in range(1, 7)]


def test_a_look_is_consistent_while_others_write(registry: Registry) -> None:
    register(registry, 0)
    with registry.store.reading() as session:
        assert registry._aliases(session) == {}
        registry.promote("1.0", reason="meanwhile")
        assert registry._aliases(session) == {}
    assert registry.epoch() == 1


def test_a_reader_cannot_write(registry: Registry) -> None:
    register(registry, 0)
    with pytest.raises(StoreError, match="read-only"), registry.store.reading() as session:
        registry._promote(session, {}, "1.0", "ann", "by mistake")


def test_a_writer_that_does_not_end_is_not_waited_for_for_ever(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(registry, 0)
    monkeypatch.setattr(store_module, "LOCK_TIMEOUT_S", 0.1)
    with registry.store.writing() as session:
        registry._promote(session, {}, "1.0", "ann", "slow")
        with pytest.raises(StoreError, match="lock timeout"):
            registry.promote("1.0", reason="fast")
        assert registry.epoch() == 0, "readers wait for nobody"
    assert registry.epoch() == 1


def test_what_sqlite_takes_is_taken(registry: Registry) -> None:
    long = "because " * 1000
    register(registry, 0, long, seed=2**63 - 1, loss=math.nan)
    found = Registry(Store(root=registry.store.root, url=registry.store.url), "ranker").version("1.0")
    assert (found.reason, found.seed) == (long, 2**63 - 1)
    assert math.isnan(found.challenger.loss or 0)
    assert RoundLog(registry.store, "ranker").once(0, "confirm", float, lambda: None) is None  # type: ignore[arg-type,return-value]
    assert RoundLog(registry.store, "ranker").once(0, "confirm", float, lambda: 1.0) is None


def test_instants_are_utc_whatever_the_session_says(registry: Registry) -> None:
    before = datetime.now(UTC)
    register(registry, 0)
    url = make_url(str(registry.store.url)).update_query_dict({"options": "-c timezone=Asia/Tokyo"})
    elsewhere = Registry(Store(root=registry.store.root, url=url.render_as_string(hide_password=False)), "ranker")
    found = elsewhere.version("1.0").created_at
    assert found.utcoffset() == timedelta(0)
    assert before <= found <= datetime.now(UTC)
    elsewhere.promote("1.0", reason="x")
    assert registry.moves() == elsewhere.moves()
    assert elsewhere.moves()[0]["at"].endswith("+00:00")


def test_connections_that_the_server_dropped_are_made_anew(registry: Registry) -> None:
    register(registry, 0)
    with Store(root=registry.store.root, url=registry.store.url).writing() as session:
        others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
        session.connection().exec_driver_sql(others + " AND datname = current_database()")
    assert registry.promote("1.0", reason="after the restart") == 1


@pytest.mark.parametrize("place", ["me:hunter2@127.0.0.1:{}/db", "127.0.0.1:{}/db?user=me&password=hunter2"])
def test_a_password_is_shown_nowhere(place: str, tmp_path: Path) -> None:
    from tests.servers import free_ports

    store = Store(root=str(tmp_path), url=f"postgresql+psycopg://{place.format(*free_ports(1))}")
    with pytest.raises(StoreError, match=r"cannot open the registry at postgresql\+psycopg://.*127\.0\.0\.1") as error:
        _ = store.engine
    assert "hunter2" not in f"{error.value} {store}"


def test_a_database_that_cannot_hold_a_registry_is_named(tmp_path: Path) -> None:
    for url, said in (
        ("mysql://me:hunter2@db/x", r"store\.url=mysql://me:\*\*\*@db/x: the registry can be in PostgreSQL or SQLite"),
        ("postgresql+pg8000://db/x", r"needs a driver that is not here.*pip install 'cltrain\[postgres\]'"),
        ("postgresql+nosuch://db/x", r"needs a driver that is not here"),
    ):
        with pytest.raises(ConfigError, match=said):
            _ = Store(root=str(tmp_path), url=url).engine
    with pytest.raises(StoreError, match="cannot open the registry at …: Could not parse"):
        _ = Store(root=str(tmp_path), url="hunter2").engine
