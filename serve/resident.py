"""The versions that a replica holds in memory, and the one reference that says which of them answer whom."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import torch

from cltrain.config import build
from cltrain.errors import CltrainError, DigestError, ServingError
from cltrain.online.assignment import arm_of
from cltrain.records import EVENT_TIME
from cltrain.registry import Registry, VersionRecord
from cltrain.registry.base import CHAMPION, PREVIOUS
from cltrain.registry.deployment import SHADOW, Deployment, Deployments
from cltrain.storage import Storage
from cltrain.train.predictor import CPU, Predictor
from cltrain.train.state import load_golden, load_state, weights_digest
from serve.policy.policy_layer import ThresholdPolicy
from serve.rollout.bandit import BANDIT, Chooser
from serve.scores import chosen

log = logging.getLogger(__name__)

WARM_UP_ROWS = (1, 1, 32)
MAX_RETRY_S = 5.0
MAX_PAUSE_S = 0.02
REMOTE_SNAPSHOT_S = 1.0  # between two looks at a bandit's snapshot in an object store, at least
BYTES_PER_PARAMETER = 4


class _Uses:
    """How many requests are being answered."""

    __slots__ = ("_lock", "count")

    def __init__(self) -> None:
        self.count, self._lock = 0, threading.Lock()

    @contextmanager
    def one(self) -> Iterator[None]:
        with self._lock:
            self.count += 1
        try:
            yield
        finally:
            with self._lock:
                self.count -= 1


@dataclass(frozen=True)
class Loaded:
    version: str
    predictor: Predictor
    weights_digest: str
    loaded_at: datetime
    load_s: float
    uses: _Uses = field(default_factory=_Uses, compare=False)


@dataclass(frozen=True)
class Choice:
    """Who answers a unit: `arm` was drawn with a chance of `share`; `loaded` is its version, or the champion's where
    the arm's is not here, which `stands_in` says. snapshot: of the bandit that chose, from `context`."""

    arm: str
    share: float
    loaded: Loaded
    stands_in: bool = False
    snapshot: str | None = None
    context: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Served:
    """What answers: never changed, only replaced. arms: what has traffic, by role, the champion first. chooser: of the
    bandit that runs, if one does. policy: what makes labels of a binary model's scores, if it is not a half."""

    version: str
    epoch: int
    predictor: Predictor
    since: datetime
    deployment: Deployment
    arms: Mapping[str, Loaded]
    chooser: Chooser | None = None
    policy: ThresholdPolicy | None = None

    def choose(self, unit: str, request_id: str, row: Mapping[str, Any]) -> Choice:
        """Who answers a unit. A bandit chooses for each request anew, by what its first row is like. Raises `DataError`
        for a row whose features it cannot read."""
        shares, champion = self.deployment.shares, self.arms[CHAMPION]
        if self.chooser is not None:
            context = self.chooser.context(row) if self.chooser.context else ()
            found = self.chooser.snapshot.choose(request_id, context)
            loaded = self.arms.get(found.arm)
            return Choice(
                found.arm, found.propensity, loaded or champion, loaded is None, found.policy_version, context or None
            )
        if len(shares) < 2:
            return Choice(CHAMPION, 1.0, champion)
        arm = arm_of(unit, self.deployment.salt, shares)
        loaded = self.arms.get(arm)
        return Choice(arm, shares[arm], loaded or champion, stands_in=loaded is None)


class ResidentVersions:
    """The versions of the desired state, loaded and warm; `current` is what a request reads once.

    `refresh` looks at the registry's epoch and follows it: a new champion is loaded, its digests are checked and it is
    warmed up before `current` points to it. One that cannot be loaded leaves the old one answering; `error` says why,
    and it is tried again, ever more slowly. Challengers come after it; one that cannot be loaded gets no request, and
    `problems` says why. What no role names any more goes when it answers nobody. `start` does all this in a thread
    every `poll_s` seconds. memory_mb: of all weights together; what would not fit is not loaded.
    """

    def __init__(
        self,
        registry: Registry,
        poll_s: float,
        memory_mb: float | None = None,
        new_features: bool = False,
        device: torch.device = CPU,
    ) -> None:
        self.current: Served | None = None
        self.error: str | None = None
        self.problems: dict[str, str] = {}
        self.registry_epoch = 0
        self.on_change: Callable[[Served], None] = lambda _: None
        self._registry, self._deployments, self._poll_s = registry, Deployments(registry), poll_s
        self._new_features, self._device = new_features, device
        self._memory_bytes = math.inf if memory_mb is None else 1e6 * memory_mb
        self._loaded: dict[str, Loaded] = {}
        self._held: set[str] = set()
        self._loading = threading.Lock()
        self._failures, self._retry_at, self._snapshot_due = 0, 0.0, 0.0
        self._wake, self._stopping = threading.Event(), False
        self._looking = threading.Lock()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Follow the registry from now on; the first look has been taken when this returns."""
        self.refresh()
        self._thread = threading.Thread(target=self._follow, name="cltrain-registry", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopping = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join()

    def wake(self) -> None:
        """Look now: something was changed here."""
        self._wake.set()

    def refresh(self) -> bool:
        """Look once; whether `current` changed. Whatever goes wrong ends up in `error`. One thread at a time."""
        with self._looking:
            return self._look()

    def _look(self) -> bool:
        try:
            epoch = self._deployments.epoch()
            if epoch == self.registry_epoch and (self.error is None or time.monotonic() < self._retry_at):
                self._retire()
                self._read_snapshot()
                return False
            changed = self._follow_to(epoch)
            self._read_snapshot()
        except Exception as error:  # a registry that is down and a version that is broken: keep answering, try again
            self._failures += 1
            self._retry_at = time.monotonic() + min(self._poll_s * 2 ** min(self._failures, 10), MAX_RETRY_S)
            message = f"{type(error).__name__}: {error}"
            if message != self.error:
                log.error("%s keeps %s: %s", self._registry.model, self.current and self.current.version, message)
            self.error = message
            return self.current is None and self._fall_back()
        self.error, self._failures = None, 0
        return changed

    def stage(self, record: VersionRecord) -> None:
        """Load a version before it is promoted, and hold it until the next change of what is deployed or `release`.
        Raises what makes it unfit: `DigestError`, `ServingError`, …"""
        self._held.add(record.version)
        try:
            self._load(record)
        except Exception:
            self.release(record.version)
            raise

    def release(self, version: str) -> None:
        """It is not promoted after all."""
        self._held.discard(version)

    def resident(self) -> dict[str, Loaded]:
        return dict(self._loaded)

    def _follow(self) -> None:
        while not self._stopping:
            self._wake.wait(self._poll_s)
            self._wake.clear()
            if not self._stopping:
                self.refresh()

    def _follow_to(self, epoch: int) -> bool:
        pause = self._pauses()
        deployment = self._deployments.current()
        self.registry_epoch = deployment.epoch
        if deployment.champion is None or (self.current is not None and self.current.epoch == deployment.epoch):
            return False
        pause()
        champion = self._load(self._registry.version(deployment.champion))
        self.problems, self._held = {}, set()
        # What is here already answers at once; a challenger that has to be loaded has no share before all have it.
        arms = {role: self._loaded.get(deployment.roles[role]) for role in deployment.shares}
        self._serve(deployment, {role: loaded for role, loaded in arms.items() if loaded} | {CHAMPION: champion})
        self._retire()
        for role, version in deployment.roles.items():
            if role not in (CHAMPION, SHADOW) and version not in self._loaded:
                self._load_beside(version, role, deployment)
        return True

    def _serve(self, deployment: Deployment, arms: Mapping[str, Loaded], behind: int = 0) -> None:
        champion = arms[CHAMPION]
        self.current = Served(
            champion.version,
            deployment.epoch - behind,
            champion.predictor,
            datetime.now(UTC),
            deployment,
            arms,
            self._chooser(deployment, champion),
            ThresholdPolicy.of(deployment),
        )
        self.on_change(self.current)

    def _chooser(self, deployment: Deployment, champion: Loaded) -> Chooser | None:
        """Of the bandit that runs; what was learned so far is kept from one epoch to the next."""
        trial, held = deployment.running, self.current
        if trial is None or trial.kind != BANDIT or trial.step < 0:
            return None
        before = held.deployment.running if held is not None else None
        if held is not None and held.chooser is not None and before is not None and before.id == trial.id:
            return held.chooser
        try:
            kind = build(trial.settings, "rollout")
            return Chooser.start(kind.floored, kind.arms, champion.predictor.state.encoder, kind.features)
        except CltrainError as error:  # units keep to the equal shares of the start, and nothing is learned of them
            self.problems[trial.version] = f"{type(error).__name__}: {error}"
            return None

    def _read_snapshot(self) -> None:
        """What the bandit has learned since; a request that is being answered keeps what it began with."""
        served = self.current
        if served is None or served.chooser is None or served.deployment.running is None:
            return
        now = time.monotonic()
        if not self._registry.store.storage.is_local and now < self._snapshot_due:
            return
        self._snapshot_due = now + REMOTE_SNAPSHOT_S
        try:
            chooser = served.chooser.read(self._registry.store.storage, served.deployment.running.id)
        except Exception as error:  # the last one that could be read is good enough
            log.warning("a snapshot of the bandit cannot be read: %s: %s", type(error).__name__, error)
            return
        if chooser is not served.chooser:
            self.current = replace(served, chooser=chooser)

    def _load_beside(self, version: str, role: str, deployment: Deployment) -> None:
        """A previous champion, so that a rollback reads nothing from disk, or a challenger. One that is broken is only
        reported."""
        try:
            loaded = self._load(self._registry.version(version))
            if role in deployment.shares:
                self._require_same_requests(loaded)
        except Exception as error:
            self.problems[version] = f"{type(error).__name__}: {error}"
            log.warning("%s, the %s, cannot be loaded: %s", version, role, self.problems[version])
            return
        if role in deployment.shares and self.current is not None:
            self.current = replace(self.current, arms={**self.current.arms, role: loaded})
            self.on_change(self.current)

    def _require_same_requests(self, loaded: Loaded) -> None:
        """What clients send for the champion must do for a challenger."""
        assert self.current is not None
        ours, theirs = loaded.predictor.state.encoder, self.current.predictor.state.encoder
        missing = sorted(set(ours.names) - set(theirs.names))
        if ours.task != theirs.task:
            raise ServingError(f"{loaded.version} answers {ours.task}, and the champion {theirs.task}")
        if missing and not self._new_features:
            raise ServingError(
                f"{loaded.version} reads {', '.join(missing[:5])}, which requests to the champion need not have: "
                "set serve.new_features=true once clients send them"
            )

    def _fall_back(self) -> bool:
        """A process that starts beside a champion that it cannot load answers with the previous one, at an epoch that
        is behind the registry's."""
        try:
            deployment = self._deployments.current()
            previous = self._load(self._registry.version(deployment.roles[PREVIOUS]))
        except KeyError:
            return False
        except Exception as error:
            log.warning("the previous champion cannot be loaded: %s: %s", type(error).__name__, error)
            return False
        alone = replace(deployment, roles={CHAMPION: previous.version}, shares={CHAMPION: 1.0}, roll_out=None)
        self._serve(alone, {CHAMPION: previous}, behind=1)
        return True

    def _load(self, record: VersionRecord) -> Loaded:
        with self._loading:
            if record.version not in self._loaded:
                self._require_memory(record)
                loaded = load(self._registry.store.storage, record, self._pauses(), self._device)
                self._loaded = {**self._loaded, record.version: loaded}
            return self._loaded[record.version]

    def _pauses(self) -> Callable[[], None]:
        """What is called between two pieces of work: it rests for as long as the last one took, so that the requests
        which wait for the interpreter meanwhile are answered. Nobody waits while nothing is served."""
        return _Pauses() if self.current is not None else lambda: None

    def _require_memory(self, record: VersionRecord) -> None:
        needed = BYTES_PER_PARAMETER * record.challenger.parameters
        held = sum(loaded.predictor.size_bytes for loaded in self._loaded.values())
        if held + needed > self._memory_bytes:
            raise ServingError(
                f"{record.model}:{record.version} needs {needed / 1e6:.3g} MB beside the {held / 1e6:.3g} MB of "
                f"{', '.join(self._loaded) or 'none'}, above serve.memory_mb={self._memory_bytes / 1e6:.3g}: "
                "raise it, or end what is under trial"
            )

    def _retire(self) -> None:
        """Drop what no role names, once no request is answered by it."""
        if self.current is None:
            return
        keep = {*self.current.deployment.roles.values(), self.current.version, *self._held}
        with self._loading:
            if not self._loaded.keys() <= keep:
                self._loaded = {
                    version: one for version, one in self._loaded.items() if version in keep or one.uses.count
                }
                if self._device.type == "cuda":
                    torch.cuda.empty_cache()  # other replicas on this GPU have use for it


class _Pauses:
    def __init__(self) -> None:
        self._since = time.perf_counter()

    def __call__(self) -> None:
        time.sleep(min(time.perf_counter() - self._since, MAX_PAUSE_S))
        self._since = time.perf_counter()


@contextmanager
def _aside(device: torch.device) -> Iterator[None]:
    """What a GPU does in the block does not queue with what other threads ask of it, and is done at the end."""
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        yield
    stream.synchronize()


def load(
    storage: Storage,
    record: VersionRecord,
    pause: Callable[[], None] = lambda: None,
    device: torch.device = CPU,
) -> Loaded:
    """A version that is whole, is the registered one, and answers on `device` as it did when it was made; `pause` is
    called between pieces of the work. Raises `DigestError` or `ServingError` otherwise. One from before there were
    golden batches needs only answer."""
    with _aside(device):
        return _load(storage, record, pause, device)


def _load(storage: Storage, record: VersionRecord, pause: Callable[[], None], device: torch.device) -> Loaded:
    started = time.perf_counter()
    if weights_digest(storage, record.state) != record.weights_digest:
        raise DigestError(f"{record.model}:{record.version}: the weights in {record.state} are not the registered ones")
    pause()
    state = load_state(storage, record.state, only_weights=True)
    pause()
    predictor = Predictor.of(state, device)
    for rows in WARM_UP_ROWS:
        pause()
        for answer in predictor.answer([{EVENT_TIME: datetime.now(UTC)}] * rows):
            if not math.isfinite(chosen(answer)[0]):
                raise ServingError(
                    f"{record.model}:{record.version} answers {answer} to a row of nulls: it is not served"
                )
    pause()
    golden = load_golden(storage, record.state)
    pause()
    if golden is not None and (why := golden.problem(predictor)):
        raise ServingError(f"{record.model}:{record.version} {why}; it is not served")
    return Loaded(record.version, predictor, record.weights_digest, datetime.now(UTC), time.perf_counter() - started)
