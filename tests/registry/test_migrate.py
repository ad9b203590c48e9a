"""A store of any age opens with the schema of today."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, inspect, select, text

from cltrain.errors import StoreError
from cltrain.registry import Registry, Store, impact, migrate
from cltrain.registry.tables import Base, SnapshotFileRow, SnapshotRow

OLD = {
    "versions": """CREATE TABLE versions (model VARCHAR NOT NULL, version VARCHAR NOT NULL, ordinal INTEGER NOT NULL,
        major INTEGER NOT NULL, minor INTEGER NOT NULL, parent VARCHAR, compared_to VARCHAR, kind VARCHAR NOT NULL,
        round_index INTEGER NOT NULL, reason VARCHAR NOT NULL, state VARCHAR NOT NULL, snapshot_digest VARCHAR NOT NULL,
        weights_digest VARCHAR NOT NULL, settings_digest VARCHAR NOT NULL, seed BIGINT NOT NULL, code_commit VARCHAR,
        created_at {instant} NOT NULL, challenger TEXT NOT NULL, card TEXT NOT NULL, verdict TEXT NOT NULL,
        packages TEXT NOT NULL, PRIMARY KEY (model, version),
        CONSTRAINT one_version_a_round_and_kind UNIQUE (model, round_index, kind),
        FOREIGN KEY(model, parent) REFERENCES versions (model, version))""",
    "versions by snapshot": "CREATE INDEX ix_versions_snapshot_digest ON versions (snapshot_digest)",
    "settings": "CREATE TABLE settings (digest VARCHAR NOT NULL, settings TEXT NOT NULL, PRIMARY KEY (digest))",
    "aliases": """CREATE TABLE aliases (model VARCHAR NOT NULL, alias VARCHAR NOT NULL, version VARCHAR NOT NULL,
        epoch INTEGER NOT NULL, PRIMARY KEY (model, alias))""",
    "moves": """CREATE TABLE alias_moves (id {serial} NOT NULL, model VARCHAR NOT NULL, alias VARCHAR NOT NULL,
        "old" VARCHAR, "new" VARCHAR NOT NULL, epoch INTEGER NOT NULL, at {instant} NOT NULL, by VARCHAR NOT NULL,
        reason VARCHAR NOT NULL, PRIMARY KEY (id))""",
    "moves by model": "CREATE INDEX ix_alias_moves_model ON alias_moves (model)",
    "stages": """CREATE TABLE stages (model VARCHAR NOT NULL, round_index INTEGER NOT NULL, stage VARCHAR NOT NULL,
        record TEXT, at {instant} NOT NULL, PRIMARY KEY (model, round_index, stage))""",
    "a version": """INSERT INTO versions VALUES ('ranker', '1.0', 0, 1, 0, NULL, NULL, 'stateless', 0, 'first',
        'states/a', 's', 'w', 'd', 7, NULL, '2024-01-01 00:00:00', '{challenger}', '{card}',
        '{{"accepted": true, "reasons": ["first"], "score": null}}', '{{}}')""",
    "its settings": "INSERT INTO settings VALUES ('d', '{{\"seed\": 7}}')",
    "its alias": "INSERT INTO aliases VALUES ('ranker', 'champion', '1.0', 1)",
    "its move": """INSERT INTO alias_moves (model, alias, new, epoch, at, by, reason)
        VALUES ('ranker', 'champion', '1.0', 1, '2024-01-02 00:00:00', 'ann', 'first')""",
}
CHALLENGER = """{"kind": "stateless", "state": "states/a", "parent": null, "snapshot": {"digest": "s", "role": "train",
 "rows": 5, "late_rows": 0}, "cursor": {"until": "2024-01-01T00:00:00+00:00", "files": []}, "weights_digest": "w",
 "rows_trained": 10, "rows_replayed": 0, "steps": 2, "seconds": 0.1, "loss": 0.5, "parameters": 3, "seed": 7}"""
CARD = '{"comparisons": [], "transfer": [], "latency_ms": 0.1, "size_bytes": 8}'


@pytest.fixture(params=["sqlite", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    url = request.getfixturevalue("postgres_url") if request.param == "postgres" else None
    return Store(root=str(tmp_path), url=url)


def make_old(store: Store) -> None:
    """A store as it was made before the schema had revisions."""
    serial, instant = ("SERIAL", "TIMESTAMP WITH TIME ZONE") if store.url else ("INTEGER", "DATETIME")
    engine = create_engine(store.url or f"sqlite:///{store.storage.path('registry.db')}")
    with engine.begin() as connection:
        for statement in OLD.values():
            values = {"serial": serial, "instant": instant, "challenger": CHALLENGER, "card": CARD}
            connection.exec_driver_sql(statement.format(**values))
    engine.dispose()


def differences(store: Store) -> list[object]:
    with store.engine.begin() as connection:
        options = {"version_table": migrate.VERSION_TABLE, "compare_type": True}
        return list(compare_metadata(MigrationContext.configure(connection, opts=options), Base.metadata))


def test_a_new_store_has_the_schema_of_the_tables(store: Store) -> None:
    assert differences(store) == []


def test_an_old_store_is_brought_up_to_date_and_keeps_everything(store: Store) -> None:
    make_old(store)
    registry = Registry(store, "ranker")
    champion = registry.champion()
    assert champion is not None
    assert (champion.version, champion.aliases, champion.stage, champion.seed) == ("1.0", ("champion",), "validated", 7)
    assert (champion.challenger.workers, champion.summary()["workers"]) == (1, 1), "what later fields say of it"
    assert champion.created_at == datetime(2024, 1, 1, tzinfo=UTC)
    assert registry.settings("1.0") == {"seed": 7}
    assert [(m["new"], m["by"]) for m in registry.moves()] == [("1.0", "ann")]
    assert registry.champion_at(datetime(2024, 1, 3, tzinfo=UTC)) == "1.0"
    assert registry.challenge("1.0") == "challenger"
    registry.withdraw("1.0", reason="it is champion already")
    assert registry.verify_audit().intact
    assert differences(store) == []


def test_a_store_is_upgraded_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    _ = store.engine
    monkeypatch.setattr(migrate, "upgrade", lambda connection: pytest.fail("there is nothing to do"))
    _ = Store(root=store.root, url=store.url).engine


def test_a_store_that_is_newer_is_refused(store: Store) -> None:
    with store.engine.begin() as connection:
        connection.execute(text(f"UPDATE {migrate.VERSION_TABLE} SET version_num = '9999'"))
    with pytest.raises(StoreError, match=r"newer cltrain made this store \(schema 9999; .*upgrade cltrain"):
        _ = Store(root=store.root, url=store.url).engine


def test_an_upgrade_that_fails_leaves_the_store_as_it_was(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    make_old(store)
    real = migrate.upgrade

    def cut_off(connection: object) -> None:
        real(connection)  # type: ignore[arg-type]
        raise StoreError("killed")

    monkeypatch.setattr(migrate, "upgrade", cut_off)
    with pytest.raises(StoreError, match="killed"):
        _ = store.engine
    engine = create_engine(store.url or f"sqlite:///{store.storage.path('registry.db')}")
    assert set(inspect(engine).get_table_names()) == {"versions", "settings", "aliases", "alias_moves", "stages"}
    engine.dispose()
    monkeypatch.undo()
    assert Registry(Store(root=store.root, url=store.url), "ranker").version("champion").version == "1.0"


def test_the_code_knows_its_last_step() -> None:
    steps = ScriptDirectory(str(migrate.FOLDER), version_locations=[str(migrate.FOLDER)])
    assert steps.get_current_head() == migrate.HEAD


def test_what_a_store_of_the_second_step_knew_of_files_is_read_again(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_old(store)
    with monkeypatch.context() as then:
        then.setattr(migrate, "HEAD", "0002")
        with store.writing() as session:
            session.execute(text("INSERT INTO snapshot_files VALUES ('s', 'a.parquet', 'old digest')"))
    rule = {"split": "train", "until": 9, "after": 3, "seen": ["a.parquet"], "start": None, "end": None}
    rule |= {"excluded": [[1, 2]], "max_rows": None, "holdout_share": 0.1, "seed": 0}
    files = [{"name": "a.parquet", "digest": "digest", "rows": 5}]
    store.storage.write_json("snapshots/s.json", {"rule": rule, "files": files, "row_count": 5})
    store = Store(root=store.root, url=store.url)
    assert [v.name for v in impact(store, file="digest").versions] == ["ranker:1.0"]
    with store.reading() as session:
        (found,) = session.scalars(select(SnapshotRow))
        assert (found.digest, found.until_us, found.after_us, found.excluded) == ("s", 9, 3, [[1, 2]])
        (named,) = session.scalars(select(SnapshotFileRow))
        assert (named.name, named.seen, named.index_digest) == ("a.parquet", True, None)
    assert differences(store) == []
