"""Files whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from cltrain.errors import DigestError, StoreError
from cltrain.storage import Storage, canonical_json, digest_bytes, digest_file, read_arrow, write_arrow


def everything(root: Path) -> list[str]:
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())


def test_what_is_written_is_read(tmp_path: Path) -> None:
    storage = Storage(tmp_path / "store")
    assert storage.write("a/b.bin", b"123") == digest_bytes(b"123")
    assert (storage.read("a/b.bin"), storage.exists("a/b.bin"), storage.exists("a/c.bin")) == (
        b"123",
        True,
        False,
    )
    storage.write_json("a/c.json", {"ä": [1, None]})
    assert storage.read_json("a/c.json") == {"ä": [1, None]}
    assert storage.names("a") == ["a/b.bin", "a/c.json"]
    assert storage.names("nowhere") == []
    storage.check("a/b.bin", digest_bytes(b"123"))


@pytest.mark.parametrize("root", ["{}/store", "file://{}/store"])
def test_a_folder_and_its_uri_are_one_store(root: str, tmp_path: Path) -> None:
    Storage(root.format(tmp_path)).write("a", b"1")
    assert Storage(tmp_path / "store").read("a") == b"1"
    assert Storage(root.format(tmp_path)).is_local


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    storage.write("a", b"old")
    with pytest.raises(ZeroDivisionError), storage.writing("a") as path:  # noqa: PT012
        path.write_bytes(b"half")
        raise ZeroDivisionError
    assert storage.read("a") == b"old"
    assert everything(tmp_path) == ["a"]


def test_an_altered_or_missing_blob_is_named(tmp_path: Path) -> None:
    storage = Storage(tmp_path)
    storage.write("a", b"1")
    with pytest.raises(
        DigestError, match=rf"{tmp_path}/a has digest {digest_bytes(b'1')[:12]}, but 000.* was recorded"
    ):
        storage.check("a", "0" * 64)
    for read in (storage.read, storage.read_json, storage.local_copy):
        with pytest.raises(StoreError, match=f"{tmp_path}/b"):
            read("b")
    storage.write("c", b'{"cut":')
    with pytest.raises(StoreError, match=r"c is not JSON, so it was altered or cut off"):
        storage.read_json("c")


def test_a_store_that_cannot_be_written_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match=r"store.root=.*/file is not writable: .*; pass store.root=FOLDER"):
        Storage(tmp_path / "file").require_writable()
    with pytest.raises(StoreError, match=r"store.root=nosuch://bucket cannot be used"):
        Storage("nosuch://bucket")


def test_looking_whether_a_store_is_writable_leaves_nothing(tmp_path: Path) -> None:
    Storage(tmp_path / "store").require_writable()
    assert everything(tmp_path) == []


def test_home_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Storage("~/store").path("a") == f"{tmp_path}/store/a"


def test_tables_are_read_without_a_copy(tmp_path: Path) -> None:
    table = pa.table({"x": [1.0, None], "k": ["a", "b"]})
    write_arrow(tmp_path / "t.arrow", table)
    before = pa.total_allocated_bytes()
    assert read_arrow(tmp_path / "t.arrow").equals(table)
    assert pa.total_allocated_bytes() - before < 1000


def test_json_is_canonical_and_holds_no_nan(tmp_path: Path) -> None:
    assert canonical_json({"b": 1, "a": (1, 2)}) == b'{"a":[1,2],"b":1}'
    with pytest.raises(ValueError, match=r"not JSON compliant"):
        canonical_json(float("nan"))
    (tmp_path / "f").write_bytes(b"x" * 3_000_000)
    assert digest_file(tmp_path / "f") == digest_bytes(b"x" * 3_000_000)
