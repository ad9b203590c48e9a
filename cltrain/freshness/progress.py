"""How far the trials are, on standard error: a live bar in a terminal, elsewhere a line now and then."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cltrain.freshness.ledger import Ledger

LINE_EVERY_S = 15.0


class TrialProgress:
    """A context manager; tell it when a trial has `ended`."""

    def __init__(self, ledger: Ledger, live: bool | None = None) -> None:
        self._ledger = ledger
        self._console = Console(file=sys.stderr, force_terminal=live, soft_wrap=True, highlight=False)
        columns = (
            TextColumn("freshness"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
        )
        self._bar = Progress(*columns, console=self._console, redirect_stdout=False, redirect_stderr=False)
        self._row = self._bar.add_task("", total=len(ledger.trials), left="", completed=ledger.resumed)
        self._said = time.monotonic()

    def __enter__(self) -> TrialProgress:
        if self._ledger.resumed:
            self._console.print(f"freshness: {self._ledger.resumed} of {len(self._ledger.trials)} trials are on file")
        if self._console.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def ended(self) -> None:
        done, all_, left = len(self._ledger.results), len(self._ledger.trials), left_of(self._ledger.seconds_left)
        self._bar.update(self._row, completed=done, left=left)
        now = time.monotonic()
        if not self._console.is_terminal and (now - self._said >= LINE_EVERY_S or done == all_):
            self._said = now
            self._console.print(f"freshness: {done} of {all_} trials{left and f', {left}'}")


def left_of(seconds: float | None) -> str:
    """
    >>> left_of(None), left_of(50.0), left_of(600.0)
    ('', '50 s left', '10 min left')
    """
    if seconds is None:
        return ""
    return f"{seconds:.0f} s left" if seconds < 120 else f"{seconds / 60:.0f} min left"
