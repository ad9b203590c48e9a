"""The mirror in MLflow, in a real registry of its own."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import pytest

from cltrain.errors import ConfigError, ConflictError, StoreError
from cltrain.records import Json
from cltrain.tracking.mlflow import mirror, shown

pytest.importorskip("mlflow")


def version(number: str, parent: str | None = None, aliases: tuple[str, ...] = (), **fields: Any) -> Json:
    return {
        "version": number, "parent": parent, "kind": "stateful" if parent else "stateless", "state": f"states/{number}",
        "snapshot_digest": "s" * 64, "weights_digest": f"w{number}", "settings_digest": "c", "code_commit": None,
        "seed": 0, "created_at": "2024-01-01T00:00:00+00:00", "trained_until": "2024-01-01", "rows_trained": 5,
        "stage": "validated", "approval": None, "verdict": {"accepted": True, "reasons": ["better"]},
        "aliases": list(aliases), "tags": {}, "depends_on": [],
    } | fields  # fmt: skip


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


def client(uri: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow import MlflowClient

        return MlflowClient(tracking_uri=uri, registry_uri=uri)


def test_versions_aliases_and_lineage_are_mirrored_and_a_second_export_changes_nothing(uri: str) -> None:
    first = [version("1.0", aliases=("previous",)), version("1.1", "1.0", ("champion", "best.of-v1"))]
    done = mirror(uri, "ranker", first)
    assert done.created == ("1.0", "1.1")
    assert done.aliases == {"previous": "1.0", "champion": "1.1", "best-of-v1": "1.1"}
    again = mirror(uri, "ranker", first)
    assert (again.created, again.changed, again.aliases) == ((), (), {})
    assert again.versions == done.versions

    mlflow = client(uri)
    champion = mlflow.get_model_version_by_alias("ranker", "champion")
    assert {name: champion.tags[f"cltrain.{name}"] for name in ("version", "parent", "verdict", "weights_digest")} == {
        "version": "1.1", "parent": "1.0", "verdict": "accepted", "weights_digest": "w1.1"
    }  # fmt: skip
    mlflow.set_registered_model_alias("ranker", "mine", done.versions["1.0"])
    mlflow.set_registered_model_alias("ranker", "champion", done.versions["1.0"])

    later = [
        version("1.0", aliases=("champion",), tags={"rolled_back": "slow"}),
        version("1.1", "1.0", stage="withdrawn"),
        version("2.0", None, ("challenger", "latest"), depends_on=["embedding:1.0"]),
    ]
    done = mirror(uri, "ranker", later)
    assert (done.created, done.changed) == (("2.0",), ("1.0", "1.1"))
    assert done.aliases == {"challenger": "2.0", "cltrain-latest": "2.0", "previous": None, "best-of-v1": None}
    found = mlflow.get_registered_model("ranker").aliases
    assert {alias: str(number) for alias, number in found.items()} == {
        alias: done.versions[number]
        for alias, number in {"champion": "1.0", "challenger": "2.0", "cltrain-latest": "2.0", "mine": "1.0"}.items()
    }
    assert mlflow.get_model_version("ranker", done.versions["1.0"]).tags["cltrain.tag.rolled_back"] == "slow"
    mirror(uri, "ranker", [version("1.0", aliases=("champion",)), *later[1:]])
    assert "cltrain.tag.rolled_back" not in mlflow.get_model_version("ranker", done.versions["1.0"]).tags


def test_what_was_cut_off_is_completed(uri: str, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = [version("1.0"), version("1.1", "1.0"), version("1.2", "1.1", ("champion",))]
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    real, calls = MlflowClient.create_model_version, []

    def fails(self: Any, *args: Any, **words: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise MlflowException("gone")
        return real(self, *args, **words)

    monkeypatch.setattr(MlflowClient, "create_model_version", fails)
    with pytest.raises(StoreError, match=r"cannot export to MLflow at sqlite:.*: gone"):
        mirror(uri, "cut", versions)
    done = mirror(uri, "cut", versions)
    assert done.created == ("1.1", "1.2")
    assert len(client(uri).search_model_versions("name='cut'")) == 3


def test_a_model_that_is_not_ours_is_left_alone(uri: str) -> None:
    client(uri).create_registered_model("theirs")
    with pytest.raises(ConflictError, match="'theirs' that is not a mirror of ranker: pass --name"):
        mirror(uri, "ranker", [version("1.0")], name="theirs")
    assert client(uri).search_model_versions("name='theirs'") == []
    mirror(uri, "price", [version("1.0")])
    with pytest.raises(ConflictError, match=r"mirror of another store: its 1\.0 has other weights"):
        mirror(uri, "price", [version("1.0", weights_digest="x"), version("1.1", "1.0")])
    assert len(client(uri).search_model_versions("name='price'")) == 1


def test_where_there_is_no_mlflow_the_error_says_so_without_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    before = dict(os.environ)
    with pytest.raises(StoreError, match=r"cannot export to MLflow at http://ann:…@127\.0\.0\.1:9: ") as error:
        mirror("http://ann:secret@127.0.0.1:9", "ranker", [version("1.0")])
    assert "secret" not in str(error.value)
    assert dict(os.environ) == before
    with pytest.raises(ConfigError, match=r"--uri ./mlruns is no MLflow"):
        mirror("./mlruns", "ranker", [])
    with pytest.raises(ConfigError, match=r"two aliases would both be 'a-b'"):
        mirror("sqlite:///x", "ranker", [version("1.0", aliases=("a.b",)), version("1.1", aliases=("a-b",))])
    assert not Path("mlruns").exists()


def test_passwords_are_not_shown() -> None:
    assert shown("postgresql://ann:secret@host/db") == "postgresql://ann:…@host/db"
    assert shown("http://host:5000") == "http://host:5000"
