"""Make a version again from what is on record, hop by hop, and hold the bits against those in the store."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch

from cltrain.cluster.local import LocalRunner
from cltrain.cluster.session import Cluster
from cltrain.config import build
from cltrain.data.event_log import EventLog, Source
from cltrain.data.snapshot import DERIVED, Snapshots, SnapshotSettings, cache_name
from cltrain.errors import CltrainError, DigestError, StoreError
from cltrain.parts import Runner
from cltrain.records import Challenger, Json, UpdateRequest
from cltrain.registry import Registry, Store, VersionRecord
from cltrain.registry.registry import code_commit, package_versions
from cltrain.registry.rounds import ASKED
from cltrain.registry.tables import StageRow
from cltrain.retention import COLLECTED
from cltrain.storage import Storage, digest_file, digest_json
from cltrain.train.golden import device_kind
from cltrain.train.state import base_name, load_state, request_digest, state_name

SHOWN = 5


@dataclass(frozen=True, kw_only=True)
class Hop:
    """One update that was done again. recorded, rebuilt: digests of the weights. files: of its state, whether they are
    the same. largest_difference: of a weight, None where the recorded ones are no longer kept. differs: what was not as
    it was at the time, by name: what it was, what it is now."""

    version: str
    kind: str
    recorded: str
    rebuilt: str
    equal: bool
    files: Json
    largest_difference: float | None
    differs: Json
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Reproduction:
    """Whether a version is what its record says. `equal`: the weights of the version itself, bit for bit."""

    model: str
    version: str
    from_parent: bool
    equal: bool
    hops: tuple[Hop, ...]
    seconds: float
    restored: tuple[str, ...] = field(default=())


def reproduce(
    registry: Registry,
    name: str,
    *,
    from_parent: bool = False,
    workers: int | None = None,
    data_path: str | None = None,
    restore: bool = False,
    told: Callable[[Hop], None] = lambda hop: None,
) -> Reproduction:
    """Train version `name` again, from the stateless root of its line or `from_parent` alone, in a temporary folder.
    Rows are decoded anew from the source; `data_path` says where it is if it was moved. The store is only read, unless
    `restore` asks to put back what is missing or altered of the files of versions that were made again bit for bit.

    What a group of workers had trained is trained in this process, unless `workers` asks for a group: sums in another
    order are other bits. Raises `DigestError` or `StoreError` that name the files which are not those on record, before
    anything is trained.
    """
    started = time.perf_counter()
    chain = registry.lineage(name)[::-1]
    chain = chain[-1:] if from_parent else chain
    inputs = _Inputs(registry, chain, data_path)
    inputs.check()
    hops: list[Hop] = []
    with tempfile.TemporaryDirectory(prefix="cltrain-reproduce-") as folder:
        aside = Storage(folder)
        if from_parent and chain[0].challenger.parent:
            _copy_state(registry.store.storage, aside, chain[0].challenger.parent)
        states: dict[str, str] = {}  # the name of each state on record, and of the one made here
        restored: list[str] = []
        with _runners(folder, chain, workers) as runner_of:
            for version in chain:
                inputs.decode(version, aside)
                task = inputs.source(version).columns.task
                before = time.perf_counter()
                done = runner_of(version).update(request_of(registry, version, task, states))
                states[version.state] = done.state
                differs = _surroundings(registry, version, done, request_of(registry, version, task))
                hops.append(_compared(registry, version, done, aside, differs, time.perf_counter() - before))
                told(hops[-1])
                if restore and hops[-1].equal:
                    restored += _restore(registry, version, done, aside)
                aside.delete(cache_name(version.snapshot_digest))
    last = chain[-1]
    return Reproduction(
        model=registry.model,
        version=last.version,
        from_parent=from_parent,
        equal=hops[-1].equal,
        hops=tuple(hops),
        seconds=time.perf_counter() - started,
        restored=tuple(restored),
    )


def request_of(
    registry: Registry, version: VersionRecord, task: str, states: Mapping[str, str] | None = None
) -> UpdateRequest:
    """What was asked of the workers, put together from the record. `states`: other names of states, of its parent."""
    settings = registry.settings(version.version)
    wanted = {key: settings[key] for key in ("model", "method", "train", "adapter")}
    if version.kind == "surgery":
        wanted["transfer_names"] = _transfer_names(registry, version)
    challenger = version.challenger
    parent = challenger.parent
    return UpdateRequest(
        number=abs(2 * version.round_index) + (version.kind != "stateful"),
        kind=version.kind,
        parent=(states or {}).get(parent, parent) if parent else None,
        snapshot=challenger.snapshot,
        cursor=challenger.cursor,
        seed=challenger.seed,
        task=task,
        settings=wanted,
    )


def _transfer_names(registry: Registry, version: VersionRecord) -> Json:
    with registry.store.reading() as session:
        row = session.get(StageRow, (registry.model, version.round_index, ASKED))
        return dict((row.record or {}).get("transfer_names", {})) if row else {}


class _Inputs:
    """The files that a chain of versions was trained on."""

    def __init__(self, registry: Registry, chain: list[VersionRecord], data_path: str | None) -> None:
        self._storage = registry.store.storage
        self._settings: dict[str, Json] = {}
        self._sources: dict[str, Source] = {}
        self._logs: dict[str, EventLog] = {}
        self._files: dict[str, dict[str, set[str]]] = {}  # of each source, by name: digests on record
        self._key = {}
        for version in chain:
            settings = registry.settings(version.version)["data"]
            settings = settings | ({"path": data_path} if data_path else {})
            key = self._key[version.version] = digest_json(settings)
            if key not in self._sources:
                self._sources[key] = build(settings, "data")
                self._sources[key].prepare()
            named = self._files.setdefault(key, {})
            for file in manifest_of(self._storage, version.snapshot_digest)["files"]:
                named.setdefault(file["name"], set()).add(file["digest"])

    def source(self, version: VersionRecord) -> Source:
        return self._sources[self._key[version.version]]

    def check(self) -> None:
        """Raise unless every file is there and is the one on record."""
        wrong = [line for key, named in self._files.items() for line in _wrong(self._sources[key], named)]
        if wrong:
            more = f", and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
            raise DigestError(
                f"{len(wrong)} file(s) are not those on record: {'; '.join(wrong[:SHOWN])}{more}. Restore them, or say "
                "where they are with --data-path"
            )

    def decode(self, version: VersionRecord, aside: Storage) -> None:
        """The rows of its snapshot into the cache of `aside`."""
        key, digest = self._key[version.version], version.snapshot_digest
        if key not in self._logs:
            self._logs[key] = EventLog(cast(Source, _Recorded(self._sources[key], sorted(self._files[key]))))
        aside.write_json(f"snapshots/{digest}.json", self._storage.read_json(f"snapshots/{digest}.json"))
        Snapshots(self._logs[key], aside, SnapshotSettings()).rebuild(digest)


class _Recorded:
    """A source as it was: the files on record alone, whatever came after them."""

    def __init__(self, source: Source, names: list[str]) -> None:
        self._source, self._names = source, names

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def files(self) -> list[str]:
        return self._names


def manifest_of(storage: Storage, digest: str) -> Json:
    """A snapshot's manifest. Raises `StoreError` where there is none, `DigestError` where it was altered."""
    name = f"snapshots/{digest}.json"
    if not storage.exists(name):
        raise StoreError(f"{storage.path(name)} is not there, so nobody knows which rows it named")
    manifest = storage.read_json(name)
    if digest_json({k: v for k, v in manifest.items() if k not in DERIVED}) != digest:
        raise DigestError(f"{storage.path(name)} was altered: its digest is not its name")
    return manifest


def _wrong(source: Source, named: Mapping[str, set[str]]) -> Iterator[str]:
    """What is wrong with each file that is not as it was, in words. A missing one is looked for under other names."""
    others: dict[str, str] | None = None
    for name, digests in sorted(named.items()):
        found = _digest(source, name)
        path, expected = source.locate(name)[1], " and ".join(sorted(d[:12] for d in digests))
        if found is None:
            if others is None:
                others = {_digest(source, n) or "": n for n in _names(source) if n not in named}
            moved = next((others[d] for d in digests if d in others), None)
            yield f"{path} is missing (digest {expected})" + (f": {moved} has its content" if moved else "")
        elif digests != {found}:
            yield f"{path} was altered: its digest is {found[:12]}, on record is {expected}"


def _names(source: Source) -> list[str]:
    try:
        return source.files()
    except CltrainError:
        return []


def _digest(source: Source, name: str) -> str | None:
    filesystem, path = source.locate(name)
    try:
        return digest_file(path, filesystem)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error}") from error


def _copy_state(store: Storage, aside: Storage, state: str) -> None:
    names = store.names(state)
    if f"{state}/state.json" not in names:
        raise StoreError(f"{store.path(state)} is no longer kept: reproduce the whole chain, without --from-parent")
    about = store.read_json(f"{state}/state.json")
    for name in [*names, *([base_name(about["base"])] if "base" in about else [])]:
        aside.write(name, store.read(name))


@contextlib.contextmanager
def _runners(
    folder: str, chain: list[VersionRecord], workers: int | None
) -> Iterator[Callable[[VersionRecord], Runner]]:
    """What trains a version as it was trained: in this process, and on a group where several workers had and a group
    was asked for."""
    with contextlib.ExitStack() as stack:
        groups: dict[str, Runner] = {}

        def runner_of(version: VersionRecord) -> Runner:
            made = version.challenger.made
            threads, engine = made.get("threads", 1), made.get("engine")
            cuda = _on_gpu(version) and torch.cuda.is_available()
            if not workers or version.challenger.workers == 1:
                alone = build(engine, "engine").min_workers <= 1 if engine else True
                return LocalRunner(
                    root=folder, threads=threads, device="cuda" if cuda else "cpu", engine=engine if alone else None
                )
            key = digest_json([threads, engine])
            if key not in groups:
                cluster = Cluster(workers=workers, threads_per_worker=threads, gpus_per_worker=float(cuda))
                stack.enter_context(cluster.session(True, {"job": "reproduce"}))
                groups[key] = stack.enter_context(cluster.runner(Store(root=folder), engine))  # type: ignore[assignment]
            return groups[key]

        yield runner_of


def _on_gpu(version: VersionRecord) -> bool:
    device = version.challenger.made.get("device")
    return device is not None and device.rsplit(" ", 1)[0] != device_kind("cpu").rsplit(" ", 1)[0]


def _compared(
    registry: Registry, version: VersionRecord, done: Challenger, aside: Storage, differs: Json, seconds: float
) -> Hop:
    store = registry.store.storage
    rebuilt = aside.read_json(f"{done.state}/state.json")
    kept = store.exists(f"{version.state}/state.json")
    recorded = store.read_json(f"{version.state}/state.json")["files"] if kept else {}
    equal = done.weights_digest == version.weights_digest
    return Hop(
        version=version.version,
        kind=version.kind,
        recorded=version.weights_digest,
        rebuilt=done.weights_digest,
        equal=equal,
        files={name: digest == rebuilt["files"].get(name) for name, digest in recorded.items()},
        largest_difference=0.0 if equal else _difference(store, version.state, aside, done.state),
        differs=differs,
        seconds=seconds,
    )


def _difference(store: Storage, state: str, aside: Storage, rebuilt: str) -> float | None:
    """The largest of any weight; None where one of the states is not there or their shapes differ."""
    try:
        ours, theirs = (
            load_state(storage, name, only_weights=True).served_weights
            for storage, name in ((aside, rebuilt), (store, state))
        )
    except StoreError:
        return None
    if {n: w.shape for n, w in ours.items()} != {n: w.shape for n, w in theirs.items()}:
        return None
    apart = ((w.double() - theirs[n].double()).abs() for n, w in ours.items() if w.numel())
    return max((float(a.max()) for a in apart), default=0.0)


def _surroundings(registry: Registry, version: VersionRecord, done: Challenger, request: UpdateRequest) -> Json:
    """What decides the bits, where it is not what it was. `request`: as the record has it; another name of it means
    that the record does not hold all that was asked for."""
    packages = registry.packages(version.version)
    then: Json = {"commit": version.code_commit, "workers": version.challenger.workers, **packages}
    now: Json = {"commit": code_commit(), "workers": done.workers, **package_versions()}
    then["request"], now["request"] = version.state, state_name(request_digest(request))
    for key, value in version.challenger.made.items():
        then[key], now[key] = value, done.made.get(key)
    return {key: [then[key], now.get(key)] for key in then if then[key] != now.get(key)}


def _restore(registry: Registry, version: VersionRecord, done: Challenger, aside: Storage) -> Iterator[str]:
    """Put back each file of a version that the store lacks or that was altered; the names of those. `state.json` comes
    last, and a version that was collected is no longer marked as such."""
    store = registry.store.storage
    about = aside.read_json(f"{done.state}/state.json")
    names = {f"{version.state}/{file}": f"{done.state}/{file}" for file in about["files"]}
    if "base" in about:
        names[base_name(about["base"])] = base_name(about["base"])
    names[f"{version.state}/state.json"] = f"{done.state}/state.json"
    for name, made in names.items():
        if not store.exists(name) or store.digest(name) != aside.digest(made):
            store.write(name, aside.read(made))
            yield name
    registry.tag(version.version, COLLECTED, None)
