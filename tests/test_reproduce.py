"""Versions made again from the record; each test treats a copy of the store badly in its own way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from typer.testing import CliRunner

from cltrain.cli import app
from cltrain.errors import DigestError, StoreError
from cltrain.registry import Registry
from cltrain.registry.tables import VersionRow
from cltrain.reproduce import reproduce, request_of
from cltrain.train.state import request_digest, state_name
from tests.stores import copied, files, made


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, settings_of: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    return made(tmp_path_factory.getbasetemp() / "kept", settings_of)


@pytest.fixture
def registry(kept: dict[str, Any], tmp_path: Path) -> Registry:
    return copied(kept, tmp_path)


def move_events(registry: Registry, kept: dict[str, Any], tmp_path: Path) -> Path:
    """A copy of the events, for a test to spoil."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for path in Path(kept["data"]["path"]).glob("*.parquet"):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_the_whole_chain_is_made_again_bit_for_bit_through_a_surgery_and_the_store_is_only_read(
    registry: Registry,
) -> None:
    before, moves, versions = files(registry), registry.moves(), registry.versions()
    done = reproduce(registry, "champion")
    assert [(h.version, h.kind) for h in done.hops] == [("2.0", "stateless"), ("2.1", "stateful"), ("3.0", "surgery")]
    assert done.equal
    assert all(h.equal and all(h.files.values()) and h.largest_difference == 0 for h in done.hops)
    assert all(h.differs.keys() <= {"commit"} for h in done.hops)
    assert (files(registry), registry.moves(), registry.versions()) == (before, moves, versions)


def test_the_last_hop_alone_starts_from_the_parent_in_the_store(registry: Registry) -> None:
    done = reproduce(registry, "1.2", from_parent=True)
    assert done.equal
    assert [h.version for h in done.hops] == ["1.2"]
    registry.store.storage.delete(f"{registry.version('1.1').state}/state.json")
    with pytest.raises(StoreError, match="no longer kept: reproduce the whole chain"):
        reproduce(registry, "1.2", from_parent=True)


def test_the_record_holds_all_that_was_asked_for(registry: Registry) -> None:
    for v in registry.versions():
        assert state_name(request_digest(request_of(registry, v, "binary"))) == v.state


def test_a_file_that_was_altered_moved_or_lost_is_named_before_anything_is_trained(
    registry: Registry, kept: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = move_events(registry, kept, tmp_path)
    assert reproduce(registry, "1.0", data_path=str(folder)).equal, "the same files in another place"
    monkeypatch.setattr("cltrain.cluster.local.LocalRunner.update", lambda *_: pytest.fail("trained"))
    (folder / "day-003.parquet").write_bytes((folder / "day-004.parquet").read_bytes())
    (folder / "day-001.parquet").rename(folder / "renamed.parquet")
    (folder / "day-002.parquet").unlink()
    with pytest.raises(DigestError, match=r"3 file\(s\) are not those on record") as caught:
        reproduce(registry, "1.0", data_path=str(folder))
    said = str(caught.value)
    assert "day-003.parquet was altered: its digest is" in said
    assert "day-001.parquet is missing" in said
    assert "renamed.parquet has its content" in said
    assert "day-002.parquet is missing" in said


def test_a_manifest_that_was_altered_or_lost_is_named(registry: Registry) -> None:
    name = f"snapshots/{registry.version('1.0').snapshot_digest}.json"
    manifest = registry.store.storage.read_json(name)
    manifest["rule"]["seed"] += 1
    registry.store.storage.write_json(name, manifest)
    with pytest.raises(DigestError, match="was altered: its digest is not its name"):
        reproduce(registry, "1.0")
    registry.store.storage.delete(name)
    with pytest.raises(StoreError, match="nobody knows which rows it named"):
        reproduce(registry, "1.0")


def test_what_was_not_as_it_is_now_is_said(registry: Registry) -> None:
    version = registry.version("1.0")
    trained = dict(version.trained) | {"workers": 2, "made": {**version.trained["made"], "device": "ppc64le VSX"}}
    with registry.store.writing() as session:
        session.execute(
            update(VersionRow)
            .where(VersionRow.version == "1.0")
            .values(
                packages={"torch": "1.0"}, code_commit="0" * 40, challenger=trained, weights_digest="f" * 64, seed=1
            )
        )
    done = reproduce(registry, "1.0")
    assert not done.equal
    [hop] = done.hops
    assert hop.largest_difference == 0.0, "the weights on disk are those that were made again"
    assert hop.differs["workers"] == [2, 1]
    assert hop.differs["device"][0] == "ppc64le VSX"
    assert hop.differs["torch"][0] == "1.0"
    assert hop.differs["commit"][0] == "0" * 40
    assert "request" not in hop.differs


def test_files_that_are_missing_or_altered_are_put_back(registry: Registry) -> None:
    storage, state = registry.store.storage, registry.version("1.1").state
    whole = {name: storage.digest(name) for name in storage.names(state)}
    storage.delete(f"{state}/optimizer.safetensors")
    storage.write(f"{state}/weights.safetensors", b"spoilt")
    registry.tag("1.1", "collected", "2030-01-01")
    done = reproduce(registry, "1.1", restore=True)
    assert set(done.restored) == {f"{state}/optimizer.safetensors", f"{state}/weights.safetensors"}
    assert {name: storage.digest(name) for name in storage.names(state)} == whole
    assert "collected" not in registry.version("1.1").tags


def test_the_command_says_it_by_its_exit_code(registry: Registry, kept: dict[str, Any], tmp_path: Path) -> None:
    def call(*words: str) -> Any:
        return CliRunner().invoke(app, ["reproduce", *words, "--store", registry.store.root])

    same = call("1.0", "--json")
    assert same.exit_code == 0
    assert json.loads(same.stdout)["equal"]
    assert "bit for bit" in call("1.0").stdout
    last = call("1.1", "--from-parent", "--json")
    assert [hop["version"] for hop in json.loads(last.stdout)["hops"]] == ["1.1"]
    with registry.store.writing() as session:
        session.execute(update(VersionRow).where(VersionRow.version == "1.0").values(weights_digest="f" * 64))
    other = call("1.0")
    assert other.exit_code == 1
    assert "DIFFERS" in other.stdout
    impossible = call("1.0", "--data-path", str(tmp_path))
    assert impossible.exit_code == 2
    assert "day-000.parquet is missing" in impossible.stderr
