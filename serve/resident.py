"""The versions that a replica holds in memory, and the one reference that says which of them answers."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from cltrain.errors import DigestError, ServingError, StoreError
from cltrain.records import EVENT_TIME
from cltrain.registry import Registry, VersionRecord
from cltrain.registry.registry import PREVIOUS
from cltrain.storage import Storage
from cltrain.train.predictor import Predictor

log = logging.getLogger(__name__)

WARM_UP_ROWS = (1, 1, 32)
MAX_RETRY_S = 5.0


@dataclass(frozen=True)
class Served:
    """What answers: never changed, only replaced."""

    version: str
    epoch: int
    predictor: Predictor
    since: datetime


@dataclass(frozen=True)
class Loaded:
    predictor: Predictor
    weights_digest: str
    loaded_at: datetime
    load_s: float


class ResidentVersions:
    """Champion and previous champion of a registry, loaded and warm; `current` is the pair that a request reads once.

    `refresh` looks at the registry's epoch and follows it: the new champion is loaded, its digests are checked and it
    is warmed up before `current` points to it. One that cannot be loaded leaves the old one answering; `error` says
    why, and it is tried again, ever more slowly. `start` does all this in a thread every `poll_s` seconds.
    """

    def __init__(self, registry: Registry, poll_s: float) -> None:
        self.current: Served | None = None
        self.error: str | None = None
        self.registry_epoch = 0
        self._registry, self._poll_s = registry, poll_s
        self._loaded: dict[str, Loaded] = {}
        self._loading = threading.Lock()
        self._failures, self._retry_at = 0, 0.0
        self._wake, self._stopping = threading.Event(), False
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
        """Look now: something was promoted here."""
        self._wake.set()

    def refresh(self) -> bool:
        """Look once; whether `current` changed. Whatever goes wrong ends up in `error`."""
        try:
            epoch = self._registry.epoch()
            if epoch == self.registry_epoch and (self.error is None or time.monotonic() < self._retry_at):
                return False
            changed = self._follow_to(epoch)
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
        """Load a version before it is promoted. Raises what makes it unfit: `DigestError`, `ServingError`, …"""
        self._load(record)

    def resident(self) -> dict[str, Loaded]:
        return dict(self._loaded)

    def _follow(self) -> None:
        while not self._stopping:
            self._wake.wait(self._poll_s)
            self._wake.clear()
            if not self._stopping:
                self.refresh()

    def _follow_to(self, epoch: int) -> bool:
        champion, epoch = self._champion(epoch)
        self.registry_epoch = epoch
        if champion is None or (self.current is not None and self.current.epoch == epoch):
            return False
        self.current = Served(champion.version, epoch, self._load(champion).predictor, datetime.now(UTC))
        previous = self._previous()
        keep = {champion.version, previous and previous.version}
        with self._loading:
            self._loaded = {version: loaded for version, loaded in self._loaded.items() if version in keep}
        if previous is not None:
            self._load_previous(previous)
        return True

    def _fall_back(self) -> bool:
        """A process that starts beside a champion that it cannot load answers with the previous one, at an epoch that
        is behind the registry's."""
        previous = self._previous()
        loaded = self._load_previous(previous) if previous is not None else None
        if previous is None or loaded is None:
            return False
        self.current = Served(previous.version, self.registry_epoch - 1, loaded.predictor, datetime.now(UTC))
        return True

    def _previous(self) -> VersionRecord | None:
        try:
            return self._registry.version(PREVIOUS)
        except StoreError:
            return None

    def _load_previous(self, previous: VersionRecord) -> Loaded | None:
        """Resident, so that a rollback reads nothing from disk; a previous champion that is broken is only reported."""
        try:
            return self._load(previous)
        except Exception as error:
            log.warning("the previous champion cannot be loaded: %s: %s", type(error).__name__, error)
            return None

    def _champion(self, epoch: int) -> tuple[VersionRecord | None, int]:
        """The champion and the epoch that belong together."""
        while True:
            champion = self._registry.champion()
            after = self._registry.epoch()
            if after == epoch:
                return champion, epoch
            epoch = after

    def _load(self, record: VersionRecord) -> Loaded:
        with self._loading:
            if record.version not in self._loaded:
                self._loaded = {**self._loaded, record.version: load(self._registry.store.storage, record)}
            return self._loaded[record.version]


def load(storage: Storage, record: VersionRecord) -> Loaded:
    """A version that is whole, is the registered one, and answers. Raises `DigestError` or `ServingError` otherwise."""
    started = time.perf_counter()
    files: Mapping[str, Any] = storage.read_json(f"{record.state}/state.json")["files"]
    if files["weights.safetensors"] != record.weights_digest:
        raise DigestError(f"{record.model}:{record.version}: the weights in {record.state} are not the registered ones")
    predictor = Predictor.load(storage, record.state)
    for rows in WARM_UP_ROWS:
        for answer in predictor.answer([{EVENT_TIME: datetime.now(UTC)}] * rows):
            if not math.isfinite(chosen(answer)[0]):
                raise ServingError(
                    f"{record.model}:{record.version} answers {answer} to a row of nulls: it is not served"
                )
    return Loaded(predictor, record.weights_digest, datetime.now(UTC), time.perf_counter() - started)


def chosen(answer: Mapping[str, Any]) -> tuple[float, str | None]:
    """One number and one label for an answer: probability of the positive class and 0 or 1; probability of the class
    answered and that class; or the value and no label."""
    if "probabilities" in answer:
        return answer["probabilities"][answer["label"]], answer["label"]
    if "probability" in answer:
        return answer["probability"], str(answer["label"])
    return answer["value"], None
