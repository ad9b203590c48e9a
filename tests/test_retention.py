"""What is kept and what goes."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete
from typer.testing import CliRunner

from cltrain.assemble import run_loop
from cltrain.cli import app
from cltrain.doctor import examine
from cltrain.errors import ConfigError
from cltrain.records import to_json
from cltrain.registry import Registry
from cltrain.registry.tables import StageRow
from cltrain.reproduce import reproduce
from cltrain.retention import Retention, collect
from cltrain.storage import Storage
from tests.stores import copied, files, made

NOTHING_YOUNG = Retention(keep_last=1, grace_s=0)


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, settings_of: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    return made(tmp_path_factory.getbasetemp() / "kept", settings_of)


@pytest.fixture
def registry(kept: dict[str, Any], tmp_path: Path) -> Registry:
    return copied(kept, tmp_path)


def states(registry: Registry) -> set[str]:
    return {name.rsplit("/", 1)[0] for name in registry.store.storage.names("states")}


def test_champions_aliases_parents_and_the_newest_stay_and_the_record_stays_whole(registry: Registry) -> None:
    before = [v.version for v in registry.versions()]
    done = collect(registry.store, NOTHING_YOUNG)
    assert done.versions == ("default:1.2",), "it was never promoted, and nothing came of it"
    assert done.kept == {
        "default:1.0": "was champion",
        "default:1.1": "was champion",
        "default:2.0": "was champion",
        "default:2.1": "previous",
        "default:3.0": "champion",
    }
    assert [v.version for v in registry.versions()] == before
    assert "collected" in registry.version("1.2").tags
    assert states(registry) == {v.state for v in registry.versions() if v.version != "1.2"}
    assert examine(registry.store, grace_s=0).healthy
    assert [v.version for v in registry.lineage("1.2")] == ["1.2", "1.1", "1.0"]


def test_what_went_can_be_made_again_from_the_record(registry: Registry) -> None:
    collect(registry.store, NOTHING_YOUNG)
    state = registry.version("1.2").state
    assert reproduce(registry, "1.2", restore=True).equal
    assert state in states(registry)
    assert "collected" not in registry.version("1.2").tags
    assert examine(registry.store, grace_s=0).healthy


def test_a_dry_run_says_what_would_go_and_touches_nothing(registry: Registry) -> None:
    before = files(registry)
    said = collect(registry.store, NOTHING_YOUNG, dry_run=True)
    assert files(registry) == before
    assert not registry.version("1.2").tags
    done = collect(registry.store, NOTHING_YOUNG)
    assert (said.versions, said.blobs, said.bytes) == (done.versions, done.blobs, done.bytes)
    again = collect(registry.store, NOTHING_YOUNG)
    assert (again.versions, again.blobs) == ((), ())


def test_one_that_was_interrupted_goes_on(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    deleted = Storage.delete
    monkeypatch.setattr(Storage, "delete", lambda self, name: (deleted(self, name), 1 / 0))
    with pytest.raises(ZeroDivisionError):
        collect(registry.store, NOTHING_YOUNG)
    monkeypatch.setattr(Storage, "delete", deleted)
    [problem] = examine(registry.store, grace_s=0).problems
    assert problem.kind == "unfinished"
    done = collect(registry.store, NOTHING_YOUNG)
    assert done.versions == ()
    assert len(done.blobs) > 1
    assert examine(registry.store, grace_s=0).healthy


def test_what_is_young_stays_as_a_loop_may_be_about_to_name_it(registry: Registry) -> None:
    storage = registry.store.storage
    state, cache, base = f"states/{'0' * 32}", "cache/of-nobody.arrow", "bases/of-nobody.safetensors"
    for name in (f"{state}/state.json", f"{state}/weights.safetensors", cache, base):
        storage.write(name, b"{}")
    left = collect(registry.store, Retention(keep_last=1, grace_s=3600))
    assert (left.versions, left.blobs) == ((), ())
    later = collect(registry.store, Retention(keep_last=1, grace_s=3600), now=time.time() + 7200, dry_run=True)
    assert {f"{state}/state.json", f"{state}/weights.safetensors", cache, base} <= {b.name for b in later.blobs}
    assert later.versions == ("default:1.2",)


def test_what_an_unfinished_round_names_stays(registry: Registry) -> None:
    with registry.store.writing() as session:
        last = registry.version("1.2").round_index
        session.execute(delete(StageRow).where(StageRow.round_index == last, StageRow.stage == "done"))
    assert collect(registry.store, NOTHING_YOUNG, dry_run=True).kept["default:1.2"] == "of a round that is not finished"


def test_caches_go_but_those_that_the_next_round_reads(
    registry: Registry, kept: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = set(registry.store.storage.names("cache"))
    done = collect(registry.store, NOTHING_YOUNG)
    gone = {b.name for b in done.blobs if b.name.startswith("cache/")}
    assert gone
    assert gone < names
    settings = kept | {"store": {"root": registry.store.root, "url": None}, "max_rounds": 5}
    monkeypatch.chdir(Path(registry.store.root).parent)
    before = to_json(registry.champion())
    summary = run_loop(settings)
    assert summary["rounds"] == 4, "the loop goes on over what was collected"
    assert registry.version(before["version"]).weights_digest == before["weights_digest"]


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="--keep-last must be 0 or more"):
        Retention(keep_last=-1)


def test_the_command_takes_the_models_and_says_what_goes(registry: Registry) -> None:
    def call(*words: str) -> Any:
        return CliRunner().invoke(app, ["gc", "--keep-last", "1", "--store", registry.store.root, *words])

    assert json.loads(call("--json").stdout)["versions"] == [], "all are young"
    time.sleep(1.1)
    said = call("--grace", "1s", "--dry-run")
    assert said.exit_code == 0
    assert "default:1.2" in said.stdout
    assert json.loads(call("--grace", "1s", "--model", "default", "--json").stdout)["versions"] == ["default:1.2"]
    assert call("--grace", "soon").exit_code == 2
