"""A sound store, and each way in which it can be unsound."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, update
from typer.testing import CliRunner

from cltrain.cli import app
from cltrain.doctor import Examination, examine
from cltrain.registry import Registry
from cltrain.registry.tables import AliasRow, AuditRow, SettingsRow, StageRow
from tests.stores import copied, made


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, settings_of: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    return made(tmp_path_factory.getbasetemp() / "kept", settings_of)


@pytest.fixture
def registry(kept: dict[str, Any], tmp_path: Path) -> Registry:
    return copied(kept, tmp_path)


def look(registry: Registry, **more: Any) -> Examination:
    return examine(registry.store, grace_s=0, **more)


def found(registry: Registry) -> list[tuple[str, str]]:
    return [(p.kind, p.subject) for p in look(registry).problems]


def test_what_a_loop_leaves_is_sound(registry: Registry) -> None:
    sound = look(registry)
    assert sound.healthy
    assert (sound.versions, sound.problems, sound.notes) == (6, (), ())
    assert sound.bytes > 100_000


@pytest.mark.parametrize("file", ["weights.safetensors", "optimizer.safetensors", "encoder.json", "memory.arrow"])
def test_one_changed_byte_of_any_file_is_found(registry: Registry, file: str) -> None:
    name = f"{registry.version('2.0').state}/{file}"
    data = bytearray(registry.store.storage.read(name))
    data[len(data) // 2] ^= 1
    registry.store.storage.write(name, bytes(data))
    [problem] = look(registry, repair=True).problems
    assert (problem.kind, problem.subject, problem.repaired) == ("altered", "default:2.0", None)
    assert f"{name} was altered" in problem.message
    assert "--restore" in problem.advice


def test_a_missing_file_and_a_missing_state_are_found(registry: Registry) -> None:
    storage = registry.store.storage
    storage.delete(f"{registry.version('1.1').state}/method.safetensors")
    for name in storage.names(registry.version("2.0").state):
        storage.delete(name)
    assert found(registry) == [("missing", "default:1.1"), ("missing", "default:2.0")]


def test_a_state_whose_record_was_swapped_with_its_files_is_found(registry: Registry) -> None:
    storage, ours, theirs = registry.store.storage, registry.version("1.0").state, registry.version("1.1").state
    for name in storage.names(theirs):
        storage.write(name.replace(theirs, ours), storage.read(name))
    assert found(registry) == [("altered", "default:1.0")], "every digest in it is right, and it is another version"


def test_manifests_settings_aliases_and_the_log_of_who_did_what_are_checked(registry: Registry) -> None:
    name = f"snapshots/{registry.version('1.0').snapshot_digest}.json"
    manifest = registry.store.storage.read_json(name)
    registry.store.storage.write_json(name, manifest | {"files": []})
    registry.store.storage.delete(f"snapshots/{registry.version('1.1').snapshot_digest}.json")
    with registry.store.writing() as session:
        session.execute(update(AliasRow).where(AliasRow.alias == "previous").values(version="9.9"))
        session.execute(update(AuditRow).where(AuditRow.id == 2).values(by="nobody"))
        settings = session.get(SettingsRow, registry.version("1.0").settings_digest)
        assert settings is not None
        settings.settings = settings.settings | {"seed": 99}
    problems = found(registry)
    assert ("dangling", "default:previous") in problems
    assert ("audit", "entry 2") in problems
    assert ("altered", "default:1.0") in problems
    assert ("missing", "default:1.1") in problems


def test_orphans_and_what_was_never_finished_are_found_and_set_aside(registry: Registry) -> None:
    storage = registry.store.storage
    whole, half = f"states/{'a' * 32}", f"states/{'b' * 32}"
    storage.write(f"{whole}/state.json", b"{}")
    storage.write(f"{half}/weights.safetensors", b"1")
    Path(storage.path(f"cache/.x.arrow.{'c' * 32}")).write_bytes(b"1")
    assert examine(registry.store).healthy, "all of it is young: a loop may be writing it"
    digest = registry.version("2.0").snapshot_digest
    storage.write(f"cache/{digest}.arrow", b"not arrow")
    assert {p.kind for p in look(registry).problems} == {"orphan", "unfinished", "altered"}
    repaired = look(registry, repair=True)
    assert repaired.healthy
    assert len(repaired.problems) == 4
    assert look(registry).problems == ()
    assert storage.read(f"quarantine/{whole}/state.json") == b"{}"
    assert not Path(storage.path(whole)).exists()
    assert not storage.exists(f"cache/{digest}.arrow")


def test_a_round_that_was_interrupted_is_no_problem(registry: Registry) -> None:
    index = registry.version("3.0").round_index
    with registry.store.writing() as session:
        session.execute(delete(StageRow).where(StageRow.round_index == index, StageRow.stage == "done"))
    seen = look(registry)
    assert seen.healthy
    assert seen.notes == (
        f"round {index} of default is not finished: the next start of the loop goes on after 'roll_out'",
    )


def test_the_command_says_it_by_its_exit_code(registry: Registry) -> None:
    def call(*words: str) -> Any:
        return CliRunner().invoke(app, ["doctor", "--store", registry.store.root, *words])

    sound = call()
    assert (sound.exit_code, "sound" in sound.stdout) == (0, True)
    registry.store.storage.write(f"{registry.version('2.0').state}/encoder.json", b"{}")
    assert call().exit_code == 1
    assert json.loads(call("--json").stdout)["problems"][0]["kind"] == "altered"
    registry.store.storage.write(f"cache/{registry.version('2.0').snapshot_digest}.arrow", b"not arrow")
    assert "[deleted]" in call("--grace", "1ms", "--repair").stdout
    assert call("--model", "other").exit_code == 2
