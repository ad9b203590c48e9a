"""The process of the application that acts on roll-outs, one for all replicas: it runs for as long as the application,
whoever started that, and Ray Serve starts another one where it dies.

It is idle most of the time, so it imports no torch before there is something to act on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from cltrain.config import build, locate
from cltrain.records import from_json, to_json
from cltrain.registry import Registry, Store
from cltrain.registry.deployment import Deployments, Trial
from cltrain.storage import Storage
from serve.endings import FOLDER, tell_of, told_epoch

if TYPE_CHECKING:
    from serve.rollout.controller import Controller

log = logging.getLogger(__name__)

APP, INGRESS, CONTROLLER = "cltrain", "ingress", "controller-of-cltrain"
IDLE_S = 0.1  # between two looks for something to act on
COUNT_S = 1.0  # between two counts of the replicas
BEAT_S = 10.0  # at most, between two notes
ALERT_S = 30.0  # that an alert may take before the roll-outs go on without it
STALE = timedelta(seconds=3 * BEAT_S)


@dataclass(frozen=True, kw_only=True)
class Note:
    """What the controller of a model says of itself, in the store. replicas: of the application, which are alive.
    error: what keeps it from acting on roll-outs."""

    at: datetime
    replicas: int
    error: str | None = None

    @property
    def is_stale(self) -> bool:
        """There is no controller any more that would write a newer one."""
        return datetime.now(UTC) - self.at > STALE


def read_note(storage: Storage, model: str) -> Note | None:
    """The last one; None before there is one. Raises `StoreError`."""
    return from_json(Note, storage.read_json(_place(model))) if storage.exists(_place(model)) else None


def _place(model: str) -> str:
    return f"{FOLDER}/{model}.json"


class Control:
    """Runs the `Controller` of a model from the moment on at which there is something to act on, and writes a `Note`
    of how it is. store, model: as in `ServerSettings`. replicas: how many there are, until Serve says so. policy:
    settings of what adapts the policy layer. alert: name of a function that is told what was taken back or stopped.

    A roll-out that was ended is told of at least once: twice where this process dies between the two.
    """

    def __init__(
        self,
        *,
        store: Mapping[str, Any],
        model: str,
        replicas: int,
        policy: Mapping[str, Any] | None = None,
        alert: str | None = None,
    ) -> None:
        self._store, self._model, self._replicas = Store(**store), model, replicas
        self._policy, self._alert = policy, alert
        self._controller: Controller | None = None
        self._error: str | None = None
        self._epoch: int | None = None
        self._noted: tuple[int, str | None] | None = None
        self._complete = False
        self._count_due = self._note_due = 0.0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cltrain-control", daemon=True)
        self._thread.start()

    def check_health(self) -> None:
        """Serve asks this every few seconds, and starts another process in place of one that raises."""
        if not self._thread.is_alive() or (self._controller is not None and not self._controller.alive):
            raise RuntimeError(f"nothing acts on the roll-outs of {self._model} any more")

    def close(self) -> None:
        self._stop.set()
        self._thread.join()
        if self._controller is not None:
            self._controller.close()

    def _run(self) -> None:
        while not self._stop.wait(IDLE_S):
            try:
                self._look()
                self._error = None
            except Exception as error:  # a store that is down, say
                message = f"{type(error).__name__}: {error}"
                if message != self._error:
                    log.error("roll-outs of %s cannot be acted on: %s", self._model, message)
                self._error = message
                self._stop.wait(1.0)

    def _look(self) -> None:
        if time.monotonic() >= self._count_due:
            self._count_due = time.monotonic() + COUNT_S
            self._count()
            if self._controller is not None:
                self._controller.replicas = self._replicas
        said = (self._replicas, self._controller.error if self._controller is not None else self._error)
        if said != self._noted or time.monotonic() >= self._note_due:
            note = Note(at=datetime.now(UTC), replicas=said[0], error=said[1])
            self._store.storage.write_json(_place(self._model), to_json(note))
            self._noted, self._note_due = said, time.monotonic() + BEAT_S
        if self._controller is None and self._is_needed():
            self._controller = self._start()

    def _count(self) -> None:
        """What is starting up counts until all have started once."""
        try:
            live = live_replicas()
        except Exception as error:  # Serve's controller is being restarted: their number is what it was
            log.debug("replicas cannot be counted: %s", error)
            return
        self._complete = self._complete or live >= self._replicas
        if self._complete and live:
            self._replicas = live

    def _is_needed(self) -> bool:
        """Whether a roll-out runs, or one has ended of which nobody was told, or the policy layer is to adapt."""
        deployments = Deployments(Registry(self._store, self._model))
        epoch = deployments.epoch()
        if epoch == self._epoch:
            return False
        told = told_epoch(self._store.storage, self._model) if self._epoch is None else None
        behind = told is not None and told < epoch
        if self._policy is not None or behind or deployments.current().running is not None:
            return True
        self._epoch = epoch
        return False

    def _start(self) -> Controller:
        from serve.rollout.controller import Controller

        policy = build(self._policy, "serve.policy") if self._policy is not None else None
        registry = Registry(self._store, self._model)
        controller = Controller(registry, replicas=self._replicas, policy=policy, on_end=self._tell)
        controller.start()
        return controller

    def _tell(self, trial: Trial) -> None:
        """A function that never returns must not keep guardrails from acting."""
        if self._alert is None:
            return
        alerts = [locate(self._alert, "serve.alert")]
        told = threading.Thread(target=tell_of, args=(trial, self._model, alerts), name="cltrain-alert", daemon=True)
        told.start()
        told.join(ALERT_S)
        if told.is_alive():
            log.error("serve.alert=%s has not returned after %g s: going on without it", self._alert, ALERT_S)


def live_replicas() -> int:
    """How many replicas of the application may get requests; 0 where there is no Serve that would say so."""
    import ray
    from ray import serve

    if not ray.is_initialized():  # asking would start one
        return 0
    app = serve.status().applications.get(APP)
    ingress = app.deployments.get(INGRESS) if app is not None else None
    return sum(n for state, n in ingress.replica_states.items() if state == "RUNNING") if ingress is not None else 0
