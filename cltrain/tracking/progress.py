"""What is going on, for whoever watches: on standard error, since standard output belongs to results."""

from __future__ import annotations

import atexit
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress as Bar
from rich.progress import SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from cltrain.errors import ConfigError
from cltrain.records import Json, Round, RunInfo
from cltrain.tracking.base import Tracker
from cltrain.tracking.headlines import figure, large
from cltrain.tracking.history import METRICS, number, overall


@dataclass(kw_only=True, eq=False)
class Progress(Tracker):
    """In a terminal one live line; elsewhere a plain line for each round.

    live: whether to draw the live line; None asks the terminal. per_second: how often it is drawn.
    """

    live: bool | None = None
    per_second: float = 4.0

    def __post_init__(self) -> None:
        if not 0 < self.per_second <= 30:
            raise ConfigError(f"tracking.progress.per_second must be above 0 and at most 30, not {self.per_second}")
        self._metric = "log_loss"
        self._rounds: list[Round] = []
        self._bar: Bar | None = None
        self._task = TaskID(0)
        self._moved: list[logging.StreamHandler] = []

    def start(self, run: RunInfo, rounds: list[Round]) -> None:
        self._metric, self._rounds = run.metric, list(rounds)
        self._console = Console(file=sys.stderr, force_terminal=self.live, soft_wrap=True, highlight=False)
        if rounds:
            self._say(f"{run.model}: goes on after round {rounds[-1].index}")
        if self._console.is_terminal:
            self._begin(run.model)

    def working(self, window: str, stage: str) -> None:
        if self._bar:
            self._bar.update(self._task, now=f"{escape(window.removesuffix(' 00:00'))} · {escape(stage)}")

    def finished(self, round_: Round) -> None:
        self._rounds.append(round_)
        if self._bar:
            self._bar.update(self._task, sofar=escape(self._so_far()), refresh=True)
        else:
            self._say(described(round_, self._metric))

    def close(self, rounds: list[Round], summary: Json) -> None:
        if self._bar:
            self._bar.update(self._task, now="done", refresh=True)
            self._bar.stop()
            atexit.unregister(self._bar.stop)
            self._bar = None
        for handler in self._moved:
            handler.setStream(sys.stderr)
        self._moved = []

    def _begin(self, model: str) -> None:
        columns = (SpinnerColumn(), TextColumn("[bold]{task.description}"), TextColumn("{task.fields[sofar]}"))
        self._bar = Bar(
            *columns,
            TextColumn("[cyan]{task.fields[now]}"),
            TimeElapsedColumn(),
            console=self._console,
            refresh_per_second=self.per_second,
            redirect_stdout=False,
        )
        before = sys.stderr
        self._task = self._bar.add_task(escape(model), total=None, now="starting", sofar=escape(self._so_far()))
        self._bar.start()
        atexit.register(self._bar.stop)  # a job that fails leaves a usable terminal
        for handler in _handlers():
            if handler.stream is before and sys.stderr is not before:
                handler.setStream(sys.stderr)
                self._moved.append(handler)

    def _so_far(self) -> str:
        if not self._rounds:
            return ""
        last = self._rounds[-1]
        ours = number(overall(r.observation.prequential for r in self._rounds).get(self._metric))
        said = f"round {last.index} · champion {last.champion or '–'}"
        if ours is not None:
            said += f" · {METRICS.get(self._metric, (self._metric,))[0]} {figure(ours)}"
        return said

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False)


def described(r: Round, metric: str) -> str:
    """A round in one line."""
    made = ", ".join(f"{v['version']} {'accepted' if v.get('accepted') else 'rejected'}" for v in r.versions)
    parts = [
        f"round {r.index}",
        f"{r.window.start:%Y-%m-%d} to {r.window.end:%Y-%m-%d}",
        r.status + (f" ({made})" if made else f" ({r.decision.reason})"),
        f"champion {r.champion or 'none'}",
    ]
    ours, never = number(r.observation.prequential.get(metric)), number(r.observation.static.get(metric))
    if ours is not None:
        parts.append(f"{METRICS.get(metric, (metric,))[0]} {figure(ours)} (never updated {figure(never)})")
    parts += [f"{large(r.observation.events)} rows", f"{r.seconds:.1f} s"]
    return " · ".join(parts).replace("\n", " ")


def _handlers() -> Iterator[logging.StreamHandler]:
    """Handlers that write to a stream. While a live line is drawn, rich stands in front of standard error, and a
    handler that keeps the stream from before would write through the line."""
    loggers = [
        logging.getLogger(),
        *(v for v in logging.Logger.manager.loggerDict.values() if isinstance(v, logging.Logger)),
    ]
    for logger in loggers:
        for handler in logger.handlers:
            if isinstance(handler, logging.StreamHandler):
                yield handler
