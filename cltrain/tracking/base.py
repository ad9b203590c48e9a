"""What a tracker is told, and a set of trackers that shields the loop from each of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

from cltrain.records import Json, Round, RunInfo

Table = tuple[Sequence[str], Sequence[Sequence[object]]]  # columns, and rows of plain values

log = logging.getLogger(__name__)


class Tracker:
    """Told when the job starts, when a window is begun, when a round has ended and when the job ends; and, by jobs that
    are no loop but a measurement, what came of it. Does nothing itself."""

    def start(self, run: RunInfo, rounds: list[Round]) -> None:
        """The job starts; `rounds` were finished by an earlier run of it."""

    def working(self, window: str, stage: str) -> None:
        """`stage` of the round of `window` begins."""

    def alert(self, title: str, text: str) -> None:
        """People should know of this, such as that a version awaits their approval."""

    def finished(self, round_: Round) -> None:
        """A round has ended."""

    def close(self, rounds: list[Round], summary: Json) -> None:
        """The job has ended with `summary`."""

    def measured(self, run: RunInfo, tables: Mapping[str, Table], summary: Json) -> None:
        """A measurement such as `jobs.freshness` has ended; its `report.html` is in the run folder."""


class Trackers(Tracker):
    """All of them; one that raises is left out from then on, with a warning."""

    def __init__(self, trackers: Iterable[Tracker]) -> None:
        self._trackers = list(trackers)

    def start(self, run: RunInfo, rounds: list[Round]) -> None:
        self._tell(lambda tracker: tracker.start(run, rounds))

    def working(self, window: str, stage: str) -> None:
        self._tell(lambda tracker: tracker.working(window, stage))

    def alert(self, title: str, text: str) -> None:
        self._tell(lambda tracker: tracker.alert(title, text))

    def finished(self, round_: Round) -> None:
        self._tell(lambda tracker: tracker.finished(round_))

    def close(self, rounds: list[Round], summary: Json) -> None:
        self._tell(lambda tracker: tracker.close(rounds, summary))

    def measured(self, run: RunInfo, tables: Mapping[str, Table], summary: Json) -> None:
        self._tell(lambda tracker: tracker.measured(run, tables, summary))

    def _tell(self, tell: Callable[[Tracker], None]) -> None:
        for tracker in list(self._trackers):
            try:
                tell(tracker)
            except Exception as error:
                log.warning("%s is left out from now on: %s", type(tracker).__name__, error)
                self._trackers.remove(tracker)
