"""An S3 server under the storage, the data and a whole job."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import fs
from typer.testing import CliRunner

from cltrain.assemble import open_store, run_loop
from cltrain.cli import app
from cltrain.data.parquet import ParquetSource
from cltrain.errors import ConfigError, DataError, DigestError, StoreError
from cltrain.registry import Registry
from cltrain.storage import Storage, digest_bytes, read_arrow, write_arrow


def put(folder: Path, uri: str) -> None:
    """Upload a folder."""
    filesystem, base = fs.FileSystem.from_uri(uri)
    fs.copy_files(str(folder), base, destination_filesystem=filesystem, use_threads=False)


def test_what_is_written_is_read(s3: str) -> None:
    storage = Storage(s3)
    assert not storage.is_local
    assert storage.path("a/b.bin") == f"{s3.removeprefix('s3://')}/a/b.bin"
    assert storage.write("a/b.bin", b"123") == digest_bytes(b"123")
    assert [storage.exists(name) for name in ("a/b.bin", "a/c.bin", "a")] == [True, False, True]
    assert storage.read("a/b.bin") == b"123"
    storage.write_json("a/c d=1/ä.json", {"ä": [1, None]})
    assert storage.read_json("a/c d=1/ä.json") == {"ä": [1, None]}
    storage.write("empty", b"")
    assert storage.read("empty") == b""
    assert storage.names("a") == ["a/b.bin", "a/c d=1/ä.json"]
    assert storage.names("") == ["a/b.bin", "a/c d=1/ä.json", "empty"]
    assert storage.names("nowhere") == []
    storage.check("a/b.bin", digest_bytes(b"123"))
    with pytest.raises(DigestError, match=r"a/b\.bin has digest"):
        storage.check("a/b.bin", "0" * 64)
    for read in (storage.read, storage.read_json, storage.local_copy):
        with pytest.raises(StoreError, match="nowhere"):
            read("nowhere")


def test_the_query_of_a_uri_goes_to_the_client_and_not_into_names(
    s3: str, s3_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    query = f"scheme=http&endpoint_override={s3_server.removeprefix('http://')}&region=us-east-1"
    storage = Storage(f"{s3}/?{query}")
    storage.write("a/b", b"1")
    assert storage.names("") == ["a/b"]
    assert storage.uri("a/b c") == f"{s3}/a/b%20c?{query}"
    filesystem, path = fs.FileSystem.from_uri(storage.uri("a/b"))
    assert filesystem.open_input_stream(path).read() == b"1"
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3_server)
    assert Storage(s3).read("a/b") == b"1"
    assert Storage(s3).uri("a/b") == f"{s3}/a/b"


def test_a_big_file_is_whole_and_its_rows_are_mapped_from_a_copy_made_once(s3: str, tmp_path: Path) -> None:
    storage = Storage(s3)
    table = pa.table({"x": np.random.default_rng(0).normal(size=3_000_000)})
    with storage.writing("rows.arrow") as path:
        write_arrow(path, table)
    assert os.listdir(tmp_path / "tmp") == [], "what was uploaded is gone from here"
    copy = storage.local_copy("rows.arrow")
    assert read_arrow(copy).equals(table)
    made = copy.stat()
    again = Storage(s3).local_copy("rows.arrow")
    assert (again, again.stat().st_ino, again.stat().st_mtime_ns) == (copy, made.st_ino, made.st_mtime_ns)
    assert copy.parent.stat().st_mode & 0o077 == 0, "for nobody else"
    storage.delete("rows.arrow")
    assert not storage.exists("rows.arrow")
    assert not copy.exists()
    storage.delete("rows.arrow")


def test_a_blob_that_was_replaced_at_once_by_one_of_its_size_is_copied_anew(s3: str) -> None:
    storage = Storage(s3)
    for data in (b"one", b"two", b"six"):
        storage.write("a", data)
        assert storage.local_copy("a").read_bytes() == data


def test_a_write_that_fails_leaves_what_was_there(s3: str, tmp_path: Path) -> None:
    storage = Storage(s3)
    storage.write("a", b"old")
    for name in ("a", "b"):
        with pytest.raises(ZeroDivisionError), storage.writing(name) as path:  # noqa: PT012
            path.write_bytes(b"x" * 20_000_000)
            raise ZeroDivisionError
    assert storage.read("a") == b"old"
    assert storage.names("") == ["a"]
    assert os.listdir(tmp_path / "tmp") == []


def test_what_cannot_be_used_says_why(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Storage(s3).require_writable()
    assert Storage(s3).names("") == []
    with pytest.raises(StoreError, match=r"store\.root=s3://nosuchbucket/x is not writable"):
        Storage("s3://nosuchbucket/x").require_writable()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StoreError, match=r"cannot read cltrain/.*(ACCESS_DENIED|SIGNATURE|Signature)"):
        Storage(s3).read("a")
    with pytest.raises(DataError, match=rf"data\.path={s3} cannot be read"):
        ParquetSource(path=s3, event_time="t", label="y").files()


@pytest.mark.parametrize("key", ["AKIA:pass", "AKIA:pa/ss", "AKIA:pass%2F"])
def test_a_uri_with_a_password_is_refused_without_showing_it(key: str) -> None:
    uri = f"s3://{key}@bucket/prefix"
    for use in (lambda: Storage(uri), lambda: ParquetSource(path=uri, event_time="t", label="y").files()):
        with pytest.raises(ConfigError, match=r"s3://… holds a password.*AWS_SECRET_ACCESS_KEY") as error:
            use()
        assert "AKIA" not in str(error.value)


def test_a_job_with_everything_remote_makes_the_versions_of_a_local_one(
    s3: str, postgres_url: str, small: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # `store/latest` goes there
    put(tmp_path / "events", f"{s3}/events")
    root = f"{s3}/store"
    local = small("max_rounds=4")
    remote = small("max_rounds=4", f"data.path={s3}/events", f"store.root={root}", f"store.url='{postgres_url}'")
    expected = run_loop(local)
    first = run_loop(remote)
    assert first == run_loop(remote), "the same command again changes nothing"
    made, known = (Registry(open_store(s), "default") for s in (remote, local))
    assert [(v.version, v.weights_digest) for v in made.versions()] == [
        (v.version, v.weights_digest) for v in known.versions()
    ]
    assert len(made.versions()) >= 3
    assert {k: v for k, v in first.items() if k in ("versions", "champion", "prequential", "static")} == {
        k: v for k, v in expected.items() if k in ("versions", "champion", "prequential", "static")
    }
    assert first["store"] == root
    names = Storage(root).names("")
    assert {name.split("/")[0] for name in names} >= {"snapshots", "states", "cache"}
    assert [n for n in names if n.startswith("registry.db")] == []

    answer = CliRunner().invoke(app, ["versions", "--store", root, "--store-url", postgres_url, "--json"])
    assert answer.exit_code == 0, answer.output
    assert [v["version"] for v in json.loads(answer.stdout)["versions"]] == [v.version for v in made.versions()]
    answer = CliRunner().invoke(app, ["versions", "--store", root])
    assert answer.exit_code == 2
    assert "store.url=postgresql+psycopg" in answer.output
