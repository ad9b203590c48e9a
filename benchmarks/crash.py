"""Kill -9 a loop at every durable write, start it again, and hold what it ends with against a loop that nobody
disturbed: versions, weights, aliases and their moves, rounds, snapshots, predictions and states, digest by digest.

A durable write is a file that appears or is deleted in the store, or a transaction that commits. Each is tried twice:
killed when all is ready and nothing has happened (the file lies beside its place, the rows are flushed), and when it
has just happened. `--fuzz N` kills N times more, at random moments, the same loop again and again until it ends. The
loops are forks of one warm process. A point is lost when the restarted loop fails or ends otherwise."""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import json
import logging
import os
import signal
import sys
import tempfile
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from hydra import compose, initialize_config_dir
from sqlalchemy import Connection, Engine, NullPool, create_engine, event, make_url
from sqlalchemy.engine.default import DefaultDialect

from cltrain.assemble import run_loop
from cltrain.config import CONF, register_defaults
from cltrain.records import to_json
from cltrain.registry import Registry, RoundLog, Store
from cltrain.storage import Storage, digest_bytes
from jobs.entry import plain

MOMENTS = ("before", "after")
TIMED = {"seconds", "freshness_s", "absorb_seconds", "latency_ms", "champion_latency_ms", "created_at", "at", "metrics"}
Row = dict[str, Any]
Settings = dict[str, Any]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--database", choices=["sqlite", "postgres"], nargs="+", default=["sqlite"])
    parser.add_argument("--server", help="SQLAlchemy URL of a PostgreSQL; without it pgserver is started")
    parser.add_argument("--every", type=int, default=1, help="try every n-th point, of those of each database")
    parser.add_argument("--moments", choices=MOMENTS, nargs="+", default=list(MOMENTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--fuzz", type=int, default=0, help="kills at random moments beside")
    parser.add_argument("--seed", type=int, default=0)


def run(options: argparse.Namespace) -> list[Row]:
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    rows: list[Row] = []
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # what a kill loses is the same on any disk
    with tempfile.TemporaryDirectory(prefix="cltrain-crash-", dir=memory) as folder:
        write_events(Path(folder, "events"))
        warm_up(Path(folder))
        for database in options.database:
            with _places(database, options.server, Path(folder, database)) as place:
                bench = Crashes(Path(folder), place, options.rounds)
                rows.append({"name": f"crash {database}", **bench.table(options.every, options.moments)})
                if options.fuzz:
                    rows.append({"name": f"fuzz {database}", **bench.fuzz(options.fuzz, options.seed)})
    return rows


class Crashes:
    """`place` makes a new empty store: its root and, unless it is SQLite, its URL."""

    def __init__(self, folder: Path, place: Callable[[], contextlib.AbstractContextManager[Store]], rounds: int):
        self.folder, self.place, self.rounds = folder, place, rounds
        self.settings = loop_settings(folder / "events", rounds)
        with place() as store:
            started = time.perf_counter()
            self.expected, self.points = self.undisturbed(store)
            self.seconds = time.perf_counter() - started

    def undisturbed(self, store: Store) -> tuple[Any, list[str]]:
        status, ended = self.child(store, None)
        if status != 0 or ended is None:
            raise RuntimeError(f"the loop that nobody disturbs failed: {self.log}")
        return ended["state"], ended["points"]

    def table(self, every: int, moments: list[str]) -> Row:
        """Every `every`-th of all points, which are numbers of writes with a moment."""
        started, lost = time.perf_counter(), []
        points = [(k, moment) for k in range(len(self.points)) for moment in moments][::every]
        for k, moment in points:
            with self.place() as store:
                killed, _ = self.child(store, (k, moment))
                failed = self.wrong(store) if killed == -signal.SIGKILL else f"it was not killed: {killed}"
            if failed:
                lost.append(f"{moment} write {k}, {self.points[k]}: {failed}")
                print(f"lost: {lost[-1]}", file=sys.stderr, flush=True)
            if (len(tried := points[: points.index((k, moment)) + 1])) % 50 == 0:
                print(f"{len(tried)} of {len(points)} points, {len(lost)} lost", file=sys.stderr, flush=True)
        kinds = Counter(name.split()[0] for name in self.points)
        return {
            "ratio": 1 - len(lost) / len(points),
            "points": len(points),
            "lost": len(lost),
            "seconds": time.perf_counter() - started,
            "writes": ", ".join(f"{count} {kind}" for kind, count in kinds.items()),
            "lost_at": lost,
        }

    def fuzz(self, kills: int, seed: int) -> Row:
        """Kill at random moments, often the same loop many times, until `kills` have struck."""
        generator, started = np.random.default_rng(seed), time.perf_counter()
        done = stores = 0
        lost: list[str] = []
        while done < kills:
            stores += 1
            with self.place() as store:
                while done < kills:
                    killed, _ = self.child(store, None, after_s=float(generator.uniform(0, 1.1 * self.seconds)))
                    if killed != -signal.SIGKILL:
                        break
                    done += 1
                if failed := self.wrong(store):
                    lost.append(f"store {stores}, after {done} kills: {failed}")
                    print(f"lost: {lost[-1]}", file=sys.stderr, flush=True)
        return {
            "ratio": 1 - len(lost) / stores,
            "points": done,
            "stores": stores,
            "lost": len(lost),
            "seconds": time.perf_counter() - started,
            "lost_at": lost,
        }

    def wrong(self, store: Store) -> str | None:
        """Start the loop again; what it then ends with that it should not, if anything."""
        status, ended = self.child(store, None)
        if status != 0 or ended is None:
            return f"it did not start again: {self.log.strip().splitlines()[-1:]}"
        return first_difference(self.expected, ended["state"])

    def child(
        self, store: Store, stop: tuple[int, str] | None, after_s: float | None = None
    ) -> tuple[int, dict[str, Any] | None]:
        """The loop in a process of its own. Its exit status, negative for a signal, and what it ended with."""
        result, said = self.folder / "ended.json", self.folder / "said"
        result.unlink(missing_ok=True)
        pid = os.fork()
        if pid == 0:
            self._in_child(store, stop, result, said)
        if after_s is not None:
            time.sleep(after_s)
            os.kill(pid, signal.SIGKILL)  # a child that has ended is a zombie until it is waited for: never another's
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        self.log = said.read_text() if said.exists() else ""
        return status, json.loads(result.read_text()) if result.exists() else None

    def _in_child(self, store: Store, stop: tuple[int, str] | None, result: Path, said: Path) -> None:
        try:
            with open(said, "w") as sink:
                os.dup2(sink.fileno(), 1)
                os.dup2(sink.fileno(), 2)
            os.chdir(self.folder)
            points = watch(stop)
            run_loop(self.settings | {"store": {"root": store.root, "url": store.url}})
            points = list(points)
            ended = {"state": end_state(Store(root=store.root, url=store.url)), "points": points}
            result.with_suffix(".part").write_text(json.dumps(ended))
            result.with_suffix(".part").rename(result)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(1)


def warm_up(folder: Path) -> None:
    """Run the loop once here, so that no fork has to import and ask what all of them need."""
    with contextlib.chdir(folder), open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        run_loop(loop_settings(folder / "events", rounds=2) | {"store": {"root": str(folder / "warm"), "url": None}})
    gc.collect()  # its connections: a fork must not have them


def watch(stop: tuple[int, str] | None) -> list[str]:
    """Count every durable write of this process from now on, and end it as `kill -9` would at the one of this number
    and moment. Returns the list to which their names are added."""
    points: list[str] = []
    writing: list[str] = []

    def count(name: str, write: Callable[[], Any]) -> Any:
        points.append(name)
        number = len(points) - 1
        if stop == (number, "before"):
            os.kill(os.getpid(), signal.SIGKILL)
        found = write()
        if stop == (number, "after"):
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    replace, delete, commit = os.replace, Storage.delete, DefaultDialect.do_commit

    def replaced(source: Any, target: Any) -> None:
        count(f"file {_short(str(target))}", lambda: replace(source, target))

    def deleted(storage: Storage, name: str) -> None:
        count(f"delete {_short(name)}", lambda: delete(storage, name))

    def committed(dialect: Any, connection: Any) -> None:
        if not writing:
            return commit(dialect, connection)
        name = f"commit {'+'.join(dict.fromkeys(writing))}"
        writing.clear()
        count(name, lambda: commit(dialect, connection))

    def executed(connection: Connection, cursor: Any, statement: str, *_: Any) -> None:
        words = statement.split()
        if connection.get_execution_options().get("writes") and words[0] in ("INSERT", "UPDATE", "DELETE", "CREATE"):
            writing.append(next(word for word in words[1:] if word not in ("INTO", "FROM", "TABLE", "INDEX", "UNIQUE")))

    os.replace, Storage.delete, DefaultDialect.do_commit = replaced, deleted, committed  # type: ignore[assignment]
    event.listen(Engine, "before_cursor_execute", executed)
    return points


def _short(path: str) -> str:
    """The last folder but one and the name, with digests cut short."""
    return "/".join(part[:12] for part in path.split("/")[-3:] if part)


def end_state(store: Store) -> Any:
    """All that a loop leaves, without the times that work took."""
    registry = Registry(store, "default")
    files = {}
    for folder in ("states", "snapshots", "prequential", "bases", "updates"):
        for name in store.storage.names(folder):
            if not name.rsplit("/", 1)[-1].startswith("."):
                files[name] = digest_bytes(store.storage.read(name))
    state = {
        "versions": [to_json(v) for v in registry.versions()],
        "cards": [to_json(registry.card(v.version)) for v in registry.versions()],
        "moves": registry.moves(),
        "rounds": [to_json(r) for r in RoundLog(store, "default").finished()],
        "files": files,
    }
    return json.loads(json.dumps(_untimed(state)))


def _untimed(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _untimed(v) for k, v in value.items() if k not in TIMED}
    return [_untimed(v) for v in value] if isinstance(value, list | tuple) else value


def first_difference(expected: Any, found: Any, path: str = "") -> str | None:
    """Where two values of JSON first differ.

    >>> first_difference({"a": [1, 2]}, {"a": [1, 3]})
    'a.1 is 3, not 2'
    """
    if isinstance(expected, dict) and isinstance(found, dict):
        pairs = [(key, expected.get(key), found.get(key)) for key in sorted({*expected, *found})]
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        pairs = [(str(i), a, b) for i, (a, b) in enumerate(zip(expected, found, strict=True))]
    else:
        same = expected == found or (expected != expected and found != found)  # losses may be NaN
        if isinstance(expected, list) and isinstance(found, list):
            return f"{path} has {len(found)} entries, not {len(expected)}"
        return None if same else f"{path} is {str(found)[:80]}, not {str(expected)[:80]}"
    return next((d for k, a, b in pairs if (d := first_difference(a, b, f"{path}.{k}".lstrip(".")))), None)


def loop_settings(events: Path, rounds: int) -> Settings:
    """A loop of a few small rounds that train stateful and from scratch, with checkpoints in the middle."""
    register_defaults()
    overrides = [
        "data=parquet",
        f"data.path={events}",
        "data.event_time=when",
        "data.label=clicked",
        "data.label_time=known",
        "data.event_id=id",
        "window.every=7d",
        "window.bootstrap=1",
        "recalibrate.every=2",
        "train.stateless.min_steps=4",
        "train.stateless.epochs=1",
        "train.stateful.epochs=1",
        "train.stateless.checkpoint_steps=6",
        "train.stateful.checkpoint_steps=6",
        "gate.floor=10",
        "gate.max_latency=null",  # which would let the machine's load decide
        "serve=none",
        "cluster.workers=0",
        f"max_rounds={rounds}",
    ]
    with initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        settings = plain(compose("loop", overrides))
    return settings | {"tracking": {}, "run_dir": str(events.parent)}


def write_events(folder: Path, weeks: int = 5, rows_a_week: int = 150, seed: int = 0) -> None:
    """A file of `weeks` weeks, with labels that come up to two days late and some that never do."""
    generator = np.random.default_rng(seed)
    rows = weeks * rows_a_week
    times = np.datetime64("2024-01-01") + np.sort(generator.integers(0, weeks * 7 * 86_400, rows)).astype(
        "timedelta64[s]"
    )
    x, z = generator.normal(size=(2, rows))
    never = generator.random(rows) < 0.03
    table = pa.table(
        {
            "id": [str(i) for i in range(rows)],
            "when": times,
            "known": pa.array(times + generator.integers(0, 2 * 86_400, rows).astype("timedelta64[s]"), mask=never),
            "x": x,
            "z": z,
            "shop": generator.choice(["a", "b", "c"], rows),
            "clicked": pa.array((generator.random(rows) < 1 / (1 + np.exp(-x))).astype(np.int64), mask=never),
        }
    )
    folder.mkdir(parents=True)
    pq.write_table(table, folder / "events.parquet")


@contextlib.contextmanager
def _places(
    database: str, server: str | None, folder: Path
) -> Iterator[Callable[[], contextlib.AbstractContextManager[Store]]]:
    """What makes new stores of a kind below `folder`, each of which is there for one block."""
    if database == "sqlite":
        yield functools.partial(_place, folder, None)
        return
    with contextlib.ExitStack() as stack:
        if server is None:
            from tests import servers

            server = stack.enter_context(servers.postgres_server())
        yield functools.partial(_place, folder, server)


@contextlib.contextmanager
def _place(folder: Path, server: str | None) -> Iterator[Store]:
    name = f"crash_{uuid.uuid4().hex}"
    with tempfile.TemporaryDirectory(prefix=f"{folder.name}-", dir=folder.parent) as root:
        if server is None:
            yield Store(root=root)
            return
        engine = create_engine(server, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {name}")
        try:
            yield Store(root=root, url=make_url(server).set(database=name).render_as_string(hide_password=False))
        finally:
            with engine.connect() as connection:
                connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")
