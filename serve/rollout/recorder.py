"""What one replica counts while it answers, and how it gets to the store, where the controller adds it up."""

from __future__ import annotations

import copy
import logging
import threading
from collections.abc import Callable, Sequence

from cltrain.errors import StoreError
from cltrain.records import Json
from cltrain.registry.base import CHALLENGER, CHAMPION
from cltrain.registry.deployment import STAGING, Trial
from cltrain.storage import Storage
from serve.resident import Served
from serve.rollout.evidence import Counters, Sheet
from serve.rollout.preference import INTERLEAVE
from serve.scores import binning

log = logging.getLogger(__name__)


class Recorder:
    """Counters by version at all times, which are what a swap is held against, and while a roll-out runs a sheet for
    each of its steps. Sheets that have changed are written to the store every `every_s` seconds.

    staged: whether this replica has a version under trial, and what keeps it from it.
    """

    def __init__(
        self, storage: Storage, replica: str, every_s: float, staged: Callable[[Trial], tuple[bool, str | None]]
    ) -> None:
        self.error: str | None = None
        self._storage, self._replica, self._every_s, self._staged = storage, replica, every_s, staged
        self._versions: dict[str, Counters] = {}
        self._trial: Trial | None = None
        self._beside: dict[str, str] = {}  # roles of versions that are tried beside the one under trial
        self._sheets: list[Sheet] = []
        self._bin: Callable[[float, str | None], int] = lambda score, label: 0
        self._written: dict[str, Json] = {}
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="cltrain-evidence", daemon=True)
        self._thread.start()

    def follow(self, served: Served) -> None:
        """What is deployed has changed."""
        trial = served.deployment.running
        roles = served.deployment.roles
        beside = {roles[role]: role for role in served.deployment.shares if role not in (CHAMPION, CHALLENGER)}
        with self._lock:
            self._beside = beside
            keep = set(served.deployment.roles.values())
            self._versions = {v: counters for v, counters in self._versions.items() if v in keep}
            if trial is None:
                self._bin = binning(served.predictor)
            elif self._trial is None or self._trial.id != trial.id:
                self._sheets = []
                if trial.champion == served.version:
                    self._bin = binning(served.predictor)
            if trial is not None and not (self._sheets and self._sheets[-1].step == trial.step):
                sheet = Sheet(trial.id, trial.step, self._replica, ordered=served.predictor.task != "multiclass")
                before = self._versions.get(trial.champion or "")
                if trial.kind == "swap" and trial.step != STAGING and before is not None:
                    sheet.arms[CHAMPION] = copy.deepcopy(before)
                self._sheets = [*self._sheets, sheet]
            self._trial = trial

    def answered(
        self, version: str, seconds: float, answers: Sequence[tuple[float, str | None]], both: bool = False
    ) -> None:
        """One live request; the rows' chosen numbers and labels. both: versions are asked the same, to interleave what
        they say, and requests that only the champion is asked are no yardstick for it."""
        scores, bins = [score for score, _ in answers], [self._bin(*answer) for answer in answers]
        for counters in self._of(version, both):
            counters.answered(seconds, scores, bins)

    def failed(self, version: str, seconds: float, *, finite: bool = True, both: bool = False) -> None:
        for counters in self._of(version, both):
            counters.failed(seconds, finite=finite)

    def shadow(self, roll_out: str) -> Counters | None:
        """Where a shadow's answers are counted, while its roll-out runs."""
        return self._sheets[-1].arm(CHALLENGER) if self._trial and self._trial.id == roll_out else None

    def bin(self, answer: tuple[float, str | None]) -> int:
        return self._bin(*answer)

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def publish(self) -> None:
        """Write what has changed."""
        with self._lock:
            sheets, trial = self._sheets, self._trial
        for sheet in sheets:
            if trial is not None and trial.id == sheet.roll_out and not sheet.staged:
                sheet.staged, sheet.problem = self._staged(trial)
            value = sheet.to_json()
            if value == self._written.get(sheet.place):
                continue
            try:
                self._storage.write_json(sheet.place, value)
                self._written[sheet.place], self.error = value, None
            except StoreError as error:
                if self.error is None:
                    log.warning("what is seen of %s cannot be reported: %s", sheet.roll_out, error)
                self.error = str(error)
        self._written = {sheet.place: self._written[sheet.place] for sheet in sheets if sheet.place in self._written}

    def _of(self, version: str, both: bool) -> list[Counters]:
        always = self._versions.get(version)
        if always is None:
            always = self._versions.setdefault(version, Counters())
        trial = self._trial
        if trial is None or (trial.kind == INTERLEAVE and not both):
            return [always]
        if version == trial.version:
            return [always, self._sheets[-1].arm(CHALLENGER)]
        if trial.kind == "swap" and trial.step == STAGING:  # `before` will be what it did, this among it
            return [always]
        return [always, self._sheets[-1].arm(self._beside.get(version, CHAMPION))]

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            self.publish()
        self.publish()
