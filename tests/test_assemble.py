"""Which store a command line means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cltrain.assemble import LATEST, latest_store, open_store
from cltrain.errors import StoreError


def settings(root: Path) -> dict[str, Any]:
    return {"store": {"root": str(root), "url": None}, "model": {"name": "default"}}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CLTRAIN_STORE", raising=False)


def test_the_store_used_last_is_named_whole_or_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    open_store(settings(tmp_path / "one"))
    assert latest_store() == str(tmp_path / "one")
    with monkeypatch.context() as broken:
        broken.setattr("cltrain.storage.os.replace", lambda *_: (_ for _ in ()).throw(OSError("the machine stopped")))
        with pytest.raises(StoreError, match="the machine stopped"):
            open_store(settings(tmp_path / "two"))
    assert latest_store() == str(tmp_path / "one")
    assert [path.name for path in LATEST.parent.iterdir()] == [LATEST.name]
    open_store(settings(tmp_path / "two"))
    assert latest_store() == str(tmp_path / "two")


def test_a_store_that_is_only_looked_at_is_not_the_one_used_last(tmp_path: Path) -> None:
    open_store(settings(tmp_path / "one"))
    open_store(settings(tmp_path / "two"), create=False)
    assert latest_store() == str(tmp_path / "one")


def test_without_one_the_error_says_what_to_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match="pass --store FOLDER"):
        latest_store()
    LATEST.parent.mkdir()
    LATEST.write_text("")
    with pytest.raises(StoreError, match="pass --store FOLDER"):
        latest_store()
    monkeypatch.setenv("CLTRAIN_STORE", "s3://elsewhere")
    assert latest_store() == "s3://elsewhere"
