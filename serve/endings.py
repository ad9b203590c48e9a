"""Who is told of a roll-out that has ended, and how often: endings are read from the registry, by whoever has somebody
to tell.

It imports little, since the application's controller starts with it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from cltrain.registry import Registry
from cltrain.registry.deployment import Deployment, Deployments, Trial
from cltrain.storage import Storage

if TYPE_CHECKING:
    from cltrain.parts import Alert

log = logging.getLogger(__name__)

BY = "roll-out"  # who commits what the evidence has decided
FOLDER = "controllers"
EVERY_S = 1.0


class Endings:
    """Calls `on_end` with each commit by which a controller ends a roll-out, in their order. One that people end is
    theirs to tell of.

    kept: the store keeps how far this has come, so that who comes after a crash goes on from there. Each is told at
    least once then: twice if the crash is between telling and writing that down. Otherwise each that ends from now on
    is told once, as long as this process lives.
    """

    def __init__(self, registry: Registry, on_end: Callable[[Deployment], None], *, kept: bool) -> None:
        self._deployments, self._storage, self._on_end = Deployments(registry), registry.store.storage, on_end
        self._model, self._kept = registry.model, kept
        self._epoch: int | None = None
        self._stop, self._thread = threading.Event(), threading.Thread(target=self._run, name="cltrain-endings")
        self._thread.daemon = True

    def look(self, epoch: int | None = None) -> None:
        """Tell of what is new; `epoch` is the registry's, if it is known. Raises `StoreError`; what was told by then is
        not told again by this process."""
        epoch = self._deployments.epoch() if epoch is None else epoch
        since = self._since(epoch)
        if epoch == since:
            return
        for one in self._commits(since):
            if one.by == BY and one.roll_out and one.roll_out.status != "running":
                self._on_end(one)
            self._epoch = one.epoch
        self._epoch = max(epoch, self._epoch or 0)
        self._write()

    def _commits(self, since: int) -> list[Deployment]:
        epoch = -1
        rows: list[Deployment] = []
        while epoch != (now := self._deployments.epoch()):  # more of them may come in between
            epoch = now
            rows = self._deployments.history(epoch - since) if epoch > since else []
        return [one for one in rows if one.epoch > since]

    def start(self) -> None:
        """Look every second from now on."""
        self._since(self._deployments.epoch())
        self._thread.start()

    def close(self) -> None:
        """Look a last time, and stop."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _since(self, epoch: int) -> int:
        if self._epoch is None:
            self._epoch = told_epoch(self._storage, self._model) if self._kept else epoch
            if self._epoch is None:
                self._epoch = epoch
                self._write()
        return self._epoch

    def _write(self) -> None:
        if self._kept:
            self._storage.write_json(_place(self._model), {"epoch": self._epoch})

    def _run(self) -> None:
        over = False
        while not over:
            over = self._stop.wait(EVERY_S)
            try:
                self.look()
            except Exception as error:  # the registry is away for a while
                log.debug("endings of roll-outs cannot be read: %s", error)


def told_epoch(storage: Storage, model: str) -> int | None:
    """Up to which epoch endings were told of; None where that was never written down. Raises `StoreError`."""
    return int(storage.read_json(_place(model))["epoch"]) if storage.exists(_place(model)) else None


def _place(model: str) -> str:
    return f"{FOLDER}/{model}-told.json"


def tell_of(trial: Trial, model: str, alerts: Sequence[Alert]) -> None:
    """Tell everybody of a roll-out that was taken back or stopped; one that fails keeps no other from being told."""
    if trial.status not in ("rolled_back", "stopped"):
        return
    title = f"{model}:{trial.version} was {trial.status.replace('_', ' ')}"
    for alert in alerts:
        try:
            alert(title, f"{trial.kind}: {trial.reason}. {model}:{trial.champion} answers everything.")
        except Exception:
            log.exception("an alert could not be sent: %s", title)
