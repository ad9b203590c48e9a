"""Files under one root, on disk or in an object store. Nothing is ever half-written and nothing is unpickled."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import pyarrow as pa
from pyarrow import fs

from cltrain.errors import ConfigError, DigestError, StoreError

_CHUNK = 1 << 20
_PASSWORD = re.compile(r"s3://[^/@]*:[^@]*@|[^/]*://[^/@]*:[^/@]*@")  # secrets of S3 may hold a slash


class BlobInfo(NamedTuple):
    """size: bytes. changed: seconds since 1970."""

    name: str
    size: int
    changed: float


class Storage:
    """Blobs named by a path below `root`, which is a folder or a URI such as `s3://bucket/prefix`.

    Local files are written beside their place, synced and renamed; object stores put whole objects. What a URI says
    after `?` goes to the object store's client; keys come from the environment.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = str(root)
        if "://" in self.root:
            try:
                self._fs, self._base = filesystem_of(self.root, "store.root")
            except (OSError, pa.ArrowException) as error:
                raise StoreError(f"store.root={self.root} cannot be used: {error}") from error
        else:
            self._fs, self._base = fs.LocalFileSystem(), str(Path(self.root).expanduser().absolute())

    @property
    def is_local(self) -> bool:
        return isinstance(self._fs, fs.LocalFileSystem)

    def path(self, name: str) -> str:
        return f"{self._base}/{name}" if name else self._base

    def uri(self, name: str) -> str:
        """`name` as others would open it: a path, or a URI with whatever `root` says after `?`."""
        if "://" not in self.root:
            return self.path(name)
        place, mark, options = self.root.partition("?")
        return f"{place.rstrip('/')}/{quote(name)}{mark}{options}"

    def exists(self, name: str) -> bool:
        return self._info(name).type != fs.FileType.NotFound

    def _info(self, name: str) -> fs.FileInfo:
        try:
            return self._fs.get_file_info(self.path(name))
        except OSError as error:
            raise StoreError(f"cannot reach {self.path(name)}: {error}") from error

    def read(self, name: str) -> bytes:
        try:
            with self._fs.open_input_stream(self.path(name)) as stream:
                return stream.read()
        except OSError as error:
            raise StoreError(f"cannot read {self.path(name)}: {error}") from error

    def read_json(self, name: str) -> Any:
        try:
            return json.loads(self.read(name))
        except ValueError as error:
            raise StoreError(f"{self.path(name)} is not JSON, so it was altered or cut off: {error}") from error

    def write(self, name: str, data: bytes) -> str:
        """Store `data` whole or not at all, and return its digest."""
        with self.writing(name) as local:
            local.write_bytes(data)
        return digest_bytes(data)

    def write_json(self, name: str, value: Any) -> str:
        return self.write(name, canonical_json(value))

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """A local path to write; the file appears under `name` when the block ends without an error."""
        target = self.path(name)
        folder = os.path.dirname(target) if self.is_local else None
        try:
            if folder:
                os.makedirs(folder, exist_ok=True)
            part = Path(folder or os.environ.get("TMPDIR", "/tmp")) / f".{os.path.basename(name)}.{uuid.uuid4().hex}"
            try:
                yield part
                if folder:
                    with open(part, "rb") as written:
                        os.fsync(written.fileno())
                    os.replace(part, target)
                    _sync_folder(folder)
                else:
                    fs.copy_files(str(part), target, destination_filesystem=self._fs)
            finally:
                part.unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"cannot write {target}: {error}; check permissions and free space") from error

    def local_copy(self, name: str, cache: Path | None = None) -> Path:
        """A path on this machine that holds the blob, so that it can be memory-mapped."""
        if self.is_local:
            if not self.exists(name):
                raise StoreError(f"{self.path(name)} is not there")
            return Path(self.path(name))
        copies = cache or _copies_folder()
        try:
            with self._fs.open_input_stream(self.path(name)) as source:
                copy = copies / f"{self._copy_key(name)}-{self._identity(source, name)}"
                if not copy.exists():
                    copies.mkdir(mode=0o700, parents=True, exist_ok=True)
                    part = copies / f".{copy.name}.{uuid.uuid4().hex}"
                    try:
                        with open(part, "wb") as sink:
                            shutil.copyfileobj(source, sink, _CHUNK)
                        os.replace(part, copy)
                    finally:
                        part.unlink(missing_ok=True)
        except FileNotFoundError as error:
            raise StoreError(f"{self.path(name)} is not there") from error
        except OSError as error:
            raise StoreError(f"cannot copy {self.path(name)} to {copies}: {error}") from error
        return copy

    def _copy_key(self, name: str) -> str:
        return hashlib.blake2b(f"{self.root}/{name}".encode(), digest_size=16).hexdigest()

    def _identity(self, source: pa.NativeFile, name: str) -> str:
        # The ETag, since S3 knows times of change to the second only: a blob may be replaced by one of its size in one.
        about = source.metadata() or {}
        tag = about.get(b"ETag") or about.get("ETag")
        if not tag:
            info = self._info(name)
            tag = f"{info.size}/{info.mtime_ns}"
        return hashlib.blake2b(tag if isinstance(tag, bytes) else tag.encode(), digest_size=16).hexdigest()

    def delete(self, name: str) -> None:
        """Remove a blob and this machine's copies of it, if they are there."""
        try:
            if self.exists(name):
                self._fs.delete_file(self.path(name))
        except FileNotFoundError:
            pass  # another process was first
        except OSError as error:
            raise StoreError(f"cannot delete {self.path(name)}: {error}") from error
        if not self.is_local:
            for copy in _copies_folder().glob(f"{self._copy_key(name)}-*"):
                copy.unlink(missing_ok=True)

    def names(self, prefix: str) -> list[str]:
        """Names of all files below `prefix`, sorted."""
        selector = fs.FileSelector(self.path(prefix), recursive=True, allow_not_found=True)
        try:
            found = [info.path for info in self._fs.get_file_info(selector) if info.type == fs.FileType.File]
        except OSError as error:
            raise StoreError(f"cannot list {self.path(prefix)}: {error}") from error
        return sorted(path[len(self._base) + 1 :] for path in found)

    def infos(self, prefix: str) -> list[BlobInfo]:
        """All files below `prefix`, sorted by name, those that are still being written among them."""
        selector = fs.FileSelector(self.path(prefix), recursive=True, allow_not_found=True)
        try:
            found = self._fs.get_file_info(selector)
        except OSError as error:
            raise StoreError(f"cannot list {self.path(prefix)}: {error}") from error
        files = [info for info in found if info.type == fs.FileType.File]
        skipped = len(self._base) + 1
        return sorted(BlobInfo(i.path[skipped:], i.size or 0, (i.mtime_ns or 0) / 1e9) for i in files)

    def digest(self, name: str) -> str:
        """sha256 of a blob, read in pieces where it is."""
        try:
            return digest_file(self.path(name), self._fs)
        except OSError as error:
            raise StoreError(f"cannot read {self.path(name)}: {error}") from error

    def move(self, name: str, to: str) -> None:
        """Give a blob another name."""
        try:
            if self.is_local:
                os.makedirs(os.path.dirname(self.path(to)), exist_ok=True)
            self._fs.move(self.path(name), self.path(to))
        except OSError as error:
            raise StoreError(f"cannot move {self.path(name)} to {self.path(to)}: {error}") from error

    def prune(self, folder: str) -> None:
        """Remove a folder, on disk, that holds no file any more; object stores have none."""
        if self.is_local and os.path.isdir(self.path(folder)):
            for place, _, _ in os.walk(self.path(folder), topdown=False):
                with suppress(OSError):
                    os.rmdir(place)

    def check(self, name: str, digest: str) -> None:
        """Raise `DigestError` unless the blob is the one that was recorded."""
        found = digest_file(self.local_copy(name))
        if found != digest:
            raise DigestError(
                f"{self.path(name)} has digest {found[:12]}, but {digest[:12]} was recorded: it was altered"
            )

    def require_writable(self) -> None:
        """Raise `StoreError` unless files can be written; leaves none behind."""
        try:
            self.write(".writable", b"")
            self._fs.delete_file(self.path(".writable"))
        except FileNotFoundError:
            pass  # another process that checks at the same time has deleted it
        except (StoreError, OSError) as error:
            raise StoreError(f"store.root={self.root} is not writable: {error}; pass store.root=FOLDER") from error


def filesystem_of(uri: str, setting: str) -> tuple[fs.FileSystem, str]:
    """What reads a URI, and the path in it without what follows `?`. Raises `ConfigError` for a URI that holds a
    password, since URIs are written to settings, logs and reports, and what pyarrow raises for others it cannot use."""
    if _PASSWORD.match(uri):
        raise ConfigError(
            f"{setting}={uri.partition('://')[0]}://… holds a password, which would be seen wherever the URI is"
            " written: take it out, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment"
        )
    filesystem, base = fs.FileSystem.from_uri(uri)
    return filesystem, base.rstrip("/") or base


def canonical_json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest_bytes(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def digest_json(value: Any) -> str:
    """Name of a value: sha256 of its canonical JSON.

    >>> digest_json({"a": 1, "b": 2}) == digest_json({"b": 2, "a": 1})
    True
    """
    return digest_bytes(canonical_json(value))


def digest_file(path: str | os.PathLike[str], filesystem: fs.FileSystem | None = None) -> str:
    """sha256 of a file, read in pieces."""
    sha = hashlib.sha256()
    with (filesystem or fs.LocalFileSystem()).open_input_stream(str(path)) as stream:
        while piece := stream.read(_CHUNK):
            sha.update(piece)
    return sha.hexdigest()


def write_arrow(path: Path, table: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


def read_arrow(path: str | os.PathLike[str]) -> pa.Table:
    """Memory-map an Arrow IPC file: columns are views of the page cache."""
    with pa.memory_map(str(path)) as source:
        return pa.ipc.open_file(source).read_all()


def _copies_folder() -> Path:
    """Of one user: another one's files are not to be trusted."""
    return Path(os.environ.get("TMPDIR", "/tmp"), f"cltrain-blobs-{os.getuid()}")


def _sync_folder(folder: str) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
