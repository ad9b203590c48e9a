"""What a loop's round asks of an application that answers somewhere, whoever started it."""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import math
import time
from typing import Any

from cltrain.errors import ConflictError, ServingError, StoreError
from cltrain.parts import Alert
from cltrain.records import RollOut
from cltrain.registry import Registry
from cltrain.registry.deployment import STAGING, Deployment, Deployments, Trial
from serve.control import Note, read_note
from serve.endings import Endings, tell_of
from serve.rollout.controller import begin, check_fit, make_way, report
from serve.rollout.machine import RollOutKind
from serve.rollout.preference import INTERLEAVE, require_task
from serve.traffic import Traffic

log = logging.getLogger(__name__)
SETTLE_S = 5.0  # for the last labels to be joined, once replayed traffic has no more rows
COUNT_S = 0.5  # between two looks at how many replicas there are


class Serving:
    """The application at `url`: brings versions to traffic by its registry, and waits for what comes of it. replicas:
    how many there are, where its controller does not say. confirm_timeout_s: how long they may take to follow a
    swap."""

    url: str | None = None
    replicas: int = 1
    confirm_timeout_s: float = 30.0
    _registry: Registry | None = None
    _endings: Endings | None = None
    _replay: Traffic | None = None

    def check(self, kind: RollOutKind | None = None, task: str | None = None) -> None:
        """Raise `ConfigError` for a kind of roll-out that models of `task` cannot have."""
        if kind is not None and task is not None and kind.kind == INTERLEAVE:
            require_task(task)

    def stop(self) -> None:
        """Tell of what has ended up to now, and of nothing any more. Safe to call at any time."""
        endings, self._endings, self._registry = self._endings, None, None
        if endings is not None:
            endings.close()

    def roll_out(
        self, registry: Registry, version: str, previous: str | None, kind: RollOutKind, reason: str
    ) -> RollOut:
        """Bring a version to traffic as `kind` says, and wait for the outcome, `kind.wait_s` seconds at most or until
        replayed traffic has no more rows. `previous` is the champion that it was weighed against. After a crash the
        same call goes on with what it began. Raises `ConflictError` when there is another champion by now, and
        `ServingError` when replicas do not follow."""
        deployments = Deployments(registry)
        if (why := deployments.refused(version)) is not None:
            epoch = deployments.epoch()
            return RollOut(
                kind=kind.kind, version=version, previous=previous, epoch=epoch, status="rolled_back", reason=why
            )
        check_fit(registry, kind, version)
        if previous is None or (kind.kind == "swap" and not getattr(kind, "watch_s", 0.0)):
            epoch = registry.promote(version, by="loop", reason=reason, expected=previous)
            confirm_s = self.confirm(version, epoch)
            return RollOut(kind="swap", version=version, previous=previous, epoch=epoch, confirm_s=confirm_s)
        make_way(deployments, version, previous)
        if deployments.current().champion != version:  # it may have got there before a crash
            begin(deployments, kind, version, by="loop", reason=reason)
        self._outcome(deployments, version, kind.stage_timeout_s, staging=True)  # replayed traffic is kept for later
        replay = None if kind.kind == INTERLEAVE else self._replay  # which asks for predictions, and ranks nothing
        with replay.go_on() if replay else contextlib.nullcontext():
            trial, epoch = self._outcome(deployments, version, kind.wait_s)
        if trial is None:
            raise ConflictError(f"the roll-out of {version} is over: somebody else promoted or rolled back meanwhile")
        promoted = trial.status == "promoted"
        seen = report(registry, trial) if trial.status == "running" else {}
        return RollOut(
            kind=kind.kind,
            version=version,
            previous=previous,
            epoch=epoch,
            confirm_s=self.confirm(version, epoch) if promoted else None,
            status=trial.status,
            reason=seen.get("next", trial.reason),
            evidence=seen or trial.evidence,
        )

    def _outcome(
        self, deployments: Deployments, version: str, wait_s: float, staging: bool = False
    ) -> tuple[Trial | None, int]:
        """The roll-out as it ended, or as it stands when waiting is over, and the epoch; with `staging`, as soon as the
        version may have traffic."""
        end = time.monotonic() + wait_s
        settled = math.inf
        while True:
            now = deployments.current()
            trial = now.roll_out if now.roll_out and now.roll_out.version == version else None
            if self._replay is not None and self._replay.exhausted:
                settled = min(settled, time.monotonic() + SETTLE_S)
            over = trial is None or trial.status != "running" or (staging and trial.step != STAGING)
            if over or time.monotonic() > min(end, settled):
                return trial, now.epoch
            time.sleep(0.05)

    def confirm(self, version: str, epoch: int) -> float:
        """Seconds until every replica answers at `epoch` or later; raises `ServingError` that says what keeps them."""
        started = time.monotonic()
        followed: set[str] = set()
        seen: dict[str, Any] = {}
        wanted, count_due = self._wanted(), started + COUNT_S
        while len(followed) < wanted:
            now = time.monotonic()
            if now >= count_due:
                wanted, count_due = self._wanted(), now + COUNT_S
            with contextlib.suppress(OSError, http.client.HTTPException):
                seen = get_json(self._running(), "/versions", timeout_s=self.confirm_timeout_s)
                if seen["epoch"] >= epoch and seen["replica"] not in followed:
                    followed.add(seen["replica"])
                    continue
            if now - started > self.confirm_timeout_s:
                raise ServingError(
                    f"{len(followed)} of {wanted} replicas follow the swap to {version} (epoch {epoch}) after "
                    f"{self.confirm_timeout_s:g} s; one answers {seen.get('champion')} at epoch {seen.get('epoch')}: "
                    f"{seen.get('error') or 'it has not looked at the registry'}"
                )
            time.sleep(0.02)
        return time.monotonic() - started

    def _wanted(self) -> int:
        """How many replicas are alive, as the application's controller has counted them."""
        note: Note | None = None
        if self._registry is not None:
            with contextlib.suppress(StoreError):
                note = read_note(self._registry.store.storage, self._registry.model)
        return self.replicas if note is None or note.is_stale else max(note.replicas, 1)

    def _begin(self, registry: Registry, alert: Alert | None) -> None:
        """Tell of what ends from now on."""
        self._registry = registry
        self._endings = Endings(registry, lambda ended: _told(ended, registry.model, alert), kept=False)
        self._endings.start()

    def _running(self) -> str:
        if self.url is None:
            raise ServingError("serving is not started: call start(store, model) first")
        return self.url


def _told(ended: Deployment, model: str, alert: Alert | None) -> None:
    trial = ended.roll_out
    assert trial is not None
    if trial.status == "rolled_back":
        log.warning("%s of %s:%s is rolled back: %s", trial.kind, model, trial.version, trial.reason)
    tell_of(trial, model, [alert] if alert else [])


def get_json(url: str, path: str, timeout_s: float) -> Any:
    """GET on a connection of its own, with no proxy in between."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=timeout_s)
    try:
        connection.request("GET", path, headers={"connection": "close"})
        answer = connection.getresponse()
        body = answer.read()
        if answer.status != 200:
            raise http.client.HTTPException(f"{path} answers {answer.status}: {body[:200]!r}")
        return json.loads(body)
    finally:
        connection.close()
